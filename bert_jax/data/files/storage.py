"""The bytes of local files and URLs, compressed or not, and the files that a name, a folder or a pattern stands for.

fsspec opens URLs (gs://, s3://, https:// and others). `etils.epath`, which Orbax uses, lacks `**` and the generation of an
object, knows only four schemes, and imports TensorFlow where it is installed.
"""

from __future__ import annotations

import bz2
import contextlib
import difflib
import glob
import gzip
import importlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from bert_jax.errors import InputError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BOM = b"\xef\xbb\xbf"


class Hasher(Protocol):
    """Anything like hashlib.sha256()."""

    def update(self, data: bytes | memoryview, /) -> None: ...


class Bad(NamedTuple):
    """A record that cannot be read.

    Attributes:
      reason: the fault.
      at: bytes from the start of the record to the fault.
      fix: what the user can do.
    """

    reason: str
    at: int = 0
    fix: str = ""


def need(module: str, install: str) -> ModuleType:
    """Imports a module. Raises InputError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"reading this source needs {module}, which is not installed: pip install {install}") from None


def filesystem(url: str) -> AbstractFileSystem:
    """Returns the file system of a URL. Raises InputError where its library or credentials are missing."""
    fsspec = need("fsspec", "'bert_jax[gcs]'")
    try:
        return fsspec.core.url_to_fs(url)[0]
    except Exception as error:  # an unknown protocol, a missing library or credentials: each backend has errors of its own
        raise InputError(f"{url}: {error} (gs:// needs: pip install 'bert_jax[gcs]')") from None


# ---- compression

CODECS: dict[str, Callable[[io.BufferedReader], io.BufferedIOBase]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda file: need("pyarrow", "pyarrow").CompressedInputStream(file, "zstd"),
}


def codec_of(path: str) -> str:
    """Returns `.gz` for "a.TXT.GZ", and the empty string for a file that is not compressed."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in CODECS else ""


def suffix_of(path: str) -> str:
    """Returns the suffix of the uncompressed file, `.tsv` for "a/b.TSV.gz"."""
    return os.path.splitext(path[: len(path) - len(codec_of(path))])[1].lower()


# ---- opening


@contextlib.contextmanager
def open_file(path: str) -> Iterator[io.RawIOBase]:
    """Opens the raw, seekable bytes of a local path or URL. Every error of reading them becomes an InputError."""
    try:
        with filesystem(path).open(path, "rb") if "://" in path else open(path, "rb", buffering=0) as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{nearest(path)}") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        fix = "; it is cut short or not in this compression: fetch or compress it again" if codec_of(path) else ""
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}){fix}") from None


class _Hashed(io.RawIOBase):
    """A file that updates a hash with every byte that is read from it."""

    def __init__(self, file: io.RawIOBase, hasher: Hasher | None):
        self._file, self._hasher = file, hasher

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer) or 0
        if self._hasher:
            self._hasher.update(buffer[:count])
        return count


@contextlib.contextmanager
def open_stream(path: str, offset: int = 0, hasher: Hasher | None = None) -> Iterator[io.BufferedReader]:
    """Opens the decompressed bytes from `offset` on. When it closes, `hasher` has seen the whole file as it is stored."""
    with open_file(path) as file:
        raw: io.BufferedReader = io.BufferedReader(_Hashed(file, hasher), 1 << 20)
        stream = raw
        if codec := codec_of(path):
            stream = io.BufferedReader(cast(io.RawIOBase, CODECS[codec](raw)), 1 << 20)
            while offset:
                offset -= len(stream.read(min(offset, 1 << 20))) or offset
        else:
            file.seek(offset)
        yield stream
        while hasher and raw.read(1 << 20):
            pass


def read_lines(path: str, offset: int = 0, hasher: Hasher | None = None) -> Iterator[tuple[int, bytes]]:
    """Yields (byte position, line with its end) from `offset` on, without a byte order mark."""
    with open_stream(path, offset, hasher) as file:
        for line in file:
            if not offset and line.startswith(BOM):
                offset, line = len(BOM), line[len(BOM) :]
            yield offset, line
            offset += len(line)


def decode(raw: bytes) -> str | Bad:
    r"""Returns UTF-8 as text with \n for line ends and none at either end, or what is wrong with it."""
    if (at := raw.find(b"\0")) >= 0:
        return Bad("a NUL byte: a binary file, or UTF-16 (iconv -f UTF-16 -t UTF-8)", at, "save the file as UTF-8")
    try:
        return raw.decode().replace("\r\n", "\n").strip("\r\n")
    except UnicodeDecodeError as error:
        return not_utf8(error)


def not_utf8(error: UnicodeDecodeError) -> Bad:
    """Returns the fault of bytes that are not UTF-8."""
    return Bad(f"byte 0x{error.object[error.start]:02x} is not UTF-8", error.start, "save the file as UTF-8")


# ---- listing


def nearest(path: str) -> str:
    """Returns `; nearest in FOLDER: 'a', 'b'` for the deepest folder that exists on a local path."""
    if "://" in path:
        return ""
    if os.path.isdir(path):
        return ": the folder holds none"
    folder, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    names = difflib.get_close_matches(name, sorted(os.listdir(folder))[:1000], n=3, cutoff=0)
    return f"; nearest in {folder}: {', '.join(map(repr, names)) or 'nothing, it is empty'}"


def matches(source: str) -> list[str]:
    """Returns the files, in any format, that a path, a folder, a pattern or a URL stands for."""
    if "://" in source:
        fs = filesystem(source)
        try:
            found = fs.glob(source.rstrip("/") + "/**" if fs.isdir(source) else source, detail=True)
        except Exception as error:  # credentials, network: each backend has errors of its own
            raise InputError(f"{source}: {type(error).__name__}: {error}") from None
        return [fs.unstrip_protocol(name) for name, info in found.items() if info["type"] == "file"]
    source = os.path.expanduser(source)
    if os.path.isfile(source):
        return [os.path.normpath(source)]
    pattern = os.path.join(source, "**") if os.path.isdir(source) else source
    folder = pattern
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    # Brackets in the name of a folder that exists belong to the name, unless that matches nothing.
    literal = glob.escape(folder) + pattern[len(folder) :]
    paths = glob.glob(literal, recursive=True) or glob.glob(pattern, recursive=True)
    return [os.path.normpath(name) for name in paths if os.path.isfile(name)]


def state(path: str) -> list[int | str] | None:
    """Returns the size and the time (or generation) of a file, which change when it is written again; None if unknown."""
    try:
        if "://" not in path:
            stat = os.stat(path)
            return [stat.st_size, stat.st_mtime_ns]
        info = filesystem(path).info(path)
    except Exception:  # reading the file will report it
        return None
    names = ("generation", "etag", "ETag", "mtime", "LastModified", "last_modified", "created")
    marks = [str(info[name]) for name in names if info.get(name)]
    return [info["size"], marks[0]] if marks else None
