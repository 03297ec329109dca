"""Reads parameters that Flax saved (flax.serialization.to_bytes: nested maps of names and arrays in msgpack) without Flax.

The format is defined in the specification of msgpack (github.com/msgpack/msgpack, spec.md) and in flax/serialization.py. The
`msgpack` package, which Flax uses, copies arrays where this reader gives views of the mapped file, and does not bound the number
of values: 8 MB of empty maps take it 550 MB.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import ml_dtypes
import numpy as np

from bert_jax.errors import InputError
from bert_jax.formats.mapped import map_file

_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DTYPES: dict[str, np.dtype] = {name: np.dtype(name) for name in ("float16", "float32", "float64", "bool", *_INTEGERS)}
_DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
_SIZED = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4), 0xC7: ("extension", 1), 0xC8: ("extension", 2),
    0xC9: ("extension", 4), 0xD9: ("string", 1), 0xDA: ("string", 2), 0xDB: ("string", 4), 0xDC: ("list", 2), 0xDD: ("list", 4),
    0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
"""The first byte of a value -> (kind, bytes of its length or count). Short forms have the length in the first byte itself."""
_NUMBERS = {0xCA: ">f", 0xCB: ">d", **{0xCC + i: f">{kind}" for i, kind in enumerate("BHIQbhiq")}}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_ARRAYS = (1, 3)  # the extension types of an array and of a NumPy scalar
_CHUNKED = "__msgpack_chunked_array__"  # the key that marks an array in pieces, as Flax writes those of more than 1 GiB
_MOST_VALUES, _DEEPEST, _LONGEST_NAME, _MOST_NAMES = 2**18, 32, 1000, 2**26


def read_flax(path: str | Path) -> dict[str, np.ndarray]:
    """Returns {"a/b/c": array} of a file that Flax saved, such as transformers' flax_model.msgpack.

    The arrays are read-only views, perhaps unaligned, of the mapped file; only those of more than 1 GiB, which Flax keeps in
    pieces, are copied. Everything else takes at most 200 MB for any file. Numbers, strings and None are left out.
    """
    mapped = map_file(path, mmap.mmap)
    try:
        reader = _Reader(mapped)
        tree = reader.value()
        if not isinstance(tree, dict) or reader.at != len(mapped):
            raise ValueError("it is not a single map of names")
        arrays: dict[str, np.ndarray] = {}
        size = 0
        for name, array in _leaves(tree):
            arrays[name] = array
            size += len(name)
            if size > _MOST_NAMES:
                raise ValueError("its names are too long for a file of weights")
    except (ValueError, OverflowError, struct.error) as error:
        raise InputError(f"{path} is damaged, cut short or not written by Flax: {error}") from None
    if not arrays:
        raise InputError(f"{path} has no arrays")
    return arrays


def _leaves(tree: dict[str, object], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, dict) and _CHUNKED in value:
            value = _joined(value)
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/")
        elif isinstance(value, np.ndarray):
            yield prefix + name, value


def _joined(value: dict[str, object]) -> np.ndarray:
    """Returns the array of {"shape": {"0": n, ...}, "chunks": {"0": array, ...}}."""
    shape, chunks = value.get("shape"), value.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict) or not all(isinstance(x, np.ndarray) for x in chunks.values()):
        raise ValueError("an array in pieces has no shape or no pieces")
    if not all(type(n) is int for n in shape.values()) or len({x.dtype for x in chunks.values()}) != 1:
        raise ValueError("an array in pieces has a shape that is not of numbers, or pieces of several types")
    return np.concatenate([chunks[str(i)].ravel() for i in range(len(chunks)) if str(i) in chunks]).reshape(list(shape.values()))


class _Reader:
    """Reads values of msgpack, arrays as views of `data`. Raises ValueError for values that no file of weights has."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.count = data, 0, 0

    def skip(self, size: int) -> tuple[int, int]:
        if self.at + size > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, and needs {size} after {self.at}")
        self.at += size
        return self.at - size, self.at

    def take(self, size: int) -> bytes:
        return self.data[slice(*self.skip(size))]

    def value(self, depth: int = 0) -> object:
        """Returns the next value; for bytes, their (start, stop)."""
        self.count += 1
        if self.count > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError("it has too many values, or too deep ones, for a file of weights")
        code = self.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            return cast(object, struct.unpack(_NUMBERS[code], self.take(struct.calcsize(_NUMBERS[code])))[0])
        kind, size = self.kind(code)
        if kind == "bytes":
            return self.skip(size)
        if kind == "string":
            return self.string(size)
        if kind == "extension":
            return self.extension(size, depth)
        if kind == "list":
            return [self.value(depth + 1) for _ in range(size)]
        return {self.name(): self.value(depth + 1) for _ in range(size)}

    def kind(self, code: int) -> tuple[str, int]:
        """Returns the kind of value that begins with this byte, and its length or count."""
        if code in _SIZED:
            kind, width = _SIZED[code]
            return kind, int.from_bytes(self.take(width), "big")
        if code < 0xC0:
            return ("map", code & 15) if code < 0x90 else ("list", code & 15) if code < 0xA0 else ("string", code & 31)
        if 0xD4 <= code <= 0xD8:
            return "extension", 1 << (code - 0xD4)
        raise ValueError(f"the byte {code:#x} begins no value")

    def string(self, size: int) -> str:
        if size > _LONGEST_NAME:
            raise ValueError(f"a string of {size} bytes is too long for a name")
        return self.take(size).decode()

    def name(self) -> str:
        name = self.value(_DEEPEST)
        if not isinstance(name, str):
            raise ValueError(f"a name is a {type(name).__name__}")
        return name

    def extension(self, size: int, depth: int) -> np.ndarray | None:
        kind, (start, stop) = self.take(1)[0], self.skip(size)
        if kind not in _ARRAYS:
            return None
        self.at = start
        match self.value(depth + 1):
            case [list() as shape, str() as dtype, (int() as first, int() as last)] if self.at == stop:
                if dtype not in _DTYPES:
                    raise ValueError(f"an array is of type {dtype}; known: {', '.join(_DTYPES)}")
                element = _DTYPES[dtype]
                if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
                    raise ValueError("an array has a shape that none can have")
                if math.prod(shape) * element.itemsize != last - first:
                    raise ValueError(f"an array of {dtype} {shape} has {last - first} bytes")
                return np.ndarray(shape, element, self.data, first)
        raise ValueError("an array is not of shape, type and bytes")
