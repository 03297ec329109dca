"""DeBERTa-v2, DeBERTa-v3 and mDeBERTa (He et al., 2021): disentangled attention; v2's large ones have a convolution besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_jax.errors import InputError
from bert_jax.model.families.row import COMMON_HEADS, EMBEDDINGS, LAYER, Family, Fields, Form, Values, check_head_size

if TYPE_CHECKING:
    from bert_jax.model.config import BertConfig

_SPLIT = {"query": "query_proj", "key": "key_proj", "value": "value_proj", "position_key": "pos_key_proj",
          "position_query": "pos_query_proj"}  # fmt: skip


def _read(values: Values) -> Fields:
    if values.get("relative_attention") is not True:
        raise InputError(f"relative_attention={values.get('relative_attention')!r} is not supported, only True")
    types = values.get("pos_att_type") or ()
    types = types.lower().split("|") if isinstance(types, str) else types
    fields: Fields = {"pos_att_type": tuple(name for name in types if name in ("c2p", "p2c"))}
    for name in ("position_buckets", "max_relative_positions"):
        number = values.get(name)
        fields[name] = number if isinstance(number, int) and number > 0 else 0
    fields["conv_kernel_size"] = values.get("conv_kernel_size") or 0
    if fields["conv_kernel_size"]:
        fields["conv_act"] = values.get("conv_act", "tanh")
    fields["norm_rel_ebd"] = "layer_norm" in str(values.get("norm_rel_ebd", "none"))
    width = values.get("hidden_size", 1536)
    if values.get("pooler_hidden_size", width) != width:
        raise InputError(f"pooler_hidden_size={values['pooler_hidden_size']} is not supported, only hidden_size={width}")
    check_head_size(values, "attention_head_size", 1536, 24)
    return fields


def _write(cfg: BertConfig) -> Fields:
    form = cfg.form
    keys = {"conv_kernel_size": form.conv_kernel_size, "conv_act": form.conv_act} if form.conv_kernel_size else {}
    return keys | {
        "relative_attention": True,
        "pos_att_type": list(form.pos_att_type),
        "position_buckets": form.position_buckets or -1,
        "max_relative_positions": form.max_relative_positions or -1,
        "norm_rel_ebd": "layer_norm" if form.norm_rel_ebd else "none",
    }


_POOLER = {"pooler/dense": "pooler.dense"}
DEBERTA_V2 = Family(
    class_prefix="DebertaV2",
    prefix="deberta.",
    layer_prefix="encoder.layer.{i}.",
    heads={
        "encoder": {},
        "masked_lm": {
            "masked_lm/dense": "cls.predictions.transform.dense",
            "masked_lm/norm": "cls.predictions.transform.LayerNorm",
            "masked_lm/bias": "cls.predictions.bias",
        },
        "sequence_classification": _POOLER | {"sequence_classifier": "classifier"},
        "multiple_choice": _POOLER | {"choice_classifier": "classifier"},
        **COMMON_HEADS,
    },
    tied={
        "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    form=Form(
        relative_positions="disentangled", position_table=True, token_types="optional", inner_projection=True,
        classifier_activation="gelu",
    ),
    embeddings=EMBEDDINGS
    | {
        "embeddings/projection": "embeddings.embed_proj",
        "relative_embeddings/embedding": "encoder.rel_embeddings.weight",
        "relative_embeddings/norm": "encoder.LayerNorm",
        "convolution": "encoder.conv.conv",
        "convolution/norm": "encoder.conv.LayerNorm",
    },
    layer=LAYER | {f"attention/{ours}": f"attention.self.{theirs}" for ours, theirs in _SPLIT.items()},
    optional=frozenset([
        "embedding_size", "position_table", "position_buckets", "max_relative_positions", "pos_att_type", "share_att_key",
        "norm_rel_ebd", "conv_kernel_size", "conv_act", "classifier_activation",
    ]),
    renamed={
        "position_table": "position_biased_input", "classifier_activation": "pooler_hidden_act",
        "classifier_dropout": "cls_dropout",
        **dict.fromkeys(
            ("pos_att_type", "position_buckets", "max_relative_positions", "norm_rel_ebd", "conv_kernel_size", "conv_act"), ()
        ),
    },
    defaults={
        "vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24,
        "intermediate_size": 6144, "type_vocab_size": 0, "layer_norm_eps": 1e-7,
    },
    only={"position_embedding_type": (), "conv_groups": (1,)},
    renamed_tensors={
        "lm_predictions.lm_head.dense": "cls.predictions.transform.dense",
        "lm_predictions.lm_head.LayerNorm": "cls.predictions.transform.LayerNorm",
        "lm_predictions.lm_head.bias": "cls.predictions.bias",
    },
    read=_read,
    write=_write,
)  # fmt: skip
