"""Text files -> documents, addressed by (file, document range), so that a corpus can be cut into fixed shards.

    list_files(["text/*.txt"])                        ["text/a.txt", "text/b.txt"]
    scan("text/a.txt", Reader(), segment_bytes=2**24) ([Segment("text/a.txt", start=0, stop=812, ...), ...], sha256)
    read(segment, Reader(), ReadReport())             the texts of documents [start, stop), in order

A source is a local path, a glob, a folder, a URL (`gs://bucket/*.txt`), `tfds:NAME[/CONFIG][:SPLIT]`, or `stdlib:`, the
English that every Python carries. Formats by suffix: .txt and .md, .jsonl, .csv and .tsv, each also as .gz, .bz2, .xz and .zst,
and .parquet; `Reader.format` says what files of other names are.

A document that is null, empty or whitespace is no document, and has no number: a record of that kind (a line of JSON, a row) is
left out and counted apart. One that cannot be read is counted, so that document ranges are the same whether bad documents
raise or are skipped. A Segment also says where its first document
lies: reading one costs its own size, except in a compressed file, which is decompressed from the start up to there.
"""

from __future__ import annotations

import ast
import bz2
import contextlib
import csv
import difflib
import glob
import gzip
import hashlib
import importlib
import inspect
import io
import json
import lzma
import os
import re
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from bert_jax.config import InputError, TextFormat, did_you_mean


@dataclass(frozen=True)
class Reader:
    """How files are read.

    documents: what ends a document in a .txt file: a blank line, a line's end, or the file's.
    text_column: the field of a JSON object, a column's name or a TFDS feature that holds the text.
    on_error: whether a document that is binary, not UTF-8 or malformed raises InputError, or is skipped and counted.
    format: of all files, whatever their names; auto: by suffix.
    """

    documents: Literal["blank_line", "line", "file"] = "blank_line"
    text_column: str = "text"
    on_error: Literal["raise", "skip"] = "raise"
    format: TextFormat = "auto"

    def __post_init__(self) -> None:
        values = {"documents": ("blank_line", "line", "file"), "on_error": ("raise", "skip"), "format": get_args(TextFormat)}
        for name, known in values.items():
            if getattr(self, name) not in known:
                raise InputError(f"Reader.{name}={getattr(self, name)!r}: not one of {', '.join(known)}")


@dataclass(frozen=True)
class Segment:
    """Documents [start, stop) of one file, in `num_bytes` bytes of UTF-8.

    offset: where document `start` lies: a byte of the (decompressed) text, else a row (.parquet, `tfds:`, `stdlib:`).
    empty: records without a text (null, empty or whitespace) among and behind its documents, up to the next segment's; those
      before a file's first document are the first segment's.
    """

    path: str
    start: int
    stop: int
    offset: int
    num_bytes: int
    empty: int = 0


@dataclass
class ReadReport:
    """What was left out, by path: documents skipped, the first one's place and reason, and records without a text."""

    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Bad:
    """A document that cannot be read: why, and how many bytes into it."""

    reason: str
    at: int = 0


_Documents = Iterator[tuple[int, bytes | Bad]]  # (where it lies, its bytes or what is wrong with them)

# Every byte that occurs in the UTF-8 of whitespace: what has others is not blank, and need not be decoded to know it.
_SPACE_BYTES = bytes({b for i in range(0x3001) if chr(i).isspace() for b in chr(i).encode()})
BOM = b"\xef\xbb\xbf"
_SKIP = "; --data.on-error skip skips and counts such documents"


def _blank(raw: bytes) -> bool:
    return not raw.strip(_SPACE_BYTES) and not raw.decode(errors="replace").strip()


def _need(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"reading this source needs {module}, which is not installed: pip install {install}") from None


def filesystem(url: str) -> Any:
    """fsspec's file system of a URL. Raises InputError where its library or credentials are missing."""
    fsspec = _need("fsspec", "'bert_jax[gcs]'")
    try:
        return fsspec.core.url_to_fs(url)[0]
    except Exception as error:  # no such protocol, library or credentials: each backend has errors of its own
        raise InputError(f"{url}: {error} (gs:// needs: pip install 'bert_jax[gcs]')") from None


def _nearest(path: str) -> str:
    """`; nearest in FOLDER: 'a', 'b'`, for the deepest folder of a local path that exists."""
    if "://" in path:
        return ""
    if os.path.isdir(path):
        return ": the folder holds none"
    folder, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    names = difflib.get_close_matches(name, sorted(os.listdir(folder))[:1000], n=3, cutoff=0)
    return f"; nearest in {folder}: {', '.join(map(repr, names)) or 'nothing, it is empty'}"


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
    """The raw bytes of a local path or URL, seekable; whatever goes wrong while reading them is an InputError."""
    try:
        with filesystem(path).open(path, "rb") if "://" in path else open(path, "rb", buffering=0) as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{_nearest(path)}") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        fix = "; it is cut short or not compressed so: fetch or compress it again" if codec_of(path) else ""
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}){fix}") from None


class _Tee(io.RawIOBase):
    """A file that updates a hash with every byte read from it."""

    def __init__(self, file: Any, hasher: Any):
        self._file, self._hasher = file, hasher

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._file.readinto(buffer)
        if self._hasher:
            self._hasher.update(memoryview(buffer)[:count])
        return count


class _Zstd(io.RawIOBase):
    """The decompressed bytes of zstd frames; EOFError in the middle of one (zstandard's own reader is silent there)."""

    def __init__(self, file: Any):
        self._library = _need("zstandard", "zstandard")
        self._file, self._output = file, memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            ended = self._frame is None or self._frame.eof
            compressed = (self._frame.unused_data if self._frame and ended else b"") or self._file.read(1 << 14)
            if ended and not compressed:
                return 0
            if ended:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            elif not compressed:
                raise EOFError("it ends inside a zstd frame")
            try:
                self._output = memoryview(self._frame.decompress(compressed))
            except self._library.ZstdError as error:
                raise OSError(str(error)) from None
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


_CODECS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file), ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile, ".zst": _Zstd,
}  # fmt: skip


def codec_of(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in _CODECS else ""


@contextlib.contextmanager
def _stream(path: str, offset: int, hasher: Any) -> Iterator[io.BufferedReader]:
    """The decompressed bytes from `offset` on; `hasher` sees the whole raw file by the end."""
    with _open(path) as file:
        raw = io.BufferedReader(_Tee(file, hasher), 1 << 20)
        if codec := codec_of(path):
            stream = io.BufferedReader(_CODECS[codec](raw), 1 << 20)
            while offset:
                offset -= len(stream.read(min(offset, 1 << 20))) or offset
        else:
            file.seek(offset)
            stream = raw
        yield stream
        while hasher and raw.read(1 << 20):
            pass


def read_lines(path: str, offset: int, hasher: Any) -> Iterator[tuple[int, bytes]]:
    """(byte position, line) without a byte order mark."""
    with _stream(path, offset, hasher) as file:
        for line in file:
            if not offset and line.startswith(BOM):
                offset, line = len(BOM), line[len(BOM) :]
            yield offset, line
            offset += len(line)


# The formats: (path, reader, offset, hasher) -> the documents from `offset` on, empty ones among them.


def _text(path: str, reader: Reader, offset: int, hasher: Any) -> _Documents:
    held: list[bytes] = []
    for position, line in read_lines(path, offset, hasher):
        if reader.documents == "line":
            yield position, line
        elif reader.documents == "file" or not _blank(line):
            offset = offset if held else position
            held.append(line)
        elif held:
            yield offset, b"".join(held)
            held = []
    yield offset, b"".join(held)


def _jsonl(path: str, reader: Reader, offset: int, hasher: Any) -> _Documents:
    for position, line in read_lines(path, offset, hasher):
        try:
            if _blank(line):
                continue
            record = json.loads(line)
            if not isinstance(record, dict):
                yield position, Bad(f"a JSON {type(record).__name__}, not an object")
            elif reader.text_column not in record:
                yield position, Bad(_no_column(reader, record))
            elif not isinstance(text := record[reader.text_column], str | None):
                yield position, Bad(f"{reader.text_column!r} is a {type(text).__name__}, not a string")
            else:
                yield position, (text or "").encode()
        except (ValueError, RecursionError) as error:
            yield position, Bad(f"not a JSON object ({error})")


def _csv(path: str, reader: Reader, offset: int, hasher: Any) -> _Documents:
    """Records may go over lines within double quotes."""
    return _columns(path, reader, offset, hasher, ",", _quoted_records)


def _tsv(path: str, reader: Reader, offset: int, hasher: Any) -> _Documents:
    """A line a record; double quotes belong to the text."""
    return _columns(path, reader, offset, hasher, "\t", lambda lines: lines)


def _quoted_records(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    start, held = 0, b""
    for position, line in lines:
        start, held = start if held else position, held + line
        if held.count(b'"') % 2 == 0:
            yield start, held
            held = b""
    if held:
        yield start, held


def _fields(record: bytes, delimiter: str) -> list[str] | Bad:
    if isinstance(text := decode(record), Bad):
        return text
    if delimiter == "\t":
        return text.split("\t")
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        return Bad(f"not a record of comma-separated values ({error})")


def _columns(path: str, reader: Reader, offset: int, hasher: Any, delimiter: str, split: Any) -> _Documents:
    csv.field_size_limit(1 << 30)  # the default, 128 KiB, is less than a long document
    with contextlib.closing(split(read_lines(path, 0, None if offset else hasher))) as records:
        header = next((_fields(record, delimiter) for _, record in records if not _blank(record)), [])
        names = [] if isinstance(header, Bad) else [name.strip() for name in header]
        if names.count(reader.text_column) != 1:
            raise InputError(f"{path}: {header.reason if isinstance(header, Bad) else _no_column(reader, names)}")
        column = names.index(reader.text_column)
        if not offset:
            yield from _column(records, column, len(names), delimiter)
    if offset:
        yield from _column(split(read_lines(path, offset, None)), column, len(names), delimiter)


def _column(records: Iterator[tuple[int, bytes]], column: int, count: int, delimiter: str) -> _Documents:
    for position, record in records:
        if _blank(record):
            continue
        fields = _fields(record, delimiter)
        if isinstance(fields, list) and len(fields) == count:
            yield position, fields[column].encode()
        else:
            why = fields if isinstance(fields, Bad) else Bad(f"{len(fields)} fields where the header has {count}")
            yield position, why


@contextlib.contextmanager
def open_parquet(path: str, hasher: Any) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile; whatever goes wrong while reading it is an InputError. `hasher` sees the raw file."""
    pa, pq = _need("pyarrow", "pyarrow"), _need("pyarrow.parquet", "pyarrow")
    if hasher:
        with _stream(path, 0, hasher):
            pass
    with _open(path) as file:
        try:
            yield pq.ParquetFile(file)
        except pa.ArrowException as error:
            raise InputError(f"{path}: not a readable Parquet file ({error})") from None


def _parquet(path: str, reader: Reader, offset: int, hasher: Any) -> _Documents:
    with open_parquet(path, hasher) as table:
        pa, row = _need("pyarrow", "pyarrow"), 0
        if reader.text_column not in table.schema_arrow.names:
            raise InputError(f"{path}: {_no_column(reader, table.schema_arrow.names)}")
        try:
            for group in range(table.num_row_groups):
                if row + table.metadata.row_group(group).num_rows <= offset:
                    row += table.metadata.row_group(group).num_rows
                    continue
                for batch in table.iter_batches(256, row_groups=[group], columns=[reader.text_column]):
                    for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                        if row >= offset:
                            yield row, value or b""
                        row += 1
        except pa.ArrowNotImplementedError:
            kind = table.schema_arrow.field(reader.text_column).type
            raise InputError(f"{path}: column {reader.text_column!r} is {kind}, not a string") from None


def _no_column(reader: Reader, names: Any) -> str:
    names = [str(name) for name in names]
    near = did_you_mean(reader.text_column, names)
    return f"no {reader.text_column!r}, it has {', '.join(names) or 'nothing'}{near} (--data.text-column)"


def tfds_name(path: str) -> tuple[str, str]:
    """`tfds:glue/sst2:2.0.0:train[:10]` -> ("glue/sst2:2.0.0", "train[:10]"); the split is train if not given."""
    match = re.fullmatch(r"tfds:(\w[\w/.,=-]*(?::(?:\d+|\*)\.(?:\d+|\*)\.(?:\d+|\*))?)(?::(.+))?", path)
    if not match:
        raise InputError(f"{path}: not of the form tfds:NAME[/CONFIG][:SPLIT], as in tfds:glue/sst2:train")
    return match[1], match[2] or "train"


@contextlib.contextmanager
def _tfds_builder(path: str) -> Iterator[Any]:
    """The builder of a prepared TFDS dataset; whatever goes wrong while reading from it is an InputError."""
    tfds = _need("tensorflow_datasets", "tensorflow-datasets array_record importlib_resources")
    name, _ = tfds_name(path)
    # Some of TFDS's own datasets (glue) are known to it only once their module is imported.
    stem, data_dir = re.split("[/:]", name)[0], os.environ.get("TFDS_DATA_DIR")
    found = Path(tfds.__file__).parent.glob(f"[a-z]*/{stem}.py")
    modules = [f"{tfds.__name__}.{file.parent.name}.{stem}" for file in found]
    prepare = (
        f'python -c "import {", ".join([tfds.__name__ + " as tfds", *modules])}; tfds.builder({name!r}, '
        f"data_dir='FOLDER', file_format='array_record').download_and_prepare()\", then set TFDS_DATA_DIR=FOLDER"
    )
    try:
        try:  # what is prepared is read without the code that prepared it
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:
            for module in modules:
                importlib.import_module(module)
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
        yield builder
    except InputError:
        raise
    except NotImplementedError:
        why = f"is prepared as {builder.info.file_format.value}, which cannot be read by index without TensorFlow"
        raise InputError(f"{path}: {builder.data_dir} {why}; prepare it again: {prepare}") from None
    except Exception as error:  # a builder is a program of its own: a download, a parser, a missing library
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(f"{path}: {why}; to prepare it: {prepare}") from None


def tfds_splits(path: str) -> list[str]:
    """The names of the splits that a TFDS dataset has."""
    with _tfds_builder(path) as builder:
        return list(builder.info.splits)


@contextlib.contextmanager
def open_tfds(path: str) -> Iterator[tuple[Any, Any]]:
    """(features by name, records by index) of the split that `path` names."""
    split = tfds_name(path)[1]
    with _tfds_builder(path) as builder:
        if re.split(r"[\[+]", split)[0] not in builder.info.splits:
            raise InputError(f"{path}: no split {split!r}, it has {', '.join(sorted(builder.info.splits))}")
        yield builder.info.features, builder.as_data_source(split=split)


def _tfds(path: str, reader: Reader, offset: int, hasher: Any) -> _Documents:
    with open_tfds(path) as (features, source):
        if reader.text_column not in features:
            raise InputError(f"{path}: {_no_column(reader, sorted(features))}")
        for row in range(offset, len(source)):
            value = source[row][reader.text_column]
            if not isinstance(value, bytes | str):
                raise InputError(f"{path}: {reader.text_column!r} is a {type(value).__name__}, not a string")
            yield row, hashed(value.encode() if isinstance(value, str) else value, hasher)


def hashed(raw: bytes, hasher: Any) -> bytes:
    """`raw`, after `hasher` has seen its length and itself."""
    if hasher:
        hasher.update(b"%d:%b" % (len(raw), raw))
    return raw


_NO_PROSE = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "_bundled", "lib-dynload"}
_NO_PROSE |= {"site-packages", "dist-packages", "__pycache__"}
_NOISE = re.compile(r"\s*(>>>|\.\.\.|[^\w\s][\W_]*$)")  # doctest input, table rules, underlines
_COMMENTS = re.compile(r"(?m)(?:^[ \t]*#.*\n){2,}")


def _stdlib(path: str, reader: Reader, offset: int, hasher: Any) -> _Documents:
    """The topics of `help()`, then a document a module: its docstrings and longer comments, in the file's order."""
    root, seen = Path(sysconfig.get_path("stdlib")), set[str]()
    topics = importlib.import_module("pydoc_data.topics").topics
    documents: list[list[str]] = [[topics[name]] for name in sorted(topics)]
    for file in sorted(root.rglob("*.py")):
        if _NO_PROSE.isdisjoint(file.relative_to(root).parts):
            documents.append(_module_prose(file.read_bytes()))
    index = 0
    for pieces in documents:
        cleaned = (inspect.cleandoc(piece).splitlines() for piece in pieces)
        prose = ("\n".join(line.rstrip() for line in lines if not _NOISE.match(line)).strip() for lines in cleaned)
        fresh = [piece for piece in dict.fromkeys(prose) if piece and piece not in seen]
        seen.update(fresh)
        raw = "\n\n".join(fresh).encode()
        if len(hashed(raw, hasher)) >= 200:
            if index >= offset:
                yield index, raw
            index += 1


def _module_prose(source: bytes) -> list[str]:
    """Docstrings, and comments of two lines and more, of one Python file, which is parsed and not imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the string literals of others
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return []
    text = source.decode(errors="replace")
    pieces = []
    for match in _COMMENTS.finditer(text):
        pieces.append((text.count("\n", 0, match.start()) + 1, re.sub(r"(?m)^[ \t]*#+ ?", "", match[0])))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            pieces.append((node.body[0].lineno if node.body else 0, ast.get_docstring(node) or ""))
    return [piece for _, piece in sorted(pieces)]


_FORMATS: dict[str, Callable[[str, Reader, int, Any], _Documents]] = {
    ".txt": _text,
    ".md": _text,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    "tfds:": _tfds,
    "stdlib:": _stdlib,
}
_BY_LINE = (".txt", ".md", ".jsonl", ".csv", ".tsv")  # which documents lie at bytes
_SUFFIXES = [*(s + c for s in _BY_LINE for c in ("", *_CODECS)), ".parquet"]


def _format(path: str, reader: Reader) -> str:
    """The key of _FORMATS for a path; InputError if there is none."""
    if path.startswith(("tfds:", "stdlib:")):
        return path.split(":")[0] + ":"
    if reader.format != "auto":
        return f".{reader.format}"
    codec = codec_of(path)
    suffix = os.path.splitext(path[: len(path) - len(codec)])[1].lower()
    if suffix + codec not in _SUFFIXES:
        known = f"{', '.join(_BY_LINE)}, these also with {', '.join(_CODECS)}; .parquet"
        raise InputError(
            f"{path}: {suffix + codec or 'no suffix'!r} is not a known format ({known})"
            f"{did_you_mean(suffix + codec, _SUFFIXES)}; name text files only, with a pattern such as 'folder/**/*.txt', or say "
            "what they are: --data.format txt"
        )
    return suffix


def _records(path: str, reader: Reader, offset: int, hasher: Any) -> Iterator[tuple[int, bytes | Bad | None]]:
    """Documents from `offset` on, and None for a record (not a .txt's blank lines) that has no text."""
    read = _FORMATS[_format(path, reader)]
    for position, value in read(path, reader, offset, hasher):
        if isinstance(value, Bad) or not _blank(value):
            yield position, value
        elif read is not _text:
            yield position, None


def _documents(path: str, reader: Reader, offset: int, hasher: Any) -> _Documents:
    """Documents from `offset` on; here the blank ones are left out, for every format alike."""
    return ((position, value) for position, value in _records(path, reader, offset, hasher) if value is not None)


def matches(source: str) -> list[str]:
    """The files that one source names, of whatever format."""
    if source.startswith("tfds:"):
        return ["tfds:" + ":".join(tfds_name(source))]
    if source == "stdlib:":
        return [source]
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
    # A folder that is there is meant as it is called: brackets in its name are no pattern, or else one that matches nothing.
    literal = glob.escape(folder) + pattern[len(folder) :]
    found = glob.glob(literal, recursive=True) or glob.glob(pattern, recursive=True)
    return [os.path.normpath(name) for name in found if os.path.isfile(name)]


def list_files(sources: Sequence[str], reader: Reader | None = None) -> list[str]:
    """The files that sources name, sorted, each once; `reader` is to read them.

        list_files(["text/*.txt", "text/a.txt", "tfds:lm1b"]) -> ["text/a.txt", "text/b.txt", "tfds:lm1b:train"]

    A folder stands for all files in it, at any depth; `**` is any depth too.

    Raises:
      InputError: a source that matches nothing (with the nearest names there are), or a file of an unknown format.
    """
    files: set[str] = set()
    for source in [sources] if isinstance(sources, str) else sources:
        if not (found := matches(source)):
            raise InputError(f"{source}: matches no file{_nearest(os.path.expanduser(source))}")
        files.update(found)
    if not files:
        raise InputError("no text: --data.source names no file")
    for file in sorted(files):
        _format(file, reader or Reader())
    return sorted(files)


def state(path: str) -> list[Any] | None:
    """What changes when a file is written anew: its size, and its time or an object's generation; None where neither is known."""
    try:
        if "://" not in path:
            stat = os.stat(path)
            return [stat.st_size, stat.st_mtime_ns]
        info = filesystem(path).info(path)
    except Exception:  # whatever is wrong, reading the file says it better
        return None
    marks = [str(info[name]) for name in ("generation", "etag", "ETag", "mtime", "LastModified", "last_modified", "created")
             if info.get(name)]  # fmt: skip
    return [info["size"], marks[0]] if marks else None


def scan(path: str, reader: Reader, segment_bytes: int) -> tuple[list[Segment], str]:
    """Cut a file, in one pass, into segments of at least `segment_bytes` of text (but for the last); and hash it.

        scan("a.txt", Reader(), 100) -> ([Segment("a.txt", 0, 3, 0, 117), Segment("a.txt", 3, 5, 119, 64)], "9f86d0...")

    The hash is the hex SHA-256 of the file's bytes; of the texts, for `tfds:` and `stdlib:`.

    Raises:
      InputError: a file that is missing, unreadable or holds no document; a malformed record, unless they are skipped
        (what is wrong with a document's characters is found by `read`).
    """
    hasher, segments = hashlib.sha256(), []
    start = stop = offset = size = bad = empty = 0
    for position, value in _records(path, reader, 0, hasher):
        if value is None:
            empty += 1
            continue
        if isinstance(value, Bad):
            bad, first_bad = bad + 1, (position, value)
            if reader.on_error == "raise":
                raise InputError(_complaint(path, reader, position, value) + _SKIP)
        if size >= segment_bytes:
            segments.append(Segment(path, start, stop, offset, size, empty))
            start, size, empty = stop, 0, 0
        if start == stop:
            offset = position
        stop += 1
        size += 0 if isinstance(value, Bad) else len(value)
    if stop == 0:
        what = f"{empty} records without a text" if empty else "only whitespace or nothing"
        raise InputError(f"{path}: holds no document, {what}: leave it out of --data.source")
    if bad == stop:
        raise InputError(f"{path}: all {bad} documents would be skipped; the last: {_complaint(path, reader, *first_bad)}")
    segments.append(Segment(path, start, stop, offset, size, empty))
    return segments, hasher.hexdigest()


def read(segment: Segment, reader: Reader, report: ReadReport) -> Iterator[str]:
    r"""The texts of a segment's documents, in order; line ends are \n, and none stands at either end.

        list(read(Segment("a.txt", 0, 2, 0, 13), Reader(), ReadReport())) -> ["one\ntwo", "three"]

    Documents that cannot be read are counted in `report` if `reader.on_error` is "skip", and so are records without a text.

    Raises:
      InputError: a file that is missing or has changed since `scan`; a document that is binary, not UTF-8 or malformed.
    """
    path, documents = segment.path, _documents(segment.path, reader, segment.offset, None)
    if segment.empty:
        report.empty[path] = report.empty.get(path, 0) + segment.empty
    for index in range(segment.start, segment.stop):
        if not (document := next(documents, None)):
            raise InputError(f"{path}: has changed since it was scanned: it ends before document {index}")
        position, value = document
        text = value if isinstance(value, Bad) else decode(value)
        if isinstance(text, str):
            yield text
            continue
        if reader.on_error == "raise":
            raise InputError(_complaint(path, reader, position, text) + _SKIP)
        report.skipped[path] = report.skipped.get(path, 0) + 1
        if path not in report.first:
            report.first[path] = _complaint(path, reader, position, text)


def decode(raw: bytes) -> str | Bad:
    if (at := raw.find(b"\0")) >= 0:
        return Bad("a NUL byte: a binary file, or UTF-16 (iconv -f UTF-16 -t UTF-8)", at)
    try:
        return raw.decode().replace("\r\n", "\n").strip("\r\n")
    except UnicodeDecodeError as error:
        return Bad(f"byte 0x{raw[error.start]:02x} is not UTF-8", error.start)


def _complaint(path: str, reader: Reader, position: int, bad: Bad) -> str:
    """Place and reason; the line's number is counted only here, from the start of the file."""
    kind = _format(path, reader)
    if kind not in _BY_LINE:
        return f"{path}: row {position}: {bad.reason}"
    position += 0 if kind == ".jsonl" else bad.at
    line, left = 1, position
    with _stream(path, 0, None) as file:
        while left and (block := file.read(min(left, 1 << 20))):
            line, left = line + block.count(b"\n"), left - len(block)
    fix = " (Western text of Windows or Latin-1? iconv -f WINDOWS-1252 -t UTF-8)" * bad.reason.endswith("is not UTF-8")
    return f"{path}:{line} (byte {position}): {bad.reason}{fix}"
