"""Files that are made to run code, to take memory or time, or are damaged."""

import collections
import encodings.cp437  # noqa: F401  (zipfile imports it at its first use, which a test would count)
import os
import pickle
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import (
    FORMATS,
    SMALL,
    Call,
    Global,
    Storage,
    archive,
    assert_same,
    dumps,
    legacy,
    load,
    pickled,
    refusal,
    state,
    tensor,
    text,
    whole,
)

from bert_jax.config import InputError
from bert_jax.formats import torch_bin
from bert_jax.formats.torch_bin import read_torch


def load_or_refuse(folder, content):
    """As `load`, or None after an InputError that names the file."""
    try:
        got = load(folder, content)
        for array in got.values():
            array.reshape(-1)[:1000].tobytes()
        return got
    except InputError as error:
        message = str(error)
    assert str(folder) in message
    return None


# ---- code


class Trap:
    """Pickles as a call that would leave a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def global_of(name):
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


SYSTEM = text("touch {path}")

FLOAT, ORDERED = global_of("torch FloatStorage"), global_of("collections OrderedDict")

REFERENCE, END = b"\x80\x02(" + text("storage"), text("0") + text("cpu") + b"K\1tQ."

EVIL = {  # name: (a pickle, what the refusal names)
    "reduce": (b"\x80\x02" + global_of("posix system") + SYSTEM + b"\x85R.", "posix.system"),
    "in a state dict": (b"\x80\x02}" + text("w") + global_of("os system") + SYSTEM + b"\x85Rs.", "os.system"),
    "stack global": (b"\x80\x04" + text("os") + text("system") + b"\x93" + SYSTEM + b"\x85R.", "os.system"),
    "stack global of memo": (b"\x80\x04" + text("os") + b"q\0" + text("system") + b"q\1h\0h\1\x93.", "os.system"),
    "stack global of no string": (b"\x80\x04K\1K\2\x93.", "int where a str"),
    "stack global of a dotted name": (b"\x80\x04" + text("torch") + text("os.system") + b"\x93.", "torch.os.system"),
    "stack global through another": (b"\x80\x04" + text("collections") + text("OrderedDict.x") + b"\x93.", "OrderedDict.x"),
    "inst": (b"(" + SYSTEM + b"iposix\nsystem\n.", "posix.system"),
    "inst of an allowed name": (b"(" + SYSTEM + b"icollections\nOrderedDict\n.", "Global"),
    "obj": (b"(" + global_of("posix system") + SYSTEM + b"o.", "posix.system"),
    "obj of an allowed name": (b"(" + ORDERED + b"o.", "OBJ"),
    "newobj": (b"\x80\x02" + global_of("subprocess Popen") + SYSTEM + b"\x85\x81.", "subprocess.Popen"),
    "newobj of an allowed name": (b"\x80\x02" + global_of("torch.nn.parameter Parameter") + b")\x81.", "NEWOBJ"),
    "newobj_ex": (b"\x80\x04" + ORDERED + b")}\x92.", "NEWOBJ_EX"),
    "ext1": (b"\x80\x02\x82\x01)R.", "EXT1"),
    "ext2": (b"\x80\x02\x83\x01\0)R.", "EXT2"),
    "ext4": (b"\x80\x02\x84\x01\0\0\0)R.", "EXT4"),
    "eval": (b"\x80\x02" + global_of("builtins eval") + text("open('{path}', 'w')") + b"\x85R.", "builtins.eval"),
    "python 2's eval": (b"\x80\x02" + global_of("__builtin__ eval") + b").", "__builtin__.eval"),
    "getattr": (b"\x80\x02" + global_of("builtins getattr") + b").", "builtins.getattr"),
    "copyreg": (b"\x80\x02" + global_of("copyreg _reconstructor") + b").", "copyreg._reconstructor"),
    "add_extension": (b"\x80\x02" + global_of("copyreg add_extension") + b").", "copyreg.add_extension"),
    "torch.load": (b"\x80\x02" + global_of("torch load") + b").", "torch.load"),
    "torch.hub": (b"\x80\x02" + global_of("torch.hub load") + b").", "torch.hub.load"),
    "torch.storage bytes": (b"\x80\x02" + global_of("torch.storage _load_from_bytes") + b").", "_load_from_bytes"),
    "torch._utils import": (b"\x80\x02" + global_of("torch._utils _import_dotted_name") + b").", "_import_dotted_name"),
    "numpy": (b"\x80\x02" + global_of("numpy.core.multiarray _reconstruct") + b").", "numpy.core.multiarray._reconstruct"),
    "codecs": (b"\x80\x02" + global_of("_codecs encode") + b").", "_codecs.encode"),
    "our own module": (b"\x80\x02" + global_of("bert_jax.formats.torch_bin read_torch") + b").", "torch_bin.read_torch"),
    "a name with a line's end": (b"\x80\x04" + text("os\nOK") + text("system") + b"\x93.", r"os\nOK.system"),
    "a name of another case": (b"\x80\x02" + global_of("Collections OrderedDict") + b").", "Collections.OrderedDict"),
    "protocol 0": (b"cposix\nsystem\n(S'touch {path}'\ntR.", "posix.system"),
    "put and get": (b"cposix\nsystem\np0\ng0\n.", "posix.system"),
    "reduce of a string": (b"\x80\x02" + text("os.system") + SYSTEM + b"\x85R.", "str where a _Global"),
    "reduce of a dict": (b"\x80\x02})R.", "dict where a _Global"),
    "build on a name": (b"\x80\x02" + FLOAT + b"}" + text("name") + text("os.system") + b"sb.", "_Global"),
    "build on a list": (b"\x80\x02]}b.", "list where a dict"),
    "build on a number": (b"\x80\x02K\1}b.", "int where a dict"),
    "call of a storage": (b"\x80\x02" + FLOAT + b"K\x05\x85R.", "torch.FloatStorage"),
    "call of a dtype": (b"\x80\x02" + global_of("torch float32") + b")R.", "torch.float32"),
    "size of a number": (b"\x80\x02" + global_of("torch Size") + b"K\1\x85R.", "torch.Size"),
    "ordered dict of a tuple": (b"\x80\x02" + ORDERED + b")\x85R.", "OrderedDict"),
    "ordered dict of odd pairs": (b"\x80\x02" + ORDERED + b"]K\1a\x85R.", "int where a list"),
    "ordered dict of triples": (b"\x80\x02" + ORDERED + b"](]NaNaNae\x85R.", "unpack"),
    "rebuild of nothing": (b"\x80\x02" + global_of("torch._utils _rebuild_tensor_v2") + b")R.", "_rebuild_tensor_v2"),
    "rebuild of no tuple": (b"\x80\x02" + global_of("torch._utils _rebuild_tensor_v2") + b"NR.", "_rebuild_tensor_v2"),
    "rebuild of no storage": (b"\x80\x02" + global_of("torch._utils _rebuild_tensor_v2") + b"(NK\0)))}tR.", "_rebuild_tensor_v2"),
    "parameter of no tensor": (b"\x80\x02" + global_of("torch._utils _rebuild_parameter") + b"(N\x88}tR.", "_rebuild_parameter"),
    "append to a dict": (b"\x80\x02}Na.", "dict where a list"),
    "set item of a list": (b"\x80\x02]" + text("a") + b"Ns.", "list where a dict"),
    "set items without a value": (b"\x80\x02}(" + text("a") + b"u.", "damaged"),
    "persistent id of text": (b"Pstorage\n.", "PERSID"),
    "persistent id of a number": (b"\x80\x02K\1Q.", "something other than a storage"),
    "persistent id of no type": (REFERENCE + text("torch.FloatStorage") + END, "something other"),
    "persistent id of a function": (
        REFERENCE + ORDERED + END, "something other",
    ),
    "persistent id of no key": (REFERENCE + FLOAT + b"))K\1tQ.", "something other"),
    "persistent id of a module": (b"\x80\x02(" + text("module") + b"NNNtQ.", "something other"),
    "persistent id of six and more": (
        REFERENCE + FLOAT + text("0") + b"NK\1NNtQ.", "something other",
    ),
    "empty stack": (b"\x80\x02.", "damaged"),
    "no stop": (b"\x80\x02N", "damaged"),
    "no mark": (b"\x80\x02t.", "damaged"),
    "memo of nothing": (b"\x80\x02h\5.", "damaged"),
    "set": (b"\x80\x04\x8f.", "EMPTY_SET"),
    "frozenset": (b"\x80\x04(\x91.", "FROZENSET"),
    "buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "bytearray of 8 EB": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "damaged"),
    "bytes of 8 EB": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "damaged"),
    "text of 4 GB": (b"\x80\x02X\xff\xff\xff\xff.", "damaged"),
    "number of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "damaged"),
    "number of a negative length": (b"\x80\x02\x8b\xff\xff\xff\xff.", "damaged"),
    "number of 10000 digits": (b"I" + b"9" * 10_000 + b"\n.", "damaged"),
    "memo at 4 billion": (b"\x80\x02Nr\xff\xff\xff\xff.", "(NoneType)"),
    "frame of 8 EB": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.", "(NoneType)"),
    "odd escapes": (b"c\\q\n\\q\n.", ""),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", EVIL)
def test_nothing_is_run_and_what_was_asked_for_is_named(tmp_path, form, name):
    data, named = EVIL[name]
    trap = tmp_path / "trap"
    data = data.replace(SYSTEM, text(f"touch {trap}")).replace(b"{path}", str(trap).encode())
    modules = set(sys.modules)
    message = refusal(tmp_path, archive(data) if form == "zip" else legacy(data))
    assert named in message
    assert not trap.exists()
    assert set(sys.modules) == modules


@pytest.mark.parametrize("place", range(3))
def test_the_small_pickles_of_the_legacy_format_run_nothing_either(tmp_path, place):
    trap = tmp_path / "trap"
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
    parts[place] = pickle.dumps(Trap(trap), 2)
    assert f"{os.name}.mkdir" in refusal(tmp_path, b"".join(parts))
    assert not trap.exists()


def test_the_traps_of_these_tests_do_spring_in_pickle(tmp_path):
    trap = tmp_path / "trap"
    pickle.loads(EVIL["reduce"][0].replace(SYSTEM, text(f"touch {trap}")))
    assert trap.exists()


def test_a_refusal_of_code_says_what_to_do(tmp_path):
    message = refusal(tmp_path, archive(EVIL["reduce"][0]))
    assert "holds code: 'posix.system'" in message
    assert "model.safetensors" in message
    assert "torch.save(model.state_dict()" in message


def test_odd_escapes_do_not_warn_past_the_refusal(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "holds code" in refusal(tmp_path, archive(EVIL["odd escapes"][0]))


A_STORAGE = b"(" + text("storage") + FLOAT + text("0") + text("cpu") + b"K\2tq\0Qq\1"

A_TENSOR = A_STORAGE + global_of("torch._utils _rebuild_tensor") + b"q\2(h\1K\0))tq\3R"

PAIR = b"\x80\x02)" + b"q\0h\0h\0\x86" * 200 + b"q\0"  # memo 0: a tuple of 2**200 parts where they are not shared

COLLIDING = [b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 100_000)]

TIME_BOMBS = {
    "key of a dict": PAIR + b"}h\0Ns.",
    "value": PAIR + b".",
    "entry": PAIR + b"}" + text("a") + b"h\0s.",
    "persistent id": PAIR + b"Q.",
    "key of a storage": PAIR + REFERENCE[2:] + FLOAT + b"h\0NK\1tQ.",
    "key of an ordered dict": PAIR + ORDERED + b"]]h\0aNaa\x85R.",
    "colliding keys": b"\x80\x02}(" + b"".join(COLLIDING) + b"u.",
    "one list, many times": (
        b"\x80\x02" + ORDERED + b"q\0]q\1(" + b"]NaNa" * 100_000 + b"e\x85R" + b"h\0h\1\x85R" * 100_000 + b"."
    ),
    "one long tuple of arguments, many times": (
        b"\x80\x02" + A_STORAGE + global_of("torch._utils _rebuild_tensor") + b"q\2(h\1K\0))" + b"N" * 500_000 + b"tq\3"
        + b"h\2h\3R" * 250_000 + b"."
    ),
    "deep tuples": b"\x80\x02)" + b"\x85" * 2_000_000 + b".",
    "deep lists": b"\x80\x02" + b"]" * 700_000 + b"a" * 699_999 + b".",
    "deep dicts": b"\x80\x02" + (b"}" + text("a")) * 200_000 + b"N" + b"s" * 200_000 + b".",
    "a list in itself": b"\x80\x02]q\0h\0a.",
    "marks": b"\x80\x02" + b"(" * 2_000_000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", TIME_BOMBS)
def test_a_pickle_takes_time_by_its_length(tmp_path, name):
    start = time.process_time()
    refusal(tmp_path, archive(TIME_BOMBS[name]))
    assert time.process_time() - start < 60


def test_a_pickle_beyond_the_bound_is_refused(tmp_path):
    data = pickle.dumps({"a": "x" * (1 << 21)}, 2)
    assert "its record data.pkl has 2097" in refusal(tmp_path, archive(data))
    assert "damaged" in refusal(tmp_path, legacy(data))


MEMORY_BOMBS = {  # name: (a start, what is repeated to the bound of the length)
    "dicts": (b"", b"}"), "lists": (b"", b"]"), "memo": (b"N", b"\x94"), "marks": (b"", b"("), "tuples": (b"N", b"\x85"),
    "dicts of one": (b"", b"}U\0Ns"), "lists of one": (b"", b"]Na"), "numbers": (b"", b"\x8a\1\xff"),
    "floats": (b"", b"G" + b"\x01" * 8), "text": (b"", b"U\2ab"), "names": (global_of("torch Size"), global_of("torch Size")),
    "storages": (A_STORAGE, b"h\0Q"), "tensors": (A_TENSOR, b"h\2h\3R"), "ordered": (ORDERED + b"q\0", b"h\0)R"),
    "a long text": (b"\x8e" + (1 << 17).to_bytes(8, "little") + "\U0001f600".encode(), b"a"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MEMORY_BOMBS)
def test_a_pickle_takes_at_most_200_times_the_memory_of_its_bounded_length(tmp_path, monkeypatch, form, name):
    monkeypatch.setattr(torch_bin, "_LIMIT", 1 << 18)
    first, again = MEMORY_BOMBS[name]
    data = (b"\x80\x04" + first + again * ((1 << 18) // len(again)))[: 1 << 18]
    (tmp_path / "pytorch_model.bin").write_bytes(archive(data) if form == "zip" else legacy(data))
    del data
    tracemalloc.start()
    with pytest.raises(InputError):
        read_torch(tmp_path / "pytorch_model.bin")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 18


# ---- damage


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_anywhere_is_refused(tmp_path, form):
    content = dumps(state(SMALL), form)
    for length in range(1, len(content)):
        refusal(tmp_path, content[:length])
    assert_same(load(tmp_path, content), SMALL)


@pytest.mark.parametrize("form", [*FORMATS, "deflate"])
def test_flipped_bytes_are_refused_or_only_change_what_is_read(tmp_path, form):
    data, storages = pickled(state(SMALL), "legacy" if form == "legacy" else "zip")
    compression = zipfile.ZIP_DEFLATED if form == "deflate" else zipfile.ZIP_STORED
    content = legacy(data, storages) if form == "legacy" else archive(data, storages, compression=compression)
    random = np.random.default_rng(1)
    refused = 0
    for i in range(3 * len(content)):
        damaged = bytearray(content)
        places = [i % len(content), *random.integers(0, len(content), int(random.integers(0, 3)))]
        for place in places:
            damaged[place] = random.integers(256)
        refused += load_or_refuse(tmp_path, bytes(damaged)) is None
    assert refused > len(content) / 2


PIECES = [bytes([op]) for op in b"()]}.NQRQabestu\x85\x86\x87\x88\x89\x93\x94\x8f\x81o02"] + [
    b"q\0", b"h\0", b"q\1", b"h\1", b"K\0", b"K\2", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\0", b"G" + b"\x7f" * 8,
    text("0"), text("storage"), text("w"), text("state_dict"), text("cpu"), b"U\1w", b"\x8e\1" + b"\0" * 7 + b"x",
    *(global_of(name) for name in ("torch FloatStorage", "torch LongStorage", "torch float16", "torch.storage UntypedStorage",
      "collections OrderedDict", "torch Size", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
      "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter", "torch.nn.parameter Parameter")),
    b"(" + text("storage") + FLOAT + text("0") + text("cpu") + b"K\2tQ",
    global_of("torch._utils _rebuild_tensor") + b"(" + text("storage") + FLOAT + text("0") + b"NK\2tQ",
    b"K\0K\2\x85K\1\x85tR",
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=40), st.sampled_from(FORMATS))
def test_random_pickles_are_refused_or_read(tmp_path_factory, pieces, form):
    folder = tmp_path_factory.getbasetemp()
    data = b"\x80\x02}" + b"".join(pieces) + b"."
    storages = {"0": np.ones(2, np.float32)}
    load_or_refuse(folder, archive(data, storages) if form == "zip" else legacy(data, storages))


NUMBERS = st.one_of(st.integers(-3, 9), st.integers(-(2**70), 2**70), st.just(None), st.booleans(), st.floats(), st.just("1"))


@settings(max_examples=500, deadline=None)
@given(st.lists(NUMBERS, max_size=5), st.lists(NUMBERS, max_size=5), NUMBERS, NUMBERS, st.sampled_from(FORMATS))
def test_shapes_strides_and_offsets_of_any_kind_stay_within_the_storage(tmp_path_factory, size, stride, offset, claim, form):
    folder = tmp_path_factory.getbasetemp()
    found = {"w": tensor(Storage(np.ones(6, np.int16), claim=claim), tuple(size), tuple(stride), offset)}
    got = load_or_refuse(folder, dumps(found, form))
    if got is not None:
        assert got["w"].shape == tuple(size)
        assert got["w"].size > 1000 or set(got["w"].ravel().tolist()) <= {1}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "size, stride, offset, why",
    [
        ((7,), (1,), 0, "past its storage"),
        ((3,), (1,), 4, "past its storage"),
        ((2, 2), (5, 1), 0, "past its storage"),
        ((1,), (1,), 6, "past its storage"),
        ((), (), 6, "past its storage"),
        ((2**62,), (2**62,), 0, "past its storage"),
        ((2**32, 2**32), (0, 0), 0, "damaged"),
        ((-1,), (1,), 0, "that no tensor has"),
        ((2,), (-1,), 3, "that no tensor has"),
        ((2,), (1,), -1, "that no tensor has"),
        ((2,), (1, 1), 0, "that no tensor has"),
        ((2.0,), (1,), 0, "that no tensor has"),
        ((True,), (1,), 0, "that no tensor has"),
        ((0, 2**70), (1, 1), 0, "damaged"),
        ((1,) * 100, (1,) * 100, 0, "damaged"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path, form, size, stride, offset, why):
    found = {"w": tensor(Storage(np.ones(6, np.float32)), size, stride, offset)}
    assert why in refusal(tmp_path, dumps(found, form))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("claim", [7, 2**40, 2**70, -1])
def test_a_storage_of_more_elements_than_the_file_holds_is_refused(tmp_path, form, claim):
    found = {"w": tensor(Storage(np.ones(6, np.float32), claim=claim), (6,), (1,))}
    assert "cut short" in refusal(tmp_path, dumps(found, form))


@pytest.mark.parametrize("count", [-1, -(2**63), 7, 2**62])
def test_a_false_count_before_a_legacy_storage_is_refused(tmp_path, count):
    data, storages = pickled({"w": tensor(Storage(np.ones(6, np.float32), key="k"), (6,), (1,))}, "legacy")
    assert "cut short" in refusal(tmp_path, legacy(data, storages, counts={"k": count}))


@pytest.mark.parametrize("keys", [["other"], [1], [("k",)], [[]], "k", {"k": 1}, None, ["k", "k"], []])
def test_a_false_list_of_legacy_storages_is_refused(tmp_path, keys):
    data, storages = pickled({"w": tensor(Storage(np.ones(6, np.float32), key="k"), (6,), (1,))}, "legacy")
    content = legacy(data, {}, keys=keys if keys is not None else 0) + struct.pack("<q", 6) + storages["k"].tobytes()
    refusal(tmp_path, content)


def test_a_missing_record_is_named(tmp_path):
    data, _ = pickled(state(SMALL))
    assert "'data/0'" in refusal(tmp_path, archive(data))


def test_a_reference_to_another_type_stays_within_the_storage(tmp_path):
    w = np.ones(6, np.float32)
    key = ("storage", Global("torch DoubleStorage"), "k", "cpu", 6)
    for form, more in [("zip", ()), ("legacy", (None,))]:
        found = {"v": tensor(Storage(w, key="k"), (6,), (1,)), "w": tensor(Storage(w, key="k", pid=(*key, *more)), (6,), (1,))}
        assert "cut short" in refusal(tmp_path, dumps(found, form))


@pytest.mark.parametrize(
    "name", ["ComplexFloatStorage", "QInt8Storage", "uint16", "complex64", "float8_e4m3fn", "quint8", "bits8", "int1"]
)
def test_types_that_weights_do_not_have_are_refused_by_name(tmp_path, name):
    untyped = Storage(np.ones(4, np.uint8), pid=("storage", Global("torch.storage UntypedStorage"), "0", "cpu", 4))
    rest = (False, collections.OrderedDict(), Global(f"torch {name}"))
    found = {"w": Call("torch._utils _rebuild_tensor_v3", untyped, 0, (2,), (1,), *rest)}
    message = refusal(tmp_path, dumps(found))
    assert f"of the type torch.{name}" in message
    assert "torch.bfloat16" in message


def test_a_tensor_with_its_type_apart_is_read(tmp_path):
    w = np.arange(4, dtype=np.int32)
    untyped = Storage(w, pid=("storage", Global("torch.storage UntypedStorage"), "0", "cpu", 16), key="0")
    rest = (False, collections.OrderedDict(), Global("torch int32"))
    assert_same(load(tmp_path, dumps({"w": Call("torch._utils _rebuild_tensor_v3", untyped, 0, (4,), (1,), *rest)})), {"w": w})
    assert "past its storage" in refusal(
        tmp_path, dumps({"w": Call("torch._utils _rebuild_tensor_v3", untyped, 1, (4,), (1,), *rest)})
    )


def test_a_negative_view_is_refused(tmp_path):
    args = (Storage(np.ones(2)), 0, (2,), (1,), False, collections.OrderedDict())
    assert_same(load(tmp_path, dumps({"w": Call("torch._utils _rebuild_tensor_v2", *args, {})})), {"w": np.ones(2)})
    assert "_rebuild_tensor_v2" in refusal(tmp_path, dumps({"w": Call("torch._utils _rebuild_tensor_v2", *args, {"neg": True})}))


# ---- zip tricks


def directory(content, name, **changes):
    """`content` with fields of `name`'s entry in the zip directory set: (offset in the entry, format) by their name."""
    places = {"flags": (8, "<H"), "method": (10, "<H"), "packed": (20, "<I"), "size": (24, "<I"), "header": (42, "<I")}
    content = bytearray(content)
    entry = content.rindex(name.encode()) - 46
    assert content[entry : entry + 4] == b"PK\1\2"
    for field, value in changes.items():
        struct.pack_into(places[field][1], content, entry + places[field][0], value)
    return bytes(content)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    zeros = np.zeros(100 << 20, np.uint8)
    data, storages = pickled({"w": whole(zeros)})
    content = archive(data, storages, compression=zipfile.ZIP_DEFLATED)
    assert len(content) < 1 << 18
    del zeros, storages
    tracemalloc.start()
    assert "zip bomb" in refusal(tmp_path, content)
    for size in (0, 1, 1000):  # a directory that does not admit it
        assert "does not unpack to" in refusal(tmp_path, directory(content, "archive/data/0", size=size))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_tensors_that_repeat_their_bytes_are_refused_beyond_what_the_file_has(tmp_path):
    """An expanded buffer is honest; four gigabytes of one number, or one storage under a thousand names, are not."""
    storage = Storage(np.arange(8, dtype=np.float32))
    (tmp_path / "a.bin").write_bytes(dumps({"ids": tensor(storage, (1, 8), (0, 1)), "row": tensor(storage, (4, 8), (0, 1))}))
    assert read_torch(tmp_path / "a.bin")["row"].tolist() == 4 * [list(range(8))]
    assert "its tensors have 4,294,967,296 bytes" in refusal(tmp_path, dumps({"w": tensor(storage, (1 << 30,), (0,))}))
    shared = Storage(np.zeros(1 << 20, np.float32))
    tied = {f"w{i}": tensor(shared, (1 << 20,), (1,)) for i in range(100)}
    assert "its tensors have 419,430,400 bytes" in refusal(tmp_path, dumps(tied))


def test_integers_that_no_file_of_weights_has_are_refused_before_anything_is_done_with_them(tmp_path):
    """Two million bits, given a hundred thousand times: each sum or product with it would copy 250 kB."""
    number = (1 << 2_000_000) - 1
    size = number.bit_length() // 8 + 1
    long4 = b"\x8b" + struct.pack("<i", size) + number.to_bytes(size, "little", signed=True)
    content = archive(b"\x80\x02(" + long4 + b"q\x00" + 100_000 * b"h\x00" + b"t.")
    assert "its pickle has an integer of 2,000,000 bits" in refusal(tmp_path, content)


def test_a_bomb_in_the_pickle_is_refused(tmp_path):
    content = archive(b"\x80\x02" + b"N" * (100 << 20) + b".", compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    assert "zip bomb" in refusal(tmp_path, content)
    assert "does not unpack to" in refusal(tmp_path, directory(content, "archive/data.pkl", size=0))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"flags": 1}, "encrypted"),
        ({"method": 12}, "compressed by another method"),
        ({"method": 99}, "compressed by another method"),
        ({"method": 8}, "damaged"),
        ({"packed": 2**31}, "cut short"),
        ({"packed": 3}, "cut short"),
        ({"header": 2**31}, "cut short"),
        ({"header": 1}, "cut short"),
    ],
)
def test_a_false_entry_of_the_zip_directory_is_refused(tmp_path, changes, why):
    content = archive(*pickled(state(SMALL)))
    assert why in refusal(tmp_path, directory(content, "archive/data/1", **changes))


def test_a_huge_zip_directory_is_not_read(tmp_path):
    content = archive(*pickled(state(SMALL)))
    end = content.rindex(b"PK\5\6")
    size, offset = struct.unpack_from("<II", content, end + 12)
    entries = content[offset:end] + b"\0" * (64 << 20)
    content = content[:offset] + entries + content[end : end + 12] + struct.pack("<I", size + (64 << 20)) + content[end + 16 :]
    tracemalloc.start()
    assert "zip directory" in refusal(tmp_path, content)
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()


def test_a_member_of_many_gigabytes_is_found_by_zip64(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # so that zipfile writes zip64 fields for all
    content = archive(*pickled(state(SMALL)))
    monkeypatch.undo()
    end = content.rindex(b"PK\6\6")
    assert_same(load(tmp_path, content), SMALL)
    for field in (24, 32, 40, 48):  # entries (here and in all), bytes of the directory, its place
        load_or_refuse(tmp_path, content[: end + field] + b"\xff" * 8 + content[end + field + 8 :])


def test_a_member_without_its_local_header_is_refused(tmp_path):
    content = archive(*pickled(state(SMALL)))
    place = content.index(b"archive/data/1") - 30
    assert content[place : place + 4] == b"PK\3\4"
    assert "cut short or damaged at 'archive/data/1'" in refusal(tmp_path, content[:place] + b"N" + content[place + 1 :])
