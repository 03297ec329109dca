"""Reads the weight of each class in the training loss (option class_weights). No jax in here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bert_jax.data.records import Record
from bert_jax.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from bert_jax.tasks.kind import Kind


def class_weights(given: str, kind: Kind, labels: Sequence[str], train: Sequence[Record]) -> dict[str, float]:
    """Returns the weight of each of `labels`: "balanced", by frequency in `train`, or from a JSON file (missing classes: 1).

    Raises InputError if the file is no JSON object of known classes and positive weights.
    """
    if given != "balanced":
        return dict.fromkeys(labels, 1.0) | _read(Path(given), labels)
    return kind.balanced_weights(train, labels)


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
            raise InputError(f"--class-weights {path}: {name!r} is not among the classes {', '.join(labels)}{near}")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight <= 0:
            raise InputError(f"--class-weights {path}: the weight of {name!r} is {weight!r}, not a number above 0")
    return {name: float(weight) for name, weight in found.items()}
