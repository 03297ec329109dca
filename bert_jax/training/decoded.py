"""The masked-LM loss of an output layer that has not been applied yet, some predictions at a time.

The logits are the largest arrays of a step with a large vocabulary: of one row of 8,192 tokens, 30 % of them masked, and 50,368
words, half a gigabyte, and their gradient as much. The loss is a sum over predictions, so its gradient with respect to the logits
of some is known as soon as these are: each chunk's share of the gradients is computed beside its loss, and no logits are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bert_jax.model.layers import Decoder

_CHUNK_BYTES = 2**26  # float32 logits at a time
_Sums = tuple[Float[Array, ""], Float[Array, ""]]
_Gradients = tuple[_Sums, Float[Array, "V E"], Float[Array, " V"] | None]  # those of table and bias, beside the sums
_PerPrediction = tuple[Float[Array, "N E"], Float[Array, " N"], Float[Array, " N"]]  # gradient of the input, loss, hits
_Kept = tuple[Array, Array | None, Array, Array, Array, Array]


def is_large(decoder: Decoder) -> bool:
    """Tells if there is more than one chunk of logits, all of them on one device; a mesh would sum gradients in each chunk."""
    rows, predictions, _ = decoder.inputs.shape
    return jax.sharding.get_abstract_mesh().size <= 1 and rows * predictions * decoder.table.shape[0] * 4 > _CHUNK_BYTES


def sums(decoder: Decoder, labels: Int[Array, "B P"], weights: Float[Array, "B P"]) -> _Sums:
    """Returns the weighted sums of `losses.cross_entropy` and of `losses.accuracy` over all predictions.

    Args:
      decoder: The output layer and its inputs.
      labels: The word of each prediction. A label outside [0, V) has to have the weight 0.
      weights: The weight of each prediction.
    """
    x = decoder.inputs.reshape(-1, decoder.inputs.shape[-1])
    return _sums(x, decoder.table, decoder.bias, labels.reshape(-1), weights.reshape(-1))


@jax.custom_vjp
def _sums(
    x: Float[Array, "N E"],
    table: Float[Array, "V E"],
    bias: Float[Array, " V"] | None,
    labels: Int[Array, " N"],
    weights: Float[Array, " N"],
) -> _Sums:
    def add(total: _Sums, chunk: tuple[Array, Array, Array]) -> tuple[_Sums, None]:
        x, labels, weights = chunk
        losses, hits, _ = _of_logits(_logits(x, table, bias), labels)
        return (total[0] + jnp.sum(losses * weights), total[1] + jnp.sum(hits * weights)), None

    return _over_chunks(add, (jnp.float32(0), jnp.float32(0)), table.shape[0], (x, labels, weights))[0]


def _logits(x: Float[Array, "N E"], table: Float[Array, "V E"], bias: Float[Array, " V"] | None) -> Float[Array, "N V"]:
    logits = jnp.einsum("ne,ve->nv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias[None]


def _of_logits(
    logits: Float[Array, "N V"], labels: Int[Array, " N"]
) -> tuple[Float[Array, " N"], Float[Array, " N"], Float[Array, "N V"]]:
    """Returns each prediction's loss, its hits (see `losses.accuracy`), and the gradient of its loss."""
    last = logits.shape[1] - 1
    exists = ((labels >= 0) & (labels <= last))[:, None]
    label = jnp.where(exists, jnp.take_along_axis(logits, jnp.clip(labels, 0, last)[:, None], axis=1), 0)
    highest = jnp.max(logits, axis=1, keepdims=True)
    hits = (exists & (label == highest)) / jnp.sum(logits == highest, axis=1, keepdims=True)
    powers = jnp.exp(logits - highest)
    total = jnp.sum(powers, axis=1, keepdims=True)
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == labels[:, None]
    losses = jnp.log(total) + highest - label
    return losses[:, 0], hits[:, 0], powers / total - is_label.astype(jnp.float32)


def _forward(x: Array, table: Array, bias: Array | None, labels: Array, weights: Array) -> tuple[_Sums, _Kept]:
    def add(total: tuple[_Sums, Array, Array | None], chunk: tuple[Array, Array, Array]) -> tuple[_Gradients, _PerPrediction]:
        (loss, hit), of_table, of_bias = total
        x, labels, weights = chunk
        losses, hits, of_logits = _of_logits(_logits(x, table, bias), labels)
        of_logits = of_logits * weights[:, None]
        if of_bias is not None:
            of_bias = of_bias + jnp.sum(of_logits, axis=0)
        of_logits = of_logits.astype(x.dtype)
        of_table = of_table + jnp.einsum("nv,ne->ve", of_logits, x, preferred_element_type=table.dtype)
        of_x = jnp.einsum("nv,ve->ne", of_logits, table.astype(x.dtype), preferred_element_type=jnp.float32)
        sums = loss + jnp.sum(losses * weights), hit + jnp.sum(hits * weights)
        return (sums, of_table, of_bias), (of_x, losses, hits)

    zeros = (jnp.float32(0), jnp.float32(0)), jnp.zeros_like(table), None if bias is None else jnp.zeros_like(bias)
    (sums, *of_layer), of_predictions = _over_chunks(add, zeros, table.shape[0], (x, labels, weights))
    return sums, (*of_layer, *of_predictions, jnp.zeros(0, x.dtype))


def _backward(kept: _Kept, of_sums: _Sums) -> tuple[Array, Array, Array | None, None, Array]:
    of_table, of_bias, of_x, losses, hits, like = kept
    scale, of_hits = of_sums  # hits are a step function: parameters have no gradient of them
    of_bias = None if of_bias is None else of_bias * scale
    return (of_x * scale).astype(like.dtype), of_table * scale, of_bias, None, losses * scale + hits * of_hits


_sums.defvjp(_forward, _backward)


def _over_chunks(add: Callable[[Any, Any], tuple[Any, Any]], total: Any, vocabulary: int, arrays: tuple[Array, ...]) -> Any:
    """Returns what `jax.lax.scan` returns for `add` over chunks of the arrays' first axis, with the chunks joined again."""
    count = arrays[0].shape[0]
    chunks = -(-count * vocabulary * 4 // _CHUNK_BYTES)
    size = -(-count // chunks)
    padded = (jnp.pad(x, [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1)) for x in arrays)
    total, several = jax.lax.scan(add, total, tuple(x.reshape(chunks, size, *x.shape[1:]) for x in padded))
    return total, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], several)
