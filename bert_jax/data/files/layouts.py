"""Tables from other layouts: sentences with a word a line or a row, and SQuAD's questions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

from bert_jax.data.files.formats import decoded, load_json, unreadable
from bert_jax.data.files.storage import Bad, Hasher, read_lines
from bert_jax.data.files.table import Row, Table
from bert_jax.errors import InputError

T = TypeVar("T")

# ---- sentences


def read_conll(
    path: str, label_column: int = -1, word_column: int = 0, hasher: Hasher | None = None, *, skip_bad: bool = False
) -> Table:
    r"""Reads a file with a word a line and a blank line after each sentence.

    The table has the columns `words` and `tags`, lists of str; no `tags` where the file has a single column:

        "EU B-ORG\nrejects O\n\nPeter B-PER" -> {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"words": ["Peter"], ...}

    Columns are separated by tabs where the first line has one, else by blanks. Lines of -DOCSTART- end a sentence as blank ones
    do. A line that starts with # and is one column, where the others have several, is a comment and is left out.

    Raises:
      InputError: a line has another number of columns than the first, has an empty word or tag, or is not UTF-8 (with
        `skip_bad` it is left out instead).
    """
    skipped, lines = list[str](), list[tuple[str, str]]()
    for _, place, text in decoded(read_lines(path, 0, hasher)):
        if not isinstance(text, Bad):
            lines.append((path + place, text if text.strip() else ""))
        elif skip_bad:
            skipped.append(path + place)
        else:
            raise unreadable(path + place, text)
    first = next((line for _, line in lines if line and not line.startswith(("#", "-DOCSTART-"))), "-").strip(" \t")

    def split(line: str) -> list[str]:
        return line.strip(" ").split("\t") if "\t" in first else re.split("[ \t]+", line.strip(" \t"))

    width = len(split(first))
    if width == 1:
        word_column = label_column = 0
    for name, column in (("--label-column", label_column), ("--text-column", word_column)):
        if not -width <= column < width:
            raise InputError(f"{path}: has {width} columns, and none of them is {name} {column}")
    divided = [(place, [] if line.startswith("-DOCSTART-") or not line else split(line)) for place, line in lines]
    rows = _sentences(divided, width, word_column, label_column, skipped if skip_bad else None)
    return Table(("words", "tags") if width > 1 else ("words",), rows, skipped)


def _sentences(
    lines: list[tuple[str, list[str]]], width: int, word_column: int, label_column: int, skipped: list[str] | None
) -> Iterator[Row]:
    """Yields the sentences of lines that are split into columns; a line without columns ends a sentence."""
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


def first_fields(path: str) -> list[str]:
    """Returns the fields, separated by tabs, of the first line that is not blank."""
    lines = (line for _, _, line in decoded(read_lines(path)) if not isinstance(line, Bad))
    return next((line.split("\t") for line in lines if line.strip()), [])


def sentences_of_words(rows: Iterator[Row], sentence: str, columns: Sequence[str]) -> Iterator[Row]:
    """Joins rows of one word each into rows of one sentence each, whose `columns` (words, perhaps tags) are lists.

    Consecutive rows with the same value in the column `sentence` are a sentence; an empty value is that of the row above. Rows
    that hold a sentence already (a list, or a text of several words) stay as they are.

        {"Sentence #": "1", "Word": "EU"}, {"Sentence #": "", "Word": "rejects"} -> {"Sentence #": "1", "Word": ["EU", "rejects"]}
    """
    name, group, seen = "", list[Row](), dict[str, str]()

    def cell(row: Row, column: str) -> str:
        value = row.values.get(column)
        return "" if value is None else str(value).strip()

    def joined() -> Row:
        texts = [cell(group[0], column) for column in columns]
        if len(group) == 1 and any(len(text.split()) != 1 or re.fullmatch(r"\[.*\]", text) for text in texts):
            return group[0]
        for row in group:
            if empty := [column for column in columns if not cell(row, column)]:
                raise InputError(f"{row.place}: {empty[0]!r} is empty, but each row must be a word")
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


def read_squad(path: str, hasher: Hasher | None = None) -> Table:
    """Reads the questions of a file in SQuAD's layout, 1.1 or 2.0: columns `id`, `question`, `context` and `answers`.

    Answers are the file's (a list of {"text", "answer_start"}), none if `is_impossible`, and None if it has neither key.
    """
    rows = []
    for at, values in squad_questions(path, hasher):
        id = str(_get(values, "id", cast(type, str | int), at))
        answers = _get(values, "answers", list, at) if "answers" in values else None
        answers = [] if values.get("is_impossible") else answers
        question = _get(values, "question", str, at)
        rows.append(Row(f"{path}: {id}", {"id": id, "question": question, "context": values["context"], "answers": answers}))
    return Table(("id", "question", "context", "answers"), iter(rows), [])


def squad_questions(path: str, hasher: Hasher | None = None) -> Iterator[Row]:
    """Yields the questions of a file in SQuAD's layout, each with all its values and its context."""
    content = load_json(path, decoded(read_lines(path, 0, hasher)))
    for i, article in enumerate(_get(content, "data", list, path)):
        for j, paragraph in enumerate(_get(article, "paragraphs", list, f"{path}: data[{i}]")):
            at = f"{path}: data[{i}].paragraphs[{j}]"
            context = {"context": _get(paragraph, "context", str, at)}
            for k, question in enumerate(_get(paragraph, "qas", list, at)):
                yield Row(f"{at}.qas[{k}]", question | context if isinstance(question, dict) else context)


def _get(value: object, key: str, kind: type[T], place: str) -> T:
    if not isinstance(value, dict) or key not in value:
        raise InputError(f"{place}: has no {key!r}; SQuAD's layout is {{data: [{{paragraphs: [{{context, qas: [...]}}]}}]}}")
    if not isinstance(value[key], kind):
        raise InputError(f"{place}: {key!r} is a {type(value[key]).__name__}, not a {getattr(kind, '__name__', kind)}")
    return cast(T, value[key])
