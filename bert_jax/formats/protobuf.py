"""The wire format of protobuf messages, read without their classes.

The generated module of the `sentencepiece` package refuses every protobuf runtime older than the one it was built with, such as
those of notebooks, and no installed package has the messages of a TensorFlow checkpoint.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import Any


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


def fields(message: bytes, fixed32: str = "<f") -> dict[int, list[Any]]:
    """Reads a protobuf message (protobuf.dev/programming-guides/encoding).

    Args:
      message: its bytes.
      fixed32: the struct format of 32-bit values.

    Returns:
      Field number -> values in their order, [] for a field that is absent. Varints are unsigned ints, 32-bit values as `fixed32`
      reads them, all others bytes.

    Raises:
      ValueError: the message is damaged or cut short.
    """
    found: dict[int, list[Any]] = defaultdict(list)
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
