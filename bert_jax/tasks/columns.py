"""Finds the columns of texts, labels, ids and groups in a file."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bert_jax.data import files
from bert_jax.errors import InputError, did_you_mean
from bert_jax.tasks.parsing import Columns
from bert_jax.tasks.task import Task, TaskData


def find_columns(split: str, path: str, columns: Sequence[str], task: Task, data: TaskData) -> Columns:
    """Returns the columns that the user names, else those of the task's files, else the usual ones that the file has.

    Raises InputError for a column that is missing, and where several columns could be meant.
    """
    kind = task.kind
    texts = tuple(_existing(path, columns, name, "--text-column") for name in data.text_column)
    texts = texts or _usual_texts(path, columns, task)
    least, most = kind.num_texts
    if not least <= len(texts) <= most:
        number = f"{least}" if least == most else f"{least} or more" if most == math.inf else f"{least} or {most}"
        raise InputError(f"--text-column {' '.join(texts)} names {len(texts)} columns, but {kind.name} takes {number}")
    if task.stem:
        _existing(path, columns, task.stem, "--text-column")
    labels = _label_columns(split, path, columns, task, data)
    if why := kind.unlabelled_texts.get(len(texts)):
        if data.label_column:
            raise InputError(f"--label-column {' '.join(data.label_column)}: {why}")
        labels = ()
    id = next((name for name in kind.usual_ids(task, columns) if name in columns), None)
    id = _existing(path, columns, data.id_column, "--id-column") if data.id_column else id
    group = data.group_column
    if group is not None and (split == "train" or group in columns):
        group = _existing(path, columns, group, "--group-column")
    return Columns(texts, labels, id, group, None if data.text_column else task.stem)


def _label_columns(split: str, path: str, columns: Sequence[str], task: Task, data: TaskData) -> tuple[str, ...]:
    """Returns the columns of the label: none where labels may be missing, several of 0 and 1 where the kind takes them."""
    kind, is_test = task.kind, split.startswith("test")
    if named := data.label_column:
        if len(named) == 1 and kind.several_label_columns and named[0] not in columns:
            named = tuple(part for name in named[0].split(",") if (part := name.strip()))
        if len(named) > 1 and not kind.several_label_columns:
            given = " ".join(named)
            raise InputError(f"--label-column {given}: {kind.name} takes one column; for columns of 0 and 1, --task multi_label")
        needless = is_test or (split != "train" and kind.labels_train_alone)
        absent = needless and not any(name in columns for name in named)
        return () if absent else tuple(_existing(path, columns, name, "--label-column") for name in named)
    known = {name.lower(): name for name in columns}
    usual = [known[name.lower()] for name in (task.label, "label", *kind.usual_labels) if name.lower() in known]
    if usual or is_test or kind.labels_are_optional:
        return tuple(usual[:1])
    near = did_you_mean(task.label, columns)
    raise InputError(f"{path}: which column is the label? It has {', '.join(columns)}: give --label-column NAME{near}")


def _existing(path: str, columns: Sequence[str], name: str, option: str) -> str:
    """Returns the column of that name, without regard to blanks at its ends."""
    name = name if name in columns else name.strip()
    if name in columns:
        return name
    separator = next((mark for mark in ";|\t," if len(columns) == 1 and mark in columns[0]), None)
    if separator is not None:
        raise InputError(
            f"{path}: no column {name!r}; the first line seems to separate columns by {separator!r}, but .csv takes commas and "
            ".tsv takes tabs: save the file in that form"
        )
    first = "" if path.startswith("tfds:") else " in its first line" * (files.suffix_of(path) in files.DELIMITED_SUFFIXES)
    near = did_you_mean(name, columns)
    raise InputError(f"{path}: no column {name!r}{first}, it has {', '.join(columns)}{near} ({option})")


def _usual_texts(path: str, columns: Sequence[str], task: Task) -> tuple[str, ...]:
    known = {name.lower(): name for name in columns}
    every = (task.texts, *task.kind.usual_columns(list(known)))
    usual = [names for names in every if names and {n.lower() for n in names} <= set(known)]
    usual = usual[:1] if task.kind.first_usual else usual
    if not usual or (usual[0] != task.texts and not all(set(names) <= set(usual[0]) for names in usual)):
        expected, near = f" (task {task.name}: {', '.join(task.texts)})" if task.texts else "", did_you_mean("text", columns)
        raise InputError(
            f"{path}: which column is the text? It has {', '.join(columns)}{expected}: give --text-column NAME{near}"
        )
    return tuple(known[name.lower()] for name in usual[0])
