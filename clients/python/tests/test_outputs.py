"""Where contexts are written: arrays of any strides, narrower types, and tensors of PyTorch."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import headwater

LAYER = headwater.Layer(n_heads=6, n_kv_heads=3, head_dim=8, v_dim=4, storage="bf16")


@pytest.fixture
def step(client: headwater.Client) -> Any:
    """A step of 5 tokens into given outputs, and what one without them found."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((5, heads, d), np.float32) for heads, d in ((6, 8), (3, 8), (3, 4)))
    with client.open([LAYER], codec="raw") as session:
        want = session.step(0, q, k, v)

        def do(**outputs: Any) -> tuple[headwater.Attention, headwater.Attention]:
            return session.step(0, q, positions=0, **outputs), want

        yield do


def test_strides_do_not_matter(step: Any) -> None:
    wide, wide_lse = np.zeros((6, 10, 9), np.float32), np.zeros((6, 5), np.float32)
    out, lse = wide[:, ::2, 1:9:2].transpose(1, 0, 2), wide_lse.T
    got, want = step(out=out, out_lse=lse)
    assert got.context is out and got.lse is lse
    np.testing.assert_array_equal(out, want.context)
    np.testing.assert_array_equal(lse, want.lse)
    assert not wide[:, 1::2].any() and not wide[:, :, ::2].any()


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_a_narrower_output_is_narrowed(step: Any, kind: Any) -> None:
    out = np.zeros((5, 6, 4), kind)
    got, want = step(out=out)
    assert got.context is out and (out == want.context.astype(kind)).all()


def test_wrong_outputs_are_refused(step: Any) -> None:
    for wrong, why in (
        (np.zeros((5, 6, 4)), r"^out has shape \[5, 6, 4\] and type float64, not \[5, 6, 4\] of float32, float16 or bfloat16$"),
        (np.zeros((6, 5, 4), np.float32), r"^out has shape \[6, 5, 4\]"),
        (np.broadcast_to(np.zeros((1, 6, 4), np.float32), (5, 6, 4)), "^out is not writeable$"),
    ):
        with pytest.raises(ValueError, match=why):
            step(out=wrong)
    with pytest.raises(TypeError, match="^out_lse is a list, not an array of NumPy or a tensor of PyTorch$"):
        step(out_lse=[1.0])


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_tensors_are_read_and_written_where_they_lie(client: headwater.Client, kind: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    # In the order of models, [rows, heads, tokens, d], each a part of a larger tensor.
    q, k, v = (torch.randn(2, heads, 7, d).to(getattr(torch, kind))[:, :, 1:6].transpose(1, 2) for heads, d in ((6, 8), (3, 8), (3, 4)))
    with client.open([LAYER], codec="raw") as a, client.open([LAYER], codec="raw") as b, client.open([LAYER], codec="raw") as plain:
        out = torch.zeros(2, 6, 5, 4, dtype=getattr(torch, kind)).transpose(1, 2)
        got = headwater.step_many([a, b], 0, q, k, v, out=out)
        want = plain.step(0, *(x[1].float().numpy() for x in (q, k, v))).context
        assert (got[1].context == out[1]).all() and (out[1] == torch.from_numpy(want).to(out.dtype)).all()
        with pytest.raises(ValueError, match="^out requires a gradient"):
            plain.step(0, q[0], positions=0, out=torch.zeros(5, 6, 4, requires_grad=True))
