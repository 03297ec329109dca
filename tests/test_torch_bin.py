"""Files are written here without torch, in both of its formats, and then damaged or made hostile in every way."""

import collections
import io
import mmap
import os
import pickle
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import InputError
from bert_jax.formats import torch_bin
from bert_jax.formats.torch_bin import read_torch

RNG = np.random.default_rng(0)
FORMATS = ["zip", "legacy"]
SMALL = {
    "embeddings.weight": RNG.standard_normal((3, 2)).astype(np.float32),
    "pooler.bias": RNG.standard_normal(4).astype(np.float16),
    "position_ids": np.arange(5)[None],
}
STORAGES = {
    np.dtype(ours): f"{name}Storage"
    for name, ours in [("Float", "f4"), ("Double", "f8"), ("Half", "f2"), ("BFloat16", ml_dtypes.bfloat16), ("Char", "i1"),
                       ("Short", "i2"), ("Int", "i4"), ("Long", "i8"), ("Byte", "u1"), ("Bool", "?")]
}  # fmt: skip


# ---- a writer of both formats


class Global:
    """A name, written as pickle writes a function's."""

    def __init__(self, name):
        self.name = name

    def __call__(self):  # pickle wants to see that it could be called
        raise AssertionError


class Call:
    """A call of a global, perhaps with a state to BUILD."""

    def __init__(self, name, *args, state=None):
        self.reduced = (Global(name), args, state)

    def __reduce__(self):
        return self.reduced


class Storage:
    """A one-dimensional array that tensors share; `claim`ed to be of another length, as a view of old torch, or odd."""

    def __init__(self, array, claim=None, view=None, pid=None, key=None):
        self.array, self.claim, self.view, self.pid, self.key = array, claim, view, pid, key


def tensor(storage, size, stride, offset=0, version="_v2"):
    rest = {"": (), "_v2": (False, collections.OrderedDict())}[version]
    return Call(f"torch._utils _rebuild_tensor{version}", storage, offset, size, stride, *rest)


def whole(array, version="_v2"):
    array = np.ascontiguousarray(array) if array.ndim else array
    strides = tuple(s // array.itemsize for s in array.strides)
    return tensor(Storage(array.reshape(-1)), array.shape, strides, version=version)


class Writer(pickle._Pickler):
    """Pickles globals that cannot be imported, and storages by reference; keeps the storages."""

    def __init__(self, file, form, protocol):
        super().__init__(file, protocol)
        self.form, self.storages = form, {}

    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, Global):
            return super().save(obj, save_persistent_id)
        if self.proto < 4:
            return self.write(b"c" + obj.name.replace(" ", "\n").encode() + b"\n")
        for part in obj.name.split(" "):
            super().save(part)
        return self.write(pickle.STACK_GLOBAL)

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key = obj.key or str(id(obj) if self.form == "legacy" else len(self.storages))
        obj.key = key
        self.storages[key] = obj.array
        count = len(obj.array) if obj.claim is None else obj.claim
        pid = ("storage", Global(f"torch {STORAGES[obj.array.dtype]}"), key, "cpu", count)
        return obj.pid or (*pid, obj.view) * (self.form == "legacy") or pid


def pickled(obj, form="zip", protocol=2):
    file = io.BytesIO()
    writer = Writer(file, form, protocol)
    writer.dump(obj)
    return file.getvalue(), writer.storages


def archive(data, storages=(), top="archive", records=(), compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as z:
        records = {"byteorder": b"little", "version": b"3\n", **dict(records)}
        for name, content in [
            ("data.pkl", data),
            *((f"data/{k}", a.tobytes()) for k, a in dict(storages).items()),
            *records.items(),
        ]:
            z.writestr(f"{top}/{name}" if top else name, content)
    return file.getvalue()


def legacy(data, storages=(), magic=0x1950A86A20F9469CFC6C, version=1001, little=True, counts=None, keys=None):
    storages = dict(storages)
    head = [magic, version, {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2}}]
    parts = [*(pickle.dumps(part, 2) for part in head), data, pickle.dumps(list(storages) if keys is None else keys, 2)]
    for key, array in storages.items():
        parts += [struct.pack("<q", (counts or {}).get(key, len(array))), array.tobytes()]
    return b"".join(parts)


def dumps(obj, form="zip", protocol=2):
    data, storages = pickled(obj, form, protocol)
    return (archive if form == "zip" else legacy)(data, storages)


def state(arrays, version="_v2"):
    found = collections.OrderedDict((name, whole(array, version)) for name, array in arrays.items())
    found._metadata = collections.OrderedDict({"": {"version": 1}})
    return found


def load(folder, content):
    """What is read of a file with this content."""
    path = folder / "pytorch_model.bin"
    path.write_bytes(content)
    return read_torch(path)


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


def refusal(folder, content):
    """The message that a file with this content is refused with, which names the file."""
    with pytest.raises(InputError) as caught:
        load(folder, content)
    message = str(caught.value)
    assert message.startswith(str(folder / "pytorch_model.bin"))
    assert len(message) < 1000
    return message


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


def root(array):
    """What owns the memory of an array."""
    while isinstance(array, np.ndarray | memoryview):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array


# ---- what is read


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("version", ["", "_v2"])
def test_a_state_dict_is_read_bit_for_bit_in_both_formats(tmp_path, form, protocol, version):
    assert_same(load(tmp_path, dumps(state(SMALL, version), form, protocol)), SMALL)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_every_type_of_weights_is_read(tmp_path, form, dtype):
    arrays = {"w": np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)}
    assert_same(load(tmp_path, dumps(state(arrays), form)), arrays)


@pytest.mark.parametrize("form", FORMATS)
def test_arrays_are_read_only_views_of_one_map_of_the_file(tmp_path, form):
    got = load(tmp_path, dumps(state(SMALL), form))
    owners = {id(root(array)) for array in got.values()}
    assert len(owners) == 1
    assert isinstance(root(got["pooler.bias"]), mmap.mmap)
    assert not any(array.flags.writeable for array in got.values())


@pytest.mark.parametrize("form", FORMATS)
def test_offsets_strides_and_shared_storages_are_honoured(tmp_path, form):
    base = np.arange(24, dtype=np.float32)
    storage = Storage(base)
    got = load(tmp_path, dumps({
        "all": tensor(storage, (4, 6), (6, 1)), "transposed": tensor(storage, (6, 4), (1, 6)),
        "part": tensor(storage, (2, 3), (6, 2), 7), "expanded": tensor(storage, (3, 2), (0, 1), 22),
        "lone": tensor(storage, (1, 24), (10**9, 1)),
    }, form))  # fmt: skip
    grid = base.reshape(4, 6)
    expected = {
        "all": grid,
        "transposed": grid.T,
        "part": grid[1:3, 1:6:2],
        "expanded": np.stack([base[22:]] * 3),
        "lone": base[None],
    }
    assert_same(got, expected)
    assert np.shares_memory(got["all"], got["transposed"])


@pytest.mark.parametrize("form", FORMATS)
def test_empty_and_scalar_tensors_are_read(tmp_path, form):
    arrays = {"none": np.zeros((0, 3), np.float32), "one": np.array(7), "no": np.zeros((2, 0), np.int8)}
    assert_same(load(tmp_path, dumps(state(arrays), form)), arrays)


def test_parameters_are_their_tensors(tmp_path):
    w = np.arange(3, dtype=np.float32)
    hooks = collections.OrderedDict()
    found = {
        "a": Call("torch._utils _rebuild_parameter", whole(w), True, hooks),
        "b": Call("torch._utils _rebuild_parameter_with_state", whole(w), True, hooks, {"note": 1}),
        "c": Call("torch.nn.parameter Parameter", whole(w), True),
    }
    assert_same(load(tmp_path, dumps(found)), {"a": w, "b": w, "c": w})


def test_views_of_storages_as_old_torch_wrote_them_begin_at_their_place(tmp_path):
    base = np.arange(10, dtype=np.float32)
    found = {"w": tensor(Storage(base, view=("v", 4, 5), key="k"), (2,), (1,), 1)}
    assert_same(load(tmp_path, dumps(found, "legacy")), {"w": base[5:7]})
    found = {"w": tensor(Storage(base, view=("v", 4, 5), key="k"), (5,), (1,), 1)}
    assert "reaches past its storage" in refusal(tmp_path, dumps(found, "legacy"))
    found = {"w": tensor(Storage(base, view=("v", 4, 7), key="k"), (1,), (1,))}
    assert "cut short" in refusal(tmp_path, dumps(found, "legacy"))
    found = {"w": tensor(Storage(base, view=("v", -1, 7), key="k"), (1,), (1,))}
    assert "cut short" in refusal(tmp_path, dumps(found, "legacy"))


def test_an_ordered_dict_of_python_2_is_read(tmp_path):
    class Python2(Writer):
        def save(self, obj, save_persistent_id=True):
            if type(obj) is str:
                return self.write(b"U" + bytes([len(obj)]) + obj.encode())
            return super().save(obj, save_persistent_id)

    file = io.BytesIO()
    writer = Python2(file, "legacy", 2)
    pairs = [[name, whole(array)] for name, array in SMALL.items()]
    writer.dump(Call("collections OrderedDict", pairs, state={"_metadata": {}}))
    assert_same(load(tmp_path, legacy(file.getvalue(), writer.storages)), SMALL)


@pytest.mark.parametrize("top", ["archive", "pytorch_model", "model.bin-1 (2)"])
def test_the_top_folder_of_a_zip_may_have_any_name(tmp_path, top):
    data, storages = pickled(state(SMALL))
    assert_same(load(tmp_path, archive(data, storages, top)), SMALL)


def test_a_zip_without_a_byteorder_record_is_little_endian(tmp_path):
    data, storages = pickled(state(SMALL))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        for name, content in [("data.pkl", data), *((f"data/{k}", a.tobytes()) for k, a in storages.items())]:
            z.writestr(f"archive/{name}", content)
    assert_same(load(tmp_path, file.getvalue()), SMALL)


def test_a_compressed_zip_is_unpacked(tmp_path):
    data, storages = pickled(state(SMALL))
    got = load(tmp_path, archive(data, storages, compression=zipfile.ZIP_DEFLATED))
    assert_same(got, SMALL)
    assert not any(array.flags.writeable for array in got.values())


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model"])
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, name):
    found = {
        "epoch": 3,
        name: state(SMALL),
        "optimizer": {"state": {0: {"step": whole(np.array(1))}}},
        "loss": whole(np.array(0.5)),
    }
    assert_same(load(tmp_path, dumps(found)), SMALL)


def test_what_is_no_tensor_is_left_out(tmp_path):
    found = {
        **state(SMALL),
        "epoch": 3,
        "name": "bert",
        "note": None,
        "rate": 0.5,
        "done": True,
        "big": 2**80,
        7: whole(np.array(1)),
    }
    assert_same(load(tmp_path, dumps(found)), SMALL)


@pytest.mark.parametrize(
    "found, named",
    [
        ({"nli": {"w": whole(np.ones(2))}, "dim": 3}, ["'nli' (dict)", "'dim' (int)"]),
        ({"a": 1, "b": "x"}, ["'a' (int)", "'b' (str)"]),
        ({"model": {"w": whole(np.ones(2)), "n": 1}}, ["'model' (dict)"]),
        ({"model": {"w": whole(np.ones(2))}, "state_dict": {"w": whole(np.ones(2))}}, ["'model' (dict)", "'state_dict' (dict)"]),
        ({"w": whole(np.ones(2)), "more": [1]}, ["'w' (Tensor)", "'more' (list)"]),
        ({f"k{i}": None for i in range(9)}, ["'k4' (NoneType), ..."]),
        ([whole(np.ones(2))], ["(list)"]),
        (whole(np.ones(2)), ["(Tensor)"]),
        (Storage(np.ones(2)), ["(Storage)"]),
        (Global("torch float32"), ["(Global)"]),
        ({}, ["(dict)"]),
        (None, ["(NoneType)"]),
        ("text", ["(str)"]),
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_other_contents_are_refused_with_what_was_found(tmp_path, form, found, named):
    message = refusal(tmp_path, dumps(found, form))
    assert "expected a dict of tensors" in message
    for name in named:
        assert name in message


@pytest.mark.parametrize("form", FORMATS)
def test_a_large_file_takes_no_memory(tmp_path, form):
    array = np.zeros(1 << 24, np.float32)
    array[-1] = 1
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(dumps({"w": whole(array), "t": whole(array[:5])}, form))
    del array
    status = Path("/proc/self/statm")
    before = int(status.read_text().split()[1]) if status.exists() else 0
    tracemalloc.start()
    got = read_torch(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    after = int(status.read_text().split()[1]) if status.exists() else 0
    assert peak < 5 << 20
    assert (after - before) * 4096 < 8 << 20
    assert got["w"].shape == (1 << 24,)
    assert got["w"][-1] == 1


# ---- code


class Trap:
    """Pickles as a call that would leave a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def global_of(name):
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


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


# ---- other files


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no .*absent\.bin"):
        read_torch(tmp_path / "absent.bin")


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_torch(tmp_path)


@pytest.mark.parametrize(
    "content", [b"\n", b"PK\3\4", b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b"\0" * 600, b"K\1."]
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    message = refusal(tmp_path, content)
    assert "not written by torch.save" in message or "not of torch.save" in message


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.bin").touch()
    with pytest.raises(InputError, match=r"a\.bin cannot be read"):
        read_torch(tmp_path / "a.bin")


def test_a_bare_pickle_is_refused(tmp_path):
    assert "no magic number" in refusal(tmp_path, pickle.dumps({"a": 1}))


def test_another_version_of_the_legacy_format_is_refused(tmp_path):
    assert "another version" in refusal(tmp_path, legacy(*pickled(state(SMALL), "legacy"), version=1002))


def test_big_endian_files_are_refused_by_name(tmp_path):
    assert "big-endian" in refusal(tmp_path, legacy(*pickled(state(SMALL), "legacy"), little=False))
    assert "big-endian" in refusal(tmp_path, archive(*pickled(state(SMALL)), records={"byteorder": b"big"}))


@pytest.mark.parametrize("record", ["constants.pkl", "code/__torch__.py"])
def test_torchscript_is_refused_by_name(tmp_path, record):
    assert "TorchScript" in refusal(tmp_path, archive(*pickled(state(SMALL)), records={record: b""}))


def test_a_tar_file_is_refused_by_name(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "pytorch_model.bin", "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    assert "before 0.1.10" in refusal(tmp_path, (tmp_path / "pytorch_model.bin").read_bytes())


def test_a_zip_of_another_kind_is_refused(tmp_path):
    data, storages = pickled(state(SMALL))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        z.writestr("a/data.pkl", data)
        z.writestr("b/data.pkl", data)
    assert "not of torch.save" in refusal(tmp_path, file.getvalue())
    assert "not of torch.save" in refusal(tmp_path, archive(data, storages, top="a/b"))
    assert "not of torch.save" in refusal(tmp_path, archive(data, storages, top=""))


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


# ---- the real thing


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_torch_are_read_as_torch_reads_them(tmp_path, torch, form, protocol):
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3), torch.nn.BatchNorm1d(3), torch.nn.Embedding(4, 2))
    found = module.state_dict()
    assert found._metadata
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    types = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.int64,
             torch.uint8, torch.bool]  # fmt: skip
    found |= {str(dtype): torch.randn(3, 4).mul(3).to(dtype) for dtype in types}
    found |= {
        "parameter": torch.nn.Parameter(torch.randn(2, 2)), "frozen": torch.nn.Parameter(torch.randn(2), requires_grad=False),
        "base": base, "transposed": base.T, "part": base[1:3, 1::2], "expanded": base[0].expand(3, 6), "flat": base.view(-1)[5:],
        "empty": torch.zeros(0, 3), "cut": base[4:], "scalar": torch.tensor(3), "element": base[2, 3],
    }  # fmt: skip
    noted = torch.nn.Parameter(torch.randn(3))
    noted.note = "x"
    found["noted"] = noted
    path = tmp_path / "pytorch_model.bin"
    torch.save(found, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    expected, got = torch.load(path, weights_only=False), read_torch(path)
    assert list(got) == list(expected)
    for name, there in expected.items():
        assert got[name].shape == tuple(there.shape), name
        assert got[name].dtype.name == str(there.dtype).removeprefix("torch."), name
        assert [s for s, n in zip(got[name].strides, there.shape, strict=True) if n > 1 and there.numel()] == [
            s * there.itemsize for s, n in zip(there.stride(), there.shape, strict=True) if n > 1 and there.numel()
        ], name
        assert got[name].tobytes() == there.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(), name
    assert np.shares_memory(got["base"], got["transposed"])


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMATS)
def test_a_checkpoint_of_torch_with_an_optimizer_is_read(tmp_path, torch, form):
    module = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    path = tmp_path / "a.pt"
    found = {
        "model_state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "size": module.weight.shape,
        "epoch": 1,
    }
    torch.save(found, path, _use_new_zipfile_serialization=form == "zip")
    got = read_torch(path)
    for name, there in module.state_dict().items():
        np.testing.assert_array_equal(got[name], there.numpy())


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMATS)
def test_what_torch_writes_and_weights_do_not_have_is_refused(tmp_path, torch, form):
    new = form == "zip"
    for found, named in [
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "torch.ComplexFloatStorage"),
        ({"w": torch.zeros(2, dtype=torch.uint16)}, "torch.uint16"),
        ({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, "torch.float8_e4m3fn"),
        ({"w": torch.eye(2).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ]:
        torch.save(found, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(InputError, match=named):
            read_torch(tmp_path / "a.pt")


@pytest.mark.parity
def test_a_torchscript_archive_of_torch_is_refused(tmp_path, torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(InputError, match="TorchScript"):
        read_torch(tmp_path / "a.pt")


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMATS)
def test_the_writer_of_these_tests_writes_what_torch_reads(tmp_path, torch, form):
    path = tmp_path / "a.pt"
    path.write_bytes(dumps(state(SMALL), form))
    got = torch.load(path, weights_only=True)
    assert_same({name: array.numpy() for name, array in got.items()}, SMALL)


def test_the_table_of_types_is_that_of_the_writer():
    assert {f"torch.{name}": np.dtype(dtype) for dtype, name in STORAGES.items()} == {
        name: dtype for name, dtype in torch_bin._TYPES.items() if name.endswith("Storage") and "Untyped" not in name
    }
