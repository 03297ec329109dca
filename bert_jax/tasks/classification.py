"""Kinds for texts and pairs of texts: one class, any number of labels, or a value."""

from __future__ import annotations

import dataclasses
import reprlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.files import ClassName
from bert_jax.data.records import Record, labels_of, with_labels
from bert_jax.errors import InputError
from bert_jax.inference import Classifier
from bert_jax.pretrained import Model, ProblemType
from bert_jax.tasks import figures
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.common import Logits, Numbers, calibration_of, class_loss, judged_classes, one_place
from bert_jax.tasks.kind import Kind, Predict
from bert_jax.tasks.labels import (
    FLAGS,
    LabelReader,
    are_numbers,
    classes_by_id,
    count_classes,
    list_items,
    look_alike_notes,
    rare_notes,
)
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.parsing import Classes, File, L
from bert_jax.tasks.predictions import write_choices, write_table
from bert_jax.tasks.split import Predicted, Predictions
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task
from bert_jax.training import losses
from bert_jax.training.losses import Sum
from bert_jax.training.steps import Batch
from bert_jax.tuned import Tuned


class _WithClasses(Kind[L, np.ndarray]):
    """Labels are classes. A prediction is float32 logits [C]."""

    has_classes = True

    def classes(self, task: Task, train: Sequence[Record], others: Sequence[Sequence[Record]]) -> Classes:
        return classes_by_id(task, train, others), []

    def hides_minus_one(self, task: Task, split: str, train: Sequence[L | None]) -> bool:
        """Returns False where -1 is a class: training has it, and not two or more other classes, all whole numbers from 0."""
        found = {name for label in train for name in self.classes_of(label)}
        rest = found - {"-1"}
        numbers = len(rest) >= 2 and all(name.isdecimal() for name in rest)
        return "-1" not in task.labels and (bool(task.labels) or "-1" not in found or numbers)

    def predictor(self, model: Model, limit: int) -> Predict[np.ndarray]:
        logits = Logits(model)
        return lambda split, params: Predictions(one_place(logits, split, params))

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions[np.ndarray]:
        return Predictions(np.zeros((len(records), len(labels))))

    @abstractmethod
    def judged(self, predicted: Predicted[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the probability of each class for each row, whether it is predicted, and whether it is right: [N, C] each."""

    def area(self, predicted: Predicted[np.ndarray]) -> dict[str, float]:
        """Returns the mean area under the ROC curve over the classes that some rows have and others have not."""
        shares, _, right = self.judged(predicted)
        area = scoring.macro_roc_auc(shares, right)
        return {} if area is None else {"roc_auc": area}


class Classification(_WithClasses[str]):
    """One class for each text."""

    name = "classification"
    problem_type: ProblemType | None = "single_label_classification"
    options = frozenset(["label_smoothing", "class_weights"])
    held_out_by_class = True

    def classes_of(self, label: str | None) -> tuple[str, ...]:
        return () if label is None else (label,)

    def read_label(self, reader: LabelReader, value: object, place: str) -> str | None:
        items = list_items(value, f"{place}: the label")
        if items is not None:
            items = [item for item in items if reader.name(item, place) is not None]
            if len(items) > 1:
                raise InputError(f"{place}: the label is {reprlib.repr(value)}; for several labels per row, --task multi_label")
            value = items[0] if items else None
        name = reader.name(value, place)
        return None if name is None else reader.task.words.get(name, name)

    def look_at_labels(self, task: Task, train: Sequence[Record], labels: Sequence[str]) -> list[str]:
        counts, notes = count_classes(task, train, labels, least=2)
        notes += look_alike_notes(labels, counts)
        if are_numbers(labels) and len(labels) >= 10 and len(train) < 3 * len(labels):
            return [*notes, f"warning: the {len(labels)} classes of {len(train)} training rows are numbers: --task regression?"]
        return notes + rare_notes(labels, counts)

    def target(self, label: str | None, labels: Sequence[str]) -> np.ndarray:
        """Returns the target of a text: the id of its class, int32."""
        return np.array(0 if label is None else labels.index(label), np.int32)

    def loss(self, outputs: dict[str, jax.Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        return class_loss(outputs["logits"], batch, options)

    def judged(self, predicted: Predicted[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return judged_classes(np.array(predicted.values, np.float64), _class_ids(predicted))

    def scores(self, predicted: Predicted[np.ndarray], metrics: Sequence[str]) -> dict[str, float]:
        logits, right = np.array(predicted.values), _class_ids(predicted)
        guessed = logits.argmax(axis=-1)
        scores = {name: scoring.METRICS[name](guessed, right) for name in metrics}
        scores["matthews_correlation"] = scoring.matthews_correlation(guessed, right)
        return scores | self.area(predicted) | {"loss": float(np.mean(scoring.nats(logits, right)))}

    def details(self, predicted: Predicted[np.ndarray]) -> Details:
        shares, given, right = self.judged(predicted)
        return {
            "classes": scoring.class_report(given, right, shares, predicted.labels),
            "calibration": calibration_of(shares, given, right),
        }

    def baseline(self, splits: Splits, metrics: Sequence[str]) -> float | None:
        every = (splits.train, *splits.dev.values())
        ids, *asked = ([splits.labels.index(label) for label in labels_of(records)] for records in every)
        return float(np.mean([scoring.majority_baseline(name, ids, own) for own in asked for name in metrics]))

    def write(self, folder: Path, predicted: Predicted[np.ndarray]) -> Path:
        """Writes NAME.tsv: the class of each text, and the probability of each class."""
        return write_choices(folder, predicted, predicted.labels)

    def mistakes(self, predicted: Predicted[np.ndarray], details: Details) -> list[figures.Figure]:
        labels, logits, right = predicted.labels, np.array(predicted.values), _class_ids(predicted)
        counts = scoring.confusion_matrix(logits.argmax(axis=-1), right, len(labels))
        few = len(labels) <= MOST_CLASSES
        confused = figures.Matrix("Confusion matrix", labels, counts) if few else _most_confused(labels, counts)
        surest = figures.surest_mistakes(predicted, logits, right, lambda record: record.texts, lambda _, label: labels[label])
        return [*figures.class_figures(details), confused, surest]


class MultiLabel(_WithClasses[tuple[str, ...]]):
    """Any number of labels for each text."""

    name = "multi_label"
    problem_type: ProblemType | None = "multi_label_classification"
    options = frozenset(["class_weights", "label_threshold"])
    usual_labels = ("labels",)
    several_label_columns = True

    def classes_of(self, label: tuple[str, ...] | None) -> tuple[str, ...]:
        return label or ()

    def read_label(self, reader: LabelReader, value: object, place: str) -> tuple[str, ...] | None:
        items = list_items(value, f"{place}: the label", bare=True)
        if items is None:
            if value is None or value != value:  # NaN
                return None
            items = value.split(reader.separator) if isinstance(value, str) and not isinstance(value, ClassName) else [value]
        if any(isinstance(item, float) and not item.is_integer() and item == item for item in items):
            raise InputError(f"{place}: the label is {reprlib.repr(value)}; a label is a name or a whole number")
        names = [reader.name(item, place) for item in items]
        there = [reader.task.words.get(name, name) for name in names if name is not None]
        if not there:  # empty items alone mean that no class applies; with a mark among them the row is unlabelled
            return None if any(item is None or item != item or str(item).strip() for item in items) else ()
        if len(items) > 1 and len(there) == len(items) and {*there} <= {*FLAGS}:
            return Indicators(there)
        return tuple(dict.fromkeys(there))

    def settle_labels(self, task: Task, files: Mapping[str, File], read: dict[str, Sequence[Record]]) -> tuple[Task, list[str]]:
        """Treats files whose cells are all empty as unlabelled; replaces lists of 0 and 1 by the classes that they mean."""
        for split, file in files.items():
            if file.reader.blank == len(file.records):
                read[split] = with_labels(file.records, [None] * len(file.records))
                file.reader.unlabelled["empty"] += len(file.records)
        classes = next((file.columns.labels for file in files.values() if len(file.columns.labels) > 1), ())
        notes = []
        if not classes:
            found, classes = by_place(read, task.labels)
            read.update(found)
            if classes and not task.labels:
                notes = [f"labels are lists of 0 and 1: the names of the classes are the positions, 0 to {len(classes) - 1}"]
        return (dataclasses.replace(task, labels=classes) if classes and not task.labels else task), notes

    def look_at_labels(self, task: Task, train: Sequence[Record], labels: Sequence[str]) -> list[str]:
        counts, notes = count_classes(task, train, labels, least=1)
        sizes = Counter(map(len, labels_of(train)))
        notes += [f"labels: {sizes[0]} of {len(train)} training rows have no label"] * (sizes[0] > 0)
        mark = next((mark for mark in ";|" if any(mark in name for name in labels)), None)
        if max(sizes) == 1 and mark is not None:
            notes.append(f"warning: no training row has two labels, and some contain {mark!r}: --label-separator '{mark}'?")
        elif set(sizes) == {1} and len(labels) > 1:
            notes.append("warning: every training row has one label: for classes that exclude each other, --task classification")
        return notes + look_alike_notes(labels, counts) + rare_notes(labels, counts)

    def target(self, label: tuple[str, ...] | None, labels: Sequence[str]) -> np.ndarray:
        """Returns the target of a text: 1 for each label that it has, float32 [C]."""
        return np.array([name in (label or ()) for name in labels], np.float32)

    def balanced_weights(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, float]:
        """Returns (n - n_c) / n_c for each label; 1 for one that no row or every row has."""
        counts = Counter(name for label in labels_of(train) for name in self.classes_of(label))
        return {name: (len(train) - counts[name]) / counts[name] if 0 < counts[name] < len(train) else 1.0 for name in labels}

    def loss(self, outputs: dict[str, jax.Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        by_class = None if options.class_weights is None else jnp.asarray(options.class_weights)
        return {"label_loss": losses.binary_cross_entropy(outputs["logits"], batch["labels"], batch["weights"], by_class)}

    def judged(self, predicted: Predicted[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        logits = np.array(predicted.values).reshape(-1, len(predicted.labels))
        right = np.array([[name in own for name in predicted.labels] for own in predicted.right], bool).reshape(logits.shape)
        return scoring.logistic(logits.astype(np.float64)), has_labels(logits, predicted.tuned), right

    def tune(self, dev: Predicted[np.ndarray]) -> Tuned:
        """Returns `dev.tuned` with the threshold of the best F1 for each label."""
        if dev.tuned.label_thresholds or not dev.values:
            return dev.tuned
        shares = scoring.logistic(np.array(dev.values))
        columns = zip(shares.T, self.judged(dev)[2].T, strict=True)
        return dataclasses.replace(dev.tuned, label_thresholds=tuple(scoring.best_label_threshold(*each) for each in columns))

    def scores(self, predicted: Predicted[np.ndarray], metrics: Sequence[str]) -> dict[str, float]:
        logits, right = np.array(predicted.values), self.judged(predicted)[2].astype(int)
        guessed = has_labels(logits, predicted.tuned).astype(int)
        scores = {name: scoring.METRICS[name](guessed, right) for name in metrics}
        return scores | self.area(predicted) | {"loss": float(np.mean(np.logaddexp(0, logits) - logits * right))}

    def details(self, predicted: Predicted[np.ndarray]) -> Details:
        shares, given, right = self.judged(predicted)
        thresholds = predicted.tuned.label_thresholds or (0.5,) * len(predicted.labels)
        classes = scoring.class_report(given, right, shares, predicted.labels, thresholds)
        return {"classes": classes, "calibration": scoring.calibration(shares.ravel(), right.ravel())}

    def write(self, folder: Path, predicted: Predicted[np.ndarray]) -> Path:
        """Writes NAME.tsv: the labels of each text, and the probability of each label."""
        labels, logits = predicted.labels, np.array(predicted.values).reshape(-1, len(predicted.labels))
        given, shares = has_labels(logits, predicted.tuned), scoring.logistic(logits)
        names = (",".join(name for name, has in zip(labels, own, strict=True) if has) for own in given)
        return write_table(folder, predicted, zip(names, shares.tolist(), strict=True), labels)

    def mistakes(self, predicted: Predicted[np.ndarray], details: Details) -> list[figures.Figure]:
        labels, logits = predicted.labels, np.array(predicted.values)
        _, given, right = self.judged(predicted)
        limits = np.clip(np.array(predicted.tuned.label_thresholds or 0.5), 1e-6, 1 - 1e-6)
        sure, rows = abs(logits - np.log(limits / (1 - limits))), list[list[figures.Cell]]()
        for place in figures.highest((given != right).ravel(), sure.ravel()):
            i, j = divmod(place, len(labels))
            record, said = predicted.records[i], ["yes" if has[i, j] else "no" for has in (right, given)]
            rows.append([*figures.example_cells(record, record.texts), labels[j], *said, float(1 / (1 + np.exp(-logits[i, j])))])
        header = ["id", "text", "label", "right", "predicted", "probability of the label"]
        axes = ("probability of a label", "share that has it")
        return [*figures.class_figures(details, axes), figures.Listing("Surest mistakes", header, rows)]


class Regression(Numbers[float]):
    """A value for each text. A prediction is a float."""

    name = "regression"
    problem_type: ProblemType | None = "regression"

    def loss(self, outputs: dict[str, jax.Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        return {"squared_error_loss": losses.squared_error(outputs["logits"][..., 0], batch["labels"], batch["weights"])}

    def predictor(self, model: Model, limit: int) -> Predict[float]:
        classifier = Classifier(model)  # it applies the activation that the model's files name
        return lambda split, params: Predictions(float(value[0]) for value in one_place(classifier, split, params))

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions[float]:
        return Predictions([0.0] * len(records))

    def scores(self, predicted: Predicted[float], metrics: Sequence[str]) -> dict[str, float]:
        guessed, right = np.array(predicted.values), np.array(predicted.right)
        scores = {name: scoring.METRICS[name](guessed, right) for name in metrics}
        return scores | {"loss": float(np.mean((guessed - right) ** 2))}

    def write(self, folder: Path, predicted: Predicted[float]) -> Path:
        """Writes NAME.tsv: the value of each text."""
        return write_table(folder, predicted, ((f"{value:.6g}", []) for value in predicted.values))

    def mistakes(self, predicted: Predicted[float], details: Details) -> list[figures.Figure]:
        guessed, right = np.array(predicted.values, np.float64), np.array(predicted.right, np.float64)
        table = figures.furthest("Largest differences", predicted.records, right, guessed, guessed - right)
        return [figures.Chart(np.array([right, guessed]), "right", "predicted", diagonal=True), table]


def _class_ids(predicted: Predicted[np.ndarray]) -> np.ndarray:
    """Returns the id of the right class of each row, int [N]."""
    return np.array([predicted.labels.index(label) for label in predicted.right])


def has_labels(logits: np.ndarray, tuned: Tuned) -> np.ndarray:
    """Returns the labels that texts have by their logits [N, C]: bool [N, C]."""
    return scoring.logistic(logits) >= (tuned.label_thresholds or 0.5)


class Indicators(tuple[str, ...]):
    """A list of 0 and 1 in a label cell; all rows together decide whether these are flags or names of classes."""


def by_place(
    splits: Mapping[str, Sequence[Record]], classes: tuple[str, ...] = ()
) -> tuple[dict[str, Sequence[Record]], tuple[str, ...]]:
    """Replaces lists of 0 and 1 by the classes that they mean; returns the records, and the classes (() for other labels).

    The numbers are flags where every label of training (without training rows, of the first split) is a list of 0 and 1 of one
    length (that of `classes` if there are any; without, the positions are the names). Otherwise the numbers are names.

    Raises:
      InputError: a list in dev or test has another length.
    """
    first = splits["train"] if "train" in splits else next(iter(splits.values()), [])
    labels = [label for label in labels_of(first) if label]
    number = len(labels[0]) if labels and all(isinstance(label, Indicators) for label in labels) else 0
    if any(len(label) != number for label in labels) or (classes and number != len(classes)):
        number = 0
    names = classes or tuple(map(str, range(number)))

    def meant(records: Sequence[Record], i: int, label: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if number and label and (not isinstance(label, Indicators) or len(label) != number):
            raise InputError(f"{records[i].place}: the label is {list(label)}, but training has lists of {number} values, 0 or 1")
        if not isinstance(label, Indicators):
            return label
        applies = (name for name, flag in zip(names, label, strict=True) if FLAGS[flag]) if number else label
        return tuple(dict.fromkeys(applies))

    settled = {
        split: with_labels(records, [meant(records, i, label) for i, label in enumerate(labels_of(records))])
        for split, records in splits.items()
    }
    return settled, names if number else ()


MOST_CLASSES = 20  # a larger confusion matrix is unreadable


def _most_confused(labels: Sequence[str], counts: np.ndarray) -> figures.Listing:
    """Returns the pairs of classes that are confused most often, from a confusion matrix [C, C]."""
    off = counts * (1 - np.eye(len(labels), dtype=int))
    pairs = [divmod(place, len(labels)) for place in figures.highest(off.ravel() > 0, off.ravel())]
    rows: list[list[figures.Cell]] = [
        [labels[i], labels[j], int(off[i, j]), f"{off[i, j] / counts[i].sum():.1%}"] for i, j in pairs
    ]
    return figures.Listing("Most confused classes", ["right", "predicted", "examples", "of the right class"], rows)
