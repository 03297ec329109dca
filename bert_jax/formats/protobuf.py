"""Reads the wire format of protobuf messages without their classes.

The generated module of the `sentencepiece` package refuses protobuf runtimes older than its own, as those of notebooks, and no
installed package has the messages of a TensorFlow checkpoint.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import Any

Message = defaultdict[int, list[Any]]
"""Field number -> values in their order, [] for a field that is absent; bytes, or numbers."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the varint at `data[at:]`, below 2**64, and the offset after it. Raises ValueError where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a varint is cut short")
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    if byte > 127 or value >> 64:
        raise ValueError("a varint of more than 64 bits")
    return value, at


def fields(message: bytes, fixed32: str = "<f") -> Message:
    """Reads a message (protobuf.dev/programming-guides/encoding). Raises ValueError if it is damaged or cut short.

    Varints become unsigned ints, 32-bit values numbers by the struct format `fixed32`, all others bytes.
    """
    found: Message = defaultdict(list)
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, wire = divmod(key, 8)
        if wire == 0:
            value, at = varint(message, at)
            found[number].append(value)
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"field {number} of the unknown wire type {wire}")
        size, at = varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        data, at = message[at : at + size], at + size
        if at > len(message):
            raise ValueError(f"field {number} is cut short")
        found[number].append(struct.unpack(fixed32, data)[0] if wire == 5 else data)
    return found
