"""Steps a session through the fixture of a real model, one token at a time, and compares with what a job gives.

    python examples/smollm2.py localhost:7600 ../../test/data/smollm2/attention.safetensors
"""

from __future__ import annotations

import sys

import numpy as np

import headwater
from headwater import safetensors


def main(address: str, path: str) -> None:
    with open(path, "rb") as f:
        tensors, _ = safetensors.load(f.read())
    names = sorted({name.rpartition(".")[0] for name in tensors})
    model = [{part: tensors[f"{name}.{part}"] for part in "qkv"} for name in names]
    with headwater.Client(address) as client:
        job = client.submit(path)
        client.wait(job.id)
        want = client.result(job.id)
        layers = [
            headwater.Layer(n_heads=m["q"].shape[1], n_kv_heads=m["k"].shape[1], head_dim=m["q"].shape[2], v_dim=m["v"].shape[2])
            for m in model
        ]
        with client.open(layers, name="smollm2") as session:
            tokens = len(model[0]["q"])
            for t in range(tokens):
                for i, m in enumerate(model):  # a token goes through the layers one after the other
                    now = slice(t, t + 1)
                    context, lse = session.step(i, m["q"][now], m["k"][now], m["v"][now])
                    np.testing.assert_array_equal(context, want[f"{names[i]}.context"][now])
                    np.testing.assert_array_equal(lse, want[f"{names[i]}.lse"][now])
            print(f"{tokens} tokens through layers {', '.join(n.rpartition('.')[2] for n in names)}: the job's bits")


if __name__ == "__main__":
    main(*sys.argv[1:])
