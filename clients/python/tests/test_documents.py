"""The Python code in documents runs, with what it speaks of made ready. Code in fences, or indented by four spaces."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

import headwater

ROOT = Path(__file__).resolve().parents[3]
PAGES = ["docs/python.md", "README.md", "clients/python/README.md", "docs/job-file.md", "docs/learning.md"]


def blocks(page: str) -> Iterator[tuple[int, str]]:
    """The blocks of Python of a page, with the line that each begins at."""
    block: list[str] = []
    fence = ""
    for number, line in enumerate([*(ROOT / page).read_text().split("\n"), ""], 1):
        if line.startswith("```"):
            if fence == "```python":
                yield number - len(block), "\n".join(block)
            fence, block = "" if fence else line, []
        elif fence or line.startswith("    ") or block and not line:
            block.append(line)
        else:
            code = dedent("\n".join(block)).strip()
            if code and is_python(code):
                yield number - len(block), code
            block = []


def is_python(code: str) -> bool:
    """Whether indented lines are Python that does something, and not a shell's."""
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False
    return not all(isinstance(line, ast.Expr) and not isinstance(line.value, ast.Call) for line in body)


ALL = [(page, line, code) for page in PAGES for line, code in blocks(page)]


@pytest.fixture
def names(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the code speaks of."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((8, heads, 128), np.float32) for heads in (32, 8, 8))
    np.savez("job.npz", q=q, k=k, v=v)
    with headwater.Client(cluster, timeout=60) as client:
        layers = [headwater.Layer(32, 8, 128, storage="bf16")] * 2
        with client.open(layers) as session, client.open(layers) as other:
            yield {
                "np": np, "headwater": headwater, "client": client, "layers": layers, "session": session, "sessions": [session, other],
                "q": q, "k": k, "v": v, "d": np.ones_like(q), "prompt": range(200),
            }  # fmt: skip


@pytest.mark.parametrize(("page", "line", "code"), ALL, ids=[f"{page}:{line}" for page, line, _ in ALL])
def test_it_runs(cluster: str, names: dict[str, Any], page: str, line: int, code: str) -> None:
    for module in ("torch", "transformers", "safetensors"):
        if re.search(rf"\b{module}\b", code):
            pytest.importorskip(module)
    if "headwater.Cache" in code:
        pytest.skip("tests/model/test_model_documents.py runs it with a model")
    exec(compile(code.replace("localhost:7600", cluster), f"{page}:{line}", "exec"), names)


def test_there_is_something_to_run() -> None:
    assert len([1 for page, _, _ in ALL if page == "docs/python.md"]) >= 9
    assert {page for page, _, _ in ALL} == set(PAGES)
