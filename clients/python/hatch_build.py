"""Puts the programs coord and worker into a wheel. `make wheels` says by the environment which ones:

    HEADWATER_WHEEL_PLATFORM   linux/amd64, linux/arm64 or darwin/arm64
    HEADWATER_WHEEL_PROGRAMS   the folder that has coord, worker and LICENSES.txt of that platform

Without these the wheel is pure Python, and headwater.local looks for coord on the PATH.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The programs are static: any C library does. Go 1.26 needs macOS 12.
TAGS = {
    "linux/amd64": "manylinux_2_17_x86_64.manylinux2014_x86_64.musllinux_1_1_x86_64",
    "linux/arm64": "manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64",
    "darwin/arm64": "macosx_12_0_arm64",
}
# How a program of a platform begins: the magic number, and the machine and the place where it stands.
MACHINES = {
    "linux/amd64": (b"\x7fELF", 18, struct.pack("<H", 62)),
    "linux/arm64": (b"\x7fELF", 18, struct.pack("<H", 183)),
    "darwin/arm64": (b"\xcf\xfa\xed\xfe", 4, struct.pack("<I", 0x0100000C)),
}
PROGRAMS = ("coord", "worker")


class ProgramsHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        platform, folder = (os.environ.get(f"HEADWATER_WHEEL_{name}") for name in ("PLATFORM", "PROGRAMS"))
        if not platform or version == "editable":
            return
        if platform not in TAGS or not folder:
            raise ValueError(f"HEADWATER_WHEEL_PLATFORM is {platform!r} and HEADWATER_WHEEL_PROGRAMS {folder!r}: want one of {', '.join(TAGS)}, and a folder")
        for program in PROGRAMS:
            path = Path(folder, program)
            check_machine(path, platform)
            build_data["force_include"][str(path)] = f"headwater/bin/{program}"
            build_data["shared_scripts"][str(Path(self.root, "scripts", f"{program}.py"))] = program
        build_data["force_include"][str(Path(folder, "LICENSES.txt"))] = "headwater/bin/LICENSES.txt"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{TAGS[platform]}"


def check_machine(path: Path, platform: str) -> None:
    """Refuses a program of another platform, which pip would install all the same."""
    with open(path, "rb") as f:
        head = f.read(32)
    magic, at, machine = MACHINES[platform]
    if not head.startswith(magic) or head[at : at + len(machine)] != machine:
        raise ValueError(f"{path} is not a program of {platform}")
