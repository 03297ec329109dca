"""The store of a token cache: a local folder, or one of an object store by its URL, used alike.

    as_path("runs/cache")             Path("runs/cache")
    as_path("gs://bucket/cache")      RemotePath("gs://bucket/cache"), with the part of pathlib.Path that the cache uses

Any URL works that fsspec knows, if its store shows a file only once it is whole, as gs:// and s3:// do.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bert_jax.config import InputError
from bert_jax.data import files
from bert_jax.data.workers import Progress


@contextlib.contextmanager
def _input_errors(url: str) -> Iterator[None]:
    """Turns every error but a missing file into an InputError: credentials, network; each backend has errors of its own."""
    try:
        yield
    except (FileNotFoundError, InputError):
        raise
    except Exception as error:
        raise InputError(f"{url}: {type(error).__name__}: {error}") from None


class RemotePath:
    """A file or folder of an object store, where folders need not be made, and a file appears whole once it is written."""

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        self.name = self._url.rpartition("/")[2]

    def __str__(self) -> str:
        return self._url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self._url}/{name}")

    @property
    def files(self) -> Any:
        """Returns fsspec's file system, without its cached listing of this folder: others write there too."""
        found = files.filesystem(self._url)
        found.invalidate_cache(self._url)
        return found

    def exists(self) -> bool:
        with _input_errors(self._url):
            return bool(self.files.exists(self._url))

    def iterdir(self) -> Iterator[RemotePath]:
        with _input_errors(self._url):
            names = self.files.ls(self._url, detail=False)
        yield from (
            self / name.rpartition("/")[2] for name in names if not name.endswith("/")
        )  # a name that ends with a slash is the folder itself

    def read_bytes(self) -> bytes:
        with _input_errors(self._url):
            return bytes(self.files.cat_file(self._url))

    def write_bytes(self, content: bytes) -> None:
        with _input_errors(self._url):
            self.files.pipe_file(self._url, content)

    def unlink(self) -> None:
        with _input_errors(self._url):
            self.files.rm_file(self._url)

    def download(self, path: Path) -> None:
        """Writes the file's bytes to a local one."""
        with _input_errors(self._url):
            self.files.get_file(self._url, str(path))


AnyPath = Path | RemotePath


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """Returns the path of a local name or a URL."""
    text = os.fspath(path).removeprefix("file://")
    return RemotePath(text) if "://" in text else Path(text)


def each(function: Callable[[Any], Any], paths: Sequence[Any]) -> list[Any]:
    """Returns [function(path) ...]; for URLs many at a time, as each waits for an answer."""
    if not any("://" in str(path) for path in paths):
        return list(map(function, paths))
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(function, paths))


def make_folder(path: AnyPath) -> None:
    """Makes a folder and those above it. Raises InputError where it cannot be made."""
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
    with contextlib.suppress(OSError, InputError), _input_errors(str(path)):
        path.files.rm(str(path), recursive=True)


def write(path: AnyPath, save: Callable[[Any], Any]) -> None:
    """Writes a file whole or not at all: what `save` writes to the file object it is given. Raises InputError."""
    try:
        if isinstance(path, RemotePath):
            buffer = io.BytesIO()
            save(buffer)
            path.write_bytes(buffer.getvalue())
            return
        temporary = _beside(path)
        try:
            with open(temporary, "wb") as f:
                save(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as e:
        raise _unwritable(path, e) from None


def fetch(folder: RemotePath, into: Path, progress: Progress) -> Path:
    """Returns a local copy of a remote folder of files, to be memory-mapped. It is made once in the folder `into`, whole or not.

    Raises:
      InputError: a folder that cannot be read or written.
    """
    local = into / folder.name
    if local.exists():
        return local
    temporary = _beside(local)
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


def _beside(path: Path) -> Path:
    """A name next to `path` that no other process or thread, of whatever host, writes to."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def _unwritable(path: AnyPath, error: OSError) -> InputError:
    reason = error.strerror or f"{error} (is the disk full?)"  # NumPy says only how many bytes it could write
    return InputError(f"cannot write the token cache {path}: {reason}; set --data.cache-dir elsewhere")
