"""Long documents as passages of whole words."""

import doctest

import numpy as np
import pytest
from helpers import make_documents

import bert_jax
from bert_jax.config import InputError
from bert_jax.data import passages as module
from bert_jax.data.layout import Layout
from bert_jax.data.passages import PassageSize, passage_room, passages, whole_words


def test_the_example_of_whole_words_is_right():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("overlap", [0, 5])
def test_passages_hold_all_words_in_order_and_fit(overlap, tokenizer):
    layout = Layout(tokenizer, bert_jax.BertConfig(vocab_size=280), 64)

    def read(text):
        return f"Bako: {text}"

    texts = ["", "bako", *("\n".join(document) for document in make_documents(6, seed=3)), "x" * 90]
    room = passage_room(PassageSize(30, overlap), layout, read)
    found = list(passages(texts, tokenizer, room, overlap))
    assert [len(own) > 1 for own in found] == [len(ids) > room for ids in tokenizer.encode_batch(texts)]
    for text, own in zip(texts, found, strict=True):
        assert layout.examples([read(passage) for passage in own], 30)[1] == 0  # none is cut
        if len(own) == 1 or " " not in text:
            assert overlap or "".join(own) == text
            continue
        words, at, seen = text.split(), 0, set()
        for passage in own:
            some = passage.split()
            at = next(i for i in range(max(0, at - 5), at + 2) if words[i : i + len(some)] == some)
            seen |= set(range(at, at + len(some)))
            at += len(some)
        assert seen == set(range(len(words)))
        assert (sum(len(passage.split()) for passage in own) > len(words)) == bool(overlap)


def test_a_word_longer_than_a_passage_is_cut():
    assert list(whole_words(np.zeros(7, int), 3, 1)) == [(0, 3), (3, 6), (6, 7)]


@pytest.mark.parametrize(
    ("size", "message"), [((65,), "at most 64"), ((3,), "room for -1 of a text, and 0"), ((12, 8), "room for 8 of a text, and 8")]
)
def test_sizes_that_leave_no_room_are_refused(size, message, tokenizer):
    layout = Layout(tokenizer, bert_jax.BertConfig(vocab_size=280), 64)
    with pytest.raises(InputError, match=message):
        passage_room(PassageSize(*size), layout, lambda text: "a" + text)
