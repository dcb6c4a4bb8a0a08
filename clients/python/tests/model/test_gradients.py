"""Gradients by a cluster against those of PyTorch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import headwater
from headwater.torch import attention


def drawn(seed: int) -> tuple[list[torch.Tensor], dict[str, Any], dict[str, Any]]:
    """q, k, v and what attends alike here and in PyTorch."""
    rng = np.random.default_rng(seed)
    batch, groups, size = (int(rng.integers(1, n)) for n in (3, 4, 4))
    tokens, positions, head_dim, v_dim = (int(rng.integers(1, n)) for n in (70, 90, 20, 20))
    shapes = [(batch, groups * size, tokens, head_dim), (batch, groups, positions, head_dim), (batch, groups, positions, v_dim)]
    tensors = [torch.from_numpy(rng.standard_normal(s).astype(np.float32)).requires_grad_() for s in shapes]
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {"enable_gqa": True}
    if seed % 3 == 1:
        ours, theirs["is_causal"] = {"causal": True, "offset": 0}, True
    if seed % 3 == 2:
        bias = torch.from_numpy(rng.standard_normal((1 + (seed % 2) * (groups * size - 1), tokens, positions)).astype(np.float32))
        ours["bias"] = theirs["attn_mask"] = bias.requires_grad_()
        tensors.append(bias)
    if seed % 2:
        ours["scale"] = theirs["scale"] = 0.25
    return tensors, ours, theirs


@pytest.mark.parametrize("seed", range(50))
def test_gradients_are_those_of_torch(hub: headwater.Client, seed: int) -> None:
    tensors, ours, theirs = drawn(seed)
    y = attention(*tensors[:3], client=hub, **ours)
    d = torch.from_numpy(np.random.default_rng(seed).standard_normal(y.shape))
    y.backward(d.float())
    exact = [x.detach().double().requires_grad_() for x in tensors]
    if "attn_mask" in theirs:
        theirs["attn_mask"] = exact[3]
    truth = F.scaled_dot_product_attention(*exact[:3], **theirs)
    truth.backward(d)
    assert torch.allclose(y.double(), truth, rtol=1e-4, atol=1e-5)
    for x, t in zip(tensors, exact, strict=True):
        assert x.grad is not None and t.grad is not None and x.grad.dtype == x.dtype
        assert torch.allclose(x.grad.double(), t.grad, rtol=1e-4, atol=1e-4)


def test_gradients_of_sinks_and_narrow_types(hub: headwater.Client) -> None:
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, n, 5, 8, dtype=torch.bfloat16, requires_grad=True) for n in (4, 2, 2))
    sinks = torch.randn(4, requires_grad=True)
    attention(q, k, v, client=hub, sinks=sinks).sum().backward()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v, sinks)]
    scores = exact[0] @ exact[1].repeat_interleave(2, 1).transpose(2, 3) / 8**0.5
    weights = torch.cat([scores, exact[3][None, :, None, None].expand(1, 4, 5, 1)], 3).softmax(3)[..., :5]
    (weights @ exact[2].repeat_interleave(2, 1)).sum().backward()
    for x, t in zip((q, k, v, sinks), exact, strict=True):
        assert x.grad is not None and t.grad is not None and x.grad.dtype == x.dtype
        assert torch.allclose(x.grad.double(), t.grad, rtol=1e-2, atol=1e-3)


def rotated(x: torch.Tensor, base: float, interleaved: bool) -> torch.Tensor:
    """x [batch, heads, tokens, size], turned by its positions."""
    size = x.shape[-1]
    angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * base ** (-2 * torch.arange(size // 2, dtype=x.dtype) / size)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : size // 2], x[..., size // 2 :])
    turned = first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)


@pytest.mark.parametrize("seed", range(20))
def test_gradients_of_layers_are_those_of_torch(hub: headwater.Client, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch, groups, size = (int(rng.integers(1, n)) for n in (4, 4, 4))
    tokens, model, head_dim, v_dim = (int(rng.integers(1, n)) for n in (90, 40, 10, 20))
    head_dim *= 2
    heads = groups * size
    shapes = {"w_q": (heads * head_dim, model), "w_k": (groups * head_dim, model), "w_v": (groups * v_dim, model), "w_o": (model, heads * v_dim)}
    if seed % 2:
        shapes |= {"b_q": (heads * head_dim,), "b_k": (groups * head_dim,), "b_v": (groups * v_dim,), "b_o": (model,)}
    job = {name: (rng.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    for name in ("x", "d_y"):
        job |= {f"seqs.{b}.{name}": rng.standard_normal((tokens, model)).astype(np.float32) for b in range(batch)}
    rope = {"base": 100.0, "interleaved": seed % 4 == 1}
    got = hub.run(job, kind="layer_grad", causal=True, n_heads=heads, rope=rope)

    exact = {name: torch.from_numpy(a).double().requires_grad_() for name, a in job.items()}
    x, d_y = (torch.stack([exact[f"seqs.{b}.{name}"] for b in range(batch)]) for name in ("x", "d_y"))
    q, k, v = (F.linear(x, exact[f"w_{n}"], exact.get(f"b_{n}")).unflatten(2, (h, -1)).transpose(1, 2) for n, h in (("q", heads), ("k", groups), ("v", groups)))
    y = F.scaled_dot_product_attention(rotated(q, **rope), rotated(k, **rope), v, is_causal=True, enable_gqa=True)
    F.linear(y.transpose(1, 2).flatten(2), exact["w_o"], exact.get("b_o")).backward(d_y)
    assert len(got) == batch + len(shapes)
    for name, t in exact.items():
        if name.endswith("d_y"):
            continue
        prefix, _, own = name.rpartition(".")
        mine = torch.from_numpy(np.array(got[f"{prefix}.d_{own}" if prefix else f"d_{own}"])).double()
        assert t.grad is not None
        assert (mine - t.grad).abs().max() <= 2e-5 * (1 + t.grad.abs().max()), name


def test_what_is_refused(hub: headwater.Client) -> None:
    q, k, v = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    with pytest.raises(RuntimeError, match="no gradient of its gradient"):
        torch.autograd.grad(attention(q, k, v, client=hub).sum(), q, create_graph=True)
    with pytest.raises(TypeError, match="k is torch.float64"):
        attention(q, k.double(), v, client=hub)
    with pytest.raises(ValueError, match=r"v has shape \[2, 3, 4\]"):
        attention(q, k, v[0], client=hub)
    with pytest.raises(TypeError, match="kind and sinks"):
        attention(q, k, v, client=hub, kind="layer")


def losses(client: headwater.Client, steps: int) -> list[float]:
    """Trains a small layer to look up, for each token, the value of the key that its query names."""
    torch.manual_seed(0)
    x, want = torch.randn(2, 24, 16), torch.randn(2, 24, 16)
    weights = [torch.nn.Parameter(torch.randn(n, 16) / 4) for n in (32, 16, 16)]
    out = torch.nn.Parameter(torch.randn(16, 32) / 6)
    optimizer = torch.optim.SGD([*weights, out], lr=0.2)
    curve = []
    for _ in range(steps):
        q, k, v = ((x @ w.T).unflatten(2, (-1, 8)).transpose(1, 2) for w in weights)
        y = attention(q, k, v, client=client, causal=True).transpose(1, 2).flatten(2) @ out.T
        loss = (y - want).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def test_training_is_the_same_on_any_cluster() -> None:
    curves = []
    for workers in (1, 3):
        with headwater.local(workers=workers) as cluster, headwater.Client(cluster.address, timeout=60) as client:
            curves.append(losses(client, 20))
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0]
