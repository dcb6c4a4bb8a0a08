"""What is told before and after a model's forward pass: its cache, its tokens, and that it has ended."""

from __future__ import annotations

import abc
import functools
import inspect
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from .interface import Listener, listen

_hooked: weakref.WeakKeyDictionary[Any, tuple[int, list[Any]]] = weakref.WeakKeyDictionary()
# What generate can't do with a cache that is not here.
_REFUSED = {
    "output_attentions": "the weights stay on the cluster, and only contexts come back",
    "penalty_alpha": "contrastive search copies the cache for each candidate, and is no part of the library any more",
    "dola_layers": "decoding by contrasting layers is no part of the library any more",
}
# What of a forward pass has one element for each token, last.
_BY_TOKEN = ("input_ids", "position_ids", "token_type_ids")


class Told(Listener, abc.ABC):
    """A cache that is told of its model's generations and forward passes."""

    @abc.abstractmethod
    def generation(self, ids: torch.Tensor | None, padding: torch.Tensor | None) -> AbstractContextManager[None]:
        """A generation from a prompt, during which no other one may use the cache."""

    @abc.abstractmethod
    def begin(self, model: Any, batch: int, columns: int, ids: torch.Tensor | None, padding: torch.Tensor | None, skip: bool) -> int:
        """Begins a forward pass over new columns, and returns how many of them need not be computed, since the cluster has them:
        only if skip allows it, and never all."""

    @abc.abstractmethod
    def end(self) -> None:
        """Ends a forward pass, also one that failed."""


def inner(model: Any) -> Any:
    """The model of the library itself, in what may stand around it."""
    if hasattr(model, "get_base_model"):  # adapters of peft
        model = model.get_base_model()
    if hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled by torch.compile, which can't see a cluster: give the one that was compiled")
    return model


def add(model: Any) -> None:
    """Has a model's forward passes tell its caches; one more cache of it."""
    count, handles = _hooked.get(model, (0, []))
    if not count:
        handles = [
            model.register_forward_pre_hook(_before, with_kwargs=True, prepend=True),
            model.register_forward_hook(_after, with_kwargs=True, always_call=True),
        ]
        if hasattr(model, "generate"):
            model.generate = _guarded(model)
    _hooked[model] = (count + 1, handles)


def remove(model: Any) -> None:
    """One cache of a model less."""
    count, handles = _hooked[model]
    if count == 1:
        for handle in handles:
            handle.remove()
        vars(model).pop("generate", None)
        del _hooked[model]
    else:
        _hooked[model] = (count - 1, handles)


def _guarded(of: Any) -> Callable[..., Any]:
    """A model's generate that a cache is told of."""
    original, model = type(of).generate, weakref.ref(of)

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        cache = _cache(kwargs)
        if not isinstance(cache, Told):
            return original(model(), *args, **kwargs)
        config = kwargs.get("generation_config")
        for name, why in _REFUSED.items():
            if kwargs.get(name, getattr(config, name, None)):
                raise ValueError(f"generate: {name}: {why}")
        ids = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
        with cache.generation(ids, kwargs.get("attention_mask")):
            return original(model(), *args, **kwargs)

    return generate


def _arguments(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs if not args else dict(inspect.signature(model.forward).bind_partial(*args).arguments) | kwargs


def _cache(given: dict[str, Any]) -> Any:
    found = given.get("cache")
    return found if found is not None else given.get("past_key_values")


def _before(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    given = _arguments(model, args, kwargs)
    cache = _cache(given)
    if not isinstance(cache, Told):
        listen(None)
        return None
    ids, embedded, padding = given.get("input_ids"), given.get("inputs_embeds"), given.get("attention_mask")
    of = ids if ids is not None else embedded
    if of is None:
        return None  # the model says what is missing
    if not isinstance(padding, torch.Tensor) or padding.ndim != 2:
        padding = None  # another one is refused where it is used
    skip = ids is not None and not args and kwargs.get("logits_to_keep") == 1
    found = cache.begin(model, of.shape[0], of.shape[1], ids, padding, skip)
    listen(cache)
    if not found:
        return None
    return args, kwargs | {name: kwargs[name][..., found:] for name in _BY_TOKEN if isinstance(kwargs.get(name), torch.Tensor)}


def _after(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
    cache = _cache(_arguments(model, args, kwargs))
    if isinstance(cache, Told):
        listen(None)
        cache.end()


def altered(model: Any) -> bool:
    """Whether something beside a model's weights may take part in what it computes: hooks, adapters, or another forward."""
    ours = {handle.id for handle in _hooked.get(model, (0, []))[1]}
    for module in model.modules():
        found = [*module._forward_pre_hooks, *module._forward_hooks]
        if any(id not in ours for id in found) or type(module).__module__.split(".")[0] == "peft":
            return True
        if "forward" in vars(module) and not hasattr(module, "_hf_hook"):  # accelerate's moves tensors between devices
            return True
    return False
