"""Losses. Each returns Sum(total, weight), never a mean: means are taken once, over everything."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Sum(NamedTuple):
    """A weighted sum and its weight; they add up over microbatches, batches and devices."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """total / weight, and 0 where there is no weight."""
        return self.total / jnp.maximum(self.weight, 1e-9)


def cross_entropy(logits: Float[Array, "... V"], labels: Int[Array, "..."], weights: Float[Array, "..."]) -> Sum:
    """Negative log-likelihood of `labels` in nats, weighted. In float32."""
    logits = logits.astype(jnp.float32)
    # A comparison instead of a gather: its gradient is elementwise, where a gather's is a scatter into [..., V] zeros.
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]
    of_label = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
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
