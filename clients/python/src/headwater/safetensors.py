"""Job files and results in memory: the safetensors format, of which NumPy has no bfloat16."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .arrays import Array

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "void16": "BF16",  # as NumPy reads back what ml_dtypes wrote
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip


class File:
    """The bytes of a safetensors file of arrays, in pieces."""

    def __init__(self, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
        entries: dict[str, Any] = {}
        if metadata:
            entries["__metadata__"] = dict(metadata)
        self._arrays = []
        at = 0
        for name, tensor in tensors.items():
            a = np.ascontiguousarray(tensor)
            if a.dtype.name not in _NAMES:
                raise TypeError(f"tensor {name!r} is an array of {a.dtype}, which safetensors does not have")
            if a.dtype.byteorder == ">":
                a = a.astype(a.dtype.newbyteorder("<"))
            entries[name] = {"dtype": _NAMES[a.dtype.name], "shape": a.shape, "data_offsets": [at, at + a.nbytes]}
            at += a.nbytes
            self._arrays.append(a)
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + at

    def pieces(self, most: int) -> Iterator[bytes]:
        """The file in pieces of at most so many bytes."""
        yield from (self.header[at : at + most] for at in range(0, len(self.header), most))
        for a in self._arrays:
            view = a.reshape(-1).view(np.uint8).data
            yield from (bytes(view[at : at + most]) for at in range(0, len(view), most))


def load(data: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Reads the tensors, as views, and the metadata of a safetensors file. BF16 needs ml_dtypes, and is uint16 without it."""
    if len(data) < 8 or (size := int.from_bytes(data[:8], "little")) > len(data) - 8:
        raise ValueError(f"{len(data)} bytes are no safetensors file")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    kinds = {name: np.dtype(kind) for kind, name in _NAMES.items() if name != "BF16"}
    kinds["BF16"] = _bfloat16()
    tensors: dict[str, Array] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = kinds[entry["dtype"]]
        tensors[name] = np.frombuffer(data, kind, (end - begin) // kind.itemsize, 8 + size + begin).reshape(entry["shape"])
    return tensors, metadata


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(np.uint16)
    kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return kind


