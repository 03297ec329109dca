"""Replaced-token detection (Clark et al., 2020): tokens sampled from a masked LM, and the loss of detecting them.

Each sample is a function of the logits and of a uniform draw that comes with the batch, so it does not depend on how the rows lie
on devices, hosts and microbatches.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bert_jax.model.layers import AnyArray, Decoder
from bert_jax.training import decoded
from bert_jax.training.losses import Sum, binary_cross_entropy, weighted_sum

_BLOCK = 128  # words whose probabilities are added up before one of the blocks is chosen
_BELOW_ONE = 1 - 2.0**-23  # a float32 times this is smaller


def sample(logits: Float[AnyArray, "*N V"], draws: Float[AnyArray, "*N"], temperature: float = 1.0) -> Int[Array, "*N"]:
    """Returns a word for each row of logits, drawn from softmax(logits / temperature).

    It is the first word whose cumulative probability exceeds the draw. A block of words is chosen first, then a word in it:
    nothing as large as the logits is added up word by word.

    Args:
      logits: Unnormalised log-probabilities of V words.
      draws: Uniform numbers in [0, 1).
      temperature: Below 1, likely words are more likely.
    """
    scaled = jnp.asarray(logits, jnp.float32) / temperature
    scaled -= jnp.max(scaled, axis=-1, keepdims=True)
    padding = [(0, 0)] * (scaled.ndim - 1) + [(0, -scaled.shape[-1] % _BLOCK)]
    blocks = jnp.pad(scaled, padding, constant_values=-jnp.inf).reshape(*scaled.shape[:-1], -1, _BLOCK)
    sums = jnp.sum(jnp.exp(blocks), axis=-1)
    block, rest = _first_above(sums, jnp.asarray(draws) * jnp.sum(sums, axis=-1))
    chosen = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    return (block * _BLOCK + _first_above(jnp.exp(chosen), rest)[0]).astype(jnp.int32)


def _first_above(weights: Float[Array, "*N W"], target: Float[Array, "*N"]) -> tuple[Int[Array, "*N"], Float[Array, "*N"]]:
    """Returns the first index at which the sum of weights exceeds the target, and the target minus the sum before that index.

    The weight there is not 0, though sums are rounded: those of zeros behind a weight may be larger than the weight's own.
    """
    ends = jnp.cumsum(weights, axis=-1)
    possible = jnp.where(weights > 0, ends, 0)
    target = jnp.minimum(target, jnp.max(possible, axis=-1) * _BELOW_ONE)
    index = jnp.argmax(possible > target[..., None], axis=-1)
    begin = jnp.take_along_axis(ends - weights, index[..., None], axis=-1)[..., 0]
    return index, jnp.maximum(target - begin, 0)


def samples(decoder: Decoder, draws: Float[AnyArray, "B P"], temperature: float = 1.0) -> Int[Array, "B P"]:
    """Returns `sample` of an output layer that has not been applied, some predictions at a time; no gradient goes through it."""
    draws, fixed = jnp.asarray(draws), jax.tree.map(jax.lax.stop_gradient, decoder)
    if decoded.is_on_one_device():
        return decoded.of_logits(fixed, partial(sample, temperature=temperature), draws)
    return sample(fixed.logits(), draws, temperature)


def corrupt(batch: Mapping[str, AnyArray], sampled: Int[AnyArray, "B P"]) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """Returns the text's tokens with `sampled` ones at the masked positions, and the places where the two differ.

    A sampled token that is the text's own is not replaced. The positions of predictions with weight 0 keep the text's tokens.

    Args:
      batch: `input_ids` [B, L], masked; `masked_positions`, `masked_ids` and `masked_weights` [B, P].
      sampled: The token of each masked position.
    """
    masked = jnp.asarray(batch["input_ids"])
    nowhere = masked.shape[1]
    at = jnp.where(jnp.asarray(batch["masked_weights"]) > 0, batch["masked_positions"], nowhere)

    def put(row: Int[Array, " L"], at: Int[Array, " P"], ids: Int[Array, " P"]) -> Int[Array, " L"]:
        return row.at[at].set(ids, mode="drop")

    original = jax.vmap(put)(masked, at, jnp.asarray(batch["masked_ids"]))
    tokens = jax.vmap(put)(original, at, jnp.asarray(sampled))
    return tokens, tokens != original


def detection_sums(
    logits: Float[AnyArray, "B L"], replaced: Bool[AnyArray, "B L"], sequence_ids: Int[AnyArray, "B L"]
) -> dict[str, Sum]:
    """Returns the loss of detecting replaced tokens, in nats a token, and its accuracy, over all tokens but padding.

    Args:
      logits: Log-odds that a token is replaced.
      replaced: Marks the replaced tokens.
      sequence_ids: 0 at padding.

    Returns:
      `replaced_token_loss`, a binary cross-entropy; `replaced_token_accuracy`; `replaced_token_precision`, the share of replaced
      tokens among those with a probability above 1/2; `replaced_token_recall`, the share of replaced tokens that have one; and
      `replaced_token_share`, the share of all tokens that are replaced.
    """
    real, labels = (jnp.asarray(x).astype(jnp.float32) for x in (jnp.asarray(sequence_ids) > 0, replaced))
    detected = jnp.asarray(logits) > 0
    said = detected.astype(jnp.float32)
    return {
        "replaced_token_loss": binary_cross_entropy(jnp.asarray(logits)[..., None], labels[..., None], real),
        "replaced_token_accuracy": weighted_sum((detected == (labels > 0)).astype(jnp.float32), real),
        "replaced_token_precision": weighted_sum(labels, real * said),
        "replaced_token_recall": weighted_sum(said, real * labels),
        "replaced_token_share": weighted_sum(labels, real),
    }
