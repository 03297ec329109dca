"""Training rows that are held out where there is no dev file, and rows that stand on both sides of a split.

    hold_out(kind, records, 0.1)                     (training, dev, note)
    leaks(kind, train, {"dev": dev, "test": test})   ["warning: 3 of 120 dev rows are also in the training rows", ...]

Everything is a function of the records alone: the same file is split the same way, whatever the seed of the run.
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
    """Splits a training file; returns training and dev records in the file's order, and a line about it.

    Records of one group (without groups, of one `Parsing.content`) stay together. Groups are numbered by their first record and
    tried in the order of `numpy.random.default_rng(0).permutation`: each goes to dev if it fits in what is left of `dev_size`
    (a share of the rows, or their number). With classes it must fit in what is left of the class's own share, and a class keeps
    at least one of its groups in training. Where no group can be held out, as all records have one content, rows are drawn.

    Raises:
      InputError: nothing would be left to train or to evaluate on, or all records have the same group.
    """
    total = len(records)
    count = int(dev_size) if dev_size >= 1 else round(dev_size * total)
    if not 0 < count < total:
        raise InputError(f"--dev-size {dev_size:g} of {total} training rows leaves nothing to train or to evaluate on")
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
    note = f"dev: {held.sum()} of {total} training rows are held out (--dev-size {dev_size:g}), drawn by seed 0{how}"
    train, dev = (take(records, np.flatnonzero(held == side)) for side in (False, True))
    return train, dev, note


def _chosen(group_of: np.ndarray, classes: Sequence[str], count: int) -> np.ndarray:
    """Returns bool [N], about `count` of them true: whole groups, of the class of their first row; all false where none may go.

    `group_of` int [N] numbers the groups in the order of their first rows.
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
    if not held.any():  # all groups are larger than `count`: the smallest goes
        held[min((group for group in tried if left[own[group]] > 1), key=lambda group: int(sizes[group]), default=[])] = True
    return held[group_of]


def _shares(counts: Mapping[str, int], number: int) -> dict[str, int]:
    """Returns `number` in the proportions of `counts`, in whole numbers: largest remainders are rounded up (Hamilton's method).

    >>> _shares({"a": 70, "b": 25, "c": 5}, 10)
    {'a': 7, 'b': 3, 'c': 0}
    """
    total = sum(counts.values())
    whole, rest = ({name: part(number * n, total) for name, n in counts.items()} for part in (int.__floordiv__, int.__mod__))
    missing = number - sum(whole.values())
    up = sorted(counts, key=lambda name: (-rest[name], -counts[name]))[:missing]
    return {name: share + (name in up) for name, share in whole.items()}


def leaks(kind: Parsing, train: Sequence[Record], others: Mapping[str, Sequence[Record]]) -> list[str]:
    """Returns a line for each way in which a split repeats the training rows, or a test set a dev set."""
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
            notes.append(f"warning: {count} of {len(records)} {split} rows are of a group that is also in the training rows")
        shared = _among(_parts(kind, records), parts).any(axis=1) & ~_among(own, sides["training"])
        if shared.any():
            notes.append(f"{split}: {shared.sum()} of {len(records)} rows share one of their texts with the training rows")
        if split.startswith("dev"):
            sides[split] = np.unique(own)
    return notes


def _contents(kind: Parsing, records: Sequence[Record]) -> np.ndarray:
    """Returns a hash of each record's content: sets of texts would take several times the memory of a file."""
    return hashes(map(kind.content, texts_of(records)), len(records))


def _parts(kind: Parsing, records: Sequence[Record]) -> np.ndarray:
    """Returns hashes [N, k] of the k texts that a record may share with another without asking the same."""
    first = next(texts_of(records), ())
    count = len(kind.parts(first)) if first else 0
    each = (text for texts in texts_of(records) for text in kind.parts(texts)) if count else ()
    return hashes(each, count * len(records)).reshape(len(records), count)


def _among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns which of the keys are among `known`, which is sorted."""
    if not len(known):
        return np.zeros(keys.shape, bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def only_label(kind: Parsing, records: Sequence[Record]) -> str | None:
    """Returns the label that all records have, as it is shown; None where there are several, or none.

    On such a split, scores do not tell a model that has learnt from one that has not.
    """
    values = {value for label in labels_of(records) for value in kind.values(label)}
    (value,) = values if len(values) == 1 else (None,)
    return None if value is None else repr(value)


def digest(train: Sequence[Record], dev: Mapping[str, Sequence[Record]]) -> str:
    """Returns the hex SHA-256 of what is trained and evaluated on: texts and labels, in order."""
    hasher = hashlib.sha256()
    for split, records in {"train": train, **dev}.items():
        hasher.update(f"{split} {len(records)}\n".encode())
        for texts, label in zip(texts_of(records), labels_of(records), strict=True):
            hasher.update(f"{texts!r} {label!r}\n".encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()
