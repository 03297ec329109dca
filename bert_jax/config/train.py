"""A pretraining run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bert_jax.config.base import Group
from bert_jax.config.data import DataConfig
from bert_jax.config.masking import MaskingConfig
from bert_jax.config.objectives import OBJECTIVES
from bert_jax.config.optim import OptimConfig
from bert_jax.config.parallel import ParallelConfig
from bert_jax.config.phases import Phase, spans
from bert_jax.config.replaced_tokens import ReplacedTokensConfig
from bert_jax.model.config import BertConfig, ComputeConfig


@dataclass(frozen=True)
class TrainConfig(Group):
    """A pretraining run."""

    workdir: str = "runs/pretrain"
    """Directory of the run; the same command continues it."""
    num_steps: int = 100_000
    """Optimizer steps."""
    batch_size: int = 256
    """Rows per step, over all devices."""
    gradient_accumulation_steps: int = 1
    """Microbatches per step; must divide batch_size."""
    seed: int = 0
    """Seed of initialization, data order, masks and dropout."""
    objective: Literal["masked_lm", "replaced_tokens"] = "masked_lm"
    (
        "`masked_lm`: predict masked tokens. `replaced_tokens`: a small generator predicts them, and the model detects tokens "
        "that were sampled from its predictions (ELECTRA); the settings are replaced-tokens.*."
    )
    eval_every: int = 1000
    """Steps between evaluations on held-out text. The last step is always evaluated."""
    eval_batches: int = 50
    """Maximum batches of held-out rows per evaluation."""
    eval_sources: tuple[str, ...] = ()
    (
        "Further text to evaluate on, such as that of other domains: NAME=PATH ..., with paths as in data.source. The metrics of "
        "a text are named eval/NAME/..."
    )
    checkpoint_every: int = 1000
    """Steps between checkpoints. The last step is always saved."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep, besides the best one."""
    checkpoint_dir: str | None = None
    (
        "Directory of the checkpoints. Default: `checkpoints` in the work directory. Several hosts need one that all can reach, "
        "such as gs://BUCKET/RUN."
    )
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    init_from: str | None = None
    (
        "Pretrained directory: the run starts from its weights, with a fresh optimizer, and takes over its architecture and "
        "vocabulary, unless --model.* or --data.tokenizer override them."
    )
    branch_from: str | None = None
    (
        "Work directory RUN of another run, or RUN@STEP: this run goes on from its newest or that checkpoint, with its model, "
        "optimizer state, text and vocabulary, so that a long stable run can end in several ways."
    )
    profile: int = 0
    """Number of steps to profile, after the first ten if possible. XProf, TensorBoard's profile plugin, shows WORKDIR/profile."""
    extend: bool = False
    """Allow a larger num_steps, and phases until then, than the work directory was started with."""
    fill_masks: tuple[str, ...] = ()
    """Sentences with [MASK] that the model fills in at the end of the run."""
    phases: tuple[Phase, ...] = ()
    """Consecutive parts of the run with settings of their own; set in the config file."""
    model: BertConfig = field(default_factory=BertConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    replaced_tokens: ReplacedTokensConfig = field(default_factory=ReplacedTokensConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_least(1, "num_steps", "batch_size", "gradient_accumulation_steps", "eval_every", "eval_batches",
                            "checkpoint_every", "keep_checkpoints", "log_every")  # fmt: skip
        self._require_least(0, "profile")
        self._require(0 <= self.seed < 2**63, f"seed={self.seed} is not in [0, 2**63)")
        self._require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"batch_size={self.batch_size} is not divisible by gradient_accumulation_steps={self.gradient_accumulation_steps}",
        )
        self._require(
            self.data.max_seq_length <= self.model.max_length,
            f"data.max_seq_length={self.data.max_seq_length} is longer than the {self.model.max_length} tokens that "
            f"model.max_position_embeddings={self.model.max_position_embeddings} allows: lower the former or raise the latter",
        )
        self._require(
            self.optim.warmup_steps <= self.num_steps,
            f"optim.warmup_steps={self.optim.warmup_steps} is more than num_steps={self.num_steps}: lower it",
        )
        if self.optim.schedule == "warmup_stable_decay":
            self.optim.final_decay(self.num_steps)  # raises if it does not fit
        self._require(self.branch_from is None or self.init_from is None, "branch_from and init_from: give one of them")
        spans(self)  # checks the phases, each as a run of its own
        self.check_average(0)
        if not self.phases:
            self._check_causal()
            self._check_objective()

    def _check_causal(self) -> None:
        """Raises InputError if next tokens are to be predicted where a step cannot do so."""
        share, conv = self.masking.causal_share, self.model.form.conv_kernel_size
        fix = f"masking.causal_share={share}: set it to 0"
        self._require(share == 0 or conv == 0, f"conv_kernel_size={conv}, a convolution, shows tokens the next ones, and {fix}")
        pairs = self.data.examples == "sentence_pairs"
        self._require(share == 0 or not pairs, f"data.examples='sentence_pairs' has no label for causal rows, and {fix}")

    def _check_objective(self) -> None:
        """Raises InputError if the objective is not possible here, or if settings of another one are given."""
        others = [(name, needs.settings) for name, needs in OBJECTIVES.items() if needs.settings and name != self.objective]
        for name, settings in others:
            for f in dataclasses.fields(group := getattr(self, settings)):
                value = getattr(group, f.name)
                said = f"{settings}.{f.name}={value!r} needs objective={name!r}, not {self.objective!r}"
                self._require(value == f.default, said)
        OBJECTIVES[self.objective].check(self)

    def check_average(self, begin: int) -> None:
        """Raises InputError if more checkpoints are to be averaged than a run from step `begin` makes, or than are kept."""
        ends = {span.until for span in spans(self) if span.until > begin and span.until % self.checkpoint_every}
        made = self.num_steps // self.checkpoint_every - begin // self.checkpoint_every + len(ends)
        self._require(
            self.optim.last is None or self.optim.last <= min(made, self.keep_checkpoints),
            f"optim.average={self.optim.average!r}, but the run makes {made} checkpoints and keeps "
            f"keep_checkpoints={self.keep_checkpoints}: average fewer, or keep more",
        )

    def saves_at(self, step: int) -> bool:
        """Returns True if a run that nothing stops saves a checkpoint at `step`: at the cadence and at the end of a phase."""
        return step % self.checkpoint_every == 0 or any(span.until == step for span in spans(self))

    @property
    def head(self) -> Literal["masked_lm", "pretraining"]:
        """The head that is trained: with next-sentence prediction if the examples are pairs."""
        return "pretraining" if self.data.examples == "sentence_pairs" else "masked_lm"

    @property
    def generator(self) -> BertConfig | None:
        """The generator that is trained beside the model, if the objective has one."""
        return OBJECTIVES[self.objective].generator(self)

    @property
    def draws(self) -> bool:
        """True if batches have a uniform draw for each prediction (see `BatchSource`)."""
        return OBJECTIVES[self.objective].draws

    @property
    def models(self) -> tuple[BertConfig, ...]:
        """The model and, if there is one, its generator."""
        return (self.model,) if self.generator is None else (self.model, self.generator)

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints."""
        return self.checkpoint_dir or str(Path(self.workdir) / "checkpoints")
