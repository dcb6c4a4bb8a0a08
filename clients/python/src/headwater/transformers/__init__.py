"""Models of Hugging Face transformers whose keys and values lie on a cluster, and whose attention is computed there.

    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="headwater")
    with headwater.Client("localhost:7600") as client, headwater.Cache(client, model) as cache:
        model.generate(**inputs, cache=cache)

The way of a forward pass: a hook before it (cache.py) looks at its tokens and padding, and settles which session each row is
(rows.py); the library makes its mask, for which interface.py hands it a stand-in; each layer gives its new keys and values to
Cache.update and then calls the attention function of interface.py, which does the step of all rows. What a layer's attention is
like was read from the model itself when the cache was made (geometry.py).

A model in training has no cache. Under learning() its layers attend by jobs, whose gradients are jobs too (lessons.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .interface import NAME, register

if TYPE_CHECKING:
    from .cache import Cache as Cache
    from .lessons import learning as learning

register()

__all__ = ["NAME", "Cache", "learning"]


def __getattr__(name: str) -> Any:
    if name == "Cache":  # not while the library is still being imported
        from .cache import Cache

        return Cache
    if name == "learning":
        from .lessons import learning

        return learning
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
