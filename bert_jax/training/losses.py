"""Losses. Each returns Sum(total, weight), never a mean: means are taken once, over everything."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Sum(NamedTuple):
    """A weighted sum and its weight; they add up over microbatches, batches and devices."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """total / weight, and 0 where there is no weight."""
        return self.total / jnp.maximum(self.weight, 1e-9)


def cross_entropy(
    logits: Float[Array, "... V"], labels: Int[Array, "..."], weights: Float[Array, "..."], smoothing: float = 0.0
) -> Sum:
    """Negative log-likelihood of `labels` in nats, weighted. In float32.

    `smoothing` is the share of the target that is spread over all classes (Szegedy et al., 2016, section 7).
    """
    logits = logits.astype(jnp.float32)
    # A comparison instead of a gather: its gradient is elementwise, where a gather's is a scatter into [..., V] zeros.
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]
    of_label = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
    if smoothing:
        of_label = (1 - smoothing) * of_label + smoothing * jnp.mean(logits, axis=-1)
    return Sum(jnp.sum((jax.nn.logsumexp(logits, axis=-1) - of_label) * weights), jnp.sum(weights))


def accuracy(logits: Float[Array, "... V"], labels: Int[Array, "..."], weights: Float[Array, "..."]) -> Sum:
    """How often the largest logit is the label's, weighted; where n logits are the largest, it counts 1/n."""
    # Comparisons with the maximum, which the loss needs as well: an argmax costs CPUs as much as a layer's matrix product.
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]
    largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    hits = jnp.sum(largest & is_label, axis=-1) / jnp.maximum(1, jnp.sum(largest, axis=-1))
    return Sum(jnp.sum(hits * weights), jnp.sum(weights))


def pretraining_sums(outputs: dict[str, Array], batch: dict[str, Array]) -> dict[str, Sum]:
    """The masked-LM loss and accuracy of a batch and, with sentence pairs, those of next-sentence prediction.

    Names ending in `_loss` are added up to the training loss. Labels below 0 are not counted.
    """
    args = outputs["masked_lm_logits"], batch["masked_ids"], batch["masked_weights"]
    sums = {"masked_lm_loss": cross_entropy(*args), "masked_lm_accuracy": accuracy(*args)}
    if "next_sentence_logits" in outputs:
        label = batch["next_sentence_label"]
        args = outputs["next_sentence_logits"], label, (label >= 0).astype(jnp.float32)
        sums |= {"next_sentence_loss": cross_entropy(*args), "next_sentence_accuracy": accuracy(*args)}
    return sums


def binary_cross_entropy(
    logits: Float[Array, "... C"], labels: Float[Array, "... C"], weights: Float[Array, "..."],
    positive: Float[Array, " C"] | None = None,
) -> Sum:  # fmt: skip
    """Each class by itself, yes or no; the mean over the classes, in nats, weighted.

    `positive`: how much more than a no each class's yes weighs (`pos_weight` of PyTorch's BCEWithLogitsLoss).
    """
    logits = logits.astype(jnp.float32)
    each = jax.nn.softplus(logits) - logits * labels
    if positive is not None:
        each *= 1 + (positive - 1) * labels
    return Sum(jnp.sum(jnp.mean(each, axis=-1) * weights), jnp.sum(weights))


def squared_error(values: Float[Array, "..."], labels: Float[Array, "..."], weights: Float[Array, "..."]) -> Sum:
    """Weighted squares of the differences."""
    return Sum(jnp.sum(jnp.square(values.astype(jnp.float32) - labels) * weights), jnp.sum(weights))


def span_cross_entropy(
    start_logits: Float[Array, "B L"], end_logits: Float[Array, "B L"], sequence_ids: Int[Array, "B L"],
    labels: Int[Array, "B S 2"], weights: Float[Array, "B S"],
) -> Sum:  # fmt: skip
    """The mean negative log-likelihood of an answer's first and last token, over the tokens of its own sequence alone.

    Sequence s of a row (from 0) has sequence id s + 1. Padding has no share, whereas run_squad.py and transformers give it one.
    """
    own = sequence_ids[:, None, :] == jnp.arange(1, labels.shape[1] + 1)[:, None]

    def each(logits: Array, at: Array) -> Array:
        logits = jnp.where(own, logits.astype(jnp.float32)[:, None, :], -1e9)
        of_label = jnp.take_along_axis(logits, at[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - of_label

    both = each(start_logits, labels[..., 0]) + each(end_logits, labels[..., 1])
    return Sum(jnp.sum(jnp.where(weights > 0, both, 0) * weights) / 2, jnp.sum(weights))


def cosine_error(a: Float[Array, "N D"], b: Float[Array, "N D"], scores: Float[Array, " N"], weights: Float[Array, " N"]) -> Sum:
    """Squared differences of cosines and `scores` (Reimers and Gurevych, 2019, section 3)."""
    return squared_error(jnp.sum(_unit(a) * _unit(b), axis=-1), scores, weights)


def ranking_loss(
    anchors: Float[Array, "N D"], candidates: Float[Array, "M D"], weights: Float[Array, " N"], temperature: float,
    anchor_ids: Int[Array, " N"], candidate_ids: Int[Array, " M"],
) -> Sum:  # fmt: skip
    """How unlikely each anchor's own candidate is among all of them (multiple negatives; Henderson et al., 2017, section 4.4).

    Candidate n is anchor n's; those past N, and those of other anchors, are its negatives. Weights are 0 or 1: what has none is
    no negative either. Ids say which texts are equal: the anchor itself, and whatever belongs to a pair that shares a text with
    the anchor's pair, is no negative of it (sentence-transformers' NO_DUPLICATES sampler never puts such pairs into one batch).
    """
    count = anchors.shape[0]
    cosines = _unit(anchors) @ _unit(candidates).T / temperature
    there = jnp.tile(weights > 0, candidates.shape[0] // count)
    own = jnp.eye(count, candidates.shape[0], dtype=bool)
    allowed = there & (own | ~_belongs(anchor_ids, candidate_ids))
    return cross_entropy(jnp.where(allowed, cosines, -1e9), jnp.arange(count), weights)


def _belongs(anchors: Int[Array, " N"], candidates: Int[Array, " M"]) -> Bool[Array, "N M"]:
    """Whether a candidate is the anchor's own text, or a positive of a pair that has a text of the anchor's pair."""

    def same(a: Array, b: Array) -> Array:
        return a[:, None] == b[None, :]

    positives = candidates[: anchors.shape[0]]
    pairs = same(anchors, anchors) | same(positives, positives) | same(anchors, positives) | same(positives, anchors)
    shared = pairs.astype(jnp.float32) @ same(positives, candidates).astype(jnp.float32)  # counts, of which 0 is exact
    return same(anchors, candidates) | (shared > 0)


def triplet_loss(
    anchors: Float[Array, "N D"], positives: Float[Array, "N D"], negatives: Float[Array, "N D"], weights: Float[Array, " N"],
    margin: float = 0.5,
) -> Sum:  # fmt: skip
    """How far the positive is from being nearer than the negative by `margin` (cosine distance; Schroff et al., 2015)."""
    nearer = jnp.sum(_unit(anchors) * (_unit(positives) - _unit(negatives)), axis=-1)
    return Sum(jnp.sum(jnp.maximum(margin - nearer, 0) * weights), jnp.sum(weights))


def _unit(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Rows of length 1, in float32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
