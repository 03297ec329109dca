"""State dicts of torch are read bit for bit, and others are refused by name."""

import collections
import io
import mmap
import pickle
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_writer import (
    FORMATS,
    SMALL,
    STORAGES,
    Call,
    Global,
    Storage,
    Writer,
    archive,
    assert_same,
    dumps,
    legacy,
    load,
    pickled,
    refusal,
    state,
    tensor,
    whole,
)

from bert_jax.config import InputError
from bert_jax.formats import torch_bin
from bert_jax.formats.torch_bin import read_torch


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
    assert "not written by torch.save" in message


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
    assert "not written by torch.save" in refusal(tmp_path, file.getvalue())
    assert "not written by torch.save" in refusal(tmp_path, archive(data, storages, top="a/b"))
    assert "not written by torch.save" in refusal(tmp_path, archive(data, storages, top=""))


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
