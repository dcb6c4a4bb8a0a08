"""What generate gives through a cluster is what it gives with sdpa: every option, or a refusal that names it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import headwater


def prompt(rows: int = 1, tokens: int = 70, left: int = 0) -> dict[str, torch.Tensor]:
    """A prompt of random tokens whose last row has padding at the left."""
    ids = torch.randint(1, 64, (rows, tokens), generator=torch.Generator().manual_seed(rows * tokens))
    mask = torch.ones_like(ids)
    mask[-1, :left] = 0
    return {"input_ids": ids.where(mask == 1, 0), "attention_mask": mask}


CASES = {
    "greedy": (prompt(), {}),
    "rows": (prompt(3, left=13), {}),
    "sampling": (prompt(2, left=5), {"do_sample": True, "top_k": 20, "temperature": 0.7}),
    "sequences": (prompt(2, left=5), {"do_sample": True, "num_return_sequences": 3}),
    "beams": (prompt(2, left=13), {"num_beams": 3, "num_return_sequences": 2}),
    "beams and sampling": (prompt(), {"num_beams": 3, "do_sample": True}),
    "chunks": (prompt(2, left=13), {"prefill_chunk_size": 32}),
    "prompt look-up": (prompt(), {"prompt_lookup_num_tokens": 3}),
}


def both(model: Any, client: headwater.Client, inputs: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """What generate returns with sdpa, and through a cluster."""
    options = {"max_new_tokens": 24, "do_sample": False, "output_logits": True, "return_dict_in_generate": True} | options
    model.set_attn_implementation("sdpa")
    torch.manual_seed(5)
    want = model.generate(**inputs, **options)
    model.set_attn_implementation("headwater")
    torch.manual_seed(5)
    with headwater.Cache(client, model) as cache:
        return want, model.generate(**inputs, **options, past_key_values=cache)


@pytest.mark.parametrize("name", CASES)
def test_it_gives_what_the_library_gives(model: Any, client: headwater.Client, name: str) -> None:
    inputs, options = CASES[name]
    want, got = both(model, client, inputs, **options)
    assert (got.sequences == want.sequences).all()
    assert len(got.logits) == len(want.logits)
    largest = max(a.abs().max().item() for a in want.logits)
    assert max((a - b).abs().max().item() for a, b in zip(got.logits, want.logits)) < 1e-4 * largest
    assert not client.sessions().sessions
