"""The configuration of fine-tuning: each field is an option of the command `finetune`. Does not import jax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import tyro

from bert_jax import disk, workdir
from bert_jax.config import Checked, InputError, ParallelConfig
from bert_jax.tasks.task import LEAST_TEMPERATURE, Options, Task, TaskData

if TYPE_CHECKING:
    from bert_jax.tasks.kind import Kind


_RULES: tuple[tuple[str, Callable[..., bool], str], ...] = (  # fields, the condition on a value, and the error
    ("batch_size seeds eval_every early_stopping log_every lora_rank chunk_size", lambda x: x >= 1, "is below 1"),
    (
        "num_epochs weight_decay freeze_layers query_regularizer_weight document_regularizer_weight",
        lambda x: x >= 0,
        "is negative",
    ),
    ("max_seq_length query_length", lambda x: x >= 8, "is below 8"),
    ("markers", lambda tokens: len(tokens) == 2, "are not two tokens"),
    ("eps clip_norm lora_alpha temperature", lambda x: x > 0, "must be positive"),
    ("learning_rates", lambda rates: all(rate > 0 for rate in rates), "must be positive"),
    (
        "dimensions",
        lambda sizes: all(size >= 1 for size in sizes) and len(set(sizes)) == len(sizes),
        "must be positive, each once",
    ),
    ("seed", lambda x: 0 <= x < 2**31, "is not in [0, 2**31)"),
    ("warmup_ratio label_threshold", lambda x: 0 <= x <= 1, "is not in [0, 1]"),
    ("label_smoothing dropout", lambda x: 0 <= x < 1, "is not in [0, 1)"),
    ("layer_decay", lambda x: 0 < x <= 1, "is not in (0, 1]"),
)


@dataclass(frozen=True)
class FinetuneConfig(Checked):
    """Fine-tunes a model on a task: one run for each seed and learning rate. Unset fields take the usual values of the task."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = ""
    """Pretrained or fine-tuned directory, in any form that `bert_jax.load` reads, or name on the hub."""
    task: str = ""
    (
        "A task of the table in docs/finetune.md (cola sst2 mrpc stsb qqp mnli qnli rte wnli ax squad squad2 ner swag), or a "
        "kind for your own files: classification multi_label regression tagging question_answering multiple_choice similarity "
        "retrieval reranking."
    )
    task_data: TaskData = field(default_factory=TaskData)
    workdir: str | None = None
    """Work directory; the same command continues a run. Default: runs/TASK."""
    num_epochs: float | None = None
    """Passes over the training rows. Default 3 (SQuAD: 2)."""
    batch_size: int | None = None
    """Examples per step. Default 32 (SQuAD: 12)."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates, such as 2e-5,3e-5,5e-5: one run for each. Default 3e-5."""
    seeds: int = 1
    """Runs for each learning rate, with the seeds `seed`, `seed` + 1, ..."""
    seed: int = 0
    """First seed, for the initial head, the order of the data and dropout."""
    max_seq_length: int | None = None
    """Maximum tokens per example; the rest is cut. Default 128 (SQuAD: windows of 384)."""
    special_tokens: Literal["text", "read"] | None = None
    (
        "Treat special tokens in the data, such as `[SEP]`, as text, or read them as these tokens. The exported model does the "
        "same. Default: text; if nothing is trained, as the model does."
    )
    eval_every: int | None = None
    """Steps between evaluations. Default: once per epoch."""
    metric: str | None = None
    """Metric that chooses the best weights. Default: the mean of the metrics of the task."""
    select: Literal["best", "last"] = "best"
    """Weights to keep: those of the best or of the last evaluation on the dev set."""
    early_stopping: int | None = None
    """Stop a run after this number of evaluations without a better one. Default: never."""
    batching: Literal["packed", "padded", "by_length"] = "packed"
    """Several examples per row; one per row; or one per row, in batches of similar length, which changes their order."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["linear", "bert_tf", "cosine"] = "linear"
    """Decay of the learning rate to 0 after the warm-up."""
    optimizer: Literal["adamw", "adamw_bert", "stable_adamw", "lamb", "muon"] = "adamw"
    (
        "`adamw` corrects the bias of the moments, which small training sets need; `adamw_bert`, BERT's own, does not. "
        "`stable_adamw` clips updates where a gradient exceeds its history. `muon`: Muon for the kernels of the layers, with "
        "updates as large as AdamW's, and `adamw` for embeddings, norms, biases and the head."
    )
    weight_decay: float = 0.01
    """Decoupled weight decay, not applied to biases and LayerNorm."""
    eps: float = 1e-6
    """Added to the square root of the second moment."""
    clip_norm: float | None = 1.0
    """Clip gradients to this global norm; None: no clipping."""
    layer_decay: float = 1.0
    """Ratio of the learning rate of each layer to that of the layer above."""
    freeze_layers: int = 0
    """Freeze the embeddings and this many of the lowest layers; 0: freeze nothing."""
    lora_rank: int | None = None
    (
        "Instead of the encoder, train low-rank adapters (LoRA) of this rank on query and value, and the head; they are merged "
        "into the exported model. Adapters need a larger learning rate, such as 1e-3."
    )
    lora_alpha: float = 16.0
    """Scale the output of the adapters by lora_alpha / lora_rank."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes (classification, tagging, multiple_choice)."""
    class_weights: str | None = None
    (
        "Weights of classes in the loss (classification, tagging; multi_label: for rows that have the label): `balanced`, from "
        'their frequencies in training, or a JSON file {"class": weight}; a class that is missing there has weight 1.'
    )
    dropout: float | None = None
    """Dropout rate of the encoder and the head. Default: that of the model."""
    init_head: Literal["auto", "fresh", "keep", "match"] = "auto"
    (
        "Start of the head. fresh: random weights; keep: that of the fine-tuned model, for the same classes; match: its rows of "
        "the classes that it shares with the task. auto: keep if head and classes are the same, else fresh."
    )
    via: str | None = None
    """TASK=DATA: first fine-tune on this task and start from the result, such as `--via mnli=GLUE/MNLI` for rte, mrpc, stsb."""
    via_text_column: tuple[str, ...] = ()
    """The text_column of the data of `via`."""
    via_label_column: tuple[str, ...] = ()
    """The label_column of the data of `via`."""
    together: Literal["auto", "yes", "no"] = "auto"
    """Train all runs in one program. auto: if that is likely to be faster."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, softmax, norms and losses stay float32."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    loss: Literal["auto", "cosine", "ranking", "triplet", "pointwise", "pairwise", "listwise"] = "auto"
    (
        "similarity: cosine (labelled pairs), ranking (other pairs; in-batch negatives) or triplet; auto: by the data. "
        "reranking: pointwise, pairwise or listwise (auto)."
    )
    form: Literal["dense", "sparse", "multi_vector"] = "dense"
    (
        "retrieval: dense, a vector for each text; sparse, weights of the tokens of the vocabulary (SPLADE), from a model with a "
        "masked-LM head; multi_vector, a vector for each token (ColBERT). See docs/retrieval.md."
    )
    query_regularizer_weight: float = 5e-5
    """retrieval --form sparse: weight of the FLOPS of queries in the loss, which rises over the first third of the steps."""
    document_regularizer_weight: float = 3e-5
    """retrieval --form sparse: weight of the FLOPS of documents."""
    query_weights: Literal["encoder", "idf", "ones"] | None = None
    (
        "retrieval --form sparse: weights of the tokens of queries. encoder: those of the model; idf, ones: those of a table, so "
        "that queries need no encoder: the idf of each token in the documents, or 1. Default: as the model, else encoder."
    )
    markers: tuple[str, ...] | None = None
    (
        "retrieval --form multi_vector: the tokens that mark queries and documents. Default: those of the model, else [unused0] "
        "and [unused1] where the vocabulary has them, else none."
    )
    query_length: int | None = None
    """retrieval --form multi_vector: tokens of a query. Default: that of the model, else 32."""
    expand_queries: bool | None = None
    """retrieval --form multi_vector: fill up queries with mask tokens. Default: as the model, else yes."""
    skip_punctuation: bool | None = None
    """retrieval --form multi_vector: vectors of punctuation in documents do not count. Default: as the model, else yes."""
    temperature: float | None = None
    """similarity with the ranking loss, and retrieval: divisor of the scores. Default: 0.05; --form sparse, multi_vector: 1."""
    learn_temperature: tyro.conf.FlagCreatePairsOff[bool] = False
    (
        "similarity with the ranking loss, and retrieval but --form sparse: train the temperature, which begins at --temperature,"
        " at 10 times the learning rate and without weight decay. It stays at 0.01 or more. The export's config.json has it."
    )
    query_prompt: str | None = None
    """retrieval: text to put before each query, which the exported model keeps. Default: the prompt `query` of the model."""
    document_prompt: str | None = None
    """retrieval: text to put before each document. Default: the prompt `document`, `passage` or `corpus` of the model."""
    dimensions: tuple[int, ...] = ()
    """retrieval: train also embeddings that are cut to these numbers of leading values, such as 384,256,128,64."""
    directions: Literal["one", "both"] = "one"
    """retrieval: find the document of each query; both: also the query of each document, among those of the batch."""
    distillation: Literal["kl", "margin_mse"] | None = None
    """retrieval with --score-column: the loss of the teacher's scores, added to that of the batch. Default: kl."""
    chunk_size: int | None = None
    (
        "similarity, retrieval: rows that a device encodes at a time (a packed row holds several texts). The gradients stay "
        "those of the whole batch, in the memory of a chunk. Default: all."
    )
    null_threshold: float | None = None
    """question_answering: no answer is given if its logit exceeds that of the best answer by more. Default: the best on dev."""
    label_threshold: float | None = None
    """multi_label: minimum probability of the labels that a text gets. Default: the best on dev, for each label."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_finite()
        for names, fits, message in _RULES:
            for name in names.split():
                value = getattr(self, name)
                self._require(value is None or fits(value), f"{name}={value} {message}")
        rates = {f"{rate:g}" for rate in self.learning_rates}  # the names of runs
        twice = f"learning_rates={self.learning_rates} has the same rate twice: give each once"
        self._require(len(rates) == len(self.learning_rates), twice)
        lora_alone = self.lora_rank is None or (self.layer_decay == 1 and self.freeze_layers == 0)
        self._require(lora_alone, "lora_rank freezes the encoder: leave out layer_decay and freeze_layers")
        too_low = self.learn_temperature and self.temperature is not None and self.temperature < LEAST_TEMPERATURE
        self._require(not too_low, f"temperature={self.temperature} is below {LEAST_TEMPERATURE}, the least of learn_temperature")
        no_kernels = self.lora_rank is not None and self.optimizer == "muon"
        self._require(not no_kernels, "lora_rank leaves no kernels of layers to optimizer='muon': leave out one of them")
        for name, value in (("via_text_column", self.via_text_column), ("via_label_column", self.via_label_column)):
            self._require(self.via is not None or not value, f"{name}={value} is for the data of via: give via as well")
        stops = self.early_stopping is None or self.select == "best"
        self._require(stops, "early_stopping keeps the best weights: it needs select='best'")

    def resolved(self, task: Task) -> Self:
        """Returns the config with the task's defaults, then the general ones, for unset fields."""
        usual: dict[str, object] = {
            "num_epochs": 3, "batch_size": 32, "learning_rates": (3e-5,), "max_seq_length": 128, "workdir": f"runs/{task.name}",
            "temperature": 0.05,
        } | dict(task.defaults)  # fmt: skip
        return self.replace(**{name: value for name, value in usual.items() if getattr(self, name) in (None, ())})

    def options(self, kind: Kind) -> Options:
        """Returns the fields that only some kinds of tasks read. Raises InputError if a field of another kind is set."""
        from bert_jax.tasks.table import KINDS, RETRIEVERS  # here: it imports jax

        for name in _OF_SOME_KINDS:
            value = getattr(self, name)
            if value != getattr(type(self), name) and name not in kind.options:
                forms = {f"retrieval --form {form}": other for form, other in RETRIEVERS.items()}
                those = [other.name for other in KINDS.values() if name in other.options and "retrieval" not in other.name]
                those += [title for title, other in forms.items() if name in other.options]
                raise InputError(f"{name}={value!r} is for {', '.join(those)}, not for {kind.name}")
        return Options(
            self.loss, self.temperature or 0.05, self.learn_temperature, self.label_smoothing,
            null_threshold=self.null_threshold, label_threshold=self.label_threshold, query_prompt=self.query_prompt,
            document_prompt=self.document_prompt, dimensions=self.dimensions, directions=self.directions,
            distillation=self.distillation, query_regularizer_weight=self.query_regularizer_weight,
            document_regularizer_weight=self.document_regularizer_weight, markers=self.markers, query_length=self.query_length,
            expand_queries=self.expand_queries, skip_punctuation=self.skip_punctuation, query_weights=self.query_weights,
        )  # fmt: skip


_OF_SOME_KINDS = (
    "loss", "label_smoothing", "null_threshold", "label_threshold", "class_weights", "query_prompt", "document_prompt",
    "dimensions", "directions", "distillation", "chunk_size", "query_regularizer_weight", "document_regularizer_weight",
    "markers", "query_length", "expand_queries", "skip_punctuation", "learn_temperature", "query_weights",
)  # fmt: skip


def load_finetune_config(argv: Sequence[str], prog: str = "bert_jax finetune") -> FinetuneConfig:
    """Returns the config of a command line of `prog`."""
    cfg = tyro.cli(
        FinetuneConfig, args=_lists_apart(argv), prog=prog, config=(tyro.conf.OmitArgPrefixes,),
        description="Fine-tune a pretrained model on a task, one run per seed and learning rate. The same command continues.",
    )  # fmt: skip
    for name, value in (("MODEL", cfg.model), ("--task", cfg.task), ("--data", cfg.task_data.data)):
        if not value:
            raise InputError(f"{name} is missing: {prog} MODEL --task NAME --data PATH; see --help")
    if cfg.via is not None and "=" not in cfg.via:
        raise InputError(f"--via {cfg.via}: expected TASK=DATA, such as mnli=GLUE/MNLI")
    return cfg


_LISTS = ("--learning-rates", "--dimensions")


def _lists_apart(argv: Sequence[str]) -> list[str]:
    """Replaces `--learning-rates 2e-5,3e-5` by `--learning-rates 2e-5 3e-5`, which tyro reads."""
    apart, of_list = list[str](), False
    for arg in argv:
        if arg.startswith("--"):
            name, _, value = arg.partition("=")
            of_list = name.replace("_", "-") in _LISTS
            apart += [name] * of_list
            arg = value if of_list else arg
        apart += [part.strip() for part in arg.split(",") if part] if of_list else [arg]
    return apart


FREE_FIELDS = frozenset(["workdir", "log_every"])  # these and parallel.* may differ between runs of one work directory


def claim_workdir(cfg: FinetuneConfig, first: bool = True) -> None:
    """Writes config.json of the work directory, or compares `cfg` with it.

    The `first` process of several locks the directory. Before the first checkpoint, another config replaces the old one.

    Raises:
      InputError: a field differs that changes the results, the folder cannot be written, or another program uses it.
    """
    path = Path(cfg.workdir or "") / "config.json"
    begun = [f"{folder}{made}" for folder in ("", "runs/", "runs/*/") for made in ("checkpoints/*", "run.json")]
    with workdir.errors(path):
        if first:
            workdir.hold(path.parent)
            disk.remove_temporary(path.parent)
        if (old := disk.read_json(path, dict, workdir.ANOTHER)) is not None:
            if not {"task", "task_data"} <= old.keys():  # the config.json of a model
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
