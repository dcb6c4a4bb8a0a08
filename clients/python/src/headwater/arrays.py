"""Arrays as they go over the wire: narrowed by the rules of docs/numerics.md, and in the order of models."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def is_bfloat16(x: Array) -> bool:
    """Whether x is of ml_dtypes.bfloat16, which NumPy itself does not have."""
    return x.dtype.kind == "V" and x.dtype.name == "bfloat16"


def is_tensor(x: Any) -> bool:
    """Whether x is a tensor of PyTorch, which is there if one is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def as_array(x: Any) -> Array:
    """x as an array: one of NumPy as it is, a tensor of PyTorch without a copy if it is on the CPU. A bfloat16 tensor becomes
    one of ml_dtypes.bfloat16, or the same values in float32 if ml_dtypes is not installed."""
    if isinstance(x, np.ndarray):
        return x
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        return np.asarray(x)
    x = x.detach().cpu()
    if x.dtype != torch.bfloat16:
        return np.asarray(x.numpy())
    bits: Array = x.view(torch.int16).numpy().view(np.uint16)
    try:
        import ml_dtypes
    except ImportError:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(ml_dtypes.bfloat16)


def to_float32(x: npt.ArrayLike, name: str = "") -> Floats:
    """x in float32, exactly: float32, float16 and bfloat16 are taken. Others would be rounded, and are refused under the
    name of the argument."""
    a = as_array(x)
    if a.dtype == np.float32:
        return a
    if a.dtype == np.float16 or is_bfloat16(a):
        return a.astype(np.float32)
    what = f"{name} is" if name else "this is"
    raise TypeError(f"{what} an array of {a.dtype}, not one of float32, float16 or bfloat16")


_PLAIN = 1e38
_FEW = 1 << 13
_SIXTEEN, _ONE, _HALF = np.uint32(16), np.uint32(1), np.uint32(0x7FFF)


@np.errstate(over="ignore", invalid="ignore")
def _square(x: Floats) -> Any:
    """The sum of the squares, in one pass. NumPy shares that of many numbers out to threads."""
    return np.dot(x, x)


def is_plain(x: Array) -> bool:
    """Whether float32 are seen at a glance to be finite in float32 and in bfloat16: none is NaN, infinite or very large. No says
    nothing."""
    if x.size <= _FEW and x.flags.c_contiguous:
        return bool(_square(x.reshape(-1)) < _PLAIN)
    return bool(np.minimum.reduce(x, axis=None, initial=0) > -_PLAIN and np.maximum.reduce(x, axis=None, initial=0) < _PLAIN)


def check_finite(name: str, x: Array) -> None:
    """Refuses NaN and infinities with their index."""
    if x.dtype == np.float32 and is_plain(x):
        return
    if is_bfloat16(x):
        finite = (x.view(np.uint16) & np.uint16(0x7F80)) != np.uint16(0x7F80)
    else:
        finite = np.isfinite(x)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"{name}{list(at)} is {float(x[at])}")


def round_bfloat16(f: Floats) -> npt.NDArray[np.uint16]:
    """The upper halves of float32, nearest even. Of what is not finite, or would not be then, they are not of use."""
    bits = f.view(np.uint32)
    out = bits >> _SIXTEEN
    out &= _ONE
    out += _HALF
    out += bits
    out >>= _SIXTEEN
    return out.astype(np.uint16)


def narrow_bfloat16(x: npt.ArrayLike, name: str = "") -> npt.NDArray[np.uint16]:
    """x in bfloat16, nearest even, as the upper halves of float32. A finite value that would become infinite is refused.
    name is the argument's, for errors."""
    a = as_array(x)
    if is_bfloat16(a):
        return a.view(np.uint16)
    f = to_float32(a, name)
    out = round_bfloat16(f)
    if is_plain(f):
        return out
    _refuse_overflow(f, (out & np.uint16(0x7F80)) == np.uint16(0x7F80), "bfloat16", name)
    nan = np.isnan(f)
    if nan.any():
        out[nan] = (f.view(np.uint32)[nan] >> _SIXTEEN).astype(np.uint16) | np.uint16(0x40)
    return out


def narrow_float16(x: npt.ArrayLike, name: str = "") -> npt.NDArray[np.float16]:
    """x in float16, nearest even, subnormals kept. A finite value that would become infinite is refused. name is the
    argument's, for errors."""
    a = as_array(x)
    if a.dtype == np.float16:
        return a
    f = to_float32(a, name)
    with np.errstate(over="ignore"):
        out = f.astype(np.float16)
    _refuse_overflow(f, np.isinf(out), "float16", name)
    return out


def _refuse_overflow(x: Floats, infinite: npt.NDArray[np.bool_], kind: str, name: str) -> None:
    if infinite.any():
        over = infinite & np.isfinite(x)
        if over.any():
            at = tuple(int(i) for i in np.argwhere(over)[0])
            raise OverflowError(f"{name or 'value'}{list(at)} is {float(x[at]):g}, which exceeds the range of {kind}")


def tokens_first(x: Array) -> Array:
    """The view [tokens, n_heads, d] that Session.step takes, of [1, n_heads, tokens, d] or [n_heads, tokens, d], which is the
    order in which transformers gives tensors to attention functions. Tensors of PyTorch are taken as well."""
    x = as_array(x)
    if x.ndim == 4:
        if x.shape[0] != 1:
            raise ValueError(f"a batch of {x.shape[0]} sequences: a session is one, batch() steps several")
        x = x[0]
    if x.ndim != 3:
        raise ValueError(f"{x.ndim} dimensions are not [1, n_heads, tokens, d]")
    return x.transpose(1, 0, 2)


def heads_first(x: Array) -> Array:
    """The inverse of tokens_first: of [tokens, n_heads, d] the view [1, n_heads, tokens, d]."""
    x = as_array(x)
    if x.ndim != 3:
        raise ValueError(f"{x.ndim} dimensions are not [tokens, n_heads, d]")
    return x.transpose(1, 0, 2)[None]
