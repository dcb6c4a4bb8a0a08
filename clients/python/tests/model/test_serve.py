"""The server of transformers with contexts on a cluster: what its users are answered is what the library answers alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import headwater

FOLDER = os.environ.get("HEADWATER_SMOLLM2", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="HEADWATER_SMOLLM2 names no model")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

TOKENS = 10
QUESTIONS = ["What is the capital of France?", "What is the capital of Italy?"]


@pytest.fixture(scope="module")
def server(cluster: str) -> Iterator[str]:
    """The address of a server on the cluster. At its end it has no session left there."""
    command = [sys.executable, "-m", "headwater.serve", FOLDER, "--coordinator", cluster, "--port", "0"]
    path = os.pathsep.join([str(Path(headwater.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}) as process:
        seen = ""
        for line in process.stderr:
            seen += line
            if found := re.search(r"running on (http://\S+)", line):
                break
        else:
            pytest.fail(seen)
        with ThreadPoolExecutor(1) as reader:
            reader.submit(process.stderr.read)  # so that it never waits for a reader
            yield found[1]
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with headwater.Client(cluster, timeout=60) as client:
        assert not client.sessions().sessions


def ask(server: str, question: str, **fields: Any) -> tuple[str, Any]:
    """What the server answers, and how often it said a part of it or what it used."""
    body = {"model": FOLDER, "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS, "temperature": 0, **fields}
    request = urllib.request.Request(f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        if not body.get("stream"):
            told = json.load(answer)
            return told["choices"][0]["message"]["content"], told["usage"]
        events = [json.loads(line.removeprefix(b"data: ")) for line in answer if line.startswith(b"data: {")]
        parts = [e["choices"][0]["delta"].get("content") for e in events]
        return "".join(p for p in parts if p), len([p for p in parts if p])


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """What the library answers by itself."""
    import torch
    import transformers

    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(FOLDER), transformers.AutoTokenizer.from_pretrained(FOLDER)
    answers = {}
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.inference_mode():
            found = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
        answers[question] = tokenizer.decode(found[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def test_users_at_once_are_answered_as_by_the_library_alone(server: str, alone: dict[str, str]) -> None:
    """Some have their answers streamed, in parts."""
    with ThreadPoolExecutor(4) as users:
        asked = [(q, s, users.submit(ask, server, q, stream=s)) for q in QUESTIONS for s in (False, True)]
        for question, streams, answer in asked:
            text, more = answer.result()
            assert text == alone[question]
            assert more > 2 if streams else more["completion_tokens"] <= TOKENS


def test_what_requests_begin_with_is_shared(server: str, cluster: str) -> None:
    with headwater.Client(cluster, timeout=60) as client:
        long = "Say no more than yes or no. " * 20 + "Is it so?"
        first = ask(server, long, max_tokens=2)
        before = sum(c.prefix_saved_bytes for c in client.sessions().caches)
        assert ask(server, long, max_tokens=2) == first
        assert sum(c.prefix_saved_bytes for c in client.sessions().caches) > before


def test_what_is_wrong_is_refused_by_the_server(server: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(server, QUESTIONS[0], model="another")
    assert ask(server, QUESTIONS[0], max_tokens=1)[1]["completion_tokens"] == 1


def test_a_cluster_that_is_not_there_is_said() -> None:
    done = subprocess.run([sys.executable, "-m", "headwater.serve", FOLDER, "--coordinator", "127.0.0.1:1"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(headwater.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])})  # fmt: skip
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("headwater.serve: ") and "127.0.0.1:1: " in done.stderr
