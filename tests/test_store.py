"""A folder of an object store is used like a local one; files and copies are there whole or not at all."""

import pytest
from helpers import quiet

from bert_jax.config import InputError
from bert_jax.data import store
from bert_jax.data.store import RemotePath, as_path

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def bucket():
    fs = fsspec.filesystem("memory")
    yield "memory://bucket"
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


@pytest.fixture(params=["local", "remote"])
def folder(request, bucket, tmp_path):
    return as_path(f"{bucket}/folder" if request.param == "remote" else tmp_path / "folder")


def test_a_place_is_a_path_or_a_url(tmp_path):
    assert as_path(tmp_path) == as_path(str(tmp_path)) == as_path(f"file://{tmp_path}") == tmp_path
    remote = as_path("gs://bucket/cache/") / "shard-00000.npy"
    assert isinstance(remote, RemotePath)
    assert (str(remote), remote.name) == ("gs://bucket/cache/shard-00000.npy", "shard-00000.npy")


def test_files_are_written_listed_read_and_removed_alike(folder):
    store.make_folder(folder)
    for name in ("a", "b"):
        store.write(folder / name, lambda f, name=name: f.write(name.encode()))
    store.write(folder / "a", lambda f: f.write(b"anew"))
    assert sorted((file.name, file.read_bytes()) for file in folder.iterdir()) == [("a", b"anew"), ("b", b"b")]
    assert store.each(lambda file: file.read_bytes(), [folder / "b", folder / "a", folder / "b"]) == [b"b", b"anew", b"b"]
    (folder / "a").unlink()
    assert [(folder / name).exists() for name in "ab"] == [False, True]
    with pytest.raises(FileNotFoundError):
        (folder / "a").read_bytes()
    store.remove_folder(folder)
    store.remove_folder(folder)
    assert not (folder / "b").exists()


@pytest.mark.parametrize("error", [RuntimeError, OSError(28, "No space left on device")])
def test_a_file_that_fails_midway_is_not_there(folder, error):
    def dies(file):
        file.write(b"half")
        raise error

    store.make_folder(folder)
    store.write(folder / "whole", lambda f: f.write(b"whole"))
    with pytest.raises(InputError if isinstance(error, OSError) else error):
        store.write(folder / "half", dies)
    with pytest.raises(InputError if isinstance(error, OSError) else error):
        store.write(folder / "whole", dies)
    assert not (folder / "half").exists()
    assert (folder / "whole").read_bytes() == b"whole"


def test_whatever_a_backend_raises_is_an_input_error(bucket, monkeypatch):
    def refused(*args, **options):
        raise ValueError("Anonymous caller")

    for name in ("exists", "ls", "cat_file", "pipe_file", "rm_file", "get_file"):
        monkeypatch.setattr(type(fsspec.filesystem("memory")), name, refused)
    file = as_path(bucket) / "a"
    for use in (file.exists, lambda: list(file.iterdir()), file.read_bytes, lambda: store.write(file, lambda f: None),
                file.unlink, lambda: file.download("x")):  # fmt: skip
        with pytest.raises(InputError, match=r"memory://bucket/a: ValueError: Anonymous caller"):
            use()


# ---- copies


@pytest.fixture
def remote(bucket):
    folder = as_path(f"{bucket}/key")
    for name in "abc":
        store.write(folder / name, lambda f, name=name: f.write(name.encode() * 1000))
    return folder


def test_a_remote_folder_is_copied_once(remote, tmp_path, monkeypatch):
    local = store.fetch(remote, tmp_path / "cache", quiet)
    assert local == tmp_path / "cache" / "key"
    assert {file.name: file.read_bytes() for file in local.iterdir()} == {name: name.encode() * 1000 for name in "abc"}
    monkeypatch.setattr(RemotePath, "download", None)
    assert store.fetch(remote, tmp_path / "cache", quiet) == local
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), InputError("no network")])
def test_a_copy_that_fails_midway_is_not_there(remote, tmp_path, monkeypatch, error):
    original = RemotePath.download

    def failing(self, path):
        if self.name == "b":
            raise error
        original(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "download", failing)
        with pytest.raises(type(error) if not isinstance(error, OSError) else InputError, match=r"No space left|no network|^$"):
            store.fetch(remote, tmp_path / "cache", quiet)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(list(store.fetch(remote, tmp_path / "cache", quiet).iterdir())) == 3


def test_of_two_processes_that_copy_one_is_late_and_content(remote, tmp_path, monkeypatch):
    original = RemotePath.download

    def late(self, path):
        if self.name == "c":
            monkeypatch.setattr(RemotePath, "download", original)
            store.fetch(remote, tmp_path / "cache", quiet)
        original(self, path)

    monkeypatch.setattr(RemotePath, "download", late)
    local = store.fetch(remote, tmp_path / "cache", quiet)
    assert len(list(local.iterdir())) == 3
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]
