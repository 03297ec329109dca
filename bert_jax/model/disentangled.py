"""DeBERTa's disentangled attention (He et al., 2021): scores of contents and relative positions, and its convolution."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.model.attention import Tokens
from bert_jax.model.config import BertConfig
from bert_jax.model.families import Form
from bert_jax.model.layers import ACTIVATIONS, Dropout, initializer, norm


class RelativeEmbeddings(nn.Module):
    """One embedding for each bucket of distances, normed where the form says so: [2 * span, D]."""

    cfg: BertConfig

    @nn.compact
    def __call__(self) -> Float[Array, "S D"]:
        cfg = self.cfg
        table = self.param("embedding", initializer(cfg), (2 * span(cfg), cfg.hidden_size))
        return norm(cfg, jnp.float32, "norm")(jnp.asarray(table)) if cfg.form.norm_rel_ebd else jnp.asarray(table)


def span(cfg: BertConfig) -> int:
    """Returns the number of embeddings for distances in one direction."""
    return cfg.form.position_buckets or furthest(cfg)


def furthest(cfg: BertConfig) -> int:
    """Returns the distance from which all distances share an embedding."""
    return cfg.form.max_relative_positions or cfg.max_position_embeddings


def rows_of(distances: Int[Array, " N"], cfg: BertConfig) -> Int[Array, " N"]:
    """Returns the row of the relative embeddings for each distance, place of the query minus place of the key.

    Distances up to half the number of buckets have rows of their own; further ones share rows, logarithmically
    (modeling_deberta_v2.py, make_log_bucket_position). The table is made in NumPy's float64: on a device, a logarithm that
    should be whole may be rounded up to the next row.
    """
    most = max(furthest(cfg), cfg.max_position_embeddings)
    rows, buckets, size = np.arange(-most, most + 1), cfg.form.position_buckets, span(cfg)
    if buckets:
        near = buckets // 2
        far = np.maximum(np.abs(rows), near)
        logarithmic = np.ceil(np.log(far / near) / np.log((furthest(cfg) - 1) / near) * (near - 1)) + near
        rows = np.where(np.abs(rows) <= near, rows, np.sign(rows) * logarithmic.astype(np.int64))
    table = jnp.asarray(np.clip(rows + size, 0, 2 * size - 1), jnp.int32)
    return table[jnp.clip(distances + most, 0, 2 * most)]


def scale(form: Form) -> float:
    """Returns the factor of the scores besides K^-0.5: one by the root of the number of their terms."""
    return (1 + len(form.pos_att_type)) ** -0.5


def position_scores(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B L H K"],
    position_key: Float[Array, "S H K"] | None,
    position_query: Float[Array, "S H K"] | None,
    queries: Tokens,
    cfg: BertConfig,
) -> Float[Array, "B H Q L"]:
    """Returns what relative positions add to the scores: content to position, and position to content.

    The scores of each token with all 2L - 1 distances are one product; row i of them, shifted by i, is the row of the bias.

    Args:
      query: Scaled by `scale`.
      key: Of all tokens.
      position_key: Keys of the relative embeddings; None: no content-to-position term.
      position_query: Their queries; None: no position-to-content term.
      queries: The tokens of `query`.
      cfg: The model.
    """
    length, factor = key.shape[1], query.shape[-1] ** -0.5
    steps = jnp.arange(2 * length - 1) - (length - 1)
    places = jnp.arange(length)
    bias = jnp.zeros((), jnp.float32)[None, None, None, None]
    if position_key is not None:  # column n: the key is n - (L - 1) places after the query
        near = jnp.einsum("blhk,nhk->bhln", query, position_key[rows_of(-steps, cfg)], preferred_element_type=jnp.float32)
        if queries.places is None:
            near = _shift(near)
        else:
            columns = places[None, None] - jnp.asarray(queries.places)[:, :, None] + length - 1
            near = jnp.take_along_axis(near, columns[:, None], axis=-1)
        bias = bias + near * factor
    if position_query is not None:  # column n of a key's row: the query is n - (L - 1) places after the key
        far = jnp.einsum("blhk,nhk->bhln", key, position_query[rows_of(steps, cfg)], preferred_element_type=jnp.float32)
        if queries.places is None:
            far = _shift(far)
        else:
            columns = jnp.asarray(queries.places)[:, None, :] - places[None, :, None] + length - 1
            far = jnp.take_along_axis(far, columns[:, None], axis=-1)
        bias = bias + far.swapaxes(-1, -2) * (factor * scale(cfg.form))
    return bias


def _shift(x: Float[Array, "B H L N"]) -> Float[Array, "B H L L"]:
    """Returns x[..., i, j - i + L - 1] at [..., i, j], by a padding and a reshape, which are faster than a gather."""
    *batch, length, columns = x.shape
    flat = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(*batch, length * (columns + 1))
    rows = flat[..., length - 1 : length - 1 + length * columns].reshape(*batch, length, columns)
    return rows[..., :length]


class TokenConvolution(nn.Module):
    """DeBERTa-v2's convolution over the embeddings, added to the first layer's output; it stays inside a sequence."""

    cfg: BertConfig

    @nn.compact
    def __call__(
        self, embedded: Float[Array, "B L D"], x: Float[Array, "B L D"], tokens: Tokens, deterministic: bool
    ) -> Float[Array, "B L D"]:
        cfg, size, width = self.cfg, self.cfg.form.conv_kernel_size, self.cfg.hidden_size
        kernel = jnp.asarray(self.param("kernel", initializer(cfg), (size, width, width))).astype(x.dtype)
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (width,))).astype(x.dtype)
        ids, half, length = jnp.asarray(tokens.sequence_ids), size // 2, x.shape[1]
        padded = jnp.pad(embedded, ((0, 0), (half, half), (0, 0)))
        padded_ids = jnp.pad(ids, ((0, 0), (half, half)), constant_values=-1)
        out = bias[None, None]
        for i in range(size):
            own = (padded_ids[:, i : i + length] == ids)[..., None]
            out = out + jnp.where(own, padded[:, i : i + length], 0) @ kernel[i]
        out = {"tanh": jnp.tanh, **ACTIVATIONS}[cfg.form.conv_act](Dropout(cfg.hidden_dropout_prob)(out, deterministic))
        return norm(cfg, x.dtype, "norm")(x + out)
