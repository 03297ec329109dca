"""Muon (Jordan et al., 2024): momentum whose matrices are orthogonalised, for the kernels of the encoder's layers.

A gradient's few large directions no longer drown the many small ones: each update has singular values near 1.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PyTree

from bert_jax.config import OptimConfig
from bert_jax.errors import InputError
from bert_jax.model.layers import ROWS, inside_training_mesh, laid_out
from bert_jax.training import flops

_HIDDEN = re.compile(r"(generator/)?encoder/layer_\d+/.*kernel")

Quintic = tuple[float, float, float]  # coefficients of x, x^3 and x^5
JORDAN: Quintic = (3.4445, -4.7750, 2.0315)  # for each iteration; five take singular values in [0.002, 1] to [0.68, 1.21]
# For all iterations, by their number (Amsel et al., 2025, algorithm 1): each is the odd quintic nearest to 1 on the singular
# values that those before it leave, 1 % wider on each side for errors of rounding. They take values in [0.01, 1] to
# [0.71, 1.29], in [0.003, 1] to [0.77, 1.23], and in [0.001, 1] to [0.86, 1.14].
POLAR_EXPRESS: dict[int, tuple[Quintic, ...]] = {
    3: ((8.021064, -22.956016, 16.622998), (3.623141, -2.662087, 0.51407), (2.686977, -1.971094, 0.440649)),
    4: (
        (8.303179, -24.047265, 17.473713), (4.012133, -2.930315, 0.543128), (3.508045, -2.581066, 0.505331),
        (2.52948, -1.844759, 0.427673),
    ),
    5: (
        (8.387318, -24.372955, 17.727694), (4.144572, -3.019932, 0.552868), (3.939523, -2.88084, 0.537756),
        (3.311034, -2.440295, 0.490206), (2.319463, -1.668732, 0.410039),
    ),
}  # fmt: skip


# Factors of the updates of matrices [in, out], by OptimConfig.muon_scale: that of Jordan et al., and that which gives an update
# the root mean square of one by AdamW, about 0.2 (Liu et al., 2025, section 2.2).
SCALES: dict[str, Callable[[int, int], float]] = {
    "shape": lambda rows, columns: max(1, columns / rows) ** 0.5,
    "adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
}


def quintics(cfg: OptimConfig) -> tuple[Quintic, ...]:
    """Returns the polynomials of the iterations of a config."""
    number = cfg.muon_iterations
    return (JORDAN,) * number if cfg.muon_coefficients == "jordan" else POLAR_EXPRESS[number]


class MuonState(NamedTuple):
    """The momentum."""

    mu: PyTree


def hidden_matrices(params: PyTree) -> PyTree[bool]:
    """Returns a tree of booleans: True for the kernels of the layers of encoders, which Muon updates."""

    def hidden(path: tuple[jax.tree_util.DictKey, ...], x: ArrayLike | jax.ShapeDtypeStruct) -> bool:
        return jnp.ndim(x) == 2 and _HIDDEN.fullmatch("/".join(entry.key for entry in path)) is not None

    return jax.tree_util.tree_map_with_path(hidden, params)


def orthogonalise(x: Float[Array, "N M L"], polynomials: tuple[Quintic, ...]) -> Float[Array, "N M L"]:
    """Returns matrices with the singular vectors of `x` and singular values near 1, by Newton-Schulz iterations.

    An iteration takes 4 M^2 L + 2 M^3 FLOPs a matrix; from `flops.SYMMETRIC_FROM` rows on 3.5 M^2 L + 1.5 M^3, as a quarter of
    its two symmetric products is copied.

    Args:
      x: Wide matrices: M is at most L. Products have their type; the norm is computed in float32.
      polynomials: See `quintics`.
    """
    precise = x.astype(jnp.float32)
    x = (precise / (jnp.linalg.norm(precise, axis=(1, 2), keepdims=True) + 1e-7)).astype(x.dtype)
    for a, b, c in polynomials:
        square = _symmetric_product(x, x.swapaxes(1, 2))
        x = a * x + (b * square + c * _symmetric_product(square, square)) @ x
    return x


def _symmetric_product(x: Float[Array, "N M L"], y: Float[Array, "N L M"]) -> Float[Array, "N M M"]:
    """Returns `x @ y`, which must be symmetric: in large matrices the block below the diagonal is a copy of that above it."""
    if x.shape[1] < flops.SYMMETRIC_FROM:
        return x @ y
    half = x.shape[1] // 2
    above = x[:, :half] @ y
    corner = x[:, half:] @ y[:, :, half:]
    below = jnp.concatenate([above[:, :, half:].swapaxes(1, 2), corner], axis=2)
    return jnp.concatenate([above, below], axis=1)


def _wide(x: Float[Array, "I O"]) -> Float[Array, "M L"]:
    """Returns `x`, or its transpose if that has fewer rows."""
    return x if x.shape[0] <= x.shape[1] else x.T


def _over_devices(batch: Float[Array, "N M L"]) -> Float[Array, "P M L"]:
    """Lays matrices over the devices of a mesh that share rows, after zeros that make their number divisible."""
    if not inside_training_mesh():
        return batch
    mesh = jax.sharding.get_abstract_mesh()
    missing = -len(batch) % math.prod(mesh.shape[name] for name in ROWS)
    return laid_out(jnp.pad(batch, ((0, missing), (0, 0), (0, 0))), ROWS, None, None)


def scale_by_muon(
    momentum: float,
    polynomials: tuple[Quintic, ...],
    scale: Callable[[int, int], float] = SCALES["shape"],
    dtype: DTypeLike = jnp.float32,
) -> optax.GradientTransformationExtraArgs:
    """Returns Muon without a learning rate, for a tree of matrices [in, out]; other leaves must be masked.

    The update of a matrix is its orthogonalised Nesterov momentum times `scale`. By that of "shape" it changes a layer's output
    by about the learning rate whatever the layer's shape. Matrices of one shape, or of its transpose, are orthogonalised as one
    batch. On a mesh the batch is laid over the devices that share rows: each matrix is whole where it is orthogonalised, and cut
    where it rests.

    Its `update` takes `ok`, a boolean: if it is false, the momentum stays as it is.

    Args:
      momentum: Decay rate of the momentum.
      polynomials: Those of the Newton-Schulz iterations (see `quintics`).
      scale: A value of `SCALES`.
      dtype: Type in which matrices cross devices and are multiplied. The momentum is float32.
    """

    def init(params: PyTree) -> MuonState:
        if not jax.tree.leaves(params):
            raise InputError("muon finds no kernels of layers in what is trained: choose the optimizer adamw")
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
            of_shape[tuple(sorted(leaf.shape))].append(number)
        for numbers in of_shape.values():
            batch = jnp.stack([_wide(leaves[number]).astype(dtype) for number in numbers])
            matrices = orthogonalise(_over_devices(batch), polynomials)
            for number, matrix in zip(numbers, matrices, strict=False):  # without the zeros behind them
                rows, columns = leaves[number].shape
                turned = matrix if rows <= columns else matrix.T
                leaves[number] = turned.astype(leaves[number].dtype) * scale(rows, columns)
        return jax.tree.unflatten(tree, leaves), MuonState(mu)

    return optax.GradientTransformationExtraArgs(init, update)
