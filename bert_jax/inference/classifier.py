"""Predicts the classes of texts and pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.data.layout import Text
from bert_jax.inference.predictor import Predictor, as_list
from bert_jax.model.heads import TORCH_ACTIVATIONS
from bert_jax.modules import activation_name
from bert_jax.pretrained import Model, ProblemType

ACTIVATIONS = {**TORCH_ACTIVATIONS, "Softmax": jax.nn.softmax}


class Classification(NamedTuple):
    """The classification of a text.

    Attributes:
      label: the most probable class; for regression the name of the value.
      score: its probability; for regression the value.
      scores: the scores of all classes.
      labels: with several labels per text, those whose probability reaches the threshold; otherwise `label` alone.
    """

    label: str
    score: float
    scores: dict[str, float]
    labels: tuple[str, ...]


def _distinct(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers labels of the same name, which would be one key of a dict.

    >>> _distinct(("a", "b", "a"))
    ('a (0)', 'b', 'a (2)')
    """
    numbered = tuple(f"{name} ({i})" if labels.count(name) > 1 else name for i, name in enumerate(labels))
    return numbered if len(set(numbered)) == len(numbered) else tuple(f"{name} ({i})" for i, name in enumerate(labels))


def meaning(model: Model, labels: int) -> tuple[ProblemType, str]:
    """Returns the problem type of logits of `labels` classes, and the activation that turns them into scores.

    A single value goes through the activation in sentence-transformers' files. Without one, it is unchanged where config.json has
    the problem type "regression", and a probability otherwise, as in transformers and sentence-transformers.
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
    """Returns classes of texts or pairs of texts, probabilities of several labels, or a value (regression, cross-encoders).

    Scores of several classes are probabilities, also where sentence-transformers' CrossEncoder returns logits (Identity). A head
    with one value gives its sigmoid, as CrossEncoder and transformers' pipelines do, and the value itself for the `problem_type`
    "regression".
    """

    needs = ("sequence_classification", "next_sentence", "pretraining")

    def __init__(
        self, model: Model, threshold: float | None = None, *, max_length: int | None = None, exact: bool = False
    ) -> None:
        """Prepares the predictor.

        Args:
          model: a model with a sequence-classification head, or a pretraining head for pairs of sentences.
          threshold: minimum probability of a label, if a text may have several; default: the best for each label on
            the dev set of fine-tuning, else 0.5.
          max_length: as for `Predictor`.
          exact: as for `Predictor`.
        """
        super().__init__(model, exact, max_length)
        in_order = ("in_order", "swapped") if model.config.model_type == "albert" else ("is_next", "random")
        self.labels = _distinct(model.labels or (("LABEL_0",) if model.head == "sequence_classification" else in_order))
        self.problem_type, self._activation = meaning(model, len(self.labels))
        tuned = model.tuned.label_thresholds if threshold is None else ()
        self.thresholds = tuned or (0.5 if threshold is None else threshold,) * len(self.labels)

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        batch["cls_positions"] = batch.pop("places")
        outputs = self.model.apply(params, batch, head_only=True)  # a pretraining head reads every token anyway
        logits = outputs["logits"] if self.model.head == "sequence_classification" else outputs["next_sentence_logits"]
        return {"scores": ACTIVATIONS[self._activation](logits)}

    def __call__(self, texts: Sequence[Text]) -> list[Classification]:
        """Classifies each text, or tuple of two texts. Cuts texts that are too long, with a warning."""
        return [self._classification(result["scores"][0]) for result in self.run(self._encode(as_list(texts)))]

    def _classification(self, scores: np.ndarray) -> Classification:
        best = int(np.argmax(scores))
        named = {name: float(score) for name, score in zip(self.labels, scores, strict=True)}
        reached = zip(self.labels, scores.tolist(), self.thresholds, strict=True)
        several = tuple(name for name, score, threshold in reached if score >= threshold)
        labels = several if self.problem_type == "multi_label_classification" else (self.labels[best],)
        return Classification(self.labels[best], float(scores[best]), named, labels)
