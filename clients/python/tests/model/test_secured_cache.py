"""A Cache on a cluster with certificates, whose rows are saved and loaded by a program that is let in as the client is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import headwater
from guarded import Guarded
from model.test_cache import close, forward, plain
from model.test_generate import prompt


@pytest.mark.parametrize("direct", [False, True], ids=["coordinator", "direct"])
def test_rows_are_saved_loaded_and_attached(model: Any, guarded: Guarded, who: str, direct: bool, tmp_path: Path) -> None:
    ids = prompt(2, 40)["input_ids"]
    want = plain(model, ids)
    with guarded.dial(who, direct=direct) as client:
        with headwater.Cache(client, model) as cache:
            assert close(forward(model, cache, ids[:, :30]), want[:, :30])
            cache.save(tmp_path / "rows")
            first = forward(model, cache, ids[:, 30:])
        with headwater.Cache.load(client, model, tmp_path / "rows") as cache:
            assert cache.get_seq_length() == 30
            assert torch.equal(forward(model, cache, ids[:, 30:]), first)
        assert not client.sessions().sessions
    other = {"certificate": "token", "token": "certificate"}[who]
    with guarded.dial(other) as client, pytest.raises(headwater.RefusedError, match="tenant"):
        headwater.Cache.load(client, model, tmp_path / "rows")
