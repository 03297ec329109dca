"""ESM-2 (Lin et al., 2023): encoders of proteins, pre-norm and rotary; their tokens are amino acids."""

from __future__ import annotations

from bert_jax.errors import InputError
from bert_jax.model.families.row import LAYER, Family, Fields, Form, Values


def _read(values: Values) -> Fields:
    if (kind := values.get("position_embedding_type")) != "rotary":
        raise InputError(f"position_embedding_type={kind!r} is not supported, only 'rotary', as in ESM-2")
    if values.get("emb_layer_norm_before"):
        raise InputError("emb_layer_norm_before=True is not supported, only False, as in ESM-2")
    if values.get("is_folding_model"):
        raise InputError("is_folding_model=True is not supported: ESMFold is not an encoder")
    return {}


ESM = Family(
    class_prefix="Esm",
    prefix="esm.",
    layer_prefix="encoder.layer.{i}.",
    heads={
        "encoder": {"pooler/dense": "esm.pooler.dense"},
        "masked_lm": {
            "masked_lm/dense": "lm_head.dense",
            "masked_lm/norm": "lm_head.layer_norm",
            "masked_lm/bias": "lm_head.bias",
        },
        "sequence_classification": {"pooler/dense": "classifier.dense", "sequence_classifier": "classifier.out_proj"},
        "token_classification": {"token_classifier": "classifier"},
    },
    tied={"lm_head.decoder.weight": "esm.embeddings.word_embeddings.weight"},
    form=Form(
        norm_placement="pre",
        embedding_norm=False,
        final_norm=True,
        position_table=False,
        relative_positions="rotary",
        token_types="never",
    ),
    embeddings={
        "embeddings/word_embeddings/embedding": "embeddings.word_embeddings.weight",
        "final_norm": "encoder.emb_layer_norm_after",
    },
    layer=LAYER | {"attention_norm": "attention.LayerNorm", "mlp_norm": "LayerNorm"},
    optional=frozenset(["token_dropout", "mask_token_id"]),
    fixed={"type_vocab_size": 0, "hidden_act": "gelu"},
    defaults={"vocab_size": 33, "max_position_embeddings": 1026, "token_dropout": False, "mask_token_id": None},
    only={"position_embedding_type": ()},
    left_out=("contact_head",),
    read=_read,
    write=lambda cfg: {"position_embedding_type": "rotary", "emb_layer_norm_before": False},
    masked_lm_activation="gelu",
    dropout_before_pooler=True,
)
