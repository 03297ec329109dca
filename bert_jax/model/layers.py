"""What layers are made of: dense, norm, dropout, activations, as BERT has them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from bert_jax.config import BertConfig

MESH_AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what rows of a batch are laid over


def laid_out(x: Array, *axes: Any) -> Array:
    """`x` with its dimensions laid over these axes (None: whole) of the training mesh; as it is where there is no such mesh.

    The compiler derives all else from the parameters' and the batch's shardings. Told once a layer that rows stay where they
    are, it moves parameters to them (fsdp), never hidden states to the parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != MESH_AXES or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return x
    sizes = (math.prod(mesh.shape[name] for name in ([axis] if isinstance(axis, str) else axis or ())) for axis in axes)
    fitting = [axis if n % size == 0 else None for axis, n, size in zip(axes, x.shape, sizes, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fitting))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function at x, exactly (Hendrycks and Gimpel, 2016). In float32.

    Written with erf: `jax.nn.gelu` goes through erfc, which costs twice as much on CPUs.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Zeroes a share `rate` (to 1/65536) of `x` and scales up the rest; the identity where `key` is None.

    One 32-bit draw serves two elements: drawing bits is a visible share of a training step.
    """
    threshold = round(rate * 2**16)
    if key is None or threshold == 0:
        return x
    pairs = (*x.shape[:-1], -(-x.shape[-1] // 2))
    bits = jax.lax.bitcast_convert_type(jax.random.bits(key, pairs, jnp.uint32), jnp.uint16)
    keep = bits.reshape(*pairs[:-1], 2 * pairs[-1])[..., : x.shape[-1]] >= threshold
    return jnp.where(keep, x.astype(jnp.float32) * (1 / (1 - threshold / 2**16)), 0).astype(x.dtype)


class Dropout(nn.Module):
    """`dropout` with a key of the module's "dropout" stream."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], deterministic: bool) -> Float[Array, "..."]:
        return dropout(x, self.rate, None if deterministic or self.rate == 0 else self.make_rng("dropout"))


def initializer(cfg: BertConfig) -> jax.nn.initializers.Initializer:
    """BERT's truncated normal, cut at two sigma and not corrected for the cut (modeling.py, create_initializer)."""
    return jax.nn.initializers.truncated_normal(cfg.initializer_range)


def _flat_matmul(x: Array, kernel: Array, dimension_numbers: Any, **kwargs: Any) -> Array:
    """`lax.dot_general` of `nn.Dense` with all leading axes of `x` as one.

    Then the kernel's gradient contracts one axis, and XLA's CPU backend need not transpose the cotangent for it.
    """
    return jax.lax.dot(x.reshape(-1, x.shape[-1]), kernel, **kwargs).reshape(*x.shape[:-1], -1)


def dense(cfg: BertConfig, features: int, name: str) -> nn.Dense:
    """A dense layer with BERT's initialisation, in the compute type."""
    return nn.Dense(features, dtype=cfg.dtype, kernel_init=initializer(cfg), dot_general=_flat_matmul, name=name)


def word_table(table: Float[Array | np.ndarray, "V E"], dtype: Any) -> Float[Array, "V E"]:
    """The word embeddings in the compute type, as lookup and output layer want them: whole rows, cut by words over `tensor`."""
    table = jnp.asarray(table, dtype)
    whole = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1  # told so, each use would sum its gradient by itself
    return table if whole else laid_out(table, "tensor", None)


def layer_norm(cfg: BertConfig, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics and the two-pass variance that small activations need."""
    return nn.LayerNorm(epsilon=cfg.layer_norm_eps, use_fast_variance=False, dtype=cfg.dtype, name=name)
