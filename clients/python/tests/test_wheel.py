"""Wheels: what is in them, how they are named, and that one works where nothing else of this repository is."""

from __future__ import annotations

import os
import platform
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from test_processes import ended
from twine.commands.check import check

ROOT = Path(__file__).resolve().parents[3]
PROJECT = ROOT / "clients" / "python"
HERE = f"{sys.platform}/{ {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(platform.machine(), platform.machine()) }"
HEADS = {
    "linux/amd64": b"\x7fELF".ljust(18, b"\0") + struct.pack("<H", 62),
    "linux/arm64": b"\x7fELF".ljust(18, b"\0") + struct.pack("<H", 183),
    "darwin/arm64": b"\xcf\xfa\xed\xfe" + struct.pack("<I", 0x0100000C),
}
NAMES = {
    "linux/amd64": "manylinux_2_17_x86_64.manylinux2014_x86_64.musllinux_1_1_x86_64",
    "linux/arm64": "manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64",
    "darwin/arm64": "macosx_12_0_arm64",
}


def build(kind: str, out: Path, where: str | None = None, programs: Path | None = None) -> Path:
    """Builds the sdist or a wheel, and returns its path."""
    with pytest.MonkeyPatch.context() as patch:
        if where is not None:
            patch.setenv("HEADWATER_WHEEL_PLATFORM", where)
            patch.setenv("HEADWATER_WHEEL_PROGRAMS", str(programs))
        builder = {"wheel": WheelBuilder, "sdist": SdistBuilder}[kind](str(PROJECT))
        (path,) = builder.build(directory=str(out), versions=["standard"])
    assert not check([path], strict=True), "twine check has found something"
    return Path(path)


@pytest.mark.parametrize("where", NAMES)
def test_a_wheel_has_the_programs_of_its_platform(where: str, tmp_path: Path) -> None:
    for name in ("coord", "worker"):
        (tmp_path / name).write_bytes(HEADS[where] + name.encode())
        (tmp_path / name).chmod(0o755)
    (tmp_path / "LICENSES.txt").write_text("licenses")
    wheel = build("wheel", tmp_path / "first", where, tmp_path)
    assert wheel.name.endswith(f"-py3-none-{NAMES[where]}.whl")
    with zipfile.ZipFile(wheel) as z:
        files = {i.filename: i for i in z.infolist()}
        for name in ("coord", "worker"):
            assert z.read(f"headwater/bin/{name}") == HEADS[where] + name.encode()
            assert files[f"headwater/bin/{name}"].external_attr >> 16 & 0o111 == 0o111
            (script,) = (f for f in files if f.endswith(f".data/scripts/{name}"))
            assert z.read(script).startswith(b"#!python\n")
        assert z.read("headwater/bin/LICENSES.txt") == b"licenses" and "headwater/py.typed" in files
        (tags,) = (z.read(f).decode() for f in files if f.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: false" in tags
        assert {f"Tag: py3-none-{tag}" for tag in NAMES[where].split(".")} <= set(tags.splitlines())
    assert build("wheel", tmp_path / "again", where, tmp_path).read_bytes() == wheel.read_bytes()
    other = "linux/arm64" if where != "linux/arm64" else "linux/amd64"
    with pytest.raises(ValueError, match=f"coord is not a program of {other}"):
        build("wheel", tmp_path / "other", other, tmp_path)


def test_without_programs_it_is_pure_python(tmp_path: Path) -> None:
    wheel, sdist = build("wheel", tmp_path / "wheel"), build("sdist", tmp_path / "sdist")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as z:
        assert not [f for f in z.namelist() if "/bin/" in f or "/scripts/" in f]
    with tarfile.open(sdist) as t:
        names = {n.partition("/")[2] for n in t.getnames()}
        assert {"src/headwater/__init__.py", "src/headwater/v1/session_pb2.py", "scripts/coord.py", "hatch_build.py", "pyproject.toml"} <= names


USE = """
import os, sys
import numpy as np
import headwater
from headwater import programs
assert headwater.__file__.startswith(sys.prefix), headwater.__file__
assert programs.find("this", None) == programs.BESIDE
row = np.ones((1, 1, 4), np.float32)
with headwater.local(workers=2, memory="64MiB") as cluster, cluster.client(timeout=60) as client:
    with client.open([headwater.Layer(1, 1, 4)]) as session:
        print(session.step(0, row, row, row).context.tolist(), flush=True)
"""


@pytest.mark.skipif(HERE not in NAMES, reason="no wheel has programs of this platform")
def test_it_works_where_nothing_else_is(tmp_path: Path) -> None:
    """In a new environment, with what the wheel names installed, no Go and no other coord on the PATH, and no settings."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("coord", "worker"):
        (programs / name).symlink_to(ROOT / "bin" / name)
    (programs / "LICENSES.txt").touch()
    wheel = build("wheel", tmp_path / "wheel", HERE, programs)
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install", "-q", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, str(wheel)], check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEADWATER_", "PYTHON", "GO"))}
    env = {**kept, "PATH": str(venv / "bin"), "HOME": str(tmp_path)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(venv / "bin" / command[0]), *command[1:]], env=env, cwd=tmp_path, capture_output=True, text=True)

    done = run("python", "-c", USE)
    assert (done.returncode, done.stdout) == (0, "[[[1.0, 1.0, 1.0, 1.0]]]\n"), done.stderr
    # The commands are the programs, with their exit codes and their signals.
    for name in ("coord", "worker"):
        assert run(name, "version").stdout.startswith(f"{name} ")
        assert run(name, "nonsense").returncode == 2
    cluster = subprocess.Popen([str(venv / "bin" / "coord"), "local", "--workers", "1", "--memory", "64MiB"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with cluster:
        assert b"1 workers and a coordinator" in cluster.stdout.readline()
        cluster.send_signal(signal.SIGTERM)
        assert ended(cluster.pid) and cluster.wait() == 0
    (venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "headwater" / "bin" / "worker").unlink()
    gone = run("worker", "version")
    assert gone.returncode == 1 and gone.stderr.startswith("worker: ") and "No such file" in gone.stderr
