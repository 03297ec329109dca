"""Records and items in columns: they give back what went in, and take few bytes a byte of the file."""

import dataclasses
import random
import tracemalloc

import numpy as np
import pytest
from helpers import make_words
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import BertConfig
from bert_jax.data.finetuning import Batches, Items, special_tokens_in
from bert_jax.data.layout import Layout
from bert_jax.data.records import Record, Records, groups_of, labels_of, numbered, take, texts_of, with_labels
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks import holdout
from bert_jax.tasks.classification import Indicators
from bert_jax.tasks.splits import load_splits
from bert_jax.tasks.table import KINDS, find_task
from bert_jax.tasks.task import TaskData

CFG = BertConfig(vocab_size=280, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                 max_position_embeddings=64)  # fmt: skip
RECORDS = [
    Record(("a film",), "good", "0", "a.csv:2"),
    Record(("",), Indicators(("1", "0")), "1", "a.csv:3"),
    Record(("", ""), ("1", "0"), "2", "a.csv:900719925474099312345"),
    Record(("\xff\xfe þ 字", "b", ""), 0.5, "", "a.csv:04"),
    Record(("\0\n",), None, "4", "", "a group"),
    Record(("=",), (), "05", "a.csv: row 7", ""),
    Record(("last",), "good", "6", "a.csv:0", "="),
    Record(("last",), "good", "\ud800", "\udcff:1"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([" ".join(make_words())], 280, "wordpiece")


def stored(records):
    columns = Records()
    for record in records:
        columns.append(record)
    return columns


def test_records_come_back_as_they_went_in():
    columns = stored(RECORDS)
    assert list(columns) == RECORDS == columns
    assert [columns[i] for i in range(-8, 8)] == RECORDS * 2
    assert [type(record.label) for record in columns] == [type(record.label) for record in RECORDS]
    assert columns[2:4] == RECORDS[2:4]
    assert columns != RECORDS[1:]
    with pytest.raises(IndexError):
        columns[8]
    assert stored([]) == []


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
anything = st.text(max_size=6)
label = st.none() | text | st.floats(allow_nan=False) | st.tuples(text, text)
record = st.builds(Record, st.lists(text, min_size=1, max_size=3).map(tuple), label, anything, anything, st.none() | anything)


@settings(max_examples=100, deadline=None)
@given(st.lists(record, max_size=6), st.data())
def test_columns_and_lists_of_records_are_used_alike(records, data):
    columns = stored(records)
    rows = data.draw(st.lists(st.integers(0, len(records) - 1), max_size=6)) if records else []
    for form in (lambda one: one, lambda one: take(one, rows), lambda one: take(take(one, rows), range(len(rows)))):
        ours, expected = form(columns), form(records)
        assert ours == expected
        for of in (labels_of, texts_of, groups_of):
            assert list(of(ours)) == list(of(expected))
        numbers = list(range(len(expected)))
        assert with_labels(ours, numbers) == [dataclasses.replace(r, label=i) for i, r in enumerate(expected)]
    assert columns == records


@given(st.lists(st.integers(-3, 3)))
def test_keys_are_numbered_in_the_order_in_which_they_come_first(keys):
    known = list(dict.fromkeys(keys))
    assert numbered(map(str, keys)).tolist() == [known.index(key) for key in keys]


@pytest.mark.parametrize("kind, counts", [
    ("classification", [1]), ("classification", [2]), ("classification", [1, 2]), ("regression", [1]), ("multi_label", [2, 1]),
    ("similarity", [3]), ("multiple_choice", [4]), ("multiple_choice", [3, 5, 4]),
])  # fmt: skip
def test_items_are_those_of_their_records_encoded_alone(kind, counts, tokenizer, monkeypatch):
    monkeypatch.setattr("bert_jax.data.finetuning._PORTION", 60)
    rng, words, layout = random.Random(0), make_words(), Layout(tokenizer, CFG, 16)
    labels = {"classification": ["a", "b", None], "multi_label": [("a",), (), ("a", "b")], "multiple_choice": [0, 1]}
    texts = [[" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(counts[i % len(counts)])] for i in range(12)]
    records = [Record(tuple(of), rng.choice(labels.get(kind, [0.5, 1.0])), str(i), f"f:{i}") for i, of in enumerate(texts)]
    encoded = KINDS[kind].encode(stored(records), ("a", "b"), layout)
    assert isinstance(encoded.items, Items)
    alone = [KINDS[kind].encode([record], ("a", "b"), layout) for record in records]
    assert encoded.lost == sum(one.lost for one in alone) > 0
    for items, place in ((encoded.items, 0), (encoded.read_from(9).items, 9)):
        assert len(items) == len(records)
        for i, (one, record) in enumerate(zip(items, records, strict=True)):
            (expected,) = alone[i].items
            sequences, _ = layout.examples(
                [(record.texts[0], t) for t in record.texts[1:]] if kind == "multiple_choice" else
                record.texts if kind == "similarity" else [record.texts if len(record.texts) > 1 else record.texts[0]], 16,
            )  # fmt: skip
            np.testing.assert_array_equal(one.target, expected.target)
            assert one.target.dtype == expected.target.dtype
            assert len(one.sequences) == len(sequences)
            for ours, theirs in zip(one.sequences, sequences, strict=True):
                for name in ("input_ids", "token_type_ids"):
                    np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
                    assert getattr(ours, name).dtype == np.int32
                assert ours.places.tolist() == [min(place, len(theirs.input_ids) - 1)]
    flat = [example for item in encoded.items for example in item.sequences]
    assert [e.input_ids.tolist() for e in encoded.items.sequences] == [e.input_ids.tolist() for e in flat]
    assert encoded.items.lengths.tolist() == [max(len(e.input_ids) for e in item.sequences) for item in encoded.items]
    assert len(KINDS[kind].encode(stored([]), ("a", "b"), layout).items) == 0


@pytest.mark.parametrize("columns", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_table_takes_at_most_four_bytes_a_byte(tmp_path, tokenizer, columns, monkeypatch):
    """What short rows take at the peak of reading them, and of all that is between that and training batches.

    By what more of them take, as the buffers of reading and encoding are the same for any file.
    """
    rng, words, layout = random.Random(0), make_words(), Layout(tokenizer, CFG)
    monkeypatch.setattr("bert_jax.data.finetuning._PORTION", 1 << 13)

    def peaks(rows):
        path = tmp_path / f"{rows}.csv"
        with open(path, "w") as file:
            file.write(("text,label\n", "sentence1,sentence2,label\n")[columns - 1])
            for _ in range(rows):
                texts = [" ".join(rng.choices(words, k=4 // columns)) for _ in range(columns)]
                file.write(",".join([*texts, rng.choice(["negative", "positive"])]) + "\n")
        tracemalloc.start()
        splits = load_splits(find_task("classification"), TaskData(data=str(path)))
        reading = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        special_tokens_in(splits.train, tokenizer)
        holdout.digest(splits.train, splits.dev)
        sides = (splits.train, *splits.dev.values())
        short = dataclasses.replace(layout, limit=64)
        items, *_ = [KINDS["classification"].encode(side, splits.labels, short).items for side in sides]
        Batches(items, 32, "packed", 32, tokenizer.pad_id).train([0], 0)
        rest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return np.array([reading, rest, path.stat().st_size])

    reading, rest, size = peaks(9_000) - peaks(3_000)
    assert reading < 4 * size
    assert rest < 4 * size
