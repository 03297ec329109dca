"""Parts that several kinds share: logits, numbers as labels, items of several sequences, and classes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bert_jax.data.records import Record, texts_of
from bert_jax.errors import InputError
from bert_jax.inference import Predictor
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.labels import LabelReader
from bert_jax.tasks.split import P, Split
from bert_jax.tasks.task import Options, Task
from bert_jax.training import losses
from bert_jax.training.losses import Sum
from bert_jax.training.steps import Batch


class Logits(Predictor):
    """The logits of the head for each sequence."""

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        batch["cls_positions"] = batch.pop("places")
        return {"logits": self.model.apply(params, batch, head_only=True)["logits"]}


def one_place(predictor: Predictor, split: Split, params: PyTree) -> np.ndarray:
    """Returns the only output of each sequence at its only place, as one array [S, ...]."""
    results = predictor.run(split.encoded.sequences, params)
    (name,) = results[0] if results else ("logits",)
    return np.array([result[name][0] for result in results])


def temperature_of(batch: Batch, options: Options) -> float | jax.Array:
    """Returns the divisor of the scores: the learnt temperature, which the training step adds to the batch, or the given one."""
    return jnp.asarray(batch["temperature"]) if "temperature" in batch else options.temperature


class Numbers(Kind[float, P]):
    """A kind whose labels are numbers."""

    usual_labels = ("score",)

    def read_label(self, reader: LabelReader, value: object, place: str) -> float | None:
        return reader.number(value, place)

    def hides_minus_one(self, task: Task, split: str, train: Sequence[float | None]) -> bool:
        """Returns True in a test set, unless training has numbers below 0."""
        return split.startswith("test") and not any(label is not None and label < 0 for label in train)

    def target(self, label: float | None, labels: Sequence[str]) -> np.ndarray:
        return np.array(label or 0, np.float32)


# --- items of several sequences ---


def check_same_size(records: Sequence[Record]) -> None:
    """Raises InputError unless all records have the same number of texts."""
    first = len(records[0].texts) if len(records) else 0
    for i, texts in enumerate(texts_of(records)):
        if len(texts) != first:
            raise InputError(
                f"{records[i].place} has {len(texts)} texts, but {records[0].place} has {first}: give all rows the same number"
            )


def of_items(values: jax.Array, batch: Batch) -> jax.Array:
    """Returns the values of the sequences of each item: [B, S, ...] -> [N, k, ...]."""
    return values.reshape(-1, *values.shape[2:])[batch["slots"]]


def by_item(values: np.ndarray, split: Split) -> list[np.ndarray]:
    """Returns the values of the sequences of each item: [S, ...] -> N arrays [k, ...]."""
    counts = [len(item.sequences) for item in split.encoded.items]
    return np.split(values, np.cumsum(counts)[:-1]) if counts else []


# --- classes ---


def class_loss(logits: jax.Array, batch: Batch, options: Options) -> dict[str, Sum]:
    """Returns the cross-entropy and the accuracy of logits [..., C]."""
    labels, weights = batch["labels"], batch["weights"]
    weighted = weights if options.class_weights is None else weights * jnp.asarray(options.class_weights)[labels]
    return {
        "cross_entropy_loss": losses.cross_entropy(logits, labels, weighted, options.label_smoothing),
        "accuracy": losses.accuracy(logits, labels, weights),
    }


def judged_classes(logits: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each class's probability, whether it is predicted, and whether it is right, from logits [N, C] and ids [N]."""
    classes = np.arange(logits.shape[1])
    return scoring.softmax(logits), logits.argmax(axis=-1)[:, None] == classes, right[:, None] == classes


def calibration_of(shares: np.ndarray, given: np.ndarray, right: np.ndarray) -> scoring.Calibration:
    """Returns the calibration of the probabilities of predicted classes, by the arrays of `judged_classes`."""
    return scoring.calibration(shares.max(axis=-1), (given & right).any(axis=-1))
