"""What the attention of a model's layers is like, read from the model itself.

Configs name the same thing in many ways. So the model is run once over one token, with an attention function that only looks at
what each layer passes: the shapes, the scale, the softcap, the window and the sinks that count.
"""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from .. import layer as layers
from .interface import NAME, Call, Sees, listen

# What layers pass that does not change a causal context, or that the library has seen to before.
_IDLE = {
    "cache", "cache_position", "deterministic", "logits_to_keep", "max_length_k", "max_length_q", "num_items_in_batch", "output_hidden_states",
    "output_router_logits", "past_key_values", "position_embeddings", "position_ids", "return_dict", "target_dtype", "token_type_ids", "tokenizer", "use_cache",
}  # fmt: skip
_OPTIONS = {"dropout", "is_causal", "output_attentions", "s_aux", "scaling", "sliding_window", "softcap"}


@dataclass(frozen=True)
class Shape:
    """What one layer's attention does."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    scale: float
    softcap: float
    window: int | None
    sinks: torch.Tensor | None = field(compare=False)

    def to_layer(self, storage: layers.Storage, arithmetic: layers.Arithmetic) -> layers.Layer:
        """The layer of a session."""
        return layers.Layer(
            self.n_heads, self.n_kv_heads, self.head_dim, self.v_dim,
            storage=storage,
            arithmetic=arithmetic,
            window_left=None if self.window is None else self.window - 1,  # the library counts the own position
            scale=self.scale,
            softcap=self.softcap,
            sinks=() if self.sinks is None else self.sinks.detach().float().cpu().numpy(),
        )  # fmt: skip


_KNOWN = _IDLE | _OPTIONS


def is_same(call: Call, made: Shape) -> bool:
    """Whether a call is seen at a glance to ask for the attention of a shape. No says nothing."""
    options = call.options
    query, key = call.query.shape, call.key.shape
    return (
        options.keys() <= _KNOWN
        and not options.get("dropout")
        and options.get("is_causal") is not False
        and not options.get("output_attentions")
        and (query[1], key[1], query[3], call.value.shape[3]) == (made.n_heads, made.n_kv_heads, made.head_dim, made.v_dim)
        and (key[3], call.value.shape[1]) == (made.head_dim, made.n_kv_heads)
        and (options.get("scaling") or 0.0) == made.scale
        and (options.get("softcap") or 0.0) == made.softcap
        and call.window == made.window
        and options.get("s_aux") is made.sinks
    )


def of(call: Call, where: str) -> Shape:
    """The shape of the attention that a call asks for. What headwater doesn't do is refused by name."""
    options = call.options
    for name, value in options.items():
        if value is None or name in _IDLE or name in _OPTIONS or name.startswith("cu_seq_lens"):
            continue
        raise ValueError(f"{where} passes {name} to its attention, which headwater does not know: it may change the result")
    if options.get("dropout"):
        raise ValueError(f"{where} drops {options['dropout']:g} of its weights: call model.eval() first")
    if options.get("is_causal") is False:
        raise ValueError(f"{where} is not causal: a headwater.Cache is for decoders")
    if options.get("output_attentions"):
        raise ValueError("output_attentions: the weights stay on the cluster, and only contexts come back")
    n_heads, head_dim = call.query.shape[1], call.query.shape[3]
    n_kv_heads, v_dim = call.key.shape[1], call.value.shape[3]
    if call.key.shape[3] != head_dim or call.value.shape[1] != n_kv_heads or n_heads % n_kv_heads:
        raise ValueError(f"{where} has queries {list(call.query.shape)}, keys {list(call.key.shape)} and values {list(call.value.shape)}: no grouped-query attention")
    scaling = options.get("scaling")
    return Shape(
        n_heads, n_kv_heads, head_dim, v_dim,
        scale=0.0 if scaling is None else float(scaling),
        softcap=float(options.get("softcap") or 0.0),
        window=call.window,
        sinks=options.get("s_aux"),
    )  # fmt: skip


@dataclass
class Geometry:
    """The attention of a model.

    shapes  by the library's number of a layer that has a cache, what its attention is like
    shared  by the number of a layer that attends over another one's keys and values, the other one's
    count   layers of all kinds
    """

    shapes: dict[int, Shape]
    shared: dict[int, int]
    count: int


class Probe(transformers.DynamicCache):  # type: ignore[misc]
    """A cache and a listener that keep nothing, and remember what they were given."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.updated: dict[int, tuple[int, ...]] = {}
        self.found: dict[int, Shape] = {}
        self.shared: dict[int, int] = {}
        self.strange: set[int | None] = set()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.updated[layer_idx] = tuple(key_states.shape)
        setattr(key_states, OWNER, layer_idx)
        return key_states, value_states

    def mask(self, batch: int, tokens: int, padding: torch.Tensor | None, window: int | None, sees: Sees) -> None:
        far = 1 << 20 if window is None else window
        if not sees(far, 1) or sees(1, 2) or (window is not None and sees(far, 0)):
            self.strange.add(window)  # the library makes masks that no layer uses

    def attend(self, call: Call) -> torch.Tensor:
        at = getattr(call.module, "layer_idx", None)
        where = f"layer {at} ({type(call.module).__name__})"
        owner = at if at in self.updated and at not in self.found else getattr(call.key, OWNER, None)
        if owner is None or at is None:
            raise ValueError(f"{where} attends over what no cache was given, as an encoder or cross attention does: a headwater.Cache is for decoders")
        if call.window in self.strange:
            raise ValueError(f"{where} has a mask that is neither causal nor a sliding window, as of attention in chunks: headwater has no such")
        shape = of(call, where)
        if owner == at:
            self.found[owner] = shape
        elif shape != self.found[owner]:
            raise ValueError(f"{where} attends over the keys and values of layer {owner} in another way than that one: {shape}, not {self.found[owner]}")
        else:
            self.shared[at] = owner
        batch, n_heads, tokens, _ = call.query.shape
        return call.query.new_zeros((batch, tokens, n_heads, shape.v_dim))


OWNER = "_headwater_layer"  # the attribute of a tensor of keys that says which layer's they are

_read: weakref.WeakKeyDictionary[Any, Geometry] = weakref.WeakKeyDictionary()


def keyword(model: Any) -> str:
    """By which name the model's forward takes its cache."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def read(model: Any) -> Geometry:
    """The attention of a model's layers. Runs the model once over one token; later calls remember."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder with a decoder: a headwater.Cache is for models that are a decoder alone")
    if model.training:
        raise ValueError(f"{name} is in training: call model.eval() first")
    implementation = model.config.get_text_config(decoder=True)._attn_implementation
    if implementation != NAME and not model._can_set_attn_implementation():
        raise ValueError(f"{name} computes its attention itself: the library does not let its attention be set, so it can't be computed on a cluster")
    if implementation != NAME:
        raise ValueError(
            f'the attention of {name} is {implementation}: load it with attn_implementation="{NAME}", or call model.set_attn_implementation("{NAME}")'
        )
    if model in _read:
        return _read[model]
    probe = Probe(model.config)
    before = listen(probe)
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=True, **{keyword(model): probe})
    finally:
        listen(before)
    if any(probe.is_linear) or any(isinstance(one, LinearAttentionCacheLayerMixin) for one in probe.layers):
        raise ValueError(f"{name} has layers of linear attention, as of Mamba, whose state is no keys and values: a headwater.Cache can't hold it")
    if alone := sorted(set(probe.updated) - set(probe.found)):
        raise ValueError(f"{name} computes the attention of layer {alone[0]} itself, and not by the library's attention interface: it can't be computed on a cluster")
    if not probe.found:
        raise ValueError(f"{name} has no layer with a cache")
    found = Geometry(dict(sorted(probe.found.items())), probe.shared, len(probe.layers))
    _read[model] = found
    return found
