"""The chat of the terminal: what a person says and is told, with the model that `make test-model` brings."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import headwater
from headwater.chat import Chat, load_model

FOLDER = os.environ.get("HEADWATER_SMOLLM2", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="HEADWATER_SMOLLM2 names no model")
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model(FOLDER)


@pytest.fixture
def chat(hub: headwater.Client, loaded: tuple[Any, Any]) -> Iterator[Chat]:
    told: list[str] = []
    made = Chat(*loaded, hub, GREEDY, "", told.append)
    made.told = told
    yield made
    made.close()


def alone(messages: list[dict[str, str]]) -> str:
    """What the library's own cache and attention answer."""
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(FOLDER), transformers.AutoTokenizer.from_pretrained(FOLDER)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        found = model.generate(**prompt, **GREEDY)
    return tokenizer.decode(found[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def says(chat: Chat) -> list[str]:
    return [m["content"] for m in chat.branch.messages if m["role"] == "assistant"]


def test_turns_go_on_with_what_the_cluster_has(chat: Chat, hub: headwater.Client, tmp_path: Path) -> None:
    first = chat.ask("What is the capital of France?")
    assert re.fullmatch(r"\d+ tokens, the first after \d+\.\d s, then \d+\.\d tokens/s; \d+ positions", first)
    had = len(chat.branch.tokens)
    chat.ask("And of Italy?")
    assert len(chat.branch.tokens) > had
    assert says(chat)[1] == alone(chat.branch.messages[:-1]) and "".join(chat.told) == "".join(says(chat))

    # A fork, in which the last question is another; the branch that it comes from stays as it was.
    before = list(chat.branch.messages)
    assert "branch 2" in chat.command("/fork")
    assert chat.command("/undo") == f"{len(chat.branch.tokens)} positions" and chat.branch.messages == before[:2]
    chat.ask("And of Spain?")
    assert says(chat)[1] == alone(chat.branch.messages[:-1]) != before[-1]["content"]
    assert "* 2 " in chat.command("/branch") and "And of Italy?" in chat.command("/branch")
    assert "positions in 30 layers" in chat.command("/where") and "w1" in chat.command("/where")

    # What was saved goes on, in the place of another branch.
    path = tmp_path / "story"
    assert chat.command(f"/save {path}").endswith(f"in {path}.cache, and {path}.json")
    saved, had, sessions = chat.branch.messages.copy(), len(chat.branch.tokens), len(hub.sessions().sessions)
    assert "* 1 " in chat.command("/branch 1") and chat.branch.messages == before
    assert chat.command(f"/load {path}") == f"4 messages, {had} positions"
    assert chat.branch.messages == saved and len(hub.sessions().sessions) == sessions
    chat.ask("And its language?")
    assert says(chat)[-1] == alone(chat.branch.messages[:-1])


def test_what_can_not_be_done_is_said(chat: Chat, tmp_path: Path) -> None:
    assert chat.command("/undo") == "there is nothing to take back"
    assert chat.command("/where") == "the context is empty"
    assert chat.command("/save x") == "there is nothing to save" and chat.command("/save") == "/save needs the name of a file"
    assert chat.command("/branch 7") == "there is no branch 7: there are 1 to 1"
    assert chat.command("/nonsense").startswith("there is no /nonsense") and "/fork" in chat.command("/help")
    with pytest.raises(FileNotFoundError):
        chat.command(f"/load {tmp_path / 'none'}")


def test_an_answer_that_is_interrupted_is_kept_as_far_as_it_came(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = chat.show

    def interrupt(text: str) -> None:
        shown(text)
        if len(chat.told) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat, "show", interrupt)
    assert chat.ask("What is the capital of France?").startswith("stopped: ")
    monkeypatch.setattr(chat, "show", shown)
    chat.ask("And of Italy?")
    assert len(says(chat)[0].split()) <= 4 and says(chat)[1] == alone(chat.branch.messages[:-1])


def program(cluster: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "headwater.chat", FOLDER, "--coordinator", cluster, "--temperature", "0", *more]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(headwater.__file__).parents[1]), "TERM": "dumb"}


def test_in_a_pipe_only_answers_are_printed(cluster: str) -> None:
    lines = "What is the capital of France?\n\n/nonsense\n"
    done = subprocess.run(program(cluster, "--max-tokens", "12"), input=lines, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    want = alone([{"role": "user", "content": "What is the capital of France?"}])
    assert done.stdout == f"{want}\nthere is no /nonsense: /help lists what there is\n"
    gone = subprocess.run(program("127.0.0.1:1"), input=lines, capture_output=True, text=True, env=ENVIRONMENT)
    assert gone.returncode == 1 and gone.stderr.startswith("headwater.chat: ") and gone.stderr.count("\n") == 1


def test_in_a_terminal_ctrl_c_stops_the_answer_and_not_the_chat(cluster: str) -> None:
    terminal, inside = pty.openpty()
    with subprocess.Popen(program(cluster), stdin=inside, stdout=inside, stderr=inside, env=ENVIRONMENT, start_new_session=True, preexec_fn=own_terminal) as p:
        os.close(inside)
        seen = ""

        def until(what: str) -> str:
            nonlocal seen
            end = time.monotonic() + 600  # busy machines load a model for minutes
            while what not in seen:
                assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], seen
                seen += os.read(terminal, 4096).decode(errors="replace")
            told, _, seen = seen.partition(what)
            return told

        try:
            until("> ")
            os.write(terminal, b"Tell me a very long story of a river.\n")
            until("river.")
            while len(seen.split()) < 4:
                seen += os.read(terminal, 4096).decode(errors="replace")
            os.write(terminal, b"\x03")
            until("stopped: ")
            assert "tokens/s" in until("> ")
            os.write(terminal, b"\x03")  # at the prompt it only makes a new one
            until("> ")
            os.write(terminal, b"/where\n")
            assert "positions in 30 layers" in until("w1")
            until("> ")
            os.write(terminal, b"\x04")
            assert p.wait(60) == 0
        except BaseException:
            p.kill()  # else it would be waited for
            raise
    os.close(terminal)


def own_terminal() -> None:
    """Makes standard input the terminal of a new session, whose Ctrl-C comes as a signal, whoever has started the tests."""
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
