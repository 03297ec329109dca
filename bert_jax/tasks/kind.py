"""The protocol of a kind of task. A new kind is a subclass of `Kind` in one file, and one row of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jax import Array
from jaxtyping import PyTree

from bert_jax.data.batching import PackedBatch
from bert_jax.data.files import Hasher
from bert_jax.data.finetuning import Encoded, Item, as_one, encode_texts, per_sequence
from bert_jax.data.layout import Layout, Text
from bert_jax.data.records import Record
from bert_jax.model.families import Head
from bert_jax.pooling import Embedding
from bert_jax.pretrained import Model, ProblemType
from bert_jax.tasks.figures import Figure
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.parsing import L, Parsing
from bert_jax.tasks.split import P, Predicted, Predictions, Split
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task, TaskData
from bert_jax.training.losses import Sum
from bert_jax.training.steps import Batch
from bert_jax.tuned import Tuned

Predict = Callable[[Split, PyTree], Predictions[P]]  # (split, parameters) -> a prediction for each record


class Kind(Parsing[L], Protocol[L, P]):
    """A kind of task with labels L and predictions P; methods for training come first, then for scores, then for the report."""

    name: str
    head: Head = "sequence_classification"
    problem_type: ProblemType | None = None  # in config.json
    embedding: Embedding | None = None  # settings of the embeddings that are trained, where the model's files have none
    options: frozenset[str] = frozenset()  # the fields of Options that the kind reads
    has_classes: bool = False  # the labels of the training rows are the classes of the head
    needs_all_rows: bool = False  # the loss compares sequences that may be in rows of different devices
    reads_every_token: bool = False  # the loss reads the last layer at every token, not only where the head runs
    reads_progress: bool = False  # the loss reads `progress` of the batch, the share of the steps that are done
    reads_windows: bool = False  # long texts are read in windows, not cut
    scores_unlabelled: bool = False  # splits without labels are scored too

    def load(self, task: Task, data: TaskData) -> Splits | None:
        """Returns the splits of data in a layout of the kind's own; None for the tables that every kind reads."""
        return None

    def load_split(self, split: str, path: str, data: TaskData, hasher: Hasher) -> tuple[Sequence[Record], list[str]] | None:
        """Returns the dev or test records of a path in a layout of the kind's own, and lines to show; None for a table."""
        return None

    def settle(self, options: Options, train: Sequence[Record]) -> tuple[Options, Sequence[Record], list[str]]:
        """Returns the options and training rows to use, and lines to show. Raises InputError if they do not fit."""
        return options, train, []

    def least_batch(self, options: Options, train: Sequence[Record]) -> int:
        """Returns the rows that a batch needs for the loss to teach anything."""
        return 1

    def encode(self, records: Sequence[Record], labels: Sequence[str], layout: Layout) -> Encoded:
        """Tokenizes records."""
        return encode_texts(records, layout, lambda label: self.target(label, labels), self.sequences)

    def target(self, label: L | None, labels: Sequence[str]) -> np.ndarray:
        """Returns the target of a label in training, and any target of its shape for None; kinds with windows have none."""
        return np.zeros(())

    def sequences(self, texts: tuple[str, ...]) -> list[Text]:
        """Returns the texts, or pairs of texts, that are the sequences of an item."""
        return as_one(texts)

    def targets(self, items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
        """Returns the targets of a batch of these items; a full batch has `count` items."""
        return per_sequence(items, packed, count)

    def inputs(self, rows: Batch, model: Model) -> Batch:
        """Returns what the encoder reads of some rows of a batch."""
        return rows

    def reduce(self, outputs: dict[str, Array], rows: Batch, model: Model) -> dict[str, Array]:
        """Returns what the loss reads of the outputs for some rows of a batch."""
        return outputs

    def loss(self, outputs: dict[str, Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        """Returns sums over a batch by name; the training loss is the total of those whose name ends in `_loss`."""

    def adapt(self, model: Model, limit: int, task: Task, splits: Splits, options: Options) -> tuple[Model, list[str]]:
        """Returns the model that is trained on `limit` tokens and exported, and lines to show."""
        return model, []

    def predictor(self, model: Model, limit: int) -> Predict[P]:
        """Returns the function that predicts a split with any parameters of the model."""

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions[P]:
        """Returns predictions without meaning; their scores have the names of all scores of the kind."""

    def tune(self, dev: Predicted[P]) -> Tuned:
        """Returns `dev.tuned` with the best thresholds for dev, where none are given."""
        return dev.tuned

    def scores(self, predicted: Predicted[P], metrics: Sequence[str]) -> dict[str, float]:
        """Returns the metrics and other scores of a split, by name."""

    def baseline(self, splits: Splits, metrics: Sequence[str]) -> float | None:
        """Returns the dev score of a model that learnt nothing; None where it is not known."""
        return 0.0

    def write(self, folder: Path, predicted: Predicted[P]) -> Path:
        """Writes the predictions of a split into `folder`; returns the path of the main file."""
        return folder

    def details(self, predicted: Predicted[P]) -> Details:
        """Returns scores of each class and the calibration, for results.json; empty where there are none."""
        return {}

    def mistakes(self, predicted: Predicted[P], details: Details) -> list[Figure]:
        """Returns tables and charts of mistakes, for report.html; `details` is the result of the method `details`."""
        return []
