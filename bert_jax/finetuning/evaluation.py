"""Predictions and scores of a split, for any parameters: what fine-tuning is judged by."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from bert_jax.config import InputError
from bert_jax.data.finetuning import Encoded
from bert_jax.data.layout import Layout, most_context
from bert_jax.data.tasks import Record, Task
from bert_jax.inference import Answer, Answerer, Embedder, Predictor, nearest
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model
from bert_jax.training import task_metrics

Candidates = tuple[list[Answer], float]


@dataclass(frozen=True)
class Split:
    """Some examples, as read and as encoded."""

    name: str
    records: list[Record]
    encoded: Encoded

    @property
    def labelled(self) -> bool:
        """Whether all have a label."""
        return all(record.label is not None for record in self.records)


class _Logits(Predictor):
    """The head's logits of each sequence."""

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        batch["cls_positions"] = batch.pop("places")
        return {"logits": self.model.apply(params, batch, head_only=True)["logits"]}


class _TokenLogits(Predictor):
    """The head's logits of each token."""

    per_token = frozenset(["logits"])

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        del batch["places"]
        return {"logits": self.model.apply(params, batch)["logits"]}


class Evaluator:
    """Predicts splits of one task and scores what it predicted.

    Args:
      task: its kind decides what is predicted.
      model: configuration, tokenizer, head and labels; its parameters are not used.
      limit: tokens of a sequence.
      null_threshold: question_answering: see FinetuneConfig.
    """

    def __init__(self, task: Task, model: Model, limit: int, null_threshold: float | None = None) -> None:
        self.task, self.labels, self._null_threshold = task, model.labels, null_threshold
        model, limit = dataclasses.replace(model, params={}), min(limit, model.config.max_length)
        self._predictor: Predictor
        if task.kind == "question_answering":
            assert model.tokenizer is not None
            longest = Layout(model.tokenizer, model.config).longest_question(limit)
            self._predictor = Answerer(model, max_length=limit, max_question_length=longest)
        elif task.kind == "similarity":
            assert isinstance(model.pooling, Pooling)
            self._predictor = Embedder(model, dataclasses.replace(model.pooling, max_length=None))  # `limit` has cut them
        else:
            self._predictor = (_TokenLogits if task.kind == "tagging" else _Logits)(model)

    def predict(self, split: Split, params: Any) -> list[Any]:
        """A prediction for each record, in order. `params` are NumPy's or on one device, where predictions run.

        classification, multi_label, multiple_choice: float32 logits [C]; regression: a float; tagging: a tag a word;
        question_answering: (answers, logit of no answer); similarity: float32 vectors [k, D] of its k texts.
        """
        if split.encoded.reading is not None:
            assert isinstance(self._predictor, Answerer)
            return self._predictor.candidates(split.encoded.reading, params)
        sequences = [sequence for item in split.encoded.items for sequence in item.sequences]
        results = self._predictor.run(sequences, params)
        if self.task.kind == "tagging":
            return self._tags(split, [result["logits"] for result in results])
        (name,) = results[0] if results else ("logits",)
        values = iter([result[name][0] for result in results])
        grouped = [np.array([next(values) for _ in item.sequences]) for item in split.encoded.items]
        if self.task.kind == "regression":
            return [float(group[0, 0]) for group in grouped]
        return grouped if self.task.kind in ("multiple_choice", "similarity") else [group[0] for group in grouped]

    def _tags(self, split: Split, logits: Sequence[np.ndarray]) -> list[list[str]]:
        """The tag of each word's first token, from the window that it has most context in; O for words without tokens."""
        windows, tags = split.encoded.windows, []
        outside = "O" if "O" in self.labels else self.labels[0]
        of_text: list[list[int]] = [[] for _ in split.records]
        for number, window in enumerate(windows):
            of_text[window.text].append(number)
        for numbers, first in zip(of_text, split.encoded.first_tokens, strict=True):
            home = most_context([windows[n] for n in numbers], windows[numbers[-1]].stop)
            best = [logits[n][1:-1].argmax(axis=-1) for n in numbers]
            picked = [
                outside if token < 0 else self.labels[best[w := int(home[token])][token - windows[numbers[w]].start]]
                for token in first
            ]
            tags.append(picked)
        return tags

    def scores(self, split: Split, predicted: Sequence[Any]) -> dict[str, float]:
        """The task's metrics; `loss` too for classes and values. Every example counts once.

        Tags that are not of entities (B-, I-, ...) have `tag_accuracy` alone. Raises InputError where an example has no label.
        """
        missing = next((record for record in split.records if record.label is None), None)
        if missing is not None and self.task.kind != "similarity":
            raise InputError(f"{missing.place} has no label: {split.name} cannot be scored")
        if len(predicted) != len(split.records):
            raise AssertionError(f"{len(predicted)} predictions of {len(split.records)} examples")
        if self.task.kind == "question_answering":
            return self._answer_scores(split, predicted)
        return (self._similarity_scores if self.task.kind == "similarity" else self._label_scores)(split, predicted)

    def _label_scores(self, split: Split, predicted: Sequence[Any]) -> dict[str, float]:
        kind, labels = self.task.kind, [record.label for record in split.records]
        if kind == "tagging":
            names = (*self.task.metrics, "entity_precision", "entity_recall") if self._of_entities else ("tag_accuracy",)
            return {name: task_metrics.METRICS[name](predicted, labels) for name in names}
        if kind == "regression":
            guessed, right = np.array(predicted), np.array(labels)
            loss = (guessed - right) ** 2
        elif kind == "multi_label":
            logits, right = np.array(predicted), np.array([[int(name in label) for name in self.labels] for label in labels])
            guessed, loss = (logits >= 0).astype(int), np.logaddexp(0, logits) - logits * right
        else:
            logits = np.array(predicted)
            right = np.array([self.labels.index(label) for label in labels] if kind == "classification" else labels)
            guessed, loss = logits.argmax(axis=-1), np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(right)), right]
        scores = {name: task_metrics.METRICS[name](guessed, right) for name in self.task.metrics}
        return scores | {"loss": float(np.mean(loss))}

    @cached_property
    def _of_entities(self) -> bool:
        try:
            task_metrics.entities(self.labels)
        except InputError:  # a tag of another form
            return False
        return True

    def _answer_scores(self, split: Split, predicted: Sequence[Candidates]) -> dict[str, float]:
        golds = {record.id: [text for text, _ in record.label] for record in split.records}
        texts, odds = self.answers(split, predicted)
        if all(golds.values()):
            return task_metrics.squad_scores(texts, golds)
        threshold = self._null_threshold
        if threshold is None:
            threshold, _ = task_metrics.best_null_threshold(texts, odds, golds)
        answered = {id: "" if odds[id] > threshold else text for id, text in texts.items()}
        return task_metrics.squad_scores(answered, golds) | {"null_threshold": threshold}

    @staticmethod
    def answers(split: Split, predicted: Sequence[Candidates]) -> tuple[dict[str, str], dict[str, float]]:
        """By id: the best answer that is not empty, and how much likelier no answer is (the difference of logits)."""
        texts, odds = {}, {}
        for record, (answers, null) in zip(split.records, predicted, strict=True):
            texts[record.id] = answers[0].text if answers else ""
            odds[record.id] = null - answers[0].logit if answers else 1e9
        return texts, odds

    def _similarity_scores(self, split: Split, predicted: Sequence[np.ndarray]) -> dict[str, float]:
        """Pairs with a score: correlations of their cosines. Without: where each text's own partner ranks among all partners."""
        anchors, partners = (np.array([vectors[i] for vectors in predicted]) for i in (0, 1))
        anchors, partners = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (anchors, partners))
        if split.labelled:
            cosines, labels = (anchors * partners).sum(axis=-1), [record.label for record in split.records]
            return {name: task_metrics.METRICS[name](cosines, labels) for name in ("spearman", "pearson")}
        own = [record.texts[1] for record in split.records]
        _, found = nearest(anchors, partners, 10)
        ranked = [[float(own[j] == own[i]) for j in row] for i, row in enumerate(found.tolist())]
        times = Counter(own)  # a partner of several anchors is right for each of them, wherever it stands
        judged = [[1.0] * times[text] for text in own]
        return {"ndcg_at_10": task_metrics.ndcg_at_10(ranked, judged), "mrr_at_10": task_metrics.mrr_at_10(ranked, judged)}

    def main_score(self, scores: dict[str, float], metric: str | None) -> float:
        """What checkpoints are compared by: `metric` (a loss is negated), else the mean of the task's metrics."""
        if metric is None:
            names = [name for name in self.task.metrics if name in scores] or list(scores)[:1]
            return float(np.mean([scores[name] for name in names]))
        if metric not in scores:
            raise InputError(f"--metric {metric} is not among this task's: {', '.join(scores)}")
        return -scores[metric] if metric == "loss" else scores[metric]
