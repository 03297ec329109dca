"""Files of flax.serialization: arrays of every type, in pieces, and what damage makes of them."""

import struct

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import InputError
from bert_jax.formats.flax_msgpack import read_flax

TREE = {
    "bert": {"layer": {"0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float16)}}},
    "table": jnp.arange(40, dtype=jnp.bfloat16).reshape(20, 2),
    "counts": np.arange(300, dtype=np.int64),
    "wide": np.ones((0, 4)),
    "a name of more than thirty-one letters": np.float64(0.5),
    "step": 5, "large": 70_000, "rate": 0.1, "none": None, "text": "a" * 300, "yes": True, "negative": -7,
}  # fmt: skip
EXPECTED = {
    "bert/layer/0/kernel": [[0, 1, 2], [3, 4, 5]],
    "bert/layer/0/bias": [0, 0, 0],
    "table": np.arange(40).reshape(20, 2).tolist(),
    "counts": list(range(300)),
    "wide": [],
    "a name of more than thirty-one letters": 0.5,
}


def written(folder, content):
    path = folder / "flax_model.msgpack"
    path.write_bytes(content if isinstance(content, bytes) else flax.serialization.to_bytes(content))
    return path


def test_arrays_are_views_under_their_paths_and_all_else_is_left_out(tmp_path):
    arrays = read_flax(written(tmp_path, TREE))
    assert {name: array.tolist() for name, array in arrays.items()} == EXPECTED
    types = {"table": "bfloat16", "counts": "int64", "bert/layer/0/bias": "float16", "bert/layer/0/kernel": "float32"}
    assert {name: str(arrays[name].dtype) for name in types} == types
    assert not any(array.flags.owndata or array.flags.writeable for array in arrays.values())


def test_arrays_in_pieces_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 32)
    arrays = read_flax(written(tmp_path, {"a": {"b": np.arange(60.0).reshape(5, 4, 3)}, "small": np.ones(2)}))
    assert b"__msgpack_chunked_array__" in (tmp_path / "flax_model.msgpack").read_bytes()
    np.testing.assert_array_equal(arrays["a/b"], np.arange(60.0).reshape(5, 4, 3))
    assert list(arrays) == ["a/b", "small"]


def array_bytes(shape, dtype, data):
    """An extension of type 1: [shape, name of the type, bytes]."""
    dims = bytes([0x90 | len(shape)]) + b"".join(b"\xd3" + struct.pack(">q", n) for n in shape)
    inner = b"\x93" + dims + bytes([0xA0 | len(dtype)]) + dtype + b"\xc4" + bytes([len(data)]) + data
    return b"\xc7" + bytes([len(inner)]) + b"\1" + inner


GOOD = array_bytes([2], b"float32", bytes(8))
DAMAGED = [
    (b"", "cannot be read"),
    (b"\x80", "has no arrays"),
    (b"\x81\xa1a\x05", "has no arrays"),
    (GOOD, "not a single map of names"),
    (b"\x81\xa1a" + GOOD + b"\xc0", "not a single map of names"),
    (b"\x81\xa1a" + array_bytes([3], b"float32", bytes(8)), r"an array of float32 \[3\] has 8 bytes"),
    (b"\x81\xa1a" + array_bytes([-1], b"float32", bytes(8)), "a shape that none can have"),
    (b"\x81\xa1a" + array_bytes([2**62, 2**62], b"float32", b""), "has 0 bytes"),
    (b"\x81\xa1a" + array_bytes([1], b"object", bytes(8)), "an array is of type object; known: float16"),
    (b"\x81\xa1a\xc7\x01\x01\xc0", "not of shape, type and bytes"),
    (b"\x81\x05" + GOOD, "a name is a int"),
    (b"\xdf\xff\xff\xff\xff", "it ends at byte 5"),
    (b"\xdd\xff\xff\xff\xff" + b"\xc0" * 300_000, "too many values"),
    (b"\x81\xa1a" * 100 + GOOD, "too deep"),
    (b"\x81\xda\x08\x00" + b"a" * 2048 + GOOD, "too long for a name"),
    (b"\xc1", "the byte 0xc1 begins no value"),
    (b"\x81\xa1\xff" + GOOD, "damaged"),
]


@pytest.mark.parametrize("content, message", DAMAGED, ids=[message for _, message in DAMAGED])
def test_what_is_no_tree_of_arrays_is_refused_with_the_file(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"flax_model\.msgpack .*{message}"):
        read_flax(written(tmp_path, content))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no .*absent"):
        read_flax(tmp_path / "absent")


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    content = flax.serialization.to_bytes({"a": {"b": np.ones(3)}, "c": np.zeros((2, 2), np.float16)})
    for size in range(len(content)):
        with pytest.raises(InputError):
            read_flax(written(tmp_path, content[:size]))


def test_changed_bytes_give_arrays_or_are_refused(tmp_path):
    content, rng = bytearray(flax.serialization.to_bytes(TREE)), np.random.default_rng(0)
    outcomes = set()
    for _ in range(600):
        damaged = bytearray(content)
        for at in rng.integers(0, 120, 2):
            damaged[at] = rng.integers(0, 256)
        try:
            outcomes.add(sum(array.nbytes for array in read_flax(written(tmp_path, bytes(damaged))).values()) <= len(content))
        except InputError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}
