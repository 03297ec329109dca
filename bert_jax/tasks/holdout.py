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
from bert_jax.data.records import Record, groups_of, hashes, labels_of, numbered, take, texts_of
from bert_jax.tasks.task import Kind

_PAIRS = ("classification", "multi_label", "regression", "similarity")  # kinds whose two texts may change places


def content(kind: Kind, texts: tuple[str, ...]) -> Hashable:
    """What two records that ask the same have in common, by their texts: those of a pair in either order, of a question the
    context.

    A triplet's negative does not count: the same pair with another negative is the same pair.
    """
    if kind == "question_answering":
        return texts[1]
    return tuple(sorted(texts[:2])) if kind in _PAIRS else texts


def draw(records: Sequence[Record], count: int) -> Sequence[Record]:
    """The records at `numpy.random.default_rng(0).permutation(n)[:count]`, in the order they are in."""
    return take(records, np.sort(np.random.default_rng(0).permutation(len(records))[:count]))


def hold_out(kind: Kind, records: Sequence[Record], dev_size: float) -> tuple[Sequence[Record], Sequence[Record], str]:
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
    given = any(group is not None for group in groups_of(records))
    both = zip(groups_of(records), texts_of(records), strict=True)
    keys = (content(kind, texts) if group is None else ("", group) for group, texts in both)
    group_of = numbered(keys, total)
    classes = labels_of(records) if kind == "classification" else [""] * total
    held = _chosen(group_of, classes, count)
    if not held.any() and given:
        raise InputError(f"no group of the {total} training rows can be held out (--group-column): give --dev FILE")
    held = held if held.any() else _chosen(np.arange(total), classes, count)
    unit = "groups" if given else "contexts" if kind == "question_answering" and group_of.max() > 0 else ""
    how = f", whole {unit}" * bool(unit) + ", each class by its share" * (kind == "classification")
    note = f"dev: {held.sum()} of {total} training rows are held out (--dev-size {dev_size:g}), drawn by seed 0{how}"
    train, dev = (take(records, np.flatnonzero(held == side)) for side in (False, True))
    return train, dev, note


def _chosen(group_of: np.ndarray, classes: Sequence[str], count: int) -> np.ndarray:
    """Whether each row is held out, about `count`: whole groups, whose class is that of their first row; none where none may go.

    `group_of` numbers them by their first rows.
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
    if not held.any():  # the smallest is taken where all are larger than what was asked for
        held[min((group for group in tried if left[own[group]] > 1), key=lambda group: int(sizes[group]), default=[])] = True
    return held[group_of]


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
    groups = set(groups_of(train)) - {None}
    texts = np.unique(_side_texts(kind, train))
    sides = {"training": np.unique(_contents(kind, train))}
    what = "questions have a context that is" if kind == "question_answering" else "rows are"
    for split, records in others.items():
        own = _contents(kind, records)
        for side, known in sides.items():
            if (side == "training" or split.startswith("test")) and (count := _among(own, known).sum()):
                notes.append(f"warning: {count} of {len(records)} {split} {what} also in the {side} rows")
        if groups and (count := sum(group in groups for group in groups_of(records))):
            notes.append(f"warning: {count} of {len(records)} {split} rows are of a group that is also in the training rows")
        shared = _among(_side_texts(kind, records), texts).any(axis=1) & ~_among(own, sides["training"])
        if shared.any():
            notes.append(f"{split}: {shared.sum()} of {len(records)} rows share one of their texts with the training rows")
        if split.startswith("dev"):
            sides[split] = np.unique(own)
    return notes


def _contents(kind: Kind, records: Sequence[Record]) -> np.ndarray:
    """A hash of each record's content: sets of texts would take several times the memory of a file."""
    return hashes((content(kind, texts) for texts in texts_of(records)), len(records))


def _among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of the keys are among `known`, which is sorted."""
    if not len(known):
        return np.zeros(keys.shape, bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def _side_texts(kind: Kind, records: Sequence[Record]) -> np.ndarray:
    """[N, k]: hashes of the texts that a record may share with another without being the same: of a pair either, of choices the
    context."""
    count = 2 if kind in _PAIRS and any(len(texts) > 1 for texts in texts_of(take(records, [0][: len(records)]))) else 0
    count = 1 if kind == "multiple_choice" else count
    each = (text for texts in texts_of(records) for text in texts[:count]) if count else ()
    return hashes(each, count * len(records)).reshape(len(records), count)


def only_label(kind: Kind, records: Sequence[Record]) -> str | None:
    """The label that all records have, as it is shown; None where there are several, or none.

    Scores on such a split do not tell what has learnt from what has not.
    """
    if kind in ("question_answering", "multiple_choice"):
        return None
    labels = {tag for label in labels_of(records) for tag in label or ()} if kind == "tagging" else set(labels_of(records))
    (label,) = labels if len(labels) == 1 else (None,)
    return None if label is None else repr(label)


def digest(train: Sequence[Record], dev: Mapping[str, Sequence[Record]]) -> str:
    """Hex SHA-256 of what is trained and evaluated on: texts and labels, in order."""
    hasher = hashlib.sha256()
    for split, records in {"train": train, **dev}.items():
        hasher.update(f"{split} {len(records)}\n".encode())
        for texts, label in zip(texts_of(records), labels_of(records), strict=True):
            hasher.update(f"{texts!r} {label!r}\n".encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()
