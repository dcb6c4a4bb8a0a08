"""A chat in the terminal with a model of transformers whose context lies on a cluster: python -m headwater.chat PATH.

Every turn goes on with the positions that the cluster has: what the new prompt has in common with them is not computed again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import headwater

from . import programs
from .transformers import Cache

HELP = """\
/fork         go on in a copy of this conversation, which shares its memory
/branch [N]   list the copies, or go to one
/undo         take back the last question and its answer
/save FILE    write the conversation to FILE.json and its keys and values to FILE.cache
/load FILE    go on with what /save has written
/where        show how long the context is and where it lies
/help         show this
Ctrl-C stops an answer, Ctrl-D ends the chat."""

Messages = list[dict[str, str]]


class Branch:
    """A conversation: its messages, and the cache with the tokens that it has."""

    def __init__(self, cache: Cache, messages: Messages, tokens: list[int]) -> None:
        self.cache, self.messages = cache, messages
        self.tokens = tokens[: cache.get_seq_length()]

    def cut(self, length: int) -> None:
        """Takes back the positions from length on."""
        if length < self.cache.get_seq_length():
            self.cache.crop(length - self.cache.get_seq_length())
        del self.tokens[length:]


class Answer(transformers.TextStreamer):  # type: ignore[misc]
    """Shows an answer as its tokens come, and keeps them with their times."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show = show
        self.ids: list[int] = []  # the prompt's as well
        self.times = [time.perf_counter()]  # of the start, and of each token
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        if self.ids:
            self.times.append(time.perf_counter())
        self.ids += value.flatten().tolist()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.show(text)

    def speed(self) -> str:
        """How many tokens came and how fast, for people."""
        count, took = len(self.times) - 1, self.times[-1] - self.times[0]
        if not count:
            return "no token"
        first = self.times[1] - self.times[0]
        rate = f", then {(count - 1) / (took - first):.1f} tokens/s" if count > 1 else ""
        return f"{count} token{'s' if count > 1 else ''}, the first after {first:.1f} s{rate}"


class Chat:
    """A model on a cluster, and the branches of a conversation with it. show writes text to the person, say a line about it."""

    def __init__(self, model: Any, tokenizer: Any, client: headwater.Client, options: dict[str, Any], system: str, show: Callable[[str], None]) -> None:
        self.model, self.tokenizer, self.client, self.options, self.show = model, tokenizer, client, options, show
        self.branches = [Branch(Cache(client, model), [{"role": "system", "content": system}] if system else [], [])]
        self.at = 0

    @property
    def branch(self) -> Branch:
        return self.branches[self.at]

    def close(self) -> None:
        for branch in self.branches:
            branch.cache.close()

    def ask(self, question: str) -> str:
        """Answers, token by token, and says how fast that was. What an interrupted answer has said is kept, if it is anything."""
        branch = self.branch
        branch.messages.append({"role": "user", "content": question})
        answer = Answer(self.tokenizer, self.show)
        interrupted = False
        try:
            prompt = self.tokenizer.apply_chat_template(branch.messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
            ids = prompt["input_ids"][0].tolist()
            branch.cut(min(common(ids, branch.tokens), len(ids) - 1))
            self.model.generate(
                input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], cache=branch.cache, streamer=answer, **self.options
            )
        except KeyboardInterrupt:
            interrupted = True
            answer.end()
        finally:
            branch.tokens = (answer.ids or branch.tokens)[: branch.cache.get_seq_length()]
            if answer.text:
                branch.messages.append({"role": "assistant", "content": answer.text})
            else:
                branch.messages.pop()
        return f"{'stopped: ' if interrupted else ''}{answer.speed()}; {len(branch.tokens)} positions"

    def command(self, line: str) -> str:
        """Does what a line that begins with / says, and returns what to tell."""
        name, _, argument = line.partition(" ")
        does = {"/fork": self.fork, "/branch": self.go, "/undo": self.undo, "/save": self.save, "/load": self.load, "/where": self.where}
        if name == "/help":
            return HELP
        if name not in does:
            return f"there is no {name}: /help lists what there is"
        return does[name](argument.strip())

    def fork(self, _: str) -> str:
        self.branches.append(Branch(self.branch.cache.fork(), list(self.branch.messages), self.branch.tokens))
        self.at = len(self.branches) - 1
        return f"this is branch {self.at + 1}: /branch {len(self.branches) - 1} goes back"

    def go(self, number: str) -> str:
        if number:
            if not number.isdigit() or not 1 <= int(number) <= len(self.branches):
                return f"there is no branch {number}: there are 1 to {len(self.branches)}"
            self.at = int(number) - 1
        rows = []
        for i, branch in enumerate(self.branches):
            last = next((m["content"] for m in reversed(branch.messages) if m["role"] == "user"), "")
            rows.append(f"{'*' if i == self.at else ' '} {i + 1}  {len(branch.tokens):6} positions  {' '.join(last.split())[:50]}")
        return "\n".join(rows)

    def undo(self, _: str) -> str:
        messages = self.branch.messages
        last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
        if last is None:
            return "there is nothing to take back"
        del messages[last:]
        kept = self.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] if messages else []
        self.branch.cut(common(kept, self.branch.tokens))
        return f"{len(self.branch.tokens)} positions"

    def save(self, file: str) -> str:
        if not file:
            return "/save needs the name of a file"
        if not self.branch.tokens:
            return "there is nothing to save"
        self.branch.cache.save(f"{file}.cache")
        said = {"messages": self.branch.messages, "tokens": self.branch.tokens}
        Path(f"{file}.json").write_text(json.dumps(said, ensure_ascii=False, indent=1))
        return f"{len(self.branch.tokens)} positions, {size(Path(f'{file}.cache').stat().st_size)} in {file}.cache, and {file}.json"

    def load(self, file: str) -> str:
        if not file:
            return "/load needs the name of a file"
        said = json.loads(Path(f"{file}.json").read_text())
        loaded = Branch(Cache.load(self.client, self.model, f"{file}.cache"), said["messages"], said["tokens"])
        self.branch.cache.close()
        self.branches[self.at] = loaded
        return f"{len(loaded.messages)} messages, {len(loaded.tokens)} positions"

    def where(self, _: str) -> str:
        tokens, sessions = len(self.branch.tokens), self.branch.cache.sessions
        if not sessions:
            return "the context is empty"
        state = self.client.find_session(sessions[0].id)
        rows = [f"{tokens} positions in {len(state.layers)} layers, {size(state.page_bytes)} on the cluster at {self.client.address}"]
        for holder in state.holders:
            rows.append(f"  {holder.name:12} {size(holder.page_bytes):>10}, of which {size(holder.own_bytes)} are this branch's alone")
        return "\n".join(rows)


def common(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def size(count: int) -> str:
    for unit, least in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= least:
            return f"{count / least:.1f} {unit}"
    return f"{count} B"


def load_model(path: str) -> tuple[Any, Any]:
    """A model and its tokenizer from a folder, a name, or a GGUF file, with its attention on a cluster."""
    source: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if path.endswith(".gguf"):
        source = {"pretrained_model_name_or_path": os.path.dirname(path) or ".", "gguf_file": os.path.basename(path)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    if tokenizer.chat_template is None:
        raise SystemExit(f"{path} has no chat template: it is not a model to chat with")
    return transformers.AutoModelForCausalLM.from_pretrained(**source, attn_implementation="headwater"), tokenizer


@contextlib.contextmanager
def connect(coordinator: str | None, workers: int, say: Callable[[str], None]) -> Iterator[headwater.Client]:
    """A client of the cluster, or of one of this chat's own. Its steps go directly to the workers if a program coord is there."""
    if coordinator is None:
        with headwater.local(workers=workers) as cluster, cluster.client() as client:
            say(f"a cluster of {workers} worker{'s' if workers > 1 else ''} on this machine; its log is {cluster.log}")
            yield client
        return
    try:
        programs.find("direct", None)
        direct = True
    except headwater.HeadwaterError:
        direct = False
    with headwater.Client(coordinator, direct=direct) as client:
        client.status()
        yield client


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m headwater.chat", description="Chat with a model whose context lies on a cluster.", epilog="In the chat, /help lists what there is.")
    parser.add_argument("path", metavar="PATH", help="the model: a folder of transformers, or a GGUF file")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--coordinator", metavar="HOST:PORT", help="the cluster (default: one on this machine, for this chat)")
    where.add_argument("--workers", type=int, default=2, metavar="N", help="workers of the cluster on this machine (default: 2)")
    parser.add_argument("--system", default="", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="tokens that an answer has at most (default: 1024)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token each time (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn by chance")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    args = arguments(given)
    person = sys.stdin.isatty() and sys.stdout.isatty()
    dim = ("\x1b[2m", "\x1b[0m") if person and sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")

    def say(line: str) -> None:
        if person:
            print(f"{dim[0]}{line}{dim[1]}", file=sys.stderr, flush=True)

    def show(text: str) -> None:
        print(text, end="", flush=True)

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"max_new_tokens": args.max_tokens}
    if args.temperature is not None:
        options |= {"do_sample": args.temperature > 0} | ({"temperature": args.temperature} if args.temperature > 0 else {})
    torch.manual_seed(args.seed)
    try:
        say(f"loading {args.path}")
        model, tokenizer = load_model(args.path)
        with connect(args.coordinator, args.workers, say) as client, contextlib.closing(Chat(model, tokenizer, client, options, args.system, show)) as chat:
            say("/help lists what there is; Ctrl-C stops an answer, Ctrl-D ends")
            return talk(chat, person, say)
    except (headwater.HeadwaterError, OSError, ValueError) as e:
        print(f"headwater.chat: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def talk(chat: Chat, person: bool, say: Callable[[str], None]) -> int:
    """Reads lines until there are no more. For a person an error is told, and the chat goes on."""
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  for input()
    while True:
        try:
            line = input("\n> ") if person else sys.stdin.readline()
            if not person and not line:
                return 0
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        if not (line := line.strip()):
            continue
        try:
            if line.startswith("/"):
                print(chat.command(line), flush=True)
            else:
                told = chat.ask(line)
                print(flush=True)
                say(told)
        except KeyboardInterrupt:
            print()
        except (headwater.HeadwaterError, OSError, ValueError) as e:
            if not person:
                raise
            print(f"error: {e}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
