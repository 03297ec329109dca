"""Configuration of pretraining runs: frozen dataclasses, built once and passed whole. No jax in here.

A config file is a Python file with `get_config() -> TrainConfig`; every field can be overridden from the command line
(`load_train_config`). Names are those of a Hugging Face config.json where it has one. The string under a field is its --help; a
long one is written as strings in parentheses, since the line breaks of a docstring would show.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import runpy
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

from bert_jax.errors import Checked as Checked
from bert_jax.errors import InputError as InputError
from bert_jax.errors import did_you_mean as did_you_mean
from bert_jax.model.config import CHOSEN_BY_RUN
from bert_jax.model.config import BertConfig as BertConfig
from bert_jax.model.config import ComputeConfig as ComputeConfig
from bert_jax.phases import Phase as Phase
from bert_jax.phases import Span as Span
from bert_jax.phases import spans as spans
from bert_jax.replaced_tokens import ReplacedTokensConfig as ReplacedTokensConfig

T = TypeVar("T")
Json = dict[str, Any]
Change = tuple[str, Any, Any]  # dotted name of a field, old value, new value
TextFormat = Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet"]
TRAINED = ("unigram", "bpe", "wordpiece")  # values of data.tokenizer that train a vocabulary; the others are paths


@dataclass(frozen=True)
class _Group(Checked):
    """Base of the groups of fields, with checks of ranges. None is always in range."""

    def _require_least(self, least: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(value is None or value >= least, f"{name}={value} is below {least}")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(value is None or value > 0, f"{name}={value} must be positive")


def named_paths(entries: Sequence[str], where: str, why: str = "") -> dict[str, tuple[str, ...]]:
    """Returns the paths of each name in entries NAME=PATH; a name may be given several times.

    >>> named_paths(["novels=a.txt", "law=b/*.txt", "novels=c.txt"], "eval_sources")
    {'novels': ('a.txt', 'c.txt'), 'law': ('b/*.txt',)}

    Raises:
        InputError: An entry is not NAME=PATH. The message begins with `where` and says `why` it must be.
    """
    found: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        parts = re.fullmatch(r"([A-Za-z0-9_.-]+)=(.+)", entry)
        if parts is None:
            raise InputError(
                f"{where}: {entry!r} is not NAME=PATH{why}, with a name of letters, digits, '_', '.' and '-': "
                "give for example novels='novels/*.txt'"
            )
        found[parts[1]] = (*found.get(parts[1], ()), parts[2])
    return found


@dataclass(frozen=True)
class DataConfig(_Group):
    """The text, and how it becomes rows of token ids."""

    source: tuple[str, ...] = ()
    (
        "Files, folders, globs (.txt .md .jsonl .csv .tsv, also .gz .bz2 .xz .zst; .parquet), gs:// paths, `tfds:NAME`, or "
        "`stdlib:` (text that is part of every Python installation)."
    )
    mixture: str | None = None
    (
        "Weights of several sources, such as `books=2,web=1`: of 3 rows 2 are of the source books. Each entry of `source` is "
        "then NAME=PATH. Default: each row of the text once an epoch."
    )
    format: TextFormat = "auto"
    """Format of the files. auto: by their suffixes."""
    documents: Literal["blank_line", "line", "file"] = "blank_line"
    """A document in a .txt file ends at a blank line, at the end of a line, or at the end of the file."""
    text_column: str = "text"
    """Field of .jsonl, .csv, .tsv, .parquet and TFDS records that holds the text."""
    sentences: Literal["punctuation", "line"] = "punctuation"
    """A sentence ends at punctuation before a capital letter (lines are joined), or at the end of a line (BERT's own format)."""
    on_error: Literal["raise", "skip"] = "raise"
    """On a binary, undecodable or malformed document: stop and name its place, or skip and count it."""
    tokenizer: str = "unigram"
    (
        "Path of a tokenizer (directory, tokenizer.json, vocab.txt, SentencePiece .model); or `unigram`, `bpe` or `wordpiece`, "
        "to train a vocabulary of model.vocab_size pieces on the source and keep it in the work directory."
    )
    lowercase: bool = True
    """Lowercase the text, for a vocabulary that the run trains."""
    special_tokens: Literal["text", "read"] = "text"
    (
        "Treat a special token that is spelled out in the text (`[MASK]`, `<ent>`) as ordinary text, or read it as that token. "
        "The exported tokenizer reads it as the token, as published ones do."
    )
    tokenizer_sample_mb: int | None = 200
    (
        "Train the vocabulary on at most this many megabytes of text, lines from all parts of the source. Training takes about "
        "20 times as much memory. None: all text."
    )
    max_seq_length: int = 128
    """Tokens per row."""
    examples: Literal["full_sentences", "sentence_pairs"] = "full_sentences"
    """Full sentences packed into rows, or BERT's sentence pairs with next-sentence prediction."""
    short_seq_prob: float = 0.1
    """Sentence pairs: share of examples with a random, shorter target length."""
    dupe_factor: int = 1
    """Sentence pairs: cut the corpus into pairs this many times, differently each time (BERT: 10)."""
    eval_fraction: float = 0.01
    (
        "Share of documents held out for evaluation, chosen by a hash of their text, which keeps copies of a document "
        "together. If there are too few documents, passages are held out instead."
    )
    eval_source: tuple[str, ...] = ()
    """Held-out text, given like `source`; replaces eval_fraction."""
    cache_dir: str | None = None
    """Directory of the tokenized rows; may be gs:// (each host copies them once). Default: `cache` in the work directory."""
    num_workers: int | None = None
    """Number of processes that tokenize. Default: one per core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_least(8, "max_seq_length")
        self._require_least(1, "dupe_factor", "num_workers")
        self._require_positive("tokenizer_sample_mb")
        self._require(0 <= self.eval_fraction < 1, f"eval_fraction={self.eval_fraction} is not in [0, 1)")
        self._require(0 <= self.short_seq_prob <= 1, f"short_seq_prob={self.short_seq_prob} is not in [0, 1]")
        self._require(
            self.dupe_factor == 1 or self.examples == "sentence_pairs",
            f"dupe_factor={self.dupe_factor} needs examples='sentence_pairs': full sentences are cut in one way only",
        )

        if self.mixture is not None:
            unknown = [name for name in self.weights if name not in self.by_name]
            known = f"; source names {', '.join(self.by_name) or 'nothing'}"
            self._require(not unknown, f"mixture={self.mixture!r}: no source is named {', '.join(unknown)}{known}")

    @property
    def by_name(self) -> dict[str, tuple[str, ...]]:
        """The paths of `source` by the name of their source; without a mixture, all under the empty name."""
        if self.mixture is None:
            return {"": self.source}
        return named_paths(self.source, "DataConfig: source", f", which mixture={self.mixture!r} needs")

    @property
    def weights(self) -> dict[str, int]:
        """The weights of `mixture` in whole numbers without a common divisor; without a mixture, 1 for the empty name.

        >>> DataConfig(source=("a=x.txt", "b=y.txt"), mixture="a=0.5,b=1").weights
        {'a': 1, 'b': 2}
        """
        if self.mixture is None:
            return {"": 1}
        shares: dict[str, Fraction] = {}
        for entry in self.mixture.split(","):
            parts = re.fullmatch(r"\s*([A-Za-z0-9_.-]+)=(\d+\.?\d*|\.\d+)\s*", entry)
            self._require(parts is not None and parts[1] not in shares, f"mixture={self.mixture!r}: {entry!r} is not NAME=WEIGHT")
            assert parts is not None
            shares[parts[1]] = Fraction(parts[2])
            self._require(shares[parts[1]] > 0, f"mixture={self.mixture!r}: leave out {parts[1]}, whose weight is 0")
        whole = {name: int(share * math.lcm(*(each.denominator for each in shares.values()))) for name, share in shares.items()}
        whole = {name: weight // math.gcd(*whole.values()) for name, weight in whole.items()}
        self._require(sum(whole.values()) <= 100_000, f"mixture={self.mixture!r}: give weights with fewer digits")
        return whole

    @property
    def tokenizer_sample_bytes(self) -> int | None:
        """`tokenizer_sample_mb` in bytes."""
        return None if self.tokenizer_sample_mb is None else self.tokenizer_sample_mb * 1_000_000


@dataclass(frozen=True)
class MaskingConfig(_Group):
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


@dataclass(frozen=True)
class OptimConfig(_Group):
    """The optimizer and the schedule of its learning rate."""

    name: Literal["adamw_bert", "adamw", "stable_adamw", "lamb", "muon"] = "adamw_bert"
    (
        "`adamw_bert`: google-research/bert's, without bias correction. `adamw`: the usual AdamW. `stable_adamw`: AdamW whose "
        "updates are clipped where a gradient exceeds its history. `lamb`: for large batches. `muon`: Muon for the kernels of "
        "the layers, AdamW for everything else."
    )
    learning_rate: float = 1e-4
    """Peak learning rate."""
    muon_learning_rate: float = 0.02
    """muon: peak learning rate of the kernels of the layers, with the schedule of learning_rate."""
    muon_momentum: float = 0.95
    """muon: decay rate of the momentum."""
    muon_iterations: int = 5
    """muon: Newton-Schulz iterations that orthogonalise an update."""
    muon_coefficients: Literal["jordan", "polar_express"] = "jordan"
    (
        "muon: polynomials of the iterations. `jordan`: one for all of them, usually 5. `polar_express`: the best ones for 3, 4 "
        "or 5 iterations; 3 are 60 % of the work of 5 of `jordan`."
    )
    muon_scale: Literal["shape", "adamw"] = "shape"
    (
        "muon: factor of an orthogonalised update. `shape`: max(1, out / in)^0.5, which changes a layer's output by about the "
        "rate. `adamw`: 0.2 max(in, out)^0.5, as large as an update of AdamW, so that muon_learning_rate may be AdamW's."
    )
    muon_dtype: Literal["float32", "bfloat16"] = "float32"
    """muon: type of the iterations' products, and of the matrices that cross devices. bfloat16 is fast on TPUs and GPUs only."""
    schedule: Literal["linear", "bert_tf", "cosine", "warmup_stable_decay"] = "linear"
    """Decay after the warm-up. `bert_tf` is that of google-research/bert, which drops a little where the warm-up ends."""
    warmup_steps: int = 10_000
    """Steps of linear warm-up."""
    decay_steps: int | None = None
    """warmup_stable_decay: steps of the final decay. Default: a tenth of num_steps."""
    decay_shape: Literal["linear", "1-sqrt"] = "linear"
    """warmup_stable_decay: shape of the final decay, a line or 1 minus the square root of its share that is over."""
    weight_decay: float = 0.01
    """Decoupled weight decay, not applied to biases and norms."""
    b1: float = 0.9
    """Decay rate of the first moment."""
    b2: float = 0.999
    """Decay rate of the second moment."""
    eps: float = 1e-6
    """Added to the square root of the second moment."""
    clip_norm: float | None = 1.0
    """Clip gradients to this global norm. None: no clipping."""
    average: str | None = None
    (
        "Weights that are evaluated and exported: `ema:0.999`, an exponential moving average; `last:5`, the mean of the last "
        "five checkpoints, at the end of the run. Default: those of the last step."
    )
    max_skipped: int = 10
    """Stop after this many consecutive non-finite updates; fewer are skipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("learning_rate", "muon_learning_rate", "eps", "clip_norm")
        self._require_least(0, "warmup_steps", "weight_decay", "decay_steps")
        self._require_least(1, "max_skipped", "muon_iterations")
        self._require_owner("decay_", "schedule", "warmup_stable_decay")
        self._require_owner("muon_", "name", "muon")
        self._require(
            self.muon_coefficients == "jordan" or 3 <= self.muon_iterations <= 5,
            f"muon_coefficients='polar_express' is for 3, 4 or 5 iterations, not for muon_iterations={self.muon_iterations}",
        )
        form = r"ema:0?\.\d+|last:[1-9]\d*"
        valid = self.average is None or re.fullmatch(form, self.average) is not None
        self._require(valid, f"average={self.average!r} is neither ema:DECAY, such as ema:0.999, nor last:NUMBER")
        for name in ("b1", "b2", "muon_momentum"):
            self._require(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} is not in [0, 1)")

    @property
    def ema(self) -> float | None:
        """The decay of the moving average of the weights, if `average` asks for one."""
        return float(self.average.removeprefix("ema:")) if self.average and self.average.startswith("ema:") else None

    @property
    def last(self) -> int | None:
        """The number of checkpoints whose weights are averaged, if `average` asks for that."""
        return int(self.average.removeprefix("last:")) if self.average and self.average.startswith("last:") else None

    def _require_owner(self, prefix: str, owner: str, value: str) -> None:
        """Requires `owner` to be `value`, which alone uses the fields that begin with `prefix`, if one of them is set."""
        if getattr(self, owner) == value:
            return
        for f in dataclasses.fields(self):
            given = getattr(self, f.name)
            unset = given == f.default or not f.name.startswith(prefix)
            self._require(unset, f"{f.name}={given!r} needs {owner}={value!r}, not {getattr(self, owner)!r}")


@dataclass(frozen=True)
class ParallelConfig(_Group):
    """Distribution of the work over devices. It may differ between runs of one work directory."""

    strategy: Literal["mesh", "pmap"] = "mesh"
    """`mesh`: one program over a mesh of devices, which can shard parameters. `pmap`: each device has all parameters."""
    num_devices: int | None = None
    """Number of devices to use, on a single host. Default: all."""
    fsdp: int = 1
    """mesh: shard parameters, gradients and optimizer state over this many devices, for models too large for one."""
    tensor: int = 1
    """mesh: shard attention heads and intermediate layers over this many neighboring devices."""
    multihost: bool | None = None
    (
        "This process is one of several that run the same command. Default: true with `coordinator`, or if the environment "
        "variables of a TPU pod, Slurm or Open MPI name several processes."
    )
    coordinator: str | None = None
    """HOST:PORT of process 0, if the environment does not define it."""
    num_processes: int | None = None
    """Number of processes, if the environment does not define it."""
    process_id: int | None = None
    """Index of this process, from 0, if the environment does not define it."""
    initialization_timeout: int = 300
    """Seconds to wait for the other processes at the start."""
    heartbeat_timeout: int = 100
    """Seconds without a heartbeat from a process after which the others end."""
    stuck_timeout: int = 1800
    """Seconds without a finished step after which a process ends itself, because another process hangs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_least(1, "num_devices", "fsdp", "tensor", "num_processes", "initialization_timeout", "heartbeat_timeout",
                            "stuck_timeout")  # fmt: skip
        self._require(
            self.strategy == "mesh" or self.fsdp == self.tensor == 1,
            f"fsdp={self.fsdp} and tensor={self.tensor} are for strategy='mesh': pmap keeps all parameters on each device",
        )
        self._require(
            (self.num_processes is None) == (self.process_id is None), "num_processes and process_id go together: give both"
        )
        self._require(
            self.num_processes is None or self.coordinator is not None,
            "num_processes needs coordinator: HOST:PORT of process 0, the same for all",
        )
        self._require(
            self.process_id is None or 0 <= self.process_id < (self.num_processes or 0),
            f"process_id={self.process_id} is not in [0, num_processes={self.num_processes})",
        )
        self._require(
            self.coordinator is None or re.fullmatch(r"[^:\s]+:\d+|\[[^\]]+\]:\d+", self.coordinator) is not None,
            f"coordinator={self.coordinator!r} is not HOST:PORT",
        )
        self._require(self.multihost is not False or self.coordinator is None, "coordinator is for multihost=True")


@dataclass(frozen=True)
class TrainConfig(_Group):
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
        "Work directory RUN of another run, or RUN@STEP: this run goes on from its newest or that checkpoint, with its optimizer "
        "state, text and vocabulary, so that a long stable run can end in several ways."
    )
    profile: int = 0
    """Number of steps to profile, after the first ten if possible. XProf, TensorBoard's profile plugin, shows WORKDIR/profile."""
    extend: bool = False
    """Allow a larger num_steps than the work directory was started with."""
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
        self._require(self.branch_from is None or self.init_from is None, "branch_from and init_from: give one of them")
        spans(self)  # checks the phases, each as a run of its own
        self.check_average(0)
        if not self.phases:
            self._check_causal()
            self._check_replaced()

    def _check_causal(self) -> None:
        """Raises InputError if next tokens are to be predicted where a step cannot do so."""
        share, conv = self.masking.causal_share, self.model.form.conv_kernel_size
        fix = f"masking.causal_share={share}: set it to 0"
        self._require(share == 0 or conv == 0, f"conv_kernel_size={conv}, a convolution, shows tokens the next ones, and {fix}")
        pairs = self.data.examples == "sentence_pairs"
        self._require(share == 0 or not pairs, f"data.examples='sentence_pairs' has no label for causal rows, and {fix}")

    def _check_replaced(self) -> None:
        """Raises InputError if a step cannot detect replaced tokens, or if it does not and settings of that are given."""
        if self.objective != "replaced_tokens":
            for f in dataclasses.fields(self.replaced_tokens):
                value = getattr(self.replaced_tokens, f.name)
                said = f"replaced_tokens.{f.name}={value!r} needs objective='replaced_tokens', not {self.objective!r}"
                self._require(value == f.default, said)
            return
        share, examples, other = self.masking.causal_share, self.data.examples, "objective='replaced_tokens' does not"
        self._require(share == 0, f"masking.causal_share={share} predicts next tokens, which {other}: set it to 0")
        self._require(
            examples == "full_sentences",
            f"data.examples={examples!r} predicts next sentences, which {other}: set it to 'full_sentences'",
        )
        self.replaced_tokens.generator_of(self.model)  # raises if there can be none

    def check_average(self, begin: int) -> None:
        """Raises InputError if more checkpoints are to be averaged than a run from step `begin` makes, or than are kept."""
        ends = {span.until for span in spans(self) if span.until > begin and span.until % self.checkpoint_every}
        made = self.num_steps // self.checkpoint_every - begin // self.checkpoint_every + len(ends)
        self._require(
            self.optim.last is None or self.optim.last <= min(made, self.keep_checkpoints),
            f"optim.average={self.optim.average!r}, but the run makes {made} checkpoints and keeps "
            f"keep_checkpoints={self.keep_checkpoints}: average fewer, or keep more",
        )

    @property
    def head(self) -> Literal["masked_lm", "pretraining"]:
        """The head that is trained: with next-sentence prediction if the examples are pairs."""
        return "pretraining" if self.data.examples == "sentence_pairs" else "masked_lm"

    @property
    def generator(self) -> BertConfig | None:
        """The generator that is trained beside the model, if the objective has one."""
        return self.replaced_tokens.generator_of(self.model) if self.objective == "replaced_tokens" else None

    @property
    def models(self) -> tuple[BertConfig, ...]:
        """The model and, if there is one, its generator."""
        return (self.model,) if self.generator is None else (self.model, self.generator)

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints."""
        return self.checkpoint_dir or str(Path(self.workdir) / "checkpoints")


_COMPUTE_FIELDS = tuple(field.name for field in dataclasses.fields(ComputeConfig))
_CLASSES = (
    BertConfig, ComputeConfig, DataConfig, MaskingConfig, OptimConfig, ParallelConfig, Phase, ReplacedTokensConfig, TrainConfig,
)  # fmt: skip


def to_dict(cfg: Checked) -> Json:
    """Returns a config as JSON types; tuples become lists."""
    values: Json = json.loads(json.dumps(dataclasses.asdict(cfg)))
    return values


def from_dict(cls: type[T], values: Mapping[str, object], where: str = "config") -> T:
    """Inverts `to_dict`. Raises InputError for an unknown key, naming the nearest known one."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: {values!r} is not a JSON object of names and values")
    hints, built = typing.get_type_hints(cls), Json()
    for key, value in values.items():
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}{did_you_mean(key, hints)}")
        inner = next(iter(typing.get_args(hints[key])), None)
        if dataclasses.is_dataclass(hints[key]):
            value = from_dict(hints[key], value, f"{where}: {key}")  # type: ignore[arg-type]  # checked there
        elif isinstance(inner, type) and dataclasses.is_dataclass(inner) and isinstance(value, list):
            value = [from_dict(inner, each, f"{where}: {key}[{i}]") for i, each in enumerate(value)]
        built[key] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def upgrade(values: Mapping[str, Any]) -> Json:
    """Returns a `to_dict` of an older TrainConfig, whose `model` held the fields of `compute`, in the present form."""
    model = values.get("model")
    if "compute" in values or not isinstance(model, Mapping):
        return dict(values)
    moved = {name: model[name] for name in _COMPUTE_FIELDS if name in model}
    return {**values, "model": {name: value for name, value in model.items() if name not in moved}, "compute": moved}


def differences(old: Mapping[str, object], new: Mapping[str, object], prefix: str = "") -> list[Change]:
    """Returns (dotted name, old value, new value) of every leaf that differs between two `to_dict`s."""
    found: list[Change] = []
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((prefix + key, a, b))
    return found


def shipped_configs() -> dict[str, Path]:
    """Returns the files of configs/ by name: inside an installed package, beside the package in a clone."""
    inside = Path(__file__).parent / "configs"
    folder = inside if inside.is_dir() else Path(__file__).parent.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def load_config_file(path: str | Path) -> TrainConfig:
    """Returns `get_config()` of a Python file: a path, or a name in `shipped_configs` such as `quickstart`.

    Raises:
        InputError: The file is missing, has no get_config that returns a TrainConfig, or its code raises (with the line).
    """
    shipped = shipped_configs()
    path = shipped.get(str(path), Path(path))
    if not path.is_file():
        nearby = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        known = f"; shipped configs: {', '.join(shipped)}" if path.name == str(path) or path.stem in shipped else ""
        raise InputError(f"no config file {path}{did_you_mean(str(path), [*nearby, *shipped])}{known}")
    if path.suffix != ".py":
        raise InputError(f"{path} is not a Python file: a config is a .py file with get_config()")
    try:
        names = runpy.run_path(str(path), run_name=f"bert_jax_config_{path.stem}")
        cfg = names["get_config"]() if "get_config" in names else None
    except SyntaxError as e:
        raise InputError(f"{path}:{e.lineno}: {e.msg}") from None
    except Exception as e:
        raise InputError(_mistake(path, e)) from None
    if "get_config" not in names:
        raise InputError(f"{path} has no get_config() that returns a TrainConfig")
    if not isinstance(cfg, TrainConfig):
        raise InputError(f"{path}: get_config() returned a {type(cfg).__name__}, not a TrainConfig")
    return cfg


def _mistake(path: Path, error: Exception) -> str:
    """Returns an error of a config file's own code, with its line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    cls = next((cls for cls in _CLASSES if unknown and cls.__name__ == unknown[1]), None)
    if unknown is None or cls is None:
        return f"{where}: {error}" if isinstance(error, InputError) else f"{where}: {type(error).__name__}: {error}"
    name, advice = unknown[2], did_you_mean(unknown[2], [f.name for f in dataclasses.fields(cls)])
    if cls is BertConfig and name in _COMPUTE_FIELDS:
        flag = f"--compute.{name.replace('_', '-')}"
        advice = f": give TrainConfig(compute=ComputeConfig({name}=...)), or {flag} on the command line"
    return f"{where}: {cls.__name__} has no field {name!r}{advice}"


def load_train_config(
    argv: Sequence[str], prog: str = "bert_jax train", architecture: Callable[[str, str], BertConfig] | None = None
) -> TrainConfig:
    """Returns the config of a command line `CONFIG [--field value ...]`; `--help` lists every field.

    With `init_from`, `--model.*` override the model `architecture(init_from, workdir)`, not that of the file.

    Raises:
        InputError: There is no CONFIG, or it cannot be loaded.
        SystemExit: A field or its value is wrong (tyro prints near names), or after `--help`.
    """
    import tyro

    argv = [_renamed(argument) for argument in argv]
    if argv and not argv[0].startswith("-"):
        default, rest = load_config_file(argv[0]), argv[1:]
    elif "--help" in argv or "-h" in argv:
        default, rest = TrainConfig(), argv
    else:
        raise InputError(f"usage: {prog} CONFIG [--field value ...]; --help lists the fields")
    if architecture is not None and (start := _given(rest, "init-from") or default.init_from):
        taken = architecture(start, _given(rest, "workdir") or default.workdir)
        default = _started(default, taken, start, _given(rest, "data.max-seq-length"))
    description = "The fields of a pretraining run. The defaults shown are the values of the given config file."
    return tyro.cli(TrainConfig, default=default, args=list(rest), prog=f"{prog} CONFIG", description=description)


def _renamed(argument: str) -> str:
    """Returns a command-line argument with `--compute.` where `--model.` once named a field of ComputeConfig."""
    name = argument.partition("=")[0].removeprefix("--model.").replace("-", "_")
    return argument.replace("--model.", "--compute.", 1) if name in _COMPUTE_FIELDS else argument


def _given(argv: Sequence[str], option: str) -> str | None:
    """Returns the value of a text option, before the command line is parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{option}", f"--{option.replace('-', '_')}", dest="value", nargs="?")
    value: str | None = parser.parse_known_args(list(argv))[0].value
    return value


def _started(cfg: TrainConfig, taken: BertConfig, start: str, length: str | None) -> TrainConfig:
    """Returns `cfg` with the architecture `taken` from the model `start`, its own dropout, and rows that fit the model.

    `length` is the row length on the command line, which is checked later.
    """
    model = taken.replace(**{name: getattr(cfg.model, name) for name in CHOSEN_BY_RUN})
    if length is None and cfg.data.max_seq_length > model.max_length:
        raise InputError(
            f"data.max_seq_length={cfg.data.max_seq_length} is longer than --init-from {start} allows: give "
            f"--data.max-seq-length {model.max_length} or less"
        )
    return cfg.replace(model=model, data=cfg.data.replace(max_seq_length=min(cfg.data.max_seq_length, model.max_length)))
