"""The pattern of docs/python.md for models of transformers: the same tokens as the model's own cache and attention give."""

from __future__ import annotations


import pytest
from test_documents import blocks

import headwater

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral"])
def test_a_model_generates_the_same_tokens(client: headwater.Client, kind: str) -> None:
    torch.manual_seed(1)
    sizes = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
    config = getattr(transformers, f"{kind}Config")(**sizes, sliding_window=None)
    config.eos_token_id = config.pad_token_id = None
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    inputs = {"input_ids": torch.randint(0, 64, (1, 70)), "max_new_tokens": 40}
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        want = model.generate(**inputs, do_sample=False, output_logits=True, return_dict_in_generate=True)
    names = {"client": client, "model": model, "inputs": {**inputs, "output_logits": True, "return_dict_in_generate": True}}
    code = [code for _, code in blocks("docs/python.md") if "OnCluster" in code]
    assert len(code) == 2
    for part in code:
        exec(compile(part, "docs/python.md", "exec"), names)
    got = names["tokens"]
    assert (got.sequences == want.sequences).all()
    error = max((a - b).abs().max().item() for a, b in zip(got.logits, want.logits))
    assert error < 1e-4 * max(a.abs().max().item() for a in want.logits)
