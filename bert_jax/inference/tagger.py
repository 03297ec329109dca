"""Finds the entities in texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.data.layout import Window, cut_windows, most_context
from bert_jax.data.tags import entity_tags
from bert_jax.data.tokenizer import Encoding
from bert_jax.inference.predictor import Predictor, as_list
from bert_jax.pretrained import Model


class Entity(NamedTuple):
    """A span of a text with a label: text[start:end]."""

    label: str
    start: int
    end: int
    text: str
    score: float


class _Word(NamedTuple):
    """A word, or a token where every token has a label of its own."""

    start: int
    end: int
    label: str
    score: float


class Tagger(Predictor):
    """Returns the entities in texts with a token classifier, whose labels may use any scheme (see `entity_tags`).

    Where the labels are not entities, such as parts of speech, each word is returned with its label.
    """

    needs = ("token_classification",)
    per_token = frozenset(["scores"])

    def __init__(
        self, model: Model, aggregation: Literal["simple", "first", "average", "max"] = "first", outside: str = "O", *,
        max_length: int | None = None, exact: bool = False,
    ) -> None:  # fmt: skip
        """Prepares the predictor.

        Args:
          model: a token classifier.
          aggregation: the label of a word of several tokens: each token's own (`simple`), that of the first token, that of the
            highest mean probability (`average`), or that of the token with the highest probability (`max`).
          outside: the label of words outside entities, which are left out.
          max_length: the tokens of a window, as for `Predictor`.
          exact: as for `Predictor`.
        """
        super().__init__(model, exact, max_length)
        if aggregation not in (known := ("simple", "first", "average", "max")):
            raise InputError(f"aggregation={aggregation!r} is not known; known: {', '.join(known)}")
        self.aggregation, self.outside = aggregation, outside

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        del batch["places"]
        return {"scores": jax.nn.softmax(self.model.apply(params, batch)["logits"])}

    def __call__(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Returns the entities of each text, in order. Reads long texts in windows that overlap by half."""
        texts = as_list(texts)
        encodings = self.tokenizer.encode_with_offsets(texts)
        around = self.tokenizer.single
        room = self._longest - len(around)
        windows = [w for i, e in enumerate(encodings) for w in cut_windows(i, len(e.ids), room, max(1, room // 2))]
        results = self.run([self._layout.example([encodings[w.text].ids[w.start : w.stop]]) for w in windows])
        found: list[list[tuple[Window, np.ndarray]]] = [[] for _ in texts]
        for window, result in zip(windows, results, strict=True):
            found[window.text].append((window, result["scores"][len(around.ids[0]) :][: window.stop - window.start]))
        return [self._entities(*each) for each in zip(texts, encodings, found, strict=True)]

    def _entities(self, text: str, encoding: Encoding, found: list[tuple[Window, np.ndarray]]) -> list[Entity]:
        size = len(encoding.ids)
        if not size:
            return []
        best = most_context([window for window, _ in found], size)
        scores = np.stack([found[w][1][i - found[w][0].start] for i, w in enumerate(best)])
        groups: list[list[_Word]] = []
        for before, word in pairwise([_Word(0, 0, self.outside, 0.0), *self._words(encoding, scores)]):
            if groups and self._continues(before.label, word.label):
                groups[-1].append(word)
            elif word.label != self.outside:
                groups.append([word])
        entities = []
        for words in groups:
            start, end = words[0].start, words[-1].end
            if start < end:  # a single `▁` has no text
                score = float(np.mean([word.score for word in words]))
                entities.append(Entity(self._split(words[0].label)[1], start, end, text[start:end], score))
        return entities

    def _words(self, encoding: Encoding, scores: np.ndarray) -> list[_Word]:
        """Returns each word with its label, or each token for the aggregation `simple`."""
        if self.aggregation == "simple":
            spans = [(i, i + 1) for i in range(len(encoding.ids))]
        else:
            cuts = [0, *(np.flatnonzero(np.diff(encoding.word_ids)) + 1).tolist(), len(encoding.ids)]
            spans = list(pairwise(cuts))
        words = []
        for first, last in spans:
            part = scores[first:last]
            if self.aggregation == "average":
                row = part.mean(axis=0)
            elif self.aggregation == "max":
                row = part[np.argmax(part.max(axis=1))]
            else:
                row = part[0]
            best = int(np.argmax(row))
            offsets = encoding.offsets[first:last]
            words.append(_Word(int(offsets[0, 0]), int(offsets[-1, 1]), self.model.labels[best], float(row[best])))
        return words

    def _continues(self, before: str, label: str) -> bool:
        """Returns True if a word with `label` belongs to the entity of the word before it."""
        (prefix_before, type_before), (prefix, type) = self._split(before), self._split(label)
        return "O" not in (prefix, prefix_before) and type == type_before and prefix not in "BS" and prefix_before not in "ES"

    @cached_property
    def _tags(self) -> dict[str, str] | None:
        if self.outside in self.model.labels:
            return entity_tags(self.model.labels, self.outside)
        usual = entity_tags(self.model.labels)  # the words outside entities are wanted too, as a type
        return usual and usual | {"O": "I-O"}

    def _split(self, label: str) -> tuple[str, str]:
        """Returns (prefix, type) of a label: (`B`, `PER`) for `B-PER`; a type alone is read as with `I-`.

        A label that is not an entity has the prefix `S`, so that it never continues another.
        """
        if self._tags is None:
            return ("O" if label == self.outside else "S"), label
        prefix, _, type = self._tags[label].partition("-")
        return prefix, type or "_"
