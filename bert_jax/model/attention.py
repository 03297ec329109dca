"""The one door to attention kernels: sequence ids in, one rule for padding and packing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bert_jax.model.layers import dropout

AnyArray = Array | np.ndarray  # what callers may give
MASKED = -1e9  # added in float32; finite, so that a row with nothing to attend to stays finite


def same_sequence(sequence_ids: Int[AnyArray, "B L"]) -> Bool[Array, "B 1 L L"]:
    """Who attends to whom: tokens of one sequence id (0 is padding, which attends to padding only)."""
    ids = jnp.asarray(sequence_ids)
    return (ids[:, :, None] == ids[:, None, :])[:, None]


def attention(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    mask: Bool[Array, "B 1 Q L"],
    dropout_rate: float,
    dropout_key: PRNGKeyArray | None,
) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q L"]]:
    """Scaled dot-product attention with dropout on the probabilities (Vaswani et al., 2017, section 3.2.1).

    Returns the mixed values and the probabilities before dropout. Softmax is in float32 whatever the compute type.
    A `dropout_key` of None means no dropout.
    """
    # Heads first, by a copy of each: contracted as they come, XLA's CPU backend takes up to twice the time of the whole layer.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    scores = jnp.einsum("bhlk,bhmk->bhlm", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    dropped = dropout(weights, dropout_rate, dropout_key).astype(value.dtype)
    return jnp.einsum("bhlm,bhmk->bhlk", dropped, value).transpose(0, 2, 1, 3), weights
