"""Finds the files of the splits in a folder by their names."""

from __future__ import annotations

import glob
import os

from bert_jax.data import files
from bert_jax.errors import InputError, did_you_mean
from bert_jax.tasks.task import Task, TaskData

_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid", "val", "testa"),
    "dev_matched": ("dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test", "testb"),
    "test_matched": ("test_matched",),
    "test_mismatched": ("test_mismatched",),
}
_LATER: dict[str, tuple[str, ...]] = {"test": ("test-labeled", "test-unlabeled")}  # used where there is no test.*


def find_files(task: Task, data: TaskData) -> dict[str, str]:
    """Returns the path of each split in `data.data`, in the order of reading; `data.dev` and `data.test` replace those in it.

        find_files(find_task("mnli"), TaskData(data="glue/MNLI")) -> {"train": "glue/MNLI/train.tsv", "dev_matched": ...}

    Raises:
      InputError: two files could be the same split, or there is no training file (no test file for a task without training).
    """
    if not data.data:
        raise InputError("--data is missing: give a folder with train.*, dev.* and test.*, a file to train on, or tfds:NAME")
    main = "test" if task.test_only else "train"
    named = _candidates(data.data)
    given = {split: path for split, path in (("dev", data.dev), ("test", data.test)) if path}
    searched = [split for split in _NAMES if named and split.split("_")[0] not in given]
    found = {split: path for split in searched if (path := _pick(split, named, task))}
    found |= given if named else {main: data.data, **given}
    if main not in found:
        names = ", ".join(sorted(os.path.basename(path) for _, path in named)[:20])
        raise InputError(f"{data.data}: no {main}.*, only {names}; name the files: --data FILE --dev FILE --test FILE")
    return {split: found[split] for split in _NAMES if split in found and not (task.test_only and not split.startswith("test"))}


def _candidates(data: str) -> list[tuple[str, str]]:
    """Returns (name without suffix, path) of each file of a folder, or split of a TFDS dataset; none for a single file."""
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
        raise InputError(f"{data}: no files in this folder (--data)")
    return [(_stem(path), path) for path in paths]


def _stem(path: str) -> str:
    """Returns "train" for "a/Train.tsv.gz", and "" for a file that is not a table."""
    name, suffix = os.path.splitext(os.path.basename(path.removesuffix(files.codec_of(path))))
    return name.lower() if suffix.lower() in files.TABLE_SUFFIXES else ""


def _pick(split: str, named: list[tuple[str, str]], task: Task) -> str | None:
    """Returns the file of a split by its name, by the task's own names for it, or by the start of its name (train-v1.1)."""
    names, prefixes = _NAMES[split], tuple(name + end for name in _NAMES[split] for end in "-.")
    others = [(name,) for name in (*_LATER.get(split, ()), *task.files.get(split, ()))]
    tries = [[path for stem, path in named if stem in group] for group in (names, *others)]
    for paths in [*tries, [path for stem, path in named if stem.startswith(prefixes)]]:
        if len(paths) > 1:
            option = "data" if split == "train" else split.split("_")[0]
            raise InputError(f"{paths[0]} and {paths[1]} could both be {split}: name one of them with --{option} FILE")
        if paths:
            return paths[0]
    return None
