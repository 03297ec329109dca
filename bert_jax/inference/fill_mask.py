"""Predicts the tokens at the masks of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.data.batching import Example
from bert_jax.data.layout import Layout
from bert_jax.inference.predictor import Predictor, as_list
from bert_jax.pretrained import Model

_MASKS = 4
"""Most masks of a text that are filled at once."""


class Filling(NamedTuple):
    """A candidate for a mask.

    Attributes:
      token: the token, as text.
      score: its probability.
      text: the text with the token in place of the mask.
      mask: the index of the mask in the text.
    """

    token: str
    score: float
    text: str
    mask: int = 0


class FillMask(Predictor):
    """Returns the most probable tokens for each mask of each text (`[MASK]` or `<mask>`: the tokenizer's `mask_token`).

    Special tokens in a text are always read as special tokens, because the mask is one.
    """

    needs = ("masked_lm", "pretraining")
    most_places = _MASKS

    def __init__(
        self, model: Model, top_k: int = 5, targets: Sequence[str] | None = None, *, max_length: int | None = None,
        exact: bool = False,
    ) -> None:  # fmt: skip
        """Prepares the predictor.

        Args:
          model: a model with a masked-LM head.
          top_k: the number of candidates for each mask.
          targets: the only candidates, each a token of the model: a word, the continuation of a word, or a name in the
            vocabulary. Scores stay probabilities over the whole vocabulary. Default: every token.
          max_length: as for `Predictor`; a longer text is read around its masks.
          exact: as for `Predictor`.

        Raises:
          InputError: a target is not a single token.
        """
        super().__init__(model, exact, max_length)
        self.tokenizer = self.tokenizer.replace(special_tokens="read")
        self._layout = Layout(self.tokenizer, model.config)
        most = min(model.config.vocab_size, self.tokenizer.vocab_size)
        if not 1 <= top_k <= most:
            raise InputError(f"top_k={top_k} is not in [1, {most}]")
        self._allowed = np.arange(model.config.vocab_size) < most  # the table may be padded
        if targets is not None:
            ids = [id for target in as_list(targets, "targets") for id in self._target_ids(target)]
            self._allowed &= np.isin(np.arange(len(self._allowed)), ids)
        self.top_k = min(top_k, int(self._allowed.sum()))

    def _target_ids(self, target: str) -> list[int]:
        """Returns the ids of a target: alone, after a space, and by its name in the vocabulary."""
        read = self.tokenizer.encode_batch([target, f" {target}"])
        named = [id for id, name in enumerate(self.tokenizer.tokens(range(self.tokenizer.vocab_size))) if name == target]
        found = {int(ids[0]) for ids in read if len(ids) == 1 and ids[0] != self.tokenizer.unk_id} | set(named)
        if not found:
            pieces = ", ".join(map(repr, self.tokenizer.tokens(read[0]))) or "nothing"
            raise InputError(f"the target {target!r} is read as {pieces}; give a target that is one token of the vocabulary")
        return sorted(found)

    def _slots(self, length: int) -> int:
        return max(_MASKS, length // 16)  # few, as the head is as wide as the vocabulary

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        batch["masked_positions"] = batch.pop("places")
        logits = self.model.apply(params, batch, head_only=True)["masked_lm_logits"]
        best, ids = jax.lax.top_k(jnp.where(self._allowed, logits, -jnp.inf), self.top_k)
        scores = jnp.exp(best - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        return {"scores": scores, "ids": ids}

    def __call__(self, texts: Sequence[str]) -> list[list[Filling]]:
        """Returns for each text the `top_k` candidates for its first mask, the best first, then for its second, ...

        Texts that are too long are read around their masks.

        Raises:
          InputError: a text has no mask.
        """
        texts = as_list(texts)
        examples: list[Example] = []
        owners: list[int] = []
        around = self.tokenizer.single
        room = self._longest - len(around)
        for i, ids in enumerate(self.tokenizer.encode_batch(texts)):
            masks = np.flatnonzero(ids == self.tokenizer.mask_id).astype(np.int32)
            if not len(masks):
                raise InputError(f"texts[{i}] has no {self.tokenizer.mask_token}: {texts[i][:60]!r}")
            for group in _together(masks.tolist(), room):
                start, stop = _window(len(ids), group[0], group[-1], room)
                places = np.array(group, np.int32) - start + len(around.ids[0])
                examples.append(self._layout.example([ids[start:stop]], places))
                owners.append(i)
        found: list[list[Filling]] = [[] for _ in texts]
        for i, result in zip(owners, self.run(examples), strict=True):
            for scores, best in zip(result["scores"], result["ids"], strict=True):
                mask = len(found[i]) // self.top_k
                found[i] += [self._filling(texts[i], mask, int(id), float(p)) for id, p in zip(best, scores, strict=True)]
        return found

    def _filling(self, text: str, mask: int, id: int, score: float) -> Filling:
        pieces = text.split(self.tokenizer.mask_token)
        left, right = (self.tokenizer.mask_token.join(part) for part in (pieces[: mask + 1], pieces[mask + 1 :]))
        # WordPiece decodes the second of two copies of a token without its `##`; a `##` of byte-level BPE is text.
        token = self.tokenizer.decode([id])
        again = self.tokenizer.decode([id, id])[len(token) :]
        token = (again if token == f"##{again}" else token).strip() or self.tokenizer.tokens([id])[0]
        if not self.tokenizer.starts_word[id]:
            left = left.rstrip()
        return Filling(token, score, left + token + right, mask)


def _together(masks: list[int], room: int) -> Iterator[list[int]]:
    """Yields groups of masks that fit into the slots and the room of a row."""
    group: list[int] = []
    for mask in masks:
        if group and (len(group) == _MASKS or mask - group[0] >= room):
            yield group
            group = []
        group.append(mask)
    yield group


def _window(size: int, first: int, last: int, room: int) -> tuple[int, int]:
    """Returns (start, stop) of `room` of `size` tokens with first to last in the middle."""
    if size <= room:
        return 0, size
    start = min(max(0, (first + last + 1 - room) // 2), size - room)
    return start, start + room
