"""The objectives of pretraining, in a table: what each asks of a run and of its batches.

`training.objectives` has a row of the same name, which computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bert_jax.errors import InputError
from bert_jax.model.config import BertConfig

if TYPE_CHECKING:
    from bert_jax.config.train import TrainConfig


def _nothing(cfg: TrainConfig) -> None:
    return None


@dataclass(frozen=True)
class Needs:
    """The demands of an objective on a run.

    Attributes:
        settings: The group of fields of TrainConfig that only this objective reads.
        check: Raises InputError if a run without phases, or a phase of one, does not allow the objective.
        generator: Returns the model that is trained beside the run's own; None if there is none.
        draws: Batches have a uniform draw for each prediction, by which a token is sampled.
    """

    settings: str | None = None
    check: Callable[[TrainConfig], None] = _nothing
    generator: Callable[[TrainConfig], BertConfig | None] = _nothing
    draws: bool = False


def _check_replaced_tokens(cfg: TrainConfig) -> None:
    """Raises InputError if a step cannot detect replaced tokens."""
    share, examples, other = cfg.masking.causal_share, cfg.data.examples, "objective='replaced_tokens' does not"
    if share:
        raise InputError(f"masking.causal_share={share} predicts next tokens, which {other}: set it to 0")
    if examples != "full_sentences":
        raise InputError(f"data.examples={examples!r} predicts next sentences, which {other}: set it to 'full_sentences'")
    _generator(cfg)  # raises if there can be none


def _generator(cfg: TrainConfig) -> BertConfig:
    return cfg.replaced_tokens.generator_of(cfg.model)


OBJECTIVES = {
    "masked_lm": Needs(),
    "replaced_tokens": Needs("replaced_tokens", _check_replaced_tokens, _generator, draws=True),
}
