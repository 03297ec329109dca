"""DistilBERT (Sanh et al., 2019): BERT without token types, half as deep."""

from __future__ import annotations

from bert_jax.model.families.row import COMMON_HEADS, EMBEDDINGS, Family, Form

_POOLER = {"pooler/dense": "pre_classifier"}

DISTILBERT = Family(
    class_prefix="DistilBert",
    prefix="distilbert.",
    layer_prefix="transformer.layer.{i}.",
    heads={
        "encoder": {},
        "masked_lm": {
            "masked_lm/dense": "vocab_transform",
            "masked_lm/norm": "vocab_layer_norm",
            "masked_lm/bias": "vocab_projector.bias",
        },
        "sequence_classification": _POOLER | {"sequence_classifier": "classifier"},
        "multiple_choice": _POOLER | {"choice_classifier": "classifier"},
        **COMMON_HEADS,
    },
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    embeddings={ours: theirs for ours, theirs in EMBEDDINGS.items() if "token_type" not in ours},
    layer={
        "attention/query": "attention.q_lin",
        "attention/key": "attention.k_lin",
        "attention/value": "attention.v_lin",
        "attention/output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "mlp/intermediate": "ffn.lin1",
        "mlp/output": "ffn.lin2",
        "mlp_norm": "output_layer_norm",
    },
    renamed={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    },
    form=Form(token_types="never"),
    fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
    defaults={"num_hidden_layers": 6, "classifier_dropout": 0.2},
    pooler_activation="relu",
)
