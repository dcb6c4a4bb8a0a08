"""The client against a server that refuses, breaks and answers wrongly on demand. test/session has the rules of sessions."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import headwater
import plain
from headwater.v1 import session_pb2

LAYERS = [
    headwater.Layer(n_heads=6, n_kv_heads=3, head_dim=8, storage="bf16"),
    headwater.Layer(n_heads=2, n_kv_heads=1, head_dim=4, v_dim=6, window_left=5),
]


@pytest.fixture
def node() -> Iterator[plain.Node]:
    one = plain.Node()
    yield one
    one.stop()


@pytest.fixture
def session(node: plain.Node) -> Iterator[headwater.Session]:
    with headwater.Client(node.address, timeout=20) as c, c.open(LAYERS) as s:
        yield s
    assert not [t.name for t in threading.enumerate() if t.name.startswith("headwater-lane")]


def draw(rng: np.random.Generator, layer: headwater.Layer, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(
        rng.standard_normal((n, heads, d)).astype(np.float32)
        for heads, d in [(layer.n_heads, layer.head_dim), (layer.n_kv_heads, layer.head_dim), (layer.n_kv_heads, layer.v_dim)]
    )


def stored(layer: headwater.Layer, x: np.ndarray) -> np.ndarray:
    if layer.storage == "bf16":
        return (headwater.narrow_bfloat16(x).astype(np.uint32) << 16).view(np.float32)
    return x


def expect(layer: headwater.Layer, q, k, v, first: int, mask=None) -> tuple[np.ndarray, np.ndarray]:
    config, size = layer.to_proto(), layer.group_size
    parts = [
        plain.attend(q[:, g * size : (g + 1) * size], stored(layer, k)[:, g], stored(layer, v)[:, g], first, config, mask)
        for g in range(layer.n_kv_heads)
    ]
    return np.concatenate([p[0] for p in parts], 1), np.concatenate([p[1] for p in parts], 1)


def test_steps(session: headwater.Session) -> None:
    rng = np.random.default_rng(1)
    for i, layer in enumerate(LAYERS):
        q, k, v = draw(rng, layer, 12)
        at = 0
        for n in (5, 1, 1, 3):
            part = slice(at, at + n)
            context, lse = session.step(i, q[part], k[part], v[part])
            want = expect(layer, q[part], k[: at + n], v[: at + n], at)
            np.testing.assert_array_equal(context, want[0])
            np.testing.assert_array_equal(lse, want[1])
            at += n
        assert session.length(i) == at == 10
        # Append alone, attend alone at positions from before, and into given arrays.
        session.step(i, k=k[10:], v=v[10:])
        out, out_lse = np.empty((2, layer.n_heads, layer.v_dim), np.float32), np.empty((2, layer.n_heads), np.float32)
        for positions in (7, [7, 8], np.array([[7, 8]])):
            out[:] = 0
            got = session.step(i, q[7:9], positions=positions, out=out, out_lse=out_lse)
            assert got.context is out and got.lse is out_lse
            np.testing.assert_array_equal(out, expect(layer, q[7:9], k, v, 7)[0])
        # A draft of three whose tokens do not all see each other.
        mask = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], bool)
        dq, dk, dv = draw(rng, layer, 3)
        got = session.step(i, dq, dk, dv, mask=mask)
        want = expect(layer, dq, np.concatenate([k, dk]), np.concatenate([v, dv]), 12, mask)
        np.testing.assert_array_equal(got.context, want[0])
    assert len(session) == 15


def test_heads_first_and_other_types(session: headwater.Session) -> None:
    import ml_dtypes

    q, k, v = (x.astype(ml_dtypes.bfloat16) for x in draw(np.random.default_rng(2), LAYERS[0], 4))
    transposed = [headwater.heads_first(x) for x in (q, k, v)]
    got = session.step(0, *(headwater.tokens_first(x) for x in transposed))
    wide = [x.astype(np.float32) for x in (q, k, v)]
    np.testing.assert_array_equal(got.context, expect(LAYERS[0], *wide, 0)[0])


def test_large_steps_go_in_pieces(session: headwater.Session, node: plain.Node, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(np.random.default_rng(3), LAYERS[0], 11)
    monkeypatch.setattr("headwater.constants.STEP_BYTES", 3 * 4 * (6 * 17 + 3 * 16))
    seen: list[int] = []
    node.refuse = lambda r: seen.append(r.step.append)
    got = session.step(0, q, k, v)
    assert seen == [3, 3, 3, 2]
    np.testing.assert_array_equal(got.context, expect(LAYERS[0], q, k, v, 0)[0])
    np.testing.assert_array_equal(session.step(0, q, positions=0).context, got.context)
    # Where nothing attends, messages are smaller.
    monkeypatch.setattr("headwater.constants.APPEND_BYTES", 2 * 4 * 3 * 16)
    del seen[:]
    session.step(0, k=k[:5], v=v[:5])
    assert seen == [2, 2, 1]


def test_pin_and_drop(session: headwater.Session, node: plain.Node) -> None:
    session.pin()
    assert node.sessions[session.id].pinned
    child = session.fork()
    child.drop()
    with pytest.raises(headwater.HeadwaterError, match="is closed"):
        child.step(0, np.zeros((1, 6, 8), np.float32))
    assert child.id not in node.sessions


def test_what_can_not_be_taken_over_is_dropped(node: plain.Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with headwater.Client(node.address, timeout=20) as c:
        s = c.open(LAYERS)
        real = plain.Held.state

        def state(*a):
            told = real(*a)
            del told.layers[-1]
            return told

        monkeypatch.setattr(plain.Held, "state", state)
        with pytest.raises(headwater.ProtocolError):
            s.fork()
        with pytest.raises(headwater.ProtocolError):
            c.open(LAYERS)
        assert set(node.sessions) == {s.id}


@pytest.mark.parametrize("stops", [headwater.DeadlineError, KeyboardInterrupt])
def test_an_open_that_fails_leaves_no_session(node: plain.Node, monkeypatch: pytest.MonkeyPatch, stops: type[BaseException]) -> None:
    """The session is made, but the answer does not come: the client's time is over, or the user's patience."""
    made = node.create
    go_on = threading.Event()
    monkeypatch.setattr(node, "create", lambda r: (made(r), go_on.wait())[0])
    real = headwater.connection.Connection.call

    def interrupted(self, doing, method, *a, **named):
        if stops is KeyboardInterrupt and method.endswith("CreateSession"):
            try:
                real(self, doing, method, *a, **named)
            except headwater.DeadlineError:
                raise KeyboardInterrupt from None
        if method.endswith("DropSession"):
            go_on.set()
        return real(self, doing, method, *a, **named)

    monkeypatch.setattr(headwater.connection.Connection, "call", interrupted)
    with headwater.Client(node.address, timeout=0.5) as c, pytest.raises(stops):
        c.open(LAYERS)
    assert not node.sessions


def test_a_with_drops_what_it_opened(node: plain.Node) -> None:
    with headwater.Client(node.address, timeout=20) as c:
        with c.open(LAYERS) as s, s.fork() as draft:
            assert set(node.sessions) == {s.id, draft.id}
        assert not node.sessions
        with c.open(LAYERS, keep=True) as kept:
            with kept.fork(keep=True) as fork:
                pass
        assert set(node.sessions) == {kept.id, fork.id}
        with c.attach(kept.id.hex()):
            pass  # it was there before
        with c.attach(fork.receipt(), keep=False):
            pass
        assert set(node.sessions) == {kept.id}
        # Closed within, it is dropped once, unless it is to be kept. An error of the body is not hidden by one of the end.
        with c.open(LAYERS) as s:
            s.close()
            assert set(node.sessions) == {kept.id}
        with c.open(LAYERS) as let_go:
            let_go.keep = True
            let_go.close()
        with pytest.raises(ZeroDivisionError), c.open(LAYERS) as s:
            node.sessions.pop(s.id)
            node.drop = None
            1 / 0
        assert set(node.sessions) == {kept.id, let_go.id}


def test_batches(session: headwater.Session) -> None:
    rng = np.random.default_rng(5)
    sessions = [session, session.fork(), session.fork()]
    steps, wants = [], []
    for n, s in enumerate(sessions):
        for i, layer in enumerate(LAYERS):
            q, k, v = draw(rng, layer, 3)
            steps += [headwater.Step(s, i, q[:2], k[:2], v[:2]), headwater.Step(s, i, q[2:], k[2:], v[2:])]
            wants += [expect(layer, q[:2], k[:2], v[:2], 0)[0], expect(layer, q[2:], k, v, 2)[0]]
    for got, want in zip(headwater.batch(steps), wants):
        np.testing.assert_array_equal(got.context, want)
    # One that fails leaves the others done.
    q, k, v = draw(rng, LAYERS[0], 1)
    wrong = headwater.Step(sessions[1], 1, q, k, v)
    with pytest.raises(ValueError, match=r"^q has shape \[1, 6, 8\], not \[tokens, 2, 4\]$"):
        headwater.batch([wrong, headwater.Step(session, 0, q, k, v)])
    assert session.length(0) in (3, 4)


def test_rows_of_a_batch(session: headwater.Session) -> None:
    rng = np.random.default_rng(15)
    layer, sessions = LAYERS[0], [session, session.fork(), session.fork()]
    lengths = (3, 1, 2)
    rows = [draw(rng, layer, n) for n in lengths]
    got = headwater.step_many(sessions, 0, *([r[part] for r in rows] for part in range(3)))
    for row, found in zip(rows, got):
        np.testing.assert_array_equal(found.context, expect(layer, *row, 0)[0])
    # Rows of equal lengths, as one array in the order of models and in one output.
    new = [np.stack([draw(rng, layer, 1)[part] for _ in sessions]) for part in range(3)]
    turned = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in new]
    out, out_lse = np.zeros((3, 1, 6, 8), np.float32), np.zeros((3, 1, 6), np.float32)
    headwater.step_many(sessions, 0, *turned, out=out, out_lse=out_lse)
    for i, (row, n) in enumerate(zip(rows, lengths)):
        k, v = (np.concatenate([row[part], new[part][i]]) for part in (1, 2))
        want = expect(layer, new[0][i], k, v, n)
        np.testing.assert_array_equal(out[i], want[0])
        np.testing.assert_array_equal(out_lse[i], want[1])
    # A row that only appends, and one that only attends.
    q, k, v = draw(rng, layer, 1)
    appended, attended = headwater.step_many(sessions[:2], 0, [None, q], [k, None], [v, None], [None, 0])
    assert appended.context.shape == (0, 6, 8) and attended.context.shape == (1, 6, 8)
    assert [s.length(0) for s in sessions] == [5, 2, 3]
    with pytest.raises(ValueError, match="^k has 2 rows for 3 sessions$"):
        headwater.step_many(sessions, 0, new[0], new[1][:2], new[2])
    with pytest.raises(ValueError, match=r"^sessions\[2\] is sessions\[0\] again"):
        headwater.step_many([session, sessions[1], session], 0, *new)
    with pytest.raises(TypeError, match=r"^sessions\[1\] is a NoneType"):
        headwater.step_many([session, None], 0, new[0][:2], new[1][:2], new[2][:2])


def test_what_is_lost_on_the_way_is_sent_again(session: headwater.Session, node: plain.Node) -> None:
    q, k, v = draw(np.random.default_rng(6), LAYERS[0], 2)
    count = [0]

    def refuse(r) -> None:
        count[0] += 1
        if count[0] == 1:
            raise plain.Refusal(session_pb2.SESSION_PROBLEM_BUSY)
        if count[0] == 2:
            raise RuntimeError("the lane breaks")

    node.refuse = refuse
    got = session.step(0, q, k, v)
    assert count[0] == 3
    np.testing.assert_array_equal(got.context, expect(LAYERS[0], q, k, v, 0)[0])


def test_a_step_that_stays_busy_says_when_to_try_again(session: headwater.Session, node: plain.Node) -> None:
    def refuse(r) -> None:
        raise plain.Refusal(session_pb2.SESSION_PROBLEM_BUSY, retry_after_millis=1500)

    node.refuse = refuse
    with pytest.raises(headwater.BusyError) as busy:
        session.step(0, *draw(np.random.default_rng(6), LAYERS[0], 2))
    assert busy.value.retry_after == 1.5
    node.refuse = None


def test_a_step_that_can_not_begin_is_named_a_step(session: headwater.Session, node: plain.Node) -> None:
    """After a failed step, the next one has to take back first what may be left of it."""
    q, k, v = draw(np.random.default_rng(12), LAYERS[0], 1)

    def refuse(r) -> None:
        raise plain.Refusal(session_pb2.SESSION_PROBLEM_LOST)

    node.refuse = refuse
    with pytest.raises(headwater.LostError):
        session.step(0, q, k, v)
    del node.sessions[session.id]
    with pytest.raises(headwater.UnknownSessionError, match=f"^step layer 0 of session {session.id.hex()}: "):
        session.step(0, q, k, v)
    session.close()


def test_wrong_arguments_change_nothing(session: headwater.Session) -> None:
    q, k, v = draw(np.random.default_rng(8), LAYERS[0], 2)
    for match, arguments in {
        "nothing is appended": {},
        "k is given without v": {"k": k},
        "v is given without k": {"v": v},
        "v has 1 tokens": {"k": k, "v": v[:1]},
        "q has shape": {"q": q[0]},
        "positions do not follow": {"q": q, "k": k, "v": v, "positions": [0, 2]},
        "2 queries from position 1": {"q": q, "k": k, "v": v, "positions": 1},
        "2 queries from position -2": {"q": q},
        "a mask of shape": {"q": q, "k": k, "v": v, "mask": np.ones((3, 2))},
        "tokens: 1 ids for 2 tokens": {"k": k, "v": v, "tokens": [1]},
        r"tokens\[1\] is -3, not from 0": {"k": k, "v": v, "tokens": [1, -3]},
        "out has shape": {"q": q, "k": k, "v": v, "out": np.empty((2, 6, 7), np.float32)},
    }.items():
        with pytest.raises(ValueError, match=match):
            session.step(0, **arguments)
    with pytest.raises(ValueError, match="^layer is 2, not from 0 to 1$"):
        session.step(2, q)
    for name, wrong in {"q": {"q": q.astype(np.float64)}, "k": {"k": k.astype(int), "v": v}, "v": {"k": k, "v": v.astype(complex)}}.items():
        with pytest.raises(TypeError, match=f"^{name} is an array of"):
            session.step(0, **wrong)
    with pytest.raises(ValueError, match="tokens_first"):
        session.step(0, headwater.heads_first(q))
    with pytest.raises(OverflowError):
        session.step(0, k=np.full_like(k, 3.4e38), v=v)
    assert session.length(0) == 0


def test_a_receipt_goes_to_another_process(node: plain.Node) -> None:
    q, k, v = draw(np.random.default_rng(9), LAYERS[0], 3)
    with headwater.Client(node.address, timeout=20) as a, headwater.Client(node.address, timeout=20) as b:
        s = a.open(LAYERS, name="mine")
        s.step(0, k=k[:2], v=v[:2])
        receipt = headwater.Receipt.from_json(s.receipt().to_json())
        assert receipt == s.receipt()
        taken = b.attach(receipt)
        assert taken.layers == tuple(LAYERS) and taken.receipt() == receipt
        got = taken.step(0, q[2:], k[2:], v[2:])
        np.testing.assert_array_equal(got.context, expect(LAYERS[0], q[2:], k, v, 2)[0])
        assert len(b.sessions().sessions) == 1
        b.drop_session(s.id)
        with pytest.raises(headwater.UnknownSessionError, match="no worker holds it"):
            a.attach(s.id)


def test_what_a_silent_worker_may_hold_is_not_unknown(node: plain.Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with headwater.Client(node.address, timeout=20) as c:
        s = c.open(LAYERS)
        for name in ("w3", "w4"):
            node.silent.append(session_pb2.SilentWorker(worker=name, address="10.0.0.3:7601", error="connection refused"))
        assert c.find_session(s.id).session == s.id  # whole without them
        assert [w.worker for w in c.sessions().silent] == ["w3", "w4"]
        real = plain.Held.state

        def state(*a):
            told = real(*a)
            del told.holders[0].layers[0]
            return told

        monkeypatch.setattr(plain.Held, "state", state)
        lost = r"; lost: 3 shards \(layer 0 groups 0-2\)"
        for id, what in ((s.id, "the rest of the session"), (bytes(16), "the session")):
            for do in (c.find_session, c.attach):
                with pytest.raises(headwater.LostError, match=f": w3: it did not answer, and may hold {what}: connection refused; nor did w4{lost if any(id) else ''}$") as e:
                    do(id)
                assert e.value.holder == "w3"


def test_wrong_answers_are_errors(node: plain.Node, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(np.random.default_rng(10), LAYERS[0], 1)
    with headwater.Client(node.address, timeout=20) as c:
        s = c.open(LAYERS)
        real = plain.Held.step
        monkeypatch.setattr(plain.Held, "step", lambda *a: (real(*a)[0], bytes(12)))
        with pytest.raises(headwater.ProtocolError, match="12 bytes for 6 rows of 8"):
            s.step(0, q, k, v)
        monkeypatch.setattr(plain.Held, "step", lambda *a: (session_pb2.StepResult(length=9), b""))
        with pytest.raises(headwater.ProtocolError, match="length 9 and 0 hashes"):
            s.step(0, q, k, v)
        assert s.length(0) == 0


def test_a_call_that_takes_too_long_ends(node: plain.Node) -> None:
    q, k, v = draw(np.random.default_rng(11), LAYERS[0], 1)
    go_on = threading.Event()
    node.refuse = lambda r: go_on.wait() and None
    with headwater.Client(node.address, timeout=0.2) as c:
        s = c.open(LAYERS)
        with pytest.raises(TimeoutError, match="has not answered in time") as e:
            s.step(0, q, k, v)
        assert isinstance(e.value, headwater.HeadwaterError)
        go_on.set()
        with node.lock, pytest.raises(TimeoutError) as e:
            s.fork()
        assert isinstance(e.value, headwater.HeadwaterError)
