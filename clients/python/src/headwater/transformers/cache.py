"""The cache of a model's generations: rows of sessions on a cluster."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
import transformers
from transformers.cache_utils import CacheLayerMixin, DummyLayer

from .. import layer as layers
from ..arrays import as_array
from ..client import Client
from ..cluster import LocalCluster
from ..codecs import SessionCodec
from ..constants import MAX_STRIPES
from ..errors import FreedError
from ..options import whole
from ..session import Session
from ..steps import Step
from ..together import batch
from . import files, geometry, hooks, prints
from .claim import Claim
from .geometry import OWNER
from .interface import Call, Sees, listening
from .rows import Held, Row, distinct, drop, part

_STORAGE: dict[Any, layers.Storage] = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass
class _Pass:
    """A forward pass under way: new columns of all rows, of which some are padding."""

    batch: int
    columns: int
    padding: list[int]  # of each row, how many of the new columns
    tokens: list[list[int]] | None  # of each row, those that are not padding; None: nobody knows them
    held: dict[Held, list[int]]
    done: set[int]  # layers that have attended
    over: bool = False  # it has ended, before all layers were through
    pending: int | None = None  # the layer that has given its keys and values and not yet attended


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """What the library asks a layer of a cache. The cache answers."""

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, cache: Cache, index: int, window: int | None) -> None:
        super().__init__()
        self._cache, self._index = weakref.ref(cache), index
        self.is_sliding = window is not None
        self.record_past = False
        if window is not None:
            self.sliding_window = window

    def _owner(self) -> Cache:
        cache = self._cache()
        assert cache is not None, "the cache of this layer is no more"
        return cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pass

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self._owner().update(key_states, value_states, self._index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner().get_mask_sizes(query_length, self._index)

    def get_seq_length(self) -> int:
        return self._owner().get_seq_length(self._index)

    def get_max_length(self) -> int:
        return -1


class Cache(transformers.Cache, hooks.Told):  # type: ignore[misc]
    """A cache for a model of transformers whose keys and values lie on a cluster, and whose attention is computed there.

        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="headwater")
        with headwater.Client("localhost:7600") as client, headwater.Cache(client, model) as cache:
            model.generate(**inputs, cache=cache)

    Each row of a batch is a session; padding at the left is never sent. It is a context manager, at whose end the sessions are
    dropped; they are dropped as well when nothing refers to it any more, and when the process ends. One generation uses it at a
    time.

    cluster      a Client, or what headwater.local() gives
    model        the model that it is for, with attention "headwater"
    storage      how keys and values are stored; by default as the model has them
    arithmetic   "chain", or if keys and values are stored as bf16 "tiles" or, which is lossy, "tiles-bf16"; "auto" leaves it to the
                 coordinator, once for all rows
    tokens       ids [batch, tokens] or [tokens] of a prompt: what the cluster has of it already need not be computed again
    padding      the prompt's attention_mask [batch, tokens], with padding at the left alone
    share        whether rows begin with what the cluster has of their tokens, and leave theirs to others. Tokens are told with
                 the fingerprint of the model, of every weight; a model with hooks or adapters shares only with a fingerprint
                 that you give
    fingerprint  what to share under instead, up to 1 KiB
    tenant, ttl, workers, replicas, stripes, codec  as in Client.open
    """

    def __init__(
        self,
        cluster: Client | LocalCluster,
        model: Any,
        *,
        storage: layers.Storage | None = None,
        arithmetic: layers.Arithmetic = "chain",
        tokens: Any = None,
        padding: Any = None,
        share: bool = True,
        fingerprint: bytes | None = None,
        tenant: str = "",
        ttl: float = 0,
        workers: int = 0,
        replicas: int | None = None,
        stripes: int = 0,
        codec: SessionCodec = "auto",
    ) -> None:
        if not isinstance(cluster, (Client, LocalCluster)):
            raise TypeError(f"cluster is a {type(cluster).__name__}, neither a headwater.Client nor what headwater.local() gives")
        model = hooks.inner(model)
        self._model = weakref.ref(model)
        self._geometry = geometry.read(model)
        if storage is None:
            if model.dtype not in _STORAGE:
                raise ValueError(f"the model's numbers are {model.dtype}, and attention is computed in float32: model.float() makes them so, or name a storage")
            storage = _STORAGE[model.dtype]
        self._places = {at: i for i, at in enumerate(self._geometry.shapes)}  # the session's layer of a model's
        self._layers = [shape.to_layer(storage, arithmetic) for shape in self._geometry.shapes.values()]
        stripes = whole("stripes", stripes, 0, MAX_STRIPES)
        self._open: dict[str, Any] = {"tenant": tenant, "ttl": ttl, "workers": workers, "replicas": replicas, "stripes": stripes, "codec": codec}
        if fingerprint is None and share:
            fingerprint = prints.fingerprint(model)
        self._options = {"storage": storage, "arithmetic": arithmetic, "share": share, "fingerprint": fingerprint, **self._open}  # of a fork
        self.shares = share and fingerprint is not None
        self._open |= {"model": fingerprint or b"", "shared": self.shares}
        self._rows: list[Row] = []
        self._columns = 0  # of the batch, padding included
        self._fresh = False  # no forward pass has seen the rows
        self._pass: _Pass | None = None
        self._claim = Claim()
        self._claimed = False  # by a forward pass outside a generation
        self._recording = False  # what a pass appends may be taken back
        self._before: dict[Held, Held] = {}  # of a session that a pass under recording made, the one before it
        self._live: set[Held] = set()
        self._closed = False
        held = [
            _Layer(self, at, self._geometry.shapes[at].window) if at in self._geometry.shapes else DummyLayer() for at in range(self._geometry.count)
        ]
        super().__init__(layers=held)
        self._client = cluster if isinstance(cluster, Client) else cluster.client()
        own = None if self._client is cluster else self._client
        hooks.add(model)
        self._finalize = weakref.finalize(self, _abandon, self._live, os.getpid(), self._model, own)
        if tokens is not None:
            ids = torch.as_tensor(tokens)
            ids = ids[None] if ids.ndim == 1 else ids
            self._begin_rows(ids.shape[0], ids, None if padding is None else torch.as_tensor(padding), ids.shape[1])

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<headwater.Cache of {len(self._rows)} rows, {self._columns} positions, {len(self._layers)} layers>"

    def __bool__(self) -> bool:
        return True

    def close(self, *, keep: bool = False) -> None:
        """Ends the cache. Its sessions are dropped, or stay until their TTL if keep is True: then attach takes them up again."""
        if keep and not self._closed:
            self._settle()
            self._forget_before()
            for held in self._live:
                held.session.keep = True
                held.session.close()
            self._live.clear()
        self._closed = True
        self._pass = None
        self._rows = []
        self._finalize()

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The session of each row; rows that are alike so far share one. They are the cache's own: look at them, and leave them so."""
        return tuple(row.held.session for row in self._rows)

    def fork(self) -> Cache:
        """Makes a cache that goes on from here by itself; memory is shared until the two differ. It uses this one's connection, so
        close it first."""
        self._ready()
        model = self._model()
        assert model is not None, "the model is no more"
        child = Cache(self._client, model, **self._options)
        forks = {held: held.fork() for held in distinct(self._rows)}
        child._live.update(forks.values())
        child._rows = [Row(forks[row.held], row.padding) for row in self._rows]
        child._columns, child._fresh, child._layers = self._columns, self._fresh, self._layers
        return child

    def receipt(self) -> str:
        """A text with which attach takes the rows up in another process; nobody is then shown less than it says. Let go of them here
        by close(keep=True)."""
        self._ready()
        return files.dump(self._rows, self._columns, self._open["model"])

    @classmethod
    def attach(cls, cluster: Client | LocalCluster, model: Any, receipt: str, **options: Any) -> Cache:
        """A cache that goes on where the one that gave the receipt was. options are those of Cache. From now on that one can't
        use its rows any more."""
        return cls._of(cluster, model, options, lambda cache: files.attach(cache._client, receipt))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all rows to a file, which load reads, here or on another cluster. The file appears complete or not at all."""
        self._ready()
        files.save(self._client, path, self._rows, self._columns, self._open["model"])

    @classmethod
    def load(cls, cluster: Client | LocalCluster, model: Any, path: str | os.PathLike[str], **options: Any) -> Cache:
        """A cache that goes on where the saved one was, with the same bits. options are those of Cache."""
        return cls._of(cluster, model, options, lambda cache: files.load(cache._client, path, cache._open["stripes"]))

    @classmethod
    def _of(cls, cluster: Client | LocalCluster, model: Any, options: dict[str, Any], find: Callable[[Cache], files.State]) -> Cache:
        cache = cls(cluster, model, **options)
        try:
            state = find(cache)
            cache._live.update(row.held for row in state.rows)
            cache._take(state)
        except BaseException:
            cache.close()
            raise
        return cache

    def _take(self, state: files.State) -> None:
        if state.model and self.shares and state.model != self._open["model"]:
            raise ValueError("the rows are another model's: its weights or its config were others")
        for row in state.rows:
            made = [replace(layer, stripes=1) for layer in row.held.session.layers]  # in how many stripes they are held changes no bit
            self._layers = list(layers.settled(self._layers, made))
            if made != self._layers:
                raise ValueError("the rows are those of another model, or stored in another way: their layers are others")
            lengths = {row.held.session.length(i) for i in range(len(self._layers))}
            if lengths != {row.held.length}:
                raise ValueError(f"a row has {max(lengths)} positions, and {row.held.length} were told of")
        self._rows, self._columns = state.rows, state.columns

    def _ready(self) -> None:
        self._check_open()
        self._settle()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the headwater.Cache is closed")

    # What the library asks.

    @property
    def batch_size(self) -> int:
        return len(self._rows) or -1

    @property
    def is_initialized(self) -> bool:
        return bool(self._rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions that a layer has, padding included."""
        p = self._pass
        return self._columns + (p.columns if p is not None and not p.over and layer_idx in p.done else 0)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        self._check_open()
        if not listening(self):
            raise ValueError("the headwater.Cache was made for another model than the one that runs now; one that is part of another is given as the whole")
        return self._columns + query_length, 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes a layer's new keys and values. They go to the cluster with the queries that follow, and are given back as they
        are: the others are not here."""
        if self._pass is None:
            raise RuntimeError("a layer gives keys and values to a headwater.Cache outside a forward pass of its model")
        if layer_idx not in self._places:
            raise ValueError(f"layer {layer_idx} has keys and values, and had none when the cache was made: it was made for another model")
        self._pass.pending = layer_idx
        setattr(key_states, OWNER, layer_idx)
        return key_states, value_states

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row beam_idx[i] was. Sessions are shared until their rows differ."""
        self._choose(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row becomes so many."""
        self._choose([i for i in range(len(self._rows)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows."""
        self._choose(torch.arange(len(self._rows))[indices.cpu()].tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the newest positions: -n are n of them, as in the library."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give the positions to take back as a negative number")
        self._settle()
        if tokens_to_remove:
            self._cut(self._columns + tokens_to_remove)
        self._forget_before()

    def reset(self) -> None:
        """Forgets all rows, and drops their sessions."""
        self._rows, self._columns, self._pass = [], 0, None
        self._drop_unused()

    def activate_past_recording(self) -> None:
        """From now on what a forward pass appends can be taken back, also if it has left a window by then."""
        self._recording = True

    # A generation and its forward passes. The hooks call these, and the functions of interface.py.

    @contextmanager
    def generation(self, ids: torch.Tensor | None, padding: torch.Tensor | None) -> Iterator[None]:
        if self._fresh and ids is not None:
            zeros = [0] * len(self._rows) if padding is None else _left(padding, padding.shape[1])
            for i, (row, tokens, n) in enumerate(zip(self._rows, ids.tolist(), zeros)):
                if tokens[n : n + row.held.length] != row.held.tokens:
                    raise ValueError(f"input_ids: row {i} does not begin with the tokens that the headwater.Cache was made with")
        if not self._claim.take():
            raise RuntimeError("the headwater.Cache is in use by a generation of this thread")
        try:
            self._settle()
            yield
        finally:
            self._recording = False
            self._claimed = False
            self._claim.give()

    def begin(self, model: Any, batch: int, columns: int, ids: torch.Tensor | None, padding: torch.Tensor | None, skip: bool) -> int:
        self._check_open()
        if model is not self._model():
            raise ValueError(f"the headwater.Cache was made for another model than this {type(model).__name__}")
        self._claimed = self._claim.take() or self._claimed
        self._settle()
        self._forget_before()
        found = 0
        if not self._rows:
            found = self._begin_rows(batch, ids, padding, columns if skip else 0)
            columns -= found
        elif len(self._rows) != batch:
            if batch % len(self._rows) or not self._fresh:
                raise ValueError(f"a batch of {batch} rows, but the headwater.Cache has {len(self._rows)}: reset() it, or make another")
            self.batch_repeat_interleave(batch // len(self._rows))  # the beams of a prompt that was told before
        self._fresh = False
        self._pass = self._new_pass(batch, columns, None if ids is None else ids[:, -columns:], padding)
        return found

    def _new_pass(self, batch: int, columns: int, ids: torch.Tensor | None, padding: torch.Tensor | None) -> _Pass:
        skipped = [0] * batch
        if padding is not None:
            for i, (row, zeros) in enumerate(zip(self._rows, _left(padding, self._columns + columns))):
                skipped[i] = max(0, zeros - self._columns)
                if zeros != row.padding + skipped[i] or (skipped[i] and row.held.length):
                    raise ValueError(f"attention_mask: row {i} has {zeros} positions of padding, and had {row.padding}")
        tokens = None if ids is None else [r[n:] for r, n in zip(ids.tolist(), skipped)]
        part(self._rows, tokens, self._live.add)
        windows = [shape.window for shape in self._geometry.shapes.values() if shape.window is not None]
        if self._recording and windows and self._columns + columns > min(windows):
            for held, shared in distinct(self._rows).items():
                made = held.fork()
                self._live.add(made)
                self._before[made] = held
                for i in shared:
                    self._rows[i].held = made
        for row, n in zip(self._rows, skipped):
            row.padding += n
        return _Pass(batch, columns, skipped, tokens, distinct(self._rows), set())

    def _begin_rows(self, batch: int, ids: torch.Tensor | None, padding: torch.Tensor | None, columns: int) -> int:
        """Opens the sessions of rows that begin, and returns how many columns they have then: what all rows' prefixes cover, up
        to columns less the last one."""
        zeros = [0] * batch if padding is None else _left(padding, padding.shape[1])
        told = [None] * batch if ids is None else [r[n:] for r, n in zip(ids.tolist(), zeros)]
        by_tokens: dict[tuple[int, tuple[int, ...]], Held] = {}
        rows = []
        for n, tokens in zip(zeros, told):
            held = None if tokens is None else by_tokens.get((n, tuple(tokens)))
            if held is None:
                session = self._client.open(self._layers, tokens=tokens if tokens and self.shares else (), **self._open)
                self._layers = [replace(layer, stripes=1) for layer in session.layers]
                held = Held(session, session.prefix, [] if tokens is None else tokens[: session.prefix])
                self._live.add(held)
                if tokens is not None:
                    by_tokens[n, tuple(tokens)] = held
            rows.append(Row(held))
        common = max(0, min([columns - 1] + [n + r.held.length for n, r in zip(zeros, rows)]))
        for n, row in zip(zeros, rows):
            row.padding = min(n, common)
            row.held.truncate(max(0, common - n))
        self._rows, self._columns, self._fresh = rows, common, True
        return common

    def mask(self, batch: int, tokens: int, padding: torch.Tensor | None, window: int | None, sees: Sees) -> None:
        p = self._pass
        if p is None:
            raise RuntimeError("a mask is asked for outside a forward pass")
        if (p.batch, p.columns) != (batch, tokens):
            raise ValueError(f"a mask of {batch} rows and {tokens} tokens in a forward pass of {p.batch} and {p.columns}")
        if padding is not None and [min(n, self._columns + tokens) for n in _left(padding, self._columns + tokens)] != [r.padding for r in self._rows]:
            raise ValueError("the model masks other positions than its attention_mask did: a headwater.Cache takes padding at the left alone")

    def attend(self, call: Call) -> torch.Tensor:
        p = self._pass
        at = getattr(call.module, "layer_idx", None)
        if p is None:
            raise RuntimeError(f"{_where(call)} attends outside a forward pass of its model")
        fresh = p.pending is not None and at in (p.pending, None)
        owner = p.pending if fresh else getattr(call.key, OWNER, None)
        if owner is None or not fresh and owner not in p.done:
            raise ValueError(f"{_where(call)} attends over keys that the headwater.Cache was not given")
        p.pending = None
        made = self._geometry.shapes[owner]
        if not geometry.is_same(call, made):
            shape = geometry.of(call, _where(call))
            if shape != made or shape.sinks is not made.sinks:
                raise ValueError(f"{_where(call)} attends in another way than when the headwater.Cache was made: {shape}, not {made}")
        batch_size, n_heads, tokens, _ = call.query.shape
        if (batch_size, tokens, tokens) != (p.batch, p.columns, call.key.shape[2]):
            raise ValueError(f"{_where(call)} has {tokens} queries and {call.key.shape[2]} keys in {batch_size} rows, in a forward pass of {p.columns} tokens in {p.batch}")
        out = torch.empty((batch_size, tokens, n_heads, made.v_dim), dtype=torch.float32)
        try:
            self._step(p, self._places[owner], call, out, fresh)
        except BaseException:  # a KeyboardInterrupt ends a pass without its hook
            p.over = True
            raise
        if fresh:
            p.done.add(owner)
            if len(p.done) == len(self._places):
                self._done(p)
        return out.to(device=call.query.device, dtype=call.query.dtype)

    def _step(self, p: _Pass, place: int, call: Call, out: torch.Tensor, fresh: bool) -> None:
        """Does the step of a layer for all rows; rows that share a session get one answer."""
        steps = []
        queries, keys, values = as_array(call.query), as_array(call.key), as_array(call.value)
        contexts = out.numpy()
        for held, rows in p.held.items():
            row = rows[0]
            n = p.padding[row]
            if n == p.columns:
                continue
            q, k, v = (x[row, :, n:].transpose(1, 0, 2) for x in (queries, keys, values))
            tokens = p.tokens[row] if p.tokens is not None and place == 0 and fresh and self.shares and len(held.tokens) == held.length else None
            if held in self._before and fresh:
                held.appended[place] = (k, v)
            steps.append(Step(held.session, place, q, k if fresh else None, v if fresh else None, tokens=tokens, out=contexts[row, n:]))
        batch(steps)
        for rows in p.held.values():
            for row in rows:
                if p.padding[row]:
                    contexts[row, : p.padding[row]] = 0  # nobody reads what padding attends to
                if row != rows[0]:
                    contexts[row] = contexts[rows[0]]

    def _done(self, p: _Pass) -> None:
        """Notes what a forward pass that all layers have been through has added."""
        for held, rows in p.held.items():
            if p.tokens is not None and len(held.tokens) == held.length:
                held.tokens += p.tokens[rows[0]]
            held.length += p.columns - p.padding[rows[0]]
        self._columns += p.columns
        self._pass = None

    def end(self) -> None:
        """Ends a forward pass. What one that failed has left is taken back by the next."""
        if self._claim.mine() and self._pass is not None:
            self._pass.over = True
        if self._claim.mine() and self._claimed:
            self._claimed = False
            self._claim.give()

    # What follows is the cache's own.

    def _settle(self) -> None:
        if self._pass is not None:
            p, self._pass = self._pass, None
            for row, n in zip(self._rows, p.padding):
                row.padding -= n
            for row in self._rows:
                row.held = self._before.get(row.held, row.held)
            if self._columns == 0:  # nothing but what the pass said of them is known of the rows
                self._rows = []
                self._drop_unused()
            for held in distinct(self._rows):
                held.settle()

    def _cut(self, columns: int) -> None:
        if columns < 0:
            raise ValueError(f"{self._columns - columns} positions are to be taken back, the cache has {self._columns}")
        for row in self._rows:
            length = max(0, columns - row.padding)
            try:
                row.held.truncate(length)
            except FreedError:
                if row.held not in self._before:
                    raise
                row.held = self._again(row.held, length)
            row.padding = min(row.padding, columns)
        self._columns = columns

    def _again(self, held: Held, length: int) -> Held:
        """The session before the newest pass, to which the first tokens of that pass are appended again."""
        before = self._before[held]
        if length < before.length:
            before.truncate(length)
        count = length - before.length
        if count:
            batch([Step(before.session, place, None, k[:count], v[:count]) for place, (k, v) in held.appended.items()])
            before.tokens += held.tokens[before.length : length]
            before.length = length
        return before

    def _forget_before(self) -> None:
        if self._before:
            self._before.clear()
            self._drop_unused()

    def _choose(self, indices: Sequence[int]) -> None:
        self._settle()
        self._rows = [Row(self._rows[i].held, self._rows[i].padding) for i in indices]
        self._drop_unused()

    def _drop_unused(self) -> None:
        unused = self._live - {row.held for row in self._rows} - set(self._before.values())
        self._live -= unused
        if error := drop(unused):
            raise error


def _where(call: Call) -> str:
    """The layer of a call, for errors."""
    return f"layer {getattr(call.module, 'layer_idx', None)} ({type(call.module).__name__})"


def _left(padding: torch.Tensor, columns: int) -> list[int]:
    """How many positions at the left of each row are padding; padding elsewhere is refused."""
    if padding.ndim != 2 or padding.shape[1] != columns:
        raise ValueError(f"attention_mask is {list(padding.shape)}, for {columns} positions: it covers all that the cache has and what comes")
    real = padding != 0
    zeros = (~real).sum(1)
    first = torch.where(real.any(1), real.int().argmax(1), columns)
    if (zeros != first).any():
        row = int((zeros != first).nonzero()[0])
        column = int((~real[row, int(first[row]) :]).nonzero()[0]) + int(first[row])
        raise ValueError(f'attention_mask: row {row} has padding at column {column}, after a token: only padding at the left is taken (padding_side="left")')
    counts: list[int] = zeros.tolist()
    return counts


def _abandon(live: set[Held], process: int, model: weakref.ref[Any], client: Client | None) -> None:
    """Drops the sessions of a cache that is closed or that nothing refers to any more, and closes a client of its own."""
    if process != os.getpid():
        return
    if (of := model()) is not None:
        hooks.remove(of)
    drop(live)
    live.clear()
    if client is not None:
        client.close()
