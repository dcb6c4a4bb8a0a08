"""The code of docs/transformers.md, and what else has a headwater.Cache or torch, runs, with a tiny model."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import transformers
from test_documents import PAGES, blocks

import headwater

from model.conftest import tiny
from model.test_generate import prompt

CODE = [
    (f"{page}:{line}", code)
    for page in ("docs/transformers.md", *PAGES)
    for line, code in blocks(page)
    if page not in PAGES or "headwater.Cache" in code or re.search(r"\btorch\b", code)
]


@pytest.mark.parametrize("code", [code for _, code in CODE], ids=[place for place, _ in CODE])
def test_it_runs(cluster: str, hub: headwater.Client, tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained(tmp_path)
    names: dict[str, Any] = {
        "AutoModelForCausalLM": transformers.AutoModelForCausalLM, "headwater": headwater, "path": tmp_path, "client": hub,
        "inputs": prompt(), "model": tiny(),
    }  # fmt: skip
    exec(compile(textwrap.dedent(code).replace("localhost:7600", cluster), "docs/transformers.md", "exec"), names)
