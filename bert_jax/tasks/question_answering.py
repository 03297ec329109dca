"""The kind for questions, each with a context: the span of the context that answers it, or no answer."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Hashable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.data import files
from bert_jax.data.batching import PackedBatch
from bert_jax.data.files import Table
from bert_jax.data.finetuning import Encoded, Item, per_sequence, portions
from bert_jax.data.layout import Layout, read_windows
from bert_jax.data.records import Record, labels_of
from bert_jax.disk import write_json
from bert_jax.errors import InputError
from bert_jax.inference import Answer, Answerer
from bert_jax.pretrained import Model
from bert_jax.tasks import metrics as scoring
from bert_jax.tasks.figures import MOST_ROWS, Figure, Listing, Matrix, Nothing, RecordId, Text
from bert_jax.tasks.kind import Kind, Predict
from bert_jax.tasks.labels import LabelReader, few
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.parsing import File, Noted
from bert_jax.tasks.split import Predicted, Predictions, Split
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task, TaskData
from bert_jax.training import losses
from bert_jax.training.losses import Sum
from bert_jax.training.steps import Batch
from bert_jax.tuned import Tuned

Candidates = tuple[list[Answer], float]  # the best first, and the logit of no answer
Answers = tuple[tuple[str, int], ...]  # text and first character


class QuestionAnswering(Kind[Answers, Candidates]):
    """An answer in the context. A prediction is the candidates and the logit of no answer."""

    name = "question_answering"
    head = "question_answering"
    options = frozenset(["null_threshold"])
    reads_windows = True
    num_texts = (2, 2)
    usual_texts = (("question", "context"),)
    usual_labels = ("answers",)
    unique_ids = True
    shared_texts = True
    unit = "contexts"
    leaked = "questions have a context that is"

    def usual_ids(self, task: Task, columns: Sequence[str]) -> Sequence[str]:
        return ("id",)

    def open(self, path: str, task: Task, data: TaskData, hasher: files.Hasher) -> tuple[Table, TaskData]:
        if files.suffix_of(path) == ".json":
            return files.read_squad(path, hasher), data
        return super().open(path, task, data, hasher)

    def read_label(self, reader: LabelReader, value: object, place: str) -> Answers | None:
        """Reads SQuAD's list of {text, answer_start}, or the two lists of TFDS and Hugging Face datasets."""
        if value is None:
            return None
        try:
            if isinstance(value, dict):
                pairs = tuple(zip(value["text"], value["answer_start"], strict=True))
            else:
                pairs = tuple((answer["text"], answer["answer_start"]) for answer in value)  # type: ignore[attr-defined]
        except (KeyError, TypeError, ValueError):
            pairs = ((None, None),)
        if not all(isinstance(text, str) and isinstance(start, int) for text, start in pairs):
            raise InputError(f"{place}: answers are {reprlib.repr(value)}, not a list of {{text, answer_start}}")
        return pairs

    def checked(self, split: str, file: File, noted: Noted) -> tuple[Sequence[Record], list[str]]:
        """Leaves out answers that are not at their answer_start, and questions that lose all answers.

        An answer that occurs once in the context, at another place, is read from there.
        """
        kept, moved, wrong, lost = list[Record](), list[str](), list[str](), list[str]()
        for record in file.records:
            context, answers, good = record.texts[1], record.label or (), list[tuple[str, int]]()
            for text, start in answers:
                if text and start >= 0 and context.startswith(text, start):
                    good.append((text, start))
                elif text and (at := context.find(text)) >= 0 and at == context.rfind(text):
                    good.append((text, at))
                    moved.append(record.id)
                else:
                    wrong.append(record.id)
            if answers and not good:
                lost.append(record.id)
            else:
                kept.append(dataclasses.replace(record, label=tuple(good)) if answers else record)
        notes = [
            (moved, "answers are not at their answer_start, and are read from the only place where they occur"),
            (wrong, "answers left out that are not at their answer_start"),
            (lost, "questions left out that have no other answer"),
        ]
        return kept, [f"warning: {split}: {len(ids)} {why}: {few(ids)}" for ids, why in notes if ids]

    def content(self, texts: tuple[str, ...]) -> Hashable:
        return texts[1]

    def parts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return ()

    def values(self, label: Answers) -> tuple[Hashable, ...]:
        return ()

    def encode(self, records: Sequence[Record], labels: Sequence[str], layout: Layout, stride: int = 128) -> Encoded:
        """Tokenizes windows; the target is the first and last token of the first answer, or [CLS] where the window lacks it."""
        rows = [row for portion in portions(records, layout.read) for row in portion]
        pairs = [(question, context) for (question, context), _ in rows]
        reading = read_windows(layout, pairs, layout.longest, stride, layout.longest_question(layout.longest))
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

    def loss(self, outputs: dict[str, jax.Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        starts, ends = outputs["start_logits"], outputs["end_logits"]
        return {"span_loss": losses.span_cross_entropy(starts, ends, batch["sequence_ids"], batch["labels"], batch["weights"])}

    def adapt(self, model: Model, limit: int, task: Task, splits: Splits, options: Options) -> tuple[Model, list[str]]:
        """Returns the model with the threshold 0 of run_squad.py, where one is needed and there is none and none is tuned."""
        if splits.dev or options.null_threshold is not None or model.tuned.null_threshold is not None:
            return model, []
        if task.name != "squad2" and all(label != () for records in splits.test.values() for label in labels_of(records)):
            return model, []
        tuned = dataclasses.replace(model.tuned, null_threshold=0.0)
        note = "the model has no threshold for no answer: 0 is used (--null-threshold)"
        return dataclasses.replace(model, tuned=tuned), [note]

    def predictor(self, model: Model, limit: int) -> Predict[Candidates]:
        answerer = Answerer(model, max_length=limit)

        def predict(split: Split, params: PyTree) -> Predictions[Candidates]:
            results = answerer.run(split.encoded.sequences, params)
            assert split.encoded.reading is not None
            return Predictions(answerer.candidates(split.encoded.reading, results), _loss(split, results))

        return predict

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions[Candidates]:
        return Predictions([(list[Answer](), 0.0)] * len(records), loss=0.0)

    def tune(self, dev: Predicted[Candidates]) -> Tuned:
        """Returns `dev.tuned` with the best threshold for no answer, where some questions have none."""
        if dev.tuned.null_threshold is not None or all(dev.right):
            return dev.tuned
        golds = {number: [text for text, _ in label] for number, label in enumerate(dev.right)}
        texts, odds = zip(*(best_answer(*candidates) for candidates in dev.values), strict=True)
        best, _ = scoring.best_null_threshold(dict(enumerate(texts)), dict(enumerate(odds)), golds)
        return dataclasses.replace(dev.tuned, null_threshold=best)

    def scores(self, predicted: Predicted[Candidates], metrics: Sequence[str]) -> dict[str, float]:
        golds = {record.id: [text for text, _ in record.label] for record in predicted.records}
        threshold = predicted.tuned.null_threshold
        scores = scoring.squad_scores(answers(predicted)[0], golds)
        return scores | ({} if threshold is None else {"null_threshold": threshold})

    def baseline(self, splits: Splits, metrics: Sequence[str]) -> float | None:
        """Returns the score of answering no question."""
        return float(np.mean([np.mean([not label for label in labels_of(records)]) for records in splits.dev.values()]))

    def write(self, folder: Path, predicted: Predicted[Candidates]) -> Path:
        """Writes NAME.json (id -> answer), NAME.null_odds.json and NAME.nbest.json, as SQuAD's scripts read them."""
        name, n_best = predicted.split.name, {}
        texts, odds = answers(predicted)
        for record, (found, null) in zip(predicted.records, predicted.values, strict=True):
            logits = np.array([*(answer.logit for answer in found[:N_BEST]), null])
            rows = [{"text": a.text, "start": a.start, "logit": a.logit} for a in found[:N_BEST]] + [{"text": "", "logit": null}]
            shares, order = scoring.softmax(logits).tolist(), np.argsort(-logits, kind="stable")
            n_best[record.id] = [rows[i] | {"probability": shares[i]} for i in order]
        write_json(folder / f"{name}.null_odds.json", odds)
        write_json(folder / f"{name}.nbest.json", n_best)
        write_json(folder / f"{name}.json", texts)
        return folder / f"{name}.json"

    def mistakes(self, predicted: Predicted[Candidates], details: Details) -> list[Figure]:
        """Returns the worst answers and, where some questions have none, counts of given and right answers."""
        given, counts, rows = answers(predicted)[0], np.zeros((2, 2), int), []
        for record, (found, null) in zip(predicted.records, predicted.values, strict=True):
            golds, answer = list(dict.fromkeys(text for text, _ in record.label)), given[record.id]
            counts[int(not golds), int(not answer)] += 1
            f1 = scoring.squad_f1([answer], [golds])
            sure = float(scoring.softmax(np.array([*(each.logit for each in found), null]))[0 if answer else -1])
            start = record.label[0][1] if golds else found[0].start if found else 0
            text = (Text(record.texts[0], bold=True), Text(record.texts[1], start))
            shown = [tuple(map(Text, texts)) or Nothing() for texts in (golds, [answer] * bool(answer))]
            rows.append((f1, sure, [RecordId(record.id, record.place), text, *shown, f1, sure]))
        worst = sorted(rows, key=lambda row: (row[0], -row[1]))[:MOST_ROWS]
        caption = f"Worst answers, the most probable first; F1 is 0 for {sum(not f1 for f1, _, _ in rows):,} questions"
        header = ["id", "question and context", "right", "predicted", "F1", "probability"]
        table = Listing(caption, header, [cells for f1, _, cells in worst if f1 < 1])
        unanswerable = Matrix("Questions with and without an answer", ["answer", "none"], counts)
        return [unanswerable, table] if counts[1].any() else [table]


def best_answer(found: list[Answer], null: float) -> tuple[str, float]:
    """Returns the best answer ("" where there is none), and the lead of no answer over it in logits."""
    return (found[0].text, null - found[0].logit) if found else ("", 1e9)


def answers(predicted: Predicted[Candidates]) -> tuple[dict[str, str], dict[str, float]]:
    """Returns the answer to each question by id, and the lead of no answer over the best answer.

    An answer is empty where the lead exceeds the threshold; without a threshold, only where there is no candidate.
    """
    texts, odds, threshold = dict[str, str](), dict[str, float](), predicted.tuned.null_threshold
    for record, candidates in zip(predicted.records, predicted.values, strict=True):
        text, odds[record.id] = best_answer(*candidates)
        texts[record.id] = "" if threshold is not None and odds[record.id] > threshold else text
    return texts, odds


def _token_span(label: Answers | None, offsets: np.ndarray) -> tuple[int, int]:
    """Returns the first and last token of the first answer; (-1, -1) where there is none."""
    if not label or not len(offsets):
        return -1, -1
    text, start = label[0]
    touching = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
    return (int(touching[0]), int(touching[-1])) if len(touching) else (-1, -1)


def _loss(split: Split, results: Sequence[dict[str, np.ndarray]]) -> float | None:
    """Returns the mean loss of the first and last token of the answer in each window, [CLS] where it has none."""
    each = [
        scoring.nats(np.array([found["start"], found["end"]]), item.target)
        for found, item, window in zip(results, split.encoded.items, split.encoded.windows, strict=True)
        if split.records[window.text].label is not None
    ]
    return float(np.mean(each)) if each else None


N_BEST = 20  # answers in nbest.json
