"""Predictions and scores of a split, for any parameters: what fine-tuning is judged by."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from bert_jax.config import InputError
from bert_jax.data import tags
from bert_jax.data.finetuning import IGNORED, Encoded, Items
from bert_jax.data.layout import Layout, most_context
from bert_jax.data.records import Record, labels_of, take
from bert_jax.inference import Answer, Answerer, Classifier, Embedder, Predictor, nearest
from bert_jax.pooling import Pooling
from bert_jax.pretrained import Model
from bert_jax.tasks.task import Task
from bert_jax.training import task_metrics
from bert_jax.tuned import Tuned

Candidates = tuple[list[Answer], float]


@dataclass(frozen=True)
class Split:
    """Some examples, as read and as encoded."""

    name: str
    records: Sequence[Record]
    encoded: Encoded

    @property
    def labelled(self) -> int:
        """How many have a label: those that are scored."""
        return sum(label is not None for label in labels_of(self.records))

    def of_labelled(self, predicted: Sequence[Any]) -> tuple[Split, Sequence[Any]]:
        """The records that have a label, with what was predicted of them; all where none has one. `encoded` stays whole."""
        if self.labelled in (0, len(self.records)):
            return self, predicted
        own = [i for i, label in enumerate(labels_of(self.records)) if label is not None]
        return dataclasses.replace(self, records=take(self.records, own)), [predicted[i] for i in own]


class Predictions(list[Any]):
    """One for each record, in order, and the mean loss where it can not be told from them (tagging, question_answering)."""

    def __init__(self, each: Iterable[Any], loss: float | None = None) -> None:
        super().__init__(each)
        self.loss = loss


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


def _best_answer(answers: list[Answer], null: float) -> tuple[str, float]:
    """The best that is not empty ("" where there is none), and how much likelier no answer is."""
    return (answers[0].text, null - answers[0].logit) if answers else ("", 1e9)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Of labels that go together or not, each by itself: logistic, in the type of `logits`."""
    return np.exp(-np.logaddexp(0, -logits))


def has_labels(logits: np.ndarray, tuned: Tuned) -> np.ndarray:
    """Which labels texts have, by their logits [N, C]: bool [N, C]."""
    return probabilities(logits) >= (tuned.label_thresholds or 0.5)


def _nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of targets [N] by logits [N, C]."""
    logits = logits.astype(np.float64)
    return np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(targets)), targets]


def _tag_loss(split: Split, logits: Sequence[np.ndarray]) -> float | None:
    """Of a word, in the window that it is labelled in."""
    each = [
        _nats(own[item.target != IGNORED], item.target[item.target != IGNORED])
        for own, item in zip(logits, split.encoded.items, strict=True)
    ]
    return float(np.mean(np.concatenate(each))) if any(map(np.size, each)) else None  # no word of a text without tags counts


def _span_loss(split: Split, results: Sequence[dict[str, np.ndarray]]) -> float | None:
    """Of the first and last token of an answer, in each window; [CLS] where the window has none."""
    each = [
        _nats(np.array([found["start"], found["end"]]), item.target)
        for found, item, window in zip(results, split.encoded.items, split.encoded.windows, strict=True)
        if split.records[window.text].label is not None
    ]
    return float(np.mean(each)) if each else None


def judged(
    task: Task, labels: Sequence[str], split: Split, predicted: Sequence[Any], tuned: Tuned
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class its probability, whether it was given, and whether it is right: [N, C] each.

    For classification, multi_label and multiple_choice, and splits that are labelled.
    """
    logits, right = np.array(predicted, np.float64), labels_of(split.records)
    if task.kind == "multi_label":
        logits = logits.reshape(-1, len(labels))
        has = np.array([[name in own for name in labels] for own in right], bool).reshape(logits.shape)
        return probabilities(logits), has_labels(np.array(predicted).reshape(logits.shape), tuned), has
    ids = np.array([labels.index(label) for label in right] if task.kind == "classification" else right)
    classes = np.arange(logits.shape[1])
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    return shares, logits.argmax(axis=-1)[:, None] == classes, ids[:, None] == classes


def _each_tag(predicted: Sequence[Any], right: Sequence[Any], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support: of each type of entity, or of each tag where tags are no entities."""
    read = tags.entity_tags(labels)
    if read is not None:
        return task_metrics.entity_report(*([[read[tag] for tag in sentence] for sentence in of] for of in (predicted, right)))
    pairs = Counter(pair for both in zip(predicted, right, strict=True) for pair in zip(*both, strict=True))
    ours, theirs = Counter[str](), Counter[str]()
    for (guessed, tag), count in pairs.items():
        ours[guessed] += count
        theirs[tag] += count
    return {tag: _rates(pairs[tag, tag], ours[tag], theirs[tag]) for tag in labels if ours[tag] or theirs[tag]}


def _rates(hits: int, ours: int, theirs: int) -> dict[str, float]:
    """Of `hits` among `ours`, which were predicted, and `theirs`, which are right."""
    rates = {"precision": hits / max(1, ours), "recall": hits / max(1, theirs), "f1": 2 * hits / max(1, ours + theirs)}
    return {**rates, "support": theirs}


def details(task: Task, labels: Sequence[str], split: Split, predicted: Sequence[Any], tuned: Tuned) -> dict[str, Any]:
    """What there is to say of a labelled split beside its scores, for results.json and the report.

    `classes`: {label: {precision, recall, f1, support, ...}} (classification, multi_label; tagging: of each type of entity, or of
    each tag where tags are no entities); `calibration`: see task_metrics (not of tagging, but of multiple_choice): of the class
    that is given, or of every label of every text. Nothing where no row has a label.
    """
    if task.kind not in ("classification", "multi_label", "multiple_choice", "tagging") or not split.labelled:
        return {}
    split, predicted = split.of_labelled(predicted)
    if task.kind == "tagging":
        each = _each_tag(predicted, labels_of(split.records), labels)
        return {"classes": dict(sorted(each.items(), key=lambda item: -item[1]["support"]))}
    shares, given, right = judged(task, labels, split, predicted, tuned)
    if task.kind == "multi_label":
        thresholds = tuned.label_thresholds or (0.5,) * len(labels)
        classes = task_metrics.class_report(given, right, shares, labels, thresholds)
        return {"classes": classes, "calibration": task_metrics.calibration(shares.ravel(), right.ravel())}
    found = {"calibration": task_metrics.calibration(shares.max(axis=-1), (given & right).any(axis=-1))}
    return {"classes": task_metrics.class_report(given, right, shares, labels), **found} if labels else found


class Evaluator:
    """Predicts splits of one task and scores what it predicted.

    Args:
      task: its kind decides what is predicted.
      model: configuration, tokenizer, head and labels; its parameters are not used.
      limit: tokens of a sequence.
      null_threshold, label_threshold: see FinetuneConfig.

    `tuned` is what predictors have to know of it, the thresholds that are given among it.
    """

    def __init__(
        self, task: Task, model: Model, limit: int, null_threshold: float | None = None, label_threshold: float | None = None
    ) -> None:
        limit = min(limit, model.config.max_length)
        given = () if label_threshold is None or task.kind != "multi_label" else (label_threshold,) * len(model.labels)
        self.tuned = Tuned(task.name, limit, null_threshold, given)
        self.task, self.labels = task, model.labels
        model = dataclasses.replace(model, params={}, tuned=self.tuned)
        self._before = len(model.tokenizer.single.ids[0]) if model.tokenizer else 0  # special tokens
        self._predictor: Predictor
        if task.kind == "question_answering":
            assert model.tokenizer is not None
            longest = Layout(model.tokenizer, model.config).longest_question(limit)
            self._predictor = Answerer(model, max_length=limit, max_question_length=longest)
        elif task.kind == "similarity":
            assert isinstance(model.pooling, Pooling)
            self._predictor = Embedder(model, dataclasses.replace(model.pooling, max_length=None))  # `limit` has cut them
        elif task.kind == "regression":
            self._predictor = Classifier(model)  # which knows what the value goes through
        else:
            self._predictor = (_TokenLogits if task.kind == "tagging" else _Logits)(model)

    def predict(self, split: Split, params: Any) -> Predictions:
        """A prediction for each record, in order. `params` are NumPy's or on one device, where predictions run.

        classification, multi_label, multiple_choice: float32 logits [C]; regression: a float; tagging: a tag a word;
        question_answering: (answers, logit of no answer); similarity: float32 vectors [k, D] of its k texts.
        """
        items = split.encoded.items
        sequences = items.sequences if isinstance(items, Items) else [x for item in items for x in item.sequences]
        results = self._predictor.run(sequences, params)
        if split.encoded.reading is not None:
            assert isinstance(self._predictor, Answerer)
            return Predictions(self._predictor.candidates(split.encoded.reading, results), _span_loss(split, results))
        if self.task.kind == "tagging":
            logits = [result["logits"] for result in results]
            return Predictions(self._tags(split, logits), _tag_loss(split, logits))
        (name,) = results[0] if results else ("logits",)
        values = np.array([result[name][0] for result in results])  # one array, and views of it, take less than an array each
        del results
        if self.task.kind == "regression":
            return Predictions(float(value[0]) for value in values)
        if self.task.kind not in ("multiple_choice", "similarity"):
            return Predictions(values)
        counts = [len(item.sequences) for item in items]
        return Predictions(np.split(values, np.cumsum(counts)[:-1]) if counts else [])

    def _tags(self, split: Split, logits: Sequence[np.ndarray]) -> list[list[str]]:
        """The tag of each word's first token, from the window that it has most context in; O for words without tokens."""
        windows, found = split.encoded.windows, []
        outside = "O" if "O" in self.labels else self.labels[0]
        of_text: list[list[int]] = [[] for _ in split.records]
        for number, window in enumerate(windows):
            of_text[window.text].append(number)
        for numbers, first in zip(of_text, split.encoded.first_tokens, strict=True):
            home = most_context([windows[n] for n in numbers], windows[numbers[-1]].stop)
            best = [logits[n][self._before :].argmax(axis=-1) for n in numbers]  # also behind the text
            picked = [
                outside if token < 0 else self.labels[best[w := int(home[token])][token - windows[numbers[w]].start]]
                for token in first
            ]
            found.append(picked)
        return found

    def tune(self, splits: Sequence[Split], predicted: Mapping[str, Sequence[Any]]) -> Tuned:
        """`tuned` with the thresholds that are best on `splits`, the dev sets, where none were given.

        A threshold of no answer where some question has none; of each label that has some rows, by F1.
        """
        tuned, pairs = self.tuned, [(r, p) for s in splits for r, p in zip(s.records, predicted[s.name], strict=True)]
        pairs = [pair for pair in pairs if pair[0].label is not None]
        if self.task.kind == "question_answering" and tuned.null_threshold is None and not all(r.label for r, _ in pairs):
            golds = {number: [text for text, _ in record.label] for number, (record, _) in enumerate(pairs)}
            texts, odds = zip(*(_best_answer(*candidates) for _, candidates in pairs), strict=True)
            best, _ = task_metrics.best_null_threshold(dict(enumerate(texts)), dict(enumerate(odds)), golds)
            return dataclasses.replace(tuned, null_threshold=best)
        if self.task.kind == "multi_label" and not tuned.label_thresholds and pairs:
            shares = probabilities(np.array([logits for _, logits in pairs]))
            right = np.array([[name in record.label for name in self.labels] for record, _ in pairs])
            best_each = [task_metrics.best_label_threshold(*columns) for columns in zip(shares.T, right.T, strict=True)]
            return dataclasses.replace(tuned, label_thresholds=tuple(best_each))
        return tuned

    def scores(self, split: Split, predicted: Sequence[Any], tuned: Tuned | None = None) -> dict[str, float]:
        """The task's metrics; `loss` too, but for similarity. Every example counts once, where only some have a label those.

        `tuned` has the thresholds; default: those that are best on this split, as it should be for dev sets alone.
        Tags that are no entities (see `tags.entity_tags`) have `tag_accuracy` alone, types without letters (B-, I-, ...) as well.
        Raises InputError where no example has a label.
        """
        if not split.labelled and self.task.kind != "similarity":
            raise InputError(f"{split.records[0].place} has no label, as all rows: {split.name} cannot be scored")
        if len(predicted) != len(split.records):
            raise AssertionError(f"{len(predicted)} predictions of {len(split.records)} examples")
        loss = predicted.loss if isinstance(predicted, Predictions) else None
        split, predicted = split.of_labelled(predicted)
        if self.task.kind == "similarity":
            return self._similarity_scores(split, predicted)
        tuned = tuned or self.tune([split], {split.name: predicted})
        of_kind = self._answer_scores if self.task.kind == "question_answering" else self._label_scores
        return of_kind(split, predicted, tuned) | ({} if loss is None else {"loss": loss})

    def _label_scores(self, split: Split, predicted: Sequence[Any], tuned: Tuned) -> dict[str, float]:
        kind, labels = self.task.kind, labels_of(split.records)
        if kind == "tagging":
            return self._tag_scores(predicted, labels)
        if kind == "regression":
            guessed, right = np.array(predicted), np.array(labels)
            loss = (guessed - right) ** 2
        elif kind == "multi_label":
            logits, right = np.array(predicted), np.array([[int(name in label) for name in self.labels] for label in labels])
            guessed = has_labels(logits, tuned).astype(int)
            loss = np.logaddexp(0, logits) - logits * right
        else:
            logits = np.array(predicted)
            right = np.array([self.labels.index(label) for label in labels] if kind == "classification" else labels)
            guessed, loss = logits.argmax(axis=-1), _nats(logits, right)
        scores = {name: task_metrics.METRICS[name](guessed, right) for name in self.task.metrics}
        if kind == "classification":
            scores["matthews_correlation"] = task_metrics.matthews_correlation(guessed, right)
        if kind in ("classification", "multi_label"):
            shares, _, has = judged(self.task, self.labels, split, predicted, tuned)
            area = task_metrics.macro_roc_auc(shares, has)
            scores |= {} if area is None else {"roc_auc": area}
        return scores | {"loss": float(np.mean(loss))}

    @cached_property
    def entity_tags(self) -> dict[str, str] | None:
        """tagging: the tags in the form that entities are read from; None where the tags are no entities."""
        return tags.entity_tags(self.labels)

    def _tag_scores(self, predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> dict[str, float]:
        read = self.entity_tags
        accuracy = {"tag_accuracy": task_metrics.tag_accuracy(predicted, right)}
        if read is None:
            return accuracy
        both = [[[read[tag] for tag in sentence] for sentence in of] for of in (predicted, right)]
        names = (*self.task.metrics, "entity_precision", "entity_recall")
        scores = {name: task_metrics.METRICS[name](*both) for name in names}
        return scores | (accuracy if tags.are_types(self.labels) else {})

    def _answer_scores(self, split: Split, predicted: Sequence[Candidates], tuned: Tuned) -> dict[str, float]:
        golds = {record.id: [text for text, _ in record.label] for record in split.records}
        threshold = tuned.null_threshold
        scores = task_metrics.squad_scores(self.answers(split, predicted, threshold)[0], golds)
        return scores | ({} if threshold is None else {"null_threshold": threshold})

    @staticmethod
    def answers(
        split: Split, predicted: Sequence[Candidates], threshold: float | None = None
    ) -> tuple[dict[str, str], dict[str, float]]:
        """By id: the answer, and how much likelier no answer is than the best (the difference of logits).

        The answer is empty where that is above the threshold; None: only where there is no candidate.
        """
        texts, odds = {}, {}
        for record, candidates in zip(split.records, predicted, strict=True):
            text, odds[record.id] = _best_answer(*candidates)
            texts[record.id] = "" if threshold is not None and odds[record.id] > threshold else text
        return texts, odds

    def _similarity_scores(self, split: Split, predicted: Sequence[np.ndarray]) -> dict[str, float]:
        """Pairs with a score: correlations of their cosines. Without: where each text's own partner ranks among all partners."""
        anchors, partners = (np.array([vectors[i] for vectors in predicted]) for i in (0, 1))
        anchors, partners = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (anchors, partners))
        if split.labelled:
            cosines, labels = (anchors * partners).sum(axis=-1), labels_of(split.records)
            return {name: task_metrics.METRICS[name](cosines, labels) for name in ("spearman", "pearson")}
        texts, own = ([record.texts[i] for record in split.records] for i in (0, 1))
        right: dict[str, set[str]] = {}  # all partners of an anchor are, wherever they stand, and each as often as it does
        for text, partner in zip(texts, own, strict=True):
            right.setdefault(text, set()).add(partner)
        times, (_, found) = Counter(own), nearest(anchors, partners, 10)
        ranked = [[float(own[j] in right[text]) for j in row] for text, row in zip(texts, found.tolist(), strict=True)]
        judged = [[1.0] * sum(times[partner] for partner in right[text]) for text in texts]
        return {"ndcg_at_10": task_metrics.ndcg_at_10(ranked, judged), "mrr_at_10": task_metrics.mrr_at_10(ranked, judged)}

    def main_score(self, scores: dict[str, float], metric: str | None) -> float:
        """What checkpoints are compared by: `metric` (a loss is negated), else the mean of the task's metrics."""
        if metric is None:
            names = [name for name in self.task.metrics if name in scores] or list(scores)[:1]
            return float(np.mean([scores[name] for name in names]))
        if metric not in scores:
            raise InputError(f"--metric {metric} is not among this task's: {', '.join(scores)}")
        return -scores[metric] if metric == "loss" else scores[metric]
