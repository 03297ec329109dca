"""The losses of rerankers: the scores of the documents of each query, and which of them answer it.

A query has C documents; `present` is 1 for documents that are there and 0 for those that fill up the array.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from bert_jax.model.layers import AnyArray
from bert_jax.training.losses import MASKED, Sum, binary_cross_entropy, weighted_sum


def pointwise_loss(scores: Float[AnyArray, "N C"], relevances: Float[AnyArray, "N C"], present: Float[AnyArray, "N C"]) -> Sum:
    """Returns the negative log-likelihood of each relevance (0 to 1) by the sigmoid of the score, in nats, over documents."""
    return binary_cross_entropy(scores[..., None], relevances[..., None], present)


def pairwise_loss(scores: Float[AnyArray, "N C"], relevances: Float[AnyArray, "N C"], present: Float[AnyArray, "N C"]) -> Sum:
    """Returns the negative log-likelihood of the order of two documents of a query, in nats, over pairs.

    A pair counts where one document is more relevant; its likelihood is the sigmoid of the difference of the scores (RankNet,
    Burges et al., 2005).
    """
    scores, relevances, present = (jnp.asarray(x, jnp.float32) for x in (scores, relevances, present))
    better = (relevances[:, :, None] > relevances[:, None, :]).astype(jnp.float32) * present[:, :, None] * present[:, None, :]
    return weighted_sum(jax.nn.softplus(scores[:, None, :] - scores[:, :, None]), better)


def listwise_loss(scores: Float[AnyArray, "N C"], relevances: Float[AnyArray, "N C"], present: Float[AnyArray, "N C"]) -> Sum:
    """Returns the cross entropy of the softmax of a query's scores, in nats, over queries.

    The target is the share of each document in the relevances of the query, which are not negative: with one relevant document
    its negative log-likelihood among all (Gao et al., 2021), with the softmax of any labels ListNet (Cao et al., 2007).
    """
    present = jnp.asarray(present, jnp.float32)
    right = jnp.asarray(relevances, jnp.float32) * present
    right /= jnp.maximum(jnp.sum(right, axis=-1, keepdims=True), 1e-9)
    logs = jax.nn.log_softmax(jnp.where(present > 0, jnp.asarray(scores, jnp.float32), MASKED))
    return weighted_sum(-jnp.sum(right * logs, axis=-1), jnp.max(present, axis=-1))
