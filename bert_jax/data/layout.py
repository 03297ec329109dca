"""Token ids -> `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]` by the tokenizer's templates; cut to a length, or read in windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bert_jax.config import BertConfig, InputError
from bert_jax.data.batching import Example
from bert_jax.data.tokenizer import Encoding, Template, Tokenizer

Text = str | tuple[str, ...]  # a text, or a pair of texts


class Query(str):
    """A text that is searched with, which some layouts lay out in another way than a document."""


AT_FIRST = np.zeros(1, np.int32)


@dataclass(frozen=True)
class Layout:
    """The layout of examples for a tokenizer and a model. Raises InputError if the model has no room for one."""

    tokenizer: Tokenizer
    cfg: BertConfig
    limit: int | None = None  # tokens of an example at most; None: as many as the model takes
    read: Callable[[str], str] = str  # applied to each text of a record before it is tokenized, for example to add a prompt
    roles: Mapping[str, Callable[[str], str]] = field(default_factory=dict)  # in place of `read` for the texts of a role, by name

    def __post_init__(self) -> None:
        if self.cfg.max_length <= len(self.tokenizer.pair):
            raise InputError(f"max_position_embeddings={self.cfg.max_position_embeddings} leaves no room for a text")

    @property
    def longest(self) -> int:
        """The most tokens of an example."""
        return min(self.limit or self.cfg.max_length, self.cfg.max_length)

    @property
    def around(self) -> int:
        """The number of tokens of a document besides those of its text."""
        return len(self.template(1))

    def query(self, text: str) -> Text:
        """Returns a text that is laid out as a query; here as any other text."""
        return text

    def template(self, parts: int) -> Template:
        """Returns the special tokens around and between `parts` parts (1 or 2)."""
        return self.tokenizer.single if parts == 1 else self.tokenizer.pair

    def before(self, parts: Sequence[np.ndarray]) -> int:
        """Returns the number of tokens before the last of `parts`."""
        around = self.template(len(parts)).ids
        return sum(map(len, parts[:-1])) + sum(map(len, around[: len(parts)]))

    def longest_question(self, limit: int) -> int:
        """Returns the most tokens of a question in a window of `limit` tokens: 64 (run_squad.py), or half of a shorter window."""
        return min(64, max(1, (limit - len(self.tokenizer.pair)) // 2))

    def example(self, parts: Sequence[np.ndarray], places: np.ndarray = AT_FIRST) -> Example:
        """Returns a text, or a pair, with the special tokens: `[CLS] a [SEP] b [SEP]`; the head runs at `places`.

        Raises InputError for an id past the vocabulary of the model, and for a text without any token.
        """
        t = self.tokenizer
        input_ids, types = self.template(len(parts)).lay_out(parts)
        if not len(input_ids):
            raise InputError("a text has no tokens, and the tokenizer of this model adds no special tokens: leave it out")
        if self.cfg.type_vocab_size < 2:
            types = np.zeros_like(types)
        if input_ids.max() >= self.cfg.vocab_size:
            raise InputError(
                f"the tokenizer gives id {input_ids.max()} ({t.tokens([int(input_ids.max())])[0]!r}), past the model's "
                f"vocabulary of {self.cfg.vocab_size}: give the tokenizer of this model"
            )
        return Example(input_ids, types, places)

    def examples(self, texts: Sequence[Text], limit: int | None = None) -> tuple[list[Example], int]:
        """Returns an example of at most `limit` tokens for each text or pair of texts, and the number that were cut."""
        both: list[tuple[str, ...]] = [tuple(text) if isinstance(text, (tuple, list)) else (text,) for text in texts]
        pairs = [len(parts) == 2 for parts in both]
        first = self.tokenizer.encode_batch([parts[0] for parts in both])
        second = self.tokenizer.encode_batch([parts[1] if pair else "" for pair, parts in zip(pairs, both, strict=True)])
        limit = min(limit or self.longest, self.longest)
        examples, lost = [], 0
        for pair, a, b in zip(pairs, first, second, strict=True):
            parts = [a, b] if pair else [a]
            shorter = cut(parts, limit - len(self.template(len(parts))))
            lost += shorter is not parts
            examples.append(self.example(shorter))
        return examples, lost


@dataclass(frozen=True)
class MarkedLayout(Layout):
    """The layout of ColBERT: `[CLS] marker text [SEP]`, and queries filled up with `[MASK]` (Khattab and Zaharia, 2020)."""

    query_marker: int | None = None  # the id of the token after the first one of a query; None: no token
    document_marker: int | None = None
    query_length: int = 32  # tokens of a query, marker and special tokens included; longer ones are cut
    expand: bool = True  # shorter queries are filled up with mask tokens

    @property
    def around(self) -> int:
        """The number of tokens of a document besides those of its text."""
        return super().around + (self.document_marker is not None)

    def query(self, text: str) -> Text:
        """Returns a text that is laid out as a query."""
        return Query(text)

    def examples(self, texts: Sequence[Text], limit: int | None = None) -> tuple[list[Example], int]:
        """Returns an example for each text, a query or a document of at most `limit` tokens, and the number that were cut."""
        longest = min(limit or self.longest, self.longest)
        found = list[Example | None]([None] * len(texts))
        lost = 0
        for asked, marker, most in ((True, self.query_marker, self.query_length), (False, self.document_marker, longest)):
            numbers = [i for i, text in enumerate(texts) if isinstance(text, Query) == asked]
            own = [str(text) if isinstance(text, Query) else text for text in (texts[i] for i in numbers)]
            examples, cut_ones = super().examples(own, most - (marker is not None))
            lost += cut_ones
            for i, example in zip(numbers, examples, strict=True):
                found[i] = self._marked(example, marker, self.query_length if asked and self.expand else 0)
        return [example for example in found if example is not None], lost

    def _marked(self, example: Example, marker: int | None, length: int) -> Example:
        """Returns the example with the marker after its first token, and with mask tokens up to `length`."""
        ids = example.input_ids if marker is None else np.insert(example.input_ids, 1, marker)
        ids = np.pad(ids, (0, max(0, length - len(ids))), constant_values=self.tokenizer.mask_id).astype(np.int32)
        return Example(ids, np.zeros_like(ids), example.places)


def cut(parts: list[np.ndarray], room: int) -> list[np.ndarray]:
    """Returns parts of at most `room` tokens together, the longer one without its end (`parts` itself where all fit)."""
    if sum(map(len, parts)) <= room:
        return parts
    if len(parts) == 1:
        return [parts[0][:room]]
    a, b = (len(part) for part in parts)
    keep_a = min(a, max(room - b, (room + 1) // 2))
    return [parts[0][:keep_a], parts[1][: room - keep_a]]


class Window(NamedTuple):
    """Consecutive tokens of a text: the number of the text, the first token, and the token after the last."""

    text: int
    start: int
    stop: int


def cut_windows(text: int, size: int, room: int, stride: int) -> list[Window]:
    """Returns windows of `room` tokens that hold all `size` tokens; each starts `stride` tokens after the one before.

    >>> [(w.start, w.stop) for w in cut_windows(0, 10, 4, 3)]
    [(0, 4), (3, 7), (6, 10)]
    """
    starts = [0]
    while starts[-1] + room < size:
        starts.append(starts[-1] + stride)
    return [Window(text, start, min(start + room, size)) for start in starts]


def most_context(windows: Sequence[Window], size: int) -> np.ndarray:
    """Returns, for each of `size` tokens, the window in which its shorter side of context is longest (run_squad.py)."""
    best, most = np.zeros(size, np.int64), np.full(size, -1)
    for number, window in enumerate(windows):
        inside, place = slice(window.start, window.stop), np.arange(window.stop - window.start)
        context = np.minimum(place, place[::-1])
        best[inside] = np.where(context > most[inside], number, best[inside])
        most[inside] = np.maximum(context, most[inside])
    return best


class Reading(NamedTuple):
    """The windows of (question, context) pairs, with an example for each; `long_questions` were cut."""

    pairs: Sequence[tuple[str, str]]
    questions: list[np.ndarray]
    contexts: list[Encoding]
    windows: list[Window]
    examples: list[Example]
    long_questions: int


def read_windows(
    layout: Layout, pairs: Sequence[tuple[str, str]], max_length: int, stride: int, max_question_length: int
) -> Reading:
    """Returns windows of at most `max_length` tokens: each question with a part of its context, one every `stride` tokens.

    Raises InputError if a pair does not begin with a special token, which "no answer" needs.
    """
    if not layout.tokenizer.pair.ids[0]:
        raise InputError('question answering needs a tokenizer that begins pairs with a token such as [CLS], for "no answer"')
    questions = layout.tokenizer.encode_batch([question for question, _ in pairs])
    long = sum(len(ids) > max_question_length for ids in questions)
    questions = [ids[:max_question_length] for ids in questions]
    contexts = layout.tokenizer.encode_with_offsets([context for _, context in pairs])
    found: list[Window] = []
    for i, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        room = max_length - len(question) - len(layout.tokenizer.pair)
        found += cut_windows(i, len(context.ids), room, min(stride, room))
    examples = [layout.example([questions[w.text], contexts[w.text].ids[w.start : w.stop]]) for w in found]
    return Reading(pairs, questions, contexts, found, examples, long)
