"""Writes state dicts in both of torch's formats, without torch, for tests."""

import collections
import io
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from bert_jax.config import InputError
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


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()
