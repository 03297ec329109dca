"""Heads, and encoders with heads. The parameter tree's root is {encoder, pooler?, <head>}."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import BertConfig
from bert_jax.model.attention import AnyArray
from bert_jax.model.encoder import Encoder
from bert_jax.model.layers import ACTIVATIONS, dense, layer_norm

Batch = dict[str, AnyArray]


class Pooler(nn.Module):
    """Dense and tanh on the first token."""

    cfg: BertConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B D"]:
        return jnp.tanh(dense(self.cfg, self.cfg.hidden_size, "dense")(hidden[:, 0]))


class MaskedLMHead(nn.Module):
    """Transform, then the word-embedding table as the output layer, with a bias of its own."""

    cfg: BertConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B P D"], table: Float[AnyArray, "V D"]) -> Float[Array, "B P V"]:
        cfg = self.cfg
        x = layer_norm(cfg, "norm")(ACTIVATIONS[cfg.hidden_act](dense(cfg, cfg.hidden_size, "dense")(hidden)))
        bias = self.param("bias", nn.initializers.zeros, (cfg.vocab_size,))
        logits = jnp.einsum("bpd,vd->bpv", x, jnp.asarray(table, x.dtype), preferred_element_type=jnp.float32)
        return logits + bias


def gather_positions(hidden: Float[Array, "B L D"], positions: Int[AnyArray, "B P"]) -> Float[Array, "B P D"]:
    """hidden[b, positions[b, p]]: the rows that the MLM head runs on."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


class BertForPreTraining(nn.Module):
    """Encoder with the masked-LM head and, for sentence pairs, pooler and next-sentence head.

    Call with a batch: int32 `input_ids, token_type_ids, position_ids, sequence_ids` [B, L] and `masked_positions` [B, P].
    Returns float32 `masked_lm_logits` [B, P, V], and `next_sentence_logits` [B, 2] where that head exists.
    """

    cfg: BertConfig
    next_sentence: bool = False

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True) -> dict[str, Any]:
        encoder = Encoder(self.cfg, name="encoder")
        hidden = encoder(
            batch["input_ids"], batch["token_type_ids"], batch["position_ids"], batch["sequence_ids"], deterministic
        )["last_hidden_state"]
        table = encoder.variables["params"]["embeddings"]["word_embeddings"]["embedding"]
        picked = gather_positions(hidden, batch["masked_positions"])
        outputs = {"masked_lm_logits": MaskedLMHead(self.cfg, name="masked_lm")(picked, table)}
        if self.next_sentence:
            pooled = Pooler(self.cfg, name="pooler")(hidden)
            outputs["next_sentence_logits"] = dense(self.cfg, 2, "next_sentence")(pooled).astype(jnp.float32)
        return outputs
