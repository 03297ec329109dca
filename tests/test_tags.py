"""What sets of tags mean, and tags from entities by characters."""

import doctest

import pytest

from bert_jax.data import tags
from bert_jax.data.tags import are_types, entity_tags, tagged_words, without_overlaps


@pytest.mark.parametrize(
    "given, expected",
    [
        ("O B-PER I-PER", "O B-PER I-PER"),
        ("O I-PER", "O I-PER"),
        ("O S-X L-X U-X E-X", "O S-X E-X S-X E-X"),
        ("B-X M-X W-X", "B-X I-X S-X"),
        ("B M E S", "B I E S"),
        ("B_X I_X O", "B-X I-X O"),
        ("X-B X-I Y_B O", "B-X I-X B-Y O"),
        ("PER LOC O", "I-PER I-LOC O"),
        ("work-of-art O", "I-work-of-art O"),
        ("B-PER I-PER MISC O", "B-PER I-PER I-MISC O"),
        ("B-work-of-art O", "B-work-of-art O"),
        ("PER TIME-S LOC X O", "I-PER I-TIME-S I-LOC I-X O"),
        ("O", "O"),
    ],
)
def test_tags_of_entities_are_read_in_every_scheme(given, expected):
    found = entity_tags(given.split())
    assert [found[tag] for tag in given.split()] == expected.split()


@pytest.mark.parametrize("given", ["NNP VBZ . NN-SBJ", "0 1 2", "PER LOC", "B-PER I-PER MISC", "LABEL_0 LABEL_1", "N V S"])
def test_tags_without_a_scheme_and_without_o_are_classes_of_words(given):
    assert entity_tags(given.split()) is None
    assert not are_types(given.split())


def test_another_tag_may_be_the_outside():
    assert entity_tags(["_", "PER"], "_") == {"_": "O", "PER": "I-PER"}
    assert entity_tags(["_", "PER"]) is None


def test_types_without_letters_are_told_from_the_other_schemes():
    assert are_types(["O", "PER"])
    assert are_types(["O", "B-PER", "I-PER", "MISC"])
    assert not are_types(["O", "I-PER", "B-PER"])
    assert not are_types(["O", "PER-B"])


def test_words_are_cut_at_blanks_punctuation_ideographs_and_the_ends_of_entities():
    text = "john's in Parisian (東京) हिन्दी."
    words, found = tagged_words(text, [(0, 4, "PER"), (10, 15, "LOC"), (20, 22, "LOC")])
    assert words == ["john", "'", "s", "in", "Paris", "ian", "(", "東", "京", ")", "हिन्दी", "."]
    assert found == ["B-PER", "O", "O", "O", "B-LOC", "O", "O", "B-LOC", "I-LOC", "O", "O", "O"]


def test_entities_that_follow_each_other_are_two_and_blanks_inside_of_them_do_not_matter():
    assert tagged_words("New  York Bob", [(10, 13, "X"), (0, 10, "X")]) == (["New", "York", "Bob"], ["B-X", "I-X", "B-X"])
    assert tagged_words("ab", [(0, 1, "X"), (1, 2, "X")]) == (["a", "b"], ["B-X", "B-X"])
    assert tagged_words(" \n", []) == ([], [])


def test_of_overlapping_entities_the_longest_stay():
    assert without_overlaps([(0, 5, "a"), (0, 9, "b"), (9, 12, "c"), (8, 10, "d"), (9, 12, "e")]) == [(0, 9, "b"), (9, 12, "c")]


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(tags).failed == 0
