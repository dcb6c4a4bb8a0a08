from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import headwater


def every_kind() -> np.ndarray:
    """Random bits, and those around the ties and borders of narrowing."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001], np.uint32)
    bits = np.concatenate([bits, (bits[:20_000, None] & np.uint32(0xFFFF0000) | low).reshape(-1)])
    return bits.view(np.float32)


@pytest.mark.filterwarnings("ignore:.*invalid value")
def test_bfloat16_is_nearest_even() -> None:
    x = every_kind()
    x = x[~(np.isfinite(x) & (np.abs(x) >= np.float32(3.3961775e38)))]
    with np.errstate(all="ignore"):
        want = x.astype(ml_dtypes.bfloat16)
    got = headwater.narrow_bfloat16(x)
    number = ~np.isnan(x)
    assert (got[number] == want[number].view(np.uint16)).all()
    assert np.isnan(got[~number].view(ml_dtypes.bfloat16).astype(np.float32)).all()


def test_float16_is_nearest_even() -> None:
    x = every_kind()
    x = x[np.isnan(x) | np.isinf(x) | (np.abs(x) < 65520)]
    got = headwater.narrow_float16(x).astype(np.float64)
    # The nearest of all float16, and of two the one with an even mantissa.
    all16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.unique(all16[np.isfinite(all16)].astype(np.float64))
    number = np.isfinite(x)
    y = x[number].astype(np.float64)
    at = np.searchsorted(finite, y).clip(1, len(finite) - 1)
    error = np.minimum(np.abs(finite[at] - y), np.abs(finite[at - 1] - y))
    assert (np.abs(got[number] - y) == error).all()
    tie = (np.abs(finite[at] - y) == np.abs(finite[at - 1] - y)) & (error > 0)
    assert tie.any() and (headwater.narrow_float16(x)[number][tie].view(np.uint16) % 2 == 0).all()
    assert (np.isnan(got) == np.isnan(x)).all()


@pytest.mark.parametrize(("narrow", "value"), [(headwater.narrow_bfloat16, 3.3961777e38), (headwater.narrow_float16, 65520.0)])
def test_overflow_is_refused(narrow, value: float) -> None:
    x = np.zeros((2, 3), np.float32)
    x[1, 2] = -value
    with pytest.raises(OverflowError, match=r"^value\[1, 2\] is -.*, which exceeds the range"):
        narrow(x)
    x[1, 2] = -np.inf
    assert np.isinf(np.asarray(narrow(x)).view(ml_dtypes.bfloat16 if narrow is headwater.narrow_bfloat16 else np.float16)[1, 2])


def test_other_types_are_refused() -> None:
    for wrong in (np.zeros(3), np.zeros(3, np.int32)):
        with pytest.raises(TypeError, match="not one of float32"):
            headwater.narrow_bfloat16(wrong)


def test_layouts() -> None:
    x = np.arange(2 * 5 * 4, dtype=np.float32).reshape(1, 2, 5, 4)
    y = headwater.tokens_first(x)
    assert y.shape == (5, 2, 4) and y.base is not None and y[3, 1, 2] == x[0, 1, 3, 2]
    assert (headwater.heads_first(y) == x).all() and (headwater.tokens_first(x[0]) == y).all()
    for wrong in (np.zeros((2, 2, 5, 4)), np.zeros((2, 5))):
        with pytest.raises(ValueError):
            headwater.tokens_first(wrong)
