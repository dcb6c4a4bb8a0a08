"""A real model, SmolLM2-135M-Instruct, gives on any number of workers the tokens that it gives by itself."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import headwater
from headwater.transformers import cache as caches

FOLDER = os.environ.get("HEADWATER_SMOLLM2", "")
TEXT = Path(__file__).resolve().parents[4] / "test/data/fixtures/alice.txt"
TOKENS = 200

pytestmark = pytest.mark.skipif(not FOLDER, reason="HEADWATER_SMOLLM2 names no folder: make test-model makes one")


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="headwater").eval()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    found: torch.Tensor = tokenizer(TEXT.read_text().strip(), return_tensors="pt").input_ids
    return found


@pytest.fixture(scope="module")
def truth(smollm2: Any, ids: torch.Tensor) -> Any:
    """Greedy tokens and logits with eager attention."""
    smollm2.set_attn_implementation("eager")
    found = smollm2.generate(input_ids=ids[:, :-1], **options())
    smollm2.set_attn_implementation("headwater")
    return found


def options() -> dict[str, Any]:
    return {
        "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip


class Digested(caches.Cache):
    """A cache with the SHA-256 of all contexts that have come back."""

    digest: Any = None

    def attend(self, call: Any) -> torch.Tensor:
        found = super().attend(call)
        self.digest = self.digest or hashlib.sha256()
        self.digest.update(found.numpy())
        return found


def test_it_says_the_same_on_any_number_of_workers(smollm2: Any, ids: torch.Tensor, truth: Any) -> None:
    largest = max(one.abs().max().item() for one in truth.logits)
    digests = set()
    for workers in (1, 2, 3, 5):
        with headwater.local(workers=workers, threads=1, memory="256MiB") as cluster, Digested(cluster, smollm2) as cache:
            got = smollm2.generate(input_ids=ids[:, :-1], **options(), cache=cache)
        assert (got.sequences == truth.sequences).all(), f"on {workers} workers other tokens"
        error = max((a - b).abs().max().item() for a, b in zip(got.logits, truth.logits))
        print(f"{workers} workers: largest logit {largest:.4g}, largest difference to eager {error:.2g}")
        assert error < 1e-4 * largest
        digests.add(cache.digest.hexdigest())
    assert len(digests) == 1, "on other numbers of workers other contexts"


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).exp())


def test_what_narrow_storage_loses(smollm2: Any, ids: torch.Tensor, hub: headwater.Client) -> None:
    smollm2.set_attn_implementation("eager")
    with torch.inference_mode():
        exact = perplexity(smollm2(ids, use_cache=False).logits, ids)
        smollm2.set_attn_implementation("headwater")
        for storage, most in (("f32", 1e-5), ("f16", 1e-3), ("bf16", 1e-2), ("int8", 1e-2)):
            with headwater.Cache(hub, smollm2, storage=storage) as cache:
                found = perplexity(smollm2(ids, cache=cache).logits, ids)
            print(f"{storage}: perplexity {found:.4f}, {found / exact - 1:+.2e} of eager's {exact:.4f}, {ids.shape[1]} tokens")
            assert abs(found / exact - 1) < most
