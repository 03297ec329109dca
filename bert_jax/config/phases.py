"""Phases of a pretraining run: consecutive parts with masks, lengths, batches, rates or mixtures of their own. No jax in here.

All that a phase sets is a function of the step, so a run that is stopped in any phase continues to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bert_jax.errors import Checked, InputError

if TYPE_CHECKING:
    from bert_jax.config.train import TrainConfig


@dataclass(frozen=True)
class Phase(Checked):
    """A part of a run, from the end of the phase before it. A field that is None leaves what the run's own fields say."""

    until: int
    """Step at which the phase ends. The last phase ends at num_steps."""
    batch_size: int | None = None
    """Rows per step, over all devices."""
    gradient_accumulation_steps: int | None = None
    """Microbatches per step."""
    max_seq_length: int | None = None
    """Tokens per row of the training text, which is packed once for each length. Evaluation keeps data.max_seq_length."""
    mask_rate: float | None = None
    """Share of tokens to predict at the start of the phase."""
    final_mask_rate: float | None = None
    """Share of tokens to predict at the end of the phase, reached on a line. Default: mask_rate throughout."""
    mask_prob: float | None = None
    """Share of the tokens to predict that become [MASK]."""
    random_prob: float | None = None
    """Share of the tokens to predict that become a random token."""
    causal_share: float | None = None
    """Share of the steps that predict next tokens, not masked ones."""
    mixture: str | None = None
    """Weights of the sources, as in data.mixture, which must be given too."""
    learning_rate_scale: float | None = None
    """Factor of the schedule's learning rate at the end of the phase. It starts at 1, and where the phase before left it."""
    learning_rate_shape: Literal["linear", "cosine", "1-sqrt", "jump"] = "linear"
    """Way from the old to the new learning_rate_scale; `jump` takes it at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_finite()
        scale = self.learning_rate_scale
        self._require(scale is None or scale >= 0, f"learning_rate_scale={scale} is below 0")
        self._require(
            scale is not None or self.learning_rate_shape == "linear",
            f"learning_rate_shape={self.learning_rate_shape!r} needs learning_rate_scale",
        )
        self._require(
            self.final_mask_rate is None or self.mask_rate is not None,
            f"final_mask_rate={self.final_mask_rate} needs mask_rate, from which the line begins",
        )


@dataclass(frozen=True)
class Span:
    """Steps [begin, until) of a run.

    Attributes:
        name: What errors call it; empty for a run without phases.
        cfg: The config of a run that is throughout as this one is in these steps, without phases.
        begin: The first step.
        until: The step behind the last one.
        mask_line: The steps at which the share of masked tokens is `masking.rate` and `masking.final_rate`.
    """

    name: str
    cfg: TrainConfig
    begin: int
    until: int
    mask_line: tuple[int, int]

    def named(self, error: InputError) -> InputError:
        """Returns `error` with the name of the phase."""
        return InputError(self.naming(str(error))) if self.name else error

    def naming(self, text: str) -> str:
        """Returns `text` with the name of the phase."""
        return f"{self.name}: {text}" if self.name else text


def spans(cfg: TrainConfig) -> tuple[Span, ...]:
    """Returns the phases of a run; a run without phases is one span.

    Raises:
        InputError: The phases do not cover the run, or one of them is not a possible run; the message names it.
    """
    return tuple(_spans(cfg))


def _spans(cfg: TrainConfig) -> Iterator[Span]:
    if not cfg.phases:
        yield Span("", cfg, 0, cfg.num_steps, (0, cfg.num_steps))
        return
    begin = 0
    for number, phase in enumerate(cfg.phases):
        if phase.until <= begin:
            raise InputError(f"phases[{number}].until={phase.until} is not past step {begin}, where the phase begins")
        span = Span(f"phases[{number}] (steps {begin} to {phase.until})", cfg, begin, phase.until, (begin, phase.until))
        try:
            run = _run(cfg, phase)
        except InputError as error:
            raise span.named(error) from None
        yield Span(span.name, run, begin, phase.until, (0, cfg.num_steps) if phase.mask_rate is None else (begin, phase.until))
        begin = phase.until
    if begin != cfg.num_steps:
        raise InputError(
            f"phases[{len(cfg.phases) - 1}].until={begin}, but num_steps={cfg.num_steps}: the phases must cover the run, so give "
            "the last one until=num_steps"
        )


def _run(cfg: TrainConfig, phase: Phase) -> TrainConfig:
    """Returns the config of a run that is a phase of `cfg` throughout."""

    def given(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    if phase.mixture is not None and cfg.data.mixture is None:
        raise InputError(f"mixture={phase.mixture!r} needs data.mixture, which says that the sources have names")
    masking = given(mask_prob=phase.mask_prob, random_prob=phase.random_prob, causal_share=phase.causal_share)
    if phase.mask_rate is not None:
        masking |= {"rate": phase.mask_rate, "final_rate": phase.final_mask_rate}
    optim = cfg.optim if cfg.optim.last is None else cfg.optim.replace(average=None)  # that is over all phases
    return cfg.replace(
        phases=(), optim=optim, masking=cfg.masking.replace(**masking),
        data=cfg.data.replace(**given(max_seq_length=phase.max_seq_length, mixture=phase.mixture)),
        **given(batch_size=phase.batch_size, gradient_accumulation_steps=phase.gradient_accumulation_steps),
    )  # fmt: skip
