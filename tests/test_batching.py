"""Packing examples into batches of few shapes: nothing lost, nothing mixed, little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.batching import Example, batch_sizes, batches, exact_batches, exact_shape, pack_rows, row_lengths


def example(size, places=1, first=1):
    """One with ids first, first + 1, ... and its last `places` tokens as places."""
    ids = np.arange(first, first + size, dtype=np.int32)
    return Example(ids, (ids % 2).astype(np.int32), np.arange(size - places, size, dtype=np.int32))


def quarter(length):
    return max(4, length // 4)


MIXES = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 4)), max_size=60)


@given(MIXES, st.sampled_from([300, 400, 512]), st.sampled_from([64, 512, 2048]))
@settings(deadline=None, max_examples=150)
def test_every_example_stands_in_one_place_with_all_its_tokens_and_slots(mix, longest, tokens):
    examples = [example(size, min(size, places), 1000 * i + 1) for i, (size, places) in enumerate(mix)]
    seen = []
    for batch in batches(examples, longest, tokens, quarter, pad_id=-7):
        arrays = batch.arrays
        rows, length = arrays["input_ids"].shape
        assert {(a.shape, a.dtype.name) for a in arrays.values()} == {((rows, length), "int32")}
        assert batch.positions.shape == (rows, quarter(length))
        assert batch.positions.dtype == np.int32
        assert length <= longest
        assert rows == 1 or rows * length <= tokens
        taken = np.zeros((rows, length), int)
        slots = np.zeros(batch.positions.shape, int)
        for place in batch.places:
            at, given = (place.row, place.tokens), examples[place.example]
            seen.append(place.example)
            taken[at] += 1
            slots[place.row, place.slots] += 1
            np.testing.assert_array_equal(arrays["input_ids"][at], given.input_ids)
            np.testing.assert_array_equal(arrays["token_type_ids"][at], given.token_type_ids)
            np.testing.assert_array_equal(arrays["position_ids"][at], np.arange(len(given.input_ids)))
            assert len(set(arrays["sequence_ids"][at].tolist())) == 1
            found = arrays["input_ids"][place.row, batch.positions[place.row, place.slots]]
            np.testing.assert_array_equal(found, given.input_ids[given.places])
        assert taken.max() <= 1
        assert slots.max() <= 1
        np.testing.assert_array_equal(arrays["sequence_ids"] > 0, taken > 0)
        assert (arrays["input_ids"][taken == 0] == -7).all()
        for row in arrays["sequence_ids"]:
            used = row[row > 0]
            assert (np.diff(used) >= 0).all()
            assert set(used.tolist()) == set(range(1, 1 + max(used, default=0)))
            assert (row[len(used) :] == 0).all()
    assert sorted(seen) == list(range(len(examples)))


@given(MIXES)
@settings(deadline=None, max_examples=50)
def test_a_rows_examples_fit_its_tokens_and_slots(mix):
    examples = [example(size, min(size, places)) for size, places in mix]
    ladder = row_lengths([len(e.input_ids) for e in examples], 512)
    for length, indices in pack_rows(examples, ladder, quarter):
        assert indices
        assert sum(len(examples[i].input_ids) for i in indices) <= length
        assert sum(len(examples[i].places) for i in indices) <= quarter(length)


@pytest.mark.parametrize("longest", [1, 7, 16, 24, 64, 100, 512, 2000])
def test_an_example_as_long_as_the_model_takes_fits(longest):
    (batch,) = batches([example(longest)], longest, 2048, quarter, 0)
    assert longest <= batch.arrays["input_ids"].shape[1] <= max(16, longest)
    assert batch.arrays["input_ids"].shape[1] <= longest


def test_no_examples_make_no_batches():
    assert list(batches([], 512, 2048, quarter, 0)) == []


def test_a_lone_short_example_is_not_padded_to_a_long_row():
    (batch,) = batches([example(9)], 512, 2048, quarter, 0)
    assert batch.arrays["input_ids"].shape == (1, 16)


def test_rows_double_up_to_what_the_model_takes():
    assert row_lengths([600] * 3 + [20] * 50, 8192) == [64, 128, 256, 512, 1024]
    assert row_lengths([300] * 3, 384) == [64, 128, 256, 384]
    assert row_lengths([3], 8) == [8]


def test_rows_are_powers_of_two_or_a_full_batch():
    assert batch_sizes(0, 24) == []
    assert batch_sizes(48, 24) == [(24, 24), (24, 24)]
    assert batch_sizes(31, 24) == [(24, 24), (7, 8)]
    assert batch_sizes(5, 24) == [(4, 4), (1, 1)]  # 8 would be more than a quarter too many
    assert batch_sizes(23, 24) == [(23, 24)]


def test_the_last_rows_are_one_batch_where_a_shape_costs_more_than_padding():
    assert batch_sizes(0, 24, least_padding=False) == []
    assert batch_sizes(5, 24, least_padding=False) == [(5, 8)]
    assert batch_sizes(29, 24, least_padding=False) == [(24, 24), (5, 8)]
    assert batch_sizes(29, 24, least_padding=False, before=3) == [(24, 24), (5, 24)]
    assert batch_sizes(5, 24, least_padding=False, before=4) == [(5, 24)]
    assert batch_sizes(4 * 24 + 1, 24, least_padding=False) == [(24, 24)] * 4 + [(1, 24)]


@pytest.mark.parametrize("seed", range(5))
def test_an_evaluation_has_one_shape_for_each_row_length(seed):
    sizes = np.clip(np.random.default_rng(seed).lognormal(3, 0.6, 900), 3, 128).astype(int)
    made = list(batches([example(n) for n in sizes], 128, 1024, quarter, 0, least_padding=False))
    shapes = [batch.arrays["input_ids"].shape for batch in made]
    assert len(set(shapes)) == len({length for _, length in shapes})
    assert sorted(place.example for batch in made for place in batch.places) == list(range(900))
    least = sum(batch.arrays["input_ids"].size for batch in batches([example(n) for n in sizes], 128, 1024, quarter, 0))
    assert sum(rows * length for rows, length in shapes) < 1.1 * least


def test_random_mixes_give_few_shapes():
    shapes = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sizes = np.clip(rng.lognormal(rng.uniform(2, 5), 0.6, rng.integers(1, 400)), 3, 512).astype(int)
        shapes |= {b.arrays["input_ids"].shape for b in batches([example(n) for n in sizes], 512, 2048, quarter, 0)}
    full = {16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4}
    assert all(rows == full[length] or (rows < full[length] and rows & (rows - 1) == 0) for rows, length in shapes)
    assert len({shape for shape in shapes if shape[1] >= 64}) <= 18


@pytest.mark.parametrize("seed", range(5))
def test_natural_lengths_leave_less_than_three_hundredths_as_padding(seed):
    sizes = np.clip(np.random.default_rng(seed).lognormal(np.log(25) - 0.18, 0.6, 2000), 3, 512).astype(int)
    assert 23 < sizes.mean() < 27
    computed = sum(b.arrays["input_ids"].size for b in batches([example(n) for n in sizes], 512, 2048, quarter, 0))
    assert 1 - sizes.sum() / computed < 0.03


@pytest.mark.parametrize(
    "sizes, places",
    [(np.clip(np.random.default_rng(0).lognormal(3, 0.6, 20_000), 3, 512).astype(int), 1), ([10] * 20_000, 3),
     ([40] * 10_000 + [20] * 10_000, 1)],
    ids=["natural", "slots run out", "equal"],
)  # fmt: skip
def test_twenty_thousand_examples_are_packed(sizes, places):
    examples = [example(n, places) for n in sizes]
    ladder = row_lengths(list(map(len, (e.input_ids for e in examples))), 512)
    rows = pack_rows(examples, ladder, lambda length: max(4, length // 16))
    assert sum(len(indices) for _, indices in rows) == 20_000


@given(MIXES)
@settings(deadline=None, max_examples=50)
def test_an_exact_example_stands_alone_in_a_shape_of_its_own_length(mix):
    examples = [example(size, min(size, places), 1000 * i + 1) for i, (size, places) in enumerate(mix)]
    seen = []
    for batch in exact_batches(examples, 256, 4, pad_id=-7):
        shape, rows = batch.arrays["input_ids"].shape, [place.row for place in batch.places]
        assert batch.positions.shape == (shape[0], 4)
        assert len(set(rows)) == len(rows)
        for place in batch.places:
            ids = examples[place.example].input_ids
            seen.append(place.example)
            assert exact_shape(len(ids), 256) == shape
            assert (place.tokens, place.slots.start) == (slice(0, len(ids)), 0)
            np.testing.assert_array_equal(batch.arrays["input_ids"][place.row, : len(ids)], ids)
            assert (batch.arrays["sequence_ids"][place.row] == (np.arange(shape[1]) < len(ids))).all()
    assert sorted(seen) == list(range(len(examples)))


def test_exact_shapes_are_powers_of_two_by_multiples_of_eight():
    for size in range(1, 9000):
        rows, length = exact_shape(size, 256)
        assert (rows & (rows - 1), length % 8) == (0, 0)
        assert size <= length < max(size + 8, 1.25 * size + 1)
        assert rows == 1 or 256 <= rows * length < 512
