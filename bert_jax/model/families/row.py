"""Defines a row of the table of families: the parts of a family's layer, and the names in its files.

A row maps our names of fields, classes and tensors to those of the family's config.json and of transformers' modeling_*.py. It
holds names and no arrays; this module does not import jax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from bert_jax.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from bert_jax.model.config import BertConfig

Head = Literal[
    "encoder", "masked_lm", "pretraining", "next_sentence", "replaced_token", "sequence_classification",
    "token_classification", "question_answering", "multiple_choice", "token_vectors",
]  # fmt: skip
HEADS: tuple[Head, ...] = get_args(Head)
LayerType = Literal["full_attention", "sliding_attention"]
Names = dict[str, str]  # our path -> their name, of a module or of a single array; "Wqkv[1]" is the second part of Wqkv's rows
Values = Mapping[str, Any]  # the content of a config.json
Fields = dict[str, Any]  # fields of BertConfig, or keys of a config.json

_CLASSES: dict[Head, str] = {
    "encoder": "Model",
    "masked_lm": "ForMaskedLM",
    "pretraining": "ForPreTraining",
    "next_sentence": "ForNextSentencePrediction",
    "replaced_token": "ForPreTraining",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
}
# Heads that all families have, and transformers does not: a linear layer without bias at each token (ColBERT).
OF_ALL: dict[Head, Names] = {"token_vectors": {"token_projection": "linear"}}
_CLASSES_OF_ALL: dict[Head, str] = {"token_vectors": "HF_ColBERT"}  # as Stanford's files call it
EMBEDDINGS = {
    "embeddings/word_embeddings/embedding": "embeddings.word_embeddings.weight",
    "embeddings/position_embeddings/embedding": "embeddings.position_embeddings.weight",
    "embeddings/token_type_embeddings/embedding": "embeddings.token_type_embeddings.weight",
    "embeddings/norm": "embeddings.LayerNorm",
}
LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/intermediate": "intermediate.dense",
    "mlp/output": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
COMMON_HEADS: dict[Head, Names] = {
    "token_classification": {"token_classifier": "classifier"},
    "question_answering": {"span_classifier": "qa_outputs"},
}


@dataclass(frozen=True)
class Form:
    """The parts of a layer and of the encoder around it, apart from their sizes. The defaults are BERT's of 2018.

    A field of `BertConfig` with the same name overrides the family's value, unless the family's config.json lacks the field
    (see `Family.optional`).

    Attributes:
      norm_placement: Norms stand after the sum of each sublayer with its input ("post") or before each sublayer ("pre").
      norm: LayerNorm, or RMSNorm, which subtracts no mean and has no bias.
      norm_bias: LayerNorms have a bias.
      embedding_norm: A norm follows the embeddings.
      first_norm: The first layer has a norm before its attention; ModernBERT's has none, because its embeddings are normed.
      final_norm: A norm follows the last layer.
      gated_mlp: The feed-forward layer is output(act(gate(x)) * intermediate(x)) (Shazeer, 2020), not
        output(act(intermediate(x))).
      attention_bias: The four projections of attention have biases.
      mlp_bias: The inner projections of the feed-forward layer have biases.
      mlp_output_bias: The output projection of the feed-forward layer has a bias; None: as mlp_bias.
      position_table: A table of position embeddings is added to the word embeddings.
      positions_from_padding: Positions in that table count from the padding id + 1, as in fairseq.
      relative_positions: Distances in the attention scores: "none"; "rotary" embeddings of queries and keys (Su et al., 2021);
        "bias", a table of biases that all layers share (Raffel et al., 2020); or "disentangled", scores of contents and of
        relative embeddings (He et al., 2021).
      rope_theta: Base of the rotary angles: pair j of a head's K dimensions turns by position * theta^(-2j/K).
      local_rope_theta: Base in layers of sliding attention; None: rope_theta.
      rope_interleaved: A head's pairs are (x[2j], x[2j + 1]), not (x[j], x[j + K/2]).
      rope_ntk_factor: Alibaba's fixed NTK scaling: angles of theta * factor, divided by factor^(2/K); 1: none.
      layer_types: Types of the layers, repeated up to num_hidden_layers.
      local_attention: In layers of sliding attention, a token attends to local_attention // 2 tokens on each side, and itself.
      position_buckets: Number of DeBERTa's buckets of distances in each direction; 0: each distance has its own bucket.
      max_relative_positions: Distance from which on all distances share one embedding; 0: max_position_embeddings.
      pos_att_type: Terms of DeBERTa's scores besides content-to-content: content-to-position, position-to-content.
      share_att_key: Relative embeddings use the query and key projections of the tokens, not projections of their own.
      norm_rel_ebd: A LayerNorm is applied to the relative embeddings.
      conv_kernel_size: Width in tokens of the convolution after the first layer; 0: no convolution.
      conv_act: The activation of that convolution.
      inner_projection: Narrow embeddings are projected before their norm and without a bias; otherwise after it, with a bias.
      classifier_pooling: Input of a text classifier: the first token, the mean over all, or the mean after the head's
        dense layer ("late").
      classifier_bias: The dense layer before a classifier or the masked-LM output has a bias.
      classifier_activation: The activation of that layer; None: that of the family.
      decoder_bias: The masked-LM output layer has a bias.
      token_types: Token types have a table ("always"), may have one ("optional"), or have none ("never").
      token_dropout: Embeddings of mask tokens are zeros, and all are scaled by the share of masks (ESM-2).
    """

    norm_placement: Literal["post", "pre"] = "post"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_bias: bool = True
    embedding_norm: bool = True
    first_norm: bool = True
    final_norm: bool = False
    gated_mlp: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    mlp_output_bias: bool | None = None
    position_table: bool = True
    positions_from_padding: bool = False
    relative_positions: Literal["none", "rotary", "bias", "disentangled"] = "none"
    rope_theta: float = 10000.0
    local_rope_theta: float | None = None
    rope_interleaved: bool = False
    rope_ntk_factor: float = 1.0
    layer_types: tuple[LayerType, ...] = ("full_attention",)
    local_attention: int = 128
    position_buckets: int = 0
    max_relative_positions: int = 0
    pos_att_type: tuple[Literal["c2p", "p2c"], ...] = ("c2p", "p2c")
    share_att_key: bool = False
    norm_rel_ebd: bool = False
    conv_kernel_size: int = 0
    conv_act: str = "tanh"
    inner_projection: bool = False
    classifier_pooling: Literal["cls", "mean", "late"] = "cls"
    classifier_bias: bool = True
    classifier_activation: str | None = None
    decoder_bias: bool = True
    token_types: Literal["always", "optional", "never"] = "always"
    token_dropout: bool = False


@dataclass(frozen=True)
class Family:
    """One row of the table. "Their" names are those of transformers and of published files.

    Attributes:
      class_prefix: Prefix of the names of transformers' classes.
      prefix: Prefix of the names of the encoder's tensors in the file of a model with a head.
      layer_prefix: Prefix of the names of the tensors of layer `{i}`, after `prefix`.
      heads: Each head of the family -> the names of its parts.
      tied: Tensors that files may hold twice: their name -> the name that it must equal.
      form: The parts of a layer.
      embeddings: Names outside the layers; without `prefix`.
      layer: Names in a layer; without `layer_prefix`.
      fused: Modules whose rows are those of several modules of ours, concatenated: name -> number of ours.
      optional: Fields of BertConfig that its config.json has, but those of some other families do not.
      needs: Of such fields, those that must have a value; a family that needs embedding_size projects embeddings of any width.
      renamed: Field of BertConfig -> its key in their config.json, or several keys, the first of which is written.
      fixed: Values of fields that their config.json does not have.
      defaults: Defaults of their config.json that differ from ours.
      only: Keys of their config.json without a field of ours -> the supported values; an empty tuple: any value.
      other_prefixes: Prefixes that some files have in place of `prefix`.
      left_out: Modules of some files that our encoder does not have and that are ignored; named after `prefix`.
      folded: Tables of some files whose first row is added to each row of another table: name -> name of the other.
      renamed_tensors: Prefixes of names in some files -> the prefixes in `heads`.
      constants: Returns tensors that files hold but no training changes, by name after `prefix`.
      read: Returns further fields of BertConfig from the content of a config.json; raises InputError for unsupported values.
      write: Returns further keys of a config.json.
      special_ids: Keys of their config.json whose defaults are ids of their vocabulary -> the attribute of `Tokenizer` that
        has the id in ours.
      pooler_activation: Activation of the pooler; None: hidden_act.
      masked_lm_activation: Activation in the masked-LM head; None: hidden_act; "classifier_activation": that of `form`.
      dropout_before_pooler: A text classifier applies dropout to the pooler's input, too.
    """

    class_prefix: str
    prefix: str
    layer_prefix: str
    heads: dict[Head, Names]
    tied: Names
    form: Form = Form()
    embeddings: Names = field(default_factory=lambda: EMBEDDINGS)
    layer: Names = field(default_factory=lambda: LAYER)
    fused: Mapping[str, int] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    renamed: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    fixed: Values = field(default_factory=dict)
    defaults: Values = field(default_factory=dict)
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    other_prefixes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    folded: Names = field(default_factory=dict)
    renamed_tensors: Mapping[str, str] = field(default_factory=dict)
    constants: Callable[[BertConfig], dict[str, np.ndarray]] = lambda cfg: {}
    read: Callable[[Values], Fields] = lambda values: {}
    write: Callable[[BertConfig], Fields] = lambda cfg: {}
    special_ids: Mapping[str, str] = field(default_factory=dict)
    pooler_activation: str | None = "tanh"
    masked_lm_activation: str | None = None
    dropout_before_pooler: bool = False

    def head(self, head: Head) -> Names:
        """Returns the names of a head. Raises InputError if the family does not have it."""
        if head not in self.heads | OF_ALL:
            raise InputError(
                f"{self.class_prefix} has no head {head!r}{did_you_mean(head, self.heads)}; it has {', '.join(self.heads)}"
            )
        return (self.heads | OF_ALL)[head]

    def architecture(self, head: Head) -> str:
        """Returns the class of transformers that an encoder with `head` is."""
        self.head(head)
        return _CLASSES_OF_ALL.get(head) or self.class_prefix + _CLASSES[head]

    def head_of(self, architecture: str) -> Head | None:
        """Inverts `architecture`: returns the head of a class, None if the class is not one of the family's."""
        return next((head for head in self.heads | OF_ALL if self.architecture(head) == architecture), None)

    def keys(self, name: str) -> tuple[str, ...]:
        """Returns the keys that a field of BertConfig may have in config.json; the first is written."""
        keys = self.renamed.get(name, name)
        return (keys,) if isinstance(keys, str) else keys

    def head_names(self) -> Iterator[str]:
        """Yields the names of all parts of heads, which are outside the encoder."""
        for head in (self.heads | OF_ALL).values():
            yield from (name.partition("[")[0] for name in head.values())
        yield from self.tied


def rope_of(values: Values, key: str) -> Values:
    """Returns the object at a key of a config.json; an empty one if there is none."""
    rope = values.get(key)
    if rope is not None and not isinstance(rope, dict):
        raise InputError(f"{key}={rope!r} is not supported, only an object such as {{'rope_type': 'default'}}")
    return rope or {}


def default_rope(rope: Values, where: str) -> None:
    """Raises InputError unless `rope`, the rotary settings of a config.json, are those of plain rotary embeddings."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        strange = f"rope_type={kind!r}" if kind != "default" else f"partial_rotary_factor={rope['partial_rotary_factor']!r}"
        raise InputError(f"{where}: {strange} is not supported, only rope_type='default' on whole heads")


def check_head_size(values: Values, key: str, width: int, heads: int) -> None:
    """Raises InputError if a config.json states another head size than hidden_size / num_attention_heads, by default these."""
    width, heads = values.get("hidden_size", width), values.get("num_attention_heads", heads)
    if (size := values.get(key)) is None:
        return
    if not all(isinstance(number, int) for number in (size, width, heads)) or size * heads != width:
        raise InputError(f"{key}={size!r} is not supported, only hidden_size={width!r} / num_attention_heads={heads!r}")


def layer_types_of(types: object, layers: int) -> tuple[str, ...]:
    """Returns the shortest period of the types of all layers.

    >>> layer_types_of(["full_attention", "sliding_attention", "full_attention"], 3)
    ('full_attention', 'sliding_attention')

    Raises:
      InputError: there are not as many types as layers, or one is not known.
    """
    if not isinstance(types, list) or len(types) != layers:
        number = f"{len(types)} types" if isinstance(types, list) else repr(types)
        raise InputError(f"layer_types has {number}, num_hidden_layers={layers}: expected one type per layer")
    if strange := [name for name in types if name not in get_args(LayerType)]:
        raise InputError(f"layer_types has {strange[0]!r}, which is not supported, only {', '.join(get_args(LayerType))}")
    period = next(n for n in range(1, layers + 1) if all(types[i] == types[i % n] for i in range(layers)))
    return tuple(types[:period])


def split_fused(tensors: Mapping[str, np.ndarray], family: Family) -> Mapping[str, np.ndarray]:
    """Returns the tensors with each fused one split into its parts.

    >>> family = Family("Toy", "", "", {}, {}, fused={"attn.Wqkv": 3})
    >>> {k: v.shape for k, v in split_fused({"layers.0.attn.Wqkv.weight": np.ones((6, 2))}, family).items()}
    {'layers.0.attn.Wqkv[0].weight': (2, 2), 'layers.0.attn.Wqkv[1].weight': (2, 2), 'layers.0.attn.Wqkv[2].weight': (2, 2)}
    """
    if not family.fused:
        return tensors
    whole: dict[str, np.ndarray] = {}
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        parts = next((n for fused, n in family.fused.items() if f".{module}".endswith(f".{fused}")), 1)
        tensor = tensors[name]
        if parts == 1 or tensor.ndim == 0 or len(tensor) % parts:
            whole[name] = tensor
        else:
            rows = len(tensor) // parts
            whole |= {f"{module}[{i}].{leaf}": tensor[i * rows : (i + 1) * rows] for i in range(parts)}
    return whole


def join_fused(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverts `split_fused`: returns the tensors with the parts of each fused one joined."""
    joined: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        found = re.search(r"\[(\d+)\]", name)
        joined.setdefault(name.replace(found[0], "") if found else name, {})[found[1] if found else ""] = tensor
    return {name: np.concatenate([parts[i] for i in sorted(parts)]) if len(parts) > 1 else parts.popitem()[1]
            for name, parts in joined.items()}  # fmt: skip
