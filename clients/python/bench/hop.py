"""What the relay's hop over a Unix socket costs: steps of one token at 128 positions, through a relay and on a stream to the worker
itself, in turns, with the median of each in microseconds. The cluster has one worker.

    python bench/hop.py localhost:7600
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

import headwater

POSITIONS, ROUNDS, STEPS = 128, 15, 60


def main(address: str) -> None:
    layer = headwater.Layer(n_heads=32, n_kv_heads=8, head_dim=128, storage="bf16")
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((POSITIONS, heads, 128), np.float32) for heads in (32, 8, 8))
    out, lse = np.empty((1, 32, 128), np.float32), np.empty((1, 32), np.float32)
    with headwater.Client(address, direct=True) as relayed:
        worker = relayed.status().workers[0].address
        with headwater.Client(worker) as alone, relayed.open([layer], codec="raw") as one, relayed.open([layer], keep=True) as made:
            two = alone.attach(made.id, codec="raw")  # a worker that holds all is spoken to as a coordinator is
            took: dict[str, list[float]] = {"relay": [], "worker": []}
            for _ in range(ROUNDS):
                for way, session in (("relay", one), ("worker", two)):
                    session.truncate(0)
                    session.step(0, k=k, v=v)
                    times = []
                    for _ in range(STEPS):
                        began = time.perf_counter()
                        session.step(0, q[:1], k[:1], v[:1], out=out, out_lse=lse)
                        times.append(time.perf_counter() - began)
                    took[way].append(statistics.median(times))
            two.drop()
    ways = {way: 1e6 * statistics.median(t) for way, t in took.items()}
    print(f"through the relay {ways['relay']:.0f} us, to the worker {ways['worker']:.0f} us: the hop costs {ways['relay'] - ways['worker']:.0f} us")


if __name__ == "__main__":
    main(sys.argv[1])
