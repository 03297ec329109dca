"""Classes of texts and of pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.config import InputError
from bert_jax.data.layout import Text
from bert_jax.inference.predictor import Predictor, as_list
from bert_jax.model.heads import TORCH_ACTIVATIONS
from bert_jax.pooling import activation_name
from bert_jax.pretrained import Model, ProblemType


class Classification(NamedTuple):
    """What a text was taken for.

    Attributes:
      label: the likeliest class; for regression the name of the value.
      score: its probability; for regression the value.
      scores: those of all classes.
      labels: with several labels a text, all whose probability reaches their threshold; else `label` alone.
    """

    label: str
    score: float
    scores: dict[str, float]
    labels: tuple[str, ...]


def _told_apart(labels: tuple[str, ...]) -> tuple[str, ...]:
    """("a", "b", "a") -> ("a (0)", "b", "a (2)"): classes of one name would be one entry of a dict."""
    told = tuple(f"{name} ({i})" if labels.count(name) > 1 else name for i, name in enumerate(labels))
    return told if len(set(told)) == len(told) else tuple(f"{name} ({i})" for i, name in enumerate(labels))


_ACTIVATIONS = {**TORCH_ACTIVATIONS, "Softmax": jax.nn.softmax}  # of logits


def _meaning(model: Model, labels: int) -> tuple[ProblemType, str]:
    """What the logits of `labels` classes mean, and which activation makes scores of them.

    One value goes through the activation of sentence-transformers' files; without that, it is itself where config.json says
    "regression", else a probability, as in transformers and sentence-transformers.
    """
    if isinstance(model.pooling, str):
        raise InputError(f"{model.pooling}; for scores of the head alone: Classifier(dataclasses.replace(model, pooling=None))")
    problem = model.problem_type
    named = None if model.activation is None else activation_name(model.activation, "the model's sentence-transformers files")
    if labels == 1 or problem == "regression":
        return problem or "regression", named or ("Identity" if problem == "regression" else "Sigmoid")
    if problem is None and named not in (None, "Identity", "Sigmoid"):
        raise InputError(f"the activation {model.activation!r} of {labels} labels is not supported, only Identity and Sigmoid")
    if problem == "multi_label_classification" or (problem is None and named == "Sigmoid"):
        return "multi_label_classification", "Sigmoid"
    return "single_label_classification", "Softmax"


class Classifier(Predictor):
    """Classes of texts, or of pairs of texts; probabilities of several labels; a value, for regression and for cross-encoders.

    The scores of one class among several are probabilities, also where sentence-transformers' CrossEncoder would give logits
    (its Identity). A head with one value and no statement of what it means gives the sigmoid, as CrossEncoder and transformers'
    pipelines do; `problem_type` "regression" the value itself.
    """

    needs = ("sequence_classification", "next_sentence", "pretraining")

    def __init__(
        self, model: Model, threshold: float | None = None, *, max_length: int | None = None, exact: bool = False
    ) -> None:
        """`threshold`: probability from which on a text has a label, where it may have several; default: for each label the
        one that fine-tuning found best on its dev set, else 0.5. `max_length` and `exact`: `Predictor` says.
        """
        super().__init__(model, exact, max_length)
        in_order = ("in_order", "swapped") if model.config.model_type == "albert" else ("is_next", "random")
        self.labels = _told_apart(model.labels or (("LABEL_0",) if model.head == "sequence_classification" else in_order))
        self.problem_type, self._activation = _meaning(model, len(self.labels))
        own = model.tuned.label_thresholds if threshold is None else ()
        self.thresholds = own or (0.5 if threshold is None else threshold,) * len(self.labels)

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        batch["cls_positions"] = batch.pop("places")
        outputs = self.model.apply(params, batch, head_only=True)  # all but pretraining's, which reads every token
        logits = outputs["logits"] if self.model.head == "sequence_classification" else outputs["next_sentence_logits"]
        return {"scores": _ACTIVATIONS[self._activation](logits)}

    def __call__(self, texts: Sequence[Text]) -> list[Classification]:
        """A classification for each text, or tuple of two texts. Too long ones are cut, with a warning."""
        return [self._classification(result["scores"][0]) for result in self.run(self._encode(as_list(texts)))]

    def _classification(self, scores: np.ndarray) -> Classification:
        best = int(np.argmax(scores))
        named = {name: float(score) for name, score in zip(self.labels, scores, strict=True)}
        reached = zip(self.labels, scores.tolist(), self.thresholds, strict=True)
        several = tuple(name for name, score, threshold in reached if score >= threshold)
        labels = several if self.problem_type == "multi_label_classification" else (self.labels[best],)
        return Classification(self.labels[best], float(scores[best]), named, labels)
