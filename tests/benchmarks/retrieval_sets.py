"""The data sets of retrieval_quality.py: Cranfield, a folder in BEIR's layout, and a synthetic one."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import protocol
from retrieval import records

PARTS = 5  # of the queries by number: 0 tests, 1 is dev, the others train
DEV_ROWS, NEGATIVES = 8, 3
Judged = dict[str, dict[str, int]]  # query -> document -> grade, above 0 where it is relevant


class Collection(NamedTuple):
    """Texts by id, and the judgements of each split: train, dev and test."""

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Judged]


def by_number(queries: Mapping[str, str], judged: Judged) -> dict[str, Judged]:
    """Splits judgements by the number of their query, from 1 in the order of the file."""
    splits: dict[str, Judged] = {"train": {}, "dev": {}, "test": {}}
    for number, query in enumerate(queries, 1):
        if query in judged:
            splits[{0: "test", 1: "dev"}.get(number % PARTS, "train")][query] = judged[query]
    return splits


def read(folder: Path) -> Collection:
    """Reads the files of Cranfield, or a folder in BEIR's layout."""
    return read_cranfield(folder) if (folder / "cran.all.1400").exists() else read_beir(folder)


def read_cranfield(folder: Path) -> Collection:
    """Reads the files of the SMART system. Codes from 1, a complete answer, to 4 are the grades 4 to 1; -1 is of no interest."""
    names, judged = ("cran.all.1400", "cran.qry"), Judged()
    documents, queries = ({str(i): record["W"] for i, record in enumerate(records(folder / name), 1)} for name in names)
    for line in (folder / "cranqrel").read_text().splitlines():
        query, document, code = line.split()
        judged.setdefault(query, {})[document] = 5 - int(code) if int(code) > 0 else 0
    return Collection(documents, queries, by_number(queries, judged))


def read_beir(folder: Path) -> Collection:
    """Reads a folder in BEIR's layout; the judgements are split here unless there are some for training and for the test."""
    files = (protocol.read_lines(folder / f"{name}.jsonl") for name in ("corpus", "queries"))
    documents, queries = ({row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in file} for file in files)
    qrels: dict[str, Judged] = {}
    for path in sorted((folder / "qrels").glob("*.tsv")):
        for line in path.read_text().splitlines()[1:]:
            query, document, grade = line.split("\t")
            qrels.setdefault(path.stem, {}).setdefault(query, {})[document] = int(grade)
    if {"train", "test"} <= qrels.keys():
        return Collection(documents, queries, {"dev": {}} | qrels)
    return Collection(
        documents, queries, by_number(queries, {query: own for each in qrels.values() for query, own in each.items()})
    )


CUSTOMERS = {
    "Anna": "baker", "Boris": "carpenter", "Clara": "dentist", "David": "farmer", "Emma": "judge", "Frank": "librarian",
    "Grace": "musician", "Henry": "painter", "Irene": "pilot", "James": "plumber", "Karen": "sailor", "Louis": "tailor",
    "Maria": "teacher", "Nora": "waiter", "Oscar": "lawyer", "Paula": "nurse",
}  # fmt: skip
GOODS = ("chairs", "lamps", "tables", "carpets", "mirrors", "shelves", "clocks", "baskets")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def synthetic(customers: int, months: int, years: int) -> Collection:
    """Returns an order of each customer in each month, and a query for each: it names the profession, the document the person."""
    rng, names = random.Random(0), list(CUSTOMERS)[:customers]
    orders = [(name, month, 2001 + year) for name in names for month in MONTHS[:months] for year in range(years)]
    rng.shuffle(orders)
    documents, queries = dict[str, str](), dict[str, str]()
    for number, (name, month, year) in enumerate(orders, 1):
        documents[f"{number}"] = f"{name} ordered {rng.randrange(2, 30)} {rng.choice(GOODS)} in {month} {year}."
        queries[f"{number}"] = f"What did the {CUSTOMERS[name]} buy in {month} {year}?"
    return Collection(documents, queries, by_number(queries, {id: {id: 1} for id in queries}))


def write(found: Collection, folder: Path) -> None:
    """Writes what the programs read.

    data/ is in BEIR's layout; pairs.jsonl has the pairs of the training queries. dev.jsonl has a few pairs for a run to show its
    progress on, with negatives drawn by seed 0 and scores, which tables of other columns do without; corpus.txt has the texts.
    """
    (folder / "data" / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", found.documents), ("queries", found.queries)):
        protocol.write_lines(folder / "data" / f"{name}.jsonl", ({"_id": id, "text": text} for id, text in texts.items()))
    for split in ("train", "test"):
        each = [(query, document, grade) for query, own in found.qrels[split].items() for document, grade in own.items()]
        lines = (f"{query}\t{document}\t{grade}\n" for query, document, grade in each)
        (folder / "data" / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    train, dev = (pairs(found, split) for split in ("train", "dev"))
    protocol.write_lines(folder / "pairs.jsonl", train)
    rng, texts = random.Random(0), [text for text in found.documents.values() if text]
    more = ({f"negative_{i}": text for i, text in enumerate(rng.sample(texts, NEGATIVES), 1)} for _ in range(DEV_ROWS))
    scores = {"scores": [1.0] + NEGATIVES * [0.0]}
    protocol.write_lines(folder / "dev.jsonl", (row | own | scores for row, own in zip(dev or train, more, strict=False)))
    (folder / "corpus.txt").write_text("".join(f"{' '.join(text.split())}\n" for text in texts))


def pairs(found: Collection, split: str) -> list[dict[str, str]]:
    """Returns a row for each query of a split and each relevant document that is not empty."""
    return [
        {"query": found.queries[query], "positive": found.documents[document]}
        for query, own in found.qrels[split].items() for document, grade in own.items() if grade > 0 and found.documents[document]
    ]  # fmt: skip
