"""Attention for PyTorch whose gradients are computed on a cluster, with the same bits on any cluster.

    from headwater.torch import attention

    y = attention(q, k, v, client=client, causal=True)
    y.sum().backward()

The forward pass is a job of kind "attention", the backward pass one of kind "attention_grad" (docs/job-file.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .arrays import Array
from .client import Client

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    client: Client,
    mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """softmax(q·kᵀ·scale + bias)·v, with gradients of q, k, v, bias and sinks.

    q is [batch, n_heads, tokens, head_dim], k [batch, n_kv_heads, positions, head_dim] and v [batch, n_kv_heads, positions, v_dim], as
    scaled_dot_product_attention takes them with enable_gqa; float32, float16 or bfloat16. mask and bias are [n_heads or 1, tokens,
    positions], for all of the batch, a mask also [batch, n_heads or 1, tokens, positions], and sinks is [n_heads]. options are those of docs/job-file.md, such as causal, scale or window_left;
    offset is positions - tokens unless given. The result is [batch, n_heads, tokens, v_dim] in the type of q. It is computed in
    float32. A gradient of a gradient is refused.
    """
    for name, x in (("q", q), ("k", k), ("v", v), ("bias", bias), ("sinks", sinks)):
        if x is not None and x.dtype not in _FLOATS:
            raise TypeError(f"{name} is {x.dtype}, must be float32, float16 or bfloat16")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or x.shape[0] != q.shape[0]:
            raise ValueError(f"{name} has shape {list(x.shape)}, must be [batch, heads, tokens, size] with the batch of q, {q.shape[0]}")
    if mask is not None and mask.dim() == 4 and mask.shape[0] != q.shape[0]:
        raise ValueError(f"mask has shape {list(mask.shape)}, and q a batch of {q.shape[0]}")
    if "kind" in options or "sinks" in options:
        raise TypeError("kind and sinks are no options of attention")
    result: torch.Tensor = _Attention.apply(client, options, mask, q, k, v, bias, sinks)
    return result


class _Attention(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, client: Client, options: dict[str, Any], mask: Any, q: Any, k: Any, v: Any, bias: Any, sinks: Any) -> Any:
        tensors = _tensors({"q": q, "k": k, "v": v}, mask, bias)
        result = _run(client, tensors, options, "attention", sinks)
        context, lse = _stacked(result, "context", len(q)), _stacked(result, "lse", len(q))
        ctx.client, ctx.options, ctx.mask = client, options, mask
        ctx.save_for_backward(q, k, v, bias, sinks, context, lse)
        return context.transpose(1, 2).to(q.device, q.dtype)

    @staticmethod
    def backward(ctx: Any, d: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("headwater.torch.attention has no gradient of its gradient: leave create_graph out")
        q, k, v, bias, sinks, context, lse = ctx.saved_tensors
        tensors = _tensors({"q": q, "k": k, "v": v, "d_context": d}, ctx.mask, bias)
        for b in range(len(q)):
            tensors[f"seqs.{b}.context"], tensors[f"seqs.{b}.lse"] = context[b].numpy(), lse[b].numpy()
        result = _run(ctx.client, tensors, ctx.options, "attention_grad", sinks)

        def rows(name: str, like: torch.Tensor) -> torch.Tensor:
            return _stacked(result, name, len(q)).transpose(1, 2).to(like.device, like.dtype)

        d_bias = d_sinks = None
        if bias is not None:
            d_bias = torch.from_numpy(np.array(result["d_bias"])).to(bias.device, bias.dtype)
        if sinks is not None:
            total = torch.zeros(sinks.shape)
            for one in _stacked(result, "d_sinks", len(q)):  # sequences ascending
                total += one
            d_sinks = total.to(sinks.device, sinks.dtype)
        return None, None, None, rows("d_q", q), rows("d_k", k), rows("d_v", v), d_bias, d_sinks


def _tensors(own: Mapping[str, torch.Tensor], mask: torch.Tensor | None, bias: torch.Tensor | None) -> dict[str, Array]:
    """The tensors of a job file: a sequence for each element of the batch."""
    tensors = {f"seqs.{b}.{name}": _array(x[b].transpose(0, 1)) for name, x in own.items() for b in range(len(x))}
    if mask is not None:
        visible = np.ascontiguousarray(mask.detach().cpu().to(torch.bool).numpy())
        tensors |= {"mask": visible} if visible.ndim == 3 else {f"seqs.{b}.mask": one for b, one in enumerate(visible)}
    if bias is not None:
        tensors["bias"] = _array(bias)
    return tensors


def _array(x: torch.Tensor) -> Array:
    a: Array = x.detach().to("cpu", torch.float32).contiguous().numpy()
    return a


def _run(client: Client, tensors: Mapping[str, Array], options: Mapping[str, Any], kind: str, sinks: torch.Tensor | None) -> dict[str, Array]:
    chosen = {**options, "kind": kind}
    if sinks is not None:
        chosen["sinks"] = _array(sinks)
    id = client.submit(tensors, options=chosen, name=f"torch {kind}").id
    result = client.result(client.wait(id).id)
    client.delete(id)  # a training has many
    return result


def _stacked(result: Mapping[str, Array], name: str, batch: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(result[f"seqs.{b}.{name}"])) for b in range(batch)])
