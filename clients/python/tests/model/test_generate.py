"""What generate gives through a cluster is what it gives with sdpa: every option, or a refusal that names it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

import headwater
from model.conftest import tiny


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
    "assisted": (prompt(), {"assistant_model": True}),
    "assisted and sampling": (prompt(), {"assistant_model": True, "do_sample": True}),
    "a penalty": (prompt(2, left=5), {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}),
    "an end": (prompt(3, left=13), {"eos_token_id": [5, 9, 17, 30, 41, 50], "pad_token_id": 0}),
}
# What windows make different.
WINDOWED = ("greedy", "rows", "beams", "chunks", "prompt look-up")


def both(model: Any, client: headwater.Client, inputs: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """What generate returns with sdpa, and through a cluster."""
    options = {"max_new_tokens": 24, "do_sample": False, "output_logits": True, "return_dict_in_generate": True} | options
    if options.get("assistant_model"):
        options["assistant_model"] = assistant(model)
    model.set_attn_implementation("sdpa")
    torch.manual_seed(5)
    want = model.generate(**inputs, **options)
    model.set_attn_implementation("headwater")
    torch.manual_seed(5)
    with headwater.Cache(client, model) as cache:
        return want, model.generate(**inputs, **options, cache=cache)


def assistant(model: Any) -> Any:
    """The model with some noise: it guesses right often, and not always."""
    found = copy.deepcopy(model)
    torch.manual_seed(9)
    with torch.no_grad():
        for weight in found.parameters():
            weight += 0.05 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0
    found.set_attn_implementation("sdpa")
    return found


def agree(got: Any, want: Any) -> None:
    assert (got.sequences == want.sequences).all()
    assert len(got.logits) == len(want.logits)
    largest = max(a.abs().max().item() for a in want.logits)
    assert max((a - b).abs().max().item() for a, b in zip(got.logits, want.logits)) < 1e-4 * largest


@pytest.mark.parametrize("name", CASES)
def test_it_gives_what_the_library_gives(model: Any, client: headwater.Client, name: str) -> None:
    inputs, options = CASES[name]
    want, got = both(model, client, inputs, **options)
    agree(got, want)
    assert not client.sessions().sessions


@pytest.mark.parametrize("name", WINDOWED)
def test_it_does_with_windows(hub: headwater.Client, name: str) -> None:
    inputs, options = CASES[name]
    want, got = both(tiny("Mistral", sliding_window=16), hub, inputs, **options)
    agree(got, want)
    assert not hub.sessions().sessions


def test_a_streamer_and_a_criterion(model: Any, hub: headwater.Client) -> None:
    class Keeps(transformers.generation.BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seen: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.seen += value.reshape(-1).tolist()

        def end(self) -> None:
            self.seen.append(-1)

    def stop(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.full((ids.shape[0],), ids.shape[1] >= 80)

    streams = Keeps(), Keeps()
    inputs = {**prompt(), "stopping_criteria": [stop], "max_new_tokens": 24, "do_sample": False}
    model.set_attn_implementation("sdpa")
    want = model.generate(**inputs, streamer=streams[0])
    model.set_attn_implementation("headwater")
    with headwater.Cache(hub, model) as cache:
        got = model.generate(**inputs, streamer=streams[1], cache=cache)
    assert (got == want).all() and got.shape[1] == 80
    assert streams[0].seen == streams[1].seen


def test_turns_of_a_conversation_go_on_one_cache(model: Any, hub: headwater.Client) -> None:
    turn, options = prompt(2, 30, left=7), {"max_new_tokens": 10, "do_sample": False}
    ids, mask = turn["input_ids"], turn["attention_mask"]
    model.set_attn_implementation("sdpa")
    want, masks = ids, mask
    turns = [torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for more in turns:
        want, masks = torch.cat([want, more], 1), torch.cat([masks, torch.ones(2, 19, dtype=torch.long)], 1)
        want = model.generate(input_ids=want, attention_mask=masks[:, : want.shape[1]], **options)
    model.set_attn_implementation("headwater")
    got, masks = ids, mask
    with headwater.Cache(hub, model) as cache:
        for more in turns:
            got, masks = torch.cat([got, more], 1), torch.cat([masks, torch.ones(2, 19, dtype=torch.long)], 1)
            got = model.generate(input_ids=got, attention_mask=masks[:, : got.shape[1]], cache=cache, **options)
    assert (got == want).all()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha: contrastive search"),
        ({"output_attentions": True}, "output_attentions: the weights stay on the cluster"),
        ({"dola_layers": "low"}, "dola_layers: decoding by contrasting layers"),
        ({"cache_implementation": "static"}, "cache_implementation"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(model: Any, hub: headwater.Client, options: dict[str, Any], why: str) -> None:
    with headwater.Cache(hub, model) as cache:
        for given in (options, {"generation_config": transformers.GenerationConfig(**options)}):
            with pytest.raises(ValueError, match=why):
                model.generate(**prompt(), **given, cache=cache)
