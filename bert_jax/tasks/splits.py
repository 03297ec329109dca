"""Reads the files of a task: training, dev and test records, and lines to show about them.

    splits = load_splits(find_task("sst2"), TaskData(data="glue/SST-2"))
    splits.train[0]      Record(("hide new secretions from the parental units",), "negative", "0", "glue/SST-2/train.tsv:2")
    splits.dev.keys()    dict_keys(["dev"]); dev_matched and dev_mismatched for MNLI
    splits.notes         ["train: 67349 rows of glue/SST-2/train.tsv ('sentence' 'label')", ...]

Files are found by their names (`split_files`) and columns by their usual names (`columns`) unless TaskData names them. The kind
of the task does what depends on it (`parsing.Parsing`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from bert_jax.data.files import Hasher, Row, Table
from bert_jax.data.records import Record, hashes, labels_of, take, texts_of
from bert_jax.errors import InputError
from bert_jax.tasks import holdout
from bert_jax.tasks.columns import find_columns
from bert_jax.tasks.labels import LabelReader, few, without_minus_one
from bert_jax.tasks.parsing import Columns, File
from bert_jax.tasks.split_files import find_files
from bert_jax.tasks.task import Task, TaskData


@dataclass(frozen=True)
class Splits:
    """Records of a task."""

    train: Sequence[Record]
    dev: dict[str, Sequence[Record]]  # the records of each dev split by its name: "dev", or several as for MNLI
    test: dict[str, Sequence[Record]]  # the records of each test split
    labels: tuple[str, ...]  # the classes by id; empty where the kind has no classes
    notes: list[str]  # lines to show about what was found, left out and held out; warnings start with "warning: "
    data_hash: str  # hex SHA-256 of the bytes of the files, in the order train, dev, test


def load_splits(task: Task, data: TaskData) -> Splits:
    """Reads all examples of a task.

    Without a dev file, `holdout.hold_out` takes dev rows from the training rows. `data.max_train_rows` limits what is left.

    Raises:
      InputError: a split is missing, ambiguous or empty; a file cannot be read; a column is missing; a label is malformed, or
        unknown in training; a training or dev split has no labels; all training rows have the same class.
    """
    if (own := task.kind.load(task, data)) is not None:
        return own
    if task.split != "test":
        raise InputError(f"--split is for retrieval from a folder in BEIR's layout; {data.data} is none: give the file (--data)")
    hasher, notes = hashlib.sha256(), list[str]()
    paths = find_files(task, data)
    own_layout: dict[str, Sequence[Record]] = {}
    for split, path in paths.items():
        if (found := task.kind.load_split(split, path, data, hasher)) is not None:
            own_layout[split], more = found
            notes += more
    if data.chunk_documents is not None and not own_layout:
        raise InputError(f"--chunk-documents is for retrieval from a folder in BEIR's layout; {data.data} is none: leave it out")
    files = {split: _read(split, path, task, data, hasher, notes) for split, path in paths.items() if split not in own_layout}
    task, read = _settled(task, data, files, notes)
    files.clear()  # frees the rows that were left out
    train = read.pop("train", [])
    read |= own_layout
    dev = {split: records for split, records in read.items() if split.startswith("dev")}
    test = {split: records for split, records in read.items() if split.startswith("test")}
    labels, more = task.kind.classes(task, train, [*dev.values(), *test.values()])
    notes += more
    if train and not dev:
        train, dev["dev"], note = holdout.hold_out(task.kind, train, data.dev_size)
        notes.append(note)
    if data.max_train_rows is not None and data.max_train_rows < len(train):
        notes.append(f"train: {data.max_train_rows} of {len(train)} rows are kept (--max-train-rows), drawn with seed 0")
        train = holdout.draw(train, data.max_train_rows)
    if train:
        notes += task.kind.look_at_labels(task, train, labels)
        notes += [
            f"warning: {split}: all {len(records)} rows have the label {label}, so its scores do not show what was learnt"
            for split, records in dev.items()
            if (label := holdout.only_label(task.kind, records)) is not None
        ]
        notes += holdout.leaks(task.kind, train, {**dev, **test})
    return Splits(train, dev, test, labels, notes, hasher.hexdigest())


# --- one file ---


def _read(split: str, path: str, task: Task, data: TaskData, hasher: Hasher, notes: list[str]) -> File:
    """Returns the records of a file; adds lines about it to `notes`."""
    kind = task.kind
    table, named = kind.open(path, task, data, hasher)
    columns = find_columns(split, path, table.columns, task, named)
    file, noted = _records(path, table, columns, task, data)
    shown = " ".join(map(repr, (*columns.texts, *columns.labels)))
    said = _about(split, table, data, noted.get("blank", []))
    notes += [f"{split}: {len(file.records)} rows of {path} ({shown})", *said]
    if file.records and split == "train":
        _check_texts(file, task)
    records, more = kind.checked(split, file, noted)
    more = [*_empty_texts(split, file, task), *more]
    if data.id_column or kind.unique_ids:
        _check_ids(file.records)
    if not records:
        raise InputError("; ".join([f"{path}: holds no rows", *said, *more]))
    notes += more
    return file._replace(records=records)


def _records(path: str, table: Table, columns: Columns, task: Task, data: TaskData) -> tuple[File, Mapping[str, list[str]]]:
    """Returns the records of the rows of a file, and the places that their kind noted."""
    kind, reader, noted = task.kind, LabelReader(task, data), defaultdict[str, list[str]](list)
    records = kind.new_records()
    for number, row in enumerate(kind.rows(table, columns)):
        if kind.is_blank(row, columns):
            noted["blank"].append(row.place)
            continue
        texts, label = kind.read_row(row, columns, _label(row, columns.labels, reader), noted)
        id = str(row.values.get(columns.id)) if columns.id else str(number)
        records.append(Record(texts, label, id, row.place, _group(row, columns.group)))
    return File(path, records, columns, reader), noted


def _label(row: Row, columns: tuple[str, ...], reader: LabelReader) -> object:
    if len(columns) > 1:
        return reader.of_columns({column: row.values.get(column) for column in columns}, row.place)
    return reader(row.values.get(columns[0]), row.place) if columns else None


def _group(row: Row, column: str | None) -> str | None:
    value = None if column is None else row.values.get(column)
    return None if value is None else str(value).strip() or None


def _about(split: str, table: Table, data: TaskData, blank: Sequence[str]) -> list[str]:
    """Returns lines about the format of a file, and about the lines and rows that were left out."""
    notes = [f"{split}: {remark} (--quotes none: they belong to the text)" for remark in table.remarks]
    if table.skipped:
        why = "that cannot be read" if data.on_error == "skip" else "with a wrong number of fields"
        notes.append(f"{split}: {len(table.skipped)} lines left out, {why}: {few(table.skipped)}")
    return notes + [f"warning: {split}: {len(blank)} rows without words left out: {few(blank)}"] * bool(blank)


def _check_texts(file: File, task: Task) -> None:
    """Raises InputError if a column of texts is empty in all rows."""
    for number, column in enumerate(file.columns.texts):
        if not any(task.kind.whole_texts(texts)[number].strip() for texts in texts_of(file.records)):
            raise InputError(f"{file.path}: {column!r} is empty in all {len(file.records)} rows: name another (--text-column)")


def _empty_texts(split: str, file: File, task: Task) -> list[str]:
    each = enumerate(map(task.kind.whole_texts, texts_of(file.records)))
    empty = [file.records[i].place for i, texts in each if not all(text.strip() for text in texts)]
    return [f"warning: {split}: {len(empty)} of {len(file.records)} rows have an empty text: {few(empty)}"] * bool(empty)


def _check_ids(records: Sequence[Record]) -> None:
    if len(np.unique(hashes(record.id for record in records))) == len(records):
        return
    places: dict[str, str] = {}
    for record in records:
        if record.id in places:
            raise InputError(f"{record.place}: {places[record.id]} also has the id {record.id!r}; give each row an id of its own")
        places[record.id] = record.place


# --- all splits together ---


def _settled(task: Task, data: TaskData, files: Mapping[str, File], notes: list[str]) -> tuple[Task, dict[str, Sequence[Record]]]:
    """Returns the task with its classes, where columns or positions name them, and the records of each split with their labels.

    Leaves out training and dev rows without a label; keeps test rows, which are predicted. Adds both numbers to `notes`.
    """
    read = {split: file.records for split, file in files.items()}
    read = without_minus_one(task, read, given=data.unlabelled_mark is not None)
    task, more = task.kind.settle_labels(task, files, read)
    notes += more
    return task, {split: _labelled(split, files[split], task, records, notes) for split, records in read.items()}


def _labelled(split: str, file: File, task: Task, records: Sequence[Record], notes: list[str]) -> Sequence[Record]:
    """Returns the rows that have a label; all rows of a test set, and where none has a label and the kind needs none."""
    labels = labels_of(records)
    missing, is_test = sum(label is None for label in labels), split.startswith("test")
    if not missing:
        return records
    if missing == len(records):
        if not is_test and not task.kind.labels_are_optional:
            raise InputError(f"{file.path}: none of its {missing} rows has a label, so it cannot be the {split} set")
        if split == "train" and file.reader.named:
            what = f"{' '.join(map(repr, file.columns.labels))} is empty in all {missing} rows"
            raise InputError(f"{file.path}: {what}: name another column, or leave it out (--label-column)")
        notes += [f"{split}: has no labels"] * is_test
        return records
    found = file.reader.unlabelled
    found["'-1'"] += missing - found.total()
    marks = ", ".join(f"{mark} {count}" for mark, count in found.most_common(5) if count)
    counted = f"{missing} of {len(records)} rows have no label ({marks})"
    if is_test:
        notes.append(f"{split}: {counted}: predicted, not scored")
        return records
    fix = "" if set(+found) == {"empty"} else "; if one of these is a class, name the marks that are not (--unlabelled-mark)"
    places = few([records[i].place for i in islice((i for i, label in enumerate(labels) if label is None), 4)])
    notes.append(f"warning: {split}: {counted}: left out: {places}{fix}")
    return take(records, [i for i, label in enumerate(labels) if label is not None])
