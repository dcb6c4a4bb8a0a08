"""A session whose workers are killed: what is lost of it is said, and it is made anew."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater

LAYERS = [headwater.Layer(6, 3, 8), headwater.Layer(4, 2, 8, storage="bf16"), headwater.Layer(5, 5, 8, storage="int8")]


class Model:
    """Rows of some tokens for each layer, and the steps that append them."""

    def __init__(self, tokens: int) -> None:
        rng = np.random.default_rng(1)
        self.q, self.k, self.v = (
            [rng.standard_normal((tokens, heads, 8), np.float32) for heads in of]
            for of in ([x.n_heads for x in LAYERS], [x.n_kv_heads for x in LAYERS], [x.n_kv_heads for x in LAYERS])
        )

    def grow(self, session: headwater.Session, start: int, end: int) -> list[Any]:
        at = slice(start, end)
        return [session.step(i, self.q[i][at], self.k[i][at], self.v[i][at]).context for i in range(len(LAYERS))]

    def rows(self, layer: int, start: int, count: int) -> tuple[Any, Any]:
        return self.k[layer][start : start + count], self.v[layer][start : start + count]


@pytest.fixture
def own() -> Iterator[headwater.LocalCluster]:
    with headwater.local(workers=3, memory="64MiB", threads=1) as cluster:
        yield cluster
    cluster.log.unlink(missing_ok=True)  # which is kept, since a process was killed


def held(client: headwater.Client, session: headwater.Session, worker: str) -> list[tuple[int, tuple[int, ...], int]]:
    """What a worker alone has of a session without copies."""
    found = client.find_session(session.id)
    (holder,) = [h for h in found.holders if h.name == worker]
    return [(of.layer, tuple(of.groups), session.length(of.layer)) for of in holder.layers if of.groups]


@pytest.mark.parametrize("direct", [False, True], ids=["coordinator", "direct"])
def test_what_is_lost_is_said_and_made_anew(own: headwater.LocalCluster, direct: bool, tmp_path: Path) -> None:
    model = Model(140)
    with own.client(direct=direct) as client, client.open(LAYERS, name="a") as session:
        with client.open(LAYERS) as plain:
            want = [model.grow(plain, 0, 70), model.grow(plain, 70, 130), model.grow(plain, 130, 140)]
        model.grow(session, 0, 70)
        early, late = tmp_path / "early", tmp_path / "late"

        def snapshot(path: Path) -> None:
            command = [os.environ["HEADWATER_COORD"], "sessions", "snapshot", session.id.hex(), str(path), "--quiet", "--coordinator", own.address]
            subprocess.run(command, check=True)

        snapshot(early)
        model.grow(session, 70, 130)
        snapshot(late)
        receipt = session.receipt()
        alone = held(client, session, "w1")
        os.kill(own.processes["w1"], signal.SIGKILL)
        for call in (lambda: session.step(2, model.q[2][:1], model.k[2][:1], model.v[2][:1]), session.fork, lambda: client.attach(receipt)):
            with pytest.raises((headwater.LostError, headwater.UnknownSessionError), match=r"; lost: \d+ shards of 130 positions \(layer 0 ") as failed:
                call()
            assert [(one.layer, one.groups, one.positions) for one in failed.value.lost] == alone

        def wrong(layer: int, start: int, count: int) -> tuple[Any, Any]:
            k, v = model.rows(layer, start, count)
            return k + np.float32(layer == 2), v

        before = {s.session for s in client.sessions().sessions}
        with pytest.raises(headwater.DifferentError, match="^recover session .* layer 2: other keys or values"):
            session.recover(wrong)
        with pytest.raises(ValueError, match="rows of layer 0 from position 70 on are supplied by nobody"):
            session.recover(snapshot=early)
        with pytest.raises(ValueError, match="k has 1 positions, not 130"):
            session.recover(lambda layer, start, count: model.rows(layer, start, 1))
        assert {s.session for s in client.sessions().sessions} == before

        asked = []

        def rows(layer: int, start: int, count: int) -> tuple[Any, Any]:
            asked.append((layer, start, count))
            return model.rows(layer, start, count)

        old = session
        with old.recover(rows, snapshot=early) as made:
            assert asked == [(i, 70, 60) for i in range(3)]
            assert made.id != old.id and len(made) == made.prefix == 130 and made.receipt().layers == receipt.layers
            with pytest.raises(headwater.HeadwaterError, match="is closed"):
                old.fork()
            for got, expected in zip(model.grow(made, 130, 140), want[2]):
                np.testing.assert_array_equal(got, expected)
            made.truncate(70)
            with made.recover(snapshot=late) as again:  # which has more than there was
                assert len(again) == 70
                for got, expected in zip(model.grow(again, 70, 130), want[1]):
                    np.testing.assert_array_equal(got, expected)
                with again.recover(model.rows) as last:
                    assert last.receipt().layers == receipt.layers
        assert not client.sessions().sessions
