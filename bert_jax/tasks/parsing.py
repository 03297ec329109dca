"""The half of a kind of task that reads files: the columns that it takes, and the records that it makes of rows."""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from bert_jax.data import files
from bert_jax.data.files import Row, Table
from bert_jax.data.records import Record, Records, labels_of
from bert_jax.errors import InputError
from bert_jax.tasks.labels import MARKS, LabelReader
from bert_jax.tasks.task import Task, TaskData

L = TypeVar("L")  # the label of a record
Noted = Mapping[str, list[str]]  # places of rows, by what was noted of them
Classes = tuple[tuple[str, ...], list[str]]  # classes by id, and lines to show
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "answer"),
)


class Columns(NamedTuple):
    """The columns of a file; `stem` is that of `Task.stem`."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    id: str | None
    group: str | None
    stem: str | None


class File(NamedTuple):
    """The records of a file, its columns, and the reader of its labels, which has counted the unlabelled rows."""

    path: str
    records: Sequence[Record]
    columns: Columns
    reader: LabelReader


class Parsing(Protocol[L]):
    """Reads the rows of a file as records with labels L; the defaults are for one text or a pair."""

    # --- columns ---

    num_texts: tuple[int, float] = (1, 2)  # the least and the largest number of columns of texts
    usual_texts: tuple[tuple[str, ...], ...] = (*PAIRS, ("text",), ("sentence",))  # read unless the user names others
    first_usual: bool = False  # a file may have several of usual_texts: the first is read
    usual_labels: tuple[str, ...] = ()  # columns of labels, read unless the user names another
    several_label_columns: bool = False  # each class may have a column of 0 and 1
    unlabelled_texts: Mapping[int, str] = {}  # numbers of texts that have no label, and the reason
    labels_are_optional: bool = False  # all training rows may be without a label
    labels_train_alone: bool = False  # only training reads labels: other files may lack a column that the user names

    def usual_columns(self, columns: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Returns the columns of texts that are read unless the user names others; `columns` of the file are in lower case."""
        return self.usual_texts

    def usual_ids(self, task: Task, columns: Sequence[str]) -> Sequence[str]:
        """Returns columns of ids, read unless the user names another."""
        return ("index", "idx") if task.texts else ()

    # --- rows -> records ---

    label_marks: frozenset[str] = MARKS  # cells of the label column that mean "no label"
    unique_ids: bool = False  # two rows with one id are an error; otherwise only where the user names the column of ids
    shared_texts: bool = False  # many records have the same text, which is stored once

    def open(self, path: str, task: Task, data: TaskData, hasher: files.Hasher) -> tuple[Table, TaskData]:
        """Returns the rows of a file, and `data` without the columns that the format has by definition."""
        skip = data.on_error == "skip" or (task.skip_ragged and files.suffix_of(path) in files.DELIMITED_SUFFIXES)
        return files.read_table(path, data.quotes, hasher, header=task.header, skip_bad=skip), data

    def rows(self, table: Table, columns: Columns) -> Iterator[Row]:
        """Returns the rows, one for each record."""
        return table.rows

    def read_label(self, reader: LabelReader, value: object, place: str) -> L | None:
        """Returns the label in a cell, or None where there is none. Raises InputError for a cell that cannot be a label."""

    def is_blank(self, row: Row, columns: Columns) -> bool:
        """Returns True for an empty row, which is left out."""
        return False

    def read_row(self, row: Row, columns: Columns, label: L | None, noted: Noted) -> tuple[tuple[str, ...], L | None]:
        """Returns the texts and the label of a row; may add places to `noted`, for `checked`."""
        return tuple([text_in(row, column) for column in columns.texts]), label

    def checked(self, split: str, file: File, noted: Noted) -> tuple[Sequence[Record], list[str]]:
        """Returns the records of a file that are kept, and lines to show. Raises InputError if the file cannot be used."""
        return file.records, []

    def new_records(self) -> Records | list[Record]:
        """Returns an empty container for the records of a file."""
        return [] if self.shared_texts else Records()

    def whole_texts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the text of each column."""
        return texts

    # --- the labels of all splits ---

    def classes_of(self, label: L | None) -> tuple[str, ...]:
        """Returns the names of the classes in a label."""
        return ()

    def balanced_weights(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, float]:
        """Returns n / (C * n_c) for each class, as scikit-learn's compute_class_weight; 1 for one that does not occur."""
        counts = Counter(name for label in labels_of(train) for name in self.classes_of(label))
        return {name: counts.total() / (len(counts) * counts[name]) if counts[name] else 1.0 for name in labels}

    def hides_minus_one(self, task: Task, split: str, train: Sequence[L | None]) -> bool:
        """Returns True where -1 means "no label" in this split; `train` are the labels of training."""
        return False

    def settle_labels(self, task: Task, files: Mapping[str, File], read: dict[str, Sequence[Record]]) -> tuple[Task, list[str]]:
        """Replaces labels in `read` that depend on the other rows; returns the task with its classes, and lines to show."""
        return task, []

    def classes(self, task: Task, train: Sequence[Record], others: Sequence[Sequence[Record]]) -> Classes:
        """Returns the classes by id, and lines to show. Raises InputError for a label that does not fit."""
        return (), []

    def look_at_labels(self, task: Task, train: Sequence[Record], labels: Sequence[str]) -> list[str]:
        """Returns lines about the labels of training. Raises InputError if there is nothing to learn."""
        return []

    # --- rows that belong together ---

    held_out_by_class: bool = False  # each class has its share of the rows that are held out
    unit: str = ""  # the plural of what is held out as a whole, if it may have several rows
    leaked: str = "rows are"  # the subject of warnings about rows in two splits

    def content(self, texts: tuple[str, ...]) -> Hashable:
        """Returns a key that is equal for records of the same content, which are held out together; a pair in any order."""
        return tuple(sorted(texts[:2]))

    def parts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the texts that records of different content may share; the same number for all records."""
        return texts[:2] if len(texts) > 1 else ()

    def values(self, label: L) -> tuple[Hashable, ...]:
        """Returns the values in a label; the scores of a split with a single value mean little."""
        return (label,)


def value_in(row: Row, column: str) -> object:
    """Returns the value of a column, None for NaN (pandas' null). Raises InputError if the row has no such column."""
    if column not in row.values:
        raise InputError(f"{row.place}: no {column!r}, it has {', '.join(row.values) or 'nothing'}")
    value = row.values[column]
    return None if isinstance(value, float) and math.isnan(value) else value


def text_in(row: Row, column: str) -> str:
    """Returns the text of a column, "" for a null."""
    value = value_in(row, column)
    return checked_text(row, column, "" if value is None else value)


def checked_text(row: Row, column: str, value: object) -> str:
    """Returns `value`. Raises InputError if it is not a text."""
    if not isinstance(value, str):
        raise InputError(f"{row.place}: {column!r} is {reprlib.repr(value)}, not a text")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise InputError(f"{row.place}: {column!r} has half a surrogate pair in it, which is not a character; remove it")
    return value
