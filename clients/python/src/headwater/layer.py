"""What a session is made of: its layers, and the receipt of what the cluster holds of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from . import constants, options
from .errors import ProtocolError
from .v1 import session_pb2, worker_pb2

Storage = Literal["f32", "f16", "bf16", "int8"]
"""How keys and values are stored. int8 has one scale for each position and head."""

STORAGE: dict[Storage, worker_pb2.StorageType] = {
    "f32": worker_pb2.STORAGE_TYPE_F32,
    "f16": worker_pb2.STORAGE_TYPE_F16,
    "bf16": worker_pb2.STORAGE_TYPE_BF16,
    "int8": worker_pb2.STORAGE_TYPE_I8,
}
Arithmetic = Literal["chain", "tiles", "tiles-bf16", "auto"]
"""The order of operations of attention's products. tiles is for bf16 and as exact as chain, tiles-bf16 is lossy. auto leaves it to
the coordinator, which takes tiles for bf16 if every worker that is to hold the session has a matrix unit, else chain."""

ARITHMETIC: dict[Arithmetic, worker_pb2.Arithmetic] = {
    "chain": worker_pb2.ARITHMETIC_UNSPECIFIED,
    "tiles": worker_pb2.ARITHMETIC_TILES,
    "tiles-bf16": worker_pb2.ARITHMETIC_TILES_BF16,
    "auto": worker_pb2.ARITHMETIC_AUTO,
}
# What users of NumPy and PyTorch call them.
_NAMES: dict[str, Storage] = {"float32": "f32", "float16": "f16", "half": "f16", "bfloat16": "bf16"}
_MOST = (1 << 31) - 1


def _storage(value: Any) -> Storage:
    """The storage type that a name or dtype means."""
    if isinstance(value, str):
        name = value
    elif isinstance(value, (type, np.dtype)):
        try:
            name = np.dtype(value).name
        except TypeError:
            name = str(value)
    else:
        name = str(value)
    name = name.removeprefix("torch.")
    name = _NAMES.get(name, name)
    if name not in STORAGE:
        raise ValueError(f"storage {value!r} is none of {', '.join([*STORAGE, *_NAMES])}")
    return name  # type: ignore[return-value]


def _window(name: str, value: Any) -> int | None:
    """Positions of a window's side. None and -1 are all of them."""
    if value is None:
        return None
    n = options.whole(name, value, -1, constants.MAX_POSITIONS)
    return None if n < 0 else n


@dataclass(frozen=True)
class Layer:
    """Geometry of one layer, how its keys and values are stored, and what its queries see. Numbers may be Python's or
    NumPy's, sequences of them arrays. An error names the argument.

    n_heads       query heads, a multiple of n_kv_heads
    n_kv_heads    key/value heads, one for each group
    head_dim      elements of a query and of a key
    v_dim         elements of a value; 0 is head_dim
    storage       "f32", "f16", "bf16" or "int8"; "float32", "float16", "bfloat16" and dtypes of NumPy and PyTorch mean the same
    causal        whether a query sees nothing after its own position
    window_left   positions seen before the own one; None is all. A sliding window of W positions, as transformers counts, is W - 1
    window_right  positions seen after the own one; None is all
    scale         factor of the scores; 0 is 1/sqrt(head_dim)
    softcap       cap of the scores; 0 is none
    alibi_slopes  a slope for each query head; empty is none
    sinks         a logit for each query head, counted once in the denominator; empty is none
    arithmetic    "chain", or for bf16 "tiles", which is as exact, or "tiles-bf16", which is lossy. It never changes. "auto" leaves
                  it to the coordinator: a session's layers have the one that it has taken
    stripes       in how many stripes the cluster holds each group; 1 is whole. It changes no bit. A layer with window_left has 1
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int = 0
    storage: Storage = "f32"
    causal: bool = True
    window_left: int | None = None
    window_right: int | None = None
    scale: float = 0.0
    softcap: float = 0.0
    alibi_slopes: Sequence[float] = ()
    sinks: Sequence[float] = ()
    arithmetic: Arithmetic = "chain"
    stripes: int = 1

    @property
    def shards(self) -> int:
        """In how many parts the cluster holds the layer."""
        return self.n_kv_heads * self.stripes

    @property
    def group_size(self) -> int:
        """Query heads that share a key/value head."""
        return self.n_heads // self.n_kv_heads

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)  # the dataclass is frozen

        for name in ("n_heads", "n_kv_heads", "head_dim", "v_dim"):
            put(name, options.whole(name, getattr(self, name), 0 if name == "v_dim" else 1, _MOST))
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}")
        put("v_dim", self.v_dim or self.head_dim)
        put("storage", _storage(self.storage))
        if not isinstance(self.causal, (bool, np.bool_)):
            raise TypeError(f"causal is {self.causal!r}, not True or False")
        put("causal", bool(self.causal))
        put("window_left", _window("window_left", self.window_left))
        put("window_right", _window("window_right", self.window_right))
        # As they are sent, so that a layer that comes back equals the one that went.
        put("scale", float(np.float32(options.number("scale", self.scale))))
        put("softcap", float(np.float32(options.number("softcap", self.softcap))))
        if self.softcap < 0:
            raise ValueError(f"softcap is {self.softcap}, not at least 0")
        if self.arithmetic not in ARITHMETIC:
            raise ValueError(f"arithmetic is {self.arithmetic!r}, not one of {', '.join(ARITHMETIC)}")
        if self.arithmetic == "auto" and self.storage != "bf16":
            put("arithmetic", "chain")  # there is no other
        if self.arithmetic != "chain" and self.storage != "bf16":
            raise ValueError(f"arithmetic {self.arithmetic} takes keys and values stored as bf16, not as {self.storage}")
        put("stripes", options.whole("stripes", self.stripes, 1, constants.MAX_STRIPES))
        if self.stripes > 1 and self.window_left is not None:
            raise ValueError(f"stripes is {self.stripes}, and a layer with window_left is held whole: leave stripes out")
        for name in ("alibi_slopes", "sinks"):
            values = options.numbers(name, getattr(self, name), self.n_heads)
            put(name, tuple(float(np.float32(x)) for x in values))

    def to_proto(self) -> session_pb2.SessionLayer:
        """The layer as messages have it."""
        return session_pb2.SessionLayer(
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            v_dim=self.v_dim,
            # A peer that does not know arithmetics refuses a layer without storage, and does not compute in another.
            storage=STORAGE[self.storage] if self.arithmetic == "chain" else worker_pb2.STORAGE_TYPE_UNSPECIFIED,
            arithmetic=ARITHMETIC[self.arithmetic],
            causal=self.causal,
            window_left=-1 if self.window_left is None else self.window_left,
            window_right=-1 if self.window_right is None else self.window_right,
            scale=self.scale,
            softcap=self.softcap,
            alibi_slopes=self.alibi_slopes,
            sinks=self.sinks,
            stripes=self.stripes if self.stripes > 1 else 0,
        )

    @staticmethod
    def from_proto(p: session_pb2.SessionLayer) -> Layer:
        """Reads what to_proto makes; a ProtocolError says that it is no layer."""
        names = {number: name for name, number in STORAGE.items()}
        arithmetics = {number: name for name, number in ARITHMETIC.items() if name != "auto"} | {worker_pb2.ARITHMETIC_CHAIN: "chain"}
        if p.arithmetic not in arithmetics:
            raise ProtocolError(f"a layer of arithmetic {p.arithmetic}, which this client does not know")
        if arithmetics[p.arithmetic] != "chain":
            names[worker_pb2.STORAGE_TYPE_UNSPECIFIED] = "bf16"
        if p.storage not in names:
            raise ProtocolError(f"a layer of storage {p.storage}, which this client does not know")
        try:
            return Layer(
                p.n_heads, p.n_kv_heads, p.head_dim, p.v_dim, names[p.storage], p.causal,
                None if p.window_left < 0 else p.window_left, None if p.window_right < 0 else p.window_right,
                p.scale, p.softcap, p.alibi_slopes, p.sinks, arithmetics[p.arithmetic], max(p.stripes, 1),
            )  # fmt: skip
        except ValueError as e:
            raise ProtocolError(f"a layer that can't be: {e}") from e


def settled(asked: Sequence[Layer], told: Sequence[Layer]) -> tuple[Layer, ...]:
    """asked, where layers that leave their arithmetic to a coordinator have that of told, if it is one that a coordinator takes."""
    return tuple(replace(a, arithmetic=t.arithmetic) if a.arithmetic == "auto" and t.arithmetic != "tiles-bf16" else a for a, t in zip(asked, told))


@dataclass(frozen=True)
class Receipt:
    """What a client knows that the cluster holds. One that brings it to Client.attach is never shown less.

    session      the session's id, 16 bytes
    truncations  how often positions were taken back
    layers       of each layer its length and the chained hash of each group
    """

    session: bytes
    truncations: int
    layers: tuple[tuple[int, tuple[int, ...]], ...]

    def to_json(self) -> str:
        """The receipt as a text, which from_json reads."""
        layers = [{"length": length, "hashes": hashes} for length, hashes in self.layers]
        return json.dumps({"session": self.session.hex(), "truncations": self.truncations, "layers": layers})

    @staticmethod
    def from_json(text: str) -> Receipt:
        """Reads what to_json writes; a ValueError says that it is something else."""
        try:
            r = json.loads(text)
            layers = tuple((int(one["length"]), tuple(int(h) for h in one["hashes"])) for one in r["layers"])
            return Receipt(bytes.fromhex(r["session"]), int(r["truncations"]), layers)
        except (KeyError, TypeError) as e:
            raise ValueError(f"this is no receipt: {e}") from e
