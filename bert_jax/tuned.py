"""What fine-tuning leaves beside weights: how long texts were, and the thresholds that labels are given by. No jax in here.

`max_length` is `model_max_length` of tokenizer_config.json, by which transformers and sentence-transformers' CrossEncoder cut
texts too. The rest is the object "bert_jax" of config.json, which they keep and do not use:

    "bert_jax": {"task": "squad2", "null_threshold": -1.25}
    "bert_jax": {"task": "multi_label", "label_thresholds": [0.5, 0.31, 0.72]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_jax.config import InputError
from bert_jax.disk import read_json


@dataclass(frozen=True)
class Tuned:
    """How a model was fine-tuned and scored, so that it predicts likewise.

    Attributes:
      task: its name in the table of tasks.
      max_length: tokens of a sequence, special ones included, that count; None: as many as the model takes.
      null_threshold: question_answering: no answer is given where its logit is above the best answer's by more than this;
        None: an answer is always given.
      label_thresholds: multi_label: for each class the probability from which on a text has it; empty: 0.5 for all.
    """

    task: str | None = None
    max_length: int | None = None
    null_threshold: float | None = None
    label_thresholds: tuple[float, ...] = ()

    def in_config(self) -> dict[str, Any]:
        """The object "bert_jax" of config.json; empty where there is nothing to say."""
        said = {"task": self.task, "null_threshold": self.null_threshold, "label_thresholds": list(self.label_thresholds)}
        return {name: value for name, value in said.items() if value not in (None, [])}


def read_tuned(directory: Path, config: Mapping[str, Any], num_labels: int | None) -> Tuned:
    """What the files of a directory say.

    Args:
      directory: of tokenizer_config.json.
      config: the content of config.json.
      num_labels: classes that config.json names; None: the head has others, which the thresholds are not of.

    Raises InputError for a value of no use.
    """
    said = config.get("bert_jax") or {}
    where = f"{directory}/config.json: bert_jax"
    if not isinstance(said, dict):
        raise InputError(f"{where} is a {type(said).__name__}, not an object")
    task, null, labels = (said.get(name) for name in ("task", "null_threshold", "label_thresholds"))
    if not isinstance(task, str | None):
        raise InputError(f"{where}: task is {task!r}, not a name")
    if null is not None and not _is_number(null):
        raise InputError(f"{where}: null_threshold is {null!r}, not a number")
    labels = [] if labels is None else labels
    if not isinstance(labels, list) or not all(_is_number(x) and 0 <= x <= 1 for x in labels):
        raise InputError(f"{where}: label_thresholds is {labels!r}, not a list of probabilities")
    if num_labels is None:
        labels = []
    if labels and len(labels) != num_labels:
        raise InputError(f"{where}: {len(labels)} label_thresholds for {num_labels} classes; give one for each")
    return Tuned(task, _model_max_length(directory), None if null is None else float(null), tuple(map(float, labels)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _model_max_length(directory: Path) -> int | None:
    """That of tokenizer_config.json; None where it says none, or a number that is none, as transformers' 1e30 is."""
    try:
        length = (read_json(directory / "tokenizer_config.json", dict) or {}).get("model_max_length")
    except InputError:  # the tokenizer's reader says what is wrong with it
        return None
    return length if isinstance(length, int) and not isinstance(length, bool) and 3 <= length < 10**6 else None
