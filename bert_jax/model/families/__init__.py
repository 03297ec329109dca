"""The table of families: the encoders that are read, saved, trained and predicted with. One file a family, or a few of a kind."""

from __future__ import annotations

from bert_jax.model.families import (
    albert,
    bert,
    deberta_v2,
    distilbert,
    electra,
    esm,
    eurobert,
    gte,
    modernbert,
    mpnet,
    nomic_bert,
    prenorm,
    rembert,
    roberta,
    roformer,
)
from bert_jax.model.families.row import HEADS, Family, Form, Head, LayerType, Names, join_fused, split_fused

__all__ = ["ALIASES", "FAMILIES", "HEADS", "Family", "Form", "Head", "LayerType", "Names", "join_fused", "split_fused"]

FAMILIES: dict[str, Family] = {  # by `model_type`
    "bert": bert.BERT,
    "roberta": roberta.ROBERTA,
    "xlm-roberta": roberta.XLM_ROBERTA,
    "camembert": roberta.CAMEMBERT,
    "data2vec-text": roberta.DATA2VEC_TEXT,
    "distilbert": distilbert.DISTILBERT,
    "albert": albert.ALBERT,
    "electra": electra.ELECTRA,
    "ernie": bert.ERNIE,
    "megatron-bert": prenorm.MEGATRON_BERT,
    "rembert": rembert.REMBERT,
    "roformer": roformer.ROFORMER,
    "xlm-roberta-xl": prenorm.XLM_ROBERTA_XL,
    "mpnet": mpnet.MPNET,
    "nomic_bert": nomic_bert.NOMIC_BERT,
    "gte": gte.GTE,
    "modernbert": modernbert.MODERNBERT,
    "eurobert": eurobert.EUROBERT,
    "deberta-v2": deberta_v2.DEBERTA_V2,
    "esm": esm.ESM,
}
ALIASES = {"new": "gte"}  # other values of `model_type` in files
