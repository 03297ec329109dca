"""Files of labelled examples -> rows, one at a time, each with its place.

    read_table("a.tsv").columns        ("sentence", "label")
    next(read_table("a.tsv").rows)     Row("a.tsv:2", {"sentence": "A fine film.", "label": "1"})

Values are text in .csv, .tsv and .txt (tab-separated), and what JSON knows in .jsonl, .json (a list of objects, or one a line),
.parquet and `tfds:NAME:SPLIT`; all but .parquet may be compressed (.gz, .zst). Numbers that stand for the names of classes
(TFDS's ClassLabel, and that of Hugging Face's datasets in .parquet) are given by name, and as None where they are -1.
Sentences with a tag a word (`read_conll`) and SQuAD's questions (`read_squad`) come as rows of the same kind.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

from bert_jax.config import InputError
from bert_jax.data import sources

Quotes = Literal["auto", "csv", "none"]


class ClassName(str):
    """A class's name from the file's own list of classes: whatever it is, it is no mark for a missing label."""


class Row(NamedTuple):
    """Values by column, and where they stand: `file:line`, `file: row` (from 0), or `file: id`."""

    place: str
    values: Mapping[str, Any]


class Table(NamedTuple):
    """Columns of a file, and its rows, to be gone through once.

    skipped: places of the lines that were left out so far because they have another number of fields than the header.
    remarks: what was found out about the file, to be shown.
    """

    columns: tuple[str, ...]
    rows: Iterator[Row]
    skipped: list[str]
    remarks: tuple[str, ...] = ()


DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


def suffix_of(path: str) -> str:
    """`.tsv` of "a/b.TSV.gz"."""
    return os.path.splitext(path.removesuffix(sources.codec_of(path)))[1].lower()


def read_table(
    path: str, quotes: Quotes = "auto", hasher: Any = None, *, header: Sequence[str] = (), skip_bad: bool = False
) -> Table:
    """The rows of a file of any format but CoNLL's and SQuAD's.

    Args:
      path: a file, a URL, or `tfds:NAME:SPLIT`.
      quotes: whether double quotes enclose a field; auto: in .csv yes, in .tsv and .txt if `looks_quoted` says so.
      hasher: sees all bytes of the file by the last row (of `tfds:`, the rows as JSON).
      header: columns of a delimited file whose first line has none of these names in it; "..." at the end: more may follow.
      skip_bad: leave out lines with a wrong number of fields, and those of .jsonl that are no JSON objects.

    Raises:
      InputError: a file that is missing, empty, of an unknown format, or not UTF-8; a row that does not fit the header or is no
        JSON object; a quote that is not closed. The message names the line.
    """
    suffix = "tfds" if path.startswith("tfds:") else suffix_of(path)
    if suffix in DELIMITERS:
        found = quotes == "auto" and suffix != ".csv" and looks_quoted(path, DELIMITERS[suffix])
        quoted = found or quotes == "csv" or (quotes == "auto" and suffix == ".csv")
        table = _delimited(path, DELIMITERS[suffix], quoted, hasher, tuple(header), skip_bad)
        remark = f"double quotes enclose fields of {path}, and are taken off"
        return table._replace(remarks=(remark,) * found)
    if suffix not in _READERS:
        raise InputError(f"{path}: {suffix or 'no suffix'!r} is not a known format ({', '.join([*DELIMITERS, *_READERS])})")
    skipped = list[str]()
    rows = _json_lines(path, hasher, skipped) if suffix == ".jsonl" and skip_bad else _READERS[suffix](path, hasher)
    if (first := next(rows, None)) is None:
        raise InputError(f"{path}: holds no rows")
    return Table(tuple(first.values), chain([first], rows), skipped)


def _lines(path: str, hasher: Any, skipped: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """(place, line) without its end. Places of lines that are not UTF-8 are added to `skipped`; without one, they are errors."""
    for number, (_, raw) in enumerate(sources.read_lines(path, 0, hasher), 1):
        line = sources.decode(raw)
        if not isinstance(line, sources.Bad):
            yield f"{path}:{number}", line
        elif skipped is not None:
            skipped.append(f"{path}:{number}")
        else:
            raise InputError(f"{path}:{number}: {line.reason}; save the file as UTF-8")


# ---- delimited text


def _delimited(path: str, delimiter: str, quoted: bool, hasher: Any, header: tuple[str, ...], skip_bad: bool) -> Table:
    skipped = list[str]()
    split = ((place, line.split(delimiter)) for place, line in _lines(path, hasher, skipped if skip_bad else None) if line)
    lines = _quoted(path, delimiter, hasher) if quoted else split
    if (first := next(lines, None)) is None:
        raise InputError(f"{path}: is empty")
    if not header or not set(header).isdisjoint(first[1]):
        columns, more = tuple(name.strip() for name in first[1]), False
    else:
        more = header[-1] == "..."
        columns, lines = header[: len(header) - more], chain([first], lines)
    if double := {name for name in columns if columns.count(name) > 1}:
        raise InputError(f"{first[0]}: the header has {', '.join(map(repr, sorted(double)))} twice: rename one")

    def rows() -> Iterator[Row]:
        for place, fields in lines:
            if len(fields) == len(columns) or (more and len(fields) > len(columns)):
                yield Row(place, dict(zip(columns, fields, strict=False)))
            elif skip_bad:
                skipped.append(place)
            else:
                expected = f"{len(columns)}{' or more' if more else ''} ({', '.join(columns)}) are expected"
                fix = f"quote a field that holds {delimiter!r}" if quoted else "if double quotes enclose fields, say --quotes csv"
                raise InputError(f"{place}: {len(fields)} fields where {expected}; {fix}")

    return Table(columns, rows(), skipped)


def looks_quoted(path: str, delimiter: str) -> bool:
    r"""Whether double quotes enclose fields of a file, as a CSV writer puts them; a GLUE file's stand for themselves.

    Every field that starts with a quote must also end with one, and have only doubled ones inside. Then it is quoted

    - if that gives all records as many fields as the first has, and splitting at each delimiter does not (a tab or a line's end
      is enclosed), or
    - if both do, where a doubled quote is enclosed, or a whole column is: a writer that encloses only what it must has no other
      reason to, and quotes around one row of many are the text's own.
    """
    number, width, even, doubled, columns = 0, 0, True, False, set[int]()
    for _, line in _lines(path, None, []):
        if not line:
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
    try:
        for _, fields in _quoted(path, delimiter, None):
            records, first = records + 1, first or len(fields)
            if len(fields) != first:
                return False
    except InputError:  # a quote that no writer would have left so
        return False
    return not even or records == number  # where both ways are even, quotes around line ends are none


def _quoted(path: str, delimiter: str, hasher: Any) -> Iterator[tuple[str, list[str]]]:
    """(place of its first line, fields) of every record, empty lines left out."""
    csv.field_size_limit(1 << 30)  # the default, 128 KiB, is less than a long document
    reader = csv.reader((line + "\n" for _, line in _lines(path, hasher)), delimiter=delimiter, strict=True)
    start = 1
    try:
        for fields in reader:
            if fields:
                yield f"{path}:{start}", fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{start}: {error}; if double quotes are plain characters here, say --quotes none") from None


# ---- JSON, Parquet, TFDS


def _json_object(text: str, place: str) -> Row:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not a JSON object ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{place}: a JSON {type(value).__name__}, not an object")
    return Row(place, value)


def _json_lines(path: str, hasher: Any, skipped: list[str] | None = None) -> Iterator[Row]:
    for place, line in _lines(path, hasher, skipped):
        try:
            if line.strip():
                yield _json_object(line, place)
        except InputError:
            if skipped is None:
                raise
            skipped.append(place)


def _load_json(path: str, lines: Sequence[str]) -> Any:
    try:
        return json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def _json(path: str, hasher: Any) -> Iterator[Row]:
    lines = list(_lines(path, hasher))
    if not "".join(line for _, line in lines[:100]).lstrip().startswith("["):
        yield from (_json_object(line, place) for place, line in lines if line.strip())
        return
    for number, value in enumerate(_load_json(path, [line for _, line in lines])):
        if not isinstance(value, dict):
            raise InputError(f"{path}: item {number}: a JSON {type(value).__name__}, not an object")
        yield Row(f"{path}: item {number}", value)


def _named(value: Any, classes: Sequence[str]) -> Any:
    """Class numbers -> names, in lists too; None for -1."""
    if isinstance(value, list):
        return [_named(v, classes) for v in value]
    if not isinstance(value, int):
        return value
    return ClassName(classes[value]) if 0 <= value < len(classes) else None


def _parquet(path: str, hasher: Any) -> Iterator[Row]:
    row = 0
    with sources.open_parquet(path, hasher) as file:
        classes = _hugging_face_classes(file.schema_arrow.metadata or {})
        for batch in file.iter_batches(256):
            try:
                batch_rows = batch.to_pylist()
            except UnicodeDecodeError:
                raise InputError(f"{path}: a text of rows {row} to {row + batch.num_rows - 1} is not UTF-8") from None
            for values in batch_rows:
                yield Row(f"{path}: row {row}", {k: _named(v, classes[k]) if k in classes else v for k, v in values.items()})
                row += 1


def _hugging_face_classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Columns whose numbers stand for names, as Hugging Face's `datasets` notes them in a Parquet file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        inner = {column: feature.get("feature", feature) for column, feature in features.items() if isinstance(feature, dict)}
        return {column: feature["names"] for column, feature in inner.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}  # another file's metadata


def _tfds(path: str, hasher: Any) -> Iterator[Row]:
    with sources.open_tfds(path) as (features, records):
        classes = {name: names for name in features if (names := getattr(features[name], "names", None))}
        for number in range(len(records)):
            place = f"{path}: row {number}"
            try:
                values = {name: _plain(value) for name, value in sorted(records[number].items())}
            except UnicodeDecodeError as error:
                raise InputError(f"{place}: not UTF-8 ({error.reason})") from None
            sources.hashed(json.dumps(values, default=str).encode(), hasher)
            yield Row(place, {k: _named(v, classes[k]) if k in classes else v for k, v in values.items()})


def _plain(value: Any) -> Any:
    """What TFDS gives (bytes, NumPy's arrays and numbers, also nested) as what JSON has."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(v) for v in value] if isinstance(value, list) else value.decode() if isinstance(value, bytes) else value


_READERS: dict[str, Callable[[str, Any], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    "tfds": _tfds,
}


# ---- sentences with a tag a word


def read_conll(path: str, label_column: int = -1, word_column: int = 0, hasher: Any = None, *, skip_bad: bool = False) -> Table:
    """Sentences of a file with a word a line, a blank line behind each: columns `words` and `tags`, lists of str.

        "EU B-ORG\\nrejects O\\n\\nPeter B-PER" -> {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"words": ["Peter"], ...}

    Columns are separated by tabs where the first line has one, else by blanks. A file of a single column has no `tags`. Lines
    of -DOCSTART- end a sentence as blank ones do; those that start with # and are one column where the others have several are
    comments, and left out.

    Raises:
      InputError: a line that has another number of columns than the first, or an empty word or tag, or is not UTF-8 (with
        `skip_bad` such lines are left out instead); a file without words.
    """
    skipped = list[str]()
    lines = [(place, line if line.strip() else "") for place, line in _lines(path, hasher, skipped if skip_bad else None)]
    first = next((line for _, line in lines if line and not line.startswith(("#", "-DOCSTART-"))), "-").strip(" \t")

    def split(line: str) -> list[str]:
        return line.strip(" ").split("\t") if "\t" in first else re.split("[ \t]+", line.strip(" \t"))

    width = len(split(first))
    if width == 1:
        word_column = label_column = 0
    for name, column in (("--label-column", label_column), ("--text-column", word_column)):
        if not -width <= column < width:
            raise InputError(f"{path}: has {width} columns, so {name} {column} is none of them")
    divided = [(place, [] if line.startswith("-DOCSTART-") or not line else split(line)) for place, line in lines]
    rows = _sentences(divided, width, word_column, label_column, skipped if skip_bad else None)
    return Table(("words", "tags") if width > 1 else ("words",), rows, skipped)


def _sentences(
    lines: list[tuple[str, list[str]]], width: int, word_column: int, label_column: int, skipped: list[str] | None
) -> Iterator[Row]:
    """Rows of lines that are split into columns; no column: the end of a sentence."""
    start, words, tags = "", list[str](), list[str]()
    for place, fields in [*lines, ("", [])]:
        if len(fields) == 1 < width and fields[0].startswith("#"):
            continue
        if fields:
            wrong = ""
            if len(fields) != width:
                wrong = f"{len(fields)} columns, where the first line has {width}"
            elif not fields[word_column] or not fields[label_column]:
                wrong = "an empty word or tag"
            if wrong and skipped is None:
                raise InputError(f"{place}: {wrong}; --on-error skip leaves such lines out")
            if wrong and skipped is not None:
                skipped.append(place)
                continue
            start = start if words else place
            words.append(fields[word_column])
            tags.append(fields[label_column])
        elif words:
            yield Row(start, {"words": words, "tags": tags} if width > 1 else {"words": words})
            words, tags = [], []


def _is_list(text: str) -> bool:
    return len(text) > 1 and text[0] == "[" and text[-1] == "]"


def first_fields(path: str) -> list[str]:
    """What stands between the tabs of the first line."""
    return next((line.split("\t") for _, line in _lines(path, None, []) if line.strip()), [])


def sentences_of_words(rows: Iterator[Row], sentence: str, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a table with a word a row -> a row a sentence, whose `columns` (the word's, perhaps the tag's) are lists.

    Rows belong together that follow each other with one value of the column `sentence`; an empty one is that of the row above.
    Rows that hold a sentence already are given as they are: a list or several words, also as text.

        {"Sentence #": "1", "Word": "EU"}, {"Sentence #": "", "Word": "rejects"} -> {"Sentence #": "1", "Word": ["EU", "rejects"]}

    Raises InputError for a row without a word or tag in a sentence of several, and for a sentence that is gone on with later.
    """
    name, group, seen = "", list[Row](), dict[str, str]()

    def cell(row: Row, column: str) -> str:
        value = row.values.get(column)
        return "" if value is None else str(value).strip()

    def joined() -> Row:
        if len(group) == 1 and any(len((text := cell(group[0], c)).split()) != 1 or _is_list(text) for c in columns):
            return group[0]
        for row in group:
            if empty := [column for column in columns if not cell(row, column)]:
                raise InputError(f"{row.place}: {empty[0]!r} is empty, where each row is a word")
        if name in seen:
            more = f"{sentence!r} is {name!r}, as at {seen[name]}, but not in the rows between"
            raise InputError(f"{group[0].place}: {more}; the words of a sentence must follow each other")
        seen[name] = group[0].place
        words = {column: [row.values[column] for row in group] for column in columns}
        return Row(group[0].place, {**group[0].values, sentence: name, **words})

    for row in rows:
        own = cell(row, sentence) or name
        whole = not isinstance(row.values.get(columns[0]), str)
        if group and (own != name or whole):
            yield joined()
            group = []
        name = own
        if whole:
            yield row
        else:
            group.append(row)
    if group:
        yield joined()


# ---- SQuAD


def read_squad(path: str, hasher: Any = None) -> Table:
    """The questions of a file in SQuAD's layout, 1.1 or 2.0: columns `id`, `question`, `context` and `answers`.

    Answers are the file's (a list of {"text", "answer_start"}), none where `is_impossible`, and None where it says neither.

    Raises:
      InputError: no JSON, with the line; a key that is missing or of another type, with the path to it.
    """
    top = _load_json(path, [line for _, line in _lines(path, hasher)])
    rows = []
    for i, article in enumerate(_get(top, "data", list, path)):
        for j, paragraph in enumerate(_get(article, "paragraphs", list, f"{path}: data[{i}]")):
            at = f"{path}: data[{i}].paragraphs[{j}]"
            context = _get(paragraph, "context", str, at)
            for k, question in enumerate(_get(paragraph, "qas", list, at)):
                at_question = f"{at}.qas[{k}]"
                id = str(_get(question, "id", str | int, at_question))
                answers = _get(question, "answers", list, at_question) if "answers" in question else None
                values = {
                    "id": id,
                    "question": _get(question, "question", str, at_question),
                    "context": context,
                    "answers": [] if question.get("is_impossible") else answers,
                }
                rows.append(Row(f"{path}: {id}", values))
    return Table(("id", "question", "context", "answers"), iter(rows), [])


def _get(value: Any, key: str, kind: Any, place: str) -> Any:
    if not isinstance(value, dict) or key not in value:
        raise InputError(f"{place}: has no {key!r}; SQuAD's layout is {{data: [{{paragraphs: [{{context, qas: [...]}}]}}]}}")
    if not isinstance(value[key], kind):
        raise InputError(f"{place}: {key!r} is a {type(value[key]).__name__}, not a {getattr(kind, '__name__', kind)}")
    return value[key]
