"""The configuration of fine-tuning; every field is an option of the command `finetune`. No jax in here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import tyro

from bert_jax import disk, workdir
from bert_jax.config import Checked, InputError, ParallelConfig
from bert_jax.tasks.task import Options, Task, TaskData

if TYPE_CHECKING:
    from bert_jax.tasks.kind import Kind


@dataclass(frozen=True)
class FinetuneConfig(Checked):
    """Fine-tuning of one model on one task: a run for each seed and learning rate. Unset values are the task's usual ones."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = ""
    """A pretrained directory (any that `bert_jax.load` reads), or a fine-tuned one."""
    task: str = ""
    (
        "One of the table in docs/finetune.md: cola sst2 mrpc stsb qqp mnli qnli rte wnli ax squad squad2 ner swag, or a kind "
        "for files of your own: classification multi_label regression tagging question_answering multiple_choice similarity."
    )
    task_data: TaskData = field(default_factory=TaskData)
    workdir: str | None = None
    """Folder of the run; the same command continues it. Default: runs/TASK."""
    num_epochs: float | None = None
    """Passes over the training rows. Default 3 (SQuAD: 2)."""
    batch_size: int | None = None
    """Examples a step. Default 32 (SQuAD: 12)."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates, one run for each: 2e-5,3e-5,5e-5. Default 3e-5."""
    seeds: int = 1
    """Number of runs for each learning rate: seeds `seed`, `seed` + 1, ..."""
    seed: int = 0
    """First seed: of the head's initialisation, the data order and dropout."""
    max_seq_length: int | None = None
    """Tokens that an example is cut to. Default 128 (SQuAD: 384, read in windows)."""
    special_tokens: Literal["text", "read"] | None = None
    (
        "Special tokens in the data, such as `[SEP]`, are text, or are read as that token (read). The exported model reads texts "
        "likewise. Default: text; without training, as the model does."
    )
    eval_every: int | None = None
    """Steps between evaluations. Default: an epoch."""
    metric: str | None = None
    """Metric that chooses the best checkpoint. Default: the mean of the task's metrics."""
    select: Literal["best", "last"] = "best"
    """Weights that are kept: those of the best evaluation on the dev set, or of the last one."""
    early_stopping: int | None = None
    """Stop a run after this number of evaluations without a better one."""
    batching: Literal["packed", "padded", "by_length"] = "packed"
    """Several examples in a row, one in a row, or one in a row with examples of similar length together (another order)."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["linear", "bert_tf", "cosine"] = "linear"
    """Decay after the warm-up, to 0."""
    optimizer: Literal["adamw", "adamw_bert", "lamb"] = "adamw"
    """`adamw`: with bias correction, which small training sets need; `adamw_bert`: google-research/bert's, without."""
    weight_decay: float = 0.01
    """Decoupled weight decay, not applied to biases and LayerNorm."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    clip_norm: float | None = 1.0
    """Global norm to which gradients are clipped; None: no clipping."""
    layer_decay: float = 1.0
    """Ratio of the learning rate of a layer to that of the layer above it."""
    freeze_layers: int = 0
    """Number of lowest layers that are frozen, together with the embeddings; 0: nothing is frozen."""
    lora_rank: int | None = None
    (
        "Train adapters of this rank beside the attention's query and value (and the head) instead of the encoder; the "
        "exported model has them merged in. They need a larger learning rate, for example 1e-3."
    )
    lora_alpha: float = 16.0
    """The output of the adapters is scaled by lora_alpha / lora_rank."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes (classification, tagging, multiple_choice)."""
    class_weights: str | None = None
    (
        "Weight of each class in the loss (classification; tagging: of each word; multi_label: of having a label, not having it "
        'counts 1): `balanced`, by how rare it is in training, or a JSON file {"class": weight}, where the others weigh 1.'
    )
    dropout: float | None = None
    """Dropout of the encoder and the head. Default: the model's."""
    init_head: Literal["auto", "fresh", "keep", "match"] = "auto"
    (
        "A fine-tuned model's head: start anew, keep it (its classes must be the task's), or keep the rows of the classes "
        "that both have. auto: keep where the head and classes are the same, else fresh."
    )
    via: str | None = None
    """TASK=DATA: fine-tune on that first, and start from the result, as `--via mnli=GLUE/MNLI` for rte, mrpc and stsb."""
    via_text_column: tuple[str, ...] = ()
    """Columns of the text in the data of `via`; see text_column."""
    via_label_column: tuple[str, ...] = ()
    """Column of the label in the data of `via`; see label_column."""
    together: Literal["auto", "yes", "no"] = "auto"
    """Train all runs in one program; auto: where that is faster."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, softmax, norms and losses stay float32."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log_every: int = 10
    """Steps from one line of metrics.jsonl to the next."""
    loss: Literal["auto", "cosine", "ranking", "triplet"] = "auto"
    """similarity: cosine (pairs with a score), ranking (pairs without; multiple negatives), triplet."""
    temperature: float = 0.05
    """similarity, ranking: divisor of the cosines."""
    null_threshold: float | None = None
    """question_answering: least lead of no answer over the best answer, in logits. Default: the best value on the dev set."""
    label_threshold: float | None = None
    """multi_label: least probability with which a text has a label. Default: the best value for each label on the dev set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for f in dataclasses.fields(self):
            values = value if isinstance(value := getattr(self, f.name), tuple) else (value,)
            self._require(all(math.isfinite(x) for x in values if isinstance(x, float)), f"{f.name}={value!r} is not finite")
        for name in ("batch_size", "seeds", "eval_every", "early_stopping", "log_every", "lora_rank"):
            value = getattr(self, name)
            self._require(value is None or value >= 1, f"{name}={value} is below 1")
        self._require(self.num_epochs is None or self.num_epochs >= 0, f"num_epochs={self.num_epochs} is negative")
        self._require(self.max_seq_length is None or self.max_seq_length >= 8, f"max_seq_length={self.max_seq_length} is below 8")
        self._require(all(rate > 0 for rate in self.learning_rates), f"learning_rates={self.learning_rates} must be positive")
        self._require(
            len({f"{rate:g}" for rate in self.learning_rates}) == len(self.learning_rates),  # as runs are called
            f"learning_rates={self.learning_rates}: one twice",
        )
        self._require(0 <= self.seed < 2**31, f"seed={self.seed} is not in [0, 2**31)")
        self._require(0 <= self.warmup_ratio <= 1, f"warmup_ratio={self.warmup_ratio} is not in [0, 1]")
        self._require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} is negative")
        self._require(self.eps > 0, f"eps={self.eps} must be positive")
        self._require(self.clip_norm is None or self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive")
        self._require(0 < self.layer_decay <= 1, f"layer_decay={self.layer_decay} is not in (0, 1]")
        self._require(self.freeze_layers >= 0, f"freeze_layers={self.freeze_layers} is negative")
        self._require(
            self.lora_rank is None or (self.layer_decay == 1 and self.freeze_layers == 0),
            "lora_rank freezes the encoder: leave out layer_decay and freeze_layers",
        )
        self._require(self.lora_alpha > 0, f"lora_alpha={self.lora_alpha} must be positive")
        self._require(
            self.label_threshold is None or 0 <= self.label_threshold <= 1,
            f"label_threshold={self.label_threshold} is not in [0, 1]",
        )
        self._require(0 <= self.label_smoothing < 1, f"label_smoothing={self.label_smoothing} is not in [0, 1)")
        self._require(self.dropout is None or 0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1)")
        for name, value in (("via_text_column", self.via_text_column), ("via_label_column", self.via_label_column)):
            self._require(self.via is not None or not value, f"{name}={value} is for the data of via: give via as well")
        self._require(self.temperature > 0, f"temperature={self.temperature} must be positive")
        self._require(
            self.early_stopping is None or self.select == "best", "early_stopping keeps the best weights: it needs select='best'"
        )

    def resolved(self, task: Task) -> Self:
        """Returns the config with the task's defaults, then the general ones, for unset fields."""
        usual: dict[str, object] = {
            "num_epochs": 3, "batch_size": 32, "learning_rates": (3e-5,), "max_seq_length": 128, "workdir": f"runs/{task.name}",
        } | dict(task.defaults)  # fmt: skip
        return self.replace(**{name: value for name, value in usual.items() if getattr(self, name) in (None, ())})

    def options(self, kind: Kind) -> Options:
        """Returns the fields that only some kinds of tasks read. Raises InputError where one of another kind is set."""
        from bert_jax.tasks.table import KINDS  # which takes jax

        for name in _OF_SOME_KINDS:
            value = getattr(self, name)
            if value != getattr(type(self), name) and name not in kind.options:
                those = ", ".join(other.name for other in KINDS.values() if name in other.options)
                raise InputError(f"{name}={value!r} is for {those}, not for {kind.name}")
        return Options(
            self.loss, self.temperature, self.label_smoothing,
            null_threshold=self.null_threshold, label_threshold=self.label_threshold,
        )  # fmt: skip


_OF_SOME_KINDS = ("loss", "label_smoothing", "null_threshold", "label_threshold", "class_weights")


def load_finetune_config(argv: Sequence[str], prog: str = "bert_jax finetune") -> FinetuneConfig:
    """The command line of `prog` -> the config. `--help` lists every field; tyro names near misses."""
    cfg = tyro.cli(
        FinetuneConfig, args=_rates_apart(argv), prog=prog, config=(tyro.conf.OmitArgPrefixes,),
        description="Fine-tune a pretrained model on a task, for each seed and learning rate; the same command continues.",
    )  # fmt: skip
    for name, value in (("MODEL", cfg.model), ("--task", cfg.task), ("--data", cfg.task_data.data)):
        if not value:
            raise InputError(f"{name} is missing: {prog} MODEL --task NAME --data PATH; --help says more")
    if cfg.via is not None and "=" not in cfg.via:
        raise InputError(f"--via {cfg.via}: expected TASK=DATA, such as mnli=GLUE/MNLI")
    return cfg


def _rates_apart(argv: Sequence[str]) -> list[str]:
    """--learning-rates 2e-5,3e-5 -> --learning-rates 2e-5 3e-5, as tyro takes them."""
    apart, of_rates = list[str](), False
    for arg in argv:
        if arg.startswith("--"):
            name, _, value = arg.partition("=")
            of_rates = name.replace("_", "-") == "--learning-rates"
            apart += [name] * of_rates
            arg = value if of_rates else arg
        apart += [part.strip() for part in arg.split(",") if part] if of_rates else [arg]
    return apart


# May differ between runs of one work directory: where and how often, never what is computed.
FREE_FIELDS = frozenset(["workdir", "log_every"])  # and parallel.*


def claim_workdir(cfg: FinetuneConfig, first: bool = True) -> None:
    """Writes config.json of the work directory, or compares `cfg` with the one that is there.

    The `first` process of several keeps other programs out. Raises InputError, listing the fields, where something differs
    that would change what is computed, and where the folder cannot be written or another program is at work in it.
    Before the first checkpoint nothing is lost by another config: it replaces the old one.
    """
    path = Path(cfg.workdir or "") / "config.json"
    begun = [f"{folder}{made}" for folder in ("", "runs/", "runs/*/") for made in ("checkpoints/*", "run.json")]
    with workdir.errors(path):
        if first:
            workdir.hold(path.parent)
            disk.remove_temporary(path.parent)
        if (old := disk.read_json(path, dict, workdir.ANOTHER)) is not None:
            if not {"task", "task_data"} <= old.keys():  # a model's, maybe
                raise InputError(f"{path} is not a fine-tuning run's config: use another --workdir, or delete that folder")
            different = workdir.changed(old, cfg, FREE_FIELDS)
            if different and any(next(path.parent.glob(pattern), None) for pattern in [*begun, "results.json"]):
                flags = [(name.removeprefix("task_data."), there, here) for name, there, here in different]
                workdir.refuse(f"{cfg.workdir} holds another run", flags, ", or delete that folder")
        elif any(next(path.parent.glob(pattern), None) for pattern in begun):
            raise InputError(
                f"{path.parent} holds checkpoints, but the config.json of their run is gone: restore it, use "
                "another --workdir, or delete that folder"
            )
        workdir.write(path, cfg)
