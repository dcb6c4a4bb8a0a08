"""Models in training: their layers attend by jobs, which have gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..client import Client
from ..cluster import LocalCluster
from ..torch import attention
from . import geometry
from .interface import Call, learn


@contextmanager
def learning(cluster: Client | LocalCluster) -> Iterator[None]:
    """Within it, forward passes of this thread without a headwater.Cache attend by jobs, and a backward pass goes back through them.

        with headwater.transformers.learning(client):
            loss = model(**batch, labels=labels).loss
            loss.backward()

    cluster is a Client, or what headwater.local() gives; it has to be there until the last backward pass has ended. The gradients
    have the same bits on any cluster. A pass that is given a headwater.Cache attends by its sessions, and has no gradients.
    """
    with ExitStack() as stack:
        client = cluster if isinstance(cluster, Client) else stack.enter_context(cluster.client())

        def attend(call: Call, mask: torch.Tensor | None) -> torch.Tensor:
            return _attend(client, call, mask)

        stack.callback(learn, learn(attend))
        yield


def _attend(client: Client, call: Call, mask: torch.Tensor | None) -> torch.Tensor:
    where = f"layer {getattr(call.module, 'layer_idx', '?')} ({type(call.module).__name__})"
    options = dict(call.options)
    if options.get("dropout"):
        raise ValueError(f"{where} drops {options['dropout']:g} of its weights: headwater has no dropout, set attention_dropout to 0 in the model's config")
    causal = options.pop("is_causal", None)
    if causal is None:
        causal = getattr(call.module, "is_causal", True)
    shape = geometry.of(Call(call.module, call.query, call.key, call.value, None, options), where)
    chosen: dict[str, Any] = {"softcap": shape.softcap}
    if shape.scale:
        chosen["scale"] = shape.scale
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"{where}: its mask is {mask.dtype}: headwater takes masks that say what is seen, of torch.bool")
        if mask.shape[0] == 1:
            mask = mask[0]
        mask = mask[..., : call.key.shape[2]]
    elif causal and call.query.shape[2] > 1:
        chosen |= {"causal": True, "offset": 0}
    return attention(call.query, call.key, call.value, client=client, mask=mask, sinks=shape.sinks, **chosen).transpose(1, 2)
