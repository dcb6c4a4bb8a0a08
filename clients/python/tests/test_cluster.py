"""Sessions on a real cluster, through the coordinator and directly: the bits of a job, however they are stepped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import headwater
from headwater import safetensors

FIXTURE = Path(__file__).resolve().parents[3] / "test" / "data" / "smollm2" / "attention.safetensors"
NAMES = ("layers.17", "layers.3")


class Model:
    """The tensors of the fixture's layers, and the job's result over them."""

    def __init__(self, client: headwater.Client) -> None:
        tensors, _ = safetensors.load(FIXTURE.read_bytes())
        self.q, self.k, self.v = ([tensors[f"{name}.{part}"] for name in NAMES] for part in "qkv")
        result = client.run(FIXTURE)
        self.context, self.lse = ([result[f"{name}.{part}"] for name in NAMES] for part in ("context", "lse"))
        self.layers = [
            headwater.Layer(n_heads=q.shape[1], n_kv_heads=k.shape[1], head_dim=q.shape[2]) for q, k in zip(self.q, self.k)
        ]
        self.tokens = len(self.q[0])

    def step(self, s: headwater.Session, layer: int, start: int, stop: int) -> headwater.Step:
        at = slice(start, stop)
        return headwater.Step(s, layer, self.q[layer][at], self.k[layer][at], self.v[layer][at])

    def check(self, got: headwater.Attention, layer: int, start: int, stop: int) -> None:
        np.testing.assert_array_equal(got.context, self.context[layer][start:stop])
        np.testing.assert_array_equal(got.lse, self.lse[layer][start:stop])

    def go(self, s: headwater.Session, *stops: int) -> None:
        for stop in stops:
            start = len(s)
            for layer, got in enumerate(headwater.batch([self.step(s, layer, start, stop) for layer in range(2)])):
                self.check(got, layer, start, stop)


@pytest.fixture(scope="module")
def model(cluster: str) -> Model:
    with headwater.Client(cluster, timeout=60) as client:
        return Model(client)


def test_steps_give_the_bits_of_a_job(client: headwater.Client, model: Model) -> None:
    with client.open(model.layers) as s:
        model.go(s, *range(1, 80), 160, model.tokens)


def test_forks_and_truncations_in_between(client: headwater.Client, model: Model) -> None:
    s = client.open(model.layers)
    model.go(s, 100)
    fork, half = s.fork(), s.fork(70)
    s.truncate(33)
    for one, stops in ((s, (34, 90)), (fork, (101, 150)), (half, (71, 128, 129))):
        model.go(one, *stops)
    s.pin()
    assert client.find_session(s.id).pinned
    for one in (s, fork, half):
        one.drop()
    with pytest.raises(headwater.UnknownSessionError):
        client.find_session(s.id)


def test_drafts_by_a_mask(client: headwater.Client, model: Model) -> None:
    """Two tokens after the same past: by a mask, the second does not see the first."""
    s = client.open(model.layers[:1])
    s.step(0, k=model.k[0][:50], v=model.v[0][:50])
    q, k, v = (np.repeat(x[0][50:51], 2, 0) for x in (model.q, model.k, model.v))
    k[0] += 1
    got = s.step(0, q, k, v, mask=[[True, False], [False, True]])
    s.truncate(50)
    want = s.step(0, q[1:], k[1:], v[1:])
    np.testing.assert_array_equal(want.context, model.context[0][50:51])
    # The same positions' rows, of which one is seen, merge in another place of the page.
    np.testing.assert_allclose(got.context[1:], want.context, atol=1e-6)
    s.drop()


@pytest.mark.parametrize("storage", ["f16", "bf16", "int8"])
def test_narrowed_here_or_there(client: headwater.Client, model: Model, storage: headwater.Storage) -> None:
    """What the client narrows is what a job that stores the narrowed values gives."""
    layer = headwater.Layer(n_heads=9, n_kv_heads=3, head_dim=64, storage=storage)
    q, k, v = model.q[0][:70], model.k[0][:70], model.v[0][:70]
    job = {"q": q}
    for name, x in (("k", k), ("v", v)):
        if storage == "int8":
            scale = np.abs(x).max(-1) / np.float32(127)
            job[name] = np.rint(x / scale[..., None]).clip(-127, 127).astype(np.int8)
            job[f"{name}_scale"] = scale
        else:
            job[name] = headwater.narrow_float16(x) if storage == "f16" else headwater.narrow_bfloat16(x).view("bfloat16")
    want = client.run(job, causal=True)
    with client.open([layer]) as s:
        got = s.step(0, q, k, v)
    np.testing.assert_array_equal(got.context, want["context"])
    np.testing.assert_array_equal(got.lse, want["lse"])


@pytest.mark.parametrize("arithmetic", ["tiles", "tiles-bf16"])
def test_in_tiles_as_a_job_in_tiles(client: headwater.Client, model: Model, arithmetic: headwater.Arithmetic) -> None:
    layer = headwater.Layer(n_heads=9, n_kv_heads=3, head_dim=64, storage="bf16", arithmetic=arithmetic)
    q, k, v = model.q[0][:70], model.k[0][:70], model.v[0][:70]
    job = {"q": q, "k": headwater.narrow_bfloat16(k).view("bfloat16"), "v": headwater.narrow_bfloat16(v).view("bfloat16")}
    want, chain = client.run(job, causal=True, arithmetic=arithmetic), client.run(job, causal=True)
    with client.open([layer]) as s:
        got = s.step(0, q, k, v)
    np.testing.assert_array_equal(got.context, want["context"])
    np.testing.assert_array_equal(got.lse, want["lse"])
    assert (got.context != chain["context"]).any()
    with pytest.raises(headwater.HeadwaterError, match="arithmetic.*takes keys and values of BF16, not of F32"):
        client.run({"q": q, "k": k, "v": v}, arithmetic=arithmetic)


def test_auto_is_what_the_coordinator_takes(client: headwater.Client, model: Model) -> None:
    asked = [headwater.Layer(n_heads=9, n_kv_heads=3, head_dim=64, storage=storage, arithmetic="auto") for storage in ("bf16", "f16")]
    q, k, v = model.q[0][:70], model.k[0][:70], model.v[0][:70]
    job = {"q": q, "k": headwater.narrow_bfloat16(k).view("bfloat16"), "v": headwater.narrow_bfloat16(v).view("bfloat16")}
    want = client.run(job, causal=True, arithmetic="auto")
    with client.open(asked) as s:
        taken = s.layers[0].arithmetic
        assert taken in ("chain", "tiles")
        assert s.layers == (dataclasses.replace(asked[0], arithmetic=taken), asked[1])
        got = s.step(0, q, k, v)
        with s.fork() as fork, client.attach(fork.receipt()) as again:
            assert fork.layers == s.layers
            assert [layer.arithmetic for layer in again.layers] == [taken, "chain"]
    np.testing.assert_array_equal(got.context, want["context"])
    np.testing.assert_array_equal(got.context, client.run(job, causal=True, arithmetic=taken)["context"])


def test_a_prefix_is_found(client: headwater.Client, model: Model) -> None:
    ids = list(range(1000, 1000 + model.tokens))
    options = {"tenant": f"t{client}", "model": b"smollm2"}
    first = client.open(model.layers, tokens=ids, **options)
    assert first.prefix == 0
    model.go(first, model.tokens)
    second = client.open(model.layers, tokens=ids, **options)
    assert second.prefix == len(second) == model.tokens // 64 * 64
    model.go(second, model.tokens)
    first.drop()
    second.drop()


def test_attach_takes_over(cluster: str, client: headwater.Client, model: Model) -> None:
    s = client.open(model.layers)
    model.go(s, 20)
    with headwater.Client(cluster, timeout=60, direct="direct" not in repr(client)) as other:
        taken = other.attach(headwater.Receipt.from_json(s.receipt().to_json()))
        with pytest.raises(headwater.StaleEpochError):
            model.go(s, 21)
        model.go(taken, 21, 40)
        back = client.attach(s.id)
        model.go(back, 41)
        back.drop()


def test_refusals_leave_the_session_as_it_was(client: headwater.Client, model: Model) -> None:
    s = client.open(model.layers)
    model.go(s, 3)
    bad = model.k[0][3:4].copy()
    bad[0, 2, 5] = np.nan
    with pytest.raises(ValueError, match=r"^k\[0, 2, 5\] is nan$"):
        s.step(0, k=bad, v=model.v[0][3:4])
    with pytest.raises(headwater.InvalidError):
        s.step(0, model.q[0][:1], mask=np.ones((1, 9), bool))  # a mask of more positions than there are
    with pytest.raises(headwater.SessionError):
        s.fork(9)
    model.go(s, 4)
    s.drop()


def test_over_budget(client: headwater.Client) -> None:
    layer = headwater.Layer(n_heads=3, n_kv_heads=3, head_dim=512)
    with client.open([layer]) as s:
        k = np.zeros((150, 3, 512), np.float32)
        # The error names the call that failed, whatever else was done about it.
        with pytest.raises(headwater.OverBudgetError, match=r"^step layer 0 of session [0-9a-f]{32}: "):
            for _ in range(400):
                s.step(0, k=k, v=k)
        full = len(s)
        assert full > 0 and full % 150 == 0
        # It is as it was before: it answers, and goes on when there is room.
        s.step(0, q=np.zeros((1, 3, 512), np.float32))
        s.truncate(full - 150)
        s.step(0, k=k, v=k)
        assert len(s) == full


def test_the_example(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    example = FIXTURE.parents[3] / "clients" / "python" / "examples" / "smollm2.py"
    runpy.run_path(str(example))["main"](cluster, str(FIXTURE))
    assert capsys.readouterr().out == "242 tokens through layers 17, 3: the job's bits\n"
