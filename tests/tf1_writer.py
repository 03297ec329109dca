"""Writes TensorFlow 1 checkpoints as TensorFlow's BundleWriter does, byte for byte (one shard, block_size=262144)."""

import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from bert_jax.formats.crc32c import crc32c, masked

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "int64": 9, "bool": 10,
          "bfloat16": 14, "float16": 19}  # fmt: skip
ALL_DTYPES = [np.dtype(getattr(ml_dtypes, name, name)) for name in DTYPES]
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, value):
    """A protobuf field: int as varint, bytes as they are; 0 is left out, as proto3 does."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value % 2**64) if value else b""
    return varint(number << 3 | 2) + varint(len(value)) + value


def stored_crc(data):
    return struct.pack("<I", masked(crc32c(np.frombuffer(data, np.uint8))))


def header(num_shards=1, endianness=0):
    return field(1, num_shards) + field(2, endianness) + field(3, field(1, 1))


def bundle_entry(dtype, shape, shard=0, offset=0, size=0, crc=None, extra=b""):
    dims = b"".join(field(2, field(1, dim)) for dim in shape)
    tail = b"" if crc is None else varint(6 << 3 | 5) + crc
    return field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset) + field(5, size) + tail + extra


def block(entries, restart_interval=16):
    """Prefix-compressed (key, value) pairs and the places where a key stands whole (block_builder.cc)."""
    out, restarts, last = bytearray(), [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart_interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return bytes(out) + struct.pack(f"<{len(restarts or [0]) + 1}I", *(restarts or [0]), len(restarts or [0]))


def sealed(contents, kind=0):
    """A block with its trailer: type and CRC."""
    return contents + bytes([kind]) + stored_crc(contents + bytes([kind]))


def separator(key, following):
    """A short key between two (FindShortestSeparator and FindShortSuccessor of table_builder.cc)."""
    for i, byte in enumerate(key):
        if following is None and byte < 255:
            return key[:i] + bytes([byte + 1])
        if following is not None and (i >= len(following) or byte != following[i]):
            return key[:i] + bytes([byte + 1]) if i < len(following) and byte + 1 < following[i] else key
    return key


def table(rows, block_size=4096, kind=0):
    """The bytes of a table with these ascending (key, value) rows."""
    groups, size = [[]], 0
    for i, (key, value) in enumerate(rows):
        groups[-1].append((key, value))
        size = len(block(groups[-1]))
        if size >= block_size and i + 1 < len(rows):
            groups.append([])
    out, index = b"", []
    for i, group in enumerate(groups):
        contents = block(group)
        following = groups[i + 1][0][0] if i + 1 < len(groups) else None
        index.append((separator(group[-1][0], following), varint(len(out)) + varint(len(contents))))
        out += sealed(contents, kind)
    return finished(out, index)


def finished(blocks, index):
    """The table of these sealed blocks and (key, handle) rows: with an empty metaindex, the index and the footer."""
    meta, contents = block([]), block(index, restart_interval=1)
    handles = varint(len(blocks)) + varint(len(meta))
    blocks += sealed(meta)
    handles += varint(len(blocks)) + varint(len(contents))
    return blocks + sealed(contents) + handles.ljust(40, b"\0") + MAGIC


def write_tf1(prefix, tensors, num_shards=1, block_size=4096):
    """Writes PREFIX.index and its data shards; the tensors, by name, take turns over the shards.

    TensorFlow's blocks are of 262144 bytes: smaller ones, so that a small checkpoint has several.
    """
    shards = [bytearray() for _ in range(num_shards)]
    rows = [(b"", header(num_shards))]
    for i, name in enumerate(sorted(tensors, key=str.encode)):
        array, shard = np.asarray(tensors[name]), i % num_shards
        data = array.tobytes()
        entry = bundle_entry(DTYPES[array.dtype.name], array.shape, shard, len(shards[shard]), len(data), stored_crc(data))
        rows.append((name.encode(), entry))
        shards[shard] += data
    for shard, data in enumerate(shards):
        Path(f"{prefix}.data-{shard:05d}-of-{num_shards:05d}").write_bytes(data)
    Path(f"{prefix}.index").write_bytes(table(rows, block_size))
