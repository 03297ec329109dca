"""What repeats in a text, by samples that are small enough to be wrong if they were drawn otherwise."""

import dataclasses

import numpy as np
import pytest

from bert_jax.data import repeats
from bert_jax.data.repeats import Sample


def make(count, seed=0, different=5000, files=4):
    """Entries of which many are copies, in the order of their files."""
    rng = np.random.default_rng(seed)
    known = np.random.default_rng(99).integers(0, 2**64, different, np.uint64)
    held_out = rng.random(count) < 0.1
    return Sample(rng.choice(known, count), np.sort(rng.integers(0, files, count)).astype(np.int32), held_out)


def test_copies_are_those_of_a_count_by_hand():
    sample = Sample(np.array([7, 8, 7, 9, 7, 8], np.uint64), np.array([0, 0, 1, 1, 2, 1], np.int32), np.zeros(6, bool))
    found = repeats.copies(sample)
    assert found == {"count": 3, "of": 6, "share": 0.5, "worst": [[1, 2], [2, 1]], "estimated": False}


def test_leaks_are_held_out_entries_that_are_trained_on():
    held_out = np.array([0, 1, 1, 0, 1], bool)
    sample = Sample(np.array([7, 7, 8, 9, 9], np.uint64), np.array([0, 1, 1, 2, 2], np.int32), held_out)
    found = repeats.leaked(sample, sample)
    assert found == {"count": 2, "of": 3, "share": 2 / 3, "worst": [[1, 1], [2, 1]], "estimated": False}
    other = Sample(np.array([8], np.uint64), np.zeros(1, np.int32), np.zeros(1, bool))
    assert repeats.leaked(other, sample)["count"] == 1


def test_nothing_repeats_in_no_text():
    for found in (repeats.copies(Sample()), repeats.leaked(Sample(), Sample())):
        assert found == {"count": 0, "of": 0, "share": 0.0, "worst": [], "estimated": False}


@pytest.mark.parametrize("parts", [1, 7])
def test_a_sample_is_bounded_and_its_shares_are_those_of_the_whole(monkeypatch, parts):
    monkeypatch.setattr(repeats, "MOST", 4000)
    whole = make(60_000)
    sample = Sample()
    for at in np.array_split(np.arange(60_000), parts):
        sample = repeats.joined([sample, Sample(whole.hashes[at], whole.files[at], whole.held_out[at])])
    assert 1000 < len(sample.hashes) <= 4000
    assert sample.halvings >= 4
    at_once = repeats.joined([whole])
    np.testing.assert_equal(dataclasses.asdict(sample.at(at_once.halvings)), dataclasses.asdict(at_once))
    for count in (repeats.copies, lambda of: repeats.leaked(of, of)):
        exact, estimate = count(whole), count(sample)
        assert (exact["estimated"], estimate["estimated"]) == (False, True)
        assert estimate["share"] == pytest.approx(exact["share"], abs=0.03)
        assert estimate["count"] == pytest.approx(exact["count"], rel=0.25)


def test_samples_of_different_shares_are_compared_at_the_smaller_one(monkeypatch):
    monkeypatch.setattr(repeats, "MOST", 4000)
    trained, held_out = make(60_000), make(500, seed=1)
    held_out.held_out[:] = True
    estimate = repeats.leaked(repeats.joined([trained]), repeats.joined([held_out]))
    assert estimate["share"] == 1
    assert estimate["estimated"]
