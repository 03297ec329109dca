"""Length and thresholds that fine-tuning leaves beside the weights, so that predictors predict likewise. No jax in here.

`max_length` is `model_max_length` of tokenizer_config.json, which transformers and sentence-transformers' CrossEncoder follow
too. The rest is the object "bert_jax" of config.json, which they keep and do not use:

    "bert_jax": {"task": "squad2", "null_threshold": -1.25}
    "bert_jax": {"task": "multi_label", "label_thresholds": [0.5, 0.31, 0.72]}
    "bert_jax": {"task": "retrieval", "temperature": 0.031}
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
    """The setting in which a model was fine-tuned and scored.

    Attributes:
      task: its name in the table of tasks.
      max_length: tokens of a sequence, special tokens included; None: as many as the model takes.
      null_threshold: question_answering: no answer is predicted where its logit exceeds the best answer's by more than this;
        None: an answer is always predicted.
      label_thresholds: multi_label: for each class, the minimum probability to give it to a text; empty: 0.5 for all.
      temperature: the learnt divisor of scores in the loss, which no predictor uses; None: it was not learnt.
    """

    task: str | None = None
    max_length: int | None = None
    null_threshold: float | None = None
    label_thresholds: tuple[float, ...] = ()
    temperature: float | None = None

    def in_config(self) -> dict[str, object]:
        """Returns the object "bert_jax" of config.json; empty where all is unset."""
        said = {
            "task": self.task,
            "null_threshold": self.null_threshold,
            "label_thresholds": list(self.label_thresholds),
            "temperature": self.temperature,
        }
        return {name: value for name, value in said.items() if value not in (None, [])}


def read_tuned(directory: Path, config: Mapping[str, Any], num_labels: int | None) -> Tuned:
    """Reads what a directory says.

    Args:
      directory: of tokenizer_config.json.
      config: the content of config.json.
      num_labels: classes that config.json names; None: the head has other classes, and the thresholds are dropped.

    Raises InputError for a value that cannot be used.
    """
    said = config.get("bert_jax") or {}
    where = f"{directory}/config.json: bert_jax"
    if not isinstance(said, dict):
        raise InputError(f"{where} is a {type(said).__name__}, not an object")
    task, null, labels, temperature = (said.get(name) for name in ("task", "null_threshold", "label_thresholds", "temperature"))
    if not isinstance(task, str | None):
        raise InputError(f"{where}: task is {task!r}, not a name")
    if null is not None and not _is_number(null):
        raise InputError(f"{where}: null_threshold is {null!r}, not a number")
    if temperature is not None and not (_is_number(temperature) and temperature > 0):
        raise InputError(f"{where}: temperature is {temperature!r}, not a positive number")
    labels = [] if labels is None else labels
    if not isinstance(labels, list) or not all(_is_number(x) and 0 <= x <= 1 for x in labels):
        raise InputError(f"{where}: label_thresholds is {labels!r}, not a list of probabilities")
    if num_labels is None:
        labels = []
    if labels and len(labels) != num_labels:
        raise InputError(f"{where}: {len(labels)} label_thresholds for {num_labels} classes; give one for each")
    null, temperature = (None if value is None else float(value) for value in (null, temperature))
    return Tuned(task, _model_max_length(directory), null, tuple(map(float, labels)), temperature)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _model_max_length(directory: Path) -> int | None:
    """Returns that of tokenizer_config.json; None where it has none, or no length, as transformers' 1e30."""
    try:
        length = (read_json(directory / "tokenizer_config.json", dict) or {}).get("model_max_length")
    except InputError:  # Tokenizer.load says what is wrong with it
        return None
    return length if isinstance(length, int) and not isinstance(length, bool) and 3 <= length < 10**6 else None
