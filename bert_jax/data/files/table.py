"""The table of formats (suffixes, reader, kind of records), and rows of any format.

    format_of("a.tsv.gz", TABLES)      "tsv"
    read_table("a.tsv").columns        ("sentence", "label")
    next(read_table("a.tsv").rows)     Row("a.tsv:2", {"sentence": "A fine film.", "label": "1"})

A new format is a reader in formats.py, a row of FORMATS, and its name in DOCUMENTS or TABLES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

from bert_jax.data.files import datasets, formats
from bert_jax.data.files.formats import Cell, Located, Request, Values, unreadable
from bert_jax.data.files.storage import CODECS, Bad, Hasher, codec_of, matches, nearest, suffix_of
from bert_jax.errors import InputError, did_you_mean

Quotes = Literal["auto", "csv", "none"]
Records = Iterator[Located[Values]] | Iterator[Located[bytes]]
"""The records of a file. Those of plain text are bytes that are not decoded yet, and have no columns."""


@dataclass(frozen=True)
class Format:
    """The suffixes of a format, and its reader.

    Attributes:
      suffixes: the suffixes of file names; none for a source that is not a file, as `tfds:NAME`.
      read: the reader.
      by_line: True if offsets are bytes and places are lines, and files may be compressed; False if both are rows.
      own_columns: True if each record has columns of its own, False if all have those of the file.
      delimiter: the character between fields.
      quoted: True if double quotes enclose fields that hold the delimiter.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Request], Records]
    by_line: bool = True
    own_columns: bool = False
    delimiter: str = ""
    quoted: bool = False


def _delimited(suffixes: tuple[str, ...], delimiter: str, quoted: bool) -> Format:
    def read(request: Request) -> Records:
        return formats.read_delimited(request, delimiter, quoted)[1]

    return Format(suffixes, read, delimiter=delimiter, quoted=quoted)


FORMATS: dict[str, Format] = {
    "txt": Format((".txt", ".md"), formats.read_text),
    "jsonl": Format((".jsonl",), formats.read_json_lines, own_columns=True),
    "csv": _delimited((".csv",), ",", quoted=True),
    "tsv": _delimited((".tsv", ".txt"), "\t", quoted=False),
    "json": Format((".json",), formats.read_json, own_columns=True),
    "parquet": Format((".parquet",), formats.read_parquet, by_line=False),
    "tfds": Format((), datasets.read_tfds, by_line=False),
    "stdlib": Format((), datasets.read_stdlib, by_line=False),
}
DOCUMENTS = ("txt", "jsonl", "csv", "tsv", "parquet", "tfds", "stdlib")  # formats that pretraining reads
TABLES = ("csv", "tsv", "jsonl", "json", "parquet", "tfds")  # formats with columns
DELIMITED_SUFFIXES = tuple(suffix for format in FORMATS.values() if format.delimiter for suffix in format.suffixes)
CONLL_SUFFIXES = (".conll", ".bio", ".txt", ".tsv")  # files that may have a word a line
HEADED_SUFFIXES = tuple(  # files whose records have the columns of the file, .txt apart: commands read that as lines
    suffix for name in TABLES for suffix in FORMATS[name].suffixes if not FORMATS[name].own_columns and suffix != ".txt"
)
TABLE_SUFFIXES = (*(s for name in TABLES for s in FORMATS[name].suffixes), *CONLL_SUFFIXES)  # files that fine-tuning reads


def format_of(path: str, accepted: Sequence[str] = TABLES, fix: str = "") -> str:
    """Returns the first of the `accepted` formats that has the path's suffix.

    Raises InputError, with the known suffixes and `fix`, where none has it.
    """
    suffix, codec = suffix_of(path), codec_of(path)
    for name in accepted:
        own = suffix in FORMATS[name].suffixes and (FORMATS[name].by_line or not codec)
        if own or path.startswith(f"{name}:"):
            return name
    by_line = list(dict.fromkeys(s for name in accepted for s in FORMATS[name].suffixes if FORMATS[name].by_line))
    known = f"{', '.join(by_line)}, these also with {', '.join(CODECS)}; .parquet"
    near = did_you_mean(suffix + codec, [*(s + c for s in by_line for c in ("", *CODECS)), ".parquet"])
    raise InputError(f"{path}: {suffix + codec or 'no suffix'!r} is not a known format ({known}){near}{fix}")


def read_records(request: Request, format: str) -> Records:
    """Returns the records of a file of a known format. Raises InputError where the file cannot be read."""
    return FORMATS[format].read(request)


def list_files(sources: Sequence[str]) -> list[str]:
    """Returns the files that sources name, sorted, each once.

        list_files(["text/*.txt", "text/a.txt", "tfds:lm1b"]) -> ["text/a.txt", "text/b.txt", "tfds:lm1b:train"]

    A folder means all files in it, at any depth; `**` is any depth too.
    """
    files: set[str] = set()
    for source in [sources] if isinstance(sources, str) else sources:
        if source.startswith("tfds:"):
            files.add("tfds:" + ":".join(datasets.tfds_name(source)))
        elif source == "stdlib:":
            files.add(source)
        elif found := matches(source):
            files.update(found)
        else:
            raise InputError(f"{source}: matches no file{nearest(source)}")
    return sorted(files)


class Row(NamedTuple):
    """Values by column, and their place: `file:line`, `file: row` (from 0), or `file: id`."""

    place: str
    values: Mapping[str, Cell]


class Table(NamedTuple):
    """The columns of a file, and its rows, which can be read once.

    Attributes:
      columns: those of the header, or of the first row.
      rows: the rows, read lazily.
      skipped: places of the records that were left out so far.
      remarks: notes about the file for the user.
    """

    columns: tuple[str, ...]
    rows: Iterator[Row]
    skipped: list[str]
    remarks: tuple[str, ...] = ()


def read_table(
    path: str, quotes: Quotes = "auto", hasher: Hasher | None = None, *, header: Sequence[str] = (), skip_bad: bool = False
) -> Table:
    """Reads the rows of a file in one of the formats TABLES.

    Values are text in .csv, .tsv and .txt (tab-separated), and JSON's types elsewhere. Class numbers (TFDS's ClassLabel, and that
    of Hugging Face's datasets in .parquet) become the names of the classes, and None where they are -1.

    Args:
      path: a file, a URL, or `tfds:NAME:SPLIT`.
      quotes: whether double quotes enclose fields; auto: yes in .csv, and `looks_quoted` decides for .tsv and .txt.
      hasher: sees all bytes of the file (of `tfds:`, the rows as JSON) by the last row.
      header: columns of a delimited file whose first line has none of these names in it; "..." at the end: more may follow.
      skip_bad: whether records that cannot be read, and lines with a wrong number of fields, are left out.

    Raises:
      InputError: the file is missing, empty, of an unknown format, or not UTF-8; a row does not fit the header or is no JSON
        object; a quote is not closed. The message names the line.
    """
    format = format_of(path)
    delimiter = FORMATS[format].delimiter
    found = quotes == "auto" and format == "tsv" and formats.looks_quoted(path, delimiter)
    quoted = found or quotes == "csv" or (quotes == "auto" and FORMATS[format].quoted)
    request, skipped = Request(path, hasher=hasher), list[str]()
    if delimiter:
        columns, records = formats.read_delimited(request, delimiter, quoted, tuple(header))
        if not columns:
            raise InputError(f"{path}: is empty")
        remarks = (f"double quotes enclose fields of {path}, and are taken off",) * found
        return Table(columns, _rows(path, records, skipped if skip_bad else None), skipped, remarks)
    rows = _rows(path, FORMATS[format].read(request), skipped if skip_bad else None)
    if (first := next(rows, None)) is None:
        raise InputError(f"{path}: holds no rows")
    return Table(tuple(first.values), chain([first], rows), skipped)


def _rows(path: str, records: Records, skipped: list[str] | None) -> Iterator[Row]:
    """Yields the records that can be read. Places of the others are added to `skipped`; where it is None, they are errors."""
    for _, place, values in records:
        if isinstance(values, dict):
            yield Row(path + place, values)
        elif skipped is not None:
            skipped.append(path + place)
        elif isinstance(values, Bad):
            raise unreadable(path + place, values)
