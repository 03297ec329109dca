"""Folders in BEIR's layout: the records that they give, and what is wrong with others."""

import dataclasses
import json

import numpy as np
import pytest

from bert_jax.errors import InputError
from bert_jax.tasks.ranking import Ranking
from bert_jax.tasks.splits import load_splits
from bert_jax.tasks.table import find_task
from bert_jax.tasks.task import TaskData

CORPUS = [("d1", "Wings", "lift and drag"), ("d2", "", "heat flow"), ("d10", "", "a slender body")]
QUERIES = [("q1", "what is lift"), ("q2", "what is heat"), ("q3", "what is slender")]
QRELS = {
    "train": [("q1", "d1", 1), ("q1", "d10", 2), ("q2", "d2", 0), ("q2", "d10", 1)],
    "dev": [("q3", "d10", 2), ("q3", "d1", 0)],
}


def write(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS):
    (folder / "qrels").mkdir()
    rows = [{"_id": id, "title": title, "text": text} for id, title, text in corpus]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": id, "text": text}) + "\n" for id, text in queries))
    for name, lines in qrels.items():
        table = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, line)) for line in lines)]
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(table) + "\n")
    return str(folder)


def load(folder, **options):
    return load_splits(find_task("retrieval"), TaskData(data=folder, **options))


def test_a_folder_gives_pairs_to_train_on_and_judged_queries(tmp_path):
    splits = load(write(tmp_path))
    assert [record.texts for record in splits.train] == [
        ("what is lift", "Wings lift and drag"), ("what is lift", "a slender body"), ("what is heat", "a slender body"),
    ]  # fmt: skip
    assert splits.train[1].place == f"{tmp_path}/qrels/train.tsv:3"
    (record,) = splits.dev["dev"]
    assert record.label.collection.ids == ["d2", "d10", "d1"]  # as trec_eval ranks them where scores are equal
    assert (record.texts, record.label.relevances) == (("what is slender",), {1: 2, 2: 0})
    assert not splits.test


def test_queries_are_held_out_where_no_dev_judgements_are(tmp_path):
    splits = load(write(tmp_path, qrels={"train": QRELS["train"]}), dev_size=1)
    held = {record.texts[0] for record in splits.dev["dev"]}
    assert len(held) == 1
    assert {record.texts[0] for record in splits.train} == {"what is lift", "what is heat"} - held


def test_a_query_does_not_find_itself(tmp_path):
    """As in BEIR's evaluation of ArguAna, whose queries are documents of the corpus."""
    corpus = [("a1", "Title", "wings lift"), ("a2", "", "wings drag"), ("a3", "", "other text"), ("a4", "", "wings turn")]
    queries = [("a1", "wings lift"), ("a2", "wings drag"), ("a3", "text"), ("a4", "wings turn more")]
    qrels = [("a1", "a2", 1), ("a2", "a2", 1), ("a3", "a1", 1), ("a4", "a1", 1)]
    splits = load(write(tmp_path, corpus, queries, {"train": [("a4", "a3", 1)], "dev": qrels}))
    labels = [record.label for record in splits.dev["dev"]]
    ids = labels[0].collection.ids
    assert [label.itself and ids[label.itself] for label in labels] == ["a1", None, "a3", None]  # a2 is judged relevant
    ranking = Ranking(np.arange(4), np.array([4, 3, 2, 1], np.float32))
    assert [ids[i] for i in labels[0].others(ranking).documents] == ["a4", "a3", "a2"]
    assert labels[0].others(ranking).scores.tolist() == [4, 3, 2]
    assert labels[3].others(ranking) is ranking
    assert any(note.startswith("dev: 2 queries are documents of the corpus") for note in splits.notes)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_table_is_scored_on_the_judged_queries_of_a_folder(split, tmp_path):
    folder = write(tmp_path, qrels={split: [*QRELS["dev"], ("q1", "d1", 1)]})
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"query": f"what is {i}", "positive": f"{i} is"}) + "\n" for i in range(9))
    )
    splits = load(str(tmp_path / "pairs.jsonl"), **{split: folder}, chunk_documents="8")
    records = getattr(splits, split)[split]
    assert [record.texts for record in records] == [("what is slender",), ("what is lift",)]
    assert (records[1].label.relevances, records[1].label.collection.chunk.tokens) == ({2: 1}, 8)
    assert len(splits.train) == (9 if split == "dev" else 8)
    assert f"{split}: 2 queries with 3 judgements" in splits.notes
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", qrels={split: [("q1", "d1", 1)]})
    assert load(str(tmp_path / "pairs.jsonl"), **{split: other}).data_hash != splits.data_hash


def test_a_folder_without_judgements_of_the_split_is_refused(tmp_path):
    folder = write(tmp_path, qrels={"train": QRELS["train"]})
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"query": "what is lift", "positive": "a force"}) + "\n")
    with pytest.raises(InputError, match=r"qrels/dev\.tsv"):
        load(str(tmp_path / "pairs.jsonl"), dev=folder)


def test_the_judgements_of_any_split_are_scored(tmp_path):
    task = dataclasses.replace(find_task("retrieval"), test_only=True)
    dev, folder = dataclasses.replace(task, split="dev"), write(tmp_path)
    splits = load_splits(dev, TaskData(data=folder))
    assert [record.texts for record in splits.test["dev"]] == [("what is slender",)]
    assert not splits.train
    with pytest.raises(InputError, match=r"no qrels/test.tsv; qrels there: train, dev; choose one of them with --split"):
        load_splits(task, TaskData(data=folder))
    with pytest.raises(InputError, match=r"--split is for retrieval from a folder in BEIR's layout"):
        load_splits(dev, TaskData(data=f"{folder}/queries.jsonl"))


TRAIN = QRELS["train"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"qrels": {"train": [*TRAIN, ("q9", "d1", 1)]}}, r"train.tsv:6 \('q9' is not in queries.jsonl\); 1 such lines"),
        ({"qrels": {"train": [("q1", "d9", 1), *TRAIN]}}, r"train.tsv:2 \('d9' is not in corpus.jsonl\); 1 such lines"),
        ({"qrels": {"train": [("q1", "d1", "x")]}}, r"train.tsv:2: the score 'x' is not a whole number"),
        ({"qrels": {"train": [*TRAIN, ("q1", "d1", 0)]}}, r"train.tsv:6: .*train.tsv:2 gives query 'q1'.* another score"),
        ({"qrels": {"dev": QRELS["dev"]}}, r"no qrels/train.tsv; qrels there: dev"),
        ({"corpus": [*CORPUS, (None, "", "x")]}, r"corpus.jsonl:4: '_id' is None: give each text an id"),
        ({"corpus": [*CORPUS, ("", "", "x")]}, r"corpus.jsonl:4: '_id' is '': give"),
        ({"corpus": [*CORPUS, ("\ud800", "", "x")]}, r"corpus.jsonl:4: '_id' has half a surrogate pair"),
        ({"queries": [*QUERIES, ("q4", False)]}, r"queries.jsonl:4: 'text' is False, not a text"),
        ({"qrels": {"train": [("q1", "d1", 0), ("q2", "d1", 0)]}}, "no query has a relevant document to train on"),
        ({"corpus": [*CORPUS, ("d1", "", "other")]}, r"corpus.jsonl:4: the id 'd1' has another text in .*corpus.jsonl:1"),
    ],
)
def test_data_that_does_not_fit_is_named_with_its_place(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load(write(tmp_path, **changes), dev_size=1)


def test_what_is_left_out_is_counted(tmp_path):
    corpus = [*CORPUS, CORPUS[0], ("d3", "", "what is lift"), ("d4", "", "")]
    qrels = {
        "train": [*TRAIN, ("q1", "d3", 1), ("q3", "d1", 0), ("q9", "d1", 1), ("q1", "d4", 1), TRAIN[0]],
        "dev": [("q1", "d1", 0), ("q2", "d2", 1)],
    }
    folder = write(tmp_path, corpus=corpus, queries=[*QUERIES, ("q4", "nobody asks")], qrels=qrels)
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write("{no JSON\n")
    with pytest.raises(InputError, match=r"corpus.jsonl:7: not a JSON object"):
        load(folder)
    notes = load(folder, on_error="skip").notes
    for said in (
        "warning: 1 lines of corpus.jsonl repeat an id with its text: ", "train.tsv left out, with unknown ids: ",
        "warning: dev: 1 queries have no relevant document and score 0: ",
        f"warning: train: 1 queries have no relevant document: left out: {tmp_path}/queries.jsonl:3",
        f"corpus.jsonl left out that cannot be read: {tmp_path}/corpus.jsonl:7",
        f"warning: 1 lines of {tmp_path}/qrels/train.tsv repeat a judgement: {tmp_path}/qrels/train.tsv:10",
        f"warning: train: 1 pairs with an empty text: left out: {tmp_path}/qrels/train.tsv:9",
        f"1 of 4 queries have no judgement: {tmp_path}/queries.jsonl:4",
        f"warning: 2 of 2 dev queries are also in training: {tmp_path}/queries.jsonl:1, {tmp_path}/queries.jsonl:2",
        "warning: train: 1 queries are their own document: left out: ",
    ):  # fmt: skip
        assert any(said in note for note in notes), said


def test_a_text_needs_a_field_of_it(tmp_path):
    folder = write(tmp_path)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "contents": "lift"}\n')
    with pytest.raises(InputError, match=r"corpus.jsonl:1: no 'text', it has _id, contents"):
        load(folder)


def test_options_for_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"--max-train-rows: .* is in BEIR's layout"):
        load(write(tmp_path), max_train_rows=2)
