"""Files -> documents, addressed by (file, document range), so that a corpus can be cut into fixed shards.

    list_files(["text/*.txt"])                        ["text/a.txt", "text/b.txt"]
    scan("text/a.txt", Reader(), segment_bytes=2**24) ([Segment("text/a.txt", start=0, stop=812, ...), ...], sha256)
    read(segment, Reader(), ReadReport())             the texts of documents [start, stop), in order

A source is a local path, a glob, a folder, a URL (`gs://bucket/*.txt`), `tfds:NAME[/CONFIG][:SPLIT]`, or `stdlib:`, the
English that every Python carries. `files.DOCUMENTS` are the formats, by suffix; `Reader.format` names that of all files.

A record whose text is null, empty or whitespace is no document: it has no number and is counted apart. A document that cannot
be read has a number, so that document ranges are the same whether bad documents raise or are skipped. A Segment also has the
offset of its first document: reading it costs its own size, except in a compressed file, which is decompressed up to there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from bert_jax.config import DataConfig, InputError, TextFormat, did_you_mean
from bert_jax.data import files
from bert_jax.data.files import Bad


@dataclass(frozen=True)
class Reader:
    """The way files are read.

    Attributes:
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


def reader_of(cfg: DataConfig) -> Reader:
    """Returns the reader that a config asks for."""
    return Reader(cfg.documents, cfg.text_column, cfg.on_error, cfg.format)


@dataclass(frozen=True)
class Segment:
    """Documents [start, stop) of one file, in `num_bytes` bytes of UTF-8.

    Attributes:
      offset: where document `start` lies: a byte of the (decompressed) text, else a row (.parquet, `tfds:`, `stdlib:`).
      empty: records without a text among and after its documents, up to the next segment's; those before a file's first
        document are the first segment's.
    """

    path: str
    start: int
    stop: int
    offset: int
    num_bytes: int
    empty: int = 0


@dataclass
class ReadReport:
    """Counts of what was left out, by path: documents skipped, the first one's place and reason, and records without a text."""

    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)


def list_files(sources: Sequence[str], reader: Reader | None = None) -> list[str]:
    """Returns the files that sources name, sorted, each once.

        list_files(["text/*.txt", "text/a.txt", "tfds:lm1b"]) -> ["text/a.txt", "text/b.txt", "tfds:lm1b:train"]

    Raises:
      InputError: a source that matches nothing (with the nearest names there are), or a file that `reader` cannot read.
    """
    found = files.list_files(sources)
    if not found:
        raise InputError("no text: --data.source names no file")
    for path in found:
        _format(path, reader or Reader())
    return found


def _format(path: str, reader: Reader) -> str:
    """The name of a path's format. Raises InputError if it has none."""
    if reader.format != "auto" and not path.startswith(("tfds:", "stdlib:")):
        return reader.format
    fix = "; name text files only, with a pattern such as 'folder/**/*.txt', or give their format: --data.format txt"
    return files.format_of(path, files.DOCUMENTS, fix)


def _documents(path: str, reader: Reader, offset: int, hasher: files.Hasher | None) -> Iterator[tuple[int, bytes | Bad]]:
    """(offset, text or what is wrong with it) of each record; the text is empty where it is null, empty or whitespace."""
    format, column = _format(path, reader), reader.text_column
    request = files.Request(path, (column,), offset, hasher, reader.documents)
    for at, _, value in files.read_records(request, format):
        if isinstance(value, Bad):
            yield at, value
        elif column in value:
            yield at, _text(value[column], column)
        else:
            names = [str(name) for name in value]
            why = f"no {column!r}, it has {', '.join(names) or 'nothing'}{did_you_mean(column, names)} (--data.text-column)"
            if not files.FORMATS[format].own_columns:
                raise InputError(f"{path}: {why}")
            yield at, Bad(why)


def _text(value: object, column: str) -> bytes | Bad:
    """The UTF-8 of a value, not checked if it is bytes; empty if it is blank."""
    if value is None:
        return b""
    if isinstance(value, str):
        if value.isspace():
            return b""
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            return Bad(f"{column!r} is no text ({error})")
    if not isinstance(value, bytes):
        return Bad(f"{column!r} is a {type(value).__name__}, not a string")
    return b"" if files.is_blank(value) else value


def scan(path: str, reader: Reader, segment_bytes: int) -> tuple[list[Segment], str]:
    """Cuts a file, in one pass, into segments of at least `segment_bytes` of text (but for the last); and hashes it.

        scan("a.txt", Reader(), 100) -> ([Segment("a.txt", 0, 3, 0, 117), Segment("a.txt", 3, 5, 119, 64)], "9f86d0...")

    The hash is the hex SHA-256 of the file's bytes; of the texts, for `tfds:` and `stdlib:`.

    Raises:
      InputError: a file that is missing, unreadable or holds no document; a malformed record, unless they are skipped
        (`read` finds what is wrong with a document's characters).
    """
    hasher, segments = hashlib.sha256(), []
    start = stop = offset = size = bad = empty = 0
    for position, value in _documents(path, reader, 0, hasher):
        if not value:
            empty += 1
            continue
        if isinstance(value, Bad):
            bad, first_bad = bad + 1, (position, value)
            if reader.on_error == "raise":
                raise _error(path, reader, position, value)
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
    r"""Yields the texts of a segment's documents, in order, with \n for line ends and none at either end.

        list(read(Segment("a.txt", 0, 2, 0, 13), Reader(), ReadReport())) -> ["one\ntwo", "three"]

    Documents that cannot be read are counted in `report` if `reader.on_error` is "skip", and so are records without a text.

    Raises:
      InputError: a file that is missing or has changed since `scan`; a document that is binary, not UTF-8 or malformed.
    """
    path, raw = segment.path, _format(segment.path, reader) == "txt"
    documents = (found for found in _documents(path, reader, segment.offset, None) if found[1])
    if segment.empty:
        report.empty[path] = report.empty.get(path, 0) + segment.empty
    for index in range(segment.start, segment.stop):
        if (found := next(documents, None)) is None:
            raise InputError(f"{path}: has changed since it was scanned: it ends before document {index}")
        position, value = found
        text = value if isinstance(value, Bad) else files.decode(value)
        if isinstance(text, str):
            yield text
            continue
        if not raw and not isinstance(value, Bad):
            text = text._replace(at=0)  # the bytes of a value are not those of the file
        if reader.on_error == "raise":
            raise _error(path, reader, position, text)
        report.skipped[path] = report.skipped.get(path, 0) + 1
        if path not in report.first:
            report.first[path] = _complaint(path, reader, position, text)


def _error(path: str, reader: Reader, position: int, bad: Bad) -> InputError:
    complaint = _complaint(path, reader, position, bad)
    return InputError(f"{complaint}; --data.on-error skip skips and counts such documents")


def _complaint(path: str, reader: Reader, position: int, bad: Bad) -> str:
    """Place and reason. The line's number is counted only here, from the start of the file."""
    if not files.FORMATS[_format(path, reader)].by_line:
        return f"{path}: row {position}: {bad.reason}"
    line, left = 1, position + bad.at
    with files.open_stream(path) as file:
        while left and (block := file.read(min(left, 1 << 20))):
            line, left = line + block.count(b"\n"), left - len(block)
    fix = " (Western text of Windows or Latin-1? iconv -f WINDOWS-1252 -t UTF-8)" * bad.reason.endswith("is not UTF-8")
    return f"{path}:{line} (byte {position + bad.at}): {bad.reason}{fix}"
