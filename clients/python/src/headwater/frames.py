"""Frames: how contexts come back narrowed or compressed, as docs/wire.md has them byte by byte. This reads them; workers write them.

Of a frame nothing is decoded before its checksum is right, and nothing is allocated beyond what the caller has asked for. Planes
of the methods that are common are decoded by NumPy; huff0 and s2, which are rare, symbol by symbol.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .arrays import Array, Floats

Bytes = npt.NDArray[np.uint8]

EXACT, BF16, F16, INT8 = 1, 2, 3, 4

_HEAD = struct.Struct("<4sHBBIIIIQ")
_SIZE = {EXACT: 4, BF16: 2, F16: 2, INT8: 1}
_BLOCK = 1 << 15
_U64 = (1 << 64) - 1


class FrameError(ValueError):
    """Bytes that are no frame, or not the one that was asked for."""


def decode(frame: memoryview, codec: int, tokens: int, heads: int, v_dim: int) -> tuple[Floats, Floats]:
    """The context [tokens, heads, v_dim] and the LSE [tokens, heads] of a frame, which must be of that codec and these sizes."""
    rows = tokens * heads
    if len(frame) < _HEAD.size + 4 * rows + 8:
        raise FrameError(f"a frame of {len(frame)} bytes is cut off")
    magic, version, its, zero, _, *sizes, coded = _HEAD.unpack_from(frame)
    if magic != b"HWcx" or version not in (1, 2) or zero != 0:
        raise FrameError(f"it begins with {bytes(frame[:8]).hex()}, as no frame of version 1 or 2 does")
    if its != codec or sizes != [tokens, heads, v_dim]:
        raise FrameError(f"a frame of {sizes} in codec {its}, not of {[tokens, heads, v_dim]} in {codec}")
    if len(frame) != _HEAD.size + 4 * rows + coded + 8:
        raise FrameError(f"a frame of {len(frame)} bytes says that its context has {coded}")
    if xxh3(frame[:-8]) != int.from_bytes(frame[-8:], "little"):
        raise FrameError("its checksum is wrong")
    lse = np.frombuffer(frame, "<f4", rows, _HEAD.size).reshape(tokens, heads)
    rest = frame[_HEAD.size + 4 * rows : -8]
    n, step, scales = rows * v_dim, _BLOCK, np.empty(0, np.float32)
    if codec == INT8:
        if len(rest) < 4 * rows:
            raise FrameError("it ends within its scales")
        scales, rest, step = np.frombuffer(rest, "<f4", rows), rest[4 * rows :], _BLOCK // v_dim * v_dim
        if not (np.isfinite(scales) & (scales >= 0) & (scales <= np.finfo(np.float32).max / 127)).all():
            raise FrameError("a row has a scale that is not one of int8")
    context = np.empty(n, np.float32)
    for at in range(0, n, step):
        size = min(step, n - at)
        planes, rest = _planes(rest, _SIZE[codec], size, v_dim, version)
        context[at : at + size] = _join(planes, codec, version)
    if len(rest) != 0:
        raise FrameError(f"{len(rest)} bytes follow its last block")
    if codec == INT8:
        context.reshape(rows, v_dim)[:] *= scales[:, None]
    return context.reshape(tokens, heads, v_dim), lse


def _join(planes: Sequence[Bytes], codec: int, version: int) -> Array:
    """The elements of a block whose bytes are in planes."""
    if codec == INT8:
        if not planes[0].all():
            raise FrameError("code -128 is not one of int8")
        return planes[0].astype(np.int16) - 128
    bits = np.stack(planes, axis=1).view("<u4" if codec == EXACT else "<u2").reshape(-1)
    if version > 1:
        bits = (bits >> 1) | (bits << (8 * bits.itemsize - 1))
    if codec == EXACT:
        return bits.view(np.float32)
    if codec == F16:
        return bits.view(np.float16)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _planes(data: memoryview, count: int, n: int, v_dim: int, version: int) -> tuple[list[Bytes], memoryview]:
    """The planes of a block of n elements, and what follows it."""
    if len(data) < 4 * count:
        raise FrameError("it ends within a block's descriptors")
    descriptors, data = struct.unpack_from(f"<{count}I", data), data[4 * count :]
    planes = []
    for descriptor in descriptors:
        method, length = descriptor >> 28, descriptor & (1 << 28) - 1
        if length > len(data):
            raise FrameError(f"a plane of {length} bytes has {len(data)}")
        coded, data = data[:length], data[length:]
        if method == 0 and length == n:
            planes.append(np.frombuffer(coded, np.uint8))
        elif method == 1 and length == 1:
            planes.append(np.full(n, coded[0], np.uint8))
        elif method in (2, 3) and length < n:
            try:
                plain = _huff0(bytes(coded), n) if method == 2 else _s2(bytes(coded), n)
            except IndexError as e:
                raise FrameError(f"a plane of method {method} ends early") from e
            planes.append(np.frombuffer(plain, np.uint8))
        elif method == 4 and length < n and version > 1:
            planes.append(_levels(np.frombuffer(coded, np.uint8), n, v_dim))
        else:
            raise FrameError(f"method {method} with {length} bytes can not code a plane of {n}")
    return planes, data


def _fields(packed: Bytes, n: int, width: int) -> Bytes:
    """The first n fields of width bits each, the lowest bits of the first byte first."""
    eight = np.zeros(((n + 7) // 8, 8), np.uint8)  # eight fields are so many bytes
    eight[:, :width] = packed.reshape(-1, width)
    words, fields = eight.view("<u8")[:, 0], np.empty((len(eight), 8), np.uint8)
    for i in range(8):
        fields[:, i] = (words >> np.uint64(i * width)) & np.uint64((1 << width) - 1)
    return fields.reshape(-1)[:n]


def _packed(n: int, width: int) -> int:
    return (n + 7) // 8 * width


def _levels(coded: Bytes, n: int, row: int) -> Bytes:
    """A plane by the method levels."""
    if len(coded) < 6:
        raise FrameError(f"{len(coded)} bytes are too few for levels")
    low, rows, count = int(coded[0]) & 7, bool(coded[0] & 0x80), int(coded[1])
    if coded[0] & 0x78 or not 1 <= count <= 4 or len(coded) < 2 + 4 * count:
        raise FrameError(f"levels begin with {bytes(coded[:2]).hex()}")
    sizes, total, heads, head = [n], _packed(n, low), [], coded[2 : 2 + 4 * count].tobytes()
    for i in range(count):
        width, base, escapes = struct.unpack_from("<BBH", head, 4 * i)
        last = i == count - 1
        if not 1 <= width <= 8 or escapes > sizes[i] or sizes[i] == 0 or last and escapes or width == 8 and (base or not last):
            raise FrameError(f"level {i} of {count} with width {width}, base {base} and {escapes} escapes does not fit")
        total += sizes[i] if width == 8 else _packed(sizes[i], width)
        heads.append((width, base))
        sizes.append(escapes)
    body = coded[2 + 4 * count :]
    if len(body) != total:
        raise FrameError(f"levels of {total} bytes have {len(body)}")
    lows, at, lists = None, _packed(n, low), []
    if low:
        lows = _fields(body[:at], n, low)
    for size, (width, _) in zip(sizes, heads):
        length = size if width == 8 else _packed(size, width)
        part, at = body[at : at + length], at + length
        lists.append(part if width == 8 else _fields(part, size, width))
    inner = np.empty(0, np.uint8)
    for codes, (width, base), escapes in zip(reversed(lists), reversed(heads), reversed(sizes[1:])):
        plane = np.add(codes, np.uint8(base), dtype=np.uint8)
        if width < 8:
            escaped = codes == (1 << width) - 1
            if np.count_nonzero(escaped) != escapes:
                raise FrameError(f"a level has {np.count_nonzero(escaped)} escapes of {escapes}")
            plane[escaped] = inner
        inner = plane
    plane = inner
    if lows is not None:
        plane = np.left_shift(plane, np.uint8(low), dtype=np.uint8) | lows
    if rows:
        # Each byte is less the one a row before, and more by 128, but for the first row's.
        padded = np.zeros(-(-n // row) * row, np.uint8)
        padded[:n] = plane
        padded[row:] -= np.uint8(128)
        plane = np.add.accumulate(padded.reshape(-1, row), axis=0, dtype=np.uint8).reshape(-1)[:n]
    return plane


def _s2(coded: bytes, n: int) -> bytes:
    """An s2 block of n bytes."""
    size = shift = at = 0
    while True:
        b, at = coded[at], at + 1
        size |= (b & 0x7F) << shift
        shift += 7
        if b < 0x80 or shift > 35:
            break
    if size != n:
        raise FrameError(f"an s2 block is of {size} bytes, not {n}")
    out = bytearray()
    offset = 0
    while at < len(coded):
        tag, at = coded[at], at + 1
        kind, length = tag & 3, tag >> 2
        if kind == 0:
            if length >= 60:
                more = length - 59
                length, at = int.from_bytes(coded[at : at + more], "little"), at + more
            length += 1
            if length > len(coded) - at or length > n - len(out):
                raise FrameError("an s2 block has too long a literal")
            out += coded[at : at + length]
            at += length
            continue
        if kind == 1:
            length &= 7
            near, at = (tag & 0xE0) << 3 | coded[at], at + 1
            if near:
                offset = near
            elif length >= 5:  # the offset before, and a length of its own
                more = length - 4
                length, at = int.from_bytes(coded[at : at + more], "little") + (4, 1 << 8, 1 << 16)[more - 1], at + more
            length += 4
        else:
            more = 2 * kind - 2 if kind == 2 else 4
            offset, at, length = int.from_bytes(coded[at : at + more], "little"), at + more, length + 1
        if not 0 < offset <= len(out) or length > n - len(out) or at > len(coded):
            raise FrameError("an s2 block copies what is not there")
        # What is copied may overlap what it makes.
        part = bytes(out[-offset:][:length])
        out += (part * (length // len(part) + 1))[:length]
    if len(out) != n:
        raise FrameError(f"an s2 block gives {len(out)} bytes, not {n}")
    return bytes(out)


def _huff0(coded: bytes, n: int) -> bytes:
    """A huff0 block of four streams: a table of weights, three lengths, the streams, each read from its end."""
    head, coded = coded[0], coded[1:]
    if head >= 128:
        count = head - 127
        size = (count + 1) // 2
        weights = [w for b in coded[:size] for w in (b >> 4, b & 15)][:count]
    else:
        size = head
        weights = _weights(coded[:size])
    coded = coded[size:]
    total = sum(1 << w >> 1 for w in weights)
    if not total or max(weights) > 11:
        raise FrameError("huff0 weights that are not any")
    log = total.bit_length()
    rest = (1 << log) - total
    if log > 11 or rest & (rest - 1):
        raise FrameError("huff0 weights do not fill their table")
    weights.append(rest.bit_length())
    symbols, lengths = np.empty(1 << log, np.uint8), np.empty(1 << log, np.uint8)
    at = 0
    for weight in range(1, log + 1):
        for symbol, w in enumerate(weights):
            if w == weight:
                size = 1 << w >> 1
                symbols[at : at + size], lengths[at : at + size] = symbol, log + 1 - w
                at += size
    if len(coded) < 6:
        raise FrameError("huff0 streams end early")
    first = list(struct.unpack_from("<3H", coded))
    coded, each = coded[6:], (n + 3) // 4
    sizes = [*first, len(coded) - sum(first)]
    if sizes[3] < 0 or n <= 3 * each:
        raise FrameError("huff0 streams end early")
    out = bytearray()
    for i, size in enumerate(sizes):
        out += _stream(coded[:size], each if i < 3 else n - 3 * each, symbols, lengths, log)
        coded = coded[size:]
    return bytes(out)


def _stream(coded: bytes, n: int, symbols: Bytes, lengths: Bytes, log: int) -> bytes:
    """n symbols of a huff0 stream. What is read at each bit is looked up at once, and then followed from the last bit."""
    if not coded or not coded[-1]:
        raise FrameError("a huff0 stream without an end")
    at = 8 * (len(coded) - 1) + coded[-1].bit_length() - 1
    bits = np.concatenate([np.zeros(log, np.uint8), np.unpackbits(np.frombuffer(coded, np.uint8), bitorder="little")[:at]])
    index = np.zeros(at + 1, np.uint16)
    for j in range(log):
        index |= bits[log - 1 - j : log + at - j].astype(np.uint16) << (log - 1 - j)
    symbol, length = symbols[index].tobytes(), lengths[index].tolist()
    out = bytearray(n)
    for i in range(n):
        if at <= 0:
            raise FrameError("a huff0 stream ends early")
        out[i] = symbol[at]
        at -= length[at]
    if at != 0:
        raise FrameError("a huff0 stream does not end with its symbols")
    return bytes(out)


def _weights(coded: bytes) -> list[int]:
    """The weights of a huff0 table that are coded by FSE: probabilities, then states read from the end."""
    if not coded:
        raise FrameError("huff0 weights of no bytes")
    value, at = int.from_bytes(coded, "little"), 0

    def take(width: int) -> int:
        nonlocal at
        at += width
        return value >> at - width & (1 << width) - 1

    log = take(4) + 5
    if log > 6:
        raise FrameError("huff0 weights with too large a table")
    counts: list[int] = []
    remaining, threshold, width = (1 << log) + 1, 1 << log, log + 1
    while remaining > 1 and len(counts) < 16:
        most = 2 * threshold - 1 - remaining
        low = value >> at & threshold - 1
        if low < most:
            count, at = low, at + width - 1
        else:
            count = value >> at & 2 * threshold - 1
            at += width
            if count >= threshold:
                count -= most
        count -= 1
        remaining -= abs(count)
        counts.append(count)
        while count == 0:  # how many zeros follow
            more = take(2)
            counts += [0] * more
            if more < 3:
                break
        while remaining < threshold and width > 1:
            width, threshold = width - 1, threshold >> 1
    if remaining != 1 or len(counts) > 16 or (at + 7) // 8 >= len(coded):
        raise FrameError("huff0 weights with probabilities that do not add up")
    size = 1 << log
    table, high = [0] * size, size - 1
    for symbol, count in enumerate(counts):
        if count < 0:
            table[high], high = symbol, high - 1
    place = 0
    for symbol, count in enumerate(counts):
        for _ in range(count):
            table[place] = symbol
            place = (place + (size >> 1) + (size >> 3) + 3) & size - 1
            while place > high:
                place = (place + (size >> 1) + (size >> 3) + 3) & size - 1
    seen = [abs(count) for count in counts]
    entries = []
    for symbol in table:
        x = seen[symbol]
        seen[symbol] += 1
        width = log - (x.bit_length() - 1)
        entries.append((symbol, width, (x << width) - size))
    stream = coded[(at + 7) // 8 :]
    if not stream[-1]:
        raise FrameError("huff0 weights without an end")
    value, left = int.from_bytes(stream, "little"), 8 * (len(stream) - 1) + stream[-1].bit_length() - 1

    def back(width: int) -> int:
        nonlocal left
        left -= width
        return (value >> left if left >= 0 else value << -left) & (1 << width) - 1

    states = [back(log), back(log)]
    if left < 0:
        raise FrameError("huff0 weights end early")
    weights: list[int] = []
    turn = 0
    while len(weights) < 255:
        symbol, width, base = entries[states[turn]]
        weights.append(symbol)
        states[turn] = base + back(width)
        turn = 1 - turn
        if left < 0:
            weights.append(entries[states[turn]][0])
            break
    return weights


# XXH3 of 64 bits with seed 0, for what is longer than 16 bytes: the specification is that of github.com/Cyan4973/xxHash.

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def _secret(at: int) -> int:
    return int.from_bytes(_SECRET[at : at + 8], "little")


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product ^ product >> 64) & _U64


def _avalanche(h: int) -> int:
    h = (h ^ h >> 37) * 0x165667919E3779F9 & _U64
    return h ^ h >> 32


def xxh3(data: memoryview) -> int:
    """The hash of more than 16 bytes."""
    n = len(data)
    if n > 240:
        return _long(data)

    def mix(at: int, secret: int) -> int:
        a, b = struct.unpack_from("<2Q", data, at)
        return _fold(a ^ _secret(secret), b ^ _secret(secret + 8))

    h = n * _P64[0]
    if n <= 128:
        for i in range((n - 1) // 32, -1, -1):
            h += mix(16 * i, 32 * i) + mix(n - 16 * i - 16, 32 * i + 16)
        return _avalanche(h & _U64)
    for i in range(8):
        h += mix(16 * i, 16 * i)
    h = _avalanche(h & _U64)
    for i in range(8, n // 16):
        h += mix(16 * i, 16 * (i - 8) + 3)
    return _avalanche(h + mix(n - 16, 119) & _U64)


def _lanes(data: Bytes, at: int, secret: int, stripes: int) -> npt.NDArray[np.uint64]:
    """What so many stripes of 64 bytes add to the 8 lanes, [..., 8], for data [..., bytes]."""
    keys = np.lib.stride_tricks.sliding_window_view(_SECRET_BYTES[secret : secret + 8 * stripes + 56], 64)[::8]
    values = np.ascontiguousarray(data[..., at : at + 64 * stripes]).view("<u8").reshape(*data.shape[:-1], stripes, 8)
    keyed = values ^ np.ascontiguousarray(keys).view("<u8")
    added = (keyed & np.uint64(0xFFFFFFFF)) * (keyed >> np.uint64(32)) + values[..., [1, 0, 3, 2, 5, 4, 7, 6]]
    total: npt.NDArray[np.uint64] = np.add.reduce(added, axis=-2, dtype=np.uint64)
    return total


_SECRET_BYTES = np.frombuffer(_SECRET, np.uint8)


def _long(data: memoryview) -> int:
    n = len(data)
    bytes_ = np.frombuffer(data, np.uint8)
    lanes = np.array([_P32[2], *_P64[:4], _P32[1], _P64[4], _P32[0]], np.uint64)
    blocks = (n - 1) // 1024
    scramble, prime = np.frombuffer(_SECRET, "<u8", 8, 128), np.uint64(_P32[0])
    for added in _lanes(bytes_[: 1024 * blocks].reshape(blocks, 1024), 0, 0, 16):
        lanes = lanes + added
        lanes = (lanes ^ lanes >> np.uint64(47) ^ scramble) * prime
    at = 1024 * blocks
    stripes = (n - 1 - at) // 64
    if stripes:
        lanes = lanes + _lanes(bytes_, at, 0, stripes)
    lanes = lanes + _lanes(bytes_, n - 64, 121, 1)
    h = n * _P64[0]
    values = [int(x) for x in lanes]
    for i in range(0, 8, 2):
        h += _fold(values[i] ^ _secret(11 + 8 * i), values[i + 1] ^ _secret(19 + 8 * i))
    return _avalanche(h & _U64)
