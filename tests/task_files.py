"""Files of tasks, and their splits as plain values."""

import json
import re

import pytest

from bert_jax.config import InputError
from bert_jax.tasks.splits import load_splits
from bert_jax.tasks.table import find_task
from bert_jax.tasks.task import TaskData


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def tsv(*rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(task, data, **options):
    return load_splits(find_task(task), TaskData(data=str(data), **options))


def fails(message, task, data, **options):
    with pytest.raises(InputError, match=re.escape(message)):
        load(task, data, **options)


def plain(records):
    """[(texts, label, id)]"""
    return [(record.texts, record.label, record.id) for record in records]


def folder(tmp_path, **files):
    """A folder of files; train_tsv is train.tsv."""
    for name, data in files.items():
        write(tmp_path / "task" / ".".join(name.rsplit("_", 1)), data)
    return tmp_path / "task"


def only(tmp_path, task, name, data, **options):
    """The training and the dev rows of a file that is both."""
    path = write(tmp_path / name, data)
    splits = load(task, path, dev=path, **options)
    assert plain(splits.train) == plain(splits.dev["dev"])
    return splits


TEXT_LABEL = ("text", "label")
