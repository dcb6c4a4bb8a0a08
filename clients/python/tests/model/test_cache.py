"""A Cache by itself: what it takes back, shares, saves and refuses."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import headwater
import headwater.transformers.cache as under_test
from model.conftest import tiny
from model.test_generate import prompt

OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


def plain(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The logits [rows, tokens, vocabulary] with the library's attention and without a cache."""
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    model.set_attn_implementation("headwater")
    return found


def forward(model: Any, cache: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask, cache=cache).logits
    return found


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-4 * b.abs().max().item())


def test_crop_takes_back(model: Any, hub: headwater.Client) -> None:
    ids = prompt(2)["input_ids"]
    with headwater.Cache(hub, model) as cache:
        forward(model, cache, ids[:, :30])
        cache.crop(0)
        cache.crop(-12)
        assert cache.get_seq_length() == 18
        assert close(forward(model, cache, ids[:, 20:40]), plain(model, torch.cat([ids[:, :18], ids[:, 20:40]], 1))[:, 18:])
        with pytest.raises(ValueError, match=r"crop\(3\)"):
            cache.crop(3)
        with pytest.raises(ValueError, match="39 positions|taken back"):
            cache.crop(-39)


@pytest.mark.parametrize("taken", range(0, 9, 4))
def test_what_has_left_a_window_is_taken_back_while_it_is_recorded(hub: headwater.Client, taken: int) -> None:
    model = tiny("Mistral", sliding_window=8, initializer_range=0.3)
    ids = prompt(1, 600)["input_ids"]
    with headwater.Cache(hub, model, share=False) as cache:
        cache.activate_past_recording()
        forward(model, cache, ids[:, :300])
        forward(model, cache, ids[:, 300:510])
        cache.crop(-200 - taken)
        assert cache.get_seq_length() == 310 - taken
        again = torch.cat([ids[:, : 310 - taken], ids[:, 510:530]], 1)
        assert close(forward(model, cache, ids[:, 510:530]), plain(model, again)[:, 310 - taken :])
        cache.crop(0)
        assert len(hub.sessions().sessions) == 1


def test_rows_are_repeated_selected_and_reordered(model: Any, hub: headwater.Client) -> None:
    inputs = prompt(3, 20, left=4)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with headwater.Cache(hub, model) as cache:
        forward(model, cache, ids, mask)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([5, 0, 1, 2]))
        cache.reorder_cache(torch.tensor([0, 2, 2, 3]))
        rows = torch.tensor([2, 0, 0, 1])
        more = torch.randint(1, 64, (4, 7), generator=torch.Generator().manual_seed(1))
        whole = torch.cat([ids[rows], more], 1), torch.cat([mask[rows], torch.ones_like(more)], 1)
        assert close(forward(model, cache, more, whole[1])[1:], plain(model, *whole)[1:, 20:])
        assert cache.batch_size == 4
        cache.reset()
        assert cache.get_seq_length() == 0 and not hub.sessions().sessions


def test_alike_rows_are_held_once_until_they_differ(model: Any, hub: headwater.Client) -> None:
    ids = prompt(1, 20)["input_ids"].expand(4, -1)
    with headwater.Cache(hub, model) as cache:
        forward(model, cache, ids)
        assert len(hub.sessions().sessions) == 1
        more = torch.tensor([[5], [6], [5], [7]])
        assert close(forward(model, cache, more), plain(model, torch.cat([ids, more], 1))[:, 20:])
        assert len(hub.sessions().sessions) == 3


def test_a_failed_pass_leaves_nothing(model: Any, hub: headwater.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt(1)["input_ids"]
    with headwater.Cache(hub, model) as cache:
        forward(model, cache, ids[:, :30])
        done = under_test.batch
        calls = []

        def fail(steps: Any) -> Any:
            calls.append(steps)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return done(steps)

        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(under_test, "batch", fail)
            forward(model, cache, ids[:, 30:])
        assert len(calls) == 2 and cache.get_seq_length() == 30
        assert close(forward(model, cache, ids[:, 30:50]), plain(model, ids)[:, 30:50])


def test_a_prefix_is_shared(model: Any, client: headwater.Client) -> None:
    ids = prompt(2, 200, left=20)
    with headwater.Cache(client, model) as first:
        want = model.generate(**ids, **OPTIONS, cache=first)
        seen = []
        handle = model.model.layers[0].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
        try:
            with headwater.Cache(client, model, fingerprint=first._open["model"]) as second:
                assert (model.generate(**ids, **OPTIONS, cache=second) == want).all()
            assert seen[0] == 200 - (128 + 20) and set(seen[1:]) == {1}
            seen.clear()
            with headwater.Cache(client, model, tokens=ids["input_ids"], padding=ids["attention_mask"], fingerprint=first._open["model"]) as third:
                assert third.get_seq_length() == 128 + 20
                with pytest.raises(ValueError, match="does not begin with the tokens"):
                    model.generate(**prompt(2, 200, left=19), **OPTIONS, cache=third)
                assert (model.generate(**ids, **OPTIONS, cache=third) == want).all()
            seen.clear()
            with headwater.Cache(client, model) as alone:  # since the model has a hook that the fingerprint knows nothing of
                assert not alone.shares
                model.generate(**ids, **OPTIONS, cache=alone)
            assert seen[0] == 200
        finally:
            handle.remove()
    with headwater.Cache(client, model, share=False) as alone:
        assert not alone.shares


def test_another_models_prefix_is_not_shared(model: Any, hub: headwater.Client) -> None:
    ids = prompt(1, 200)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    with headwater.Cache(hub, model) as first:
        model.generate(**ids, **OPTIONS, cache=first)
        for again, prefix in ((model, 192), (other, 0)):
            with headwater.Cache(hub, again, tokens=ids["input_ids"]) as cache:
                assert cache.get_seq_length() == prefix
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 5] -= 1  # in place, which its fingerprint has to see
    with headwater.Cache(hub, other) as changed, headwater.Cache(hub, model) as same:
        assert changed._open["model"] != same._open["model"] == first._open["model"]


def test_it_is_saved_and_loaded(model: Any, client: headwater.Client, tmp_path: Path) -> None:
    inputs = prompt(2, left=6)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    more = torch.tensor([[3], [4]])
    longer = torch.cat([mask, torch.ones_like(more)], 1)
    with headwater.Cache(client, model) as cache:
        forward(model, cache, ids, mask)
        cache.save(tmp_path / "rows")
        want = forward(model, cache, more, longer)
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]
    for _ in range(2):
        with headwater.Cache.load(client, model, tmp_path / "rows") as cache:
            assert (cache.get_seq_length(), cache.batch_size) == (70, 2)
            assert (forward(model, cache, more, longer) == want).all()
    assert not client.sessions().sessions
    with pytest.raises(ValueError, match="another model"):
        headwater.Cache.load(client, tiny(seed=2), tmp_path / "rows")
    with pytest.raises(ValueError, match="stored in another way"):
        headwater.Cache.load(client, model, tmp_path / "rows", storage="int8")
    (tmp_path / "rows").write_bytes((tmp_path / "rows").read_bytes()[:-30])
    with pytest.raises(ValueError, match="not a file that Cache.save wrote"):
        headwater.Cache.load(client, model, tmp_path / "rows")
    assert not client.sessions().sessions


def test_it_is_held_in_stripes(model: Any, client: headwater.Client, tmp_path: Path) -> None:
    """With the bits of a cache that is held whole, over the end of a split, and wherever it is taken up again."""
    ids = prompt(1, 2060)["input_ids"]
    with headwater.Cache(client, model) as whole, headwater.Cache(client, model, stripes=2, share=False) as cache:
        for part in (ids[:, :2040], ids[:, 2040:2050], ids[:, 2050:]):
            want = forward(model, whole, part)
            assert (forward(model, cache, part) == want).all()
        assert [layer.stripes for layer in cache.sessions[0].layers] == [2, 2]
        more = torch.tensor([[3]])
        with cache.fork() as child:
            assert [layer.stripes for layer in child.sessions[0].layers] == [2, 2]
            want = forward(model, whole, more)
            assert (forward(model, child, more) == want).all()
        cache.save(tmp_path / "rows")
        receipt = cache.receipt()
        cache.close(keep=True)
    for stripes in (0, 3):
        with headwater.Cache.load(client, model, tmp_path / "rows", stripes=stripes) as loaded:
            assert {layer.stripes for layer in loaded.sessions[0].layers} == {max(stripes, 1)}
            assert (forward(model, loaded, more) == want).all()
    with headwater.Cache.attach(client, model, receipt) as taken:
        assert (forward(model, taken, more) == want).all()
    windowed = tiny("Mistral", sliding_window=8)
    with headwater.Cache(client, windowed, stripes=2) as cache:
        forward(windowed, cache, ids[:, :20])
        assert [layer.stripes for layer in cache.sessions[0].layers] == [1, 1]
    for n, error in ((65, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="stripes is"):
            headwater.Cache(client, model, stripes=n)  # type: ignore[arg-type]
    assert not client.sessions().sessions


def test_auto_is_one_arithmetic_for_all_rows(model: Any, client: headwater.Client, tmp_path: Path) -> None:
    ids = prompt(2)["input_ids"]
    with headwater.Cache(client, model, storage="bf16", arithmetic="auto") as cache:
        want = forward(model, cache, ids[:, :40])
        taken = {layer.arithmetic for s in cache.sessions for layer in s.layers}
        assert len(taken) == 1 and taken <= {"chain", "tiles"}
        cache.save(tmp_path / "rows")
        with cache.fork() as fork:
            more = forward(model, fork, ids[:, 40:50])
    for options in ({"arithmetic": "auto"}, {"arithmetic": taken.pop()}):
        with headwater.Cache.load(client, model, tmp_path / "rows", storage="bf16", **options) as cache:
            assert (forward(model, cache, ids[:, 40:50]) == more).all()
        with headwater.Cache(client, model, storage="bf16", **options) as cache:
            assert (forward(model, cache, ids[:, :40]) == want).all()
    with pytest.raises(ValueError, match="stored in another way"):
        headwater.Cache.load(client, model, tmp_path / "rows", storage="bf16", arithmetic="tiles-bf16")


def test_another_takes_it_up(model: Any, client: headwater.Client) -> None:
    ids = prompt(2)["input_ids"]
    cache = headwater.Cache(client, model)
    forward(model, cache, ids[:, :40])
    receipt = cache.receipt()
    cache.close(keep=True)
    assert len(client.sessions().sessions) == 2
    with headwater.Cache.attach(client, model, receipt) as taken:
        assert close(forward(model, taken, ids[:, 40:]), plain(model, ids)[:, 40:])
        with headwater.Cache.attach(client, model, taken.receipt()) as again, pytest.raises(headwater.StaleEpochError):
            forward(model, taken, ids[:, :1])
        assert again.batch_size == -1
    assert not client.sessions().sessions
    with pytest.raises(ValueError, match="what the rows of a cache are"):
        headwater.Cache.attach(client, model, "{}")


def test_two_generations_at_once_are_refused(model: Any, hub: headwater.Client) -> None:
    inputs = prompt()
    with headwater.Cache(hub, model) as cache:
        began, go = threading.Event(), threading.Event()

        class Waits(transformers.StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
                began.set()
                go.wait(60)
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        got: list[torch.Tensor] = []
        thread = threading.Thread(
            target=lambda: got.append(model.generate(**inputs, **OPTIONS, cache=cache, stopping_criteria=[Waits()])), name="first"
        )
        thread.start()
        began.wait(60)
        with pytest.raises(RuntimeError, match="in use by another generation, of thread first"):
            model.generate(**inputs, **OPTIONS, cache=cache)
        with pytest.raises(RuntimeError, match="in use by another generation"):
            forward(model, cache, inputs["input_ids"])
        go.set()
        thread.join()
    with headwater.Cache(hub, model) as cache:
        assert (got[0] == model.generate(**inputs, **OPTIONS, cache=cache)).all()


def test_threads_with_caches_of_their_own_do_not_meet(model: Any, cluster: str) -> None:
    inputs = [prompt(1, 40 + i) for i in range(3)]
    with headwater.Client(cluster, timeout=60) as client:

        def run(one: dict[str, torch.Tensor]) -> torch.Tensor:
            with headwater.Cache(client, model) as cache:
                found: torch.Tensor = model.generate(**one, **OPTIONS, cache=cache)
                return found

        want = [run(one) for one in inputs]
        got: dict[int, torch.Tensor] = {}
        threads = [threading.Thread(target=lambda i=i: got.update({i: run(inputs[i])})) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all((got[i] == want[i]).all() for i in range(3))


def test_wrong_use_is_said(model: Any, hub: headwater.Client) -> None:
    inputs = prompt(2, 20, left=4)
    ids = inputs["input_ids"]
    with headwater.Cache(hub, model) as cache:
        right = inputs["attention_mask"].flip(1)
        with pytest.raises(ValueError, match="row 1 has padding at column 16.*padding_side"):
            forward(model, cache, ids, right)
        with pytest.raises(ValueError, match="a mask of .* of its own"):
            forward(model, cache, ids, torch.ones(2, 1, 20, 20, dtype=torch.bool))
        forward(model, cache, ids, inputs["attention_mask"])
        with pytest.raises(ValueError, match="a batch of 3 rows, but the headwater.Cache has 2"):
            forward(model, cache, prompt(3, 20)["input_ids"])
        with pytest.raises(ValueError, match="for another model"):
            forward(tiny(seed=2), cache, ids)
        assert cache.get_seq_length() == 20
    with pytest.raises(RuntimeError, match="closed"):
        forward(model, cache, ids)
    for other in ({}, {"cache": transformers.DynamicCache(config=model.config)}, {"cache_implementation": "static"}):
        with pytest.raises(ValueError, match=r"without a headwater.Cache: pass"):
            model.generate(**inputs, **OPTIONS, **other)
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        headwater.Cache(hub, tiny().train())
    with pytest.raises(ValueError, match="compiled by torch.compile"):
        headwater.Cache(hub, torch.compile(model))
    sdpa = tiny()
    sdpa.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match='attn_implementation="headwater"'):
        headwater.Cache(hub, sdpa)
    with pytest.raises(ValueError, match=r"torch.float64.*model.float\(\)"):
        headwater.Cache(hub, tiny().double())
    with pytest.raises(TypeError, match="cluster is a str"):
        headwater.Cache("localhost:7600", model)  # type: ignore[arg-type]
    assert not hub.sessions().sessions


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrow_models(hub: headwater.Client, kind: torch.dtype) -> None:
    model = tiny().to(kind)
    ids = prompt(2)["input_ids"]
    want = plain(model, ids)
    with headwater.Cache(hub, model) as cache:
        got = forward(model, cache, ids)
    assert got.dtype == kind
    assert torch.allclose(got.float(), want.float(), atol=2 * torch.finfo(kind).eps * want.abs().max().item() + 1e-3, rtol=0)
