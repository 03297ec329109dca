"""A task's files -> training, dev and test records, and what there is to say about them.

    splits = load_splits(find_task("sst2"), TaskData(data="glue/SST-2"))
    splits.train[0]      Record(("hide new secretions from the parental units",), "negative", "0", "glue/SST-2/train.tsv:2")
    splits.dev.keys()    dict_keys(["dev"]); dev_matched and dev_mismatched for MNLI
    splits.notes         ["train: 67349 rows of glue/SST-2/train.tsv ('sentence' 'label')", ...]

Files are found by name, columns by what the task's files usually have; both may be said instead (TaskData).
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import math
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from bert_jax.config import InputError, did_you_mean
from bert_jax.data import files, tags
from bert_jax.data.files import Row, Table
from bert_jax.data.records import Record, Records, hashes, labels_of, take, texts_of, with_labels
from bert_jax.tasks import holdout
from bert_jax.tasks.labels import (
    LabelReader,
    Span,
    Spans,
    are_numbers,
    by_place,
    classes_of,
    look_alikes,
    tokens,
    whole_number,
    without_minus_one,
)
from bert_jax.tasks.task import Kind, Task, TaskData


@dataclass(frozen=True)
class Splits:
    """Records of a task.

    Attributes:
      dev, test: by name, which is "dev" and "test" but for tasks that have several.
      labels: the classes by id (classification, multi_label, tagging), else empty.
      notes: lines to show: what was found, left out, held out; those to be heeded start with "warning: ".
      data_hash: hex SHA-256 of the bytes of the files, in the order train, dev, test.
    """

    train: Sequence[Record]
    dev: dict[str, Sequence[Record]]
    test: dict[str, Sequence[Record]]
    labels: tuple[str, ...]
    notes: list[str]
    data_hash: str


def load_splits(task: Task, cfg: TaskData) -> Splits:
    """Reads all examples of a task.

    Without a dev file, dev rows are drawn from the training rows as `holdout.hold_out` says: equal texts, questions of one
    context and rows of one group stay together, and classes keep their shares. With `cfg.max_train_rows`, `holdout.draw` of the
    training rows that are left are the training rows.

    Raises:
      InputError: a split that is missing, found twice or empty; a file that cannot be read; a column that is not there; a label
        that is malformed or (in dev or test) unknown to training; a training or dev split without labels; training rows of one
        class only.
    """
    hasher, notes = hashlib.sha256(), list[str]()
    loaded = {split: _read(split, path, task, cfg, hasher, notes) for split, path in find_files(task, cfg).items()}
    task, read = _settled(task, cfg, loaded, notes)
    loaded.clear()  # what is left out takes no memory from here on
    train = read.pop("train", [])
    dev = {split: records for split, records in read.items() if split.startswith("dev")}
    test = {split: records for split, records in read.items() if split.startswith("test")}
    labels = _labels(task, train, [*dev.values(), *test.values()], notes)
    if train and not dev:
        train, dev["dev"], note = holdout.hold_out(task.kind, train, cfg.dev_size)
        notes.append(note)
    if cfg.max_train_rows is not None and cfg.max_train_rows < len(train):
        notes.append(f"train: {cfg.max_train_rows} of {len(train)} rows are kept (--max-train-rows), drawn by seed 0")
        train = holdout.draw(train, cfg.max_train_rows)
    if train:
        notes += _look_at_labels(task, train, labels)
        notes += [
            f"warning: {split}: all of its {len(records)} rows have the label {label}: its scores do not tell what was learnt"
            for split, records in dev.items()
            if (label := holdout.only_label(task.kind, records)) is not None
        ]
        notes += holdout.leaks(task.kind, train, {**dev, **test})
    return Splits(train, dev, test, labels, notes, hasher.hexdigest())


# ---- which files


_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid", "val", "testa"),
    "dev_matched": ("dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test", "testb"),
    "test_matched": ("test_matched",),
    "test_mismatched": ("test_mismatched",),
}
_LATER: dict[str, tuple[str, ...]] = {"test": ("test-labeled", "test-unlabeled")}  # taken where there is no test.*


def find_files(task: Task, cfg: TaskData) -> dict[str, str]:
    """Path by split, in the order of reading: those of `cfg.data`, with `cfg.dev` and `cfg.test` in place of its own.

        find_files(find_task("mnli"), TaskData(data="glue/MNLI")) -> {"train": "glue/MNLI/train.tsv", "dev_matched": ...}

    Raises InputError where two files could be a split, or none is there to train on (to test on, for a task of that kind).
    """
    if not cfg.data:
        raise InputError("no data: --data names a folder with train.*, dev.* and test.*, a file to train on, or tfds:NAME")
    main = "test" if task.test_only else "train"
    named = _candidates(cfg.data)
    given = {split: path for split, path in (("dev", cfg.dev), ("test", cfg.test)) if path}
    searched = [split for split in _NAMES if named and split.split("_")[0] not in given]
    found = {split: path for split in searched if (path := _pick(split, named, task))}
    found |= given if named else {main: cfg.data, **given}
    if main not in found:
        names = ", ".join(sorted(os.path.basename(path) for _, path in named)[:20])
        raise InputError(f"{cfg.data}: no {main}.* in it, only {names}; name the files: --data FILE --dev FILE --test FILE")
    return {split: found[split] for split in _NAMES if split in found and not (task.test_only and not split.startswith("test"))}


def _candidates(data: str) -> list[tuple[str, str]]:
    """(name without suffix, path) of all that a folder or a TFDS name holds; nothing for a single file."""
    if data.startswith("tfds:"):
        whole = "tfds:" + ":".join(files.tfds_name(data))
        if data == whole:
            return []
        return [(split, f"{data}:{split}") for split in files.tfds_splits(data)]
    if "://" not in data and not os.path.exists(data) and files.suffix_of(data) not in files.TABLE_SUFFIXES:
        beside = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(data) or "."), "*")))
        raise InputError(
            f"no folder or file {data}{did_you_mean(os.path.normpath(data), map(os.path.normpath, beside))} (--data)"
        )
    if not (os.path.isdir(data) or ("://" in data and files.suffix_of(data) not in files.TABLE_SUFFIXES)):
        return []
    folder = data.rstrip("/") or "/"
    paths = sorted(files.matches(os.path.join(folder if "://" in data else glob.escape(folder), "*")))
    if not paths:
        raise InputError(f"{data}: holds no files")
    return [(_stem(path), path) for path in paths]


def _stem(path: str) -> str:
    """`train` of "a/Train.tsv.gz"; nothing for a file that is no table."""
    name, suffix = os.path.splitext(os.path.basename(path.removesuffix(files.codec_of(path))))
    return name.lower() if suffix.lower() in files.TABLE_SUFFIXES else ""


def _pick(split: str, named: list[tuple[str, str]], task: Task) -> str | None:
    """The file of a split: by its name, by the task's own names for it, or by what its name starts with (train-v1.1)."""
    names, prefixes = _NAMES[split], tuple(name + end for name in _NAMES[split] for end in "-.")
    others = [(name,) for name in (*_LATER.get(split, ()), *task.files.get(split, ()))]
    tries = [[path for stem, path in named if stem in group] for group in (names, *others)]
    for paths in [*tries, [path for stem, path in named if stem.startswith(prefixes)]]:
        if len(paths) > 1:
            option = "data" if split == "train" else split.split("_")[0]
            raise InputError(f"{paths[0]} and {paths[1]} could both be {split}: name the one to use with --{option} FILE")
        if paths:
            return paths[0]
    return None


# ---- which columns


class _Columns(NamedTuple):
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    id: str | None
    group: str | None


_PAIRS = tuple(
    tuple(pair.split())
    for pair in ("sentence1 sentence2", "premise hypothesis", "question1 question2", "question sentence", "question answer")
)
_NUM_TEXTS: dict[Kind, tuple[int, float]] = {
    "classification": (1, 2), "multi_label": (1, 2), "regression": (1, 2), "tagging": (1, 1), "question_answering": (2, 2),
    "multiple_choice": (3, math.inf), "similarity": (2, 3),
}  # fmt: skip
_USUAL_TEXTS: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "classification": (*_PAIRS, ("text",), ("sentence",)),
    "multi_label": (*_PAIRS, ("text",), ("sentence",)),
    "regression": (*_PAIRS, ("text",), ("sentence",)),
    "tagging": (("words",), ("tokens",), ("word",), ("token",), ("text",), ("sentence",)),
    "question_answering": (("question", "context"),),
    "multiple_choice": (),
    "similarity": (("anchor", "positive", "negative"), ("anchor", "positive"), *_PAIRS),
}
_USUAL_LABEL: dict[Kind, tuple[str, ...]] = {
    "classification": (), "multi_label": ("labels",), "regression": ("score",),
    "tagging": ("tags", "ner_tags", "tag", "labels", "entities", "spans", "ents"),
    "question_answering": ("answers",), "multiple_choice": (), "similarity": ("score",),
}  # fmt: skip
_USUAL_SENTENCE = ("sentence #", "sentence_id", "sentence id", "sent_id", "sentence_idx", "sentence_number")


def _columns(split: str, path: str, columns: Sequence[str], task: Task, cfg: TaskData) -> _Columns:
    """What is read from which column: what the user says, else what the task's files have, else what is usual and there."""
    texts = tuple(_existing(path, columns, name, "--text-column") for name in cfg.text_column)
    texts = texts or _usual_texts(path, columns, task)
    least, most = _NUM_TEXTS[task.kind]
    if not least <= len(texts) <= most:
        number = f"{least}" if least == most else f"{least} or more" if most == math.inf else f"{least} or {most}"
        raise InputError(f"--text-column {' '.join(texts)}: {len(texts)} columns, but {task.kind} takes {number}")
    if task.stem:
        _existing(path, columns, task.stem, "--text-column")
    labels = _label_columns(split, path, columns, task, cfg)
    if task.kind == "similarity" and len(texts) == 3:
        if cfg.label_column:
            named = " ".join(cfg.label_column)
            raise InputError(f"--label-column {named}: three texts are an anchor, a like and an unlike one, without label")
        labels = ()
    ids: tuple[str, ...] = ("id",) if task.kind == "question_answering" else ("index", "idx") if task.texts else ()
    if task.kind == "tagging":
        ids = tuple(name for name in columns if name.lower() in _USUAL_SENTENCE)
    id = _existing(path, columns, cfg.id_column, "--id-column") if cfg.id_column else next((n for n in ids if n in columns), None)
    group = cfg.group_column
    if group is not None and (split == "train" or group in columns):
        group = _existing(path, columns, group, "--group-column")
    return _Columns(texts, labels, id, group)


def _label_columns(split: str, path: str, columns: Sequence[str], task: Task, cfg: TaskData) -> tuple[str, ...]:
    """None, where labels may be missing (in a test file, and for similarity); several: 0 or 1 each, for multi_label."""
    optional = split.startswith("test")
    if named := cfg.label_column:
        if len(named) == 1 and task.kind == "multi_label" and named[0] not in columns:
            named = tuple(part for name in named[0].split(",") if (part := name.strip()))
        if len(named) > 1 and task.kind != "multi_label":
            given = " ".join(named)
            raise InputError(f"--label-column {given}: {task.kind} takes one; columns of 0 and 1 are --task multi_label")
        absent = optional and not any(name in columns for name in named)
        return () if absent else tuple(_existing(path, columns, name, "--label-column") for name in named)
    known = {name.lower(): name for name in columns}
    usual = [known[name.lower()] for name in (task.label, "label", *_USUAL_LABEL[task.kind]) if name.lower() in known]
    if usual or optional or task.kind == "similarity":
        return tuple(usual[:1])
    near = did_you_mean(task.label, columns)
    raise InputError(f"{path}: which column is the label? It has {', '.join(columns)}: say --label-column NAME{near}")


def _existing(path: str, columns: Sequence[str], name: str, option: str) -> str:
    """The column of that name; blanks at its ends, as the file may have them, do not count."""
    name = name if name in columns else name.strip()
    if name not in columns:
        separator = next((mark for mark in ";|\t," if len(columns) == 1 and mark in columns[0]), None)
        if separator is not None:
            raise InputError(
                f"{path}: no column {name!r}; the first line seems to be of columns with {separator!r} between them, where .csv "
                "means commas and .tsv tabs: save it so"
            )
        first = "" if path.startswith("tfds:") else " in its first line" * (files.suffix_of(path) in files.DELIMITED_SUFFIXES)
        near = did_you_mean(name, columns)
        raise InputError(f"{path}: no column {name!r}{first}, it has {', '.join(columns)}{near} ({option})")
    return name


def _usual_texts(path: str, columns: Sequence[str], task: Task) -> tuple[str, ...]:
    known = {name.lower(): name for name in columns}
    usual = [names for names in (task.texts, *_USUAL_TEXTS[task.kind]) if names and {n.lower() for n in names} <= set(known)]
    usual = usual[:1] if task.kind == "tagging" else usual  # words go before the text that they are of
    if not usual or (usual[0] != task.texts and not all(set(names) <= set(usual[0]) for names in usual)):
        expected, near = f" (task {task.name}: {', '.join(task.texts)})" if task.texts else "", did_you_mean("text", columns)
        raise InputError(f"{path}: which column is the text? It has {', '.join(columns)}{expected}: say --text-column NAME{near}")
    return tuple(known[name.lower()] for name in usual[0])


# ---- rows -> records


class _File(NamedTuple):
    """What one file holds; `columns` and `reader` are what its labels were read from and with."""

    path: str
    records: Sequence[Record]
    columns: _Columns
    reader: LabelReader


def _read(split: str, path: str, task: Task, cfg: TaskData, hasher: Any, notes: list[str]) -> _File:
    """The records of one file; what there is to say about it is added to `notes`."""
    table, columns = _open(split, path, task, cfg, hasher)
    stem = None if cfg.text_column else task.stem
    reader = LabelReader(task, cfg)
    records: Records | list[Record] = [] if task.kind == "question_answering" else Records()  # questions share their contexts
    wordless, overlapping, words = list[str](), 0, 0
    for number, row in enumerate(table.rows):
        if task.kind == "tagging" and _has_no_words(row, columns.texts[0]):
            wordless.append(row.place)
            continue
        label = _label(row, columns.labels, reader)
        if task.kind == "tagging":
            texts, label, lost = _sentence(row, columns.texts[0], label, reader)
            overlapping, words = overlapping + lost, words + _is_word(row, columns)
        else:
            texts = _texts(row, columns.texts, stem)
        id = str(row.values.get(columns.id)) if columns.id else str(number)
        records.append(Record(texts, label, id, row.place, _group(row, columns.group)))
    shown = " ".join(map(repr, (*columns.texts, *columns.labels)))
    notes.append(f"{split}: {len(records)} rows of {path} ({shown})")
    said = len(notes)
    notes += [f"{split}: {remark} (--quotes none: they belong to the text)" for remark in table.remarks]
    if table.skipped:
        why = "that cannot be read" if cfg.on_error == "skip" else "with a wrong number of fields"
        notes.append(f"{split}: {len(table.skipped)} lines left out, {why}: {_few(table.skipped)}")
    if wordless:
        notes.append(f"warning: {split}: {len(wordless)} rows left out that have no words: {_few(wordless)}")
    if 1 < len(records) == words:
        fix = "name the column that says which sentence a word is of: --id-column NAME"
        raise InputError(f"{path}: {columns.texts[0]!r} has one word in every row, where a row is a sentence; {fix}")
    notes += _empty_texts(split, path, task.kind, columns.texts, records)
    if cfg.id_column or task.kind == "question_answering":
        _check_ids(records)
    if overlapping:
        notes.append(f"warning: {split}: {overlapping} entities left out that overlap longer ones")
    if isinstance(records, list):
        records = _with_matching_answers(split, records, notes)
    if not records:
        raise InputError("; ".join([f"{path}: holds no rows", *notes[said:]]))
    return _File(path, records, columns, reader)


def _label(row: Row, columns: tuple[str, ...], reader: LabelReader) -> Any:
    if len(columns) > 1:
        return reader.of_columns({column: row.values.get(column) for column in columns}, row.place)
    return reader(row.values.get(columns[0]), row.place) if columns else None


def _open(split: str, path: str, task: Task, cfg: TaskData, hasher: Any) -> tuple[Table, _Columns]:
    suffix = files.suffix_of(path)
    if task.kind == "tagging" and suffix in files.CONLL_SUFFIXES and not _has_sentence_column(path, cfg):
        label = whole_number(" ".join(cfg.label_column) or "-1", "--label-column")
        word = whole_number(" ".join(cfg.text_column) or "0", "--text-column")
        table = files.read_conll(path, label, word, hasher, skip_bad=cfg.on_error == "skip")
        cfg = cfg.replace(label_column=(), text_column=())
    elif task.kind == "question_answering" and suffix == ".json":
        table = files.read_squad(path, hasher)
    else:
        skip = cfg.on_error == "skip" or (task.skip_ragged and suffix in files.DELIMITED_SUFFIXES)
        table = files.read_table(path, cfg.quotes, hasher, header=task.header, skip_bad=skip)
    columns = _columns(split, path, table.columns, task, cfg)
    if task.kind == "tagging" and columns.id:
        rows = files.sentences_of_words(table.rows, columns.id, (*columns.texts, *columns.labels))
        table = table._replace(rows=rows)
    return table, columns


def _is_word(row: Row, columns: _Columns) -> bool:
    """Whether a row is a word and its tag, and no sentence, by its looks."""
    cells = [row.values.get(column) for column in (*columns.texts, *columns.labels)]
    return len(cells) == 2 and all(isinstance(c, str) and len(c.split()) == 1 and c.lstrip()[0] != "[" for c in cells)


def _has_sentence_column(path: str, cfg: TaskData) -> bool:
    """Whether a file that could be CoNLL's is a table with a word a row: its first line names the column of the sentences."""
    if files.suffix_of(path) not in files.DELIMITED_SUFFIXES:
        return False
    return any(name.strip().lower() in _USUAL_SENTENCE or name.strip() == cfg.id_column for name in files.first_fields(path))


def _has_no_words(row: Row, column: str) -> bool:
    """Whether a sentence is null or empty: there is nothing to tag in it."""
    value = _value(row, column)
    return not value.strip() if isinstance(value, str) else value is None or value == []


def _sentence(row: Row, column: str, label: Any, reader: LabelReader) -> tuple[tuple[str, ...], tuple[str, ...] | None, int]:
    """(words, tags, entities that were left out because they overlap longer ones)."""
    value, lost = row.values.get(column), 0
    listed = isinstance(value, list) or (isinstance(value, str) and value.lstrip()[:1] == "[")
    if isinstance(value, str) and not listed and (label is None or isinstance(label, Spans)):
        text = _text(row, column, value)
        spans = _checked(row, text, label or ())
        kept = tags.without_overlaps(spans)
        words, found = tags.tagged_words(text, kept)
        label, lost = None if label is None else tuple(found), len(spans) - len(kept)
    else:
        words = tokens(value, f"{row.place}: {column!r}") or []
    if isinstance(label, Spans):
        if label:
            raise InputError(f"{row.place}: the label has entities by characters, but {column!r} is a list of words, not a text")
        label = None  # an empty list of tags, of a sentence that has words
        reader.unlabelled["empty"] += 1
    if not words:
        raise InputError(f"{row.place}: {column!r} has no words")
    return tuple(_text(row, column, word) for word in words), label, lost


def _checked(row: Row, text: str, spans: Sequence[Span]) -> list[tuple[int, int, str]]:
    """(start, end, type) of entities that lie in the text, and are there what they are said to be."""
    for start, end, kind, said in spans:
        there = text[start:end].strip() if 0 <= start < end <= len(text) else ""
        if not there:
            raise InputError(f"{row.place}: no text at {start} to {end} ({kind}); the text has {len(text)} characters")
        if said is not None and said.strip() != there:
            hint = "start and end count characters (Unicode code points) from 0"
            raise InputError(f"{row.place}: {kind} at {start} to {end} is {said!r}, but the text there is {there!r}; {hint}")
    return [span[:3] for span in spans]


def _texts(row: Row, columns: Sequence[str], stem: str | None) -> tuple[str, ...]:
    texts = tuple(_cell(row, column) for column in columns)
    start = f"{_cell(row, stem)} " if stem else ""
    return (texts[0], *(start + text for text in texts[1:])) if stem else texts


def _group(row: Row, column: str | None) -> str | None:
    value = None if column is None else row.values.get(column)
    return None if value is None else str(value).strip() or None


def _cell(row: Row, column: str) -> str:
    """The text of a column; a null is an empty text."""
    value = _value(row, column)
    return _text(row, column, "" if value is None else value)


def _value(row: Row, column: str) -> Any:
    """What a column has, None for NaN, which is pandas' null. Raises InputError where the row has no such column."""
    if column not in row.values:
        raise InputError(f"{row.place}: no {column!r}, it has {', '.join(row.values) or 'nothing'}")
    value = row.values[column]
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(row: Row, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{row.place}: {column!r} is {reprlib.repr(value)}, not a text")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise InputError(f"{row.place}: {column!r} has half a surrogate pair in it, which is no character")
    return value


def _empty_texts(split: str, path: str, kind: Kind, columns: Sequence[str], records: Sequence[Record]) -> list[str]:
    """How many records have an empty text. Raises InputError where a column of the training file has nothing else."""

    def texts() -> Iterator[tuple[str, ...]]:
        return (("".join(words),) for words in texts_of(records)) if kind == "tagging" else texts_of(records)

    for number, column in enumerate(columns if split == "train" and records else ()):
        if not any(each[number].strip() for each in texts()):
            raise InputError(f"{path}: {column!r} is empty in all {len(records)} rows: name another (--text-column)")
    empty = [records[i].place for i, each in enumerate(texts()) if not all(text.strip() for text in each)]
    return [f"warning: {split}: {len(empty)} of {len(records)} rows have an empty text: {_few(empty)}"] * bool(empty)


def _check_ids(records: Sequence[Record]) -> None:
    if len(np.unique(hashes(record.id for record in records))) == len(records):
        return
    places: dict[str, str] = {}
    for record in records:
        if record.id in places:
            raise InputError(f"{record.place}: id {record.id!r} is also that of {places[record.id]}")
        places[record.id] = record.place


def _with_matching_answers(split: str, records: list[Record], notes: list[str]) -> list[Record]:
    """Without the answers that do not stand where they say, and without the questions that lose all of theirs.

    An answer that stands in the context once, elsewhere than it says, is read from there.
    """
    kept, moved, wrong, lost = list[Record](), list[str](), list[str](), list[str]()
    for record in records:
        context, answers, good = record.texts[1], record.label or (), list[tuple[str, int]]()
        for text, start in answers:
            if text and start >= 0 and context.startswith(text, start):
                good.append((text, start))
            elif text and (at := context.find(text)) >= 0 and at == context.rfind(text):
                good.append((text, at))
                moved.append(record.id)
            else:
                wrong.append(record.id)
        if answers and not good:
            lost.append(record.id)
        else:
            kept.append(dataclasses.replace(record, label=tuple(good)) if answers else record)
    for found, what in (
        (moved, "answers do not stand at their answer_start, and are read from the one place where they do"),
        (wrong, "answers left out that do not stand at their answer_start"),
        (lost, "questions left out that have no other answer"),
    ):
        notes += [f"warning: {split}: {len(found)} {what}: {_few(found)}"] * bool(found)
    return kept


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# ---- all splits together


def _settled(
    task: Task, cfg: TaskData, loaded: Mapping[str, _File], notes: list[str]
) -> tuple[Task, dict[str, Sequence[Record]]]:
    """The task with its classes, where columns or places name them, and the records of each split with their labels.

    Training and dev rows without a label are left out; test rows are kept, to be predicted. Both are counted in `notes`.
    """
    read = {split: file.records for split, file in loaded.items()}
    for split, file in loaded.items():
        if task.kind == "multi_label" and file.reader.blank == len(file.records):  # not even one row names a class
            read[split] = with_labels(file.records, [None] * len(file.records))
            file.reader.unlabelled["empty"] += len(file.records)
    read = without_minus_one(task, read, given=cfg.unlabelled_mark is not None)
    classes = next((file.columns.labels for file in loaded.values() if len(file.columns.labels) > 1), ())
    if task.kind == "multi_label" and not classes:
        read, classes = by_place(read, task.labels)
        if classes and not task.labels:
            notes.append(f"labels are lists of 0 and 1: the classes are called by their place in them, 0 to {len(classes) - 1}")
    if classes and not task.labels:
        task = dataclasses.replace(task, labels=classes)
    return task, {split: _labelled(split, loaded[split], task, records, notes) for split, records in read.items()}


def _labelled(split: str, file: _File, task: Task, records: Sequence[Record], notes: list[str]) -> Sequence[Record]:
    """Without the rows that have no label, but in a test set, and for similarity if none has one."""
    labels = labels_of(records)
    missing = sum(label is None for label in labels)
    if not missing:
        return records
    if missing == len(records) and (split.startswith("test") or task.kind == "similarity"):
        notes += [f"{split}: has no labels"] * split.startswith("test")
        return records
    if missing == len(records):
        raise InputError(f"{file.path}: none of its {missing} rows has a label, so it cannot be {split}")
    found = file.reader.unlabelled
    found["'-1'"] += missing - found.total()
    marks = ", ".join(f"{mark} {count}" for mark, count in found.most_common(5) if count)
    what = f"{missing} of {len(records)} rows have no label ({marks})"
    if split.startswith("test"):
        notes.append(f"{split}: {what}: predicted, not scored")
        return records
    fix = "" if set(+found) == {"empty"} else "; if such is a class, name the marks that are none (--unlabelled-mark)"
    notes.append(f"warning: {split}: {what}: left out{fix}")
    return take(records, [i for i, label in enumerate(labels) if label is not None])


def _labels(task: Task, train: Sequence[Record], others: list[Sequence[Record]], notes: list[str]) -> tuple[str, ...]:
    """The classes by id: the task's, else those in training. Raises InputError for a label that is none of them."""
    for records in [train, *others]:
        _check_sizes(task, records)
    found = {name for label in labels_of(train) for name in classes_of(task.kind, label)}
    if task.kind == "tagging":
        rest = chain.from_iterable(map(labels_of, others))
        fresh = Counter(name for label in rest for name in classes_of(task.kind, label) if name not in found)
        if task.labels:
            if odd := sorted(fresh.keys() - set(task.labels)):
                near = did_you_mean(odd[0], task.labels)
                raise InputError(f"tag {odd[0]!r} is none of the model's: {', '.join(task.labels)}{near}")
            return task.labels
        notes += [
            f"warning: tag {name!r} is {count} times in dev or test, never in training" for name, count in sorted(fresh.items())
        ]
        return tuple(sorted(found | set(fresh), key=lambda name: (name != "O", name)))
    labels = task.labels or _sorted(found)
    known_labels = set(labels)
    for records in [train, *others]:
        for i, label in enumerate(labels_of(records)):
            if odd_names := [name for name in classes_of(task.kind, label) if name not in known_labels]:
                whose = f"task {task.name}'s" if task.labels else "the training rows'"
                known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
                near = "; numbers to be predicted are --task regression" if not task.labels and are_numbers(labels) else ""
                near = near if are_numbers(odd_names[:1]) else did_you_mean(odd_names[0], labels)
                raise InputError(f"{records[i].place}: label {odd_names[0]!r} is none of {whose}: {known}{near}")
    return labels


def _check_sizes(task: Task, records: Sequence[Record]) -> None:
    if task.kind not in ("tagging", "multiple_choice"):
        return
    for i, (texts, label) in enumerate(zip(texts_of(records), labels_of(records), strict=True)):
        if label is None:
            continue
        if task.kind == "tagging" and len(label) != len(texts):
            raise InputError(f"{records[i].place}: {len(texts)} words, but {len(label)} tags")
        if task.kind == "multiple_choice" and not 0 <= label < len(texts) - 1:
            raise InputError(f"{records[i].place}: label {label}, but the choices are 0 to {len(texts) - 2}")


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """By value if all are numbers, else by spelling."""
    names = sorted(names)
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)


def _look_at_labels(task: Task, train: Sequence[Record], labels: tuple[str, ...]) -> list[str]:
    """How often each class is in training. Raises InputError where there is only one."""
    counts = Counter(name for label in labels_of(train) for name in classes_of(task.kind, label))
    if labels and len(counts) < (1 if task.kind == "multi_label" else 2):
        raise InputError(f"the {len(train)} training rows have no label but {', '.join(counts) or 'none'}: nothing to learn")
    shown = [f"{name} {counts[name]}" for name in labels[:20]]
    notes = [f"labels: {', '.join(shown)}{f', ... ({len(labels)} in all)' if len(labels) > 20 else ''}"] if labels else []
    notes += [f"warning: no training row has label {name!r}" for name in labels if name not in counts]
    if task.kind == "multi_label":
        sizes = Counter(map(len, labels_of(train)))
        notes += [f"labels: {sizes[0]} of {len(train)} training rows have none of them"] * (sizes[0] > 0)
        mark = next((mark for mark in ";|" if any(mark in name for name in labels)), None)
        if max(sizes) == 1 and mark is not None:
            notes.append(f"warning: no training row has two labels, and some have {mark!r} in them: --label-separator '{mark}'?")
        elif set(sizes) == {1} and len(labels) > 1:
            notes.append("warning: every training row has one label: for classes that exclude each other, --task classification")
    if task.kind == "tagging":
        notes += _look_at_tags(labels)
    if task.kind not in ("classification", "multi_label"):
        return notes
    for group in look_alikes(labels):
        each = ", ".join(f"{name!r} {counts[name]}" for name in group)
        notes.append(f"warning: labels that differ in case or blanks alone are classes of their own: {each}")
    rare = [name for name in labels if counts[name] == 1]
    if task.kind == "classification" and are_numbers(labels) and len(labels) >= 10 and len(train) < 3 * len(labels):
        notes.append(f"warning: the {len(labels)} classes of {len(train)} training rows are numbers: --task regression?")
    elif rare:
        more = "class has" if len(rare) == 1 else "classes have"
        notes.append(f"warning: {len(rare)} {more} one training row: {_few(rare)}")
    return notes


def _look_at_tags(labels: tuple[str, ...]) -> list[str]:
    """What tags are taken for, where they are not B- and I- of entities."""
    if tags.entity_tags(labels) is None:
        more = ". They are numbers: entities are found if the tags are given by name" if are_numbers(labels) else ""
        return [f"tags are classes of words, without entities (no B-, I- or O): scored by accuracy{more}"]
    if tags.are_types(labels):
        return ["tags are types of entities, some without B- or I-: adjacent words of one type are one entity"]
    return []
