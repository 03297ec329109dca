"""A large batch in chunks: the exact gradients of the whole batch, in the memory of one chunk (GradCache, Gao et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from bert_jax.model.layers import AnyArray

Arrays = dict[str, AnyArray]


def in_chunks(
    encode: Callable[[Arrays, PRNGKeyArray | None], dict[str, Array]], rows: Arrays, key: PRNGKeyArray | None, chunks: int
) -> dict[str, Array]:
    """Returns `encode(rows, key)`, computed one chunk of rows after another.

    The forward pass keeps the outputs alone. The backward pass gets their gradients from a loss that may compare all rows,
    computes each chunk again with the same dropout, and adds up its gradients: the sum over chunks that one pass over all
    rows computes, too.

    Args:
      encode: Encodes rows, which must not depend on each other; it may close over parameters.
      rows: Arrays [B, ...]. Chunk m takes every `chunks`-th row, so that no row moves to another device.
      key: The dropout key, or None without dropout. Chunk m folds m into it.
      chunks: The number of chunks; it divides B.
    """
    if chunks == 1:
        return encode(rows, key)
    apart = {name: jnp.swapaxes(jnp.reshape(x, (-1, chunks, *x.shape[1:])), 0, 1) for name, x in rows.items()}

    def one(place: tuple[Array, Arrays]) -> dict[str, Array]:
        number, some = place
        return encode(some, None if key is None else jax.random.fold_in(key, number))

    # Without prevent_cse=False, every value of the loop would pass an optimization barrier; inside a loop none is needed.
    parts = jax.lax.map(jax.checkpoint(one, prevent_cse=False), (jnp.arange(chunks), apart))
    return {name: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]) for name, x in parts.items()}
