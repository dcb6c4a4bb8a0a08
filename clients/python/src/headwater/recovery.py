"""A session that is lost, made again of what its client has: rows, or a snapshot and the rows after it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import programs
from .errors import session_error
from .layer import Layer
from .v1 import session_pb2

if TYPE_CHECKING:
    from .client import Client
    from .session import Session

KeptRows = Callable[[int, int, int], tuple[Any, Any]]
"""Keys and values of a layer, of so many positions from one on, as they were appended."""

_BLOCK = 4096
"""Positions that are asked for at once, at most."""


def recover(lost: Session, client: Client, rows: KeptRows | None, snapshot: str | os.PathLike[str] | None) -> Session:
    """Makes a session like a lost one, which is dropped then."""
    made = _restored(lost, client, snapshot) if snapshot is not None else _empty(lost, client)
    try:
        _refill(made, lost, rows)
    except BaseException:
        made._abandon()
        raise
    made.prefix, made.timeout = len(made), lost.timeout
    lost._abandon()
    return made


def _empty(lost: Session, client: Client) -> Session:
    return client._create("recover as", lost._config, lost.layers, [], 0, lost.codec, lost.keep)


def _restored(lost: Session, client: Client, snapshot: str | os.PathLike[str]) -> Session:
    """The session of a snapshot, cut to what the lost one had."""
    coord = programs.find("Session.recover", None)
    stripes = {layer.stripes for layer in lost.layers if layer.window_left is None}
    if len(stripes) > 1:
        raise ValueError(f"snapshot: the session has layers in {sorted(stripes)} stripes, and a snapshot is restored to one number: recover it from rows")
    command = [coord, "sessions", "restore", "-", "--output", "json", "--stripes", str(max(stripes, default=1))]
    with open(snapshot, "rb") as file:
        said = programs.run(command, client.address, client._security, given=file)
    made = client.attach(json.loads(said)["id"], codec=lost.codec, keep=lost.keep)
    try:
        if [_named(layer) for layer in made.layers] != [_named(layer) for layer in lost.layers]:
            raise ValueError(f"{os.fspath(snapshot)} is of a session with other layers")
        if any(made.length(i) > lost.length(i) for i in range(len(lost.layers))):
            made.truncate(len(lost))
    except BaseException:
        made._abandon()
        raise
    return made


def _named(layer: Layer) -> session_pb2.SessionLayer:
    """A layer as messages have it, with its scale: a snapshot names the default as a number."""
    named = layer.to_proto()
    named.scale = named.scale or float(np.float32(1 / math.sqrt(layer.head_dim)))
    return named


def _refill(made: Session, lost: Session, rows: KeptRows | None) -> None:
    """Appends what a lost session had, and compares the hashes with those that it had."""
    doing = f"recover session {lost.id.hex()}"
    for layer in range(len(lost.layers)):
        n = lost.length(layer)
        for at in range(made.length(layer), n, _BLOCK):
            count = min(_BLOCK, n - at)
            if rows is None:
                raise ValueError(f"{doing}: rows of layer {layer} from position {at} on are supplied by nobody")
            k, v = rows(layer, at, count)
            if len(k) != count:
                raise ValueError(f"{doing}: rows of layer {layer}: k has {len(k)} positions, not {count}")
            made.step(layer, None, k, v)
        hashes = lost._known_hashes(layer)
        if hashes is not None and made._known_hashes(layer) != hashes:
            message = f"layer {layer}: other keys or values than the session had"
            raise session_error(doing, session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_DIFFERENT, message=message, layer=layer))
