"""Packing into rows, and what is read off rows again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.examples import full_sentences
from bert_jax.data.packing import describe, pack, to_rows


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=60))))
def test_each_example_is_in_one_row_and_no_row_is_overfull(case):
    row_length, lengths = case
    rows = pack(lengths, row_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row == sorted(row) and sum(lengths[i] for i in row) <= row_length for row in rows)
    assert rows == sorted(rows)
    assert rows == pack(np.array(lengths, int), row_length)
    total = sum(lengths)
    assert len(rows) <= 2 * total / row_length + 1  # at most one row is less than half full


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [([], []), ([8], [[0]]), ([4, 4, 4], [[0, 1], [2]]), ([1, 7, 2, 6], [[0, 1], [2, 3]]), ([3, 8, 5, 1], [[0, 2], [1], [3]])],
)
def test_rows_of_a_few_examples(lengths, rows):
    assert pack(lengths, 8) == rows


def fill_rate(lengths, row_length):
    return sum(lengths) / (len(pack(lengths, row_length)) * row_length)


def test_realistic_lengths_fill_at_least_nineteen_twentieths():
    """Runs as full_sentences makes them of documents of a few to a few hundred sentences."""
    rng = np.random.default_rng(0)
    documents = []
    for sentences in rng.lognormal(2.3, 1.1, 1500):
        lengths = rng.lognormal(3.15, 0.55, 1 + int(sentences)).astype(int).clip(3, 200)
        documents.append([np.full(n, 7, np.int32) for n in lengths])
    for row_length in (128, 512):
        lengths = [len(run) for own in documents for run in full_sentences(own, row_length, 1, 2)]
        assert fill_rate(lengths, row_length) >= 0.95


def test_lengths_of_all_sizes_fill_nearly_all():
    assert fill_rate(np.random.default_rng(0).integers(3, 129, 2000), 128) >= 0.97


def test_rows_are_joined_examples_and_padding():
    examples = [np.array(x, np.int32) for x in ([1, 7, 2], [1, 8, 8, 8, 2], [1, 9, 2])]
    rows = to_rows(examples, [[0, 2], [1]], 7, pad_id=0)
    assert rows.tolist() == [[1, 7, 2, 1, 9, 2, 0], [1, 8, 8, 8, 2, 0, 0]]
    assert rows.dtype == np.int32
    assert to_rows([], [], 7, pad_id=0).shape == (0, 7)


# ---- describe


def slowly(row, cls_id, sep_id, pad_id):
    types, positions, sequences = [], [], []
    sequence = position = kind = 0
    for token in row:
        if token == pad_id:
            types.append(0), positions.append(0), sequences.append(0)
            continue
        if token == cls_id:
            sequence, position, kind = sequence + 1, 0, 0
        types.append(kind), positions.append(position), sequences.append(sequence)
        position += 1
        kind |= token == sep_id
    return {"token_type_ids": types, "position_ids": positions, "sequence_ids": sequences}


BERT = dict(cls_id=1, sep_id=2, pad_id=0)
ROBERTA = dict(cls_id=0, sep_id=2, pad_id=1)
texts = st.lists(st.integers(3, 9), max_size=6)
examples = st.lists(st.tuples(texts, st.none() | texts), max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.lists(examples, min_size=1, max_size=4), st.sampled_from([BERT, ROBERTA]))
def test_what_follows_from_rows_is_what_a_slow_loop_finds(rows, ids):
    cls, sep, pad = ids["cls_id"], ids["sep_id"], ids["pad_id"]
    joined = [[t for a, b in row for t in [cls, *a, sep, *([] if b is None else [*b, sep])]] for row in rows]
    length = max(map(len, joined)) + 2
    array = np.array([row + [pad] * (length - len(row)) for row in joined], np.int32)
    found = describe(array, **ids)
    assert set(found) == {"token_type_ids", "position_ids", "sequence_ids"}
    for name, values in found.items():
        assert values.dtype == np.int32
        assert values.tolist() == [slowly(row, **ids)[name] for row in array.tolist()]


def test_ids_like_robertas_are_told_apart_from_padding():
    found = describe(np.array([[0, 7, 2, 0, 8, 2, 9, 2, 1, 1]]), **ROBERTA)
    assert found["sequence_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 2, 0, 0]]
    assert found["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 0]]
    assert found["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize("ids", [BERT, ROBERTA])
def test_rows_of_padding_are_all_zeros(ids):
    for values in describe(np.full((2, 5), ids["pad_id"]), **ids).values():
        assert not values.any()
