"""Rows as a text for another process, and as a file for another cluster.

The file is a zip archive of cache.json, which says what each row is, and of one snapshot (docs/snapshot.md) for each session. The
program coord writes and reads snapshots.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import programs
from ..client import Client
from ..layer import Receipt
from .rows import Held, Row, distinct

_FORMAT = 1
_HEAD = "cache.json"


@dataclass
class State:
    """Rows, how many columns they have with padding, and the fingerprint of their model, or nothing."""

    rows: list[Row]
    columns: int
    model: bytes


def dump(rows: Sequence[Row], columns: int, model: bytes) -> str:
    """The rows as a text, which attach reads."""
    held = list(distinct(rows))
    return json.dumps({
        "format": _FORMAT,
        "columns": columns,
        "model": model.hex(),
        "rows": [{"session": held.index(row.held), "padding": row.padding} for row in rows],
        "sessions": [{"receipt": json.loads(one.session.receipt().to_json()), "length": one.length, "tokens": one.tokens} for one in held],
    })  # fmt: skip


def attach(client: Client, text: str) -> State:
    """Takes up the sessions of what dump wrote."""

    def take(_: int, told: Any) -> Any:
        return client.attach(Receipt.from_json(json.dumps(told["receipt"])), keep=False)

    return _state(text, take)


def save(client: Client, path: str | os.PathLike[str], rows: Sequence[Row], columns: int, model: bytes) -> None:
    """Writes the rows to a file."""
    target = os.path.abspath(os.fspath(path))
    coord = programs.find("Cache.save", None)
    fd, part = tempfile.mkstemp(prefix=os.path.basename(target) + ".", dir=os.path.dirname(target))
    try:
        with os.fdopen(fd, "wb") as f, zipfile.ZipFile(f, "w") as archive:
            archive.writestr(_HEAD, dump(rows, columns, model))
            for i, held in enumerate(distinct(rows)):
                with archive.open(f"{i}.snapshot", "w", force_zip64=True) as member:
                    programs.run([coord, "sessions", "snapshot", held.session.id.hex(), "-"], client.address, client._security, out=member)
        os.replace(part, target)
    except BaseException:
        os.unlink(part)
        raise


def load(client: Client, path: str | os.PathLike[str], stripes: int) -> State:
    """Makes sessions of what save wrote, in so many stripes."""
    command = [programs.find("Cache.load", None), "sessions", "restore", "-", "--output", "json", "--stripes", str(stripes)]
    try:
        with zipfile.ZipFile(path) as archive:

            def restore(i: int, _: Any) -> Any:
                with archive.open(f"{i}.snapshot") as member:
                    said = programs.run(command, client.address, client._security, given=member)
                return client.attach(json.loads(said)["id"], keep=False)

            return _state(archive.read(_HEAD).decode(), restore)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as e:
        raise ValueError(f"{os.fspath(path)} is not a file that Cache.save wrote: {e}") from e


def _state(text: str, session: Callable[[int, Any], Any]) -> State:
    """Reads what dump wrote; session makes or finds the one of a number."""
    held: list[Held] = []
    try:
        told = json.loads(text)
        if told["format"] != _FORMAT:
            raise ValueError(f"format {told['format']}, not {_FORMAT}")
        columns, model = int(told["columns"]), bytes.fromhex(told["model"])
        places = [(int(row["session"]), int(row["padding"])) for row in told["rows"]]
        lengths = [(int(one["length"]), [int(id) for id in one["tokens"]]) for one in told["sessions"]]
        if any(not 0 <= at < len(lengths) or not 0 <= padding <= columns or lengths[at][0] != columns - padding for at, padding in places):
            raise ValueError("a row whose positions are not the cache's")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"this does not say what the rows of a cache are: {e}") from e
    try:
        for i, (length, tokens) in enumerate(lengths):
            held.append(Held(session(i, told["sessions"][i]), length, tokens))
    except BaseException:
        for one in held:
            one.session.close()
        raise
    return State([Row(held[at], padding) for at, padding in places], columns, model)
