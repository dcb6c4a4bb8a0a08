"""Where the program coord is, the environment that it starts in, how it ends, and what it answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from .errors import HeadwaterError, RefusedError, TryAgainError, one_line
from .security import Security

VARIABLE = "HEADWATER_COORD"
BESIDE = str(Path(__file__).parent / "bin" / "coord")  # wheels have it there
_SETTINGS = "HEADWATER_"
_KERNEL = "HEADWATER_KERNEL"
_MEANINGS = {3: TryAgainError, 4: RefusedError, 6: TryAgainError}
"""What exit codes of the program mean (docs/errors.md)."""


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


def run(command: list[str], address: str, security: Security, given: IO[bytes] | None = None, out: IO[bytes] | None = None) -> str:
    """Runs the program on the cluster of a coordinator, as the client that has the security, and returns what it prints, or writes it to
    out."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*command, "--quiet", "--coordinator", address, *security.flags()],
            stdin=subprocess.DEVNULL if given is None else subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment(),
        )  # fmt: skip
        said = b""
        with process:
            try:
                assert process.stdout is not None
                if given is not None and process.stdin is not None:
                    with process.stdin:
                        shutil.copyfileobj(given, process.stdin)
                if out is not None:
                    shutil.copyfileobj(process.stdout, out)
                else:
                    said = process.stdout.read()
            except BrokenPipeError:
                pass  # it has ended early, and says why
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            raise _MEANINGS.get(process.returncode, HeadwaterError)(f"{' '.join(command[1:3])}: {one_line(errors.read().decode(errors='replace'))}")
    return said.decode()
