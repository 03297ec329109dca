"""Readers: one for each format, from a path to records with their place.

    next(read_delimited(Request("a.csv"), ",", quoted=True)[1])    (11, ":2", {"text": "A fine film.", "label": "1"})

Records are read lazily, from `Request.start` on; only a compressed file is read up to there too.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bert_jax.data.files.storage import Bad, Hasher, decode, need, not_utf8, open_file, open_stream, read_lines
from bert_jax.errors import InputError

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

Documents = Literal["blank_line", "line", "file"]
Cell = Any  # what JSON knows, bytes or a date
Values = dict[str, Cell]  # by column
T = TypeVar("T")

# A record of a file, as a plain tuple because there are millions:
#   offset: a byte of the decompressed text, or a row, from which a later reading may start
#   place: the end of its name in messages, as ":3" for a line (counted from where reading began) and ": row 3" for a row
#   value: the record, or what is wrong with it
Located = tuple[int, str, T | Bad]


@dataclass(frozen=True)
class Request:
    """A file to read, and the part of it.

    Attributes:
      path: a file, a URL, `tfds:NAME:SPLIT` or `stdlib:`.
      columns: the columns that are wanted, none for all. A reader may give more.
      start: offset of the first record.
      hasher: sees all bytes of the file (of `tfds:` and `stdlib:`, the content) by the last record, if `start` is 0.
      documents: what ends a record of plain text: a blank line, the end of the line, or the end of the file.
    """

    path: str
    columns: tuple[str, ...] = ()
    start: int = 0
    hasher: Hasher | None = None
    documents: Documents = "blank_line"


def unreadable(place: str, bad: Bad) -> InputError:
    """Returns the error of a record that cannot be read."""
    return InputError(f"{place}: {bad.reason}{'; ' * bool(bad.fix)}{bad.fix}")


# ---- text

# Every byte that occurs in the UTF-8 of white space: a line with any other byte is not blank, and need not be decoded.
_SPACE_BYTES = bytes({b for i in range(0x3001) if chr(i).isspace() for b in chr(i).encode()})


def is_blank(raw: bytes) -> bool:
    """Returns True for UTF-8 that has nothing but white space."""
    if raw[:1].isalnum():
        return False
    return not raw.strip(_SPACE_BYTES) and not raw.decode(errors="replace").strip()


def read_text(request: Request) -> Iterator[Located[bytes]]:
    """Yields the documents of plain text that are not blank, not decoded yet."""
    held, offset = list[bytes](), request.start
    for position, line in read_lines(request.path, request.start, request.hasher):
        if request.documents == "line":
            if not is_blank(line):
                yield (position, "", line)
        elif request.documents == "file" or not is_blank(line):
            offset = offset if held else position
            held.append(line)
        elif held:
            yield (offset, "", b"".join(held))
            held = []
    if held and not all(map(is_blank, held)):
        yield (offset, "", b"".join(held))


def decoded(lines: Iterator[tuple[int, bytes]]) -> Iterator[Located[str]]:
    """Yields the lines of UTF-8 text, without their ends."""
    return ((offset, f":{number}", decode(line)) for number, (offset, line) in enumerate(lines, 1))


def text_lines(path: str) -> Iterator[tuple[str, str]]:
    """Yields the place of each line of UTF-8 text, `file:line`, and the line without its end.

    Raises InputError where the file or a line cannot be read.
    """
    for _, place, line in decoded(read_lines(path)):
        if isinstance(line, Bad):
            raise unreadable(path + place, line)
        yield path + place, line


# ---- delimited text


def split_fields(lines: Iterator[Located[str]], delimiter: str, quoted: bool) -> Iterator[Located[list[str]]]:
    """Yields the fields of each record; none of an empty line. Where double quotes enclose them, a record may take lines."""
    if quoted:
        yield from _quoted(lines, delimiter)
        return
    for offset, place, line in lines:
        yield (offset, place, line if isinstance(line, Bad) else line.split(delimiter) if line else [])


def _quoted(lines: Iterator[Located[str]], delimiter: str) -> Iterator[Located[list[str]]]:
    csv.field_size_limit(1 << 30)  # the default, 128 KiB, is less than a long document
    taken: list[Located[str]] = []  # the lines of the current record

    def texts() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield "\n" if isinstance(line[2], Bad) else line[2] + "\n"

    parser = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        try:
            found: list[str] | Bad = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            fix = "if double quotes are plain characters here, say --quotes none"
            found = Bad(f"not a record of delimited values ({error})", fix=fix)
        start, place, _ = taken[0]
        for offset, own_place, line in taken:
            if isinstance(line, Bad):
                place, found = own_place, line._replace(at=offset - start + line.at)
                break
        yield (start, place, found)


def read_delimited(
    request: Request, delimiter: str, quoted: bool, header: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], Iterator[Located[Values]]]:
    """Returns the columns of delimited text, none where it is empty, and its records.

    Args:
      request: the file.
      delimiter: the character between fields.
      quoted: whether double quotes may enclose fields.
      header: the columns where the first line has none of these names in it; "..." at the end: more may follow.
    """

    def lines(start: int, hasher: Hasher | None) -> Iterator[Located[list[str]]]:
        return split_fields(decoded(read_lines(request.path, start, hasher)), delimiter, quoted)

    records = lines(0, None if request.start else request.hasher)
    first = next((record for record in records if isinstance(record[2], Bad) or _is_filled(record[2])), None)
    if first is None:
        return (), iter(())
    _, place, names = first
    if isinstance(names, Bad):
        raise unreadable(request.path + place, names)
    more = False
    if not header or not set(header).isdisjoint(names):
        columns = tuple(name.strip() for name in names)
    else:
        more = header[-1] == "..."
        columns, records = header[: len(header) - more], chain([first], records)
    wanted = request.columns or columns
    if double := sorted({name for name in columns if columns.count(name) > 1 and name in wanted}):
        raise InputError(f"{request.path}{place}: the header has {', '.join(map(repr, double))} twice: rename one")
    rest = lines(request.start, None) if request.start else records
    fix = f"quote a field that holds {delimiter!r}" if quoted else "if double quotes enclose fields, say --quotes csv"
    return columns, _by_column(rest, columns, more, fix)


def _by_column(
    records: Iterator[Located[list[str]]], columns: tuple[str, ...], more: bool, fix: str
) -> Iterator[Located[Values]]:
    """Yields values by column. A blank line is no record where there are several columns."""
    expected = f"{len(columns)}{' or more' if more else ''} ({', '.join(columns)}) are expected"
    for offset, place, fields in records:
        if isinstance(fields, Bad):
            yield (offset, place, fields)
        elif len(fields) == len(columns) or (more and len(fields) > len(columns)):
            yield (offset, place, dict(zip(columns, fields, strict=False)))
        elif _is_filled(fields):
            yield (offset, place, Bad(f"{len(fields)} fields where {expected}", fix=fix))


def _is_filled(fields: Sequence[str]) -> bool:
    return len(fields) > 1 or bool("".join(fields).strip())


def looks_quoted(path: str, delimiter: str) -> bool:
    r"""Returns True where double quotes enclose fields, as a CSV writer puts them; in GLUE's files they are characters.

    Every field that starts with a quote must also end with one, and have only doubled ones inside. Then the file is quoted

    - if that gives all records as many fields as the first has, and splitting at each delimiter does not (a tab or a line's end
      is enclosed), or
    - if both do, where a doubled quote is enclosed, or a whole column is: a writer that encloses only what it must has no other
      reason to, and quotes around one row of many are the text's own.
    """
    with open_stream(path) as file:
        if not any(b'"' in block for block in iter(lambda: file.read(1 << 20), b"")):
            return False
    number, width, even, doubled, columns = 0, 0, True, False, set[int]()
    for _, _, line in decoded(read_lines(path)):
        if isinstance(line, Bad) or not line:
            continue
        fields = line.split(delimiter) if '"' in line else []
        enclosed = {i for i, field in enumerate(fields) if len(field) > 1 and field[0] == field[-1] == '"'}
        doubled = doubled or any('""' in fields[i][1:-1] for i in enclosed)
        columns = enclosed if number <= 1 else columns & enclosed  # those of the header, if it is one, do not count
        size = line.count(delimiter) + 1
        number, width, even = number + 1, width or size, even and size == (width or size)
    if even and not doubled and (number < 2 or not columns):
        return False
    records, first = 0, 0
    for _, _, found in split_fields(decoded(read_lines(path)), delimiter, quoted=True):
        if isinstance(found, Bad):  # a quote that no writer would have left so
            return False
        first = first or len(found)
        records += bool(found)
        if found and len(found) != first:
            return False
    return not even or records == number  # where both ways are even, no quotes enclose line ends


# ---- JSON


def read_json_lines(request: Request) -> Iterator[Located[Values]]:
    """Yields the object of each line that is not blank."""
    return _objects(decoded(read_lines(request.path, request.start, request.hasher)))


def _objects(lines: Iterator[Located[str]]) -> Iterator[Located[Values]]:
    for offset, place, text in lines:
        if isinstance(text, Bad):
            yield (offset, place, text)
        elif text and not text.isspace():
            yield (offset, place, json_object(text))


def json_object(text: str) -> Values | Bad:
    """Returns the object of a JSON text, or what is wrong with the text."""
    try:
        return _as_object(json.loads(text))
    except (ValueError, RecursionError) as error:
        return Bad(f"not a JSON object ({error})")


def _as_object(value: object) -> Values | Bad:
    return value if isinstance(value, dict) else Bad(f"a JSON {type(value).__name__}, not an object")


def load_json(path: str, lines: Iterator[Located[str]]) -> object:
    """Returns the one value of the lines of a JSON file. Raises InputError with the line that is at fault."""
    text = []
    for _, place, line in lines:
        if isinstance(line, Bad):
            raise unreadable(path + place, line)
        text.append(line)
    try:
        value: object = json.loads("\n".join(text))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    return value


def read_json(request: Request) -> Iterator[Located[Values]]:
    """Yields the objects of a list, or one object a line."""
    lines = list(decoded(read_lines(request.path, 0, request.hasher)))
    start = "".join(line for _, _, line in lines[:100] if isinstance(line, str)).lstrip()
    if not start.startswith("["):
        yield from _objects(iter(lines))
    elif isinstance(values := load_json(request.path, iter(lines)), list):
        for number, value in enumerate(values):
            yield (number, f": item {number}", _as_object(value))


# ---- Parquet


class ClassName(str):
    """A class's name from the file's own list of classes, which is never a mark for a missing label."""


def _named(value: Cell, classes: Sequence[str]) -> Cell:
    """Returns names for class numbers, in lists too; None for -1."""
    if isinstance(value, list):
        return [_named(v, classes) for v in value]
    if not isinstance(value, int):
        return value
    return ClassName(classes[value]) if 0 <= value < len(classes) else None


def with_class_names(values: Values, classes: Mapping[str, Sequence[str]]) -> Values:
    """Returns the values with names for the class numbers of the columns `classes`."""
    return {k: _named(v, classes[k]) if k in classes else v for k, v in values.items()} if classes else values


@contextmanager
def _open_parquet(path: str, hasher: Hasher | None) -> Iterator[ParquetFile]:
    """Opens a Parquet file, all of which `hasher` sees. Every error of reading it becomes an InputError."""
    pa, pq = need("pyarrow", "pyarrow"), need("pyarrow.parquet", "pyarrow")
    if hasher:
        with open_stream(path, 0, hasher):
            pass
    with open_file(path) as file:
        try:
            yield pq.ParquetFile(file)
        except pa.ArrowException as error:
            raise InputError(f"{path}: not a readable Parquet file ({error})") from None


def read_parquet(request: Request) -> Iterator[Located[Values]]:
    """Yields the rows of a Parquet file, with names in place of class numbers."""
    first = 0
    with _open_parquet(request.path, request.hasher) as table:
        classes = _hugging_face_classes(table.schema_arrow.metadata or {})
        wanted = list(request.columns) if set(request.columns) <= set(table.schema_arrow.names) else []
        for group in range(table.num_row_groups):
            end = first + table.metadata.row_group(group).num_rows
            if end <= request.start:
                first = end
                continue
            for batch in table.iter_batches(256, row_groups=[group], columns=wanted or None):
                for row, value in enumerate(_rows_of(batch, classes), first):
                    if row >= request.start:
                        yield (row, f": row {row}", value)
                first += batch.num_rows


def _rows_of(batch: RecordBatch, classes: Mapping[str, Sequence[str]]) -> list[Values | Bad]:
    """Returns the rows of a batch, read one by one where a text is not UTF-8."""
    try:
        if batch.num_columns == 1 and not classes:  # the texts of documents: twice as fast as the batch's own to_pylist
            (name,) = batch.schema.names
            return [{name: value} for value in batch.column(0).to_pylist()]
        return [with_class_names(values, classes) for values in batch.to_pylist()]
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [not_utf8(error)]
        return [row for number in range(batch.num_rows) for row in _rows_of(batch.slice(number, 1), classes)]


def _hugging_face_classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Returns {column: names of its classes}, as Hugging Face's `datasets` notes them in a Parquet file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        inner = {column: feature.get("feature", feature) for column, feature in features.items() if isinstance(feature, dict)}
        return {column: feature["names"] for column, feature in inner.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}  # another file's metadata
