"""Models of transformers in training, whose attention and its gradients are computed by jobs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny

import headwater
from headwater.transformers import learning


def gradients(model: Any, ids: torch.Tensor, padding: torch.Tensor | None = None) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a model that predicts the tokens of a batch, and its gradients."""
    labels = ids if padding is None else torch.where(padding == 0, -100, ids)
    model.zero_grad()
    loss = model(input_ids=ids, attention_mask=padding, labels=labels).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Mistral": {"sliding_window": 5},
    "Gemma2": {"sliding_window": 6, "attn_logit_softcapping": 2.0, "layer_types": ["sliding_attention", "full_attention"]},
    "GptOss": {"sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_eager(hub: headwater.Client, kind: str, padded: bool) -> None:
    model = tiny(kind, **KINDS[kind]).train()
    ids = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(3))
    padding = torch.ones_like(ids)
    if padded:
        padding[1, 7:] = 0  # at the right, as training has it
    with learning(hub):
        loss, ours = gradients(model, ids, padding)
    model.double().set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    truth, theirs = gradients(model, ids, padding)
    assert loss == pytest.approx(truth, rel=1e-5)
    assert ours.keys() == theirs.keys()
    if kind == "GptOss":
        assert any(name.endswith("sinks") for name in ours)
    for name, exact in theirs.items():
        assert torch.allclose(ours[name].double(), exact, rtol=1e-3, atol=1e-5 * float(exact.abs().max()) + 1e-7), name


def test_a_cache_attends_by_sessions_and_has_no_gradients(hub: headwater.Client, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, kinds, submit = torch.tensor([[1, 2, 3, 4]]), [], hub.submit

    def counted(*args: Any, **kwargs: Any) -> Any:
        kinds.append(kwargs["options"]["kind"])
        return submit(*args, **kwargs)

    monkeypatch.setattr(hub, "submit", counted)
    with learning(hub):
        with headwater.Cache(hub, model) as cache:
            logits = model(ids, cache=cache).logits
            assert logits.requires_grad
            with pytest.raises(RuntimeError, match="a headwater.Cache has no gradients"):
                logits.sum().backward()
            cache.reset()
            model.generate(ids, cache=cache, max_new_tokens=3, do_sample=False)
        assert kinds == []
        with torch.no_grad():
            assert torch.allclose(model(ids).logits, logits, atol=1e-5)
        assert kinds == ["attention"] * 2  # a layer each
        model(ids).logits.sum().backward()
        assert kinds[2:] == ["attention"] * 2 + ["attention_grad"] * 2
        assert not [job for job in hub.jobs() if job.name.startswith("torch")]


def test_what_is_refused(hub: headwater.Client) -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    model = tiny(attention_dropout=0.25).train()
    with pytest.raises(ValueError, match="under headwater.transformers.learning"):
        model(ids)
    with learning(hub), pytest.raises(ValueError, match=r"layer 0 \(LlamaAttention\) drops 0.25 of its weights: headwater has no dropout"):
        model(ids)
    model = tiny().train()
    with learning(hub):
        loss = model(ids, labels=ids).loss
        with pytest.raises(RuntimeError, match="no gradient of its gradient"):
            torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        with pytest.raises(ValueError, match="its mask is torch.float32"):
            model(ids, attention_mask=torch.zeros(1, 1, 4, 4))
        with pytest.raises(TypeError, match="q is torch.float64"):
            model.double()(ids)
    with pytest.raises(ValueError, match="without a headwater.Cache"):
        model(ids)


def curve(client: headwater.Client, steps: int) -> list[float]:
    """The losses of a tiny model that learns to repeat what it has read."""
    model = tiny(num_hidden_layers=1, vocab_size=16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(5)
    losses = []
    with learning(client):
        for _ in range(steps):
            half = torch.randint(0, 16, (2, 8), generator=draw)
            ids = torch.cat([half, half], 1)
            loss = model(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def test_200_steps_have_the_same_losses_on_any_cluster() -> None:
    curves = []
    for workers in (1, 3):
        with headwater.local(workers=workers) as cluster, headwater.Client(cluster.address, timeout=60) as client:
            curves.append(curve(client, 200))
    assert curves[0] == curves[1]
    assert sum(curves[0][-20:]) < sum(curves[0][:20])
