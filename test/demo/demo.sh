#!/usr/bin/env bash
# The main job on the embedded local cluster: attention of a real model's layers, on three workers, then on one and on five.
set -euo pipefail
cd "$(dirname "$0")/../.."
coord=bin/coord
job=test/data/smollm2/attention.safetensors
out=out/demo
rm -rf "$out"
mkdir -p "$out"
say() { printf '\n\033[1m%s\033[0m\n' "$1"; }
[ -t 1 ] || say() { printf '\n== %s\n' "$1"; }

say 'Attention of two layers of SmolLM2-135M: a coordinator and three workers, each a process of its own'
"$coord" submit "$job" --local 3 --out "$out/three.safetensors"

say 'How far the contexts are from the float64 truth, in units of rounding error (8 is the promise)'
"$coord" check "$out/three.safetensors" --truth test/data/smollm2/attention.truth.safetensors

say 'The same job on one worker and on five: equal bit for bit?'
for n in 1 5; do
  "$coord" submit "$job" --local "$n" --out "$out/$n.safetensors" --quiet >/dev/null
  "$coord" diff "$out/three.safetensors" "$out/$n.safetensors"
done

say 'The same two layers from their hidden states: projected, rotated, attended, projected (1e-5 of y is the promise)'
"$coord" submit test/data/smollm2/layer.safetensors --local 3 --out "$out/layer.safetensors" --quiet >/dev/null
"$coord" check "$out/layer.safetensors" --truth test/data/smollm2/layer.truth.safetensors

say 'Three readers of one library: what the query heads of group 2 look at from one word, and the heat maps of all nine'
"$coord" explain "$job" --problem layers.17. --heads 6,7,8 --positions -9 --top 5
"$coord" explain "$job" --problem layers.17. --figure "$out/layer-17.png" --top 1 >/dev/null

say 'What grouped queries save'
"$coord" plan --job "$job" --compare
printf '\nResults and heat maps are in %s\n' "$out"
