"""The kind for a context and several texts, one of which continues it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path

import jax
import numpy as np

from bert_jax.data.batching import PackedBatch
from bert_jax.data.files import Row
from bert_jax.data.finetuning import Item, per_item
from bert_jax.data.layout import Text
from bert_jax.data.records import Record, labels_of, texts_of
from bert_jax.errors import InputError
from bert_jax.pretrained import Model
from bert_jax.tasks import common
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.figures import Figure, class_figures, surest_mistakes
from bert_jax.tasks.figures import Text as FigureText
from bert_jax.tasks.kind import Kind, Predict
from bert_jax.tasks.labels import LabelReader, whole_number
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.parsing import Classes, Columns, Noted, text_in
from bert_jax.tasks.predictions import write_choices
from bert_jax.tasks.split import Predicted, Predictions
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task
from bert_jax.training.losses import Sum
from bert_jax.training.steps import Batch


class MultipleChoice(Kind[int, np.ndarray]):
    """One of several choices. A prediction is a float32 logit for each choice."""

    name = "multiple_choice"
    head = "multiple_choice"
    options = frozenset(["label_smoothing"])
    needs_all_rows = True
    num_texts = (3, math.inf)
    usual_texts = ()

    def read_label(self, reader: LabelReader, value: object, place: str) -> int | None:
        name = reader.name(value, place)
        return None if name in (None, "-1") else whole_number(str(name), f"{place}: the label")

    def read_row(self, row: Row, columns: Columns, label: int | None, noted: Noted) -> tuple[tuple[str, ...], int | None]:
        """Returns the context and the choices; a text of the task's `stem` begins each choice."""
        texts = [text_in(row, column) for column in columns.texts]
        start = f"{text_in(row, columns.stem)} " if columns.stem else ""
        return (texts[0], *(start + text for text in texts[1:])), label

    def classes(self, task: Task, train: Sequence[Record], others: Sequence[Sequence[Record]]) -> Classes:
        for records in [train, *others]:
            for i, (texts, label) in enumerate(zip(texts_of(records), labels_of(records), strict=True)):
                if label is not None and not 0 <= label < len(texts) - 1:
                    raise InputError(f"{records[i].place}: the label is {label}, but the choices are 0 to {len(texts) - 2}")
        return (), []

    def content(self, texts: tuple[str, ...]) -> Hashable:
        return texts

    def parts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return texts[:1]

    def values(self, label: int) -> tuple[Hashable, ...]:
        return ()

    def settle(self, options: Options, train: Sequence[Record]) -> tuple[Options, Sequence[Record], list[str]]:
        common.check_same_size(train)
        return options, train, []

    def target(self, label: int | None, labels: Sequence[str]) -> np.ndarray:
        return np.array(label or 0, np.int32)

    def sequences(self, texts: tuple[str, ...]) -> list[Text]:
        return [(texts[0], choice) for choice in texts[1:]]

    def targets(self, items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
        return per_item(items, packed, count)

    def loss(self, outputs: dict[str, jax.Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        return common.class_loss(common.of_items(outputs["logits"], batch), batch, options)

    def predictor(self, model: Model, limit: int) -> Predict[np.ndarray]:
        logits = common.Logits(model)
        return lambda split, params: Predictions(common.by_item(common.one_place(logits, split, params), split))

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions[np.ndarray]:
        return Predictions(np.zeros(len(texts) - 1) for texts in texts_of(records))

    def scores(self, predicted: Predicted[np.ndarray], metrics: Sequence[str]) -> dict[str, float]:
        logits, right = np.array(predicted.values), np.array(predicted.right)
        guessed = logits.argmax(axis=-1)
        scores = {name: scoring.METRICS[name](guessed, right) for name in metrics}
        return scores | {"loss": float(np.mean(scoring.nats(logits, right)))}

    def details(self, predicted: Predicted[np.ndarray]) -> Details:
        judged = common.judged_classes(np.array(predicted.values, np.float64), np.array(predicted.right))
        return {"calibration": common.calibration_of(*judged)}

    def baseline(self, splits: Splits, metrics: Sequence[str]) -> float | None:
        return None

    def write(self, folder: Path, predicted: Predicted[np.ndarray]) -> Path:
        """Writes NAME.tsv: the number of the choice, from 0, and the probability of each choice."""
        return write_choices(folder, predicted, [str(i) for i in range(max(map(len, predicted.values), default=0))])

    def mistakes(self, predicted: Predicted[np.ndarray], details: Details) -> list[Figure]:
        logits, right = np.array(predicted.values), np.array(predicted.right)
        context, choice = (lambda record: record.texts[:1]), (lambda record, number: (FigureText(record.texts[1 + number]),))
        return [*class_figures(details), surest_mistakes(predicted, logits, right, context, choice)]
