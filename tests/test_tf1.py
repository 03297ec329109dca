"""Checkpoints are made here by tf1_writer.py, and then damaged in every way."""

import mmap
import re
import struct
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tf1_writer as writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tf1_writer import bundle_entry, field, header, varint, write_tf1

from bert_jax.config import InputError
from bert_jax.formats import tf1
from bert_jax.formats.crc32c import crc32c, masked
from bert_jax.formats.protobuf import fields
from bert_jax.formats.tf1 import find_tf1, read_tf1

RNG = np.random.default_rng(0)
SMALL = {
    "bert/embeddings/word_embeddings": RNG.standard_normal((5, 3)).astype(np.float32),
    "bert/encoder/layer_0/attention/self/key/bias": RNG.standard_normal(3).astype(np.float32),
    "bert/encoder/layer_0/attention/self/key/kernel": RNG.standard_normal((3, 3)).astype(np.float32),
    "global_step": np.array(20, np.int64),
}


def assert_same(got, expected):
    assert list(got) == sorted(expected, key=str.encode)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


def root(array):
    """What owns the memory of an array."""
    while isinstance(array, np.ndarray | memoryview):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array


def reads_or_refuses(prefix):
    """The arrays, or None after an InputError that names a file of the checkpoint."""
    try:
        return read_tf1(prefix)
    except InputError as error:
        message = str(error)
    assert str(prefix) in message
    return None


def write_index(prefix, rows, data=b"\0" * 64, **options):
    """A checkpoint of these rows of the index, behind the header, and this one data shard."""
    rows = [(b"", header()), *rows]
    Path(f"{prefix}.index").write_bytes(writer.table(rows, **options))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)


ZEROS = writer.stored_crc(bytes(8))
GOOD = bundle_entry(1, [2], size=8, crc=ZEROS)  # float32 [2] at 0


@pytest.fixture
def prefix(tmp_path):
    return tmp_path / "bert_model.ckpt"


# ---- what is read


def test_every_dtype_comes_back_bit_for_bit(prefix):
    tensors = {
        f"of/{dtype.name}": RNG.integers(0, 256, (4, 3, dtype.itemsize), np.uint8).view(dtype)[..., 0]
        if dtype.kind != "b"
        else RNG.random((4, 3)) < 0.5
        for dtype in writer.ALL_DTYPES
    }
    write_tf1(prefix, tensors)
    assert len(tensors) == len(tf1._DTYPES)
    assert_same(read_tf1(prefix), tensors)
    assert_same(read_tf1(str(prefix)), tensors)


def test_many_tensors_lie_in_several_blocks(prefix, monkeypatch):
    tensors = {f"bert/encoder/layer_{i}/output/dense/kernel": np.full((2, i % 5), i, np.float32) for i in range(400)}
    write_tf1(prefix, tensors, block_size=1000)
    places, read_block = [], tf1._block
    monkeypatch.setattr(tf1, "_block", lambda *args: places.append(args[1:]) or read_block(*args))
    assert_same(read_tf1(prefix), tensors)
    assert len(set(places)) > 10


@pytest.mark.parametrize("num_shards", [2, 3, 7])
def test_tensors_may_lie_in_several_shards(prefix, num_shards):
    write_tf1(prefix, SMALL, num_shards=num_shards)  # 7: more than tensors, so some are empty
    assert_same(read_tf1(prefix), SMALL)


def test_scalars_and_empty_tensors_keep_their_shapes(prefix):
    tensors = {"a": np.array(2.5, np.float32), "b": np.zeros((0, 768), np.float32), "c": np.zeros(0, np.int64),
               "d": np.zeros((3, 0, 2), bool), "e": np.array(True)}  # fmt: skip
    write_tf1(prefix, tensors)
    assert_same(read_tf1(prefix), tensors)
    write_tf1(prefix, {"only": np.zeros((0, 2), np.float32)})  # the data shard has no byte
    assert_same(read_tf1(prefix), {"only": np.zeros((0, 2), np.float32)})


def test_a_tensor_behind_one_of_odd_size_is_read_where_it_lies(prefix):
    tensors = {"a": np.array([1, 2, 3], np.int8), "b": np.array([1.5, -2.5], np.float64)}
    write_tf1(prefix, tensors)
    assert_same(read_tf1(prefix), tensors)


def test_names_are_unicode_in_the_order_of_their_bytes(prefix):
    tensors = {name: np.arange(i + 1, dtype=np.int32) for i, name in enumerate(["z", "ü", "a/b", "a", "a/日本", "😀"])}
    write_tf1(prefix, tensors)
    assert_same(read_tf1(prefix), tensors)


def test_arrays_are_read_only_views_on_one_map_a_shard(prefix):
    write_tf1(prefix, SMALL, num_shards=2)
    arrays = read_tf1(prefix)
    maps = {id(root(array)): root(array) for array in arrays.values()}
    assert len(maps) == 2
    assert all(isinstance(m, mmap.mmap) for m in maps.values())
    with pytest.raises(ValueError, match="read-only"):
        arrays["global_step"][...] = 1


def test_reading_holds_no_more_than_a_few_megabytes(prefix):
    size = 1 << 26
    crc = writer.stored_crc(np.zeros(size, np.uint8))
    write_index(prefix, [(b"large", bundle_entry(1, [size // 4], size=size, crc=crc))], data=b"")
    with open(f"{prefix}.data-00000-of-00001", "r+b") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        assert read_tf1(prefix)["large"].nbytes == size
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_strings_and_object_graphs_are_left_out_unless_nothing_else_is_there(prefix):
    strings = bundle_entry(7, [], size=60, crc=ZEROS)
    write_index(prefix, [(b"_CHECKPOINTABLE_OBJECT_GRAPH", strings), (b"kernel", GOOD)])
    assert_same(read_tf1(prefix), {"kernel": np.zeros(2, np.float32)})
    write_index(prefix, [(b"_CHECKPOINTABLE_OBJECT_GRAPH", strings)])
    with pytest.raises(InputError, match=r"bert_model\.ckpt\.index: no variable of numbers"):
        read_tf1(prefix)
    write_index(prefix, [])
    with pytest.raises(InputError, match="no variable of numbers"):
        read_tf1(prefix)


def test_the_writer_writes_what_tensorflow_wrote():
    # The first bytes of an index by TensorFlow 1.13: the header, then two variables of float32 [4].
    theirs = bytes.fromhex(
        "0000060801 1a020801 001e0f 626572742f656d62656464696e67732f4c617965724e6f726d2f62657461"
        "0801 1204 12020804 2810 3562abcc55 1e0711 2f6164616d5f6d 0801 1204 12020804 2010 2810 3550efaf db"
    )
    rows = [
        (b"", header()),
        (b"bert/embeddings/LayerNorm/beta", bundle_entry(1, [4], size=16, crc=bytes.fromhex("62abcc55"))),
        (b"bert/embeddings/LayerNorm/beta/adam_m", bundle_entry(1, [4], offset=16, size=16, crc=bytes.fromhex("50efafdb"))),
    ]
    assert writer.block(rows).startswith(theirs)
    assert [key for key, _ in tf1._entries(writer.block(rows))] == [key for key, _ in rows]


# ---- what is refused


def test_a_missing_file_is_named(prefix):
    with pytest.raises(InputError, match=f"^no {re.escape(str(prefix))}.index$"):
        read_tf1(prefix)
    write_tf1(prefix, SMALL, num_shards=3)
    Path(f"{prefix}.data-00001-of-00003").unlink()
    with pytest.raises(InputError, match=f"^no {re.escape(str(prefix))}.data-00001-of-00003$"):
        read_tf1(prefix)


def test_a_v1_checkpoint_and_a_file_for_a_prefix_are_refused_by_name(prefix):
    prefix.write_bytes(b"a table")
    with pytest.raises(InputError, match=r"no .*\.index: .* old V1 format"):
        read_tf1(prefix)
    write_tf1(prefix, SMALL)
    assert_same(read_tf1(prefix), SMALL)  # the file without .index beside does not matter
    with pytest.raises(InputError, match=r"whose prefix ends before \.index"):
        read_tf1(f"{prefix}.index")


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_a_file_cut_short_anywhere_is_refused(prefix, suffix):
    write_tf1(prefix, SMALL, block_size=64)
    path = Path(f"{prefix}{suffix}")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_tf1(prefix)


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_a_changed_byte_is_refused_or_changes_nothing(prefix, suffix):
    write_tf1(prefix, SMALL, block_size=64)
    path, rng, harmless = Path(f"{prefix}{suffix}"), np.random.default_rng(1), 0
    whole = path.read_bytes()
    for at in range(len(whole)):
        for flip in rng.integers(1, 256, 3):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            got = reads_or_refuses(prefix)
            if got is not None:
                assert_same(got, SMALL)
                harmless += 1
    assert harmless <= (0 if suffix != ".index" else 3 * 60)  # the metaindex and the zeros of the footer say nothing


def test_a_shard_of_other_bytes_is_refused(prefix):
    write_tf1(prefix, SMALL)
    path = Path(f"{prefix}.data-00000-of-00001")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError, match=r"data-00000-of-00001: variable 'bert/.*embeddings': .*CRC.*damaged"):
        read_tf1(prefix)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([(b"w", bundle_entry(1, [3], size=8, crc=ZEROS))], r"variable 'w': 8 bytes are not those of float32 \[3\]"),
        ([(b"w", bundle_entry(1, [2], offset=60, size=8, crc=ZEROS))], "8 bytes at 60 are past the end, 64: .* cut short"),
        ([(b"w", bundle_entry(1, [2], offset=-8, size=8, crc=ZEROS))], "past the end"),
        ([(b"w", bundle_entry(1, [-2], size=-8, crc=ZEROS))], "not those of"),
        ([(b"w", bundle_entry(1, [2**62, 2**62, 4], size=0, crc=ZEROS))], "not those of"),
        ([(b"w", bundle_entry(1, [0, 2**62, 2**62], crc=ZEROS))], "variable 'w': "),
        ([(b"w", bundle_entry(1, [0, -1], crc=ZEROS))], "variable 'w': "),
        ([(b"w", bundle_entry(1, [2**62] * 100_000, size=8, crc=ZEROS))], "too many dimensions"),
        ([(b"w", bundle_entry(1, [2], size=8, crc=b"1234"))], "do not match their CRC"),
        ([(b"w", bundle_entry(1, [2], size=8))], "do not match their CRC"),
        ([(b"w", bundle_entry(1, [2], extra=field(7, field(1, field(2, 1)))))], "variable 'w': partitioned"),
        ([(b"w", field(1, 1) + field(2, field(3, 1)))], "its shape is unknown"),
        ([(b"w", field(1, 1) + field(2, b"\x12\x7f"))], "field 2 is cut short"),
        ([(b"w", field(1, 1) + field(2, 5) + field(5, b"8"))], r"0 bytes are not those of float32 \[\]"),
        ([(b"w", field(1, 1) + field(2, field(2, 7)))], r"0 bytes are not those of float32 \[\]"),
        ([(b"w", field(1, 1) + b"\x0b")], r"index: field 1 of the unknown wire type 3"),
        ([(b"w", b"\x08" + b"\xff" * 11)], "more than 64 bits"),
        ([(b"w", bundle_entry(1, [2], shard=1, size=8, crc=ZEROS))], "no .*data-00001-of-00001"),
        ([(b"\xffw", GOOD)], r"\.index: 'utf-8'"),
        ([(b"b", GOOD), (b"a", GOOD)], "names are out of order"),
        ([(b"a", GOOD), (b"a", GOOD)], "names are out of order"),
        ([(b"", GOOD)], "names are out of order"),
        ([(b"v%03d" % i, GOOD) for i in range(9)], "shares its bytes"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_is_refused(prefix, rows, message):
    write_index(prefix, rows)
    with pytest.raises(InputError, match=message) as refused:
        read_tf1(prefix)
    assert str(prefix) in str(refused.value)


def test_slices_are_refused_by_the_name_of_their_variable(prefix):
    sliced = bundle_entry(1, [4], extra=field(7, field(1, field(2, 2))) + field(7, field(1, field(1, 2) + field(2, 2))))
    write_index(prefix, [(b"\0embeddings\0\1\1\1\x80\x82", GOOD), (b"embeddings", sliced)])
    with pytest.raises(InputError, match="variable 'embeddings': partitioned variables are not supported"):
        read_tf1(prefix)


def test_big_endian_data_is_refused(prefix):
    Path(f"{prefix}.index").write_bytes(writer.table([(b"", header(endianness=1)), (b"w", GOOD)]))
    with pytest.raises(InputError, match=r"\.index: big-endian data is not supported"):
        read_tf1(prefix)


@pytest.mark.parametrize("kind, message", [(1, "compressed by snappy, .*tf.train.Saver"), (7, "in the unknown way 7")])
def test_a_compressed_index_is_refused_with_what_to_do(prefix, kind, message):
    write_index(prefix, [(b"w", GOOD)], kind=kind)
    with pytest.raises(InputError, match=message):
        read_tf1(prefix)


@pytest.mark.parametrize(
    "data", [b"", b"x" * 47, b"x" * 48, writer.MAGIC, b"\0" * 40 + writer.MAGIC, b"\xff" * 40 + writer.MAGIC]
)
def test_a_file_that_is_no_table_is_refused(prefix, data):
    write_tf1(prefix, SMALL)
    Path(f"{prefix}.index").write_bytes(data)
    with pytest.raises(InputError, match=r"bert_model\.ckpt\.index: "):
        read_tf1(prefix)


def test_another_magic_number_is_refused(prefix):
    write_tf1(prefix, SMALL)
    path = Path(f"{prefix}.index")
    path.write_bytes(path.read_bytes()[:-1] + b"\xda")
    with pytest.raises(InputError, match="not the index of a TensorFlow checkpoint, or cut short"):
        read_tf1(prefix)


def test_a_table_that_does_not_begin_with_the_header_is_refused(prefix):
    Path(f"{prefix}.index").write_bytes(writer.table([(b"w", GOOD)]))
    with pytest.raises(InputError, match="first entry is not the header"):
        read_tf1(prefix)
    Path(f"{prefix}.index").write_bytes(writer.finished(b"", []))
    with pytest.raises(InputError, match="first entry is not the header"):
        read_tf1(prefix)


@pytest.mark.parametrize("handle", [(0, 1 << 40), (1 << 40, 10), (2**64 - 1, 2**64 - 1), (0, 0), (3, 8)])
def test_a_block_out_of_its_file_or_place_is_refused(prefix, handle):
    contents = writer.block([(b"", header()), (b"w", GOOD)])
    rows = [(b"a", varint(0) + varint(len(contents))), (b"b", varint(handle[0]) + varint(handle[1]))]
    Path(f"{prefix}.index").write_bytes(writer.finished(writer.sealed(contents), rows))
    with pytest.raises(InputError, match=r"past its end|overlap"):
        read_tf1(prefix)


def test_a_block_is_not_read_again_and_again(prefix):
    contents = writer.block([])
    rows = [(struct.pack(">I", i), varint(0) + varint(len(contents))) for i in range(3)]
    Path(f"{prefix}.index").write_bytes(writer.finished(writer.sealed(contents), rows))
    with pytest.raises(InputError, match="overlap"):
        read_tf1(prefix)


@pytest.mark.parametrize(
    "entry, message",
    [(b"\x05\x01\x00w", "reaches out"), (b"\x00\x02\x00w", "reaches out"), (b"\x00\x01\x04w", "reaches out"),
     (b"\x00\x7f\x00w", "reaches out"), (b"\x00" + b"\xff" * 9 + b"\x01\x00", "reaches out"), (b"\x00\x01", "reaches out"),
     (b"\x80" * 12, "64 bits")],
)  # fmt: skip
def test_an_entry_that_reaches_out_of_its_block_is_refused(prefix, entry, message):
    contents = writer.block([(b"", header())])[:-8] + entry + struct.pack("<II", 0, 1)
    blocks = writer.sealed(contents)
    Path(f"{prefix}.index").write_bytes(writer.finished(blocks, [(b"a", varint(0) + varint(len(contents)))]))
    with pytest.raises(InputError, match=rf"\.index: .*{message}"):
        read_tf1(prefix)


@pytest.mark.parametrize("restarts", [b"", b"\1", struct.pack("<I", 2**32 - 1), struct.pack("<I", 10)])
def test_a_block_without_room_for_its_restarts_is_refused(prefix, restarts):
    blocks = writer.sealed(restarts)
    Path(f"{prefix}.index").write_bytes(writer.finished(blocks, [(b"a", varint(0) + varint(len(restarts)))]))
    with pytest.raises(InputError, match=r"\.index: a block is too short"):
        read_tf1(prefix)


def test_a_small_index_cannot_fill_the_memory_with_names(prefix):
    long = b"x" * 50_000
    contents = writer.block([(b"", header())])[:-8] + b"\0" + varint(len(long)) + varint(len(GOOD)) + long + GOOD
    for i in range(1000):
        contents += varint(len(long)) + b"\2" + varint(len(GOOD)) + struct.pack(">H", i) + GOOD
    contents += struct.pack("<II", 0, 1)
    rows = [(b"z", varint(0) + varint(len(contents)))]
    Path(f"{prefix}.index").write_bytes(writer.finished(writer.sealed(contents), rows))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="longer than their bytes allow"):
            read_tf1(prefix)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_blocks_changed_under_a_right_crc_are_refused_or_read(prefix, changes):
    rows = [(b"", header()), *((b"layer_%d" % i, GOOD) for i in range(4)), (b"z", bundle_entry(9, [], 8, 8, 8, ZEROS))]
    contents = bytearray(writer.block(rows))
    for at, flip in changes:
        contents[at % len(contents)] ^= flip
    blocks = writer.sealed(bytes(contents))
    Path(f"{prefix}.index").write_bytes(writer.finished(blocks, [(b"zz", varint(0) + varint(len(contents)))]))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes(64))
    for array in (reads_or_refuses(prefix) or {}).values():
        assert array.nbytes <= 64


@FUZZ
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=4), st.binary(max_size=20)), max_size=6, unique_by=lambda r: r[0]))
def test_random_entries_are_refused_or_read(prefix, rows):
    write_index(prefix, sorted((key, field(1, 1) + value) for key, value in rows))
    for array in (reads_or_refuses(prefix) or {}).values():
        assert array.nbytes <= 64


@FUZZ
@given(st.binary(max_size=80), st.booleans())
def test_random_files_are_refused(prefix, data, with_magic):
    Path(f"{prefix}.index").write_bytes(data + writer.MAGIC * with_magic)
    with pytest.raises(InputError):
        read_tf1(prefix)


# ---- finding one


def test_the_checkpoint_of_a_directory_is_found(tmp_path):
    assert find_tf1(tmp_path) is None
    assert find_tf1(tmp_path / "missing") is None
    write_tf1(tmp_path / "model.ckpt-100", SMALL)
    assert find_tf1(tmp_path) == tmp_path / "model.ckpt-100"
    write_tf1(tmp_path / "bert_model.ckpt", SMALL)
    assert find_tf1(tmp_path) == tmp_path / "bert_model.ckpt"
    assert_same(read_tf1(find_tf1(tmp_path)), SMALL)


@pytest.mark.parametrize("path", ["model.ckpt-200", "/home/somebody/run/model.ckpt-200", r"C:\\\\run\\\\model.ckpt-200"])
def test_of_several_checkpoints_the_one_that_the_state_file_names_is_taken(tmp_path, path):
    for step in (100, 200, 300):
        write_tf1(tmp_path / f"model.ckpt-{step}", SMALL)
    with pytest.raises(InputError, match=r"several .* model\.ckpt-100, model\.ckpt-200, model\.ckpt-300; no file"):
        find_tf1(tmp_path)
    rest = 'all_model_checkpoint_paths: "model.ckpt-100"\n'
    (tmp_path / "checkpoint").write_text(f'{rest}model_checkpoint_path: "{path}"\n{rest}')
    assert find_tf1(tmp_path) == tmp_path / "model.ckpt-200"


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b'model_checkpoint_path: "gone/model.ckpt-9"', b"model_checkpoint_path: 7"])
def test_a_state_file_that_names_none_of_several_is_refused(tmp_path, text):
    for step in (100, 200):
        write_tf1(tmp_path / f"model.ckpt-{step}", SMALL)
    (tmp_path / "checkpoint").write_bytes(text)
    with pytest.raises(InputError, match=r"model\.ckpt-100, model\.ckpt-200"):
        find_tf1(tmp_path)


# ---- CRC-32C and protobuf


@pytest.mark.parametrize(
    "data, crc",
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_gives_the_values_of_rfc_3720(data, crc):
    assert crc32c(np.frombuffer(data, np.uint8)) == crc


def test_crc32c_of_long_data_is_that_of_the_definition():
    data = np.random.default_rng(2).integers(0, 256, 600_000, dtype=np.uint8)
    sizes = [1, 5680, 5681, 5682, 10_003, 45_475, 45_477, 262_144, 262_145, 600_000]
    crc = 0xFFFFFFFF
    for start, stop in pairwise([0, *sizes]):
        for byte in data[start:stop].tolist():
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        assert crc32c(data[:stop]) == crc ^ 0xFFFFFFFF, stop
    assert masked(0) == 0xA282EAD8


def test_fields_of_a_message_are_read_by_number():
    message = b"\x08\x96\x01" + b"\x12\x07testing" + b"\x08\x01" + b"\x1d\x00\x00\x80\x3f" + b"\x21" + bytes(8)
    assert fields(message) == {1: [150, 1], 2: [b"testing"], 3: [1.0], 4: [bytes(8)]}
    assert fields(message, "<I")[3] == [0x3F800000]
    assert fields(message)[9] == []
    assert fields(b"\x08" + b"\xff" * 9 + b"\x01") == {1: [2**64 - 1]}


@pytest.mark.parametrize("message", [b"\x08", b"\x12\x05abc", b"\x1d\0\0", b"\x21\0", b"\x0b", b"\x08" + b"\xff" * 9 + b"\x02",
                                     b"\xff" * 10_000, b"\x12" + b"\xff" * 8 + b"\x7f"])  # fmt: skip
def test_a_message_that_is_none_is_refused(message):
    with pytest.raises(ValueError, match=r"cut short|64 bits|wire type"):
        fields(message)
