"""Decoders of many makers, tiny and of random weights, give through a cluster what they give with the library's own attention and
cache in float64; and what can't be on a cluster is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

import headwater
from model.conftest import tiny

ROWS, PROMPT, STEPS, LEFT = 2, 29, 6, 9
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "num_key_value_heads": 6, "head_dim": 8}
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama, MQA": ("Llama", {"num_key_value_heads": 1}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral with a window": ("Mistral", {"sliding_window": 8}),
    "Mixtral": ("Mixtral", {"sliding_window": 8, **MOE}),
    "Qwen2": ("Qwen2", {}),
    "Qwen2 with windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "Qwen2Moe": ("Qwen2Moe", {"shared_expert_intermediate_size": 16, **MOE}),
    "Qwen3": ("Qwen3", {}),
    "Qwen3Moe": ("Qwen3Moe", MOE),
    "Gemma": ("Gemma", {}),
    "Gemma2": ("Gemma2", {"sliding_window": 8, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 24, **LAYERS}),
    "Gemma3": ("Gemma3Text", {"sliding_window": 8, "query_pre_attn_scalar": 24, **LAYERS}),
    "Phi": ("Phi", {}),
    "Phi3": ("Phi3", {"sliding_window": 8}),
    "GPT2": ("GPT2", {"n_embd": 48, "n_head": 6, "n_layer": 2, "n_inner": 64, "n_positions": 128}),
    "GPTNeoX": ("GPTNeoX", {}),
    "Starcoder2": ("Starcoder2", {"sliding_window": 8}),
    "Olmo": ("Olmo", {}),
    "Olmo2": ("Olmo2", {}),
    "Olmo3": ("Olmo3", {"sliding_window": 8, **LAYERS}),
    "Cohere": ("Cohere", {}),
    "Cohere2": ("Cohere2", {"sliding_window": 8, **LAYERS}),
    "Granite": ("Granite", {"attention_multiplier": 0.4}),
    "GptOss": ("GptOss", {"sliding_window": 8, **LAYERS, **MOE}),
    "DeepseekV3": ("DeepseekV3", {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 16, **MLA}),
    "StableLm": ("StableLm", {}),
    "SmolLM3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "Glm": ("Glm", {}),
    "Glm4": ("Glm4", {}),
    "Exaone4": ("Exaone4", {"sliding_window": 8, **LAYERS}),
    "Ernie4_5": ("Ernie4_5", {}),
    "Helium": ("Helium", {}),
    "Nemotron": ("Nemotron", {}),
    "Seed OSS": ("SeedOss", {}),
    "Arcee": ("Arcee", {}),
    "Apertus": ("Apertus", {}),
    "OPT": ("OPT", {"word_embed_proj_dim": 48, "ffn_dim": 64}),
}  # fmt: skip


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [rows, prompt and steps], and their mask, whose last row has padding at the left."""
    ids = torch.randint(1, 64, (ROWS, PROMPT + STEPS), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[-1, :LEFT] = 0
    return ids.where(mask == 1, 0), mask


def logits(model: Any, cache: Any) -> torch.Tensor:
    """Of a prompt in two chunks, and of tokens one by one; those of padding are 0."""
    ids, mask = inputs()
    found = []
    ends = [PROMPT // 2, *range(PROMPT, PROMPT + STEPS + 1)]
    with torch.inference_mode():
        for begin, end in zip([0, *ends], ends):
            positions = (mask[:, :end].cumsum(1) - 1).clamp(min=0)[:, begin:]
            given = {"position_ids": positions} if takes_positions(model) else {}
            found.append(model(input_ids=ids[:, begin:end], attention_mask=mask[:, :end], cache=cache, use_cache=True, **given).logits)
    return torch.cat(found, 1).double().masked_fill(mask[:, :, None] == 0, 0)


def takes_positions(model: Any) -> bool:
    return "position_ids" in model.forward.__wrapped__.__code__.co_varnames if hasattr(model.forward, "__wrapped__") else True


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_computes_what_the_library_does(hub: headwater.Client, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, fields = ARCHITECTURES[name]
    model = tiny(kind, initializer_range=0.3, **fields)
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    exact.set_experts_implementation("eager")
    with monkeypatch.context() as m:  # the library's eager attention would round its weights to float32
        m.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: torch.softmax(x, dim))
        want = logits(exact, transformers.DynamicCache(config=exact.config))
    with headwater.Cache(hub, model) as cache:
        error = (logits(model, cache) - want).abs().max()
    model.set_attn_implementation("eager")
    plain = (logits(model, transformers.DynamicCache(config=model.config)) - want).abs().max()
    print(f"{name}: largest logit {want.abs().max():.3g}, largest error {error:.2g} on a cluster, {plain:.2g} of eager in float32")
    assert error <= max(2 * plain, 1e-6 * want.abs().max())


@pytest.mark.parametrize("name", ["Llama", "Mistral with a window", "Gemma2", "GptOss", "DeepseekV3", "GPT2"])
def test_beams_are_the_librarys(hub: headwater.Client, name: str) -> None:
    kind, fields = ARCHITECTURES[name]
    model = tiny(kind, initializer_range=0.3, **fields)
    ids, mask = inputs()
    options = {"input_ids": ids, "attention_mask": mask, "num_beams": 3, "max_new_tokens": 10, "do_sample": False}
    with headwater.Cache(hub, model) as cache:
        got = model.generate(**options, cache=cache)
    model.set_attn_implementation("eager")
    assert (got == model.generate(**options)).all()


REFUSED = {
    "Falcon": ({"num_kv_heads": 2, "new_decoder_architecture": True, "head_dim": ...}, "the library does not let .* attention be set"),
    "Bloom": ({"n_head": 6, "n_layer": 2}, "the library does not let .* attention be set"),
    "T5": ({"d_model": 48, "num_heads": 6, "d_kv": 8, "d_ff": 64, "num_layers": 2}, "encoder with a decoder"),
    "Llama4Text": ({"attention_chunk_size": 8, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 64}, "neither causal nor a sliding window"),
    "Mamba": ({}, "linear attention"),
    "Lfm2": ({"layer_types": ["conv", "full_attention"]}, "linear attention"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_on_a_cluster_is_refused_by_name(hub: headwater.Client, kind: str) -> None:
    fields, why = REFUSED[kind]
    with pytest.raises(ValueError, match=why):
        headwater.Cache(hub, tiny(kind, **fields))
    assert not hub.sessions().sessions
