"""Where the program coord is, the environment that it starts in, and how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .errors import HeadwaterError

VARIABLE = "HEADWATER_COORD"
BESIDE = str(Path(__file__).parent / "bin" / "coord")  # wheels have it there
_SETTINGS = "HEADWATER_"
_KERNEL = "HEADWATER_KERNEL"


def find(needed_by: str, given: str | os.PathLike[str] | None) -> str:
    """The program coord: given, or named by the environment, or beside this package, or on the PATH. needed_by is said if there
    is none."""
    for what, path in (("coord", given), (VARIABLE, os.environ.get(VARIABLE))):
        if path:
            found = shutil.which(os.fspath(path))
            if found is None:
                raise HeadwaterError(f"{needed_by} needs the program coord, but {what} names {os.fspath(path)!r}, which can't be run")
            return found
    found = shutil.which(BESIDE) or shutil.which("coord")
    if found is None:
        raise HeadwaterError(
            f"{needed_by} needs the program coord, which is neither at {BESIDE} nor on the PATH: "
            f"install a wheel that has it, or name it by coord=PATH or {VARIABLE}"
        )
    return found


def environment() -> dict[str, str]:
    """This process's environment without settings of the programs: they were meant for another one. The choice of the kernel is
    for all."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS) or name == _KERNEL}


def end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Closes the standard input of a program that ends with it, and waits. A program that takes longer than patience is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
