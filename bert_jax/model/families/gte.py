"""GTE (Zhang et al., 2024; Alibaba's "new" architecture): NomicBERT's layer with biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_jax.errors import InputError
from bert_jax.model.families.row import EMBEDDINGS, Family, Fields, Form, Values, default_rope, rope_of

if TYPE_CHECKING:
    from bert_jax.model.config import BertConfig

_POOLER = {"pooler/dense": "gte.pooler.dense"}


def _read(values: Values) -> Fields:
    rope, scaling = rope_of(values, "rope_parameters"), rope_of(values, "rope_scaling")
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    default_rope(rope, "rope_parameters")
    if kind not in ("default", "ntk"):
        raise InputError(f"rope_scaling.type={kind!r} is not supported, only 'ntk'")
    if kind == "ntk" and not isinstance(scaling.get("factor"), int | float):
        raise InputError(f"rope_scaling.factor={scaling.get('factor')!r}: type 'ntk' needs a number, such as 2.0")
    theta = rope.get("rope_theta", values.get("rope_theta"))
    return ({} if theta is None else {"rope_theta": theta}) | ({"rope_ntk_factor": scaling["factor"]} if kind == "ntk" else {})


def _write(cfg: BertConfig) -> Fields:
    theta, factor = cfg.form.rope_theta, cfg.form.rope_ntk_factor
    if factor != 1:  # transformers has no such type: the keys are those of Alibaba's own code
        return {"rope_theta": theta, "rope_scaling": {"type": "ntk", "factor": factor}}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


GTE = Family(
    class_prefix="Gte",
    prefix="gte.",
    layer_prefix="encoder.layer.{i}.",
    heads={
        "encoder": {},
        "masked_lm": {
            "masked_lm/dense": "lm_head.dense",
            "masked_lm/norm": "lm_head.norm",
            "masked_lm/bias": "lm_head.decoder.bias",
        },
        "sequence_classification": _POOLER | {"sequence_classifier": "classifier"},
        "token_classification": {"token_classifier": "classifier"},
    },
    tied={"lm_head.decoder.weight": "gte.embeddings.word_embeddings.weight"},
    form=Form(
        gated_mlp=True, mlp_bias=False, mlp_output_bias=True, position_table=False, relative_positions="rotary",
        rope_theta=160000.0, token_types="optional",
    ),
    embeddings={ours: theirs for ours, theirs in EMBEDDINGS.items() if "position" not in ours},
    layer={
        "attention/query": "attention.qkv_proj[0]",
        "attention/key": "attention.qkv_proj[1]",
        "attention/value": "attention.qkv_proj[2]",
        "attention/output": "attention.o_proj",
        "attention_norm": "attn_ln",
        "mlp/intermediate": "mlp.up_gate_proj[0]",
        "mlp/gate": "mlp.up_gate_proj[1]",
        "mlp/output": "mlp.down_proj",
        "mlp_norm": "mlp_ln",
    },
    fused={"attention.qkv_proj": 3, "mlp.up_gate_proj": 2},
    optional=frozenset(["rope_theta", "rope_ntk_factor"]),
    renamed={"rope_theta": (), "rope_ntk_factor": ()},
    defaults={
        "vocab_size": 250048, "max_position_embeddings": 8192, "type_vocab_size": 1, "attention_probs_dropout_prob": 0.0,
    },
    only={
        "position_embedding_type": ("rope", "absolute"), "layer_norm_type": ("layer_norm",), "pack_qkv": (True,),
        "logn_attention_scale": (False, None), "logn_attention_clip1": (False, None),
    },
    other_prefixes=("new.",),
    renamed_tensors={"lm_head.layer_norm": "lm_head.norm"},
    read=_read,
    write=_write,
)  # fmt: skip
