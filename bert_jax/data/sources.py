"""Documents of files, addressed by (file, range of documents), so that a corpus can be cut into fixed shards.

    list_files(["text/*.txt"])                        ["text/a.txt", "text/b.txt"]
    scan("text/a.txt", Reader(), segment_bytes=2**24) ([Segment("text/a.txt", start=0, stop=812, ...), ...], sha256)
    read(segment, Reader(), ReadReport())             the texts of documents [start, stop), in order

A source is a local path, a glob, a folder, a URL (`gs://bucket/*.txt`), `tfds:NAME[/CONFIG][:SPLIT]`, or `stdlib:`, the
English text that comes with Python. `files.DOCUMENTS` lists the formats.

A record whose text is null, empty or blank is no document: it has no number and is counted separately. A document that cannot be
read has a number, so that ranges are the same whether bad documents raise or are skipped. A Segment knows the offset of its
first document, so only compressed files are read from their beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bert_jax.config import DataConfig, TextFormat
from bert_jax.data import files
from bert_jax.data.files import Bad
from bert_jax.errors import Checked, InputError, did_you_mean


@dataclass(frozen=True)
class Reader(Checked):
    """The way files are read.

    Attributes:
      documents: what ends a document in a .txt file: a blank line, the end of the line, or the end of the file.
      text_column: the JSON field, column or TFDS feature that holds the text.
      on_error: whether a document that is binary, not UTF-8 or malformed raises InputError, or is skipped and counted.
      format: the format of all files; auto: by suffix.
    """

    documents: Literal["blank_line", "line", "file"] = "blank_line"
    text_column: str = "text"
    on_error: Literal["raise", "skip"] = "raise"
    format: TextFormat = "auto"


def reader_of(cfg: DataConfig) -> Reader:
    """Returns the reader of a config."""
    return Reader(cfg.documents, cfg.text_column, cfg.on_error, cfg.format)


@dataclass(frozen=True)
class Segment:
    """Documents [start, stop) of one file, in `num_bytes` bytes of UTF-8.

    Attributes:
      offset: the place of document `start`: a byte of the (decompressed) text, or a row (.parquet, `tfds:`, `stdlib:`).
      empty: the number of records without a text from here to the next segment; the first segment also counts those before it.
    """

    path: str
    start: int
    stop: int
    offset: int
    num_bytes: int
    empty: int = 0


@dataclass
class ReadReport:
    """Counts of what was left out, by path: skipped documents, the fault of the first one, and records without a text."""

    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)


def list_files(sources: Sequence[str], reader: Reader | None = None) -> list[str]:
    """Returns the files that sources name, sorted, each once."""
    found = files.list_files(sources)
    if not found:
        raise InputError("no text: --data.source names no file")
    reader = reader or Reader()
    for path in found:
        _format(path, reader)
    return found


def _format(path: str, reader: Reader) -> str:
    if reader.format != "auto" and not path.startswith(("tfds:", "stdlib:")):
        return reader.format
    fix = "; name text files only, with a pattern such as 'folder/**/*.txt', or give their format: --data.format txt"
    return files.format_of(path, files.DOCUMENTS, fix)


def _documents(path: str, reader: Reader, offset: int, hasher: files.Hasher | None) -> Iterator[tuple[int, bytes | Bad]]:
    """Yields (offset, UTF-8 or what is wrong with it) of each record. The text is empty where it is null, empty or blank.

    This is one loop because it runs once a document: a call more in it costs a tenth of reading.
    """
    format, column = _format(path, reader), reader.text_column
    request = files.Request(path, (column,), offset, hasher, reader.documents)
    for at, _, record in files.read_records(request, format):
        if not isinstance(record, dict):
            yield at, record
        elif column not in record:
            names = [str(name) for name in record]
            why = f"no {column!r}, it has {', '.join(names) or 'nothing'}{did_you_mean(column, names)} (--data.text-column)"
            if not files.FORMATS[format].own_columns:
                raise InputError(f"{path}: {why}")
            yield at, Bad(why)
        elif isinstance(text := record[column], str):
            try:
                raw: bytes | Bad = b"" if text.isspace() else text.encode()
            except UnicodeEncodeError as error:
                raw = Bad(f"{column!r} is not text ({error})")
            yield at, raw
        elif isinstance(text, bytes):
            yield at, b"" if files.is_blank(text) else text
        else:
            yield at, b"" if text is None else Bad(f"{column!r} is a {type(text).__name__}, not a string")


def scan(path: str, reader: Reader, segment_bytes: int) -> tuple[list[Segment], str]:
    """Cuts a file into segments of at least `segment_bytes` of text (the last may have less), and hashes it, in one pass.

        scan("a.txt", Reader(), 100) -> ([Segment("a.txt", 0, 3, 0, 117), Segment("a.txt", 3, 5, 119, 64)], "9f86d0...")

    The hash is the hex SHA-256 of the file's bytes; of the texts, for `tfds:` and `stdlib:`.
    """
    hasher, segments = hashlib.sha256(), []
    start = stop = offset = size = bad = empty = 0
    for position, value in _documents(path, reader, 0, hasher):
        if not value:
            empty += 1
            continue
        length = len(value)
        if isinstance(value, Bad):
            length, bad, first_bad = 0, bad + 1, (position, value)
            if reader.on_error == "raise":
                raise _error(path, reader, position, value)
        if size >= segment_bytes:
            segments.append(Segment(path, start, stop, offset, size, empty))
            start, size, empty = stop, 0, 0
        if start == stop:
            offset = position
        stop += 1
        size += length
    if stop == 0:
        what = f"{empty} records without a text" if empty else "only whitespace or nothing"
        raise InputError(f"{path}: holds no document, {what}: leave it out")
    if bad == stop:
        raise InputError(f"{path}: all {bad} documents would be skipped; the last: {_complaint(path, reader, *first_bad)}")
    segments.append(Segment(path, start, stop, offset, size, empty))
    return segments, hasher.hexdigest()


def read(segment: Segment, reader: Reader, report: ReadReport) -> Iterator[str]:
    r"""Yields the texts of a segment's documents, in order, with \n for line ends and none at either end.

        list(read(Segment("a.txt", 0, 2, 0, 13), Reader(), ReadReport())) -> ["one\ntwo", "three"]

    Documents that are skipped, and records without a text, are counted in `report`.
    """
    path, index = segment.path, segment.start
    if segment.empty:
        report.empty[path] = report.empty.get(path, 0) + segment.empty
    for position, value in _documents(path, reader, segment.offset, None):
        if not value:
            continue
        text = value if isinstance(value, Bad) else files.decode(value)
        if isinstance(text, str):
            yield text
        else:
            if not isinstance(value, Bad) and _format(path, reader) != "txt":
                text = text._replace(at=0)  # the bytes of a value are not those of the file
            if reader.on_error == "raise":
                raise _error(path, reader, position, text)
            report.skipped[path] = report.skipped.get(path, 0) + 1
            if path not in report.first:
                report.first[path] = _complaint(path, reader, position, text)
        index += 1
        if index == segment.stop:
            return
    raise InputError(f"{path}: has changed since it was scanned: it ends before document {index}")


def _error(path: str, reader: Reader, position: int, bad: Bad) -> InputError:
    complaint = _complaint(path, reader, position, bad)
    return InputError(f"{complaint}; --data.on-error skip skips and counts such documents")


def _complaint(path: str, reader: Reader, position: int, bad: Bad) -> str:
    """Returns place and reason. The number of the line is counted only here, from the start of the file."""
    if not files.FORMATS[_format(path, reader)].by_line:
        return f"{path}: row {position}: {bad.reason}"
    line, left = 1, position + bad.at
    with files.open_stream(path) as file:
        while left and (block := file.read(min(left, 1 << 20))):
            line, left = line + block.count(b"\n"), left - len(block)
    fix = " (Western text of Windows or Latin-1? iconv -f WINDOWS-1252 -t UTF-8)" * bad.reason.endswith("is not UTF-8")
    return f"{path}:{line} (byte {position + bad.at}): {bad.reason}{fix}"
