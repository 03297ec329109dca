"""Vectors of a corpus in four precisions, in memory or in files that are mapped into it. No JAX in here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike

from bert_jax.disk import whole
from bert_jax.errors import InputError
from bert_jax.formats.tensors import read_safetensors

Precision = Literal["float32", "bfloat16", "int8", "binary"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_STORED: dict[Precision, tuple[np.dtype, str]] = {  # the type of the arrays, and its name in safetensors
    "float32": (np.dtype(np.float32), "F32"), "bfloat16": (np.dtype(ml_dtypes.bfloat16), "BF16"),
    "int8": (np.dtype(np.int8), "I8"), "binary": (np.dtype(np.uint8), "U8"),
}  # fmt: skip
_VALUES = 1 << 22  # that are converted at a time


@dataclass(frozen=True, eq=False)
class Vectors:
    """N vectors of D values in the memory of their precision.

    Attributes:
      array: [N, D], or uint8 [N, ceil(D / 8)] with a bit for each value, in memory or mapped.
      precision: how the array is read; "float32" reads any numbers as they are.
      width: D.
      ranges: the least and the largest value of each dimension, float32 [2, D]; of int8 vectors alone.
    """

    array: np.ndarray
    precision: Precision
    width: int
    ranges: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.array)

    def decode(self, which: slice | np.ndarray) -> np.ndarray:
        """Returns some vectors as float32 [n, D]: the values that int8 stands for; of bits, 1 where the value was above 0."""
        some = np.asarray(self.array[which])
        if self.precision == "binary":
            return np.unpackbits(some, axis=-1)[..., : self.width].astype(np.float32)
        some = some.astype(np.float32, copy=False)
        if self.ranges is None:
            return some
        return (some + np.float32(128)) * _steps(self.ranges) + self.ranges[0]


def as_vectors(vectors: ArrayLike | Vectors) -> Vectors:
    """Returns an array [N, D], or one vector [D], as vectors of any numbers, without a copy."""
    if isinstance(vectors, Vectors):
        return vectors
    array = np.atleast_2d(np.asanyarray(vectors))
    return Vectors(array, "float32", array.shape[1])


def value_ranges(vectors: np.ndarray) -> np.ndarray:
    """Returns the least and the largest value of each dimension of [N, D], float32 [2, D], in bounded memory."""
    found = np.array([[np.inf], [-np.inf]], np.float32) + np.zeros((1, vectors.shape[1]), np.float32)
    for _, block in _blocks(vectors):
        found[0], found[1] = np.minimum(found[0], block.min(axis=0)), np.maximum(found[1], block.max(axis=0))
    return found


def quantize(vectors: np.ndarray, precision: Precision, ranges: np.ndarray | None = None) -> Vectors:
    """Stores vectors in less memory, as sentence-transformers' `quantize_embeddings` does.

    "bfloat16" rounds each value. "int8" divides the range of each dimension into 255 steps. "binary" keeps a bit for each value,
    1 above 0, eight in a byte.

    Args:
      vectors: [N, D], in memory or mapped.
      precision: the precision.
      ranges: the least and the largest value of each dimension for "int8", float32 [2, D], such as those of a sample; values
        outside are clipped. Default: `value_ranges(vectors)`.

    Raises:
      InputError: `precision` is unknown; `ranges` have another width; a value is not finite.
    """
    shape, ranges = _plan(vectors, precision, ranges)
    array = np.empty(shape, _STORED[precision][0])
    for start, block in _blocks(vectors):
        array[start : start + len(block)] = _converted(block, precision, ranges)
    return Vectors(array, precision, vectors.shape[1], ranges)


def write_vectors(path: Path, vectors: np.ndarray, precision: Precision, ranges: np.ndarray | None = None) -> None:
    """Writes what `quantize` returns to a .safetensors file in bounded memory; `open_vectors` maps it.

    Its tensors are `vectors`, `width` (int64 [1]) and, of int8, `ranges`. Raises InputError as `quantize`, or if it cannot write.
    """
    shape, ranges = _plan(vectors, precision, ranges)
    small: dict[str, np.ndarray] = {"width": np.array([vectors.shape[1]], np.int64)}
    if ranges is not None:
        small["ranges"] = ranges
    header, end = dict[str, object](), 0
    for name, kind, of, size in (
        *((name, {"width": "I64", "ranges": "F32"}[name], array.shape, array.nbytes) for name, array in small.items()),
        ("vectors", _STORED[precision][1], shape, shape[0] * shape[1] * _STORED[precision][0].itemsize),
    ):
        header[name] = {"dtype": kind, "shape": list(of), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with whole(path) as temporary, temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for array in small.values():
                file.write(array.tobytes())
            for _, block in _blocks(vectors):
                file.write(_converted(block, precision, ranges).tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def open_vectors(path: str | Path) -> Vectors:
    """Maps vectors in .npy (any numbers, [N, D]), as `bert_jax embed --out` writes them, or in .safetensors of `write_vectors`.

    Raises InputError for a file that is neither.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path)
        array, width, ranges = (tensors.get(name) for name in ("vectors", "width", "ranges"))
        if array is None or width is None or array.ndim != 2 or width.shape != (1,):
            raise InputError(f"{path} does not hold vectors: `bert_jax quantize` writes such files")
        precision = next((name for name, (dtype, _) in _STORED.items() if dtype == array.dtype), None)
        size = int(width[0])
        stored = -(-size // 8) if precision == "binary" else size
        if precision is None or array.shape[1] != stored or (precision == "int8") != (ranges is not None):
            raise InputError(f"{path}: vectors {array.dtype} {array.shape} do not fit a width of {size}: write it again")
        return Vectors(array, precision, size, ranges)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"no {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a .npy of vectors, nor .safetensors of `bert_jax quantize`: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InputError(f"{path} does not hold vectors [N, D]")
    return as_vectors(array)


def _plan(vectors: np.ndarray, precision: Precision, ranges: np.ndarray | None) -> tuple[tuple[int, int], np.ndarray | None]:
    """Returns the shape of the array, and the ranges of int8."""
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    count, width = vectors.shape
    if precision != "int8":
        return (count, -(-width // 8) if precision == "binary" else width), None
    ranges = value_ranges(vectors) if ranges is None else np.asarray(ranges, np.float32)
    if ranges.shape != (2, width):
        raise InputError(f"ranges of the shape {ranges.shape}; vectors of width {width} need (2, {width})")
    return (count, width), ranges


def _blocks(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the first row of each block, and the block as float32. Raises InputError for values that are not finite."""
    rows = max(1, _VALUES // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        block = np.asarray(vectors[start : start + rows], np.float32)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise InputError(f"vector {row} has a value that is not finite, as vectors of null texts have: leave it out")
        yield start, block


def _steps(ranges: np.ndarray) -> np.ndarray:
    steps = (ranges[1] - ranges[0]) / np.float32(255)
    return np.where(steps == 0, np.float32(1), steps)


def _converted(block: np.ndarray, precision: Precision, ranges: np.ndarray | None) -> np.ndarray:
    if precision == "binary":
        return np.packbits(block > 0, axis=-1)
    if ranges is not None:
        return (np.clip(np.floor((block - ranges[0]) / _steps(ranges)), 0, 255) - 128).astype(np.int8)
    return block.astype(_STORED[precision][0])
