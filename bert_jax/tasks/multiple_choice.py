"""A context and several texts -> the text that goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bert_jax.data.batching import PackedBatch
from bert_jax.data.finetuning import Encoded, Item, encode_texts, per_item
from bert_jax.data.layout import Layout
from bert_jax.data.records import Record, texts_of
from bert_jax.pretrained import Model
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.common import (
    Logits,
    by_item,
    calibration_of,
    check_same_size,
    class_loss,
    judged_classes,
    of_items,
    one_place,
)
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.split import Predicted, Predictions, Split
from bert_jax.tasks.task import Options
from bert_jax.training.losses import Sum


class MultipleChoice(Kind):
    """One of several choices. A prediction is a float32 logit for each choice."""

    name = "multiple_choice"
    head = "multiple_choice"
    options = frozenset(["label_smoothing"])
    needs_all_rows = True

    # ---- training

    def settle(self, options: Options, train: Sequence[Record]) -> tuple[Options, Sequence[Record], list[str]]:
        check_same_size(train)
        return options, train, []

    def encode(
        self, records: Sequence[Record], labels: Sequence[str], layout: Layout, limit: int, read: Callable[[str], str] = str
    ) -> Encoded:
        return encode_texts(
            records, layout, limit, read,
            target=lambda label: np.array(label or 0, np.int32),
            sequences=lambda texts: [(texts[0], choice) for choice in texts[1:]],
        )  # fmt: skip

    def targets(self, items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
        return per_item(items, packed, count)

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], options: Options, model: Model) -> dict[str, Sum]:
        return class_loss(of_items(outputs["logits"], batch), batch, options)

    # ---- evaluation

    def predictor(self, model: Model, limit: int) -> Callable[[Split, Any], Predictions]:
        logits = Logits(model)
        return lambda split, params: Predictions(by_item(one_place(logits, split, params), split))

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions:
        return Predictions(np.zeros(len(texts) - 1) for texts in texts_of(records))

    def scores(self, predicted: Predicted, metrics: Sequence[str]) -> dict[str, float]:
        logits, right = np.array(predicted.values), np.array(predicted.right)
        guessed = logits.argmax(axis=-1)
        scores = {name: scoring.METRICS[name](guessed, right) for name in metrics}
        return scores | {"loss": float(np.mean(scoring.nats(logits, right)))}

    def details(self, predicted: Predicted) -> dict[str, Any]:
        return calibration_of(*judged_classes(np.array(predicted.values, np.float64), np.array(predicted.right)))

    def baseline(
        self, train: Sequence[Record], dev: Sequence[Sequence[Record]], labels: Sequence[str], metrics: Sequence[str]
    ) -> float | None:
        return None
