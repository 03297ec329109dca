"""One table of formats: which suffixes each has, how it is read and what its records are; and rows of whatever format.

    format_of("a.tsv.gz", TABLES)      "tsv"
    read_table("a.tsv").columns        ("sentence", "label")
    next(read_table("a.tsv").rows)     Row("a.tsv:2", {"sentence": "A fine film.", "label": "1"})

A new format is a reader in formats.py, a row of FORMATS, and its name in DOCUMENTS and TABLES for the callers that accept it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

from bert_jax.config import InputError, did_you_mean
from bert_jax.data.files import datasets, formats
from bert_jax.data.files.formats import Located, Request, Values, unreadable
from bert_jax.data.files.storage import CODECS, Bad, Hasher, codec_of, matches, nearest, suffix_of

Quotes = Literal["auto", "csv", "none"]


@dataclass(frozen=True)
class Format:
    """The suffixes of a format, and its reader.

    Attributes:
      suffixes: of file names; none of a source that is no file, as `tfds:NAME`.
      read: the reader.
      by_line: whether offsets are bytes and places are lines, else both are rows. Such files may be compressed.
      own_columns: whether each record has columns of its own, else all have those of the file.
      delimiter: what separates fields.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Request], Iterator[Located[Values]]]
    by_line: bool = True
    own_columns: bool = False
    delimiter: str = ""


FORMATS: dict[str, Format] = {
    "txt": Format((".txt", ".md"), formats.read_text),
    "jsonl": Format((".jsonl",), formats.read_json_lines, own_columns=True),
    "csv": Format((".csv",), formats.read_csv, delimiter=","),
    "tsv": Format((".tsv", ".txt"), formats.read_tsv, delimiter="\t"),
    "json": Format((".json",), formats.read_json, own_columns=True),
    "parquet": Format((".parquet",), formats.read_parquet, by_line=False),
    "tfds": Format((), datasets.read_tfds, by_line=False),
    "stdlib": Format((), datasets.read_stdlib, by_line=False),
}
DOCUMENTS = ("txt", "jsonl", "csv", "tsv", "parquet", "tfds", "stdlib")  # what pretraining reads
TABLES = ("csv", "tsv", "jsonl", "json", "parquet", "tfds")  # what has columns
DELIMITED_SUFFIXES = tuple(suffix for format in FORMATS.values() if format.delimiter for suffix in format.suffixes)
CONLL_SUFFIXES = (".conll", ".bio", ".txt", ".tsv")  # of files that may have a word a line
TABLE_SUFFIXES = (*(s for name in TABLES for s in FORMATS[name].suffixes), *CONLL_SUFFIXES)  # of files that fine-tuning reads


def format_of(path: str, accepted: Sequence[str] = TABLES, fix: str = "") -> str:
    """Returns the first of the formats `accepted` that the path's suffix says.

    Raises InputError, with the known suffixes and `fix`, where it says none.
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


def read_records(request: Request, format: str) -> Iterator[Located[Values]]:
    """Yields the records of a file of a known format. Raises InputError where the file cannot be read."""
    return FORMATS[format].read(request)


def list_files(sources: Sequence[str], format: str = "auto") -> list[str]:
    """Returns the files that sources name, sorted, each once.

        list_files(["text/*.txt", "text/a.txt", "tfds:lm1b"]) -> ["text/a.txt", "text/b.txt", "tfds:lm1b:train"]

    A folder stands for all files in it, at any depth; `**` is any depth too.

    Raises:
      InputError: a source that matches nothing (with the nearest names there are).
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
    values: Mapping[str, Any]


class Table(NamedTuple):
    """The columns of a file, and its rows, to be gone through once.

    Attributes:
      columns: of the header, or of the first row.
      rows: read as they are asked for.
      skipped: places of the records that were left out so far.
      remarks: what was found out about the file, to be shown.
    """

    columns: tuple[str, ...]
    rows: Iterator[Row]
    skipped: list[str]
    remarks: tuple[str, ...] = ()


def read_table(
    path: str, quotes: Quotes = "auto", hasher: Hasher | None = None, *, header: Sequence[str] = (), skip_bad: bool = False
) -> Table:
    """Reads the rows of a file of any of the formats TABLES.

    Values are text in .csv, .tsv and .txt (tab-separated), and what JSON knows elsewhere. Numbers that stand for the names of
    classes (TFDS's ClassLabel, and that of Hugging Face's datasets in .parquet) are given by name, and as None where they are -1.

    Args:
      path: a file, a URL, or `tfds:NAME:SPLIT`.
      quotes: whether double quotes enclose a field; auto: in .csv yes, in .tsv and .txt if `looks_quoted` says so.
      hasher: sees all bytes of the file by the last row (of `tfds:`, the rows as JSON).
      header: columns of a delimited file whose first line has none of these names in it; "..." at the end: more may follow.
      skip_bad: leave out records that cannot be read, and lines with a wrong number of fields.

    Raises:
      InputError: a file that is missing, empty, of an unknown format, or not UTF-8; a row that does not fit the header or is no
        JSON object; a quote that is not closed. The message names the line.
    """
    format = format_of(path)
    delimiter = FORMATS[format].delimiter
    found = quotes == "auto" and format == "tsv" and formats.looks_quoted(path, delimiter)
    quoted = found or quotes == "csv" or (quotes == "auto" and format == "csv")
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


def _rows(path: str, records: Iterator[Located[Values]], skipped: list[str] | None) -> Iterator[Row]:
    """The records that can be read. Places of the others are added to `skipped`; without one, they are errors."""
    for _, place, values in records:
        if not isinstance(values, Bad):
            yield Row(path + place, values)
        elif skipped is not None:
            skipped.append(path + place)
        else:
            raise unreadable(path + place, values)
