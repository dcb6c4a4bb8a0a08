from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def test_messages_are_those_of_the_protocol(tmp_path: Path) -> None:
    subprocess.run([HERE / "generate.sh", tmp_path], check=True, env={**os.environ, "PYTHON": sys.executable})
    made = sorted(p.name for p in (tmp_path / "headwater" / "v1").iterdir())
    assert made == sorted(p.name for p in (HERE / "src" / "headwater" / "v1").iterdir() if "_pb2" in p.name)
    for name in made:
        assert (tmp_path / "headwater" / "v1" / name).read_text() == (HERE / "src" / "headwater" / "v1" / name).read_text(), "make proto"
