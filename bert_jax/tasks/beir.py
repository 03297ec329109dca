"""Reads a retrieval data set in BEIR's layout: corpus.jsonl, queries.jsonl, and qrels/train.tsv, dev.tsv and test.tsv.

corpus.jsonl     {"_id": "d7", "title": "Wings", "text": "Lift is ..."}; the title, if there is one, begins the document
queries.jsonl    {"_id": "q1", "text": "what is lift"}
qrels/dev.tsv    query-id, corpus-id and score, separated by tabs; a score above 0 is a relevant document
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_jax.data import files
from bert_jax.data.files import Hasher, Row
from bert_jax.data.passages import PassageSize
from bert_jax.data.records import Record, Records, texts_of
from bert_jax.errors import InputError
from bert_jax.tasks.labels import few
from bert_jax.tasks.parsing import checked_text, text_in, value_in
from bert_jax.tasks.ranking import Ranking, by_descending_id
from bert_jax.tasks.splits import Splits
from bert_jax.tasks.task import TaskData

SPLITS = ("train", "dev", "test")
HEADER = ("query-id", "corpus-id", "score")
BY_SPLIT = "; choose one of them with --split"


@dataclass(frozen=True, eq=False)
class Collection:
    """The documents of a corpus, in the order in which trec_eval ranks documents of equal scores.

    They are searched in passages of the size `chunk`, if it is given.
    """

    records: Records
    chunk: PassageSize | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", [record.id for record in self.records])

    ids: list[str] = field(init=False, repr=False)


@dataclass(frozen=True, eq=False)
class Judged:
    """The label of a query: the relevance of documents by their number in a collection.

    Attributes:
      itself: the document that is the query itself, which no ranking has, as in BEIR's evaluation.
    """

    relevances: Mapping[int, int]
    collection: Collection = field(repr=False)
    itself: int | None = field(default=None, repr=False)

    def others(self, ranking: Ranking) -> Ranking:
        """Returns a ranking without the query itself."""
        if self.itself is None:
            return ranking
        kept = ranking.documents != self.itself
        return Ranking(ranking.documents[kept], ranking.scores[kept])


@dataclass(frozen=True)
class _Qrel:
    query: str
    document: str
    relevance: int
    place: str


def is_beir(folder: str) -> bool:
    """Returns True for a folder in BEIR's layout."""
    return os.path.isdir(folder) and _path(folder, "corpus.jsonl") is not None


def load_beir(data: TaskData) -> Splits:
    """Reads a folder to train on.

    A training record is a query and a relevant document. A dev or test record is a query, whose label is `Judged`. Without
    qrels/dev.tsv, queries of training are held out.

    Raises:
      InputError: a file is missing or malformed; an id occurs twice with different texts; a split has no query to use; qrels
        name an id that is not there, unless `on_error` is "skip".
    """
    _check_options(data)
    hasher, notes = hashlib.sha256(), list[str]()
    paths = _qrels_paths(data.data, "train")
    corpus, queries = (_texts(data, name, hasher, notes) for name in ("corpus.jsonl", "queries.jsonl"))
    read = {name: _qrels(path, data, queries, corpus, hasher, notes) for name, path in paths.items()}
    notes += _unjudged(queries, read.values())
    if "dev" not in read:
        read["train"], read["dev"], note = _held_out(read["train"], data.dev_size)
        notes.append(note)
    collection = _collection(corpus, data.passage_size)
    judged: dict[str, Sequence[Record]] = {
        name: _judged(name, qrels, queries, collection, notes) for name, qrels in read.items() if name != "train"
    }
    train = _pairs(read["train"], queries, corpus, notes)
    notes += _leaks(train, judged)
    dev, test = ({name: judged[name] for name in judged if name == split} for split in ("dev", "test"))
    return Splits(train, dev, test, (), notes, hasher.hexdigest())


def load_judged(data: TaskData, split: str) -> Splits:
    """Reads the judged queries of a split as the test. Raises InputError as `load_beir`."""
    _check_options(data)
    hasher = hashlib.sha256()
    records, _, notes = judged_queries(data, split, hasher, BY_SPLIT)
    return Splits([], {}, {split: records}, (), notes, hasher.hexdigest())


def judged_queries(
    data: TaskData, split: str, hasher: Hasher | None = None, fix: str = ""
) -> tuple[list[Record], list[Judged], list[str]]:
    """Returns the queries of qrels/SPLIT.tsv, their labels, and lines to show.

    Raises InputError as `load_beir`; where other splits are there, `fix` ends the message.
    """
    hasher, notes = hasher or hashlib.sha256(), list[str]()
    if not is_beir(data.data):
        raise InputError(f"{data.data}: not a folder in BEIR's layout with corpus.jsonl, queries.jsonl and qrels/{split}.tsv")
    path = _qrels_paths(data.data, split, fix)[split]
    corpus, queries = (_texts(data, name, hasher, notes) for name in ("corpus.jsonl", "queries.jsonl"))
    qrels = _qrels(path, data, queries, corpus, hasher, notes)
    records = _judged(split, qrels, queries, _collection(corpus, data.passage_size), notes)
    return records, [record.label for record in records], notes


def _check_options(data: TaskData) -> None:
    """Raises InputError for options of tables."""
    for name in ("dev", "test", "text_column", "label_column", "id_column", "group_column", "max_train_rows"):
        if getattr(data, name):
            option = name.replace("_", "-")
            raise InputError(f"--{option}: {data.data} is in BEIR's layout, whose files have names of their own: leave it out")


def _qrels_paths(folder: str, split: str, fix: str = "") -> dict[str, str]:
    """Returns the files with the judgements of all splits. Raises InputError without that of `split`."""
    found = {name: path for name in SPLITS if (path := _path(folder, os.path.join("qrels", f"{name}.tsv")))}
    if split not in found:
        raise InputError(f"{folder}: no qrels/{split}.tsv; qrels there: {', '.join(found) or 'none'}{fix if found else ''}")
    return found


def _path(folder: str, name: str) -> str | None:
    """Returns the file of that name, plain or compressed; None without one."""
    return next((path for end in ("", ".gz") if os.path.isfile(path := os.path.join(folder, name + end))), None)


def _texts(data: TaskData, name: str, hasher: Hasher, notes: list[str]) -> dict[str, Record]:
    """Returns the texts of corpus.jsonl or queries.jsonl by id. Raises InputError for an id with two texts."""
    path = _path(data.data, name)
    if path is None:
        raise InputError(f"{data.data}: no {name}, which BEIR's layout has")
    found, again = dict[str, Record](), list[str]()
    table = files.read_table(path, hasher=hasher, skip_bad=data.on_error == "skip")
    for row in table.rows:
        id, columns = _id(row), [column for column in ("title", "text") if column in row.values]
        if not columns:
            raise InputError(f"{row.place}: no 'text', it has {', '.join(row.values)}")
        record = Record((" ".join(text_in(row, column) for column in columns).strip(),), None, id, row.place)
        if (before := found.get(id)) is None:
            found[id] = record
        elif before.texts == record.texts:
            again.append(row.place)
        else:
            raise InputError(f"{row.place}: the id {id!r} has another text in {before.place}: give each text an id of its own")
    empty = [record.place for record in found.values() if not record.texts[0]]
    notes += [f"{len(found)} texts of {path}", *_left_out(path, table.skipped)]
    notes += [f"warning: {len(again)} lines of {name} repeat an id with its text: {few(again)}"] * bool(again)
    notes += [f"warning: {len(empty)} of {len(found)} texts of {name} are empty: {few(empty)}"] * bool(empty)
    return found


def _id(row: Row) -> str:
    """Returns the id of a text. Raises InputError for a value that is none."""
    id = value_in(row, "_id")
    if id == "" or isinstance(id, bool) or not isinstance(id, str | int | float):
        raise InputError(f"{row.place}: '_id' is {reprlib.repr(id)}: give each text an id")
    return checked_text(row, "_id", str(id))


def _left_out(path: str, skipped: Sequence[str]) -> list[str]:
    return [f"warning: {len(skipped)} lines of {path} left out that cannot be read: {few(skipped)}"] * bool(skipped)


def _qrels(
    path: str, data: TaskData, queries: Mapping[str, Record], corpus: Mapping[str, Record], hasher: Hasher, notes: list[str]
) -> list[_Qrel]:
    """Returns the judgements of a file. Raises InputError for one that is no number, is given twice, or has an unknown id."""
    unknown, again, found = list[str](), list[str](), dict[tuple[str, str], _Qrel]()
    table = files.read_table(path, "none", hasher, header=HEADER, skip_bad=data.on_error == "skip")
    for row in table.rows:
        query, document = (str(value_in(row, column)) for column in HEADER[:2])
        try:
            relevance = int(str(value_in(row, "score")))
        except ValueError:
            raise InputError(f"{row.place}: the score {row.values['score']!r} is not a whole number") from None
        if query not in queries or document not in corpus:
            file, id = ("queries.jsonl", query) if query not in queries else ("corpus.jsonl", document)
            unknown.append(f"{row.place} ({id!r} is not in {file})")
            continue
        before = found.setdefault((query, document), one := _Qrel(query, document, relevance, row.place))
        if before.relevance != one.relevance:
            raise InputError(f"{row.place}: {before.place} gives query {query!r} and document {document!r} another score")
        again += [row.place] * (before is not one)
    if unknown and data.on_error == "raise":
        raise InputError(f"{unknown[0]}; {len(unknown)} such lines of {path}: correct them, or leave them out (--on-error skip)")
    notes += _left_out(path, table.skipped)
    notes += [f"warning: {len(unknown)} lines of {path} left out, with unknown ids: {few(unknown)}"] * bool(unknown)
    notes += [f"warning: {len(again)} lines of {path} repeat a judgement: {few(again)}"] * bool(again)
    if not found:
        raise InputError(f"{path}: holds no judgements")
    return list(found.values())


def _held_out(qrels: Sequence[_Qrel], dev_size: float) -> tuple[list[_Qrel], list[_Qrel], str]:
    """Returns the judgements of the queries that stay in training, of those that are held out, and a line to show."""
    queries = list(dict.fromkeys(one.query for one in qrels))
    count = int(dev_size) if dev_size >= 1 else round(dev_size * len(queries))
    if not 0 < count < len(queries):
        raise InputError(f"--dev-size {dev_size:g} of {len(queries)} training queries leaves none to train or to evaluate on")
    held = {queries[i] for i in np.random.default_rng(0).permutation(len(queries))[:count]}
    note = f"dev: {count} of {len(queries)} training queries are held out (--dev-size {dev_size:g}), drawn with seed 0"
    return [one for one in qrels if one.query not in held], [one for one in qrels if one.query in held], note


def _unjudged(queries: Mapping[str, Record], read: Iterable[Sequence[_Qrel]]) -> list[str]:
    asked = {one.query for qrels in read for one in qrels}
    places = [record.place for id, record in queries.items() if id not in asked]
    return [f"{len(places)} of {len(queries)} queries have no judgement: {few(places)}"] * bool(places)


def _leaks(train: Sequence[Record], judged: Mapping[str, Sequence[Record]]) -> list[str]:
    trained, notes = {texts[0] for texts in texts_of(train)}, list[str]()
    for name, records in judged.items():
        places = [record.place for record in records if record.texts[0] in trained]
        notes += [f"warning: {len(places)} of {len(records)} {name} queries are also in training: {few(places)}"] * bool(places)
    return notes


def _collection(corpus: Mapping[str, Record], chunk: PassageSize | None) -> Collection:
    ids, records = list(corpus), Records()
    for place in by_descending_id(ids):
        records.append(corpus[ids[place]])
    return Collection(records, chunk)


def _judged(
    name: str, qrels: Sequence[_Qrel], queries: Mapping[str, Record], collection: Collection, notes: list[str]
) -> list[Record]:
    """Returns the judged queries of a split."""
    numbers, each = {id: number for number, id in enumerate(collection.ids)}, dict[str, dict[int, int]]()
    for one in qrels:
        each.setdefault(one.query, {})[numbers[one.document]] = one.relevance
    without = [queries[id].place for id, own in each.items() if max(own.values()) <= 0]
    notes.append(f"{name}: {len(each)} queries with {len(qrels)} judgements")
    notes += [f"warning: {name}: {len(without)} queries have no relevant document and score 0: {few(without)}"] * bool(without)
    itself = {id: number for id in each if (number := _itself(queries[id], numbers.get(id), each[id], collection)) is not None}
    places = [queries[id].place for id in itself]
    notes += [f"{name}: {len(places)} queries are documents of the corpus, which they do not find: {few(places)}"] * bool(places)
    return [Record(queries[id].texts, Judged(own, collection, itself.get(id)), id, queries[id].place) for id, own in each.items()]


def _itself(query: Record, number: int | None, relevances: Mapping[int, int], collection: Collection) -> int | None:
    """Returns the document with the id and the text of a query, whatever its title, unless it is judged relevant."""
    if number is None or relevances.get(number, 0) > 0 or not query.texts[0]:
        return None
    return number if collection.records[number].texts[0].endswith(query.texts[0]) else None


def _pairs(qrels: Sequence[_Qrel], queries: Mapping[str, Record], corpus: Mapping[str, Record], notes: list[str]) -> Records:
    """Returns a record for each query and relevant document, with the place of the judgement."""
    records, itself, empty = Records(), list[str](), list[str]()
    for one in qrels:
        texts = queries[one.query].texts[0], corpus[one.document].texts[0]
        if one.relevance > 0 and "" in texts:
            empty.append(one.place)
        elif one.relevance > 0 and texts[0] == texts[1]:
            itself.append(one.place)
        elif one.relevance > 0:
            records.append(Record(texts, None, f"{one.query} {one.document}", one.place))
    answered = {one.query for one in qrels if one.relevance > 0}
    without = [queries[id].place for id in dict.fromkeys(one.query for one in qrels) if id not in answered]
    notes.append(f"train: {len(records)} pairs of {len(answered)} queries and their relevant documents")
    notes += [f"warning: train: {len(without)} queries have no relevant document: left out: {few(without)}"] * bool(without)
    notes += [f"warning: train: {len(itself)} queries are their own document: left out: {few(itself)}"] * bool(itself)
    notes += [f"warning: train: {len(empty)} pairs with an empty text: left out: {few(empty)}"] * bool(empty)
    if not records:
        raise InputError(f"{qrels[0].place if qrels else 'qrels/train.tsv'}: no query has a relevant document to train on")
    return records
