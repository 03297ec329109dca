"""The BERT encoder as functional Flax Linen modules.

Axes: B rows, L tokens a row, E embedding size, D hidden size, H heads, K head size, M intermediate size, P prediction slots
a row, S sequences packed in a row, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from bert_jax.model.attention import AnyArray, Wanted, attention
from bert_jax.model.config import BertConfig, ComputeConfig
from bert_jax.model.layers import (
    ACTIVATIONS,
    PRODUCT,
    ROWS,
    Dense,
    Dropout,
    initializer,
    laid_out,
    layer_norm,
    nowhere_if_negative,
    word_table,
)

REMAT_POLICIES = {  # ComputeConfig.remat -> what the backward pass need not recompute; other values recompute nothing
    "full": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),  # attention's scores and probabilities are recomputed
}


class Embeddings(nn.Module):
    """Word + position + token-type embeddings, normalised (Devlin et al., 2018, figure 2).

    `position_ids` are rows of the position table (`heads.complete` makes them of a batch's). An id that has no row gives NaN.
    """

    cfg: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_ids: Int[AnyArray, "B L"],
        token_type_ids: Int[AnyArray, "B L"],
        position_ids: Int[AnyArray, "B L"],
        deterministic: bool,
    ) -> Float[Array, "B L E"]:
        cfg = self.cfg

        def table(rows: int, name: str, **kwargs: Any) -> nn.Embed:
            width = cfg.embedding_size or cfg.hidden_size
            return nn.Embed(rows, width, embedding_init=initializer(cfg), name=name, **kwargs)

        def promoted(table: AnyArray, dtype: Any, inexact: bool) -> tuple[Array]:
            return (word_table(table),)

        x = table(cfg.vocab_size, "word_embeddings", promote_dtype=promoted)(nowhere_if_negative(input_ids))
        x += table(cfg.max_position_embeddings, "position_embeddings")(nowhere_if_negative(position_ids))
        if cfg.type_vocab_size:
            x += table(cfg.type_vocab_size, "token_type_embeddings")(nowhere_if_negative(token_type_ids))
        if cfg.type_vocab_size == 1:  # nn.Embed then looks nothing up
            x = jnp.where(jnp.asarray(token_type_ids)[..., None] == 0, x, jnp.nan)
        # Looked up and added as they are, float32: so are the sums of their gradients over tokens.
        return Dropout(cfg.hidden_dropout_prob)(layer_norm(cfg, self.dtype, "norm")(x), deterministic)


class SelfAttention(nn.Module):
    """Multi-head self-attention with its output projection."""

    cfg: BertConfig
    kernel: Wanted = "auto"

    @nn.compact
    def __call__(
        self,
        asking: Float[Array, "B Q D"],
        asking_ids: Int[AnyArray, "B Q"],
        x: Float[Array, "B L D"],
        sequence_ids: Int[AnyArray, "B L"],
        deterministic: bool,
        wants_weights: bool = False,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B H Q L"] | None]:
        cfg = self.cfg
        heads = (cfg.num_attention_heads, cfg.hidden_size // cfg.num_attention_heads)
        query, key, value = (
            Dense(cfg, cfg.hidden_size, name=name)(of).reshape(*of.shape[:-1], *heads)
            for name, of in (("query", asking), ("key", x), ("value", x))
        )
        rate = 0.0 if deterministic else cfg.attention_probs_dropout_prob
        dropout_key = self.make_rng("dropout") if rate else None
        mixed, weights = attention(query, key, value, asking_ids, sequence_ids, self.kernel, rate, dropout_key, wants_weights)
        return Dense(cfg, cfg.hidden_size, name="output")(mixed.reshape(asking.shape)), weights


class Mlp(nn.Module):
    """The feed-forward sublayer."""

    cfg: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        hidden = ACTIVATIONS[self.cfg.hidden_act](Dense(self.cfg, self.cfg.intermediate_size, name="intermediate")(x))
        return Dense(self.cfg, self.cfg.hidden_size, name="output")(hidden)


class EncoderLayer(nn.Module):
    """Post-norm Transformer layer (Devlin et al., 2018, section 3).

    With `positions`, its output at those alone: they attend to all of `x`, but nothing is computed for the others.
    """

    cfg: BertConfig
    kernel: Wanted = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        sequence_ids: Int[AnyArray, "B L"],
        deterministic: bool,
        positions: Int[AnyArray, "B P"] | None = None,
        wants_weights: bool = False,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B H Q L"] | None]:
        drop, asking, asking_ids = self.cfg.hidden_dropout_prob, x, sequence_ids
        if positions is not None:
            asking = jnp.take_along_axis(x, positions[:, :, None], axis=1)
            asking_ids = jnp.take_along_axis(jnp.asarray(sequence_ids), positions, axis=1)
        attend = SelfAttention(self.cfg, self.kernel, name="attention")
        mixed, weights = attend(asking, asking_ids, x, sequence_ids, deterministic, wants_weights)
        x = layer_norm(self.cfg, x.dtype, "attention_norm")(asking + Dropout(drop)(mixed, deterministic))
        x = layer_norm(self.cfg, x.dtype, "mlp_norm")(x + Dropout(drop)(Mlp(self.cfg, name="mlp")(x), deterministic))
        return x, weights


class Encoder(nn.Module):
    """Embeddings and the layers: token ids to hidden states.

    Parameters are one subtree a layer, `layer_0` ... `layer_{N-1}`, however the layers are run: one after the other,
    recomputed in the backward pass (`remat`) or stacked for a scan (`scan_layers`), with the same numbers. Where groups
    of layers share parameters (Lan et al., 2019), there is one subtree a group.
    """

    cfg: BertConfig
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(
        self,
        input_ids: Int[AnyArray, "B L"],
        token_type_ids: Int[AnyArray, "B L"],
        position_ids: Int[AnyArray, "B L"],
        sequence_ids: Int[AnyArray, "B L"],
        deterministic: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        positions: Int[AnyArray, "B P"] | None = None,
    ) -> dict[str, Any]:
        """Returns `last_hidden_state` [B, L, D]; on request `hidden_states` (the embeddings' output, then each
        layer's) and `attentions` (each layer's probabilities [B, H, L, L], before dropout). With `positions`, what the last
        layer gives is of those alone, [B, P, D], which saves most of its work."""
        cfg, compute = self.cfg, self.compute
        x = Embeddings(cfg, compute.dtype, name="embeddings")(input_ids, token_type_ids, position_ids, deterministic)
        if cfg.embedding_size is not None:
            x = Dense(cfg, cfg.hidden_size, name="projection")(x)
        x = laid_out(x, ROWS, None, None)
        layer = EncoderLayer(cfg, compute.attention, parent=None)

        def initial(key: Array) -> Any:
            return layer.init(key, x, sequence_ids, True)["params"]

        def run(x: Array, params_and_key: tuple[Any, Array], positions: Any = None) -> tuple[Array, tuple[Any, Any]]:
            params, key = params_and_key
            args = x, sequence_ids, deterministic, positions, output_attentions
            x, weights = layer.apply({"params": params}, *args, rngs={"dropout": key})
            x = laid_out(x, ROWS, None, None)
            return x, (x if output_hidden_states else None, weights if output_attentions else None)

        if compute.remat in REMAT_POLICIES:
            run = jax.checkpoint(run, prevent_cse=not compute.scan_layers, policy=REMAT_POLICIES[compute.remat])
        groups = cfg.num_hidden_groups or cfg.num_hidden_layers
        distinct = [self.param(f"layer_{i}", initial) for i in range(groups)]
        layers = [distinct[i * groups // cfg.num_hidden_layers] for i in range(cfg.num_hidden_layers)]
        keys = jax.random.split(jax.random.key(0) if deterministic else self.make_rng("dropout"), len(layers))
        first, whole = x, len(layers) - (positions is not None)
        if compute.scan_layers and whole:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers[:whole])
            x, asked = jax.lax.scan(run, x, (stacked, keys[:whole]))
            kept = [tuple(None if each is None else each[i] for each in asked) for i in range(whole)]
        else:
            kept = []
            for params, key in zip(layers[:whole], keys[:whole], strict=True):
                x, asked = run(x, (params, key))
                kept.append(asked)
        if positions is not None:
            x, asked = run(x, (layers[-1], keys[-1]), positions)
            kept.append(asked)
        states, attentions = zip(*kept, strict=True)
        outputs: dict[str, Any] = {"last_hidden_state": x}
        if output_hidden_states:
            outputs["hidden_states"] = (first, *states)
        if output_attentions:
            outputs["attentions"] = tuple(attentions)
        return outputs
