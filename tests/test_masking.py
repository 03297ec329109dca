"""Masking: literal arrays, properties that hold for all arrays, shares on large samples, and determinism."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bert_jax.config import MaskingConfig
from bert_jax.data.masking import Vocabulary, _choose_spans, is_causal, mask_rows, next_tokens, random_bits, target_counts

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
V = 30
ALL_START = np.ones(V, bool)
KINDS = {
    "exact": MaskingConfig(rate=0.3),
    "bernoulli": MaskingConfig(rate=0.3, count="bernoulli"),
    "whole words": MaskingConfig(rate=0.3, whole_word=True),
    "spans": MaskingConfig(rate=0.3, spans=True),
}
every_kind = pytest.mark.parametrize("cfg", KINDS.values(), ids=KINDS.keys())


def vocabulary(starts=ALL_START, size=V):
    return Vocabulary(size, MASK, SPECIAL, starts)


def some_rows(count, length=24, seed=0):
    ids = np.random.default_rng(seed).integers(5, V, (count, length)).astype(np.int32)
    ids[:, 0], ids[:, -4], ids[:, -3:] = CLS, SEP, PAD
    return ids


def chosen(out, row):
    """Positions that count in a row."""
    return out["masked_positions"][row][out["masked_weights"][row] > 0].tolist()


def words_of(ids, starts):
    """Positions of each word of one row, told the slow way."""
    words, open_word = [], False
    for position, token in enumerate(ids.tolist()):
        if token in SPECIAL:
            open_word = False
        elif starts[token] or not open_word:
            words.append([position])
            open_word = True
        else:
            words[-1].append(position)
    return words


def wanted_in(ids, cfg):
    return min(cfg.num_slots(len(ids)), max(1, round(int((ids != PAD).sum()) * cfg.rate)))


# ---- literal arrays


def test_one_candidate_becomes_the_mask_token_and_is_remembered():
    out = mask_rows(np.array([[CLS, 9, SEP, PAD]]), vocabulary(), MaskingConfig(rate=0.5, mask_prob=1.0, random_prob=0.0), 0, 0)
    assert out["input_ids"].tolist() == [[CLS, MASK, SEP, PAD]]
    assert out["masked_positions"].tolist() == [[1, 0]]
    assert out["masked_ids"].tolist() == [[9, 0]]
    assert out["masked_weights"].tolist() == [[1.0, 0.0]]
    assert {k: v.dtype.name for k, v in out.items()} == {
        "input_ids": "int32", "masked_positions": "int32", "masked_ids": "int32", "masked_weights": "float32",
    }  # fmt: skip


def test_a_row_of_specials_and_padding_is_left_as_it_is():
    ids = np.array([[CLS, UNK, SEP, PAD], [PAD] * 4])
    for cfg in KINDS.values():
        out = mask_rows(ids, vocabulary(), cfg, 0, 0)
        assert out["input_ids"].tolist() == ids.tolist()
        assert not out["masked_weights"].any()
        assert not out["masked_positions"].any()
        assert not out["masked_ids"].any()


def test_padding_is_what_the_caller_says_it_is():
    cfg = MaskingConfig(rate=0.5, mask_prob=1.0, random_prob=0.0)
    out = mask_rows(np.array([[9, 9, 8, 9]]), vocabulary(), cfg, 0, 0, pad_id=9)
    assert out["input_ids"].tolist() == [[9, 9, MASK, 9]]


def test_kept_tokens_are_predicted_all_the_same():
    ids = some_rows(3)
    out = mask_rows(ids, vocabulary(), MaskingConfig(rate=0.3, mask_prob=0.0, random_prob=0.0), 0, 0)
    assert out["input_ids"].tolist() == ids.tolist()
    assert out["masked_weights"].sum(1).tolist() == [6, 6, 6]  # round(21 * 0.3)


def test_the_only_word_that_fits_is_the_one_chosen():
    starts = ALL_START.copy()
    starts[20:] = False
    ids = np.array([[CLS, 10, 20, 21, 22, 11, 12, 23, 24, SEP, PAD, PAD]])  # words of 4, 1 and 3 tokens, by a count of 1
    for seed in range(20):
        out = mask_rows(ids, vocabulary(starts), MaskingConfig(rate=0.1, whole_word=True), seed, 0)
        assert chosen(out, 0) == [5]


def test_a_word_over_the_count_is_passed_over_and_nothing_is_predicted_where_no_word_fits():
    starts = ALL_START.copy()
    starts[20:] = False
    ids = np.array([[CLS, 10, 20, 21, 22, 23, 24, SEP]])
    out = mask_rows(ids, vocabulary(starts), MaskingConfig(rate=0.3, whole_word=True), 0, 0)
    assert out["input_ids"].tolist() == ids.tolist()
    assert not out["masked_weights"].any()


def test_a_continuing_token_behind_a_special_one_begins_a_word():
    starts = ALL_START.copy()
    starts[20:] = False
    ids = np.array([[10, 20, SEP, CLS, 21, 22, SEP, PAD]])
    cfg = MaskingConfig(rate=0.25, whole_word=True)
    seen = {tuple(chosen(mask_rows(ids, vocabulary(starts), cfg, seed, 0), 0)) for seed in range(30)}
    assert seen == {(0, 1), (4, 5)}


def test_counts_round_as_python_does_and_are_never_zero():
    assert target_counts(np.arange(0, 41, 5), 0.1).tolist() == [max(1, round(n * 0.1)) for n in range(0, 41, 5)]
    assert target_counts(np.array([128, 512]), 0.15).tolist() == [19, 77]


@pytest.mark.parametrize(("length", "rate", "slots"), [(128, 0.15, 20), (512, 0.15, 77), (8, 0.01, 1), (8, 0.9, 8)])
def test_slots_are_enough_for_the_rate(length, rate, slots):
    cfg = MaskingConfig(rate=rate)
    assert cfg.num_slots(length) == slots
    assert target_counts(np.arange(length + 1), rate).max() <= slots
    assert MaskingConfig(rate=0.01, final_rate=rate).num_slots(length) == slots


def test_next_tokens_are_predicted_within_a_sequence_and_special_ones_are_not():
    ids, of = np.array([[CLS, 7, 8, SEP, 6, 9, UNK, 5, PAD]]), np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0]])
    out = next_tokens(ids, of, vocabulary())
    assert out["masked_positions"].tolist() == [[0, 1, 0, 0, 4, 0, 6, 0]]
    assert out["masked_ids"].tolist() == [[7, 8, 0, 0, 9, 0, 5, 0]]
    assert out["masked_weights"].tolist() == [[1, 1, 0, 0, 1, 0, 1, 0]]
    assert (out["input_ids"].tolist(), out["causal"].tolist()) == (ids.tolist(), [True])
    assert {k: v.dtype.name for k, v in out.items()} == {
        "input_ids": "int32", "masked_positions": "int32", "masked_ids": "int32", "masked_weights": "float32", "causal": "bool",
    }  # fmt: skip


def test_a_share_of_the_steps_is_causal_whatever_the_masks():
    for share in (0.0, 0.25, 1.0):
        chosen = np.array([[is_causal(MaskingConfig(causal_share=share), seed, step) for step in range(400)] for seed in (0, 1)])
        assert abs(chosen.mean() - share) <= 5 * np.sqrt(share * (1 - share) / 800)
        assert share in (0, 1) or (chosen[0] != chosen[1]).any()
    assert (MaskingConfig(causal_share=0.1).most_slots(128), MaskingConfig().most_slots(128)) == (127, 20)


# ---- properties


def row_arrays():
    shapes = st.tuples(st.integers(1, 4), st.integers(8, 40))
    return shapes.flatmap(lambda shape: hnp.arrays(np.int32, shape, elements=st.integers(0, V - 1)))


def mask_configs(**fixed):
    shares = st.sampled_from([(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
    slots = st.none() | st.integers(1, 50)
    return st.builds(
        lambda rate, share, slots: MaskingConfig(
            rate=rate, mask_prob=share[0], random_prob=share[1], max_predictions_per_seq=slots, **fixed
        ),
        st.floats(0.01, 1 - 2**-53), shares, slots,
    )  # fmt: skip


every_config = mask_configs() | mask_configs(count="bernoulli") | mask_configs(whole_word=True) | mask_configs(spans=True)
word_starts = hnp.arrays(bool, V)


@settings(max_examples=150, deadline=None)
@given(row_arrays(), every_config, word_starts, st.integers(0, 2**63), st.integers(0, 2**40))
def test_what_is_chosen_is_ordinary_distinct_ascending_and_remembered_and_the_rest_is_untouched(ids, cfg, starts, seed, step):
    before = ids.copy()
    out = mask_rows(ids, vocabulary(starts), cfg, seed, step)
    assert (ids == before).all()
    slots = cfg.num_slots(ids.shape[1])
    for row in range(len(ids)):
        places = chosen(out, row)
        used = len(places)
        assert len(out["masked_positions"][row]) == slots
        assert places == sorted(set(places))
        assert not set(ids[row, places].tolist()) & set(SPECIAL)
        assert out["masked_ids"][row, :used].tolist() == ids[row, places].tolist()
        assert out["masked_weights"][row].tolist() == [1.0] * used + [0.0] * (slots - used)
        assert not out["masked_positions"][row, used:].any()
        assert not out["masked_ids"][row, used:].any()
        others = np.setdiff1d(np.arange(ids.shape[1]), places)
        assert (out["input_ids"][row, others] == ids[row, others]).all()
        new, old = out["input_ids"][row, places], ids[row, places]
        assert ((new >= 0) & (new < V)).all()
        if cfg.random_prob == 0:
            assert set(new[new != old].tolist()) <= {MASK}
        if cfg.mask_prob == 1:
            assert (new == MASK).all()


@settings(max_examples=100, deadline=None)
@given(row_arrays(), mask_configs() | mask_configs(spans=True), st.integers(0, 2**32))
def test_the_count_is_exact_or_all_candidates(ids, cfg, seed):
    out = mask_rows(ids, vocabulary(), cfg, seed, 0)
    for row in range(len(ids)):
        candidates = int((~np.isin(ids[row], SPECIAL)).sum())
        assert len(chosen(out, row)) == min(candidates, wanted_in(ids[row], cfg))


@settings(max_examples=100, deadline=None)
@given(row_arrays(), mask_configs(whole_word=True), word_starts, st.integers(0, 2**32))
def test_words_are_chosen_whole_or_not_at_all_and_no_further_word_would_fit(ids, cfg, starts, seed):
    out = mask_rows(ids, vocabulary(starts), cfg, seed, 0)
    for row in range(len(ids)):
        places, room = set(chosen(out, row)), wanted_in(ids[row], cfg)
        room -= len(places)
        assert room >= 0
        for word in words_of(ids[row], starts):
            assert places.issuperset(word) or (places.isdisjoint(word) and len(word) > room)


@settings(max_examples=50, deadline=None)
@given(row_arrays(), every_config, st.integers(0, 2**32), st.data())
def test_a_part_of_a_batch_is_masked_as_in_the_whole(ids, cfg, step, data):
    first = data.draw(st.integers(0, len(ids) - 1))
    last = data.draw(st.integers(first + 1, len(ids)))
    whole = mask_rows(ids, vocabulary(), cfg, 5, step)
    part = mask_rows(ids[first:last], vocabulary(), cfg, 5, step, first_row=first)
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][first:last])


# ---- shares, on large samples


def chi_square(counts):
    """In standard deviations above what equal chances give."""
    expected = counts.sum() / len(counts)
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)


def test_eight_in_ten_become_the_mask_one_in_ten_random_and_one_in_ten_stay():
    ids = np.full((3000, 128), 77, np.int32)
    out = mask_rows(ids, vocabulary(np.ones(60_000, bool), 60_000), MaskingConfig(), 0, 0)
    now = np.take_along_axis(out["input_ids"], out["masked_positions"], 1)[out["masked_weights"] > 0]
    assert len(now) == 3000 * 19
    for share, expected in ((now == MASK, 0.8), (now == 77, 0.1), ((now != MASK) & (now != 77), 0.1)):
        assert abs(share.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / len(now))


def test_random_tokens_are_uniform_over_the_whole_vocabulary_specials_included():
    ids = np.full((3000, 128), 77, np.int32)
    out = mask_rows(ids, vocabulary(np.ones(100, bool), 100), MaskingConfig(mask_prob=0.0, random_prob=1.0), 0, 0)
    now = np.take_along_axis(out["input_ids"], out["masked_positions"], 1)[out["masked_weights"] > 0]
    assert abs(chi_square(np.bincount(now, minlength=100))) < 5


@every_kind
def test_every_position_is_equally_likely(cfg):
    starts = ALL_START.copy()
    starts[20:] = False
    ids = np.tile(np.array([10, 20], np.int32), (4000, 25))  # words of two
    out = mask_rows(ids, vocabulary(starts), cfg.replace(rate=0.2), 3, 0)
    counts = np.bincount(out["masked_positions"][out["masked_weights"] > 0], minlength=50)
    if cfg.spans:  # the first words of a row are in fewer spans
        counts = counts[20:]
        assert abs(counts[::2].sum() / counts[1::2].sum() - 1) < 0.05  # a span that the count ends may end within a word
        counts = counts[::2]
    if cfg.whole_word:
        assert (counts[::2] == counts[1::2]).all()
        counts = counts[::2]
    assert chi_square(counts) < 5


def spans_of(candidates, starts, wanted, seed=0):
    """Positions and numbers of spans of each row, without unused slots."""
    rows, length = candidates.shape
    bits = random_bits(seed, 0, 0, rows, length + wanted)
    args = bits[:, :length], bits[:, length:], candidates, starts, np.full(rows, wanted)
    return [(at[at < length], of[at < length]) for at, of in zip(*_choose_spans(*args), strict=True)]


def test_spans_are_of_words_whose_number_is_geometric_and_at_most_ten():
    starts = np.tile(np.array([True, False]), (3000, 200))  # words of two tokens
    sizes = np.zeros(11, int)
    for at, of in spans_of(np.ones((3000, 400), bool), starts, 20):
        first = at[of == 0]  # the count ends none but the last span
        assert first.tolist() == list(range(first[0], first[0] + len(first)))
        if first[-1] < 399:
            assert first[0] % 2 == len(first) % 2 == 0
            sizes[len(first) // 2] += 1
    expected = 0.2 * 0.8 ** np.arange(10)
    expected *= sizes.sum() / expected.sum()
    assert sizes[0] == 0
    assert ((sizes[1:] - expected) ** 2 / expected).sum() < 30  # chi-square with 9 degrees: 1 in 2,000
    assert abs((sizes * np.arange(11)).sum() / sizes.sum() - 3.8) < 0.2


def test_a_span_ends_at_what_is_never_masked_and_its_tokens_are_replaced_in_one_way():
    candidates = np.tile(np.arange(40) % 8 != 7, (300, 1))
    for at, of in spans_of(candidates, np.ones((300, 40), bool), 12):
        assert candidates[0, at].all()
        assert all(len(set(at[of == number] // 8)) == 1 for number in set(of))
    ids = np.full((500, 60), 9, np.int32)
    out = mask_rows(ids, vocabulary(), MaskingConfig(rate=0.2, spans=True, mask_prob=0.5, random_prob=0.0), 0, 0)
    masked = np.take_along_axis(out["input_ids"], out["masked_positions"], 1) == MASK
    neighbours = np.diff(out["masked_positions"], axis=1) == 1
    alike = (masked[:, 1:] == masked[:, :-1])[neighbours].mean()
    assert alike > 0.85  # all but those of two spans that touch
    assert abs(masked.mean() - 0.5) < 0.05


def test_positions_are_chosen_independently_of_what_replaces_them():
    out = mask_rows(np.full((4000, 50), 9, np.int32), vocabulary(), MaskingConfig(mask_prob=0.5, random_prob=0.0), 0, 0)
    used = out["masked_weights"] > 0
    masked = np.take_along_axis(out["input_ids"], out["masked_positions"], 1) == MASK
    assert chi_square(np.bincount(out["masked_positions"][used & masked], minlength=50)) < 5
    assert chi_square(np.bincount(np.nonzero(used & masked)[1], minlength=8)[:8]) < 5  # of slots, too


def test_bernoulli_counts_are_binomial_and_the_slots_cap_them():
    ids = np.full((4000, 100), 9, np.int32)
    counts = mask_rows(ids, vocabulary(), MaskingConfig(rate=0.15, count="bernoulli"), 0, 0)["masked_weights"].sum(1)
    variance = 100 * 0.15 * 0.85
    assert abs(counts.mean() - 15) < 5 * np.sqrt(variance / 4000)
    assert abs(counts.var() / variance - 1) < 5 * np.sqrt(2 / 4000)
    capped = MaskingConfig(rate=0.15, count="bernoulli", max_predictions_per_seq=12)
    out = mask_rows(ids, vocabulary(), capped, 0, 0)
    assert out["masked_positions"].shape == (4000, 12)
    assert abs(out["masked_weights"].sum(1).mean() - np.minimum(counts, 12).mean()) < 0.2
    full = out["masked_positions"][out["masked_weights"].sum(1) == 12]
    assert chi_square(np.bincount(full.ravel(), minlength=100)) < 5  # the cap does not prefer the left
    nearly = MaskingConfig(rate=1 - 2**-53, count="bernoulli")
    assert mask_rows(ids[:9], vocabulary(), nearly, 0, 0)["masked_weights"].all()


# ---- determinism


@every_kind
def test_seed_and_step_decide_and_each_gives_other_masks(cfg):
    ids = some_rows(8)
    masks = [mask_rows(ids, vocabulary(), cfg, *key) for key in ((1, 2), (1, 2), (1, 3), (2, 2), (2, 1))]
    for name in masks[0]:
        np.testing.assert_array_equal(masks[0][name], masks[1][name])
    different = {mask["masked_positions"].tobytes() for mask in masks}
    assert len(different) == 4


def test_random_bits_of_rows_are_a_part_of_the_whole_table():
    whole = random_bits(3, 4, 0, 10, 21)
    assert whole.shape == (10, 21)
    for first, count in ((0, 10), (3, 4), (9, 1), (5, 0)):
        np.testing.assert_array_equal(random_bits(3, 4, first, count, 21), whole[first : first + count])
    assert len(np.unique(whole)) == whole.size


def test_the_bits_of_a_row_never_occur_in_another_row_or_step():
    tables = [random_bits(0, step, 0, 50, 16) for step in range(4)]
    assert len(np.unique(np.concatenate(tables))) == 4 * 50 * 16


def test_random_bits_and_masks_are_the_ones_they_have_always_been():
    """Golden values: a change of NumPy or of this code that moves them breaks the resumption of every run."""
    assert random_bits(7, 11, 2, 1, 4).tolist() == [GOLDEN_BITS]
    ids = np.array([[CLS, 10, 11, 20, 12, 13, 14, 21, SEP, PAD]])
    starts = ALL_START.copy()
    starts[20:] = False
    for name, cfg in KINDS.items():
        out = mask_rows(ids, vocabulary(starts), cfg, 7, 11)
        assert (chosen(out, 0), out["input_ids"][0].tolist()) == GOLDEN[name], name


GOLDEN_BITS = [1398756355, 257064775, 2972270308, 2785360217]
GOLDEN = {
    "exact": ([2, 4, 7], [2, 10, 4, 20, 0, 13, 14, 4, 3, 0]),
    "bernoulli": ([2, 3, 4, 7], [2, 10, 4, 4, 4, 13, 14, 4, 3, 0]),
    "whole words": ([2, 3, 4], [2, 10, 4, 0, 4, 13, 14, 21, 3, 0]),
    "spans": ([2, 3, 4], [2, 10, 4, 4, 4, 13, 14, 21, 3, 0]),
}
