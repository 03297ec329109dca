"""The parts of a layer: dense, norm, dropout and activations, as in BERT."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from bert_jax.model.config import BertConfig

PRODUCT = "product"  # what recomputation may be told to keep: outputs of dense layers
MESH_AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what rows of a batch are laid over


def inside_training_mesh() -> bool:
    """Tells if traced arrays are sharded over the mesh of `training.parallel`; inside pmap and shard_map they are not."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.axis_names == MESH_AXES and all(kind == AxisType.Auto for kind in mesh.axis_types)


def laid_out(x: Array, *axes: Any) -> Array:
    """`x` with its dimensions laid over these axes (None: whole) of the training mesh; as it is where there is no such mesh.

    The compiler derives all else from the parameters' and the batch's shardings. Told once a layer that rows stay where they
    are, it moves parameters to them (fsdp), never hidden states to the parameters.
    """
    if not inside_training_mesh():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    sizes = (math.prod(mesh.shape[name] for name in ([axis] if isinstance(axis, str) else axis or ())) for axis in axes)
    fitting = [axis if n % size == 0 else None for axis, n, size in zip(axes, x.shape, sizes, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fitting))


@jax.checkpoint
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function at x, exactly (Hendrycks and Gimpel, 2016). In float32.

    Written with erf: `jax.nn.gelu` goes through erfc, which costs twice as much on CPUs. The backward pass computes erf again:
    what it would read instead, float32 arrays of the inner layer's size, is most of what a layer keeps, and no faster.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


_tanh_gelu = partial(jax.nn.gelu, approximate=True)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {  # by the names of transformers' activations.py
    **dict.fromkeys(("gelu", "gelu_python"), gelu),
    "gelu_10": lambda x: jnp.clip(gelu(x), -10, 10),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), _tanh_gelu),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    **dict.fromkeys(("silu", "swish"), jax.nn.silu),
}


def threefry(key: UInt32[Array, "2"], low: UInt32[Array, "..."], high: UInt32[Array, "..."]) -> tuple[Array, Array]:
    """Two words of random bits for each count (low, high): Threefry-2x32 of 20 rounds (Salmon et al., 2011).

    The generator of `jax.random`, but written out, so that the compiler fuses it with what reads the bits: on CPUs `jax.random`
    draws in a loop through memory, and of a block's two words it gives one.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    a, b = low + keys[0], high + keys[1]
    for fours in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[fours % 2]:
            a = a + b
            b = ((b << np.uint32(rotation)) | (b >> np.uint32(32 - rotation))) ^ a
        a, b = a + keys[(fours + 1) % 3], b + keys[(fours + 2) % 3] + np.uint32(fours + 1)
    return a, b


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Zeroes a share `rate` (to 1/65536) of `x` and scales up the rest; the identity where `key` is None.

    Four elements share a block of random bits, which depends on the key and their place alone, however `x` is laid over devices.
    """
    threshold = round(rate * 2**16)
    if key is None or threshold == 0:
        return x
    shape = (1, *x.shape[:-1], -(-x.shape[-1] // 4))[-max(2, x.ndim) :]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    row, *inner = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape)))
    place = jnp.asarray(sum(index * np.uint32(stride) for index, stride in zip(inner, strides[1:], strict=True)))
    words = threefry(jax.random.key_data(key)[:2], place, row)
    halves = [half for word in words for half in (word & np.uint32(0xFFFF), word >> np.uint32(16))]
    keep = jnp.concatenate([half >= np.uint32(threshold) for half in halves], axis=-1)[..., : x.shape[-1]].reshape(x.shape)
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


@jax.custom_vjp
def affine(x: Float[Array, "N D"], kernel: Float[Array, "D F"], bias: Float[Array, " F"]) -> Float[Array, "N F"]:
    """x @ kernel + bias in the type of `x`, with the gradients of kernel and bias in their own: summed over tokens and devices as
    float32, where the rule for a cast would sum in the compute type and cast what comes out."""
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _affine_forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return affine(x, kernel, bias), (x, kernel)


def _affine_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    x, kernel = kept
    of_kernel = jax.lax.dot_general(x, dy, (((0,), (0,)), ((), ())), preferred_element_type=kernel.dtype)
    return dy @ kernel.astype(x.dtype).T, of_kernel, jnp.sum(dy, axis=0, dtype=kernel.dtype)


affine.defvjp(_affine_forward, _affine_backward)


class Dense(nn.Module):
    """A dense layer with BERT's initialisation. It computes in the type of its input."""

    cfg: BertConfig
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        kernel = self.param("kernel", initializer(self.cfg), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # All leading axes as one: then the kernel's gradient contracts one axis, and XLA's CPU backend need not transpose for it.
        flat = x.reshape(-1, x.shape[-1])
        kernel, bias = jnp.asarray(kernel), jnp.asarray(bias)
        plain = flat.dtype == kernel.dtype  # and forward-mode derivatives exist
        y = flat @ kernel + bias if plain else affine(flat, kernel, bias)
        return checkpoint_name(y, PRODUCT).reshape(*x.shape[:-1], self.features)


def word_table(table: Float[Array | np.ndarray, "V E"]) -> Float[Array, "V E"]:
    """The word embeddings as lookup and output layer want them: whole rows, cut by words over `tensor`."""
    table = jnp.asarray(table)
    whole = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1  # told so, each use would sum its gradient by itself
    return table if whole else laid_out(table, "tensor", None)


@jax.custom_vjp
def _mixed_logits(x: Float[Array, "B P E"], table: Float[Array, "V E"]) -> Float[Array, "B P V"]:
    return jnp.einsum("bpe,ve->bpv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)


def _mixed_logits_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, table = kept
    dy = dy.astype(x.dtype)
    of_table = jnp.einsum("bpv,bpe->ve", dy, x, preferred_element_type=table.dtype)
    return jnp.einsum("bpv,ve->bpe", dy, table.astype(x.dtype)), of_table


_mixed_logits.defvjp(lambda x, table: (_mixed_logits(x, table), (x, table)), _mixed_logits_backward)


def tied_logits(x: Float[Array, "B P E"], table: Float[Array, "V E"]) -> Float[Array, "B P V"]:
    """The products of `x` with each word's embedding, in float32; the table's gradient as that of `affine`."""
    if x.dtype != table.dtype:
        return _mixed_logits(x, table)
    return jnp.einsum("bpe,ve->bpv", x, table, preferred_element_type=jnp.float32)


def nowhere_if_negative(ids: Int[Array | np.ndarray, "..."]) -> Int[Array, "..."]:
    """Ids below 0 become one past the end of any array: indexing with that gives NaN, where -1 would give the last row."""
    ids = jnp.asarray(ids)
    wide = ids if jnp.iinfo(ids.dtype).bits >= 32 else ids.astype(jnp.int32)
    return jnp.where(wide < 0, np.iinfo(np.int32).max, wide)


def layer_norm(cfg: BertConfig, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """Returns a LayerNorm with outputs of type `dtype`.

    Its statistics are float32, and its variance takes two passes, which small activations need. The backward pass keeps the
    input alone, as that of `gelu` does.
    """
    return nn.remat(nn.LayerNorm)(epsilon=cfg.layer_norm_eps, use_fast_variance=False, dtype=dtype, name=name)
