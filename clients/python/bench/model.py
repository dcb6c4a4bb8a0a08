"""What a model of transformers gains and loses by keeping its cache on a cluster, for `make figures-model`: SmolLM2-135M-Instruct,
float32, greedy, torch with one thread and workers with one thread, against sdpa and the library's own cache. Prints one line
`figure NAME VALUE` for each, the median over rounds in which both take turns, and keeps the samples as JSON.

    model_tokens_512, model_tokens_8k, model_tokens_32k   tokens/s on a cluster of one worker / of plain transformers, at that context
    model_2w_32k   tokens/s on two workers / on one, at 32k
    model_batch8   tokens/s of 8 rows at 2k on a cluster of one worker / of plain transformers
    prefix_ttft    time to the first token of a second request that shares a prefix of 4k / of the first
    model_memory   resident bytes of the client's process at 32k / (those of plain transformers − its keys and values)

    python bench/model.py FOLDER [--run REGEX] [--rounds N] [--samples FILE]
    python bench/model.py FOLDER --table 128,512,2048,8192,32768 [--rounds N]

With --table it prints, in Markdown, the tokens/s of both by the length of the context and the number of workers.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import headwater

Sample = dict[str, float]
CHUNK = 512


class Bench:
    """A model, and what its figures need."""

    def __init__(self, folder: str, rounds: int) -> None:
        torch.set_num_threads(1)
        self.folder, self.rounds = folder, rounds
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.config = self.model.config

    def ids(self, rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
        return torch.randint(100, self.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(seed))

    def feed(self, cache: Any, implementation: str, ids: torch.Tensor) -> torch.Tensor:
        """Takes tokens in, in chunks, and returns the newest logits."""
        self.model.set_attn_implementation(implementation)
        with torch.inference_mode():
            for piece in ids.split(CHUNK, 1):
                logits: torch.Tensor = self.model(input_ids=piece, cache=cache, logits_to_keep=1).logits
        return logits[:, -1]

    def fill(self, cache: Any, rows: int, positions: int) -> None:
        """Fills a cache with random keys and values, which take as long to attend to as a text's: a prompt of 32k would take minutes."""
        shape = (rows, self.config.num_key_value_heads, CHUNK, self.config.head_dim)
        made = torch.Generator().manual_seed(2)
        keys, values = (torch.randn(shape, generator=made) for _ in range(2))
        if isinstance(cache, transformers.DynamicCache):
            for layer in range(self.config.num_hidden_layers):
                repeats = -(-positions // CHUNK)
                cache.update(keys.repeat(1, 1, repeats, 1)[:, :, :positions], values.repeat(1, 1, repeats, 1)[:, :, :positions], layer)
            return
        for begin in range(0, positions, CHUNK):
            n = min(CHUNK, positions - begin)
            headwater.batch([
                headwater.Step(row.held.session, layer, None, keys[i, :, :n].transpose(0, 1), values[i, :, :n].transpose(0, 1))
                for i, row in enumerate(cache._rows)
                for layer in range(self.config.num_hidden_layers)
            ])  # fmt: skip
        for row in cache._rows:
            row.held.length = positions
        cache._columns = positions

    def on(self, cluster: Any, rows: int, positions: int) -> Any:
        """A cache on a cluster, filled so far."""
        self.model.set_attn_implementation("headwater")
        cache = headwater.Cache(cluster, self.model, share=False)
        cache._begin_rows(rows, None, None, 0)
        cache._fresh = False
        self.fill(cache, rows, positions)
        return cache

    def plain(self, rows: int, positions: int) -> Any:
        cache = transformers.DynamicCache(config=self.config)
        self.fill(cache, rows, positions)
        return cache

    def rate(self, cache: Any, implementation: str, rows: int, tokens: int) -> float:
        """Tokens a second of greedy decoding; what it has added is taken back."""
        last = self.ids(rows, 1)
        began = time.perf_counter()
        for _ in range(tokens):
            last = self.feed(cache, implementation, last).argmax(1, keepdim=True)
        took = time.perf_counter() - began
        cache.crop(-tokens)
        return rows * tokens / took

    def race(self, rows: int, positions: int, tokens: int) -> list[Sample]:
        """Rounds of decoding, by plain transformers and on a cluster of one worker."""
        samples = []
        plain = self.plain(rows, positions)
        with headwater.local(workers=1, threads=1) as cluster, self.on(cluster, rows, positions) as cache:
            for way, kind in ((plain, "sdpa"), (cache, "headwater")):
                self.rate(way, kind, rows, 2)
            for _ in range(self.rounds):
                a, b = self.rate(plain, "sdpa", rows, tokens), self.rate(cache, "headwater", rows, tokens)
                samples.append({"value": b / a, "plain_tokens_per_second": a, "cluster_tokens_per_second": b})
        return samples

    def two_workers(self) -> list[Sample]:
        samples = []
        with headwater.local(workers=1, threads=1) as one, headwater.local(workers=2, threads=1) as two:
            with self.on(one, 1, 32 << 10) as a, self.on(two, 1, 32 << 10) as b:
                for way in (a, b):
                    self.rate(way, "headwater", 1, 2)
                for _ in range(self.rounds):
                    x, y = self.rate(a, "headwater", 1, 6), self.rate(b, "headwater", 1, 6)
                    samples.append({"value": y / x, "one_tokens_per_second": x, "two_tokens_per_second": y})
        return samples

    def table(self, contexts: list[int]) -> None:
        """Tokens/s of plain transformers and on clusters of one and of two workers, which take turns at each length of the context."""
        print("| context | plain transformers, tokens/s | one worker | two workers |\n| ---: | ---: | ---: | ---: |", flush=True)
        for positions in contexts:
            tokens = 12 if positions <= 8 << 10 else 6
            with headwater.local(workers=1, threads=1) as one, headwater.local(workers=2, threads=1) as two:
                with self.on(one, 1, positions) as a, self.on(two, 1, positions) as b:
                    ways = [(self.plain(1, positions), "sdpa"), (a, "headwater"), (b, "headwater")]
                    for way, kind in ways:
                        self.rate(way, kind, 1, 2)
                    rounds = [[self.rate(way, kind, 1, tokens) for way, kind in ways] for _ in range(self.rounds)]
            plain = statistics.median(r[0] for r in rounds)
            ratios = (statistics.median(r[i] / r[0] for r in rounds) for i in (1, 2))
            print(f"| {positions:,} | {plain:.2f} | " + " | ".join(f"× {r:.2f}" for r in ratios) + " |", flush=True)

    def prefix(self) -> list[Sample]:
        samples = []
        self.model.set_attn_implementation("headwater")
        with headwater.local(workers=1, threads=1) as cluster:
            headwater.Cache(cluster, self.model).close()  # the fingerprint is known from now on
            for i in range(max(2, self.rounds // 2)):
                shared, took = self.ids(1, 4096, seed=10 + i), []
                for own in range(2):
                    ids = torch.cat([shared, self.ids(1, 32, seed=100 + own)], 1)
                    with headwater.Cache(cluster, self.model) as cache:
                        began = time.perf_counter()
                        self.model.generate(input_ids=ids, cache=cache, max_new_tokens=1, do_sample=False)
                        took.append(time.perf_counter() - began)
                samples.append({"value": took[1] / took[0], "first_seconds": took[0], "second_seconds": took[1]})
        return samples

    def memory(self) -> list[Sample]:
        """Of processes of their own, whose memory nothing else has grown."""
        plain, cluster = (resident(self.folder, way) for way in ("plain", "cluster"))
        c = self.config
        kv = 2 * 4 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * (32 << 10)
        return [{"value": cluster / (plain - kv), "plain_bytes": plain, "cluster_bytes": cluster, "kv_bytes": kv}]


def resident(folder: str, way: str) -> float:
    return float(subprocess.run([sys.executable, __file__, folder, "--resident", way], stdout=subprocess.PIPE, text=True, check=True).stdout)


def print_resident(folder: str, way: str) -> None:
    bench = Bench(folder, 1)

    def report(cache: Any, kind: str) -> None:
        bench.rate(cache, kind, 1, 3)
        gc.collect()
        print(int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10)  # type: ignore[index]

    if way == "plain":
        report(bench.plain(1, 32 << 10), "sdpa")
        return
    with headwater.local(workers=1, threads=1) as cluster, bench.on(cluster, 1, 32 << 10) as cache:
        report(cache, "headwater")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--run", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", default="")
    parser.add_argument("--table", type=lambda words: [int(word) for word in words.split(",")])
    parser.add_argument("--resident", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.resident:
        print_resident(args.folder, args.resident)
        return
    bench = Bench(args.folder, args.rounds)
    if args.table:
        bench.table(args.table)
        return
    figures: dict[str, Callable[[], list[Sample]]] = {
        "model_tokens_512": lambda: bench.race(1, 512, 24),
        "model_tokens_8k": lambda: bench.race(1, 8 << 10, 12),
        "model_tokens_32k": lambda: bench.race(1, 32 << 10, 6),
        "model_2w_32k": bench.two_workers,
        "model_batch8": lambda: bench.race(8, 2 << 10, 6),
        "prefix_ttft": bench.prefix,
        "model_memory": bench.memory,
    }
    kept: dict[str, list[Sample]] = {}
    for name, measure in figures.items():
        if re.search(args.run, name):
            kept[name] = measure()
            print(f"figure {name} {statistics.median(s['value'] for s in kept[name]):.4f}", flush=True)
            for part in kept[name][0].keys() - {"value"}:
                print(f"  {part} {statistics.median(s[part] for s in kept[name]):.4g}", flush=True)
    if args.samples:
        Path(args.samples).parent.mkdir(parents=True, exist_ok=True)
        Path(args.samples).write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
