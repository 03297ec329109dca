"""How much each class counts in the training loss, where classes are not equally frequent. No jax in here."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bert_jax.config import InputError, did_you_mean
from bert_jax.data.records import Record, labels_of
from bert_jax.tasks.labels import classes_of
from bert_jax.tasks.task import Kind


def class_weights(given: str, kind: Kind, labels: Sequence[str], train: Sequence[Record]) -> dict[str, float]:
    """The weight of each of `labels`.

    Args:
      given: "balanced", or a JSON file with an object of classes and weights; classes that it does not name weigh 1.
      kind: classification or tagging: weights of examples or words by their class; multi_label: of having the label, where not
        having it weighs 1.
      labels: the classes.
      train: the training rows.

    "balanced" is n / (C * n_c) of scikit-learn's compute_class_weight, with C the classes that occur, and (n - n_c) / n_c for
    multi_label; a class that does not occur weighs 1.

    Raises InputError for a file that cannot be read or holds something else, and a class or a weight of no use in it.
    """
    if given != "balanced":
        return dict.fromkeys(labels, 1.0) | _read(Path(given), labels)
    counts = Counter(name for label in labels_of(train) for name in classes_of(kind, label))
    if kind == "multi_label":
        return {name: (len(train) - counts[name]) / counts[name] if 0 < counts[name] < len(train) else 1.0 for name in labels}
    return {name: counts.total() / (len(counts) * counts[name]) if counts[name] else 1.0 for name in labels}


def _read(path: Path, labels: Sequence[str]) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--class-weights {path}: {error.strerror}; give `balanced`, or a JSON file of weights") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--class-weights {path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f'--class-weights {path}: a {type(found).__name__}, not an object such as {{"{labels[0]}": 2.5}}')
    for name, weight in found.items():
        if name not in labels:
            near = did_you_mean(name, labels)
            raise InputError(f"--class-weights {path}: {name!r} is no class; they are {', '.join(labels)}{near}")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight <= 0:
            raise InputError(f"--class-weights {path}: the weight of {name!r} is {weight!r}, not a number above 0")
    return {name: float(weight) for name, weight in found.items()}
