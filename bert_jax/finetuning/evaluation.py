"""Predicts and scores the splits of a task with any parameters of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import PyTree

from bert_jax.data.finetuning import Encoded
from bert_jax.errors import InputError
from bert_jax.inference.predictor import place
from bert_jax.pretrained import Model
from bert_jax.tasks.split import P, Predicted, Predictions, Split
from bert_jax.tasks.task import Task
from bert_jax.tuned import Tuned


class Evaluator:
    """Predicts splits of a task, and scores the predictions; `tuned` has the length and the given thresholds."""

    def __init__(
        self, task: Task, model: Model, limit: int, null_threshold: float | None = None, label_threshold: float | None = None
    ) -> None:
        """Makes the predictor of a task for a model with the head of the task, whose parameters are not used."""
        limit = min(limit, model.config.max_length)
        given = () if label_threshold is None else (label_threshold,) * len(model.labels)
        self.task, self.kind, self.labels = task, task.kind, model.labels
        self.tuned = Tuned(task.name, limit, null_threshold, given)
        self._predict = self.kind.predictor(dataclasses.replace(model, params={}, tuned=self.tuned), limit)

    def predict(self, split: Split, params: PyTree) -> Predictions[P]:
        """Returns a prediction for each record, in order; `params` are NumPy arrays, or JAX's on any devices."""
        return self._predict(split, place(params))

    def of(self, split: Split, values: Sequence[P], tuned: Tuned | None = None) -> Predicted[P]:
        """Returns a split with its predictions."""
        if len(values) != len(split.records):
            raise AssertionError(f"{len(values)} predictions of {len(split.records)} examples")
        return Predicted(split, values, self.labels, tuned or self.tuned)

    def tune(self, splits: Sequence[Split], predicted: Mapping[str, Sequence[P]]) -> Tuned:
        """Returns `tuned` with the best thresholds for all dev `splits` together, where none are given."""
        each = [self.of(split, predicted[split.name]).labelled() for split in splits if split.labelled]
        if len(each) == 1:
            return self.kind.tune(each[0])
        records, values = [record for x in each for record in x.records], [value for x in each for value in x.values]
        return self.kind.tune(self.of(Split("dev", records, Encoded(())), values))

    def scores(self, split: Split, predicted: Sequence[P], tuned: Tuned | None = None) -> dict[str, float]:
        """Returns the metrics and other scores of the labelled records by name, with `loss` where the kind has one.

        The default of `tuned` has the best thresholds for this split, which is right for dev sets alone. Raises InputError where
        no record has a label, unless the kind scores such splits.
        """
        if not split.labelled and not self.kind.scores_unlabelled:
            raise InputError(f"{split.records[0].place} has no label, nor has any other row: {split.name} cannot be scored")
        loss = predicted.loss if isinstance(predicted, Predictions) else None
        tuned = tuned or self.tune([split], {split.name: predicted})
        scores = self.kind.scores(self.of(split, predicted, tuned).labelled(), self.task.metrics)
        return scores | ({} if loss is None else {"loss": loss})

    def main_score(self, scores: Mapping[str, float], metric: str | None) -> float:
        """Returns the score that compares checkpoints: `metric` (negated for loss), or the mean of the metrics of the task."""
        if metric is None:
            names = [name for name in self.task.metrics if name in scores] or list(scores)[:1]
            return float(np.mean([scores[name] for name in names]))
        if metric not in scores:
            raise InputError(f"--metric {metric} is not among the metrics of this task: {', '.join(scores)}")
        return -scores[metric] if metric == "loss" else scores[metric]
