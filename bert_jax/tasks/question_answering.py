"""Questions, each with a context -> the stretch of the context that answers it, or no answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bert_jax.data.batching import PackedBatch
from bert_jax.data.finetuning import Encoded, Item, per_sequence, portions
from bert_jax.data.layout import Layout, read_windows
from bert_jax.data.records import Record, labels_of
from bert_jax.inference import Answer, Answerer
from bert_jax.pretrained import Model
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.split import Predicted, Predictions, Split
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task
from bert_jax.training import losses
from bert_jax.training.losses import Sum
from bert_jax.tuned import Tuned

Candidates = tuple[list[Answer], float]  # the best first, and the logit of no answer


class QuestionAnswering(Kind):
    """An answer within the context. A prediction is its candidates, and the logit of no answer."""

    name = "question_answering"
    head = "question_answering"
    options = frozenset(["null_threshold"])
    reads_windows = True

    # ---- training

    def encode(
        self, records: Sequence[Record], labels: Sequence[str], layout: Layout, limit: int, read: Callable[[str], str] = str,
        stride: int = 128,
    ) -> Encoded:  # fmt: skip
        """Tokenizes windows; the target is the first and last token of the first answer, or [CLS] where the window lacks it."""
        limit = min(limit, layout.cfg.max_length)
        rows = [row for portion in portions(records, read) for row in portion]
        reading = read_windows(
            layout, [(question, context) for (question, context), _ in rows], limit, stride, layout.longest_question(limit)
        )
        spans = [_token_span(label, reading.contexts[i].offsets) for i, (_, label) in enumerate(rows)]
        items = []
        for window, example in zip(reading.windows, reading.examples, strict=True):
            first, last = spans[window.text]
            before = layout.before([reading.questions[window.text], reading.contexts[window.text].ids])
            inside = window.start <= first and last < window.stop
            target = np.array([first, last], np.int32) - window.start + before if inside else np.zeros(2, np.int32)
            items.append(Item((example,), target.astype(np.int32)))
        return Encoded(items, reading.long_questions, reading.windows, reading)

    def targets(self, items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
        return per_sequence(items, packed, count, shifted=True)

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], options: Options, model: Model) -> dict[str, Sum]:
        starts, ends = outputs["start_logits"], outputs["end_logits"]
        return {"span_loss": losses.span_cross_entropy(starts, ends, batch["sequence_ids"], batch["labels"], batch["weights"])}

    # ---- evaluation

    def adapt(self, model: Model, limit: int, task: Task, splits: Splits, options: Options) -> tuple[Model, list[str]]:
        """Returns the model with a threshold of 0, as run_squad.py's, where it has none, none is tuned, and one is needed."""
        if splits.dev or options.null_threshold is not None or model.tuned.null_threshold is not None:
            return model, []
        if task.name != "squad2" and all(label != () for records in splits.test.values() for label in labels_of(records)):
            return model, []
        tuned = dataclasses.replace(model.tuned, null_threshold=0.0)
        note = "the model has no threshold of its own for no answer: it is 0 (--null-threshold)"
        return dataclasses.replace(model, tuned=tuned), [note]

    def predictor(self, model: Model, limit: int) -> Callable[[Split, Any], Predictions]:
        answerer = Answerer(model, max_length=limit)

        def predict(split: Split, params: Any) -> Predictions:
            results = answerer.run(split.encoded.sequences, params)
            assert split.encoded.reading is not None
            return Predictions(answerer.candidates(split.encoded.reading, results), _loss(split, results))

        return predict

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions:
        return Predictions([([], 0.0)] * len(records), loss=0.0)

    def tune(self, dev: Predicted) -> Tuned:
        """Returns the thresholds with the best one for no answer, where some question has none."""
        if dev.tuned.null_threshold is not None or all(dev.right):
            return dev.tuned
        golds = {number: [text for text, _ in label] for number, label in enumerate(dev.right)}
        texts, odds = zip(*(best_answer(*candidates) for candidates in dev.values), strict=True)
        best, _ = scoring.best_null_threshold(dict(enumerate(texts)), dict(enumerate(odds)), golds)
        return dataclasses.replace(dev.tuned, null_threshold=best)

    def scores(self, predicted: Predicted, metrics: Sequence[str]) -> dict[str, float]:
        golds = {record.id: [text for text, _ in record.label] for record in predicted.records}
        threshold = predicted.tuned.null_threshold
        scores = scoring.squad_scores(answers(predicted)[0], golds)
        return scores | ({} if threshold is None else {"null_threshold": threshold})

    def baseline(
        self, train: Sequence[Record], dev: Sequence[Sequence[Record]], labels: Sequence[str], metrics: Sequence[str]
    ) -> float | None:
        """Returns the score of answering no question."""
        return float(np.mean([np.mean([not label for label in labels_of(records)]) for records in dev]))


def best_answer(found: list[Answer], null: float) -> tuple[str, float]:
    """Returns the best answer ("" where there is none), and how much likelier no answer is: the difference of their logits."""
    return (found[0].text, null - found[0].logit) if found else ("", 1e9)


def answers(predicted: Predicted) -> tuple[dict[str, str], dict[str, float]]:
    """Returns the answer to each question by id, and how much likelier no answer is than the best one.

    An answer is empty where that exceeds the threshold; without a threshold only where there is no candidate.
    """
    texts, odds, threshold = dict[str, str](), dict[str, float](), predicted.tuned.null_threshold
    for record, candidates in zip(predicted.records, predicted.values, strict=True):
        text, odds[record.id] = best_answer(*candidates)
        texts[record.id] = "" if threshold is not None and odds[record.id] > threshold else text
    return texts, odds


def _token_span(label: Any, offsets: np.ndarray) -> tuple[int, int]:
    """Returns the first and last token of the first answer; (-1, -1) where there is none."""
    if not label or not len(offsets):
        return -1, -1
    text, start = label[0]
    touching = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
    return (int(touching[0]), int(touching[-1])) if len(touching) else (-1, -1)


def _loss(split: Split, results: Sequence[dict[str, np.ndarray]]) -> float | None:
    """Returns the mean loss of the first and last token of an answer in each window, [CLS] where the window has none."""
    each = [
        scoring.nats(np.array([found["start"], found["end"]]), item.target)
        for found, item, window in zip(results, split.encoded.items, split.encoded.windows, strict=True)
        if split.records[window.text].label is not None
    ]
    return float(np.mean(each)) if each else None
