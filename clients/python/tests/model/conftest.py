"""Models of transformers for tests: tiny ones of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

import headwater

torch.set_num_threads(1)


def tiny(kind: str = "Llama", seed: int = 1, **fields: Any) -> Any:
    """A model of random weights with attention "headwater"."""
    sizes = {
        "vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 8, "eos_token_id": None, "pad_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{name: value for name, value in (sizes | fields).items() if value is not ...})
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval()
    model.set_attn_implementation("headwater")
    return model


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny()


@pytest.fixture(scope="session")
def hub(cluster: str) -> Iterator[headwater.Client]:
    """A client for tests that do not look at the way of steps."""
    with headwater.Client(cluster, timeout=60) as c:
        yield c
