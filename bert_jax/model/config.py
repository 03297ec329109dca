"""Describes a model, and how it is computed. No jax in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bert_jax.errors import Checked, InputError, did_you_mean

ModelType = Literal["bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra"]
_COUNTS_FROM_PADDING: tuple[ModelType, ...] = ("roberta", "xlm-roberta")  # their positions start after the padding's id


@dataclass(frozen=True)
class BertConfig(Checked):
    """The model, described by fields of a Hugging Face config.json."""

    model_type: ModelType = "bert"
    """The family: which of BERT's parts it has, and how its tensors and classes are called elsewhere."""
    vocab_size: int = 30522
    """Rows of the word-embedding table."""
    hidden_size: int = 768
    """Width of the encoder."""
    num_hidden_layers: int = 12
    """Number of Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads a layer; must divide hidden_size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    embedding_size: int | None = None
    """Width of the embeddings, projected to hidden_size (ALBERT, ELECTRA); default: hidden_size, no projection."""
    num_hidden_groups: int | None = None
    """Groups of consecutive layers that share their parameters (ALBERT: 1); default: none do."""
    hidden_act: Literal[
        "gelu", "gelu_python", "gelu_10", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate",
        "quick_gelu", "relu", "silu", "swish",
    ] = "gelu"  # fmt: skip
    (
        "Of the feed-forward layers. `gelu` (`gelu_python`) is the exact (erf) form of the paper's models, `gelu_10` that cut at "
        "-10 and 10; `gelu_new` and its other names the tanh form, `quick_gelu` a sigmoid form. `silu` is `swish`."
    )
    hidden_dropout_prob: float = 0.1
    """Dropout after the embeddings and after both sublayers of each layer."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout on the attention probabilities."""
    classifier_dropout: float | None = None
    """Dropout before a classification head; default: hidden_dropout_prob."""
    max_position_embeddings: int = 512
    """Rows of the position table: the longest sequence (RoBERTa and XLM-R: and pad_token_id + 1 more)."""
    pad_token_id: int | None = None
    """RoBERTa and XLM-R: id of the padding token; a sequence's first token has the position row behind it. Default: 1."""
    type_vocab_size: int = 2
    """Rows of the token-type table; 0: no such table (DistilBERT)."""
    tie_word_embeddings: bool = True
    """Use the word-embedding table as the masked-LM head's output layer, instead of a layer of its own."""
    initializer_range: float = 0.02
    """Standard deviation of the truncated normal (cut at two, not corrected) that weights start from."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in LayerNorm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in _LARGEST.items():  # before anything is built of this size
            value = getattr(self, name)
            least = 0 if name == "type_vocab_size" else 1
            self._require(value is None or value >= least, f"{name}={value} {'must be positive' if least else 'is negative'}")
            self._require(value is None or value <= most, f"{name}={value} is more than {most}, which no model has")
        for name in ("layer_norm_eps", "initializer_range"):
            self._require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} is not in [0, 1]")
        counts_padding = self.model_type in _COUNTS_FROM_PADDING
        self._require(
            self.pad_token_id is None or (counts_padding and 0 <= self.pad_token_id < self.vocab_size),
            f"pad_token_id={self.pad_token_id} does not fit model_type={self.model_type!r}, vocab_size={self.vocab_size}: only "
            "positions of RoBERTa and XLM-R depend on it, and it is one of their ids",
        )
        self._require(
            self.max_length > 0,
            f"max_position_embeddings={self.max_position_embeddings} leaves no position behind padding",
        )
        projected = self.model_type in ("albert", "electra")
        self._require(
            self.embedding_size is None
            or (projected and (self.model_type == "albert" or self.embedding_size != self.hidden_size)),
            f"embedding_size={self.embedding_size} does not fit model_type={self.model_type!r}, hidden_size={self.hidden_size}",
        )
        if self.model_type == "albert":
            self._require(
                None not in (self.embedding_size, self.num_hidden_groups),
                "model_type='albert' needs embedding_size and num_hidden_groups",
            )
        else:
            self._require(
                self.num_hidden_groups is None,
                f"num_hidden_groups={self.num_hidden_groups} is for model_type='albert', not {self.model_type!r}",
            )
        self._require(
            (self.type_vocab_size == 0) == (self.model_type == "distilbert"),
            f"type_vocab_size={self.type_vocab_size} does not fit model_type={self.model_type!r}: only DistilBERT has no types",
        )
        self._require(
            (self.num_hidden_groups or 1) <= self.num_hidden_layers,
            f"num_hidden_groups={self.num_hidden_groups} is more than num_hidden_layers={self.num_hidden_layers}",
        )
        self._require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}",
        )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            self._require(value is None or 0 <= value <= 0.99, f"{name}={value} is not in [0, 0.99]")

    @property
    def position_offset(self) -> int:
        """Row of the position table that a sequence's first token has: fairseq's models count from the padding's id."""
        if self.model_type not in _COUNTS_FROM_PADDING:
            return 0
        return 2 if self.pad_token_id is None else self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_position_embeddings - self.position_offset

    @classmethod
    def preset(cls, name: str, **changes: Any) -> BertConfig:
        """A published size by name (google-research/bert: README, "smaller BERT models"), with `changes`.

        Example: `BertConfig.preset("mini", vocab_size=8192)`. Raises InputError for an unknown name.
        """
        if name not in PRESETS:
            raise InputError(f"unknown preset {name!r}: known are {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}")
        layers, hidden = PRESETS[name]
        size = dict(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=hidden // 64,
                    intermediate_size=4 * hidden)  # fmt: skip
        return cls(**{**size, **changes})


@dataclass(frozen=True)
class ComputeConfig(Checked):
    """The way a model is computed. The parameters and, up to rounding, the outputs do not depend on it."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type. Parameters, softmax, norm statistics and losses stay float32."""
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    (
        "Recomputed in the backward pass to save memory: nothing; all but matrix products; or each layer (about a third "
        "more compute). auto: the least that fits the device's memory in training, else none."
    )
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    (
        "The attention kernel: XLA's; Pallas' splash (TPUs, long rows); cuDNN's (GPUs, bfloat16). auto: the fastest that "
        "computes the same model, which with dropout on the probabilities is XLA's."
    )
    scan_layers: bool | None = None
    """Run the layers by one scan: much faster compilation for deep models. Same parameters, same numbers. Default: on TPUs."""


_LARGEST = {  # far beyond any model: what is larger is a damaged or hostile file
    "vocab_size": 2**28, "hidden_size": 2**20, "num_hidden_layers": 1024, "num_attention_heads": 2**20,
    "intermediate_size": 2**22, "max_position_embeddings": 2**24, "embedding_size": 2**20, "num_hidden_groups": 1024,
    "type_vocab_size": 2**16,
}  # fmt: skip

# Fields that a run may choose: they change how the model is trained or drawn, not which model it is.
CHOSEN_BY_RUN = frozenset(["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range"])

PRESETS: dict[str, tuple[int, int]] = {  # name: (layers, hidden size)
    "tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768), "large": (24, 1024),
}  # fmt: skip
