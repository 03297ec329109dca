"""Training of vocabularies."""

import re
import time

import pytest
from vocabularies import LINES, TEXTS

from bert_jax.config import InputError
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.tokenizer_training import training_lines


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_case_is_folded_only_if_asked(kind):
    lower, cased = (Tokenizer.train(TEXTS, 600, kind, lowercase=lowercase) for lowercase in (True, False))
    a, b = lower.encode_batch(["The RÉSUMÉ", "the résumé"])
    assert a.tolist() == b.tolist()
    a, b = cased.encode_batch(["The RÉSUMÉ", "the résumé"])
    assert a.tolist() != b.tolist()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_twice_gives_the_same_tokenizer(kind):
    assert Tokenizer.train(TEXTS, 500, kind).fingerprint() == Tokenizer.train(iter(TEXTS), 500, kind).fingerprint()


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_a_vocabulary_larger_or_smaller_than_the_texts_allow_is_refused_with_the_number(kind):
    with pytest.raises(InputError, match=r"vocab_size=50000: these texts give at most \d+ tokens") as error:
        Tokenizer.train(LINES[:100], 50_000, kind)
    most = int(re.search(r"at most (\d+)", str(error.value))[1]) - 10 * (kind == "wordpiece")  # ties move it a little
    assert Tokenizer.train(LINES[:100], most, kind).vocab_size == most
    with pytest.raises(InputError, match=r"vocab_size=20: these texts need at least \d+ tokens") as error:
        Tokenizer.train(LINES[:100], 20, kind)
    least = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert Tokenizer.train(LINES[:100], least, kind).vocab_size == least


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_training_on_no_text_is_refused(kind):
    with pytest.raises(InputError, match=r"^no text to train"):
        Tokenizer.train([" ", "\n"], 100, kind)


def test_an_unknown_kind_of_vocabulary_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"kind='unigrams': expected one of .*; did you mean 'unigram'"):
        Tokenizer.train(TEXTS, 100, "unigrams")


def test_errors_of_the_reader_pass_through_training():
    def broken():
        yield "some text"
        raise InputError("file x is damaged")

    for kind in ("unigram", "bpe", "wordpiece"):
        with pytest.raises(InputError, match=r"^file x is damaged$"):
            Tokenizer.train(broken(), 100, kind)


def test_training_lines_are_cut_at_white_space_and_nothing_is_lost():
    words = [f"word{i}" for i in range(3000)]
    lines = list(training_lines(["\n" + " ".join(words) + "\r\n\r\n", "中" * 2500, "a▅b\x00c"]))
    assert max(len(line.encode()) for line in lines) <= 4192
    assert " ".join(lines[:-4]).split() == words
    assert "".join(lines[-4:-1]) == "中" * 2500
    assert lines[-1] == "a b c"


def test_a_very_long_line_is_cut_in_linear_time():
    begun = time.process_time()
    assert sum(map(len, training_lines(["word " * 4_000_000]))) > 15_000_000
    assert time.process_time() - begun < 5  # 40 s where each cut copies what is left


def test_a_long_line_counts_in_training():
    long = " ".join(["zebra"] * 2000)
    tokenizer = Tokenizer.train([*LINES, long], 500, "bpe")
    assert tokenizer.tokens(tokenizer.encode_batch(["zebra"])[0]) == ["▁zebra"]
