"""Lets torch from PyPI be imported without the CUDA libraries that it is linked with, about 5 GB of them, on machines that have no
such device: each that is missing gets a stand-in beside torch's own libraries, whose functions end the process if they are called.
Only the CUDA runtime itself is real, since torch asks it for devices. Needs a C compiler and readelf.

    python slim.py

Where nothing is missing, as on macOS, it does nothing.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

# Libraries whose symbols have no version, by the names that theirs begin with; and one whose version has another name.
PLAIN = {"cuFile": "libcufile.so.0", "cusparseLt": "libcusparseLt.so.0", "nccl": "libnccl.so.2"}
TAGS = {"libnvshmem_host.so.3": "NVSHMEM"}
CUDA = re.compile(r"lib(cublas|cublasLt|cudnn|cufft|cufile|cupti|cusolver|cusparse|cusparseLt|nccl|nvrtc|nvshmem_host)\.so\.\d+")


def read(*arguments: str) -> str:
    return subprocess.run(["readelf", "-W", *arguments], capture_output=True, text=True, check=True).stdout


def wanted(libraries: list[Path]) -> tuple[set[str], dict[str, set[str]]]:
    """The CUDA libraries that are linked with, and what is used of each, by the version or else the library's name."""
    needed: set[str] = set()
    used: dict[str, set[str]] = {}
    for library in libraries:
        needed |= {name for name in re.findall(r"\(NEEDED\).*\[(.+)\]", read("-d", str(library))) if CUDA.fullmatch(name)}
        for line in read("--dyn-syms", str(library)).splitlines():
            fields = line.split()
            if len(fields) < 8 or fields[6] != "UND":
                continue
            name, _, version = fields[7].partition("@")
            of = version.lstrip("@") or next((library for begin, library in PLAIN.items() if name.startswith(begin)), "")
            used.setdefault(of, set()).add(name)
    return needed, used


def make(target: Path, names: set[str], tag: str | None) -> None:
    """Compiles a stand-in that has these functions."""
    none = 'static void none(const char *name) { fprintf(stderr, "%s: there is no CUDA here\\n", name); abort(); }'
    code = "\n".join(["#include <stdio.h>", "#include <stdlib.h>", none, *(f'void {n}(void) {{ none("{n}"); }}' for n in sorted(names))])
    command = ["cc", "-shared", "-fPIC", "-O1", "-fno-builtin", f"-Wl,-soname,{target.name}", "-o", str(target), "-x", "c", "-"]
    script = target.with_suffix(".map")
    if tag is not None:
        script.write_text(f"{tag} {{ global: *; }};\n")
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, input=code, text=True, check=True)
    script.unlink(missing_ok=True)


def main() -> None:
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        sys.exit("torch is not installed")
    here = Path(torch.origin).parent / "lib"
    site = here.parents[1]
    if not (here / "libtorch_cuda.so").exists():
        return
    needed, used = wanted(sorted(here.glob("*.so")))
    for name in sorted(needed):
        if not any(site.glob(f"nvidia/**/{name}")) and not (here / name).exists():
            plain = name in PLAIN.values()
            make(here / name, used.get(TAGS.get(name, name), set()), None if plain else TAGS.get(name, name))


if __name__ == "__main__":
    main()
