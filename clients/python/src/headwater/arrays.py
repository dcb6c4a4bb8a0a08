"""Arrays as they go over the wire: narrowed by the rules of docs/numerics.md, and in the order of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def is_bfloat16(x: Array) -> bool:
    """Whether x is of ml_dtypes.bfloat16, which NumPy itself does not have."""
    return x.dtype.kind == "V" and x.dtype.name == "bfloat16"


def to_float32(x: npt.ArrayLike) -> Floats:
    """x in float32, exactly: float32, float16 and bfloat16 are taken; others would be rounded, and are refused."""
    a = np.asarray(x)
    if a.dtype == np.float32:
        return a
    if a.dtype == np.float16 or is_bfloat16(a):
        return a.astype(np.float32)
    raise TypeError(f"an array of {a.dtype} is not one of float32, float16 or bfloat16")


def check_finite(name: str, x: Array) -> None:
    """Refuses NaN and infinities with their index."""
    if is_bfloat16(x):
        finite = (x.view(np.uint16) & np.uint16(0x7F80)) != np.uint16(0x7F80)
    else:
        finite = np.isfinite(x)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"{name}{list(at)} is {float(x[at])}")


def narrow_bfloat16(x: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """x in bfloat16, nearest even, as the upper halves of float32. A finite value that would become infinite is refused."""
    a = np.asarray(x)
    if is_bfloat16(a):
        return a.view(np.uint16)
    f = to_float32(a)
    bits = f.view(np.uint32)
    out = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    _refuse_overflow(f, (out & np.uint16(0x7F80)) == np.uint16(0x7F80), "bfloat16")
    nan = np.isnan(f)
    if nan.any():
        out[nan] = (bits[nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40)
    return out


def narrow_float16(x: npt.ArrayLike) -> npt.NDArray[np.float16]:
    """x in float16, nearest even, subnormals kept. A finite value that would become infinite is refused."""
    a = np.asarray(x)
    if a.dtype == np.float16:
        return a
    f = to_float32(a)
    with np.errstate(over="ignore"):
        out = f.astype(np.float16)
    _refuse_overflow(f, np.isinf(out), "float16")
    return out


def _refuse_overflow(x: Floats, infinite: npt.NDArray[np.bool_], name: str) -> None:
    if infinite.any():
        over = infinite & np.isfinite(x)
        if over.any():
            at = tuple(int(i) for i in np.argwhere(over)[0])
            raise OverflowError(f"value {float(x[at]):g} at {list(at)} exceeds the range of {name}")


def tokens_first(x: Array) -> Array:
    """Of [1, n_heads, tokens, d] or [n_heads, tokens, d], the order in which attention functions of transformers are given
    tensors, the view [tokens, n_heads, d] that Session.step takes."""
    if x.ndim == 4:
        if x.shape[0] != 1:
            raise ValueError(f"a batch of {x.shape[0]} sequences: a session is one, batch() steps several")
        x = x[0]
    if x.ndim != 3:
        raise ValueError(f"{x.ndim} dimensions are not [1, n_heads, tokens, d]")
    return x.transpose(1, 0, 2)


def heads_first(x: Array) -> Array:
    """The inverse of tokens_first: of [tokens, n_heads, d] the view [1, n_heads, tokens, d]."""
    if x.ndim != 3:
        raise ValueError(f"{x.ndim} dimensions are not [tokens, n_heads, d]")
    return x.transpose(1, 0, 2)[None]
