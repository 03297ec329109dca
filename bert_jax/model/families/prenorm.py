"""Families of 2019 to 2021 that are BERT or RoBERTa with norms before their sublayers: Megatron-BERT, XLM-R XL."""

from __future__ import annotations

from dataclasses import replace

from bert_jax.model.families.bert import BERT, bert
from bert_jax.model.families.roberta import roberta
from bert_jax.model.families.row import EMBEDDINGS, LAYER, Form

_EMBEDDINGS = {ours: theirs for ours, theirs in EMBEDDINGS.items() if ours != "embeddings/norm"}
_FORM = Form(norm_placement="pre", embedding_norm=False, final_norm=True)

MEGATRON_BERT = replace(
    bert("MegatronBert", BERT.prefix),
    form=_FORM,
    embeddings=_EMBEDDINGS | {"final_norm": "encoder.ln"},
    layer=LAYER | {"attention_norm": "attention.ln", "mlp_norm": "ln"},
    defaults={"vocab_size": 29056, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
              "intermediate_size": 4096},
)  # fmt: skip
XLM_ROBERTA_XL = replace(
    roberta("XLMRobertaXL", {}),
    form=replace(_FORM, positions_from_padding=True),
    embeddings=_EMBEDDINGS | {"final_norm": "encoder.LayerNorm"},
    layer=LAYER | {"attention_norm": "attention.self_attn_layer_norm", "mlp_norm": "LayerNorm"},
    defaults={"vocab_size": 250880, "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
              "intermediate_size": 10240, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
)  # fmt: skip
