"""Does the client's commands of test/session's scripts with the Python client.

It is started with a coordinator's address and "relayed" or "direct", reads a command in JSON on each line, and answers each with
a line of JSON: {"out": …}, or {"error": …} for what is no error of a session."""

from __future__ import annotations

import binascii
import json
import struct
import sys
from typing import Any

import numpy as np

import headwater
from headwater.v1 import session_pb2

QUERY, KEY, VALUE = range(3)


def rows(seed: int, kind: int, layer: int, position: int, n: int, heads: int, dim: int) -> Any:
    """[n, heads, dim] in −0.5 to 0.5, by internal/testkit/script's rule."""
    out = np.empty((n, heads * dim), np.float32)
    for i in range(n):
        x = binascii.crc32(struct.pack("<4I", seed, kind, layer, position + i))
        for j in range(heads * dim):
            x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
            out[i, j] = np.float32(x >> 8) / np.float32(1 << 24) - np.float32(0.5)
    return out.reshape(n, heads, dim)


def reason(error: headwater.HeadwaterError) -> str:
    if isinstance(error, headwater.DeadlineError):
        return "error: deadline"
    if isinstance(error, headwater.SessionError):
        return "error: " + session_pb2.SessionProblem.Name(error.problem).removeprefix("SESSION_PROBLEM_").lower()
    return f"error: {error}"


KINDS = {headwater.TryAgainError: "try again", headwater.GoneError: "gone", headwater.RefusedError: "refused"}
ARGUMENT = (ValueError, TypeError, OverflowError)  # what Python has for an argument that is refused before anyone is asked


def why(error: BaseException | None) -> str:
    """The kind of an error, whether nobody answers, and its text."""
    kinds = [name for kind, name in KINDS.items() if isinstance(error, kind)]
    if isinstance(error, ARGUMENT) and not isinstance(error, headwater.HeadwaterError):
        kinds.append("refused")
    assert len(kinds) < 2, kinds
    kind = kinds[0] if kinds else "none"
    if isinstance(error, headwater.UnreachableError):
        kind += ", unreachable"
    return f"{kind}\n{error}"


def lost(error: BaseException | None, which: bool) -> str:
    """Which shards an error says are lost: how many groups of each layer, or which."""
    if not isinstance(error, headwater.SessionError) or not error.lost:
        return "nothing"
    told = [(one, " ".join(map(str, one.groups)) if which else len(one.groups)) for one in error.lost]
    return "\n".join(f"layer {one.layer}: groups {groups}, positions {one.positions}" for one, groups in told)


def tokens(args: dict[str, str]) -> list[int]:
    if "tokens" not in args:
        return []
    first, count = map(int, args["tokens"].split("+"))
    return list(range(first, first + count))


class Driver:
    def __init__(self, address: str, direct: bool) -> None:
        self.address, self.direct = address, direct
        self.clients = [headwater.Client(address, direct=direct)]
        self.sessions: dict[str, headwater.Session] = {}
        self.receipts: dict[str, headwater.Receipt] = {}
        self.failed: BaseException | None = None  # the newest error

    def lengths(self, session: headwater.Session) -> str:
        return "length " + " ".join(str(session.length(layer)) for layer in range(len(session.layers)))

    def do(self, verb: str, name: str, args: dict[str, str]) -> str:
        if verb == "open":
            number = {key: int(args.get(key, otherwise)) for key, otherwise in (("layers", 1), ("heads", 4), ("kv", 2), ("dim", 8))}
            layer = headwater.Layer(
                number["heads"],
                number["kv"],
                number["dim"],
                int(args.get("vdim", number["dim"])),
                storage=args.get("storage", "f32"),  # type: ignore[arg-type]
                window_left=int(args["window"]) if "window" in args else None,
            )
            ttl = float(args.get("ttl", "0s").removesuffix("s"))
            stripes = int(args.get("stripes", 0))
            codec = args.get("codec", "auto")
            session = self.clients[0].open(
                [layer] * number["layers"],
                tokens=tokens(args),
                tenant=args.get("tenant", ""),
                name=name,
                ttl=ttl,
                stripes=stripes,
                codec=codec,  # type: ignore[arg-type]
            )
            self.sessions[name] = session
            return self.lengths(session)
        if verb == "why":
            return why(self.failed)
        if verb == "lost":
            return lost(self.failed, "groups" in args)
        if verb == "attach" and "id" in args:
            return self.attach(args["id"], args)
        session = self.sessions[name]
        session.timeout = None
        if "deadline" in args:
            session.timeout = int(args["deadline"].removesuffix("ms")) / 1000
        if verb == "step":
            return self.step(session, args)
        if verb == "fork":
            child = session.fork(int(args["at"]) if "at" in args else None)
            self.sessions[args["as"]] = child
            return self.lengths(child)
        if verb == "recover":
            made = self.recover(session, int(args.get("seed", 1)))
            self.sessions[args["as"]] = made
            return self.lengths(made)
        if verb == "truncate":
            session.truncate(int(args.get("to", 0)))
        elif verb == "receipt":
            self.receipts[args["as"]] = session.receipt()
        elif verb == "attach":
            return self.attach(self.receipts[args["receipt"]] if "receipt" in args else session.id, args)
        elif verb == "pin":
            session.pin()
        elif verb == "drop":
            session.drop()
            return "done"
        else:
            raise KeyError(verb)
        return self.lengths(session)

    def recover(self, session: headwater.Session, seed: int) -> headwater.Session:
        """A session of the rows that a seed gives, in the place of one that is lost."""

        def kept(layer: int, start: int, count: int) -> tuple[Any, Any]:
            shape = session.layers[layer]
            return (
                rows(seed, KEY, layer, start, count, shape.n_kv_heads, shape.head_dim),
                rows(seed, VALUE, layer, start, count, shape.n_kv_heads, shape.v_dim or shape.head_dim),
            )

        return session.recover(kept)

    def attach(self, to: str | bytes | headwater.Receipt, args: dict[str, str]) -> str:
        other = headwater.Client(self.address, direct=self.direct)
        self.clients.append(other)
        self.sessions[args["as"]] = other.attach(to)
        return self.lengths(self.sessions[args["as"]])

    def step(self, session: headwater.Session, args: dict[str, str]) -> str:
        layer, appended, attend, seed = (int(args.get(key, otherwise)) for key, otherwise in (("layer", 0), ("append", 0), ("attend", 0), ("seed", 1)))
        shape, length = session.layers[layer], session.length(layer)
        q = k = v = position = mask = None
        if appended:
            k = rows(seed, KEY, layer, length, appended, shape.n_kv_heads, shape.head_dim)
            v = rows(seed, VALUE, layer, length, appended, shape.n_kv_heads, shape.v_dim or shape.head_dim)
        if attend:
            first = length + appended - attend
            if "from" in args:
                first = position = int(args["from"])
            q = rows(seed, QUERY, layer, first, attend, shape.n_heads, shape.head_dim)
        if "fill" in args:
            for array in (q, k, v):
                if array is not None:
                    array[:] = float(args["fill"])
        if "misshapen" in args:
            k = k[..., 1:]
        if args.get("tree") == "diagonal":
            mask = np.zeros((attend, appended), bool)
            for i in range(attend):
                mask[i, appended - attend + i] = True
        got = session.step(layer, q, k, v, position, mask=mask, tokens=tokens(args) or None)
        out = self.lengths(session)
        if attend:
            out += f"\ncontext {binascii.crc32(got.context.tobytes()):08x}, lse {binascii.crc32(got.lse.tobytes()):08x}"
        return out


def main() -> None:
    driver = Driver(sys.argv[1], sys.argv[2] == "direct")
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"out": driver.do(command["verb"], command.get("name", ""), command.get("args") or {})}
        except headwater.HeadwaterError as e:
            driver.failed = e
            answer = {"out": reason(e)}
        except ARGUMENT as e:
            driver.failed = e
            answer = {"out": f"error: {e}"}
        except Exception as e:
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer), flush=True)
    for client in driver.clients:
        client.close()


if __name__ == "__main__":
    main()
