"""The protocol of a kind of task. A new kind is a subclass of `Kind` in one file, and one row of a table."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jax import Array

from bert_jax.data.finetuning import Encoded
from bert_jax.data.layout import Layout
from bert_jax.data.records import Record
from bert_jax.model.families import Head
from bert_jax.pretrained import Model, ProblemType
from bert_jax.tasks.split import Options, Predicted, Predictions, Split
from bert_jax.training.losses import Sum
from bert_jax.tuned import Tuned


class Kind(Protocol):
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

    # ---- files: rows -> records

    num_texts: tuple[int, float] = (1, 2)  # the least and the most columns of texts
    usual_texts: tuple[tuple[str, ...], ...] = ()  # columns of texts that are read unless others are named
    usual_labels: tuple[str, ...] = ()  # columns of labels, likewise

    def classes_of(self, label: Any) -> tuple[str, ...]:
        """Returns the names of the classes in a label."""
        return ()

    def content(self, texts: tuple[str, ...]) -> Hashable:
        """Returns what is equal for records that ask the same; they are held out together."""
        return texts

    # ---- training: records -> batches -> loss

    def settle(self, options: Options, train: Sequence[Record]) -> Options:
        """Returns the options with what the training rows decide. Raises InputError where rows or options do not fit."""
        return options

    def encode(
        self, records: Sequence[Record], labels: Sequence[str], layout: Layout, limit: int, read: Callable[[str], str] = str
    ) -> Encoded:
        """Tokenizes `read(text)` of each text, at most `limit` tokens a sequence."""

    def balanced_weights(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, float]:
        """Returns the weight of each class that its frequency asks for (option class_weights)."""

    def loss(self, outputs: dict[str, Array], batch: dict[str, Array], options: Options, model: Model) -> dict[str, Sum]:
        """Returns sums of a batch by name; those whose name ends in `_loss` are added up to the training loss."""

    # ---- evaluation: model -> predictions -> scores

    def adapt(self, model: Model, limit: int, untrained: str | None) -> tuple[Model, list[str]]:
        """Returns the model as it is trained and exported, and lines to show; `untrained`: where it is, if nothing is trained."""
        return model, []

    def predictor(self, model: Model, limit: int) -> Callable[[Split, Any], Predictions]:
        """Returns the function (split, parameters) -> one prediction for each record."""

    def guess(self, record: Record, labels: Sequence[str]) -> Any:
        """Returns a prediction of no meaning: scoring some tells the names of the scores before training."""

    def tune(self, dev: Predicted) -> Tuned:
        """Returns `dev.tuned` with the thresholds that are best for dev, where none are given."""
        return dev.tuned

    def scores(self, predicted: Predicted, metrics: Sequence[str]) -> dict[str, float]:
        """Returns the metrics and other scores of a split, by name."""

    def baseline(
        self, train: Sequence[Record], dev: Sequence[Sequence[Record]], labels: Sequence[str], metrics: Sequence[str]
    ) -> float | None:
        """Returns the score on dev of a model that learnt nothing; None where it is not known."""

    # ---- report: predictions -> files, results.json, report.html

    def write(self, folder: Path, predicted: Predicted) -> Path:
        """Writes the predictions of a split into `folder`; returns the path of the main file."""

    def details(self, predicted: Predicted) -> dict[str, Any]:
        """Returns scores of each class and the calibration, for results.json; empty where there is nothing to say."""
        return {}

    def mistakes(self, predicted: Predicted) -> list[Any]:
        """Returns tables and charts, for report.html, of what the model gets wrong."""
