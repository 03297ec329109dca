"""Tables of queries, documents and negatives: what is read, what is left out and counted, and the order of equal scores."""

import json

import numpy as np
import pytest

import bert_jax
from bert_jax.data.finetuning import Encoded
from bert_jax.data.records import Record
from bert_jax.errors import InputError
from bert_jax.finetuning import stages
from bert_jax.finetuning.config import FinetuneConfig
from bert_jax.tasks.ranking import Ranking
from bert_jax.tasks.split import Predicted, Split
from bert_jax.tasks.splits import Splits, load_splits
from bert_jax.tasks.table import KINDS, find_task
from bert_jax.tasks.task import Options, TaskData
from bert_jax.tuned import Tuned

RETRIEVAL = KINDS["retrieval"]


def write(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(data, task="retrieval", **options):
    return load_splits(find_task(task), TaskData(data=str(data), **options))


def rows_of(count, negatives=("negative",), **more):
    return [
        {"query": f"q {i}", "positive": f"p {i}", **{name: f"{name} {i}" for name in negatives}, **more} for i in range(count)
    ]


def test_all_numbered_negatives_are_read_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path, "train", rows_of(4, [f"negative_{i}" for i in (10, 2, 1, 99)]))
    (texts, *_) = (record.texts for record in load(tmp_path / "train.jsonl", dev_size=1).train)
    number = texts[0][2:]
    assert texts == (f"q {number}", f"p {number}", *(f"negative_{i} {number}" for i in (1, 2, 10, 99)))


def test_negatives_that_are_none_and_rows_without_two_texts_are_counted_with_their_lines(tmp_path):
    rows = [
        {"query": "a", "positive": "b", "negative_1": "c", "negative_2": "d"},
        {"query": "a", "positive": "c", "negative_1": "b", "negative_2": "a"},  # both are no negatives
        {"query": "e", "positive": "f", "negative_1": "e", "negative_2": "b"},
        {"query": "g", "positive": "h", "negative_1": "", "negative_2": " "},
        {"query": "i", "positive": "i", "negative_1": "b", "negative_2": "c"},
        {"query": "j", "positive": " ", "negative_1": "b", "negative_2": "c"},
        {"query": "", "positive": "k", "negative_1": "b", "negative_2": "c"},
    ]
    write(tmp_path, "train", rows)
    splits, place = load(tmp_path, dev=str(tmp_path / "train.jsonl")), f"{tmp_path}/train.jsonl"
    assert [record.texts[0] for record in splits.train] == ["a", "a", "e", "g"]
    said = [
        f"warning: train: 2 rows left out, without a query or a document: {place}:6, {place}:7",
        f"warning: train: 1 rows left out, whose query is the document: {place}:5",
        "warning: train: 3 rows have negatives that are the query or known to answer it, and do not count: "
        f"{place}:1, {place}:2, {place}:3",
        f"train: 2 rows have fewer negatives than columns: {place}:1, {place}:3",
        f"warning: train: 2 rows have no negative: {place}:2, {place}:4",
    ]
    assert [note for note in splits.notes if note in said] == said


def test_scores_of_a_teacher_are_never_missing_in_silence(tmp_path):
    rows = rows_of(5)
    for i, row in enumerate(rows):
        row["scores"] = [2.0, 1.0] if i != 3 else None
    write(tmp_path, "train", rows)
    write(tmp_path, "dev", rows_of(2))  # without the column
    splits = load(tmp_path, label_column=("scores",))
    assert len(splits.train) == 4
    assert f"warning: train: 1 of 5 rows have no label (empty 1): left out: {tmp_path}/train.jsonl:4" in splits.notes
    notes = load(tmp_path / "train.jsonl", label_column=("scores",), dev_size=2).notes
    assert not any("do not show what was learnt" in note for note in notes)  # that is for labels that scores are made of
    write(tmp_path, "train", rows_of(5, scores=None))
    with pytest.raises(InputError, match=r"train.jsonl: 'scores' is empty in all 5 rows: name another column"):
        load(tmp_path, label_column=("scores",))
    with pytest.raises(InputError, match="reranking learns which document is the positive, and no labels or scores"):
        load(tmp_path, "reranking", label_column=("scores",))
    write(tmp_path, "train", rows_of(5, (), scores=[1.0]))
    train = load(tmp_path, label_column=("scores",)).train
    with pytest.raises(InputError, match=r"train.jsonl:1: a teacher's scores compare a document with negatives"):
        RETRIEVAL.settle(Options(), train)


@pytest.mark.parametrize(
    ("prompt", "prompts", "options", "expected"),
    [
        ("", {"query": "q: ", "passage": "p: "}, {}, {"query": "q: ", "passage": "p: ", "document": "p: "}),
        ("", {"query": "q: ", "passage": "p: "}, {"document_prompt": ""}, {"query": "q: ", "passage": "p: ", "document": ""}),
        ("d: ", {"query": ""}, {}, {"query": "", "document": "d: "}),
        ("", {}, {}, {}),
    ],
)
def test_the_export_has_the_prompts_of_training_where_sentence_transformers_looks(prompt, prompts, options, expected, tokenizer):
    pooling = bert_jax.Pooling(prompt=prompt, prompts=prompts)
    model = bert_jax.Model(bert_jax.BertConfig(vocab_size=280), {}, tokenizer, "encoder", pooling=pooling)
    splits = Splits([], {}, {}, (), [], "")
    adapted, notes = RETRIEVAL.adapt(model, 16, find_task("retrieval"), splits, Options(**options))
    assert adapted.pooling.prompts == expected
    said = {"query": "queries", "document": "documents"}
    assert notes == [f"{said[name]} begin with {text!r}" for name, text in expected.items() if name in said and text]


def test_a_length_that_the_files_of_the_model_cut_is_told_of(tokenizer):
    model = bert_jax.Model(bert_jax.BertConfig(vocab_size=280), {}, tokenizer, "encoder", pooling=bert_jax.Pooling(max_length=32))
    for length, limit, said in ((32, 32, []), (64, 32, ["warning: texts are cut to 32 tokens, not to 64, by max_seq_length in"])):
        found, notes = stages._limit(FinetuneConfig(model="m", max_seq_length=length), model)
        assert (found, [note[: len(text)] for note, text in zip(notes, said, strict=True)]) == (limit, said)


def test_documents_of_a_table_with_equal_scores_rank_as_trec_eval_ranks_them(tmp_path):
    records = [Record((f"q {i}", f"p {i}", f"n {i}"), None, f"r{i}", f"f:{i}") for i in range(6)]
    ranking = Ranking(np.arange(12), np.ones(12, np.float32))  # of equal scores, the smaller number first
    predicted = Predicted(Split("dev", records, Encoded(())), [ranking] * 6, (), Tuned("retrieval"))
    found = RETRIEVAL.scores(predicted, ())
    lines = [line.split() for line in RETRIEVAL.write(tmp_path, predicted).read_text().splitlines()]
    for i in range(6):
        ids = [line[2] for line in lines if line[0] == f"r{i}"]
        assert ids == sorted(ids, reverse=True)
    assert ids[0] == "d11"
    assert found["recall_at_1"] == 0  # the document of each row stands before its negative: the last of all is a negative
    assert found["recall_at_10"] == pytest.approx(5 / 6)
