"""Seconds of attention forward and backward by PyTorch's scaled_dot_product_attention, one line for each line of input.

python backward.py TOKENS HEADS KV_HEADS HEAD_DIM THREADS, causal, in float32.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F


def main() -> None:
    tokens, heads, kv_heads, head_dim, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    q = torch.randn(1, heads, tokens, head_dim, requires_grad=True)
    k, v = (torch.randn(1, kv_heads, tokens, head_dim, requires_grad=True) for _ in range(2))
    d = torch.randn(1, heads, tokens, head_dim)
    for _ in sys.stdin:
        began = time.perf_counter()
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).backward(d)
        print(time.perf_counter() - began, flush=True)


main()
