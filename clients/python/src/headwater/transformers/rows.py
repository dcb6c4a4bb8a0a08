"""The rows of a batch, and the sessions that hold them.

A row is a sequence of tokens with some padding at its left, which is never sent. Rows that have had the same tokens so far share
one session: so the beams of a prompt are sent once, and a row gets a session of its own, a fork, when it gets another token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import HeadwaterError, StaleEpochError, UnknownSessionError
from ..session import Session


@dataclass(eq=False)
class Held:
    """A session of rows.

    length    its positions, without what a forward pass under way appends
    tokens    the ids of its first positions, as far as they are known
    appended  where a pass may have to be done again in part: by layer, the keys and values that it has appended
    """

    session: Session
    length: int = 0
    tokens: list[int] = field(default_factory=list)
    appended: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def settle(self) -> None:
        """Takes back what a forward pass that failed has left."""
        if any(self.session.length(i) != self.length for i in range(len(self.session.layers))):
            self.session.truncate(self.length)

    def truncate(self, length: int) -> None:
        if length < self.length:
            self.session.truncate(length)
            self.length = length
            del self.tokens[length:]

    def fork(self) -> Held:
        return Held(self.session.fork(), self.length, self.tokens.copy())


@dataclass
class Row:
    """A row: its session, which others may share, and how many columns of the batch are padding before its first token."""

    held: Held
    padding: int = 0


def part(rows: Sequence[Row], coming: Sequence[Sequence[int]] | None, forked: Callable[[Held], None]) -> None:
    """Gives each row a session that it shares only with rows that get the same tokens now; None: nobody knows them. forked is
    told of each new one."""
    taken: dict[tuple[int, object], Held] = {}
    owners: set[int] = set()
    for i, row in enumerate(rows):
        key = (id(row.held), i if coming is None else tuple(coming[i]))
        if key not in taken:
            old = row.held
            if id(old) in owners:
                taken[key] = old.fork()
                forked(taken[key])
            else:
                taken[key] = old
                owners.add(id(old))
        row.held = taken[key]


def distinct(rows: Iterable[Row]) -> dict[Held, list[int]]:
    """Each session, and the numbers of the rows that share it."""
    found: dict[Held, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(row.held, []).append(i)
    return found


def drop(held: Iterable[Held]) -> HeadwaterError | None:
    """Drops sessions, and returns the first error of those that could not be dropped and stay until their TTL."""
    first = None
    for one in held:
        try:
            one.session.drop()
        except (UnknownSessionError, StaleEpochError):
            pass  # it has ended already, or somebody else drives it
        except HeadwaterError as e:
            first = first or e
    return first
