"""Frames, against those that are kept for every version, and against contexts that come back as they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import headwater
from headwater import frames, narrow_bfloat16, narrow_float16
from headwater.codecs import Chooser
from headwater.v1 import session_pb2

KEPT = Path(__file__).resolve().parents[3] / "internal" / "contextframe" / "testdata" / "v1"
SHAPES = {"mixture": (20, 3, 64), "repeated": (12, 1, 64), "constant": (2, 1, 2)}
CODECS = {"exact": frames.EXACT, "bf16": frames.BF16, "f16": frames.F16}


def narrowed(context: np.ndarray, codec: str) -> np.ndarray:
    """What a codec leaves of a context, by docs/numerics.md."""
    if codec == "bf16":
        return (narrow_bfloat16(context).astype(np.uint32) << 16).view(np.float32)
    if codec == "f16":
        return narrow_float16(context).astype(np.float32)
    if codec == "int8":
        scale = np.abs(context).max(axis=-1, keepdims=True) / np.float32(127)
        with np.errstate(invalid="ignore", divide="ignore"):
            q = np.where(scale == 0, 0, np.clip(np.rint(context / scale), -127, 127))
        return q.astype(np.int8).astype(np.float32) * scale
    return context


def same(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


@pytest.mark.parametrize("name", SHAPES)
def test_frames_that_are_kept(name: str) -> None:
    """Their planes are raw, repeated, of huff0 and of s2. Each codec's frame must be of the same context."""
    read = {codec: frames.decode(memoryview((KEPT / f"{name}.{codec}").read_bytes()), number, *SHAPES[name]) for codec, number in CODECS.items()}
    for codec, (context, lse) in read.items():
        same(context, narrowed(read["exact"][0], codec))
        same(lse, read["exact"][1])


def test_spoiled_frames_are_refused() -> None:
    for name, (codec, number) in itertools.product(SHAPES, CODECS.items()):
        frame = (KEPT / f"{name}.{codec}").read_bytes()
        rng = np.random.default_rng(1)
        for at in rng.integers(0, len(frame), 60).tolist() + [4, 6, 7, 12, 16, 20, 24]:
            spoiled = bytearray(frame)
            spoiled[at] ^= 1 << int(rng.integers(8))
            if 8 <= at < 12:  # the group, which a step's frames do not need; it is under the checksum
                continue
            with pytest.raises(frames.FrameError):
                frames.decode(memoryview(bytes(spoiled)), number, *SHAPES[name])
        for cut in (0, 1, 31, 32, len(frame) - 1):
            with pytest.raises(frames.FrameError):
                frames.decode(memoryview(frame[:cut]), number, *SHAPES[name])
        with pytest.raises(frames.FrameError):
            frames.decode(memoryview(frame + b"\0"), number, *SHAPES[name])
        with pytest.raises(frames.FrameError):
            frames.decode(memoryview(frame), number % 3 + 1, *SHAPES[name])


def lie(frame: bytes, number: int, shape: tuple[int, int, int], times: int) -> None:
    """Whoever makes a checksum may say anything under it: it is refused, or a context of that shape."""
    rng = np.random.default_rng(2)
    for _ in range(times):
        spoiled = bytearray(frame[:-8])
        # Most lies are where a block begins.
        begin = 32 + 4 * shape[0] * shape[1] * (2 if number == frames.INT8 else 1)
        for _ in range(int(rng.integers(1, 4))):
            spoiled[int(rng.integers(begin, min(len(spoiled), begin + int(rng.choice([40, len(frame)])))))] = int(rng.integers(256))
        spoiled += frames.xxh3(memoryview(bytes(spoiled))).to_bytes(8, "little")
        try:
            context, _ = frames.decode(memoryview(bytes(spoiled)), number, *shape)
        except frames.FrameError:
            continue
        assert context.shape == shape


@pytest.mark.parametrize("name", SHAPES)
def test_planes_that_lie_are_refused(name: str) -> None:
    for codec, number in CODECS.items():
        lie((KEPT / f"{name}.{codec}").read_bytes(), number, SHAPES[name], 150)


@pytest.mark.parametrize("client", [False], indirect=True)
@pytest.mark.parametrize("codec", ["exact", "bf16", "f16", "int8"])
def test_levels_that_lie_are_refused(client: headwater.Client, monkeypatch: pytest.MonkeyPatch, codec: headwater.SessionCodec) -> None:
    seen: list[tuple[bytes, int, tuple[int, int, int]]] = []
    decode = frames.decode

    def keep(frame: memoryview, number: int, tokens: int, heads: int, v_dim: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append((bytes(frame), number, (tokens, heads, v_dim)))
        return decode(frame, number, tokens, heads, v_dim)

    rng = np.random.default_rng(4)
    with client.open([headwater.Layer(2, 2, 64)], codec=codec) as s:
        monkeypatch.setattr(frames, "decode", keep)
        s.step(0, *(rng.standard_normal((200, 2, 64), np.float32) for _ in range(3)))
        monkeypatch.undo()
    assert len(seen) == 1
    frame, number, (tokens, heads, _) = seen[0]
    if codec != "int8":  # whose differences here are noise
        last = 32 + 4 * tokens * heads + 4 * ({"exact": 4}.get(codec, 2) - 1)
        assert frame[last + 3] >> 4 == 4, "the highest plane is in levels"
    lie(*seen[0], 400)


@pytest.mark.parametrize("codec", ["exact", "bf16", "f16", "int8", "auto"])
def test_contexts_come_back_in_every_codec(client: headwater.Client, codec: headwater.SessionCodec) -> None:
    """Of the same tokens, contexts of any codec are those that come as they are, narrowed."""
    rng = np.random.default_rng(3)
    layers = [headwater.Layer(6, 3, 16, 24), headwater.Layer(4, 4, 8, storage="bf16")]
    with client.open(layers, codec="raw") as plain, client.open(layers, codec=codec) as s:
        for n in (1, 3, 300, 2):
            for i, layer in enumerate(layers):
                q, k, v = (
                    rng.standard_normal((n, heads, dim), np.float32)
                    for heads, dim in ((layer.n_heads, layer.head_dim), (layer.n_kv_heads, layer.head_dim), (layer.n_kv_heads, layer.v_dim))
                )
                want, got = plain.step(i, q, k, v), s.step(i, q, k, v)
                same(got.context, narrowed(want.context, codec))
                same(got.lse, want.lse)
        with s.fork() as child:
            assert child.codec == codec
        with client.attach(s.receipt(), codec=codec) as again:
            q = rng.standard_normal((1, 6, 16), np.float32)
            same(again.step(0, q).context, narrowed(plain.step(0, q).context, codec))
            again.drop()


def test_a_codec_has_a_name(client: headwater.Client) -> None:
    with pytest.raises(ValueError, match="codec 'f8' is none of auto, raw, exact"):
        client.open([headwater.Layer(1, 1, 4)], codec="f8")  # type: ignore[arg-type]


def test_auto_takes_what_is_faster_and_looks_again() -> None:
    raw, exact = session_pb2.STEP_CODEC_RAW, session_pb2.STEP_CODEC_EXACT
    for costs, best in (({raw: 1.0, exact: 2.0}, raw), ({raw: 2.0, exact: 1.0}, exact)):
        chooser = Chooser()
        seen = []
        for _ in range(2000):
            seen.append(chooser.codec())
            chooser.measured(seen[-1], costs[seen[-1]], 100)
        assert set(seen) == {raw, exact}
        assert seen[600:].count(best) > 1350  # all but the probes
