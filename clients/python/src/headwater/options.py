"""Values that callers give as options: plain Python's, NumPy's scalars and arrays, and whatever else turns into them."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(name: str, value: Any) -> Any:
    """value as JSON has it. NumPy's scalars and arrays, and tensors, become numbers and lists; an error names the option."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"option {name}: key {key!r} is not a str")
        return {key: plain(f"{name}[{key!r}]", v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(f"{name}[{i}]", v) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    elif not isinstance(value, (bool, int, float, str)) and value is not None:
        listed = getattr(value, "tolist", None)
        if listed is None:
            raise TypeError(f"option {name} is a {type(value).__name__}: numbers, texts, lists and arrays are taken")
        return plain(name, listed())
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"option {name} is {value}")
    if not isinstance(value, (bool, int, float, str)) and value is not None:
        raise TypeError(f"option {name} is a {type(value).__name__}: numbers, texts, lists and arrays are taken")
    return value


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number from least to most; an error names it."""
    try:
        n = operator.index(value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, not a whole number") from None
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}, not a whole number")
    if not least <= n <= most:
        raise ValueError(f"{name} is {n}, not from {least} to {most}")
    return n


def number(name: str, value: Any) -> float:
    """A finite number, as float32 has it; an error names it."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError(f"{name} is {value!r}, not a number")
    try:
        x = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a {type(value).__name__}, not a number") from None
    if not math.isfinite(x) or abs(x) > float(np.finfo(np.float32).max):
        raise ValueError(f"{name} is {x}, which is not a finite float32")
    return x


def numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    """As many finite numbers, or none; an error names them."""
    if isinstance(values, (str, bytes, Mapping)):
        raise TypeError(f"{name} is a {type(values).__name__}, not numbers")
    listed = getattr(values, "tolist", None)
    if listed is not None:
        values = listed()
    try:
        items = list(values)
    except TypeError:
        raise TypeError(f"{name} is a {type(values).__name__}, not numbers") from None
    if items and len(items) != count:
        raise ValueError(f"{name} has {len(items)} numbers, one for each of {count} heads is needed")
    return tuple(number(f"{name}[{i}]", x) for i, x in enumerate(items))
