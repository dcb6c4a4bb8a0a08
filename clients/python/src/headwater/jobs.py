"""The bytes of a job: of tensors, of a safetensors file, or of an npz archive."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from . import safetensors
from .arrays import as_array
from .v1 import worker_pb2

Codec = Literal["exact", "bf16", "f16", "int8"]
"""How a job's contexts go within the cluster. All but exact are lossy."""

CODECS: dict[str, worker_pb2.ContextCodec] = {
    "exact": worker_pb2.CONTEXT_CODEC_EXACT,
    "bf16": worker_pb2.CONTEXT_CODEC_BF16,
    "f16": worker_pb2.CONTEXT_CODEC_F16,
    "int8": worker_pb2.CONTEXT_CODEC_I8,
}
# The member of an npz archive that holds its metadata, as docs/job-file.md has it.
_METADATA = "__metadata__.json"


class Source(Protocol):
    """The bytes of a safetensors file."""

    size: int
    header: bytes

    def pieces(self, most: int) -> Iterator[bytes]:
        """The file in pieces of at most so many bytes."""
        ...


def open_source(job: Any) -> tuple[Source, str]:
    """A job's bytes, and its name."""
    if isinstance(job, Mapping):
        return safetensors.File({name: as_array(tensor) for name, tensor in job.items()}), "job"
    if not isinstance(job, (str, os.PathLike)):
        raise TypeError(f"job is a {type(job).__name__}, neither a file's path nor tensors by name")
    path = os.fspath(job)
    name = os.path.basename(path)
    if zipfile.is_zipfile(path):
        return _archive(path), name
    return _Path(path), name


def _archive(path: str) -> safetensors.File:
    """The tensors and metadata of an npz archive."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    metadata: dict[str, str] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                if name == _METADATA:
                    metadata = _texts(json.loads(archive[name]))
                else:
                    tensors[name] = archive[name]
    except (ValueError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path} is not read as an npz archive: {e}") from e
    return safetensors.File(tensors, metadata)


def _texts(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError(f"{_METADATA} is no object of strings")
    return metadata


class _Path:
    """A safetensors file on disk, in pieces."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.size = os.path.getsize(path)
        with open(path, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            if self.size < 8 or size > self.size - 8:
                raise ValueError(f"{path} is neither a safetensors file nor an npz archive")
            f.seek(0)
            self.header = f.read(8 + size)

    def pieces(self, most: int) -> Iterator[bytes]:
        with open(self._path, "rb") as f:
            while piece := f.read(most):
                yield piece


class Verdict:
    """Whether a job's bytes are wanted. What is said first counts."""

    def __init__(self) -> None:
        self._said = threading.Event()
        self._wanted = False

    def say(self, wanted: bool) -> None:
        if not self._said.is_set():
            self._wanted = wanted
            self._said.set()

    def wait(self) -> bool:
        self._said.wait()
        return self._wanted
