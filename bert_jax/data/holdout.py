"""Which training rows are held out where there is no dev file, and which rows stand on both sides of a split.

    hold_out("classification", records, 0.1)   (training, dev, note)
    leaks("classification", train, {"dev": dev, "test": test})
                                               ["warning: 3 of 120 dev rows are also in the training rows", ...]

All is a function of the records alone: the same file is split the same way, whatever the seed of the run.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from bert_jax.config import InputError
from bert_jax.data.tasks import Kind, Record

_PAIRS = ("classification", "multi_label", "regression", "similarity")  # kinds whose two texts may change places


def content(kind: Kind, record: Record) -> Hashable:
    """What two records that ask the same have in common: the texts of a pair in either order, of a question its context.

    A triplet's negative does not count: the same pair with another negative is the same pair.
    """
    if kind == "question_answering":
        return record.texts[1]
    return tuple(sorted(record.texts[:2])) if kind in _PAIRS else record.texts


def draw(records: Sequence[Record], count: int) -> list[Record]:
    """The records at `numpy.random.default_rng(0).permutation(n)[:count]`, in the order they are in."""
    return [records[i] for i in sorted(np.random.default_rng(0).permutation(len(records))[:count].tolist())]


def hold_out(kind: Kind, records: Sequence[Record], dev_size: float) -> tuple[list[Record], list[Record], str]:
    """(training, dev, what was done) of a training file; both in the file's order.

    Records with one group (else with one content, see `content`) stay together: they are numbered by their first record, and
    `numpy.random.default_rng(0).permutation` says in which order they are tried. Each goes to dev if it fits in what is
    left of the `dev_size` (a share of the rows, or their number); of classes, in what is left of the class's own share, and a
    class keeps at least one of its groups in training. Without groups and classes that is the first `dev_size` of a permutation.
    Where no group may be held out, as all records have one content, it is rows that are drawn.

    Raises InputError where nothing would be left to train or to evaluate on, or all records have the same group.
    """
    total = len(records)
    count = int(dev_size) if dev_size >= 1 else round(dev_size * total)
    if not 0 < count < total:
        raise InputError(f"--dev-size {dev_size:g} of {total} training rows leaves nothing to train or to evaluate on")
    given = any(record.group is not None for record in records)
    by_group: dict[Hashable, list[int]] = {}
    for number, record in enumerate(records):
        key = ("", record.group) if record.group is not None else content(kind, record)
        by_group.setdefault(key, []).append(number)
    classes = [record.label if kind == "classification" else "" for record in records]
    held = _chosen(list(by_group.values()), classes, count)
    if not held and given:
        raise InputError(f"no group of the {total} training rows can be held out (--group-column): give --dev FILE")
    held = held or _chosen([[number] for number in range(total)], classes, count)
    unit = "groups" if given else "contexts" if kind == "question_answering" and len(by_group) > 1 else ""
    how = f", whole {unit}" * bool(unit) + ", each class by its share" * (kind == "classification")
    note = f"dev: {len(held)} of {total} training rows are held out (--dev-size {dev_size:g}), drawn by seed 0{how}"
    train, dev = ([r for i, r in enumerate(records) if (i in held) == side] for side in (False, True))
    return train, dev, note


def _chosen(groups: list[list[int]], classes: Sequence[str], count: int) -> set[int]:
    """The rows to hold out, about `count`: whole groups, whose class is that of their first row; none where none may go."""
    tried = [groups[i] for i in np.random.default_rng(0).permutation(len(groups)).tolist()]
    room, left = _shares(Counter(classes), count), Counter(classes[group[0]] for group in groups)
    held = set[int]()
    for group in tried:
        name = classes[group[0]]
        if len(group) <= room[name] and left[name] > 1:
            held.update(group)
            room[name] -= len(group)
            left[name] -= 1
    able = [group for group in tried if left[classes[group[0]]] > 1]
    smallest = sorted(able, key=len)[:1]  # taken where all are larger than what was asked for
    return held or {number for group in smallest for number in group}


def _shares(counts: Mapping[str, int], number: int) -> dict[str, int]:
    """`number` in the proportions of `counts`, in whole numbers: the largest remainders are rounded up (Hamilton's method).

    >>> _shares({"a": 70, "b": 25, "c": 5}, 10)
    {'a': 7, 'b': 3, 'c': 0}
    """
    total = sum(counts.values())
    whole, rest = ({name: part(number * n, total) for name, n in counts.items()} for part in (int.__floordiv__, int.__mod__))
    missing = number - sum(whole.values())
    up = sorted(counts, key=lambda name: (-rest[name], -counts[name]))[:missing]
    return {name: share + (name in up) for name, share in whole.items()}


def leaks(kind: Kind, train: Sequence[Record], others: Mapping[str, Sequence[Record]]) -> list[str]:
    """A line for each way in which a split has what is in the training rows, or a test set what is in a dev set."""
    notes: list[str] = []
    groups = {record.group for record in train} - {None}
    texts = {text for record in train for text in _side_texts(kind, record)}
    sides = {"training": {content(kind, record) for record in train}}
    what = "questions have a context that is" if kind == "question_answering" else "rows are"
    for split, records in others.items():
        own = [content(kind, record) for record in records]
        for side, known in sides.items():
            if (side == "training" or split.startswith("test")) and (count := sum(key in known for key in own)):
                notes.append(f"warning: {count} of {len(records)} {split} {what} also in the {side} rows")
        if count := sum(record.group in groups for record in records):
            notes.append(f"warning: {count} of {len(records)} {split} rows are of a group that is also in the training rows")
        shared = sum(
            key not in sides["training"] and not texts.isdisjoint(_side_texts(kind, record))
            for key, record in zip(own, records, strict=True)
        )
        if shared:
            notes.append(f"{split}: {shared} of {len(records)} rows share one of their texts with the training rows")
        if split.startswith("dev"):
            sides[split] = set(own)
    return notes


def _side_texts(kind: Kind, record: Record) -> tuple[str, ...]:
    """The texts that a record may share with another without being the same: of a pair either, of choices the context."""
    if kind in _PAIRS:
        return record.texts[:2] if len(record.texts) > 1 else ()
    return record.texts[:1] if kind == "multiple_choice" else ()


def only_label(kind: Kind, records: Sequence[Record]) -> str | None:
    """The label that all records have, as it is shown; None where there are several, or none.

    Scores on such a split do not tell what has learnt from what has not.
    """
    if kind in ("question_answering", "multiple_choice"):
        return None
    labels = {tag for record in records for tag in record.label or ()} if kind == "tagging" else {r.label for r in records}
    (label,) = labels if len(labels) == 1 else (None,)
    return None if label is None else repr(label)


def digest(train: Sequence[Record], dev: Mapping[str, Sequence[Record]]) -> str:
    """Hex SHA-256 of what is trained and evaluated on: texts and labels, in order."""
    hasher = hashlib.sha256()
    for split, records in {"train": train, **dev}.items():
        hasher.update(f"{split} {len(records)}\n".encode())
        for record in records:
            hasher.update(f"{record.texts!r} {record.label!r}\n".encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()
