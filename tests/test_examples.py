"""Sentence splitting and the two kinds of examples: nothing is lost, nothing is too long, labels tell the truth."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.examples import MAX_SENTENCE_CHARS, MOST_EMPTY, fold, full_sentences, sentence_pairs, split_sentences

CLS, SEP = 1, 2

# ---- sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Fox met Dr. Hen. They talked.", ["Mr. Fox met Dr. Hen.", "They talked."]),
        ("J. R. R. Tolkien wrote. It sold.", ["J. R. R. Tolkien wrote.", "It sold."]),
        ("Use e.g. Python. See Fig. 3 for more.", ["Use e.g. Python.", "See Fig. 3 for more."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("(It rained.) “Really?” ‘Yes.’ [1] says so.", ["(It rained.)", "“Really?”", "‘Yes.’", "[1] says so."]),
        ("Wait… What? 3.5 is a number. 4 too.", ["Wait…", "What?", "3.5 is a number.", "4 too."]),
        ("It is www.example.com or so. yes, small.", ["It is www.example.com or so. yes, small."]),
        ("a line\nthat goes on. And\tnow\n\n\nanother", ["a line that goes on.", "And now another"]),
        ("Alarm. Fireman. Norm. Go.", ["Alarm.", "Fireman.", "Norm.", "Go."]),  # end like abbreviations
        ("", []),
        (" \n\t ", []),
        (".", ["."]),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text, sentences):
    assert split_sentences(text) == sentences


def test_each_line_is_a_sentence_where_lines_end_them():
    assert split_sentences("One. Two.\n\n  three \r\nfour", ends="line") == ["One. Two.", "three", "four"]


WORDS = ["Mr.", "a", "B", "word", "No", "3", "end.", "why?", "oh!", '."', "’)", "(", "“", "…", " ", "  ", "\n", "\t", "é"]
prose = st.lists(st.sampled_from(WORDS)).map("".join)


@settings(max_examples=300, deadline=None)
@given(prose | st.text())
def test_no_text_is_lost_or_added(text):
    sentences = split_sentences(text)
    assert " ".join(sentences) == " ".join(text.split())
    assert all(sentences)


@settings(max_examples=100, deadline=None)
@given(st.text() | prose)
def test_no_text_of_lines_is_lost(text):
    assert "".join("".join(split_sentences(text, ends="line")).split()) == "".join(text.split())


@pytest.mark.parametrize("ends", ["line", "punctuation"])
def test_a_very_long_sentence_is_cut_at_spaces_into_bounded_pieces(ends):
    text = " ".join(f"w{i}" for i in range(20_000))
    pieces = split_sentences(text, ends)
    assert " ".join(pieces) == text
    assert max(map(len, pieces)) <= MAX_SENTENCE_CHARS
    assert min(map(len, pieces[:-1])) > MAX_SENTENCE_CHARS - 10


@pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
def test_white_space_is_folded_whatever_the_blocks(block):
    for text in ("", "  ", "a", " a  b\n\tc\u2003d ", "word " * 9, "   x" * 5 + "  ", "no-spaces-in-here"):
        assert fold(text, block) == " ".join(text.split())


def test_a_long_run_of_spaces_gives_no_empty_sentence():
    assert split_sentences("a" + " " * 10_000 + "b", ends="line") == ["a", "b"]


def test_fifty_megabytes_without_a_space_are_cut_fast():
    text = "x" * 50_000_000
    begun = time.process_time()
    pieces = split_sentences(text)
    assert time.process_time() - begun < 10
    assert max(map(len, pieces)) <= MAX_SENTENCE_CHARS
    assert sum(map(len, pieces)) == len(text)


@pytest.mark.parametrize("unit", [". ", '."', ".", '"', ". (", "A. ", ". A", "!’ ", "\n", ". \"'"])
def test_no_text_takes_quadratic_time(unit):
    begun = time.process_time()
    split_sentences(unit * 300_000)
    split_sentences("." + unit * 300_000 + " A")
    assert time.process_time() - begun < 5


# ---- full sentences


def numbered(lengths, first=10):
    """Sentences of these lengths, whose tokens count up from `first`."""
    ends = np.cumsum([first, *lengths])
    return [np.arange(a, b, dtype=np.int32) for a, b in itertools.pairwise(ends)]


def test_full_sentences_begin_anew_where_the_next_one_does_not_fit():
    runs = full_sentences(numbered([3, 2, 4, 1]), 8, CLS, SEP)
    assert [run.tolist() for run in runs] == [[1, 10, 11, 12, 13, 14, 2], [1, 15, 16, 17, 18, 19, 2]]


def test_a_sentence_longer_than_a_row_is_cut_and_its_end_is_filled_up():
    runs = full_sentences(numbered([2, 14, 3]), 8, CLS, SEP)
    assert [run[1:-1].tolist() for run in runs] == [[10, 11], [*range(12, 18)], [*range(18, 24)], [24, 25, 26, 27, 28]]


def test_a_sentence_is_cut_only_where_much_of_the_row_would_stay_empty():
    just_too_long = 30 - MOST_EMPTY + 1
    assert [len(run) - 2 for run in full_sentences(numbered([just_too_long, 20]), 32, CLS, SEP)] == [just_too_long, 20]
    assert [len(run) - 2 for run in full_sentences(numbered([just_too_long - 1, 20]), 32, CLS, SEP)] == [30, 4]
    assert [len(run) - 2 for run in full_sentences(numbered([20, 10, 4]), 32, CLS, SEP)] == [30, 4]  # fits to the token


def test_no_sentences_give_no_examples():
    assert full_sentences([], 8, CLS, SEP) == []
    assert full_sentences(numbered([0, 0]), 8, CLS, SEP) == []
    assert sentence_pairs([], 8, CLS, SEP, 0.1, np.random.default_rng(0)) == ([], [])
    assert sentence_pairs([[], numbered([0])], 8, CLS, SEP, 0.1, np.random.default_rng(0)) == ([], [])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 90), max_size=30), st.integers(8, 60))
def test_full_sentences_lose_no_token_keep_the_order_and_fit(lengths, row_length):
    sentences = numbered(lengths)
    runs = full_sentences(sentences, row_length, CLS, SEP)
    assert [t for run in runs for t in run[1:-1].tolist()] == [t for s in sentences for t in s.tolist()]
    starts = {int(s[0]) for s in sentences if len(s)}
    for run in runs:
        assert run.dtype == np.int32
        assert (run[0], run[-1]) == (CLS, SEP)
        assert 3 <= len(run) <= row_length
    for run, following in itertools.pairwise(runs):
        assert row_length - len(run) < MOST_EMPTY
        assert len(run) == row_length or int(following[1]) in starts  # what is cut fills its row


# ---- sentence pairs

FIRST = 1000  # ids of document d: FIRST * (d + 1) and up, in order


def numbered_documents(lengths):
    return [numbered(own, FIRST * (d + 1)) for d, own in enumerate(lengths)]


def parts(example):
    """(a, b) of `[CLS] a [SEP] b [SEP]`."""
    ids = example.tolist()
    middle = ids.index(SEP)
    assert (ids[0], ids[-1]) == (CLS, SEP)
    return ids[1:middle], ids[middle + 1 : -1]


def contiguous(ids):
    return ids == list(range(ids[0], ids[0] + len(ids)))


documents_of_lengths = st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(documents_of_lengths, st.integers(8, 40), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 2**32))
def test_pairs_fit_tell_the_truth_and_leave_no_text_unseen(lengths, row_length, short, seed):
    documents = numbered_documents(lengths)
    examples, labels = sentence_pairs(documents, row_length, CLS, SEP, short, np.random.default_rng(seed))
    assert len(examples) == len(labels)
    several = sum(any(own) for own in lengths) > 1
    seen = {d: [] for d in range(1, len(lengths) + 1)}
    for example, label in zip(examples, labels, strict=True):
        a, b = parts(example)
        assert example.dtype == np.int32
        assert a
        assert b
        assert len(example) <= row_length
        assert contiguous(a)
        assert contiguous(b)
        own = a[0] // FIRST
        seen[own] += a
        if label == 0:
            assert b[0] == a[-1] + 1
            assert b[-1] // FIRST == own
            seen[own] += b
        elif several:
            assert b[0] // FIRST != own
        else:
            is_whole_document = len(a) == sum(lengths[own - 1])
            assert b[0] != a[-1] + 1 or is_whole_document
    for number, own in enumerate(lengths, start=1):
        assert seen[number] == list(range(FIRST * number, FIRST * number + sum(own)))


def test_half_of_the_pairs_are_random_and_the_same_generator_gives_the_same_pairs():
    documents = [numbered([5] * 180, FIRST * (d + 1)) for d in range(40)]
    examples, labels = sentence_pairs(documents, 43, CLS, SEP, 0.1, np.random.default_rng(0))
    assert len(labels) > 1000
    assert abs(np.mean(labels) - 0.5) < 0.05
    again, same = sentence_pairs(documents, 43, CLS, SEP, 0.1, np.random.default_rng(0))
    assert labels == same
    assert [e.tolist() for e in examples] == [e.tolist() for e in again]
    others = sentence_pairs(documents, 43, CLS, SEP, 0.1, np.random.default_rng(1))
    assert others[1] != labels


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_asked_share_of_chunks_is_short(share):
    """Of chunks whose b follows: those with room for one sentence more that was there."""
    documents = [numbered([2] * 450, FIRST * (d + 1)) for d in range(60)]
    examples, labels = sentence_pairs(documents, 63, CLS, SEP, share, np.random.default_rng(0))
    chunks = [sum(map(len, parts(e))) for e, label in zip(examples, labels, strict=True) if not label]
    ends = [parts(e)[1][-1] % FIRST == 899 for e, label in zip(examples, labels, strict=True) if not label]
    short = np.mean([n < 59 for n, end in zip(chunks, ends, strict=True) if not end])
    expected = share * 57 / 59  # targets are uniform in [2, 60]: 59 and 60 fill the row
    assert abs(short - expected) <= 5 * np.sqrt(expected * (1 - expected) / len(chunks))


def test_short_chunks_hold_two_sentences_and_are_random_no_more_often():
    documents = [numbered([10] * 90, FIRST * (d + 1)) for d in range(30)]
    _, labels = sentence_pairs(documents, 43, CLS, SEP, 1.0, np.random.default_rng(0))
    assert abs(np.mean(labels) - 0.5) < 0.05


def test_random_text_is_drawn_from_every_other_document_and_from_its_middle_too():
    documents = numbered_documents([[4] * 40] * 6)
    firsts = []
    for seed in range(20):
        examples, labels = sentence_pairs(documents, 30, CLS, SEP, 0.0, np.random.default_rng(seed))
        firsts += [(parts(e)[0][0] // FIRST, parts(e)[1][0]) for e, label in zip(examples, labels, strict=True) if label]
    assert {(own, b // FIRST) for own, b in firsts} == {(i, j) for i in range(1, 7) for j in range(1, 7) if i != j}
    assert len({b for _, b in firsts}) > 200  # of 240 sentences


def test_a_single_sentence_is_paired_with_text_from_elsewhere():
    examples, labels = sentence_pairs(numbered_documents([[3], [4]]), 16, CLS, SEP, 0.0, np.random.default_rng(0))
    assert labels == [1, 1]
    assert [parts(e) for e in examples] == [
        ([1000, 1001, 1002], [2000, 2001, 2002, 2003]),
        ([2000, 2001, 2002, 2003], [1000, 1001, 1002]),
    ]


def test_a_lone_document_of_one_sentence_still_gives_an_example():
    examples, labels = sentence_pairs(numbered_documents([[3]]), 16, CLS, SEP, 0.0, np.random.default_rng(0))
    assert labels == [1]
    assert parts(examples[0]) == ([1000, 1001, 1002], [1000, 1001, 1002])


def test_a_sentence_longer_than_the_row_is_read_to_its_end():
    examples, labels = sentence_pairs(numbered_documents([[100], [100]]), 16, CLS, SEP, 0.0, np.random.default_rng(0))
    assert 0 in labels
    assert 1 in labels
    assert max(map(len, examples)) <= 16
