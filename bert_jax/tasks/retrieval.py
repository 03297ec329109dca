"""The kind for search: embeddings of queries and documents, scored by the rank of the relevant documents in a corpus."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.data.batching import PackedBatch
from bert_jax.data.files import Hasher, Row
from bert_jax.data.finetuning import Encoded, Item, Items, encode_texts
from bert_jax.data.layout import Layout, Text
from bert_jax.data.passages import passage_room, passages
from bert_jax.data.records import Record, labels_of, numbered, texts_of, with_labels
from bert_jax.errors import InputError
from bert_jax.inference import cuts
from bert_jax.modules import DOCUMENT_PROMPTS, QUERY_PROMPTS, first_of
from bert_jax.pooling import Embedding
from bert_jax.pretrained import Model
from bert_jax.static import StaticEmbedder
from bert_jax.tasks.beir import Judged, is_beir, judged_queries, load_beir, load_judged
from bert_jax.tasks.candidates import Candidates, no_target
from bert_jax.tasks.common import temperature_of
from bert_jax.tasks.figures import Figure, Listing, example_cells, highest
from bert_jax.tasks.figures import Text as FigureText
from bert_jax.tasks.forms import FORMS, Dense, Form
from bert_jax.tasks.kind import Predict
from bert_jax.tasks.labels import LabelReader
from bert_jax.tasks.metrics import Details
from bert_jax.tasks.parsing import Columns, File, Noted
from bert_jax.tasks.ranking import DEPTH, Ranking, ranking_scores, write_run
from bert_jax.tasks.split import Predicted, Predictions, Split
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import Options, Task, TaskData
from bert_jax.training.contrastive import Known, contrastive_loss
from bert_jax.training.losses import Sum
from bert_jax.training.steps import Batch

_TABLE_ROWS = 1 << 15  # documents that a table of token vectors embeds at a time
TeacherScores = tuple[float | None, ...]  # one for each document of a row


class Retrieval(Candidates[TeacherScores, Ranking]):
    """Retrieval. A prediction is the ranking of the corpus for a query.

    The texts of a record are a query, a document and hard negatives, or in BEIR's layout outside training a query alone.
    """

    name = "retrieval"
    reads_every_token = True

    def __init__(self, form: Form = FORMS["dense"]) -> None:
        """Makes the kind of a form of retriever."""
        self.form, self.head, self.embedding, self.reads_progress = form, form.head, form.embedding, form.reads_progress
        self.options = form.options | {"query_prompt", "document_prompt", "directions", "distillation", "chunk_size"}

    # --- files ---

    def load(self, task: Task, data: TaskData) -> Splits | None:
        """Reads a folder in BEIR's layout; other data is a table."""
        if not is_beir(data.data):
            return None
        return load_judged(data, task.split) if task.test_only else load_beir(data)

    def load_split(self, split: str, path: str, data: TaskData, hasher: Hasher) -> tuple[Sequence[Record], list[str]] | None:
        """Reads the judged queries of a folder in BEIR's layout, which are searched in its corpus."""
        if not is_beir(path):
            return None
        records, _, notes = judged_queries(dataclasses.replace(data, data=path), split, hasher)
        return records, notes

    def read_label(self, reader: LabelReader, value: object, place: str) -> TeacherScores | None:
        """Returns the scores of a teacher in the column that the user names; other columns are no labels."""
        return _teacher_scores(value, place) if reader.named else None

    def read_row(
        self, row: Row, columns: Columns, label: TeacherScores | None, noted: Noted
    ) -> tuple[tuple[str, ...], TeacherScores | None]:
        """Returns the texts and the scores of the documents. Raises InputError unless each document has one."""
        texts, _ = super().read_row(row, columns, None, noted)
        if label is None:
            return texts, None
        documents = texts[1:]
        if len(label) != len(documents):
            raise InputError(
                f"{row.place}: {len(label)} scores for {len(documents)} documents: give one for each (--score-column)"
            )
        if any(score is None and text.strip() for score, text in zip(label, documents, strict=True)) or label[0] is None:
            raise InputError(f"{row.place}: a document has no score: `bert_jax score` writes them all (--score-column)")
        return texts, tuple(label[0] if score is None else score for score in label)  # as whole_texts copies the document

    def checked(self, split: str, file: File, noted: Noted) -> tuple[Sequence[Record], list[str]]:
        """Leaves out what `Candidates.checked` does; only training uses scores."""
        records, notes = super().checked(split, file, noted)
        return records if split == "train" else with_labels(records, [None] * len(records)), notes

    # --- training ---

    def least_batch(self, options: Options, train: Sequence[Record]) -> int:
        """Returns 2 for rows without negatives: a query has to find its document among those of others."""
        return 1 if len(next(texts_of(train))) > 2 else 2

    def settle(self, options: Options, train: Sequence[Record]) -> tuple[Options, Sequence[Record], list[str]]:
        """Chooses the loss of the teacher's scores, if there are any."""
        scored = len(train) > 0 and labels_of(train)[0] is not None
        if options.distillation and len(train) and not scored:
            raise InputError(f"distillation={options.distillation!r} needs the scores of a teacher: give --score-column")
        if scored and len(next(texts_of(train))) < 3:
            raise InputError(
                f"{train[0].place}: a teacher's scores compare a document with negatives, and the rows have none: "
                "`bert_jax mine` adds them, or leave out --score-column"
            )
        return dataclasses.replace(options, distillation=(options.distillation or "kl") if scored else None), train, []

    def adapt(self, model: Model, limit: int, task: Task, splits: Splits, options: Options) -> tuple[Model, list[str]]:
        """Returns the model with its length and prompts, which predictors use. Raises InputError for options that do not fit."""
        assert isinstance(model.pooling, Embedding)
        given = {"query": options.query_prompt, "document": options.document_prompt}
        prompts = dict(model.pooling.prompts) | {name: prompt for name, prompt in given.items() if prompt is not None}
        if any(prompts.values()) and not model.pooling.include_prompt:
            raise InputError("the pooling of this model leaves out prompts (include_prompt), which is not supported here")
        for role, names in (("query", QUERY_PROMPTS), ("document", DOCUMENT_PROMPTS)):
            name = first_of(prompts, names)
            if prompt := model.pooling.prompt if name is None else prompts[name]:
                prompts[role] = prompt  # sentence-transformers looks for no other name, nor for the default prompt
        own = model.pooling.replace(max_length=limit, prompts=prompts)
        embedding, notes = self.form.adapt(own, model, options, _documents(splits))
        named = {"queries": prompts.get("query"), "documents": prompts.get("document")}
        notes += [f"{what} begin with {prompt!r}" for what, prompt in named.items() if prompt]
        return dataclasses.replace(model, pooling=embedding), notes

    def encode(self, records: Sequence[Record], labels: Sequence[str], layout: Layout) -> Encoded:
        """Tokenizes queries with their documents, or judged queries and then the documents of the corpus.

        The target of an item is int32 [1 + C + P]: the numbers of the query, of its C documents, and of all documents that are
        known to answer the query (-1 fills these up), where equal texts of the split have equal numbers. With the scores of a
        teacher it is float64, which holds all numbers exactly, and ends with the C scores.
        """
        plain = dataclasses.replace(layout, read=str)
        query, document = (
            layout.read if (name := first_of(layout.roles, names)) is None else layout.roles[name]
            for names in (QUERY_PROMPTS, DOCUMENT_PROMPTS)
        )
        judged = _judged(records)
        if judged:
            collection, chunk = judged[0].collection, judged[0].collection.chunk
            queries = encode_texts(records, plain, no_target, lambda texts: [plain.query(query(texts[0]))])
            room = 0 if chunk is None else passage_room(chunk, layout, document)

            def parts(texts: tuple[str, ...]) -> list[Text]:
                if chunk is None:
                    return [document(texts[0])]
                (own,) = passages(texts, layout.tokenizer, room, chunk.overlap)
                return [document(passage) for passage in own]

            corpus = encode_texts(collection.records, plain, no_target, parts)
            assert isinstance(queries.items, Items)
            assert isinstance(corpus.items, Items)
            return Encoded(_joined(queries.items, corpus.items), queries.lost + corpus.lost)

        def sequences(texts: tuple[str, ...]) -> list[Text]:
            return [plain.query(query(texts[0])), *map(document, self.whole_texts(texts)[1:])]

        encoded = encode_texts(records, plain, no_target, sequences)
        assert isinstance(encoded.items, Items)
        targets = self._numbers(records)
        if len(records) and labels_of(records)[0] is not None:
            targets = np.concatenate([targets, np.array(labels_of(records), np.float64)], axis=1)
        return dataclasses.replace(encoded, items=dataclasses.replace(encoded.items, targets=targets))

    def _numbers(self, records: Sequence[Record]) -> np.ndarray:
        """Returns the targets of `encode`."""
        if not len(records):
            return np.zeros((0, 3), np.int32)
        own = numbered(text for texts in texts_of(records) for text in self.whole_texts(texts)).reshape(len(records), -1)
        pairs = np.unique(own[:, :2], axis=0)
        starts = np.searchsorted(pairs[:, 0], own[:, 0])
        counts = np.searchsorted(pairs[:, 0], own[:, 0], side="right") - starts
        places = starts[:, None] + np.arange(counts.max())[None]
        known = pairs[np.minimum(places, len(pairs) - 1), 1]
        return np.concatenate([own, np.where(np.arange(counts.max())[None] < counts[:, None], known, -1)], axis=1)

    def targets(self, items: Sequence[Item], packed: PackedBatch, count: int) -> dict[str, np.ndarray]:
        """Returns `slots` [count, 1 + C] of the sequences of each item, `weights` [count], and the numbers of the texts."""
        each, missing = len(items[0].sequences), (0, count - len(items))
        where = np.zeros(len(items) * each, np.int32)
        for place in packed.places:
            where[place.example] = place.row * packed.positions.shape[1] + place.slots.start
        numbers = np.pad(np.array([item.target for item in items]), (missing, (0, 0)), constant_values=-1)
        scores = {}
        if np.issubdtype(numbers.dtype, np.floating):
            scores = {"teacher_scores": numbers[:, 1 - each :].astype(np.float32)}
            numbers = numbers[:, : 1 - each].astype(np.int32)
        return scores | {
            "slots": np.pad(where.reshape(-1, each), (missing, (0, 0))),
            "weights": np.pad(np.ones(len(items), np.float32), missing),
            "query_ids": numbers[:, 0],
            "document_ids": numbers[:, 1:each],
            "positive_ids": numbers[:, each:],
        }

    def inputs(self, rows: Batch, model: Model) -> Batch:
        return self.form.inputs(rows, model)

    def reduce(self, outputs: dict[str, jax.Array], rows: Batch, model: Model) -> dict[str, jax.Array]:
        """Returns the embeddings of the sequences, or what these are made of."""
        return self.form.reduce(outputs, rows, model)

    def loss(self, outputs: dict[str, jax.Array], batch: Batch, options: Options, model: Model) -> dict[str, Sum]:
        queries, documents = self.form.items(outputs, batch, model)
        known = Known(batch["query_ids"], batch["document_ids"], batch["positive_ids"])
        loss = contrastive_loss(
            queries, documents, batch["weights"], temperature_of(batch, options), scoring=self.form.scoring, known=known,
            dimensions=options.dimensions, both_directions=options.directions == "both", distillation=options.distillation,
            teacher_scores=batch.get("teacher_scores"),
        )  # fmt: skip
        return {"retrieval_loss": loss, **self.form.penalties(queries, documents, batch, options)}

    # --- scores ---

    def predictor(self, model: Model, limit: int) -> Predict[Ranking]:
        searcher = self.form.searcher(model)

        def predict(split: Split, params: PyTree) -> Predictions[Ranking]:
            search, sequences = _search(split), split.encoded.sequences
            best = searcher.rank(sequences, search.queries, search.documents, search.numbers, params, DEPTH)
            return _predictions(best, search, split)

        return predict

    def rank_by(self, embedder: StaticEmbedder, split: Split) -> Predictions[Ranking]:
        """Returns the predictions of a table of token vectors for a split that need not be tokenized, by the cosine."""
        search, records = _search(split), split.records
        firsts = np.unique(search.of_record, return_index=True)[1]

        def vectors(texts: list[str], roles: Sequence[str]) -> np.ndarray:
            found = embedder(texts, first_of(embedder.prompts, roles))
            return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), np.float32(1e-12))

        assert isinstance(self.form, Dense)
        best = self.form.search(vectors([records[i].texts[0] for i in firsts], QUERY_PROMPTS), DEPTH)
        for part in cuts(search.numbers, _TABLE_ROWS):
            numbers = search.numbers[part]
            best.add(vectors([search.text(i) for i in numbers], DOCUMENT_PROMPTS), numbers)
        rankings = [Ranking(found, scores) for scores, found in zip(*best.found(), strict=True)]
        return _predictions(rankings, search, split)

    def guess(self, records: Sequence[Record], labels: Sequence[str]) -> Predictions[Ranking]:
        return Predictions([Ranking(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(records))

    def scores(self, predicted: Predicted[Ranking], metrics: Sequence[str]) -> dict[str, float]:
        """Returns the scores of `ranking.ranking_scores`; each query of a table counts once."""
        search = _search(predicted.split)
        firsts = np.unique(search.of_record, return_index=True)[1]
        ranked = [_relevances(predicted.values[i], search.relevances[search.of_record[i]]) for i in firsts]
        return ranking_scores(ranked, [list(search.relevances[search.of_record[i]].values()) for i in firsts])

    def write(self, folder: Path, predicted: Predicted[Ranking]) -> Path:
        """Writes NAME.trec: the first 100 documents of each query, as trec_eval reads them."""
        search = _search(predicted.split)
        firsts = np.unique(search.of_record, return_index=True)[1]
        ids = [predicted.records[i].id for i in firsts]
        folder.mkdir(parents=True, exist_ok=True)
        return write_run(folder / f"{predicted.split.name}.trec", ids, [predicted.values[i] for i in firsts], search.ids)

    def mistakes(self, predicted: Predicted[Ranking], details: Details) -> list[Figure]:
        """Returns the queries whose first relevant document has the lowest rank, with the document that comes first."""
        search, records = _search(predicted.split), predicted.records
        ranked = (_relevances(each, search.relevances[of]) for each, of in zip(predicted.values, search.of_record, strict=True))
        ranks = np.array([next((rank for rank, one in enumerate(own, 1) if one > 0), len(own) + 1) for own in ranked])
        rows = [
            [
                *example_cells(records[i], records[i].texts[:1]),
                int(ranks[i]),
                FigureText(search.text(predicted.values[i].documents[0])),
            ]
            for i in highest(ranks > 1, ranks)
            if len(predicted.values[i].documents)
        ]
        return [Listing("Queries whose relevant documents rank lowest", ["id", "query", "rank", "first document"], rows)]


class _Search(NamedTuple):
    """The queries and documents of a split: numbers of their sequences, and which document is how relevant."""

    queries: Sequence[int]
    documents: Sequence[int]  # or passages of documents
    numbers: range | np.ndarray  # the document of each of these
    relevances: Sequence[Mapping[int, int]]
    of_record: Sequence[int]  # the query of each record
    ids: Sequence[str]  # the ids of the documents
    records: Sequence[Record]  # the texts of the documents
    places: Sequence[tuple[int, int]] = ()  # the record of each document and its place in it; empty: each has its own record

    def text(self, document: int) -> str:
        """Returns the text of a document."""
        record, place = self.places[document] if self.places else (document, 0)
        return self.records[record].texts[place]


def _search(split: Split) -> _Search:
    """Returns the judged queries and their corpus; in a table, all documents of its rows are the corpus.

    The documents of a table have the ids d0, d1, ..., in the order in which trec_eval ranks equal scores: the last one first.
    """
    records, count = split.records, len(split.records)
    if judged := _judged(records):
        corpus = judged[0].collection
        each = range(count)
        numbers: range | np.ndarray = range(len(corpus.ids))
        if isinstance(items := split.encoded.items, Items) and not isinstance(items.firsts, range):
            numbers = np.repeat(numbers, np.diff(items.firsts[count:]))
        found = range(count, count + len(numbers))
        return _Search(each, found, numbers, [one.relevances for one in judged], each, corpus.ids, corpus.records)
    texts = [Retrieval().whole_texts(record) for record in texts_of(records)]
    width = len(texts[0])
    known: dict[str, int] = {}
    places, relevances, asked, queries = list[tuple[int, int]](), list[dict[int, int]](), dict[str, int](), list[int]()
    for row, own in enumerate(texts):
        if own[0] not in asked:
            asked[own[0]] = len(queries)
            queries.append(row * width)
            relevances.append({})
        for place, text in enumerate(own[1:], 1):
            if text not in known:
                known[text] = len(places)
                places.append((row, place))
        relevances[asked[own[0]]][known[own[1]]] = 1
    last = len(places) - 1
    ids = [f"d{number:0{len(str(last))}}" for number in range(last, -1, -1)]
    places, relevances = places[::-1], [{last - number: 1 for number in own} for own in relevances]
    documents = [row * width + place for row, place in places]
    of_record = [asked[own[0]] for own in texts]
    return _Search(queries, documents, range(len(documents)), relevances, of_record, ids, records, places)


def _predictions(best: Sequence[Ranking], search: _Search, split: Split) -> Predictions[Ranking]:
    """Returns the ranking of the query of each record, without the query itself."""
    both = zip(search.of_record, labels_of(split.records), strict=True)
    return Predictions([label.others(best[i]) if isinstance(label, Judged) else best[i] for i, label in both])


def _documents(splits: Splits) -> Iterator[str]:
    """Yields the documents of the corpus; without one, those of the training rows, each once."""
    for records in (*splits.dev.values(), *splits.test.values()):
        if judged := _judged(records):
            yield from (text for texts in texts_of(judged[0].collection.records) for text in texts)
            return
    yield from dict.fromkeys(text for texts in texts_of(splits.train) for text in texts[1:] if text.strip())


def _judged(records: Sequence[Record]) -> list[Judged]:
    """Returns the labels of records in BEIR's layout; empty for a table."""
    labels = labels_of(records)
    return [label for label in labels if isinstance(label, Judged)]


def _relevances(ranking: Ranking, relevances: Mapping[int, int]) -> list[int]:
    return [relevances.get(document, 0) for document in ranking.documents.tolist()]


def _teacher_scores(value: object, place: str) -> TeacherScores | None:
    """Returns the list of numbers in a cell, which may be spelled as JSON; None for an empty cell."""
    if value is None or value == "":
        return None
    items: object = value.tolist() if isinstance(value, np.ndarray) else value  # in .parquet
    with contextlib.suppress(ValueError):
        items = json.loads(items) if isinstance(items, str) else items
    if not isinstance(items, list) or not all(x is None or _is_number(x) for x in items):
        raise InputError(f"{place}: the scores are {str(value)[:60]!r}; expected a list of numbers (--score-column)")
    return tuple(None if x is None else float(x) for x in items)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _joined(a: Items, b: Items) -> Items:
    """Returns the items of both; those of `a` have one sequence each."""
    types = a.token_type_ids
    if len(b.token_type_ids):
        types = np.concatenate([types, np.zeros(len(a.input_ids) - len(types), np.uint8), b.token_type_ids])
    ends = np.concatenate([a.ends, a.ends[-1] + b.ends[1:]])
    targets = np.concatenate([a.targets, b.targets])
    firsts: range | np.ndarray = range(len(ends))
    if len(b.firsts) < len(b.ends):
        firsts = np.concatenate([np.arange(len(a)), len(a) + np.asarray(b.firsts)])
    return Items(np.concatenate([a.input_ids, b.input_ids]), types, ends, firsts, targets)
