"""The kind for cross-encoders: a score of a query and a document that are read together, which orders a query's candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from bert_jax.data.batching import PackedBatch
from bert_jax.data.finetuning import Encoded, Item, Items, encode_texts
from bert_jax.data.layout import Layout
from bert_jax.data.records import Record, texts_of
from bert_jax.errors import InputError
from bert_jax.pretrained import Model
from bert_jax.tasks.beir import is_beir
from bert_jax.tasks.candidates import Candidates, no_target
from bert_jax.tasks.common import Logits, by_item, of_items, one_place
from bert_jax.tasks.figures import Figure, Listing, example_cells, highest
from bert_jax.tasks.figures import Text as FigureText
from bert_jax.tasks.kind import Predict
from bert_jax.tasks.labels import LabelReader
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.parsing import File, Noted
from bert_jax.tasks.predictions import write_table
from bert_jax.tasks.ranking import by_descending_id, ranking_scores
from bert_jax.tasks.split import Predicted, Predictions
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task, TaskData
from bert_jax.training.losses import Sum
from bert_jax.training.reranking import listwise_loss, pairwise_loss, pointwise_loss
from bert_jax.training.steps import Batch

_LOSSES = {"pointwise": pointwise_loss, "pairwise": pairwise_loss, "listwise": listwise_loss}
_SCORES = ("ndcg_at_10", "mrr_at_10", "map", "recall_at_1")


class Reranking(Candidates[None, np.ndarray]):
    """Reranking. A prediction is float32 scores [k] of the k candidates of a query: its document, then its negatives."""

    name = "reranking"
    head = "sequence_classification"
    options = frozenset(["loss"])

    def load(self, task: Task, data: TaskData) -> Splits | None:
        """Returns None: the data are tables. Raises InputError for a folder in BEIR's layout."""
        if is_beir(data.data):
            raise InputError(f"{data.data}: BEIR's layout has no candidates to rerank: `bert_jax mine` writes a table of them")
        return None

    def read_label(self, reader: LabelReader, value: object, place: str) -> None:
        return None

    def checked(self, split: str, file: File, noted: Noted) -> tuple[Sequence[Record], list[str]]:
        if len(file.columns.texts) < 3:
            names = " and ".join(file.columns.texts)
            raise InputError(f"{file.path}: {names} have no negatives to compare with: `bert_jax mine` adds them (--text-column)")
        if file.reader.named:
            raise InputError("reranking learns which document is the positive, and no labels or scores: leave out --label-column")
        return super().checked(split, file, noted)

    def settle(self, options: Options, train: Sequence[Record]) -> tuple[Options, Sequence[Record], list[str]]:
        loss = "listwise" if options.loss == "auto" else options.loss
        if loss not in _LOSSES:
            raise InputError(f"loss={loss!r} is not for reranking: give --loss {', '.join(_LOSSES)}")
        return dataclasses.replace(options, loss=loss), train, []

    def encode(self, records: Sequence[Record], labels: Sequence[str], layout: Layout) -> Encoded:
        """Tokenizes each query with each of its candidates.

        The target of an item is float32 [C]: 1 for the document, 0 for negatives, and -1 for the negatives that it lacks.
        """
        known = _known(records)
        encoded = encode_texts(
            records, layout, no_target, lambda texts: [(texts[0], each) for each in _candidates(texts, known[texts[0]])]
        )
        assert isinstance(encoded.items, Items)
        width = max((len(texts) - 1 for texts in texts_of(records)), default=1)
        sizes = np.diff(np.asarray(encoded.items.firsts))
        targets = np.where(np.arange(width) < sizes[:, None], 0, -1).astype(np.float32)
        targets[:, 0] = 1
        return dataclasses.replace(encoded, items=dataclasses.replace(encoded.items, targets=targets))

    def targets(self, items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
        """Returns `slots`, `labels` and `weights` [count, C] of the candidates of each item; those that are missing weigh 0."""
        where = np.zeros(sum(len(item.sequences) for item in items), np.int32)
        for place in packed.places:
            where[place.example] = place.row * packed.positions.shape[1] + place.slots.start
        labels = np.pad(np.array([item.target for item in items]), ((0, count - len(items)), (0, 0)), constant_values=-1)
        slots = np.zeros(labels.shape, np.int32)
        slots[labels >= 0] = where
        return {"slots": slots, "labels": np.maximum(labels, 0), "weights": (labels >= 0).astype(np.float32)}

    def loss(self, outputs: dict[str, jax.Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        scores = of_items(outputs["logits"][..., 0], batch)
        return {"reranking_loss": _LOSSES[options.loss](scores, batch["labels"], batch["weights"])}

    def predictor(self, model: Model, limit: int) -> Predict[np.ndarray]:
        logits = Logits(model)
        return lambda split, params: Predictions(each[:, 0] for each in by_item(one_place(logits, split, params), split))

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions[np.ndarray]:
        known = _known(records)
        return Predictions(np.zeros(len(_candidates(texts, known[texts[0]]))) for texts in texts_of(records))

    def scores(self, predicted: Predicted[np.ndarray], metrics: Sequence[str]) -> dict[str, float]:
        """Scores the order of the candidates of each query, from all its rows together, by trec_eval's rules."""
        known, found = _known(predicted.records), dict[str, dict[str, float]]()
        for texts, scores in zip(texts_of(predicted.records), predicted.values, strict=True):
            own = _candidates(texts, known[texts[0]])
            found.setdefault(texts[0], {}).update(zip(own, scores.tolist(), strict=True))
        ranked = [[float(text in known[query]) for text in _ranked(own)] for query, own in found.items()]
        every = ranking_scores(ranked, [[1.0] * len(known[query]) for query in found])
        return {name: every[name] for name in _SCORES}

    def write(self, folder: Path, predicted: Predicted[np.ndarray]) -> Path:
        """Writes NAME.tsv: the rank of the document of each row among the candidates of the row, and its score."""
        rows = ((_rank(scores), [float(scores[0])]) for scores in predicted.values)
        return write_table(folder, predicted, rows, ["score"])

    def mistakes(self, predicted: Predicted[np.ndarray], details: Details) -> list[Figure]:
        """Returns the queries whose document has the lowest rank, with the candidate that comes first."""
        known, ranks = _known(predicted.records), np.array([_rank(scores) for scores in predicted.values])
        rows = []
        for i in highest(ranks > 1, ranks):
            record = predicted.records[i]
            first = _candidates(record.texts, known[record.texts[0]])[int(np.argmax(predicted.values[i]))]
            rows.append([*example_cells(record, record.texts[:1]), int(ranks[i]), FigureText(first)])
        return [Listing("Queries whose documents rank lowest", ["id", "query", "rank", "first candidate"], rows)]


def _known(records: Sequence[Record]) -> Mapping[str, set[str]]:
    """Returns the documents that are known to answer each query."""
    known: dict[str, set[str]] = {}
    for texts in texts_of(records):
        known.setdefault(texts[0], set()).add(texts[1])
    return known


def _candidates(texts: tuple[str, ...], known: Collection[str]) -> list[str]:
    """Returns the document and its negatives, each once: without empty ones, known documents, and the query itself."""
    negatives = dict.fromkeys(text for text in texts[2:] if text.strip() and text not in known and text != texts[0])
    return [texts[1], *negatives]


def _ranked(scores: Mapping[str, float]) -> list[str]:
    """Returns texts by their scores, the best first; equal scores in the order in which trec_eval has ids."""
    texts = list(scores)
    return sorted((texts[i] for i in by_descending_id(texts)), key=lambda text: -scores[text])


def _rank(scores: np.ndarray) -> int:
    """Returns the rank of the first candidate, behind others of the same score."""
    return int(np.sum(scores >= scores[0]))
