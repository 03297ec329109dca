"""The masked-LM loss of an output layer that has not been applied yet, some predictions at a time.

The logits are the largest arrays of a step with a large vocabulary: of one row of 8,192 tokens, 30 % of them masked, and 50,368
words, half a gigabyte, and their gradient as much. The loss is a sum over predictions, so its gradient with respect to the logits
of some is known as soon as these are: each chunk's share of the gradients is computed beside its loss, and no logits are kept.

The gradient of a prediction's loss with respect to its logits is softmax - one_hot(label). With p = exp(logits - max), 0 at the
label, and S = the softmax's denominator, the products of that gradient with the table and with the inputs are those of p, whose
rows 1 / S scales afterwards or beforehand, and one term of the label. So each logit is read a few times only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from bert_jax.model.layers import Decoder

_CHUNK_BYTES = 2**26  # float32 logits at a time
_Sums = tuple[Float[Array, ""], Float[Array, ""]]
_OfLayer = tuple[Float[Array, "V E"], Float[Array, " V"] | None]  # gradients of table and bias
_Kept = tuple[_OfLayer, Float[Array, "N E"], Float[Array, " N"], Float[Array, " N"], Array]


def is_on_one_device() -> bool:
    """Tells if arrays are not cut over a mesh, on which gradients would be summed over devices chunk by chunk."""
    return jax.sharding.get_abstract_mesh().size <= 1


def sums(decoder: Decoder, labels: Int[Array, "B P"], weights: Float[Array, "B P"]) -> _Sums:
    """Returns the weighted sums of `losses.cross_entropy` and of `losses.accuracy` over all predictions.

    Args:
      decoder: The output layer and its inputs.
      labels: The word of each prediction. A label outside [0, V) has to have the weight 0.
      weights: The weight of each prediction.
    """
    x = decoder.inputs.reshape(-1, decoder.inputs.shape[-1])
    return _sums(x, decoder.table, decoder.bias, labels.reshape(-1), weights.reshape(-1))


def of_logits(decoder: Decoder, function: Callable[..., Array], *arrays: Shaped[Array, "B P"]) -> Shaped[Array, "B P"]:
    """Returns `function(logits [N, V], *arrays [N])` for all predictions, a value [N] for each, computed for some at a time."""

    def add(total: None, chunk: tuple[Array, ...]) -> tuple[None, Array]:
        x, *others = chunk
        return None, function(_logits(x, decoder.table, decoder.bias), *others)

    x = decoder.inputs.reshape(-1, decoder.inputs.shape[-1])
    flat = (x, *(array.reshape(-1) for array in arrays))
    return _over_chunks(add, None, decoder.table.shape[0], flat)[1].reshape(decoder.inputs.shape[:-1])


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
        at = _softmax(_logits(x, table, bias), labels)
        return (total[0] + jnp.sum(at.losses * weights), total[1] + jnp.sum(at.hits * weights)), None

    return _over_chunks(add, (jnp.float32(0), jnp.float32(0)), table.shape[0], (x, labels, weights))[0]


def _logits(x: Float[Array, "N E"], table: Float[Array, "V E"], bias: Float[Array, " V"] | None) -> Float[Array, "N V"]:
    logits = jnp.einsum("ne,ve->nv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias[None]


class _Softmax(NamedTuple):
    """The softmax of some predictions: exp(logit - the largest) of all words but the label, that of the label, and their sum."""

    powers: Float[Array, "N V"]
    label: Float[Array, " N"]
    total: Float[Array, " N"]
    losses: Float[Array, " N"]
    hits: Float[Array, " N"]  # see `losses.accuracy`


def _softmax(logits: Float[Array, "N V"], labels: Int[Array, " N"]) -> _Softmax:
    last = logits.shape[1] - 1
    exists = (labels >= 0) & (labels <= last)
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == labels[:, None]
    label = jnp.take_along_axis(logits, jnp.clip(labels, 0, last)[:, None], axis=1)[:, 0]
    label = jnp.where(exists, label, -jnp.inf)
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=1)
    largest = jnp.maximum(label, others)
    # Behind a barrier, the products read the powers; otherwise each would compute them again.
    powers = jax.lax.optimization_barrier(jnp.where(is_label, 0, jnp.exp(logits - largest[:, None])))
    power = jnp.exp(label - largest)
    total = jnp.sum(powers, axis=1) + power
    tied = label == others  # hardly ever: then only are the powers read once more
    number = jax.lax.cond(jnp.any(tied), lambda: jnp.sum(powers == 1, axis=1), lambda: jnp.zeros_like(labels))
    hits = (label >= others) / (1 + jnp.where(tied, number, 0))
    return _Softmax(powers, power, total, jnp.log(total) + largest - jnp.where(exists, label, 0), hits)


def _forward(x: Array, table: Array, bias: Array | None, labels: Array, weights: Array) -> tuple[_Sums, _Kept]:
    def add(total: tuple[_Sums, _OfLayer], chunk: tuple[Array, Array, Array]) -> tuple[tuple[_Sums, _OfLayer], tuple[Array, ...]]:
        (loss, hit), (of_table, of_bias) = total
        x, labels, weights = chunk
        at = _softmax(_logits(x, table, bias), labels)
        scale, powers = weights / at.total, at.powers.astype(x.dtype)
        scaled = (x * scale[:, None]).astype(x.dtype)
        of_table = of_table + jnp.einsum("nv,ne->ve", powers, scaled, preferred_element_type=table.dtype)
        if of_bias is not None:
            of_bias = of_bias + jnp.einsum("nv,n->v", at.powers, scale)
        of_x = jnp.einsum("nv,ve->ne", powers, table.astype(x.dtype), preferred_element_type=jnp.float32) * scale[:, None]
        sums = loss + jnp.sum(at.losses * weights), hit + jnp.sum(at.hits * weights)
        return (sums, (of_table, of_bias)), (of_x, weights * (at.label / at.total - 1), at.losses, at.hits)

    zeros = (jnp.float32(0), jnp.float32(0)), (jnp.zeros_like(table), None if bias is None else jnp.zeros_like(bias))
    (sums, (of_table, of_bias)), several = _over_chunks(add, zeros, table.shape[0], (x, labels, weights))
    of_x, of_label, losses, hits = several
    at = jnp.clip(labels, 0, table.shape[0] - 1)  # the weight of other labels is 0
    of_x = of_x + of_label[:, None] * table[at]
    of_table = of_table.at[at].add(of_label[:, None] * x)
    of_bias = None if of_bias is None else of_bias.at[at].add(of_label)
    return sums, ((of_table, of_bias), of_x, losses, hits, jnp.zeros(0, x.dtype))


def _backward(kept: _Kept, of_sums: _Sums) -> tuple[Array, Array, Array | None, None, Array]:
    (of_table, of_bias), of_x, losses, hits, like = kept
    scale, of_hits = of_sums  # hits are a step function: parameters have no gradient of them
    of_bias = None if of_bias is None else of_bias * scale
    return (of_x * scale).astype(like.dtype), of_table * scale, of_bias, None, losses * scale + hits * of_hits


_sums.defvjp(_forward, _backward)


def _over_chunks(add: Callable[[Any, Any], tuple[Any, Any]], total: Any, vocabulary: int, arrays: tuple[Array, ...]) -> Any:
    """Returns what `jax.lax.scan` returns for `add` over chunks of the arrays' first axis, with the chunks joined again."""
    count = arrays[0].shape[0]
    chunks = -(-count * vocabulary * 4 // _CHUNK_BYTES)
    if chunks <= 1:
        return add(total, arrays)
    size = -(-count // chunks)
    padded = (jnp.pad(x, [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1)) for x in arrays)
    total, several = jax.lax.scan(add, total, tuple(x.reshape(chunks, size, *x.shape[1:]) for x in padded))
    return total, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], several)
