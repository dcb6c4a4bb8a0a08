"""The client's constants are Go's."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

from headwater import constants

ROOT = Path(__file__).resolve().parents[3]
TIME = SimpleNamespace(Second=1.0, Millisecond=1e-3, Minute=60.0)


def go_constant(name: str) -> object:
    """The value of a constant, as internal/rpc.Version, in a package of the repository."""
    package, _, name = name.rpartition(".")
    found = set()
    for file in (ROOT / package).glob("*.go"):
        if not file.name.endswith("_test.go"):
            found |= set(re.findall(rf"^(?:const\s+|\t){name}\s*=\s*(.*?)(?:\s*//.*)?$", file.read_text(), re.M))
    assert len(found) == 1, f"{package} has {len(found)} constants {name}"
    return eval(found.pop(), {"time": TIME})


def test_they_are_those_of_go() -> None:
    lines = re.findall(r"^([A-Z_]+) = .*  # (\S+)$", Path(constants.__file__).read_text(), re.M)
    assert {name for name, _ in lines} == {name for name in vars(constants) if name.isupper()}
    for name, go in lines:
        assert getattr(constants, name) == go_constant(go), go
