"""ModernBERT (Warner et al., 2024): pre-norm, rotary, gated, without biases; two layers in three see a window of tokens.

Its children have the same layers: Ettin, mmBERT, gte-modernbert, granite-embedding-r2, GTE-ModernColBERT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_jax.errors import InputError
from bert_jax.model.families.row import Family, Fields, Form, Values, default_rope, layer_types_of, rope_of

if TYPE_CHECKING:
    from bert_jax.model.config import BertConfig

_THETAS = {"full_attention": ("rope_theta", "global_rope_theta"), "sliding_attention": ("local_rope_theta", "local_rope_theta")}


def _read(values: Values) -> Fields:
    every = values.get("global_attn_every_n_layers") or 3
    layers = values.get("num_hidden_layers", 22)
    if not isinstance(every, int) or not isinstance(layers, int) or every < 1:
        raise InputError(f"global_attn_every_n_layers={every!r} and num_hidden_layers={layers!r}: expected positive integers")
    types = values.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    fields: Fields = {"layer_types": layer_types_of(types, layers)}
    parameters = rope_of(values, "rope_parameters")
    default_rope(rope_of(values, "rope_scaling"), "rope_scaling")
    for kind, (field, key) in _THETAS.items():
        rope = rope_of(parameters, kind)
        default_rope(rope, f"rope_parameters.{kind}")
        theta = rope.get("rope_theta", values.get(key))
        fields |= {} if theta is None else {field: theta}
    return fields


def _write(cfg: BertConfig) -> Fields:
    thetas = {"full_attention": cfg.form.rope_theta, "sliding_attention": cfg.form.local_rope_theta}
    dropped = {"embedding_dropout": cfg.embedding_dropout_prob, "classifier_dropout": cfg.classifier_dropout}
    return {
        **{key: cfg.hidden_dropout_prob if rate is None else rate for key, rate in dropped.items()},
        "layer_types": [cfg.form.layer_types[i % len(cfg.form.layer_types)] for i in range(cfg.num_hidden_layers)],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
    }


_TEXTS = {"pooler/dense": "head.dense", "pooler/norm": "head.norm"}
_TOKENS = {"transform/dense": "head.dense", "transform/norm": "head.norm"}

MODERNBERT = Family(
    class_prefix="ModernBert",
    prefix="model.",
    layer_prefix="layers.{i}.",
    heads={
        "encoder": {},
        "masked_lm": {"masked_lm/dense": "head.dense", "masked_lm/norm": "head.norm", "masked_lm/bias": "decoder.bias"},
        "sequence_classification": _TEXTS | {"sequence_classifier": "classifier"},
        "token_classification": _TOKENS | {"token_classifier": "classifier"},
        "question_answering": _TOKENS | {"span_classifier": "classifier"},
        "multiple_choice": _TEXTS | {"choice_classifier": "classifier"},
    },
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    form=Form(
        norm_placement="pre", norm_bias=False, first_norm=False, final_norm=True, gated_mlp=True, attention_bias=False,
        mlp_bias=False, position_table=False, relative_positions="rotary", rope_theta=160000.0, local_rope_theta=10000.0,
        layer_types=("full_attention", "sliding_attention", "sliding_attention"), classifier_bias=False,
        classifier_activation="gelu", token_types="never",
    ),
    embeddings={
        "embeddings/word_embeddings/embedding": "embeddings.tok_embeddings.weight",
        "embeddings/norm": "embeddings.norm",
        "final_norm": "final_norm",
    },
    layer={
        "attention_norm": "attn_norm",
        "attention/query": "attn.Wqkv[0]",
        "attention/key": "attn.Wqkv[1]",
        "attention/value": "attn.Wqkv[2]",
        "attention/output": "attn.Wo",
        "mlp_norm": "mlp_norm",
        "mlp/gate": "mlp.Wi[0]",
        "mlp/intermediate": "mlp.Wi[1]",
        "mlp/output": "mlp.Wo",
    },
    fused={"attn.Wqkv": 3, "mlp.Wi": 2},
    optional=frozenset([
        "norm_bias", "attention_bias", "mlp_bias", "rope_theta", "local_rope_theta", "layer_types", "local_attention",
        "classifier_pooling", "classifier_bias", "classifier_activation", "decoder_bias", "embedding_dropout_prob",
        "mlp_dropout_prob",
    ]),
    renamed={
        "hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps", "attention_probs_dropout_prob": "attention_dropout",
        "embedding_dropout_prob": "embedding_dropout", "mlp_dropout_prob": "mlp_dropout",
        "layer_types": (), "rope_theta": (), "local_rope_theta": (),
    },
    fixed={"type_vocab_size": 0, "hidden_dropout_prob": 0.0},
    defaults={
        "vocab_size": 50368, "intermediate_size": 1152, "num_hidden_layers": 22, "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0,
    },
    only={"position_embedding_type": ()},  # whatever it says, positions are rotary
    masked_lm_activation="classifier_activation",
    read=_read,
    write=_write,
    special_ids={"bos_token_id": "cls_id", "cls_token_id": "cls_id", "eos_token_id": "sep_id", "sep_token_id": "sep_id"},
)  # fmt: skip
