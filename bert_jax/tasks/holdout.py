"""Holds out training rows where there is no dev file, and finds rows that are in two splits.

    hold_out(kind, records, 0.1)                     (training, dev, note)
    leaks(kind, train, {"dev": dev, "test": test})   ["warning: 3 of 120 dev rows are also in the training rows", ...]

Both depend on the records alone: a file is split in the same way for all seeds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from bert_jax.data.records import Record, groups_of, hashes, labels_of, numbered, take, texts_of
from bert_jax.errors import InputError
from bert_jax.tasks.parsing import Parsing


def draw(records: Sequence[Record], count: int) -> Sequence[Record]:
    """Returns the records at `numpy.random.default_rng(0).permutation(n)[:count]`, in the order of the file."""
    return take(records, np.sort(np.random.default_rng(0).permutation(len(records))[:count]))


def hold_out(kind: Parsing, records: Sequence[Record], dev_size: float) -> tuple[Sequence[Record], Sequence[Record], str]:
    """Splits a training file; returns training and dev records in the order of the file, and a line to show.

    Records of one group (without groups, of one `Parsing.content`) stay together. Groups are numbered by their first record and
    tried in the order of `numpy.random.default_rng(0).permutation`: each goes to dev if it fits into the rest of `dev_size` (a
    share of the rows, or their number). With classes it must fit into the rest of its class's share, and each class keeps one
    group in training. Where no group can be held out because all records have one content, single rows are drawn.

    Raises:
      InputError: nothing would be left to train or to evaluate on, or all records are in one group.
    """
    total = len(records)
    count = int(dev_size) if dev_size >= 1 else round(dev_size * total)
    if not 0 < count < total:
        raise InputError(f"--dev-size {dev_size:g} of {total} training rows leaves none to train or to evaluate on: change it")
    given = any(group is not None for group in groups_of(records))
    both = zip(groups_of(records), texts_of(records), strict=True)
    keys = (kind.content(texts) if group is None else ("", group) for group, texts in both)
    group_of = numbered(keys, total)
    classes = labels_of(records) if kind.held_out_by_class else [""] * total
    held = _chosen(group_of, classes, count)
    if not held.any() and given:
        raise InputError(f"no group of the {total} training rows can be held out (--group-column): give --dev FILE")
    held = held if held.any() else _chosen(np.arange(total), classes, count)
    unit = "groups" if given else kind.unit if group_of.max() > 0 else ""
    how = f", whole {unit}" * bool(unit) + ", each class by its share" * kind.held_out_by_class
    note = f"dev: {held.sum()} of {total} training rows are held out (--dev-size {dev_size:g}), drawn with seed 0{how}"
    train, dev = (take(records, np.flatnonzero(held == side)) for side in (False, True))
    return train, dev, note


def _chosen(group_of: np.ndarray, classes: Sequence[str], count: int) -> np.ndarray:
    """Returns bool [N] with about `count` true: whole groups, which have the class of their first row; all false if none can go.

    `group_of` [N] numbers the groups in the order of their first rows.
    """
    own = [classes[i] for i in map(int, np.flatnonzero(np.diff(np.maximum.accumulate(group_of), prepend=-1)))]
    sizes, held = np.bincount(group_of), np.zeros(len(own), bool)
    tried = np.random.default_rng(0).permutation(len(own))
    room, left = _shares(Counter(classes), count), Counter(own)
    for group in tried:
        name, size = own[group], int(sizes[group])
        if size <= room[name] and left[name] > 1:
            held[group] = True
            room[name] -= size
            left[name] -= 1
    if not held.any():  # all groups are larger than `count`: hold out the smallest
        held[min((group for group in tried if left[own[group]] > 1), key=lambda group: int(sizes[group]), default=[])] = True
    return held[group_of]


def _shares(counts: Mapping[str, int], number: int) -> dict[str, int]:
    """Divides `number` in the proportions of `counts` into whole numbers by largest remainders (Hamilton's method).

    >>> _shares({"a": 70, "b": 25, "c": 5}, 10)
    {'a': 7, 'b': 3, 'c': 0}
    """
    total = sum(counts.values())
    whole, rest = ({name: part(number * n, total) for name, n in counts.items()} for part in (int.__floordiv__, int.__mod__))
    missing = number - sum(whole.values())
    up = sorted(counts, key=lambda name: (-rest[name], -counts[name]))[:missing]
    return {name: share + (name in up) for name, share in whole.items()}


def leaks(kind: Parsing, train: Sequence[Record], others: Mapping[str, Sequence[Record]]) -> list[str]:
    """Returns a line for each overlap of a split with the training rows, and of a test set with a dev set."""
    notes: list[str] = []
    groups = set(groups_of(train)) - {None}
    parts = np.unique(_parts(kind, train))
    sides = {"training": np.unique(_contents(kind, train))}
    for split, records in others.items():
        own = _contents(kind, records)
        for side, known in sides.items():
            if (side == "training" or split.startswith("test")) and (count := _among(own, known).sum()):
                notes.append(f"warning: {count} of {len(records)} {split} {kind.leaked} also in the {side} rows")
        if groups and (count := sum(group in groups for group in groups_of(records))):
            notes.append(f"warning: {count} of {len(records)} {split} rows belong to a group that is also in the training rows")
        shared = _among(_parts(kind, records), parts).any(axis=1) & ~_among(own, sides["training"])
        if shared.any():
            notes.append(f"{split}: {shared.sum()} of {len(records)} rows share one of their texts with the training rows")
        if split.startswith("dev"):
            sides[split] = np.unique(own)
    return notes


def _contents(kind: Parsing, records: Sequence[Record]) -> np.ndarray:
    """Returns a hash of the content of each record; sets of texts would take several times the memory of a file."""
    return hashes(map(kind.content, texts_of(records)), len(records))


def _parts(kind: Parsing, records: Sequence[Record]) -> np.ndarray:
    """Returns hashes [N, k] of the `Parsing.parts` of each record."""
    first = next(texts_of(records), ())
    count = len(kind.parts(first)) if first else 0
    each = (text for texts in texts_of(records) for text in kind.parts(texts)) if count else ()
    return hashes(each, count * len(records)).reshape(len(records), count)


def _among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns a bool for each key: whether it is in `known`, which is sorted."""
    if not len(known):
        return np.zeros(keys.shape, bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def only_label(kind: Parsing, records: Sequence[Record]) -> str | None:
    """Returns the label that all records have, as it is shown; None where there are several, or none."""
    values = {value for label in labels_of(records) for value in kind.values(label)}
    (value,) = values if len(values) == 1 else (None,)
    return None if value is None else repr(value)


def digest(train: Sequence[Record], dev: Mapping[str, Sequence[Record]]) -> str:
    """Returns the hex SHA-256 of the texts and labels of training and dev, in order."""
    hasher = hashlib.sha256()
    for split, records in {"train": train, **dev}.items():
        hasher.update(f"{split} {len(records)}\n".encode())
        for texts, label in zip(texts_of(records), labels_of(records), strict=True):
            hasher.update(f"{texts!r} {label!r}\n".encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()
