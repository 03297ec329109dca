"""Losses and accuracies as weighted sums, computed in float32.

Each function returns a `Sum` of total and weight, never a mean: sums add up over microbatches, batches and devices, and the mean
is taken once, over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bert_jax.model.layers import AnyArray
from bert_jax.training import decoded

MASKED = -1e9  # the logit of what takes no part in a softmax


class Sum(NamedTuple):
    """A weighted sum and its weight."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """Returns total / weight, and 0 for a weight of 0."""
        return self.total / jnp.maximum(self.weight, 1e-9)


def weighted_sum(values: Float[AnyArray, "..."], weights: Float[AnyArray, "..."]) -> Sum:
    """Returns the sum of `values` times `weights`, with the sum of `weights`."""
    return Sum(jnp.sum(values * weights), jnp.sum(weights))


def cross_entropy(
    logits: Float[AnyArray, "*B V"], labels: Int[AnyArray, "*B"], weights: Float[AnyArray, "*B"], smoothing: float = 0.0
) -> Sum:
    """Returns the negative log-likelihood of `labels`, in nats.

    Args:
      logits: Unnormalised log-probabilities of V classes.
      labels: The class of each row. A label outside [0, V) has to have the weight 0.
      weights: The weight of each row.
      smoothing: The share of the target that is spread evenly over all classes (Szegedy et al., 2016, section 7).
    """
    logits = logits.astype(jnp.float32)
    # A comparison in place of a gather: its gradient is elementwise, whereas a gather's is a scatter into [..., V] zeros.
    label_logits = jnp.sum(jnp.where(_one_hot(logits, labels), logits, 0), axis=-1)
    if smoothing:
        label_logits = (1 - smoothing) * label_logits + smoothing * jnp.mean(logits, axis=-1)
    return weighted_sum(jax.nn.logsumexp(logits, axis=-1) - label_logits, weights)


def accuracy(logits: Float[AnyArray, "*B V"], labels: Int[AnyArray, "*B"], weights: Float[AnyArray, "*B"]) -> Sum:
    """Returns the number of rows whose largest logit is the label's; where n logits share the maximum, a row counts 1/n."""
    # Comparisons with the maximum, which the loss computes too: on CPUs an argmax takes as long as a layer's matrix product.
    is_label = _one_hot(logits, labels)
    largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    hits = jnp.sum(largest & is_label, axis=-1) / jnp.maximum(1, jnp.sum(largest, axis=-1))
    return weighted_sum(hits, weights)


def _one_hot(logits: Float[AnyArray, "*B V"], labels: Int[AnyArray, "*B"]) -> Bool[Array, "*B V"]:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]


def pretraining_sums(outputs: Mapping[str, Any], batch: Mapping[str, AnyArray]) -> dict[str, Sum]:
    """Returns the loss and accuracy of masked-language modelling and, with sentence pairs, of next-sentence prediction.

    In a batch of causal rows, the first two are those of the next tokens, and are named so.

    Args:
      outputs: `masked_lm_logits` [B, P, V] or a `masked_lm_decoder`, whose logits are then computed some at a time if they are
        large; with sentence pairs also `next_sentence_logits` [B, 2].
      batch: `masked_ids` and `masked_weights` [B, P]; `next_sentence_label` [B], of which labels below 0 do not count.

    Returns:
      Sums by name. The training loss adds up those whose names end in `_loss`.
    """
    labels, weights, decoder = batch["masked_ids"], batch["masked_weights"], outputs.get("masked_lm_decoder")
    name = "next_token" if "causal" in batch else "masked_lm"
    if decoder is not None and decoded.is_on_one_device():
        loss, hits = decoded.sums(decoder, jnp.asarray(labels), jnp.asarray(weights))
        sums = {f"{name}_loss": Sum(loss, jnp.sum(weights)), f"{name}_accuracy": Sum(hits, jnp.sum(weights))}
    else:
        logits = outputs["masked_lm_logits"] if decoder is None else decoder.logits()
        args = logits, labels, weights
        sums = {f"{name}_loss": cross_entropy(*args), f"{name}_accuracy": accuracy(*args)}
    if "next_sentence_logits" in outputs:
        label = batch["next_sentence_label"]
        args = outputs["next_sentence_logits"], label, (label >= 0).astype(jnp.float32)
        sums |= {"next_sentence_loss": cross_entropy(*args), "next_sentence_accuracy": accuracy(*args)}
    return sums


def binary_cross_entropy(
    logits: Float[AnyArray, "*B C"],
    labels: Float[AnyArray, "*B C"],
    weights: Float[AnyArray, "*B"],
    positive_weights: Float[AnyArray, " C"] | None = None,
) -> Sum:
    """Returns the mean over C independent classes of the negative log-likelihood of yes or no, in nats.

    `positive_weights` multiplies the loss of each class's positive labels (`pos_weight` of PyTorch's BCEWithLogitsLoss).
    """
    logits = logits.astype(jnp.float32)
    losses = jax.nn.softplus(logits) - logits * labels
    if positive_weights is not None:
        losses *= 1 + jnp.expand_dims(positive_weights - 1, range(labels.ndim - 1)) * labels
    return weighted_sum(jnp.mean(losses, axis=-1), weights)


def squared_error(values: Float[AnyArray, "*B"], labels: Float[AnyArray, "*B"], weights: Float[AnyArray, "*B"]) -> Sum:
    """Returns the squared differences of values and labels."""
    return weighted_sum(jnp.square(values.astype(jnp.float32) - labels), weights)


def span_cross_entropy(
    start_logits: Float[AnyArray, "B L"],
    end_logits: Float[AnyArray, "B L"],
    sequence_ids: Int[AnyArray, "B L"],
    labels: Int[AnyArray, "B S 2"],
    weights: Float[AnyArray, "B S"],
) -> Sum:
    """Returns the mean of the negative log-likelihoods of an answer's first and last token, in nats.

    The softmax runs over the tokens of the answer's own sequence: sequence s of a row (from 0) has sequence id s + 1. Padding has
    no share in it, whereas run_squad.py and transformers give it one.
    """
    own = sequence_ids[:, None, :] == jnp.arange(1, labels.shape[1] + 1)[None, :, None]

    def loss(logits: Float[AnyArray, "B L"], positions: Int[AnyArray, "B S"]) -> Float[Array, "B S"]:
        logits = jnp.where(own, logits.astype(jnp.float32)[:, None, :], MASKED)
        label_logits = jnp.take_along_axis(logits, positions[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - label_logits

    both = loss(start_logits, labels[..., 0]) + loss(end_logits, labels[..., 1])
    return Sum(jnp.sum(jnp.where(weights > 0, both, 0) * weights) / 2, jnp.sum(weights))


def cosine_error(
    a: Float[AnyArray, "N D"], b: Float[AnyArray, "N D"], scores: Float[AnyArray, " N"], weights: Float[AnyArray, " N"]
) -> Sum:
    """Returns the squared differences of cosine similarities and `scores` (Reimers and Gurevych, 2019, section 3)."""
    return squared_error(jnp.sum(unit(a) * unit(b), axis=-1), scores, weights)


def triplet_loss(
    anchors: Float[AnyArray, "N D"],
    positives: Float[AnyArray, "N D"],
    negatives: Float[AnyArray, "N D"],
    weights: Float[AnyArray, " N"],
    margin: float = 0.5,
) -> Sum:
    """Returns max(0, d(anchor, positive) - d(anchor, negative) + margin), d being cosine distance (Schroff et al., 2015)."""
    difference = jnp.sum(unit(anchors) * (unit(positives) - unit(negatives)), axis=-1)
    return weighted_sum(jnp.maximum(margin - difference, 0), weights)


def unit(x: Float[AnyArray, "*B D"]) -> Float[Array, "*B D"]:
    """Scales vectors to length 1, in float32; zeros stay zeros."""
    wide = jnp.asarray(x, jnp.float32)
    return wide * jax.lax.rsqrt(jnp.maximum(jnp.sum(wide * wide, axis=-1, keepdims=True), 1e-24))
