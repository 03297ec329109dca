"""Cuts documents into sentences and examples. An example is an int32 array `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Tokens = np.ndarray  # int32 [n]
MAX_SENTENCE_CHARS = 4096  # a longer sentence is cut at white space: tokenizers need memory in proportion
MOST_EMPTY = 16  # a sentence that does not fit may leave this many tokens of a row unused

# A full stop, question or exclamation mark with closing quotes, then white space and the start of a sentence.
_BOUNDARY = re.compile(r"""(?<=[.!?…])(?:["'”’)\]]*)\s+(?=["'“‘(\[]*[A-Z0-9])""")
_SPACE = re.compile(r"\s")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Gen|Col|Capt|Sen|Hon|No|vs|etc|Fig|Eq|i\.e|e\.g)|\b[A-Z])\.$")


def fold(text: str, block: int = 1 << 20) -> str:
    """Returns the text with one space for each run of white space, and none at its ends.

    Works in blocks of about `block` characters: a string for each word of a large document takes 15 times its memory.
    """
    folded, start = list[str](), 0
    while start < len(text):
        space = _SPACE.search(text, start + block)
        end = space.start() if space else len(text)
        folded.append(" ".join(text[start:end].split()))
        start = end
    return " ".join(part for part in folded if part)


def split_sentences(text: str, ends: str = "punctuation") -> list[str]:
    r"""Returns a document's sentences, which are the whole text but for white space.

    `ends="line"`: each non-blank line is one. `"punctuation"`: lines are joined, and a sentence ends at `.`, `!` or `?`
    before a capital or digit, except after common abbreviations and initials. Sentences over MAX_SENTENCE_CHARS are cut.

    >>> split_sentences("Mr. Fox ran.\nHe hid! Why?")
    ['Mr. Fox ran.', 'He hid!', 'Why?']
    """
    return list(iterate_sentences(text, ends))


def iterate_sentences(text: str, ends: str = "punctuation") -> Iterator[str]:
    """Yields the sentences of `split_sentences`."""
    parts = (line.strip() for line in text.splitlines()) if ends == "line" else _at_punctuation(fold(text))
    return (piece for part in parts for piece in _cut(part) if piece)


def _at_punctuation(text: str) -> Iterator[str]:
    start = 0
    for match in _BOUNDARY.finditer(text):
        end = match.end()
        if not _ABBREVIATION.search(text, max(start, match.start() - 8), match.start()):
            yield text[start:end].rstrip()
            start = end
    yield text[start:]


def _cut(sentence: str) -> Iterator[str]:
    """Yields pieces of at most MAX_SENTENCE_CHARS, cut at white space where there is any."""
    start = 0
    while len(sentence) - start > MAX_SENTENCE_CHARS:
        space = sentence.rfind(" ", start + 1, start + MAX_SENTENCE_CHARS)
        end = space if space > start else start + MAX_SENTENCE_CHARS
        yield sentence[start:end].strip()
        start = end
    yield sentence[start:].strip()


def full_sentences(sentences: Iterable[Tokens], max_seq_length: int, cls_id: int, sep_id: int) -> list[Tokens]:
    """Returns runs of consecutive sentences, `[CLS] x [SEP]`, each as long as fits (RoBERTa's FULL-SENTENCES within a document).

    A sentence that does not fit begins the next run. It is cut where that would leave MOST_EMPTY or more tokens unused, which
    would be padding for a tenth of a run at length 128. No token is lost.

    >>> [x.tolist() for x in full_sentences([np.array([5, 6]), np.array([7, 8, 9]), np.array([10])], 6, 1, 2)]
    [[1, 5, 6, 2], [1, 7, 8, 9, 10, 2]]
    """
    cls, sep = np.array([cls_id], np.int32), np.array([sep_id], np.int32)
    runs, run = list[Tokens](), list[Tokens]()
    left = room = max_seq_length - 2

    def end() -> None:
        nonlocal run, left
        if left < room:
            runs.append(np.concatenate([cls, *run, sep]))
        run, left = [], room

    for sentence in sentences:
        while len(sentence) > left:
            if left >= MOST_EMPTY or left == room:
                run.append(sentence[:left])
                sentence, left = sentence[left:], 0
            end()
        run.append(sentence)
        left -= len(sentence)
    end()
    return runs


def sentence_pairs(
    documents: Sequence[Sequence[Tokens]], max_seq_length: int, cls_id: int, sep_id: int, short_seq_prob: float,
    rng: np.random.Generator,
) -> tuple[list[Tokens], list[int]]:  # fmt: skip
    """Returns BERT's next-sentence examples `[CLS] a [SEP] b [SEP]`, and labels 0 (b follows a) or 1 (b is from elsewhere).

    The method is that of create_instances_from_document (google-research/bert, create_pretraining_data.py). A chunk has
    sentences up to the target length (a random shorter one with `short_seq_prob`), and a is a random prefix of it. With
    probability 1/2, and always where the chunk is a single sentence, b is text of another document, and the rest of the chunk is
    used again; else b is the rest. Unlike there, a chunk is never longer than a row, so no text is truncated: sentences over
    half a row are cut, and a chunk takes two sentences wherever the document has them. If there is only one document,
    "elsewhere" is another place in it.
    """
    room = max_seq_length - 3
    half = room // 2
    cut = [[s[i : i + half] for s in document for i in range(0, len(s), half)] for document in documents]
    cut = [document for document in cut if document]
    cls, sep = np.array([cls_id], np.int32), np.array([sep_id], np.int32)
    examples: list[Tokens] = []
    labels: list[int] = []
    for index, document in enumerate(cut):
        position = 0
        while position < len(document):
            target = int(rng.integers(2, room + 1)) if rng.random() < short_seq_prob else room
            end, length = position, 0
            while end < len(document) and (end < position + 2 or length + len(document[end]) <= target):
                length += len(document[end])
                end += 1
            size = end - position
            split = position + (1 if size == 1 else int(rng.integers(1, size)))
            a = np.concatenate(document[position:split])
            is_random = size == 1 or rng.random() < 0.5
            if is_random:
                b = _elsewhere(cut, index, split, target - len(a), rng)[: room - len(a)]
                position = split
            else:
                b = np.concatenate(document[split:end])
                position = end
            examples.append(np.concatenate([cls, a, sep, b, sep]))
            labels.append(int(is_random))
    return examples, labels


def _elsewhere(documents: Sequence[Sequence[Tokens]], own: int, following: int, wanted: int, rng: np.random.Generator) -> Tokens:
    """Returns `wanted` tokens or more, if there are so many, from a random sentence of a random document other than `own`."""
    if len(documents) > 1:
        other = int(rng.integers(len(documents) - 1))
        document = documents[other + (other >= own)]
        start = int(rng.integers(len(document)))
    else:  # one document: any place but the sentence that really follows
        document = documents[own]
        start = int(rng.integers(max(1, len(document) - 1)))
        start += start >= following and len(document) > 1
    end, length = start, 0
    while end < len(document) and (end == start or length < wanted):
        length += len(document[end])
        end += 1
    return np.concatenate(document[start:end])
