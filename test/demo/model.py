"""A model of transformers answers a question on a local cluster, with three workers and with one, and beside the library alone.

    python test/demo/model.py FOLDER [QUESTION]
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from typing import Any

import torch
import transformers

import headwater
from headwater.chat import Answer, load_model

TOKENS = 96


def heading(text: str) -> None:
    print(f"\n== {text}\n", flush=True)


class Killer(transformers.StoppingCriteria):  # type: ignore[misc]
    """Kills a process when some tokens are there, and stops nothing."""

    def __init__(self, process: int, name: str) -> None:
        self.process, self.name, self.left = process, name, TOKENS // 3

    def __call__(self, ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            os.kill(self.process, signal.SIGKILL)
            print(f"\n[{self.name} is killed]", flush=True)
        return torch.zeros(len(ids), dtype=torch.bool)


def answer(model: Any, tokenizer: Any, prompt: Any, cache: Any = None, stop: Killer | None = None) -> tuple[Any, str]:
    """Answers greedily, shows the tokens as they come and how fast they did, and returns what generate gives and a hash of the
    contexts of all layers and tokens, as they enter the layers' output projections."""
    contexts = hashlib.sha256()
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: contexts.update(inputs[0].detach().contiguous().numpy().tobytes()))
        for layer in model.model.layers
    ]
    shown = Answer(tokenizer, lambda text: print(text, end="", flush=True))
    options = {"max_new_tokens": TOKENS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    try:
        found = model.generate(**prompt, **options, streamer=shown, stopping_criteria=[stop] if stop else None, **({} if cache is None else {"cache": cache}))
    finally:
        for hook in hooks:
            hook.remove()
    print(f"\n\n[{shown.speed()}]", flush=True)
    return found, contexts.hexdigest()


def on_cluster(workers: int, model: Any, tokenizer: Any, prompt: Any, kill: str = "") -> tuple[Any, str]:
    """The answer on a cluster, where the worker named by kill ends as by kill -9 in the middle; there are copies then."""
    started = time.perf_counter()
    with headwater.local(workers=workers, replicas=1 if kill else 0) as cluster:
        copies = " with a copy of each part of a session" if kill else ""
        heading(f"A coordinator and {workers} worker{'s' if workers > 1 else ''}{copies}, started in {time.perf_counter() - started:.1f} s; their log is {cluster.log}")
        with cluster.client() as client, headwater.Cache(client, model, share=False) as cache:
            stop = Killer(cluster.processes[kill], kill) if kill else None
            found = answer(model, tokenizer, prompt, cache, stop)
            state = client.find_session(cache.sessions[0].id)
            parts = ", ".join(f"{h.name} {h.page_bytes / 2**20:.1f} MiB" for h in state.holders)
            print(f"[{cache.get_seq_length()} positions of {len(state.layers)} layers: {parts}]")
    return found


def verdict(equal: bool) -> str:
    return "equal bit for bit" if equal else "DIFFERENT"


def main(folder: str, question: str = "Why is the sky blue?") -> int:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = load_model(folder)
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    print(f"{question}  ({prompt['input_ids'].shape[1]} tokens with the chat's template)")
    three, three_contexts = on_cluster(3, model, tokenizer, prompt)
    one, one_contexts = on_cluster(1, model, tokenizer, prompt)
    less, less_contexts = on_cluster(3, model, tokenizer, prompt, kill="w2")
    heading("transformers alone, with its own cache and attention (sdpa)")
    model.set_attn_implementation("sdpa")
    alone, _ = answer(model, tokenizer, prompt)

    heading("Three workers and one")
    tokens = one.sequences.shape[1] - prompt["input_ids"].shape[1]
    same = [three_contexts == one_contexts, torch.equal(three.sequences, one.sequences), all(map(torch.equal, three.logits, one.logits))]
    print(f"contexts of {len(model.model.layers)} layers, hashed: {verdict(same[0])} ({one_contexts[:16]})")
    print(f"tokens:   {verdict(same[1])} ({tokens})")
    print(f"logits:   {verdict(same[2])} ({tokens} x {one.logits[0].shape[1]})")
    heading("Three workers of which one was killed, and one")
    same += [less_contexts == one_contexts, torch.equal(less.sequences, one.sequences), all(map(torch.equal, less.logits, one.logits))]
    for what, equal in zip(("contexts", "tokens", "logits"), same[3:]):
        print(f"{what + ':':9} {verdict(equal)}")
    heading("The cluster and transformers alone")
    agree = next((i for i, (a, b) in enumerate(zip(one.sequences[0], alone.sequences[0])) if a != b), None)
    print(f"tokens:   {'the same' if agree is None else f'DIFFERENT from position {agree} on'}")
    pairs = list(zip(one.logits, alone.logits))
    print(f"logits:   largest difference {max((a - b).abs().max() for a, b in pairs):.2g}, of a largest logit of {max(b.abs().max() for _, b in pairs):.3g}")
    return 0 if all(same) and agree is None else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
