"""RoFormer (Su et al., 2021): BERT with rotary positions in place of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bert_jax.model.families.row import COMMON_HEADS, EMBEDDINGS, Family, Form

if TYPE_CHECKING:
    from bert_jax.model.config import BertConfig


def _angles(cfg: BertConfig) -> dict[str, np.ndarray]:
    """Returns the table of sines and cosines that files hold, [positions, K]: sines first."""
    size = cfg.hidden_size // cfg.num_attention_heads
    angles = np.arange(cfg.max_position_embeddings)[:, None] / np.power(10000, np.arange(0, size, 2) / size)
    return {"encoder.embed_positions.weight": np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)}


ROFORMER = Family(
    class_prefix="RoFormer",
    prefix="roformer.",
    layer_prefix="encoder.layer.{i}.",
    heads={
        "encoder": {},
        "masked_lm": {
            "masked_lm/dense": "cls.predictions.transform.dense",
            "masked_lm/norm": "cls.predictions.transform.LayerNorm",
            "masked_lm/bias": "cls.predictions.bias",
        },
        "sequence_classification": {"pooler/dense": "classifier.dense", "sequence_classifier": "classifier.out_proj"},
        **COMMON_HEADS,  # no multiple choice: in transformers it reads the last place of a row, padding or not
    },
    tied={
        "cls.predictions.decoder.weight": "roformer.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    form=Form(position_table=False, relative_positions="rotary", rope_interleaved=True),
    embeddings={ours: theirs for ours, theirs in EMBEDDINGS.items() if "position" not in ours}
    | {"projection": "embeddings_project"},
    optional=frozenset(["embedding_size"]),
    defaults={"vocab_size": 50000, "max_position_embeddings": 1536},
    only={"rotary_value": (False,)},
    constants=_angles,
    pooler_activation=None,
    dropout_before_pooler=True,
)
