"""Muon (Jordan et al., 2024): momentum whose matrices are orthogonalised, for the kernels of the encoder's layers.

A gradient's few large directions no longer drown the many small ones: each update has singular values near 1.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bert_jax.errors import InputError
from bert_jax.model.layers import ROWS, laid_out

_HIDDEN = re.compile(r"encoder/layer_\d+/.*kernel")
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # for x, x^3 and x^5: they push every singular value in (0, 1] to about 1


class MuonState(NamedTuple):
    """The momentum."""

    mu: PyTree


def hidden_matrices(params: PyTree) -> PyTree[bool]:
    """Returns a tree of booleans: True for the kernels of the encoder's layers, which Muon updates."""

    def hidden(path: tuple[jax.tree_util.DictKey, ...], x: ArrayLike | jax.ShapeDtypeStruct) -> bool:
        return jnp.ndim(x) == 2 and _HIDDEN.fullmatch("/".join(entry.key for entry in path)) is not None

    return jax.tree_util.tree_map_with_path(hidden, params)


def orthogonalise(x: Float[Array, "N I O"], iterations: int) -> Float[Array, "N I O"]:
    """Returns matrices with the singular vectors of `x` and singular values near 1, by Newton-Schulz iterations.

    An iteration costs 4 m^2 n + 2 m^3 FLOPs per matrix, where m is the shorter side: it works on the products of that side.
    """
    wide = x if x.shape[1] <= x.shape[2] else x.swapaxes(1, 2)
    wide = wide / (jnp.linalg.norm(wide, axis=(1, 2), keepdims=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        square = wide @ wide.swapaxes(1, 2)
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if x.shape[1] <= x.shape[2] else wide.swapaxes(1, 2)


def scale_by_muon(momentum: float, iterations: int) -> optax.GradientTransformationExtraArgs:
    """Returns Muon without a learning rate, for a tree of matrices [in, out]; other leaves must be masked.

    The update of a matrix is its orthogonalised Nesterov momentum times max(1, out / in)^0.5, so that it changes a layer's
    output by about the learning rate whatever the layer's shape. Matrices of one shape are orthogonalised as one batch. On a mesh
    the batch is laid over the devices that share rows: each matrix is whole where it is orthogonalised, and cut where it rests.

    Its `update` takes `ok`, a boolean: if it is false, the momentum stays as it is.

    Args:
      momentum: Decay rate of the momentum.
      iterations: Newton-Schulz iterations.
    """

    def init(params: PyTree) -> MuonState:
        if not jax.tree.leaves(params):
            raise InputError("optim.name='muon' finds no kernels of layers in what is trained: choose adamw")
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, *, ok: ArrayLike = True, **extra: object
    ) -> tuple[PyTree, PyTree]:
        gradients = jax.tree.map(lambda g: jnp.where(ok, g, 0), updates)
        mu = jax.tree.map(lambda g, m: jnp.where(ok, momentum * m + (1 - momentum) * g, m), gradients, state.mu)
        mu = jax.lax.optimization_barrier(mu)  # written in place, as Adam's moments are
        ahead = jax.tree.map(lambda g, m: (1 - momentum) * g + momentum * m, gradients, mu)
        leaves, tree = jax.tree.flatten(ahead)
        of_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, leaf in enumerate(leaves):
            of_shape[leaf.shape].append(number)
        for (rows, columns), numbers in of_shape.items():
            batch = laid_out(jnp.stack([leaves[number] for number in numbers]), ROWS, None, None)
            scaled = orthogonalise(batch, iterations) * max(1, columns / rows) ** 0.5
            for number, matrix in zip(numbers, scaled, strict=True):
                leaves[number] = matrix
        return jax.tree.unflatten(tree, leaves), MuonState(mu)

    return optax.GradientTransformationExtraArgs(init, update)
