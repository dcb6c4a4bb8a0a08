"""Who uses a cache: one thread at a time."""

from __future__ import annotations

import threading


class Claim:
    """A claim on something that one thread at a time may use. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _owner
        self._owner: threading.Thread | None = None

    def take(self) -> bool:
        """Takes the claim; False if this thread has it already. If another one has it, that is an error."""
        me = threading.current_thread()
        with self._lock:
            if self._owner is me:
                return False
            if self._owner is not None and self._owner.is_alive():
                raise RuntimeError(f"the headwater.Cache is in use by another generation, of thread {self._owner.name}: each needs a cache of its own")
            self._owner = me
            return True

    def mine(self) -> bool:
        """Whether this thread has the claim."""
        with self._lock:
            return self._owner is threading.current_thread()

    def give(self) -> None:
        """Gives this thread's claim back."""
        with self._lock:
            if self._owner is threading.current_thread():
                self._owner = None
