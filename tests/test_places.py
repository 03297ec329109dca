"""A folder of an object store is used like a local one; files and copies are there whole or not at all."""

import pytest
from helpers import quiet

from bert_jax.config import InputError
from bert_jax.data import places
from bert_jax.data.places import Remote, place

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def bucket():
    fs = fsspec.filesystem("memory")
    yield "memory://bucket"
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


@pytest.fixture(params=["local", "remote"])
def folder(request, bucket, tmp_path):
    return place(f"{bucket}/folder" if request.param == "remote" else tmp_path / "folder")


def test_a_place_is_a_path_or_a_url(tmp_path):
    assert place(tmp_path) == place(str(tmp_path)) == place(f"file://{tmp_path}") == tmp_path
    remote = place("gs://bucket/cache/") / "shard-00000.npy"
    assert isinstance(remote, Remote)
    assert (str(remote), remote.name) == ("gs://bucket/cache/shard-00000.npy", "shard-00000.npy")


def test_files_are_written_listed_read_and_removed_alike(folder):
    places.make_folder(folder)
    for name in ("a", "b"):
        places.write(folder / name, lambda f, name=name: f.write(name.encode()))
    places.write(folder / "a", lambda f: f.write(b"anew"))
    assert sorted((file.name, file.read_bytes()) for file in folder.iterdir()) == [("a", b"anew"), ("b", b"b")]
    assert places.each(lambda file: file.read_bytes(), [folder / "b", folder / "a", folder / "b"]) == [b"b", b"anew", b"b"]
    (folder / "a").unlink()
    assert [(folder / name).exists() for name in "ab"] == [False, True]
    with pytest.raises(FileNotFoundError):
        (folder / "a").read_bytes()
    places.remove_folder(folder)
    places.remove_folder(folder)
    assert not (folder / "b").exists()


@pytest.mark.parametrize("error", [RuntimeError, OSError(28, "No space left on device")])
def test_a_file_that_fails_midway_is_not_there(folder, error):
    def dies(file):
        file.write(b"half")
        raise error

    places.make_folder(folder)
    places.write(folder / "whole", lambda f: f.write(b"whole"))
    with pytest.raises(InputError if isinstance(error, OSError) else error):
        places.write(folder / "half", dies)
    with pytest.raises(InputError if isinstance(error, OSError) else error):
        places.write(folder / "whole", dies)
    assert not (folder / "half").exists()
    assert (folder / "whole").read_bytes() == b"whole"


def test_whatever_a_backend_raises_is_an_input_error(bucket, monkeypatch):
    def refused(*args, **options):
        raise ValueError("Anonymous caller")

    for name in ("exists", "ls", "cat_file", "pipe_file", "rm_file", "get_file"):
        monkeypatch.setattr(type(fsspec.filesystem("memory")), name, refused)
    file = place(bucket) / "a"
    for use in (file.exists, lambda: list(file.iterdir()), file.read_bytes, lambda: places.write(file, lambda f: None),
                file.unlink, lambda: file.download("x")):  # fmt: skip
        with pytest.raises(InputError, match=r"memory://bucket/a: ValueError: Anonymous caller"):
            use()


# ---- copies


@pytest.fixture
def remote(bucket):
    folder = place(f"{bucket}/key")
    for name in "abc":
        places.write(folder / name, lambda f, name=name: f.write(name.encode() * 1000))
    return folder


def test_a_remote_folder_is_copied_once(remote, tmp_path, monkeypatch):
    local = places.fetch(remote, tmp_path / "cache", quiet)
    assert local == tmp_path / "cache" / "key"
    assert {file.name: file.read_bytes() for file in local.iterdir()} == {name: name.encode() * 1000 for name in "abc"}
    monkeypatch.setattr(Remote, "download", None)
    assert places.fetch(remote, tmp_path / "cache", quiet) == local
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), InputError("no network")])
def test_a_copy_that_fails_midway_is_not_there(remote, tmp_path, monkeypatch, error):
    original = Remote.download

    def failing(self, path):
        if self.name == "b":
            raise error
        original(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "download", failing)
        with pytest.raises(type(error) if not isinstance(error, OSError) else InputError, match=r"No space left|no network|^$"):
            places.fetch(remote, tmp_path / "cache", quiet)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(list(places.fetch(remote, tmp_path / "cache", quiet).iterdir())) == 3


def test_of_two_processes_that_copy_one_is_late_and_content(remote, tmp_path, monkeypatch):
    original = Remote.download

    def late(self, path):
        if self.name == "c":
            monkeypatch.setattr(Remote, "download", original)
            places.fetch(remote, tmp_path / "cache", quiet)
        original(self, path)

    monkeypatch.setattr(Remote, "download", late)
    local = places.fetch(remote, tmp_path / "cache", quiet)
    assert len(list(local.iterdir())) == 3
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]
