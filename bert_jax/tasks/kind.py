"""The protocol of a kind of task. A new kind is a subclass of `Kind` in one file, and one row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jax import Array

from bert_jax.data.batching import PackedBatch
from bert_jax.data.finetuning import Encoded, Item, per_sequence
from bert_jax.data.layout import Layout
from bert_jax.data.records import Record
from bert_jax.model.families import Head
from bert_jax.pretrained import Model, ProblemType
from bert_jax.tasks.figures import Figure
from bert_jax.tasks.parsing import Parsing
from bert_jax.tasks.split import Predicted, Predictions, Split
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task
from bert_jax.training.losses import Sum
from bert_jax.training.steps import Batch
from bert_jax.tuned import Tuned


class Kind(Parsing, Protocol):
    """Everything that depends on what a task asks for; a default is what most kinds do."""

    name: str
    head: Head = "sequence_classification"
    problem_type: ProblemType | None = None  # in config.json
    options: frozenset[str] = frozenset()  # the fields of Options that the kind reads
    has_classes: bool = False  # the labels of the training rows are the classes of the head
    needs_all_rows: bool = False  # the loss compares sequences that may stand in rows of different devices
    reads_every_token: bool = False  # the loss reads the last layer at every token, not only where the head runs
    reads_windows: bool = False  # a long text is read in windows, not cut
    scores_unlabelled: bool = False  # a split without labels is scored as well

    # ---- training: records -> batches -> loss

    def settle(self, options: Options, train: Sequence[Record]) -> tuple[Options, Sequence[Record], list[str]]:
        """Returns options and training rows as they are used, and lines to show. Raises InputError where they do not fit."""
        return options, train, []

    def encode(
        self, records: Sequence[Record], labels: Sequence[str], layout: Layout, limit: int, read: Callable[[str], str] = str
    ) -> Encoded:
        """Tokenizes `read(text)` of each text, at most `limit` tokens a sequence."""

    def targets(self, items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
        """Returns the targets of a batch of these items; `count`: items of a full batch."""
        return per_sequence(items, packed, count)

    def balanced_weights(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, float]:
        """Returns the weight of each class that its frequency asks for (option class_weights)."""
        return {}

    def loss(self, outputs: dict[str, Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        """Returns sums of a batch by name; those whose name ends in `_loss` are added up to the training loss."""

    # ---- evaluation: model -> predictions -> scores

    def adapt(self, model: Model, limit: int, task: Task, splits: Splits, options: Options) -> tuple[Model, list[str]]:
        """Returns the model as it is trained on `limit` tokens and exported, and lines to show."""
        return model, []

    def predictor(self, model: Model, limit: int) -> Callable[[Split, Any], Predictions]:
        """Returns the function (split, parameters) -> one prediction for each record."""

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions:
        """Returns predictions without meaning, whose scores have the names of those to come."""

    def tune(self, dev: Predicted) -> Tuned:
        """Returns `dev.tuned` with the thresholds that are best for dev, where none are given."""
        return dev.tuned

    def scores(self, predicted: Predicted, metrics: Sequence[str]) -> dict[str, float]:
        """Returns the metrics and other scores of a split, by name."""

    def baseline(self, splits: Splits, metrics: Sequence[str]) -> float | None:
        """Returns the score on dev of a model that learnt nothing; None where it is not known."""
        return 0.0

    # ---- report: predictions -> files, results.json, report.html

    def write(self, folder: Path, predicted: Predicted) -> Path:
        """Writes the predictions of a split into `folder`; returns the path of the main file."""
        return folder

    def details(self, predicted: Predicted) -> dict[str, Any]:
        """Returns scores of each class and the calibration, for results.json; empty where there is nothing to say."""
        return {}

    def mistakes(self, predicted: Predicted, details: Mapping[str, Any]) -> list[Figure]:
        """Returns tables and charts, for report.html, of what the model gets wrong; `details` has what `details` returned."""
        return []
