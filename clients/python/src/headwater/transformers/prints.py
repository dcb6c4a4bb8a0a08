"""The fingerprint of a model: sessions share what equal tokens have become only where the model that read them is the same."""

from __future__ import annotations

import hashlib
import json
import weakref
from typing import Any

import torch

_known: weakref.WeakKeyDictionary[Any, tuple[object, bytes]] = weakref.WeakKeyDictionary()
# Parts of a config that say nothing about what a model computes.
_ASIDE = {"_name_or_path", "_attn_implementation", "architectures", "transformers_version", "use_cache"}


def fingerprint(model: Any) -> bytes | None:
    """The SHA-256 of a model's class, config, and every weight and buffer; None if something else may take part in what it
    computes: hooks on its modules, or adapters. It is remembered until a weight changes."""
    from . import hooks

    if hooks.altered(model):
        return None
    tensors = [*model.named_parameters(), *model.named_buffers()]
    state = [(name, t.data_ptr(), t._version) for name, t in tensors if not t.is_inference()]
    if model in _known and _known[model][0] == state:
        return _known[model][1]
    config = {k: v for k, v in model.config.to_dict().items() if k not in _ASIDE}
    digest = hashlib.sha256(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    for name, t in sorted(tensors, key=lambda one: one[0]):
        digest.update(f"{name} {t.dtype} {list(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    _known[model] = (state, digest.digest())
    return digest.digest()
