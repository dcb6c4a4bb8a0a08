"""Steps one token that sees so many positions, for `make figures-sessions`: each line on stdin is how often, and the median time in
seconds comes back.

    python bench/step.py localhost:7600 16384
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

import headwater


def main(address: str, positions: int) -> None:
    layer = headwater.Layer(n_heads=32, n_kv_heads=8, head_dim=128, storage="bf16")
    rng = np.random.default_rng(1)
    k, v = (rng.standard_normal((1024, 8, 128), np.float32) for _ in range(2))
    q = rng.standard_normal((1, 32, 128), np.float32)
    out, lse = np.empty((1, 32, 128), np.float32), np.empty((1, 32), np.float32)
    with headwater.Client(address, direct=True) as client, client.open([layer]) as session:
        while len(session) < positions - 1:
            n = min(1024, positions - 1 - len(session))
            session.step(0, k=k[:n], v=v[:n])
        print("ready", flush=True)
        for line in sys.stdin:
            session.truncate(positions - 1)
            took = []
            for _ in range(int(line)):
                began = time.perf_counter()
                session.step(0, q, k[:1], v[:1], out=out, out_lse=lse)
                took.append(time.perf_counter() - began)
            print(statistics.median(took), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
