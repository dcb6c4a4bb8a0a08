"""No session outlives its generation: not after an exception, a Ctrl-C or the end of the process."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import headwater
from model.test_generate import prompt

TESTS = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"}


class Fails(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends a generation after some tokens by an exception."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.left = error, 5

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise self.error
        return prompt()["input_ids"][:, 0] < 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no")], ids=["Ctrl-C", "exception"])
def test_after_an_exception(model: Any, client: headwater.Client, error: BaseException) -> None:
    with pytest.raises(type(error)), headwater.Cache(client, model) as cache:
        model.generate(**prompt(), cache=cache, max_new_tokens=20, stopping_criteria=[Fails(error)])
    assert not client.sessions().sessions


def test_when_nothing_refers_to_it_any_more(model: Any, hub: headwater.Client) -> None:
    cache = headwater.Cache(hub, model)
    model.generate(**prompt(2), cache=cache, max_new_tokens=3)
    assert len(hub.sessions().sessions) == 2
    del cache
    gc.collect()
    assert not hub.sessions().sessions
    assert "generate" not in vars(model) and not model._forward_hooks  # and the model is as it was


SCRIPT = """
    import sys
    import headwater
    from model.conftest import tiny
    from model.test_generate import prompt
    model = tiny()
    client = headwater.Client(sys.argv[1], direct=True)
    cache = headwater.Cache(client, model)
    class Says:
        def put(self, _): print("token", flush=True)
        def end(self): pass
    model.generate(**prompt(), cache=cache, max_new_tokens=int(sys.argv[2]), streamer=Says())
"""


@pytest.mark.parametrize("end", ["itself", "Ctrl-C"])
def test_at_the_end_of_the_process(cluster: str, hub: headwater.Client, end: str) -> None:
    """Nothing closes the cache there."""
    tokens = 4 if end == "itself" else 1 << 20
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), cluster, str(tokens)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TESTS, env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who has started the tests may ignore it
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "token\n"
        if end == "itself":
            assert process.wait(60) == 0
        else:
            assert len(hub.sessions().sessions) == 1
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert not hub.sessions().sessions


def test_a_cache_that_is_lost_says_what_and_goes_on_anew(model: Any, tmp_path: Path) -> None:
    """From a file, or from the tokens so far, on the worker that is left: the tokens are those of a cluster that lost nobody."""
    inputs = prompt()
    ids, known = inputs["input_ids"], inputs["attention_mask"]
    greedy = {"do_sample": False, "max_new_tokens": 6}
    with headwater.local(workers=2, memory="64MiB", threads=1) as cluster, cluster.client() as client:
        with headwater.Cache(client, model) as whole:
            want = model.generate(**inputs, cache=whole, do_sample=False, max_new_tokens=12)
        cache = headwater.Cache(client, model)
        half = model.generate(**inputs, cache=cache, **greedy)
        cache.save(tmp_path / "half")
        os.kill(cluster.processes["w1"], signal.SIGKILL)
        more = {"input_ids": half, "attention_mask": torch.cat([known, torch.ones(len(ids), half.shape[1] - ids.shape[1], dtype=known.dtype)], 1)}
        with pytest.raises(headwater.SessionError) as failed:
            model.generate(**more, cache=cache, **greedy)
        assert isinstance(failed.value, (headwater.LostError, headwater.UnknownSessionError))
        lost = failed.value.lost
        assert [(one.layer, len(one.groups), one.positions) for one in lost] == [(i, 1, half.shape[1] - 1) for i in range(2)]
        with pytest.raises((headwater.LostError, headwater.UnknownSessionError)):
            model.generate(**more, cache=cache, **greedy)
        cache.close()
        with headwater.Cache.load(client, model, tmp_path / "half") as loaded:
            assert model.generate(**more, cache=loaded, **greedy).tolist() == want.tolist()
        with headwater.Cache(client, model) as anew:
            assert model.generate(**more, cache=anew, **greedy).tolist() == want.tolist()
    cluster.log.unlink(missing_ok=True)  # which is kept, since a process was killed


TAKES = """
    import sys
    import headwater
    import torch
    from model.conftest import tiny
    model = tiny()
    ids = torch.tensor([[int(x) for x in sys.argv[3].split(",")]])
    with headwater.Client(sys.argv[1]) as client, headwater.Cache.attach(client, model, sys.argv[2]) as cache:
        assert cache.get_seq_length() == ids.shape[1] - 1
        print(model.generate(input_ids=ids, cache=cache, max_new_tokens=5, do_sample=False)[0].tolist())
"""


def test_another_process_takes_it_up_by_its_receipt(model: Any, cluster: str, hub: headwater.Client) -> None:
    """A generation that is cut in two, each part in a process of its own, has the tokens of one that is not."""
    inputs = prompt()
    with headwater.Cache(hub, model) as whole:
        want = model.generate(**inputs, cache=whole, max_new_tokens=10, do_sample=False)[0].tolist()
    cache = headwater.Cache(hub, model)
    half = model.generate(**inputs, cache=cache, max_new_tokens=5, do_sample=False)[0].tolist()
    receipt = cache.receipt()
    cache.close(keep=True)
    command = [sys.executable, "-c", textwrap.dedent(TAKES), cluster, receipt, ",".join(map(str, half))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS, env=ENVIRONMENT, timeout=120)
    assert done.stdout.strip() == str(want), done.stderr
    assert not hub.sessions().sessions
