"""One step: its arguments checked, its arrays as they are sent, and the messages that it is cut into."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import constants
from .arrays import Array, Floats, as_array, check_finite, is_plain, is_tensor, narrow_bfloat16, narrow_float16, round_bfloat16, to_float32
from .layer import Layer
from .v1 import worker_pb2

if TYPE_CHECKING:
    from .session import Session

Piece = tuple[slice, slice]
"""What one message brings of a step: of its appended tokens and of its queries."""


class Attention(NamedTuple):
    """What queries found.

    context  [query tokens, n_heads, v_dim]
    lse      log-sum-exp of the scores, [query tokens, n_heads]
    """

    context: Floats
    lse: Floats


@dataclass(slots=True)
class Step:
    """A step for batch(): the session, and what Session.step takes: layer, q, k, v, positions, mask, tokens, out and out_lse."""

    session: Session
    layer: int
    q: npt.ArrayLike | None = None
    k: npt.ArrayLike | None = None
    v: npt.ArrayLike | None = None
    positions: int | npt.ArrayLike | None = None
    mask: npt.ArrayLike | None = None
    tokens: Sequence[int] | npt.ArrayLike | None = None
    out: Any = None
    out_lse: Any = None


@dataclass(slots=True)
class Work:
    """A step as it is sent. Heads of one group lie together, which is how a holder wants them."""

    layer: int
    shape: Layer
    queries: int
    appended: int
    q: Array  # [queries, groups, group size * head_dim] in f32
    k: Array  # [appended, groups, head_dim] in the encoding
    v: Array  # [appended, groups, v_dim] in the encoding
    encoding: worker_pb2.StorageType
    position: int  # of the first query
    mask: npt.NDArray[np.bool_] | None
    tokens: list[int] | None
    context: Floats  # [queries, n_heads, v_dim], where answers are written
    lse: Floats  # [queries, n_heads]
    result: Attention
    copies: list[tuple[Any, Floats]] = field(default_factory=list)  # what is copied when all is there: to, from
    pieces: list[Piece] = field(default_factory=list)

    def payload(self, piece: Piece) -> list[Array]:
        """Queries, keys and values of a piece, group by group."""
        appended, queries = piece
        return [_by_group(self.q[queries]), _by_group(self.k[appended]), _by_group(self.v[appended])]

    def take(self, piece: Piece, context: Floats, lse: Floats) -> None:
        """Puts a piece's answer, group by group, where the caller wants it."""
        groups, size = self.shape.n_kv_heads, self.shape.group_size
        queries = piece[1]
        if queries.stop - queries.start == 1:  # heads lie in the order of their groups
            self.context[queries] = context.reshape(1, groups * size, -1)
            self.lse[queries] = lse
            return
        for out, values in ((self.context[queries], context), (self.lse[queries], lse)):
            if out.size:
                tokens, rest = out.shape[0], out.shape[2:]
                by_group = values.reshape(groups, tokens, size, *rest).swapaxes(0, 1)
                # Cutting an axis in two makes a view, whatever the strides.
                out.reshape(tokens, groups, size, *rest)[:] = by_group

    def finish(self) -> Attention:
        """What the caller is given, once all is there."""
        for to, written in self.copies:
            if isinstance(to, np.ndarray):
                to[...] = written
            else:
                to.copy_(sys.modules["torch"].from_numpy(written))
        return self.result


def prepare(step: Step, shape: Layer, length: int, near: bool = False) -> Work:
    """Checks a step on a layer of this shape and length, narrows its arrays and cuts it into messages. An error names the
    argument. near is whether its holder is on this machine."""
    groups = shape.n_kv_heads
    q = k = v = _nothing(groups)
    encoding = worker_pb2.STORAGE_TYPE_F32
    queries = appended = 0
    if step.q is not None:
        q = to_float32(step.q, "q")
        queries = _tokens("q", q, shape.n_heads, shape.head_dim)
        check_finite("q", q)
        q = q.reshape(queries, groups, shape.group_size * shape.head_dim)
    if (step.k is None) != (step.v is None):
        raise ValueError(f"{'v' if step.k is None else 'k'} is given without {'k' if step.k is None else 'v'}: k and v are appended together")
    if step.k is not None and step.v is not None:
        k, v = as_array(step.k), as_array(step.v)
        appended = _tokens("k", k, groups, shape.head_dim)
        if _tokens("v", v, groups, shape.v_dim) != appended:
            raise ValueError(f"v has {v.shape[0]} tokens, k has {appended}")
        k, v, encoding = _encode(k, v, shape, near)
    if queries == 0 and appended == 0:
        raise ValueError("nothing is appended and nothing attends: give q, or k and v, or all of them")
    position = length + appended - queries
    if step.positions is not None:
        position = _first(step.positions, queries)
    if queries and not 0 <= position <= length + appended - queries:
        raise ValueError(f"positions: {queries} queries from position {position}, the layer has {length + appended} then")
    mask = None
    if step.mask is not None:
        mask = as_array(step.mask).astype(np.bool_)
        if mask.ndim != 2 or mask.shape[0] != queries or mask.shape[1] < 1:
            raise ValueError(f"a mask of shape {list(mask.shape)} for {queries} queries: [query tokens, newest positions] is taken")
    out, out_copy = _room("out", step.out, (queries, shape.n_heads, shape.v_dim))
    lse, lse_copy = _room("out_lse", step.out_lse, (queries, shape.n_heads))
    tokens = None if step.tokens is None else token_ids("tokens", step.tokens, appended)
    result = Attention(out if step.out is None else step.out, lse if step.out_lse is None else step.out_lse)
    work = Work(step.layer, shape, queries, appended, q, k, v, encoding, position, mask, tokens, out, lse, result)
    work.copies = [(to, written) for to, written in ((out_copy, out), (lse_copy, lse)) if to is not None]
    work.pieces = _pieces(work, length + appended, shape.causal and mask is None and appended == queries and step.positions is None)
    return work


def _pieces(work: Work, positions: int, fused: bool) -> list[Piece]:
    """Cuts a step into messages, where the layer has so many positions then. A query must see what one message would show it, so it may attend before the rest is appended
    only where it sees nothing after its own position: fused."""
    shape, appended, queries = work.shape, work.appended, work.queries
    row, bound = 4 * shape.n_kv_heads * (shape.head_dim + shape.v_dim), constants.APPEND_BYTES
    if queries:
        answer = shape.v_dim + 1
        if shape.stripes > 1:  # a worker answers with a part of each of its splits
            answer = (shape.v_dim + 2) * (positions // (constants.SPLIT * shape.stripes) + 1)
        row, bound = row + 4 * shape.n_heads * (shape.head_dim + answer), constants.STEP_BYTES
    most = max(1, min(bound // row, constants.MAX_STEP_TOKENS))
    if appended <= most and queries <= most:
        return [(slice(0, appended), slice(0, queries))]
    if fused:
        return [(slice(at, min(at + most, appended)),) * 2 for at in range(0, appended, most)]
    none = slice(0, 0)
    return [(slice(at, min(at + most, appended)), none) for at in range(0, appended, most)] + [
        (none, slice(at, min(at + most, queries))) for at in range(0, queries, most)
    ]


def token_ids(name: str, ids: Any, count: int | None = None) -> list[int]:
    """Ids of tokens, as many as count says."""
    a = as_array(ids)
    if a.ndim == 2 and a.shape[0] == 1:  # as transformers has input_ids
        a = a[0]
    if a.ndim != 1 or (a.size and not np.issubdtype(a.dtype, np.integer)):
        raise TypeError(f"{name} are of shape {list(a.shape)} and type {a.dtype}, not whole numbers in a row")
    if count is not None and a.size != count:
        raise ValueError(f"{name}: {a.size} ids for {count} tokens")
    listed: list[int] = a.tolist()
    if listed and not (0 <= min(listed) and max(listed) < 1 << 32):
        at = next(i for i, n in enumerate(listed) if not 0 <= n < 1 << 32)
        raise ValueError(f"{name}[{at}] is {listed[at]}, not from 0 to {(1 << 32) - 1}")
    return listed


def _tokens(name: str, a: Array, heads: int, dim: int) -> int:
    """The tokens of [tokens, heads, dim]."""
    if a.ndim != 3 or a.shape[1:] != (heads, dim):
        hint = ""
        if a.ndim >= 3 and a.shape[-3] == heads and a.shape[-1] == dim:
            hint = ": headwater.tokens_first turns [1, heads, tokens, d] round"
        raise ValueError(f"{name} has shape {list(a.shape)}, not [tokens, {heads}, {dim}]{hint}")
    return int(a.shape[0])


def _encode(k: Array, v: Array, shape: Layer, near: bool) -> tuple[Array, Array, worker_pb2.StorageType]:
    """k and v as they are sent: in the storage type if narrowing halves them and the way is long, else in float32 for the holder
    to narrow. One holder would refuse what is not finite, and others would have appended it by then, so it is refused here."""
    if near and shape.storage == "bf16" and k.dtype == v.dtype == np.float32 and k.size <= _FEW and is_plain(k) and is_plain(v):
        return k, v, worker_pb2.STORAGE_TYPE_F32
    narrow, encoding = _NARROW.get(shape.storage, (to_float32, worker_pb2.STORAGE_TYPE_F32))
    return _narrowed("k", k, narrow), _narrowed("v", v, narrow), encoding


def _narrowed(name: str, x: Array, narrow: Callable[[Array, str], Array]) -> Array:
    if narrow is narrow_bfloat16 and x.dtype == np.float32 and is_plain(x):
        return round_bfloat16(x)
    sent = narrow(x, name)  # which refuses what is neither float32 nor narrower by name
    check_finite(name, x)
    return sent


_FEW = 1 << 14
"""Elements for which narrowing here takes longer than the bytes that it saves."""
_NARROW: dict[str, tuple[Callable[[Array, str], Array], worker_pb2.StorageType]] = {
    "bf16": (narrow_bfloat16, worker_pb2.STORAGE_TYPE_BF16),
    "f16": (narrow_float16, worker_pb2.STORAGE_TYPE_F16),
}


@cache
def _nothing(groups: int) -> Array:
    """No token of so many groups."""
    return np.empty((0, groups, 0), np.float32)


def _by_group(a: Array) -> Array:
    """Of [tokens, groups, width] the order [groups, tokens, width], contiguous."""
    if len(a) == 1 and a.flags.c_contiguous:
        return a
    return np.ascontiguousarray(a.transpose(1, 0, 2))


def _first(positions: int | npt.ArrayLike, queries: int) -> int:
    """The first of positions that follow each other."""
    p = as_array(positions)
    if p.ndim == 2 and p.shape[0] == 1:  # as transformers has position_ids
        p = p[0]
    if not np.issubdtype(p.dtype, np.integer) or p.ndim > 1 or (p.ndim == 1 and p.shape[0] != queries):
        raise ValueError(f"positions are of shape {list(p.shape)} and type {p.dtype}, for {queries} queries")
    if p.ndim == 0:
        return int(p)
    if (np.diff(p) != 1).any():
        at = int(np.argmax(np.diff(p) != 1))
        raise ValueError(f"positions do not follow each other: {int(p[at])} is followed by {int(p[at + 1])}")
    return int(p[0]) if queries else 0


def _room(name: str, out: Any, shape: tuple[int, ...]) -> tuple[Floats, Any]:
    """Where an answer is written, and where it is copied to from there: None if out itself is written, or nothing was given."""
    if out is None:
        return np.empty(shape, np.float32), None
    if type(out) is np.ndarray and out.dtype == np.float32 and out.shape == shape and out.flags.writeable:
        return out, None
    if not isinstance(out, np.ndarray) and not is_tensor(out):
        raise TypeError(f"{name} is a {type(out).__name__}, not an array of NumPy or a tensor of PyTorch")
    kind = str(out.dtype).removeprefix("torch.")
    if tuple(out.shape) != shape or kind not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"{name} has shape {list(out.shape)} and type {kind}, not {list(shape)} of float32, float16 or bfloat16")
    if isinstance(out, np.ndarray):
        if not out.flags.writeable:
            raise ValueError(f"{name} is not writeable")
        return (out, None) if out.dtype == np.float32 else (np.empty(shape, np.float32), out)
    if out.requires_grad:
        raise ValueError(f"{name} requires a gradient, which can't be written to: give out.detach()")
    if kind == "float32" and out.device.type == "cpu":
        return out.numpy(), None
    return np.empty(shape, np.float32), out
