"""The tokens that a run predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bert_jax.config.base import Group


@dataclass(frozen=True)
class MaskingConfig(Group):
    """The tokens to predict, and what replaces them (Devlin et al., 2018, section 3.1)."""

    rate: float = 0.15
    """Share of tokens to predict."""
    final_rate: float | None = None
    """Share of tokens to predict at the end of training, reached on a line from `rate`. Default: `rate` throughout."""
    mask_prob: float = 0.8
    """Share of the tokens to predict that become [MASK]."""
    random_prob: float = 0.1
    """Share of the tokens to predict that become a random token of the vocabulary; the others stay as they are."""
    count: Literal["exact", "bernoulli"] = "exact"
    """exact: the same number of predictions in each row (BERT). bernoulli: draw each token independently."""
    whole_word: bool = False
    """Mask all pieces of a word together."""
    spans: bool = False
    (
        "Mask spans of neighboring words, of 1 to 10 words (3.8 in the mean), and replace all tokens of a span in the same way, "
        "as SpanBERT does."
    )
    causal_share: float = 0.0
    (
        "Share of the steps that predict the next token from those before it by the same head (GPT-BERT), drawn at random; the "
        "other steps predict masked tokens."
    )
    max_predictions_per_seq: int | None = None
    """Maximum predictions per row. Default: enough for the larger rate (0.15: 20 at length 128, 77 at 512)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_least(1, "max_predictions_per_seq")
        for name in ("rate", "final_rate"):
            value = getattr(self, name)
            self._require(value is None or 0 < value < 1, f"{name}={value} is not in (0, 1)")
        self._require(0 <= self.causal_share <= 1, f"causal_share={self.causal_share} is not in [0, 1]")
        self._require(
            self.mask_prob >= 0 and self.random_prob >= 0 and self.mask_prob + self.random_prob <= 1,
            f"mask_prob={self.mask_prob} and random_prob={self.random_prob} must be shares that sum to at most 1",
        )
        self._require(
            not (self.whole_word and self.count == "bernoulli"),
            "whole_word=True needs count='exact': whole words are drawn until the row's count is reached",
        )
        self._require(
            not self.spans or (self.count == "exact" and not self.whole_word),
            "spans=True needs count='exact' and whole_word=False: spans of words are drawn until the row's count is reached",
        )

    @property
    def unit(self) -> Literal["token", "word", "span"]:
        """The unit that is masked or left as a whole."""
        return "span" if self.spans else "word" if self.whole_word else "token"

    def rate_at(self, share: float) -> float:
        """Returns the rate after a `share` of the training, in [0, 1]."""
        return self.rate if self.final_rate is None else self.rate + share * (self.final_rate - self.rate)

    def most_slots(self, length: int) -> int:
        """Returns the larger P of the steps that predict masked tokens and, if there are any, of those that predict next ones."""
        return length - 1 if self.causal_share > 0 else self.num_slots(length)

    def num_slots(self, length: int) -> int:
        """Returns P for rows of `length` tokens: max_predictions_per_seq, or enough for each rate (mean + 4 sd if Bernoulli)."""
        if self.max_predictions_per_seq is not None:
            return min(self.max_predictions_per_seq, length)
        return max(self._enough(length, rate) for rate in (self.rate_at(0), self.rate_at(1)))

    def _enough(self, length: int, rate: float) -> int:
        spread = 4 * math.sqrt(length * rate * (1 - rate)) if self.count == "bernoulli" else 0
        return min(length, math.ceil(length * rate + spread))
