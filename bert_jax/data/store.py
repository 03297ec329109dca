"""The store of a token cache: a local folder, or a folder of an object store by its URL.

    as_path("runs/cache")             Path("runs/cache")
    as_path("gs://bucket/cache")      RemotePath("gs://bucket/cache"), with the part of pathlib.Path that the cache uses

A store must show a file only once it is whole, as gs:// and s3:// do.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from bert_jax import disk
from bert_jax.data import files
from bert_jax.data.workers import Progress
from bert_jax.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


class RemotePath:
    """A file or folder of an object store, where folders need not be made, and a file appears whole once it is written."""

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        self.name = self._url.rpartition("/")[2]

    def __str__(self) -> str:
        return self._url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self._url}/{name}")

    def _call(self, method: str, *args: object, **options: object) -> Any:
        """Calls a method of the file system, without its cached listing of this folder because others write there too.

        Every error but a missing file (credentials, network; each backend has errors of its own) becomes an InputError.
        """
        try:
            system = files.filesystem(self._url)
            system.invalidate_cache(self._url)
            return getattr(system, method)(self._url, *args, **options)
        except (FileNotFoundError, InputError):
            raise
        except Exception as error:
            raise InputError(f"{self._url}: {type(error).__name__}: {error}") from None

    def exists(self) -> bool:
        return bool(self._call("exists"))

    def iterdir(self) -> Iterator[RemotePath]:
        names = self._call("ls", detail=False)  # a name that ends with a slash is the folder itself
        yield from (self / name.rpartition("/")[2] for name in names if not name.endswith("/"))

    def read_bytes(self) -> bytes:
        return bytes(self._call("cat_file"))

    def write_bytes(self, content: bytes) -> None:
        self._call("pipe_file", content)

    def unlink(self) -> None:
        self._call("rm_file")

    def remove(self) -> None:
        self._call("rm", recursive=True)

    def download(self, path: Path) -> None:
        self._call("get_file", str(path))


AnyPath = Path | RemotePath


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """Returns the path of a local name or a URL."""
    text = os.fspath(path).removeprefix("file://")
    return RemotePath(text) if "://" in text else Path(text)


def each(function: Callable[[T], R], paths: Sequence[T]) -> list[R]:
    """Returns [function(path) ...]; many at a time for URLs, whose answers take long."""
    if not any("://" in str(path) for path in paths):
        return list(map(function, paths))
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(function, paths))


def make_folder(path: AnyPath) -> None:
    """Makes a folder and those above it. Raises InputError if it cannot be made."""
    try:
        if isinstance(path, Path):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _unwritable(path, e) from None


def remove_folder(path: AnyPath) -> None:
    """Removes a folder and all in it, as far as that exists and can be removed."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError, InputError):
        path.remove()


def write(path: AnyPath, save: Callable[[IO[bytes]], object]) -> None:
    """Writes a file whole or not at all, by `save`, which writes to the file object it is given. Raises InputError."""
    try:
        if isinstance(path, RemotePath):
            buffer = io.BytesIO()
            save(buffer)
            path.write_bytes(buffer.getvalue())
            return
        with disk.whole(path) as temporary, open(temporary, "wb") as f:
            save(f)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise _unwritable(path, e) from None


def fetch(folder: RemotePath, into: Path, progress: Progress) -> Path:
    """Returns a local copy, which can be memory-mapped, of a remote folder of files. It is made once, whole, in `into`."""
    local = into / folder.name
    if local.exists():
        return local
    temporary = disk.beside(local)
    try:
        temporary.mkdir(parents=True)
        files = list(folder.iterdir())
        with ThreadPoolExecutor(32) as pool:
            copied = pool.map(lambda file: file.download(temporary / file.name), files)
            list(progress(copied, len(files), "copy"))
        os.replace(temporary, local)
    except OSError as e:
        if not local.exists():  # else another process of this host was faster
            raise InputError(f"cannot copy {folder} to {local}: {e.strerror or e}") from None
    finally:
        remove_folder(temporary)
    return local


def _unwritable(path: AnyPath, error: OSError) -> InputError:
    reason = error.strerror or f"{error} (is the disk full?)"  # NumPy says only how many bytes it could write
    return InputError(f"cannot write the token cache {path}: {reason}; set --data.cache-dir elsewhere")
