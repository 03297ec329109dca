"""Texts, or pairs of texts -> a class, any number of labels, or a value."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.finetuning import Encoded, encode_texts
from bert_jax.data.layout import Layout
from bert_jax.data.records import Record, labels_of
from bert_jax.inference import Classifier
from bert_jax.pretrained import Model, ProblemType
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.common import Logits, balanced_weights, calibration_of, class_loss, judged_classes, one_place
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.split import Predicted, Predictions, Split
from bert_jax.tasks.task import Options
from bert_jax.training import losses
from bert_jax.training.losses import Sum
from bert_jax.tuned import Tuned


class Classification(Kind):
    """One class for each text. A prediction is float32 logits [C]."""

    name = "classification"
    problem_type: ProblemType | None = "single_label_classification"
    options = frozenset(["label_smoothing", "class_weights"])
    has_classes = True

    def classes_of(self, label: Any) -> tuple[str, ...]:
        return () if label is None else (label,)

    # ---- training

    def target(self, label: Any, labels: Sequence[str]) -> np.ndarray:
        """Returns the target of a text: the id of its class, int32."""
        return np.array(0 if label is None else labels.index(label), np.int32)

    def encode(
        self, records: Sequence[Record], labels: Sequence[str], layout: Layout, limit: int, read: Callable[[str], str] = str
    ) -> Encoded:
        return encode_texts(records, layout, limit, read, lambda label: self.target(label, labels))

    def balanced_weights(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, float]:
        return balanced_weights(Counter(name for label in labels_of(train) for name in self.classes_of(label)), labels)

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], options: Options, model: Model) -> dict[str, Sum]:
        return class_loss(outputs["logits"], batch, options)

    # ---- evaluation

    def predictor(self, model: Model, limit: int) -> Callable[[Split, Any], Predictions]:
        logits = Logits(model)
        return lambda split, params: Predictions(one_place(logits, split, params))

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions:
        return Predictions(np.zeros((len(records), len(labels))))

    def judged(self, predicted: Predicted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns, for each row and class, the probability, whether it is predicted, and whether it is right: [N, C] each."""
        ids = np.array([predicted.labels.index(label) for label in predicted.right])
        return judged_classes(np.array(predicted.values, np.float64), ids)

    def scores(self, predicted: Predicted, metrics: Sequence[str]) -> dict[str, float]:
        logits, right = np.array(predicted.values), np.array([predicted.labels.index(label) for label in predicted.right])
        guessed = logits.argmax(axis=-1)
        scores = {name: scoring.METRICS[name](guessed, right) for name in metrics}
        scores["matthews_correlation"] = scoring.matthews_correlation(guessed, right)
        return scores | self._area(predicted) | {"loss": float(np.mean(scoring.nats(logits, right)))}

    def _area(self, predicted: Predicted) -> dict[str, float]:
        shares, _, right = self.judged(predicted)
        area = scoring.macro_roc_auc(shares, right)
        return {} if area is None else {"roc_auc": area}

    def details(self, predicted: Predicted) -> dict[str, Any]:
        shares, given, right = self.judged(predicted)
        found = calibration_of(shares, given, right)
        return {"classes": scoring.class_report(given, right, shares, predicted.labels)} | found

    def baseline(
        self, train: Sequence[Record], dev: Sequence[Sequence[Record]], labels: Sequence[str], metrics: Sequence[str]
    ) -> float | None:
        ids, *asked = ([labels.index(label) for label in labels_of(records)] for records in (train, *dev))
        return float(np.mean([scoring.majority_baseline(name, ids, own) for own in asked for name in metrics]))


class MultiLabel(Classification):
    """Any number of labels for each text. A prediction is float32 logits [C]."""

    name = "multi_label"
    problem_type = "multi_label_classification"
    options = frozenset(["class_weights", "label_threshold"])

    def classes_of(self, label: Any) -> tuple[str, ...]:
        return tuple(label or ())

    # ---- training

    def target(self, label: Any, labels: Sequence[str]) -> np.ndarray:
        """Returns the target of a text: 1 for each label that it has, float32 [C]."""
        return np.array([name in (label or ()) for name in labels], np.float32)

    def balanced_weights(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, float]:
        """Returns (n - n_c) / n_c for each label; 1 for one that no row or every row has."""
        counts = Counter(name for label in labels_of(train) for name in self.classes_of(label))
        return {name: (len(train) - counts[name]) / counts[name] if 0 < counts[name] < len(train) else 1.0 for name in labels}

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], options: Options, model: Model) -> dict[str, Sum]:
        by_class = None if options.class_weights is None else jnp.asarray(options.class_weights)
        return {"label_loss": losses.binary_cross_entropy(outputs["logits"], batch["labels"], batch["weights"], by_class)}

    # ---- evaluation

    def judged(self, predicted: Predicted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        logits = np.array(predicted.values).reshape(-1, len(predicted.labels))
        right = np.array([[name in own for name in predicted.labels] for own in predicted.right], bool).reshape(logits.shape)
        return scoring.logistic(logits.astype(np.float64)), has_labels(logits, predicted.tuned), right

    def tune(self, dev: Predicted) -> Tuned:
        """Returns the thresholds with the threshold of the best F1 for each label that some rows have."""
        if dev.tuned.label_thresholds or not dev.values:
            return dev.tuned
        shares = scoring.logistic(np.array(dev.values))
        columns = zip(shares.T, self.judged(dev)[2].T, strict=True)
        return dataclasses.replace(dev.tuned, label_thresholds=tuple(scoring.best_label_threshold(*each) for each in columns))

    def scores(self, predicted: Predicted, metrics: Sequence[str]) -> dict[str, float]:
        logits, right = np.array(predicted.values), self.judged(predicted)[2].astype(int)
        guessed = has_labels(logits, predicted.tuned).astype(int)
        scores = {name: scoring.METRICS[name](guessed, right) for name in metrics}
        return scores | self._area(predicted) | {"loss": float(np.mean(np.logaddexp(0, logits) - logits * right))}

    def details(self, predicted: Predicted) -> dict[str, Any]:
        shares, given, right = self.judged(predicted)
        thresholds = predicted.tuned.label_thresholds or (0.5,) * len(predicted.labels)
        classes = scoring.class_report(given, right, shares, predicted.labels, thresholds)
        return {"classes": classes, "calibration": scoring.calibration(shares.ravel(), right.ravel())}

    def baseline(
        self, train: Sequence[Record], dev: Sequence[Sequence[Record]], labels: Sequence[str], metrics: Sequence[str]
    ) -> float | None:
        return 0.0


class Regression(Classification):
    """A value for each text. A prediction is a float."""

    name = "regression"
    problem_type = "regression"
    options: frozenset[str] = frozenset()
    has_classes = False

    def classes_of(self, label: Any) -> tuple[str, ...]:
        return ()

    # ---- training

    def target(self, label: Any, labels: Sequence[str]) -> np.ndarray:
        """Returns the target of a text: its value, float32."""
        return np.array(0 if label is None else label, np.float32)

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], options: Options, model: Model) -> dict[str, Sum]:
        return {"squared_error_loss": losses.squared_error(outputs["logits"][..., 0], batch["labels"], batch["weights"])}

    # ---- evaluation

    def predictor(self, model: Model, limit: int) -> Callable[[Split, Any], Predictions]:
        classifier = Classifier(model)  # it knows what the value goes through
        return lambda split, params: Predictions(float(value[0]) for value in one_place(classifier, split, params))

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions:
        return Predictions(np.zeros(len(records)))

    def scores(self, predicted: Predicted, metrics: Sequence[str]) -> dict[str, float]:
        guessed, right = np.array(predicted.values), np.array(predicted.right)
        scores = {name: scoring.METRICS[name](guessed, right) for name in metrics}
        return scores | {"loss": float(np.mean((guessed - right) ** 2))}

    def details(self, predicted: Predicted) -> dict[str, Any]:
        return {}

    def baseline(
        self, train: Sequence[Record], dev: Sequence[Sequence[Record]], labels: Sequence[str], metrics: Sequence[str]
    ) -> float | None:
        return 0.0


def has_labels(logits: np.ndarray, tuned: Tuned) -> np.ndarray:
    """Returns which labels texts have by their logits [N, C]: bool [N, C]."""
    return scoring.logistic(logits) >= (tuned.label_thresholds or 0.5)
