from __future__ import annotations

import grpc
import numpy as np
import pytest

import headwater
from plain import attend

pytestmark = pytest.mark.parametrize("client", [False], indirect=True)


def problem(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in {"q": (5, 6, 16), "k": (40, 2, 16), "v": (40, 2, 8)}.items()}


def test_a_job_attends(client: headwater.Client, tmp_path) -> None:
    tensors = problem(1)
    job = client.submit(tensors, options={"causal": True}, key="one", name="test")
    assert client.wait(job.id).name == "test"
    got = client.result(job.id)

    class Layer:
        scale, head_dim, causal, window_left = 0, 16, True, -1

    for group in range(2):
        heads = slice(3 * group, 3 * group + 3)
        context, lse = attend(tensors["q"][:, heads], tensors["k"][:, group], tensors["v"][:, group], 35, Layer)
        np.testing.assert_allclose(got["context"][:, heads], context, atol=2e-6)
        np.testing.assert_allclose(got["lse"][:, heads], lse, atol=2e-6)

    # The same from a file, and again by its key: no bytes are sent.
    from headwater.safetensors import File

    path = tmp_path / "job.safetensors"
    path.write_bytes(b"".join(File(tensors).pieces(1000)))
    assert client.submit(path, options={"causal": True}, key="one").id == job.id
    assert job.id in [j.id for j in client.jobs()] and client.job("one").id == job.id
    assert (client.run(path, causal=True)["context"] == got["context"]).all()

    # Or from an archive of NumPy; options of NumPy are options.
    np.savez(tmp_path / "job.npz", **tensors)
    assert (client.run(tmp_path / "job.npz", causal=np.bool_(True), scale=np.float32(0.25))["context"] == got["context"]).all()
    assert client.delete("one").id == job.id
    with pytest.raises(headwater.RefusedError, match="^get job one: "):
        client.job("one")


def test_bfloat16_and_int8(client: headwater.Client) -> None:
    import ml_dtypes

    tensors = problem(2)
    exact = client.run(tensors)
    bf16 = client.run({name: a.astype(ml_dtypes.bfloat16) for name, a in tensors.items()})
    assert 0 < np.abs(exact["context"] - bf16["context"]).max() < 0.05
    job = client.submit(tensors, codec="int8")
    client.wait(job.id)
    loss = np.abs(client.result(job.id)["context"] - exact["context"])
    assert 0 < (loss / np.abs(exact["context"]).max(-1, keepdims=True)).max() <= 0.5 / 127 + 1e-6


def test_refusals(client: headwater.Client) -> None:
    with pytest.raises(headwater.CallError, match="^submit job: .*q") as e:
        client.submit({"k": problem(1)["k"], "v": problem(1)["v"]})
    assert e.value.code is grpc.StatusCode.INVALID_ARGUMENT
    wrong = problem(1)
    wrong["k"][3, 1, 2] = np.nan
    with pytest.raises((headwater.CallError, headwater.JobError), match="k"):
        client.wait(client.submit(wrong).id)
    with pytest.raises(headwater.CallError, match="nothing") as e:
        client.wait("nothing")
    assert e.value.code is grpc.StatusCode.NOT_FOUND
    with pytest.raises(TypeError, match="complex128"):
        client.submit({"q": np.zeros(3, complex)})


def test_status(client: headwater.Client) -> None:
    assert [w.worker.name for w in client.status().workers] == ["w1", "w2", "w3"]
