"""Long documents as passages: texts of whole words that a model reads without cutting them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.data.layout import Layout
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import InputError


class PassageSize(NamedTuple):
    """The size of passages.

    Attributes:
      tokens: tokens of a passage at most, with the prompt and the special tokens.
      overlap: tokens of the passage before that a passage repeats at most.
    """

    tokens: int
    overlap: int = 0


def passage_room(size: PassageSize, layout: Layout, read: Callable[[str], str] = str) -> int:
    """Returns the tokens of a text in a passage, beside the prompt that `read` adds and the special tokens.

    Raises:
      InputError: the model cannot read as many tokens, or no room is left for words of the text.
    """
    tokens, overlap = size
    if tokens > layout.longest:
        raise InputError(f"chunk_documents: passages of {tokens} tokens; here a text has at most {layout.longest}: give fewer")
    room = tokens - layout.around - len(layout.tokenizer.encode_batch([read("")])[0])
    if room < 1 or not 0 <= overlap < room:
        what = f"chunk_documents: passages of {tokens} tokens have room for {room} of a text"
        raise InputError(f"{what}, and {overlap} of them overlap: give longer passages or less overlap")
    return room


def passages(texts: Sequence[str], tokenizer: Tokenizer, room: int, overlap: int) -> Iterator[list[str]]:
    """Yields the passages of each text, in order; together they hold all its words. A short text is its only passage."""
    for text, encoding in zip(texts, tokenizer.encode_with_offsets(texts), strict=True):
        if len(encoding.ids) <= room:
            yield [text]
            continue
        starts, ends = encoding.offsets.T
        yield [text[starts[i] : ends[j - 1]] for i, j in whole_words(encoding.word_ids, room, overlap)]


def whole_words(word_ids: np.ndarray, room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yields the start and the end of windows of at most `room` tokens that begin and end with a word, if it is not too long.

    >>> list(whole_words(np.array([0, 0, 1, 1, 2, 3]), 3, 1))
    [(0, 2), (2, 5), (4, 6)]
    """
    count, start = len(word_ids), 0
    begins = np.append(np.diff(word_ids, prepend=word_ids[0] - 1) != 0, True)
    while True:
        stop = min(start + room, count)
        stop = next((i for i in range(stop, start, -1) if begins[i]), stop)
        yield start, stop
        if stop == count:
            return
        start = next(i for i in range(max(stop - overlap, start + 1), stop + 1) if begins[i] or i == stop)
