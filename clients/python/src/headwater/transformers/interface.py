"""What the library calls: an attention function and a mask function, both under the name "headwater".

They are given no cache. So whoever calls the model says who listens in this thread: a Cache during its forward pass, or the probe
that reads a model's geometry. If nobody listens, the attention that learning() has chosen answers, with the library's own masks.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

NAME = "headwater"

Sees = Callable[[int, int], bool]


class Listener(Protocol):
    """Who answers for the attention of a forward pass."""

    def mask(self, batch: int, tokens: int, padding: torch.Tensor | None, window: int | None, sees: Sees) -> None:
        """Is told how the library would mask: padding [batch, positions] is False where a token is padding, window is how many
        positions a layer sees, the own one included, and sees says whether a query's position sees a key's."""
        ...

    def attend(self, call: Call) -> torch.Tensor:
        """The context [batch, tokens, n_heads, v_dim] of a layer's new queries."""
        ...


class Call:
    """One call of the attention function.

    module            the layer's attention module
    query, key, value [batch, heads, tokens, d], as the layer has them
    window            what the library's mask said: positions seen, the own one included; None is all
    options           what the layer passes beside them, by name
    """

    __slots__ = ("key", "module", "options", "query", "value", "window")

    def __init__(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, options: dict[str, Any]) -> None:
        self.module, self.query, self.key, self.value, self.window, self.options = module, query, key, value, window, options


Attention = Callable[[Call, "torch.Tensor | None"], torch.Tensor]


class _Here(threading.local):
    listener: Callable[[], Listener | None] = staticmethod(lambda: None)  # a weak reference: an interrupted pass tells nobody of its end
    learning: Attention | None = None


_here = _Here()


def listen(listener: Listener | None) -> Listener | None:
    """Says who answers in this thread from now on, and returns who did before."""
    before = _here.listener()
    _here.listener = (lambda: None) if listener is None else weakref.ref(listener)
    return before


def learn(attention: Attention | None) -> Attention | None:
    """Says what computes contexts in this thread where nobody listens, of a call and its mask, and returns what did before."""
    before = _here.learning
    _here.learning = attention
    return before


def listening(listener: Listener) -> bool:
    """Whether this one answers in this thread."""
    return _here.listener() is listener


def _listener(doing: str) -> Listener:
    listener = _here.listener()
    if listener is None:
        raise ValueError(
            f"{doing}: the model's attention is headwater's, and it was called without a headwater.Cache: pass cache=cache, "
            "train it under headwater.transformers.learning(client), "
            'or give the model another attention by model.set_attn_implementation("sdpa")'
        )
    return listener


class _Mask:
    """The attribute by which a stand-in for a mask is known, with what the mask would say."""

    NAME = "_headwater_window"


def _mask(*args: Any, **options: Any) -> torch.Tensor | None:
    """The library's mask function."""
    if _here.listener() is None and _here.learning is not None:
        from transformers.masking_utils import sdpa_mask

        mask: torch.Tensor | None = sdpa_mask(*args, **options)
        return mask
    return _stand_in(*args, **options)


def _stand_in(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *_: Any,
    mask_function: Callable[..., Any],
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    device: Any = "cpu",
    **__: Any,
) -> torch.Tensor:
    """Tells the listener of the padding, and returns a stand-in of the mask's shape that takes no memory."""
    listener = _listener("mask")
    if not allow_is_causal_skip:
        raise ValueError(
            "the model asks for a mask that is not causal alone, as of packed sequences, of pictures or of an encoder: "
            "a headwater.Cache has causal attention, with padding at the left and sliding windows"
        )

    def sees(query: int, key: int) -> bool:
        none = torch.zeros((), dtype=torch.long, device=device)
        return bool(mask_function(none, none, none + query, none + key))

    listener.mask(batch_size, q_length, attention_mask, local_size, sees)
    mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device).expand(batch_size, 1, q_length, kv_length)
    setattr(mask, _Mask.NAME, (local_size,))
    return mask


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, None]:
    """The library's attention function: [batch, heads, tokens, d] become a context [batch, tokens, n_heads, v_dim]."""
    where = f"layer {getattr(module, 'layer_idx', '?')} ({type(module).__name__})"
    if _here.listener() is None and _here.learning is not None:
        return _here.learning(Call(module, query, key, value, None, options), attention_mask), None
    listener = _listener(where)
    window = None
    if attention_mask is not None:
        told = getattr(attention_mask, _Mask.NAME, None)
        if told is None:
            raise ValueError(f"{where}: a mask of {list(attention_mask.shape)} of its own: a headwater.Cache takes masks of padding, [batch, positions]")
        window = told[0]
    context = listener.attend(Call(module, query, key, value, window, options))
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        context = _NoGradient.apply(query, context)
    return context, None


class _NoGradient(torch.autograd.Function):  # type: ignore[misc]
    """A context of a session, through which no gradient comes back: it is not lost without a word."""

    @staticmethod
    def forward(_: Any, __: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return context.view_as(context)

    @staticmethod
    def backward(_: Any, *__: Any) -> Any:
        raise RuntimeError("a headwater.Cache has no gradients: train the model without a cache, under headwater.transformers.learning(client)")


def register() -> None:
    """Makes the name known to the library. Once is enough; more do no harm."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
