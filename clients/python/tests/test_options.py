"""Options and geometry: NumPy's numbers and arrays are as good as Python's, and what is wrong is named."""

from __future__ import annotations

import json
import sys
import types

import ml_dtypes
import numpy as np
import pytest

import headwater
from headwater import arrays, options, steps
from headwater.v1 import worker_pb2


def test_options_of_numpy_become_json() -> None:
    given = {
        "scale": np.float32(0.25), "offset": np.int64(3), "causal": np.bool_(True), "softcap": np.array(2.5),
        "alibi_slopes": np.array([0.5, 0.25], np.float32), "sinks": [np.float16(1.5), 2], "kind": "attention",
        "problems": {"layers.0.": {"window_left": np.uint8(7)}},
    }  # fmt: skip
    assert json.loads(json.dumps({name: options.plain(name, value) for name, value in given.items()})) == {
        "scale": 0.25, "offset": 3, "causal": True, "softcap": 2.5, "alibi_slopes": [0.5, 0.25], "sinks": [1.5, 2], "kind": "attention",
        "problems": {"layers.0.": {"window_left": 7}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (b"x", TypeError, "option o is a bytes"),
        (object(), TypeError, "option o is a object"),
        ({"a": {1: 2}}, TypeError, r"option o\['a'\]: key 1 is not a str"),
        ([1, {"b": 1j}], TypeError, r"option o\[1\]\['b'\] is a complex"),
        (np.array([1, np.nan]), ValueError, r"option o\[1\] is nan"),
        (np.float32(np.inf), ValueError, "option o is inf"),
        (np.array([1j]), TypeError, r"option o\[0\] is a complex"),
    ],
)
def test_other_options_are_refused_by_name(value: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^{says}"):
        options.plain("o", value)


def test_a_layer_takes_numbers_of_numpy() -> None:
    made = headwater.Layer(
        np.int64(4), np.uint8(2), np.int32(8), v_dim=np.array(6), storage="bfloat16", causal=np.bool_(False), window_left=np.int16(5),
        scale=np.float32(0.1), softcap=np.float64(2), alibi_slopes=np.array([1, 2, 3, 4], np.float16), sinks=[np.float32(0)] * 4,
    )  # fmt: skip
    assert made == headwater.Layer(4, 2, 8, 6, "bf16", False, 5, scale=0.1, softcap=2, alibi_slopes=(1, 2, 3, 4), sinks=(0, 0, 0, 0))
    assert headwater.Layer.from_proto(made.to_proto()) == made
    assert headwater.Layer(2, 1, 4, window_left=-1, window_right=None).window_left is None


def test_arithmetic() -> None:
    for arithmetic in ("chain", "tiles", "tiles-bf16"):
        made = headwater.Layer(2, 1, 4, storage="bf16", arithmetic=arithmetic)  # type: ignore[arg-type]
        sent = made.to_proto()
        assert headwater.Layer.from_proto(sent) == made
        assert (sent.storage == 0) == (arithmetic != "chain")  # a cluster that does not know it refuses
    auto = headwater.Layer(2, 1, 4, storage="bf16", arithmetic="auto")
    assert (auto.to_proto().storage, auto.to_proto().arithmetic) == (0, worker_pb2.ARITHMETIC_AUTO)
    with pytest.raises(headwater.ProtocolError, match="^a layer of arithmetic 4"):  # nothing is made with it
        headwater.Layer.from_proto(auto.to_proto())
    assert headwater.Layer(2, 1, 4, storage="f16", arithmetic="auto") == headwater.Layer(2, 1, 4, storage="f16")
    with pytest.raises(ValueError, match="^arithmetic is 'tile', not one of chain, tiles, tiles-bf16, auto"):
        headwater.Layer(2, 1, 4, storage="bf16", arithmetic="tile")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^arithmetic tiles takes keys and values stored as bf16, not as f32"):
        headwater.Layer(2, 1, 4, arithmetic="tiles")


@pytest.mark.parametrize(
    ("storage", "want"),
    [("float32", "f32"), ("float16", "f16"), ("half", "f16"), (np.float16, "f16"), (np.dtype("float32"), "f32"), (ml_dtypes.bfloat16, "bf16"), (np.int8, "int8"), (types.SimpleNamespace(), None), ("f64", None), (np.float64, None), (None, None)],
)  # fmt: skip
def test_storage_has_the_names_of_numpy_and_torch(storage: object, want: str | None) -> None:
    if want is None:
        with pytest.raises(ValueError, match=r"^storage .* is none of f32, f16, bf16, int8, float32"):
            headwater.Layer(2, 1, 4, storage=storage)  # type: ignore[arg-type]
    else:
        assert headwater.Layer(2, 1, 4, storage=storage).storage == want  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"window_left": -5}, ValueError, "window_left is -5, not from -1 to"),
        ({"window_right": 1.0}, TypeError, "window_right is 1.0, not a whole number"),
        ({"n_kv_heads": 3}, ValueError, "n_kv_heads 3 does not divide n_heads 4"),
        ({"n_heads": 0}, ValueError, "n_heads is 0, not from 1 to"),
        ({"head_dim": "8"}, TypeError, "head_dim is '8', not a whole number"),
        ({"v_dim": True}, TypeError, "v_dim is True, not a whole number"),
        ({"scale": np.nan}, ValueError, "scale is nan"),
        ({"scale": "1"}, TypeError, "scale is '1', not a number"),
        ({"softcap": -1}, ValueError, "softcap is -1"),
        ({"causal": "no"}, TypeError, "causal is 'no'"),
        ({"sinks": [1, 2]}, ValueError, "sinks has 2 numbers, one for each of 4 heads"),
        ({"alibi_slopes": [1, 2, np.inf, 4]}, ValueError, r"alibi_slopes\[2\] is inf"),
        ({"alibi_slopes": 1.5}, TypeError, "alibi_slopes is a float, not numbers"),
        ({"sinks": np.ones((2, 2))}, ValueError, "sinks has 2 numbers"),
    ],
)
def test_a_wrong_layer_is_refused_by_name(wrong: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^{says}"):
        headwater.Layer(**{"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, **wrong})  # type: ignore[arg-type]


def test_ids_of_tokens() -> None:
    for ids in ([1, 2, 3], (1, 2, 3), np.array([[1, 2, 3]]), np.array([1, 2, 3], np.uint8), range(1, 4)):
        assert steps.token_ids("tokens", ids) == [1, 2, 3]
    assert steps.token_ids("tokens", []) == []
    for wrong in ([1.5], [[1], [2]], ["a"], [None], 7):
        with pytest.raises(TypeError, match="^tokens are of shape"):
            steps.token_ids("tokens", wrong)
    with pytest.raises(ValueError, match=r"^tokens\[1\] is 4294967296, not from 0"):
        steps.token_ids("tokens", [0, 1 << 32])


@pytest.mark.parametrize("wrong", [b"abc", "abc", "zz" * 16, bytes(17), 5])
def test_an_id_that_is_none_is_refused_here(wrong: object) -> None:
    with headwater.Client("127.0.0.1:1") as c:
        for do in (c.attach, c.find_session, c.drop_session):
            with pytest.raises((ValueError, TypeError), match="^session "):
                do(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"layers": []}, "layers: there is none"), ({"layers": [4]}, r"layers\[0\] is a int"), ({"ttl": -1}, "ttl is -1"), ({"workers": 1.5}, "workers is 1.5"), ({"model": "m"}, "model is a str"), ({"name": 3}, "name is a int"), ({"tenant": b""}, "tenant is a bytes"), ({"codec": "f8"}, "codec 'f8' is none of auto, raw, exact"), ({"tokens": [-1]}, r"tokens\[0\] is -1")],
)  # fmt: skip
def test_wrong_arguments_of_open_are_named(wrong: dict[str, object], says: str) -> None:
    with headwater.Client("127.0.0.1:1") as c, pytest.raises((ValueError, TypeError), match=f"^{says}"):
        c.open(**{"layers": [headwater.Layer(1, 1, 4)], **wrong})  # type: ignore[arg-type]


class Tensor:
    """As much of PyTorch's as a client looks at."""

    def __init__(self, values: np.ndarray, dtype: str) -> None:
        self.values, self.dtype = values, dtype

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def view(self, dtype: str) -> Tensor:
        return Tensor(self.values.view(dtype), dtype)

    def numpy(self) -> np.ndarray:
        if self.dtype == "bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


def test_tensors_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=Tensor, bfloat16="bfloat16", int16="int16"))
    want = np.array([[1.5, -2, 3e38]], np.float32).astype(ml_dtypes.bfloat16)
    got = arrays.as_array(Tensor(want, "bfloat16"))
    assert got.dtype == want.dtype and (got == want).all() and np.shares_memory(got, want)
    assert arrays.as_array(Tensor(np.ones(3, np.float32), "float32")).dtype == np.float32
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # which is not installed
    without = arrays.as_array(Tensor(want, "bfloat16"))
    assert without.dtype == np.float32 and (without == want.astype(np.float32)).all()
