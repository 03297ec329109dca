"""Predictions and scores of the splits of a task, for any parameters of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.data.finetuning import Encoded
from bert_jax.errors import InputError
from bert_jax.pretrained import Model
from bert_jax.tasks.split import P, Predicted, Predictions, Split
from bert_jax.tasks.task import Task
from bert_jax.tuned import Tuned


class Evaluator:
    """Predicts splits of one task, and scores the predictions.

    Attributes:
      task: the task.
      kind: its kind, which predicts and scores.
      labels: the names of the classes.
      tuned: what predictors have to know of the model, with the thresholds that are given.
    """

    def __init__(
        self, task: Task, model: Model, limit: int, null_threshold: float | None = None, label_threshold: float | None = None
    ) -> None:
        """Makes the predictor of the task.

        Args:
          task: the task.
          model: with a tokenizer and the task's head; its parameters are not used.
          limit: tokens of a sequence.
          null_threshold: see FinetuneConfig.
          label_threshold: see FinetuneConfig.
        """
        limit = min(limit, model.config.max_length)
        given = () if label_threshold is None else (label_threshold,) * len(model.labels)
        self.task, self.kind, self.labels = task, task.kind, model.labels
        self.tuned = Tuned(task.name, limit, null_threshold, given)
        self._predict = self.kind.predictor(dataclasses.replace(model, params={}, tuned=self.tuned), limit)

    def predict(self, split: Split, params: PyTree) -> Predictions[P]:
        """Returns a prediction for each record, in order. `params` are NumPy's or on one device, where predictions run."""
        here = jax.local_devices()[0]  # named, so that parameters of training and those of a file run the same programs
        return self._predict(split, jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x, here), params))

    def of(self, split: Split, values: Sequence[P], tuned: Tuned | None = None) -> Predicted[P]:
        """Returns a split with its predictions."""
        if len(values) != len(split.records):
            raise AssertionError(f"{len(values)} predictions of {len(split.records)} examples")
        return Predicted(split, values, self.labels, tuned or self.tuned)

    def tune(self, splits: Sequence[Split], predicted: Mapping[str, Sequence[P]]) -> Tuned:
        """Returns `tuned` with the thresholds that are best on `splits`, the dev sets, together, where none are given."""
        each = [self.of(split, predicted[split.name]).labelled() for split in splits if split.labelled]
        if len(each) == 1:
            return self.kind.tune(each[0])
        records, values = [record for x in each for record in x.records], [value for x in each for value in x.values]
        return self.kind.tune(self.of(Split("dev", records, Encoded(())), values))

    def scores(self, split: Split, predicted: Sequence[P], tuned: Tuned | None = None) -> dict[str, float]:
        """Returns the task's metrics and other scores, with `loss` where the kind has one, of the records that have a label.

        Args:
          split: the records.
          predicted: a prediction for each.
          tuned: has the thresholds; default: those that are best on this split, as it should be for dev sets alone.

        Raises InputError where no record has a label, unless the kind scores such splits.
        """
        if not split.labelled and not self.kind.scores_unlabelled:
            raise InputError(f"{split.records[0].place} has no label, as all rows: {split.name} cannot be scored")
        loss = predicted.loss if isinstance(predicted, Predictions) else None
        tuned = tuned or self.tune([split], {split.name: predicted})
        scores = self.kind.scores(self.of(split, predicted, tuned).labelled(), self.task.metrics)
        return scores | ({} if loss is None else {"loss": loss})

    def main_score(self, scores: Mapping[str, float], metric: str | None) -> float:
        """Returns the score that checkpoints are compared by: `metric` (a loss: negated), else the mean of the task's metrics."""
        if metric is None:
            names = [name for name in self.task.metrics if name in scores] or list(scores)[:1]
            return float(np.mean([scores[name] for name in names]))
        if metric not in scores:
            raise InputError(f"--metric {metric} is not among this task's: {', '.join(scores)}")
        return -scores[metric] if metric == "loss" else scores[metric]
