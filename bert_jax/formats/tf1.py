"""Reads TensorFlow 1 checkpoints (the V2 format: PREFIX.index and PREFIX.data-0000i-of-0000n) without TensorFlow.

The index is a LevelDB table: blocks of (name, BundleEntryProto) in the order of names, each block with a CRC; a block of
their offsets; a footer. The data shards hold the tensors' bytes. The format is defined in tensorflow/core/lib/io/format.cc and
block.cc, tensorflow/core/util/tensor_bundle/tensor_bundle.cc and tensorflow/core/protobuf/tensor_bundle.proto. No package but
TensorFlow reads it.
"""

from __future__ import annotations

import math
import mmap
import os.path
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np

from bert_jax.errors import InputError
from bert_jax.formats.crc32c import crc32c, masked
from bert_jax.formats.protobuf import Message, fields, varint

T = TypeVar("T", int, bytes)
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: ml_dtypes.bfloat16, 19: "<f2"}
"""DataType (tensorflow/core/framework/types.proto) -> NumPy's type."""
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48  # bytes of two block handles, zeros and the magic number
_TRAILER = 5  # bytes after a block: its type and its CRC


def read_tf1(prefix: str | Path) -> dict[str, np.ndarray]:
    """Returns {variable: array} of the checkpoint PREFIX, such as `bert_model.ckpt`, in the order of names.

    The arrays are read-only views, perhaps unaligned, of the mapped files. The CRC of each is checked, so all bytes are read from
    the disk once; none are held. Variables that are not numbers (strings, a TF2 object graph) are left out.

    Raises:
      InputError: a file is missing, damaged or cut short; no variable is left; or it is not supported: V1 checkpoints,
        compressed indices, big-endian data, partitioned variables.
    """
    path = Path(f"{prefix}.index")
    if os.path.isfile(prefix) and not os.path.isfile(path):
        raise InputError(
            f"no {path}: {prefix} is either a file of the checkpoint, whose prefix ends before .index and .data-, or a "
            "checkpoint of the old V1 format: restore that in TensorFlow and save it by tf.train.Saver, which writes V2"
        )
    index = _map(path)
    try:
        num_shards, entries = _read_index(index)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    shards: dict[Path, np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    claimed = 0
    for name, entry in entries.items():
        shard = Path(f"{prefix}.data-{_last(entry, 3, 0):05d}-of-{num_shards:05d}")
        if shard not in shards:
            shards[shard] = _map(shard)
        try:
            arrays[name] = array = _array(entry, shards[shard])
            claimed += array.nbytes
            if claimed > sum(map(len, shards.values())):  # a small index could make us read the same bytes for hours
                raise ValueError("shares its bytes with others; the index is damaged")
            if masked(crc32c(array.reshape(-1).view(np.uint8))) != _last(entry, 6, 0):
                raise ValueError("its bytes do not match their CRC: the file is damaged, fetch it again")
        except ValueError as error:
            raise InputError(f"{shard}: variable {name!r}: {error}") from error
    return arrays


def find_tf1(directory: Path) -> Path | None:
    """Returns the prefix of the TensorFlow checkpoint in a directory, None without one.

    Of several checkpoints, it is bert_model.ckpt, or the one that the text file `checkpoint` names as the newest.
    """
    found = [path.with_name(path.name[: -len(".index")]) for path in sorted(directory.glob("?*.index")) if path.is_file()]
    usual = directory / "bert_model.ckpt"
    if usual in found or len(found) < 2:
        return usual if usual in found else next(iter(found), None)
    state = directory / "checkpoint"
    text = state.read_text(errors="replace") if state.is_file() else ""
    newest = re.search(r'^\s*model_checkpoint_path:\s*"(?:[^"]*[/\\])?([^"]+)"', text, re.MULTILINE)
    if newest and directory / newest[1] in found:
        return directory / newest[1]
    says = f"its file `checkpoint` says {newest[1]}" if newest else "no file `checkpoint` there says which to take"
    raise InputError(f"{directory} has several TensorFlow checkpoints, {', '.join(p.name for p in found)}; {says}")


def _map(path: Path) -> np.ndarray:
    try:
        if not os.path.isfile(path):  # unlike Path.is_file, it raises nothing
            raise InputError(f"no {path}")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return np.frombuffer(data, np.uint8)


def _last(message: Message, number: int, default: T) -> T:
    """Returns the value of a field that is not repeated. As always in protobuf, a value of another type is an unknown field."""
    return next((value for value in reversed(message[number]) if type(value) is type(default)), default)


def _read_index(index: np.ndarray) -> tuple[int, dict[str, Message]]:
    """Returns the number of data shards, and the BundleEntryProto of each variable of numbers."""
    rows = _table(index)
    key, value = next(rows, (b"?", b""))
    if key:
        raise ValueError("its first entry is not the header")
    header = fields(value)
    if _last(header, 2, 0):
        raise ValueError("big-endian data is not supported: save it on a little-endian machine")
    entries = {
        key.decode(): entry
        for key, value in rows
        if key[0] and _last(entry := fields(value, "<I"), 1, 0) in _DTYPES  # a first byte of 0 marks a slice of a variable
    }
    if not entries:
        raise ValueError("no variable of numbers in it")
    return _last(header, 1, 0), entries


def _table(index: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
    """Yields each (key, value) of a table. Blocks and keys must ascend, as TensorFlow writes them, so that it ends."""
    footer = index[-_FOOTER:].tobytes()
    if not footer.endswith(_MAGIC):
        raise ValueError("not the index of a TensorFlow checkpoint, or cut short")
    _, _, at = _handle(footer)  # the handle of the metaindex, which is empty
    last, least = None, 0
    for _, value in _entries(_block(index, *_handle(footer, at)[:2])):
        offset, size, _ = _handle(value)
        if offset < least:
            raise ValueError("its blocks overlap or are out of order")
        least = offset + size + _TRAILER
        for key, value in _entries(_block(index, offset, size)):
            if last is not None and key <= last:
                raise ValueError("its names are out of order")
            yield key, value
            last = key


def _handle(data: bytes, at: int = 0) -> tuple[int, int, int]:
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return offset, size, at


def _block(index: np.ndarray, offset: int, size: int) -> bytes:
    """Returns the contents of a block, and checks its CRC."""
    end = offset + size + 1  # the type is under the CRC
    if offset + size + _TRAILER > len(index):
        raise ValueError(f"a block of {size} bytes at {offset} is past its end")
    if masked(crc32c(index[offset:end])) != int.from_bytes(index[end : end + 4].tobytes(), "little"):
        raise ValueError(f"the block at {offset} does not match its CRC: the file is damaged, fetch it again")
    if index[end - 1]:
        kind = "by snappy" if index[end - 1] == 1 else f"in the unknown way {index[end - 1]}"
        raise ValueError(f"compressed {kind}, which is not supported: restore and save it by tf.train.Saver, which does not")
    return index[offset : end - 1].tobytes()


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields each (key, value) of a block, which stores a key as the length it shares with the one before, and the rest."""
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")  # the offsets of whole keys follow
    if end < 0:
        raise ValueError("a block is too short")
    key, at, total = b"", 0, 0
    while at < end:
        shared, at = varint(block, at)
        rest, at = varint(block, at)
        size, at = varint(block, at)
        if shared > len(key) or at + rest + size > end:
            raise ValueError("an entry reaches out of its block")
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + size]
        at += rest + size
        total += len(key)
        if total > 64 * len(block):  # every 16th key is whole, so honest ones come to 16 times at most
            raise ValueError("its names are longer than their bytes allow")


def _array(entry: Message, shard: np.ndarray) -> np.ndarray:
    """Returns the view of `shard` that a BundleEntryProto describes."""
    if entry[7]:
        raise ValueError("partitioned variables are not supported: save it in one piece")
    shape = fields(_last(entry, 2, b""))
    dims = [_last(fields(dim), 1, 0) for dim in shape[2] if isinstance(dim, bytes)]
    if _last(shape, 3, 0) or len(dims) > 32:
        raise ValueError("its shape is unknown or of too many dimensions")
    dtype, offset, size = np.dtype(_DTYPES[_last(entry, 1, 0)]), _last(entry, 4, 0), _last(entry, 5, 0)
    if size != math.prod(dims) * dtype.itemsize:
        raise ValueError(f"{size} bytes are not those of {dtype} {dims}; the index is damaged")
    if offset + size > len(shard):
        raise ValueError(f"its {size} bytes at {offset} are past the end, {len(shard)}: the file is cut short")
    return shard[offset : offset + size].view(dtype).reshape(dims)
