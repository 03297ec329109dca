"""A split of a task and its predictions, which the methods of a kind exchange."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bert_jax.data.finetuning import Encoded
from bert_jax.data.records import Record, labels_of, take
from bert_jax.tuned import Tuned

P = TypeVar("P")  # a prediction


@dataclass(frozen=True)
class Split:
    """Records of a task, and their tokens."""

    name: str
    records: Sequence[Record]
    encoded: Encoded

    @property
    def labelled(self) -> int:
        """The number of records that have a label; only these are scored."""
        return sum(label is not None for label in labels_of(self.records))


class Predictions(list[P]):
    """A prediction for each record, in order; `loss` is their mean loss where it does not follow from the predictions."""

    def __init__(self, each: Iterable[P], loss: float | None = None) -> None:
        super().__init__(each)
        self.loss = loss


@dataclass(frozen=True)
class Predicted(Generic[P]):
    """A split with its predictions."""

    split: Split
    values: Sequence[P]  # a prediction for each record, in the form that the kind of task describes
    labels: tuple[str, ...]  # the names of the classes by id; empty where classes have no names
    tuned: Tuned  # the thresholds that turn predictions into labels and answers

    @property
    def records(self) -> Sequence[Record]:
        """The records, one for each prediction."""
        return self.split.records

    @property
    def right(self) -> list[Any]:
        """The label of each record."""
        return labels_of(self.split.records)

    def labelled(self) -> Predicted[P]:
        """Returns the records that have a label with their predictions; all records where none has one. `encoded` stays whole."""
        if self.split.labelled in (0, len(self.records)):
            return self
        own = [i for i, label in enumerate(self.right) if label is not None]
        split = dataclasses.replace(self.split, records=take(self.records, own))
        return dataclasses.replace(self, split=split, values=[self.values[i] for i in own])
