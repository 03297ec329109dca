"""Describes a model and how it is computed. Does not import jax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from bert_jax.errors import Checked, InputError, did_you_mean
from bert_jax.model.families import FAMILIES, Form, LayerType

ModelType = Literal[
    "bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "camembert", "data2vec-text", "ernie", "megatron-bert",
    "rembert", "roformer", "xlm-roberta-xl", "mpnet", "nomic_bert", "gte", "modernbert", "eurobert", "deberta-v2", "esm",
]  # fmt: skip
Activation = Literal[
    "gelu", "gelu_python", "gelu_10", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate",
    "quick_gelu", "relu", "silu", "swish",
]  # fmt: skip


@dataclass(frozen=True)
class LayerKind:
    """The differences between layers of the same encoder.

    Attributes:
      window: Tokens on each side that a token attends to; None: all of its sequence.
      theta: Base of the rotary angles; None: no rotation.
      attention_norm: In a pre-norm encoder, the layer has a norm before its attention.
    """

    window: int | None
    theta: float | None
    attention_norm: bool


@dataclass(frozen=True)
class BertConfig(Checked):
    """The architecture of a model, in the fields of a Hugging Face config.json."""

    model_type: ModelType = "bert"
    """Family of the model, which determines the parts of a layer and the names of tensors and classes in files."""
    vocab_size: int = 30522
    """Rows of the word-embedding table."""
    hidden_size: int = 768
    """Width of the encoder."""
    num_hidden_layers: int = 12
    """Number of Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads of a layer; must divide hidden_size."""
    num_key_value_heads: int | None = None
    """Heads of keys and values, each shared by several query heads (EuroBERT). Default: num_attention_heads."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    embedding_size: int | None = None
    """Width of the embeddings, projected to hidden_size (ALBERT, ELECTRA). Default: hidden_size, without a projection."""
    output_embedding_size: int | None = None
    """Width of the masked-LM head's own output layer (RemBERT). Default: that of the embeddings."""
    num_hidden_groups: int | None = None
    """Groups of consecutive layers that share their parameters (ALBERT: 1). Default: no layers share any."""
    hidden_act: Activation = "gelu"
    (
        "Activation of the feed-forward layers. `gelu` (`gelu_python`) is the exact (erf) form of the paper's models, `gelu_10` "
        "that form clipped to [-10, 10]; `gelu_new` and its other names are the tanh form, `quick_gelu` the sigmoid form. "
        "`silu` is `swish`."
    )
    hidden_dropout_prob: float = 0.1
    """Dropout after the embeddings and after both sublayers of each layer."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout on the attention probabilities."""
    embedding_dropout_prob: float | None = None
    """Dropout after the embeddings (ModernBERT). Default: hidden_dropout_prob."""
    mlp_dropout_prob: float = 0.0
    """Dropout inside the feed-forward layer, before its output projection (ModernBERT)."""
    classifier_dropout: float | None = None
    """Dropout before a classification head. Default: hidden_dropout_prob."""
    max_position_embeddings: int = 512
    """Tokens of the longest sequence. In RoBERTa, rows of the position table: pad_token_id + 1 more."""
    pad_token_id: int | None = None
    """Id of padding in RoBERTa and its relatives, whose positions count from pad_token_id + 1. Default: 1."""
    type_vocab_size: int = 2
    """Rows of the token-type table; 0: no table (DistilBERT, MPNet, ModernBERT)."""
    tie_word_embeddings: bool = True
    """Use the word-embedding table as the masked-LM head's output layer, instead of a layer of its own."""
    initializer_range: float = 0.02
    """Standard deviation of the normal from which weights are drawn, before it is truncated at two standard deviations."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in LayerNorm."""
    norm_bias: bool | None = None
    """LayerNorms have biases (ModernBERT). Default, also of all fields below: as in the family's published models."""
    attention_bias: bool | None = None
    """The projections of attention have biases (ModernBERT)."""
    mlp_bias: bool | None = None
    """The projections of the feed-forward layer have biases (ModernBERT)."""
    layer_types: tuple[LayerType, ...] | None = None
    """Types of the layers, repeated up to num_hidden_layers (ModernBERT: one full, two sliding)."""
    local_attention: int | None = None
    """In layers of sliding attention, a token attends to local_attention // 2 tokens on each side (ModernBERT: 128)."""
    rope_theta: float | None = None
    """Base of the rotary angles (ModernBERT: in layers of full attention)."""
    local_rope_theta: float | None = None
    """Base of the rotary angles in layers of sliding attention (ModernBERT)."""
    rope_ntk_factor: float | None = None
    """Factor of Alibaba's fixed NTK scaling of the rotary angles (GTE)."""
    position_table: bool | None = None
    """A table of position embeddings is added to the word embeddings (DeBERTa)."""
    position_buckets: int | None = None
    """Number of buckets of distances in each direction (DeBERTa: 256); 0: each distance has its own bucket."""
    max_relative_positions: int | None = None
    """Distance from which on all distances share one embedding (DeBERTa); 0: max_position_embeddings."""
    pos_att_type: tuple[Literal["c2p", "p2c"], ...] | None = None
    """Terms of the attention scores besides content-to-content (DeBERTa): content-to-position, position-to-content."""
    share_att_key: bool | None = None
    """Project relative embeddings with the query and key projections of the tokens (DeBERTa)."""
    norm_rel_ebd: bool | None = None
    """Apply a LayerNorm to the relative embeddings (DeBERTa)."""
    conv_kernel_size: int | None = None
    """Width in tokens of the convolution after the first layer (DeBERTa-v2); 0: no convolution."""
    conv_act: Literal["tanh", "gelu", "relu"] | None = None
    """Activation of that convolution (DeBERTa-v2)."""
    token_dropout: bool | None = None
    """Zero the embeddings of mask tokens, and scale the others to make up for it (ESM-2)."""
    mask_token_id: int | None = None
    """Id of the mask token, which token_dropout needs (ESM-2)."""
    classifier_pooling: Literal["cls", "mean", "late"] | None = None
    """Input of a text classifier: first token, mean over tokens, or mean after its dense layer (ModernBERT, EuroBERT)."""
    classifier_bias: bool | None = None
    """The dense layer of a head has a bias (ModernBERT)."""
    classifier_activation: Activation | None = None
    """Activation of the dense layer of a head (ModernBERT)."""
    decoder_bias: bool | None = None
    """The masked-LM head's output layer has a bias (ModernBERT)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in _LARGEST.items():  # before anything is built of this size
            value = getattr(self, name)
            least = 0 if name == "type_vocab_size" else 1
            self._require(value is None or value >= least, f"{name}={value} {'must be positive' if least else 'is negative'}")
            self._require(value is None or value <= most, f"{name}={value} is more than {most}, the largest supported")
        for name in ("layer_norm_eps", "initializer_range"):
            self._require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} is not in [0, 1]")
        family, form = FAMILIES[self.model_type], self.form
        for name in sorted(OPTIONAL - family.optional):
            given = getattr(self, name)
            self._require(
                given == _DEFAULTS[name],
                f"{name}={given!r} does not fit model_type={self.model_type!r}; it is for "
                f"{', '.join(other for other, row in FAMILIES.items() if name in row.optional)}",
            )
        self._require(
            self.pad_token_id is None or 0 <= self.pad_token_id < self.vocab_size,
            f"pad_token_id={self.pad_token_id} is not an id of vocab_size={self.vocab_size}",
        )
        self._require(
            self.max_length > 0,
            f"max_position_embeddings={self.max_position_embeddings} leaves no position for a token: it must be more than "
            f"{self.position_offset}, the row of the first token",
        )
        self._require(
            self.embedding_size is None or "embedding_size" in family.needs or self.embedding_size != self.hidden_size,
            f"embedding_size={self.embedding_size} is hidden_size, for which model_type={self.model_type!r} has no projection: "
            "leave embedding_size out",
        )
        self._require(
            None not in [getattr(self, name) for name in family.needs],
            f"model_type={self.model_type!r} needs {' and '.join(family.needs)}",
        )
        self._require(
            self.output_embedding_size is None or not self.tie_word_embeddings,
            f"output_embedding_size={self.output_embedding_size} needs tie_word_embeddings=False: a tied output layer is as "
            "wide as the embeddings",
        )
        self._require(
            {"always": self.type_vocab_size > 0, "never": self.type_vocab_size == 0}.get(form.token_types, True),
            f"type_vocab_size={self.type_vocab_size} does not fit model_type={self.model_type!r}, which "
            f"{'has no' if form.token_types == 'never' else 'has'} token types",
        )
        self._check_positions(form)
        self._require(
            (self.num_hidden_groups or 1) <= self.num_hidden_layers,
            f"num_hidden_groups={self.num_hidden_groups} is more than num_hidden_layers={self.num_hidden_layers}",
        )
        self._require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}",
        )
        for name in (name for name in _DEFAULTS if name.endswith(("dropout_prob", "classifier_dropout"))):
            value = getattr(self, name)
            self._require(value is None or 0 <= value <= 0.99, f"{name}={value} is not in [0, 0.99]")

    def _check_positions(self, form: Form) -> None:
        self._require(
            0 < len(form.layer_types) <= self.num_hidden_layers or self.layer_types is None,
            f"layer_types names {len(form.layer_types)} types, num_hidden_layers={self.num_hidden_layers}: give at most as many",
        )
        self._require(
            form.local_attention > 1,
            f"local_attention={form.local_attention} leaves a window of 0: a token attends to local_attention // 2 tokens on "
            "each side; give 2 or more",
        )
        for name in ("rope_theta", "local_rope_theta", "rope_ntk_factor"):
            value = getattr(form, name)
            self._require(value is None or 1 <= value < 1e12, f"{name}={value} is not in [1, 1e12)")
        groups = self.num_key_value_heads
        self._require(
            groups is None or (groups > 0 and self.num_attention_heads % groups == 0),
            f"num_key_value_heads={groups} does not divide num_attention_heads={self.num_attention_heads}",
        )
        self._require(
            not form.token_dropout or self.mask_token_id is not None,
            "token_dropout=True needs mask_token_id, the id of the mask token",
        )
        self._require(
            form.conv_kernel_size == 0 or (form.conv_kernel_size % 2 == 1 and self.num_hidden_layers > 1),
            f"conv_kernel_size={form.conv_kernel_size} must be odd, and needs two layers or more",
        )
        self._require(
            form.position_buckets == 0 or 2 <= form.position_buckets < 2 * (form.max_relative_positions or self.max_length),
            f"position_buckets={form.position_buckets} does not fit max_relative_positions={form.max_relative_positions}, "
            f"max_position_embeddings={self.max_position_embeddings}: give 0, or 2 to less than twice the largest distance",
        )
        head_size = self.hidden_size // self.num_attention_heads
        self._require(
            form.relative_positions != "rotary" or head_size % 2 == 0,
            f"heads of size {head_size} (hidden_size={self.hidden_size} / num_attention_heads={self.num_attention_heads}) cannot "
            "have rotary embeddings: the size must be even",
        )

    @cached_property
    def form(self) -> Form:
        """The parts of a layer: those of the family, as changed by the fields of this config."""
        said = {name: value for name in OF_FORM if (value := getattr(self, name)) is not None}
        return replace(FAMILIES[self.model_type].form, **said)

    def layer(self, number: int) -> LayerKind:
        """Returns the kind of a layer, counted from 0."""
        form = self.form
        sliding = form.layer_types[number % len(form.layer_types)] == "sliding_attention"
        theta = form.local_rope_theta if sliding and form.local_rope_theta is not None else form.rope_theta
        return LayerKind(
            window=form.local_attention // 2 if sliding else None,
            theta=theta if form.relative_positions == "rotary" else None,
            attention_norm=form.first_norm or number > 0,
        )

    @property
    def position_offset(self) -> int:
        """Row of the position table for the first token of a sequence; in fairseq's models, the row after the padding id."""
        if not self.form.positions_from_padding:
            return 0
        return 2 if self.pad_token_id is None else self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_position_embeddings - self.position_offset

    @classmethod
    def of_family(cls, model_type: ModelType, **changes: Any) -> BertConfig:
        """Returns the config of a family, with the defaults of its config.json and `changes`.

        Example: `BertConfig.of_family("modernbert", hidden_size=256, num_attention_heads=4, num_hidden_layers=7)`.
        """
        family = FAMILIES[model_type]
        return cls(**{"model_type": model_type, **family.defaults, **family.fixed, **changes})

    @classmethod
    def preset(cls, name: str, **changes: Any) -> BertConfig:
        """Returns a published size by name (google-research/bert: README, "smaller BERT models"), with `changes`.

        Example: `BertConfig.preset("mini", vocab_size=8192)`.

        Raises:
          InputError: the name is not known.
        """
        if name not in PRESETS:
            raise InputError(f"unknown preset {name!r}: known are {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}")
        layers, hidden = PRESETS[name]
        size = dict(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=hidden // 64,
                    intermediate_size=4 * hidden)  # fmt: skip
        return cls(**{**size, **changes})


_DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in fields(BertConfig)}
OPTIONAL = frozenset().union(*(family.optional for family in FAMILIES.values()))  # fields that some families lack
OF_FORM = frozenset(_DEFAULTS.keys() & {f.name for f in fields(Form)})


@dataclass(frozen=True)
class ComputeConfig(Checked):
    """Settings of the computation, which change neither the parameters nor, up to rounding, the outputs."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type. Parameters, softmax, norm statistics and losses stay float32."""
    matmul_precision: Literal["default", "high", "highest"] = "default"
    (
        "Precision of float32 matrix products in pretraining. default: TF32 on GPUs, one bfloat16 pass on TPUs; high: TF32, or "
        "three passes; highest: float32. CPUs always compute in float32."
    )
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    (
        "Activations that the backward pass recomputes, to save memory, instead of keeping them. none: no activations; dots: all "
        "but the outputs of matrix products; full: all within a layer, which costs about a third more compute. auto: in "
        "training, the first of these with which the step fits the device's memory; otherwise none."
    )
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    (
        "The attention kernel: XLA's; Pallas' splash (TPUs, long rows); cuDNN's (GPUs, bfloat16). auto: the fastest that "
        "computes the same model; with dropout on the probabilities, only XLA's does."
    )
    scan_layers: bool | None = None
    """Run the layers as one scan, which compiles deep models much faster and changes no numbers. Default: on TPUs."""


_LARGEST = {  # far beyond any model: a larger value comes from a damaged or hostile file
    "vocab_size": 2**28, "hidden_size": 2**20, "num_hidden_layers": 1024, "num_attention_heads": 2**20,
    "intermediate_size": 2**22, "max_position_embeddings": 2**24, "embedding_size": 2**20, "output_embedding_size": 2**20,
    "num_hidden_groups": 1024,
    "type_vocab_size": 2**16,
}  # fmt: skip

# Fields that a run may choose: they change how the model is trained or drawn, not which model it is.
CHOSEN_BY_RUN = frozenset(["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range"])

PRESETS: dict[str, tuple[int, int]] = {  # name: (layers, hidden size)
    "tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768), "large": (24, 1024),
}  # fmt: skip
