"""The parts of a layer: dense, norm, dropout and activations, as in BERT."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from bert_jax.model.config import BertConfig

AnyArray: TypeAlias = Array | np.ndarray  # callers may give either
PRODUCT = "product"  # name of the outputs of dense layers, which recomputation may keep
MESH_AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # axes that the rows of a batch are laid over


def inside_training_mesh() -> bool:
    """Tells if traced arrays are sharded over the mesh of `training.parallel`; inside pmap and shard_map they are not."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.axis_names == MESH_AXES and all(kind == AxisType.Auto for kind in mesh.axis_types)


def laid_out(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Returns `x` with its dimensions laid over these axes (None: whole) of the training mesh; without that mesh, `x` itself.

    The compiler derives all other layouts from those of the parameters and the batch. One constraint a layer, that rows stay
    where they are, makes it move parameters to the rows (fsdp), never hidden states to the parameters.
    """
    if not inside_training_mesh():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    sizes = (math.prod(mesh.shape[name] for name in ([axis] if isinstance(axis, str) else axis or ())) for axis in axes)
    fitting = [axis if n % size == 0 else None for axis, n, size in zip(axes, x.shape, sizes, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fitting))


@jax.checkpoint
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x times the normal distribution function at x, exactly (Hendrycks and Gimpel, 2016), computed in float32.

    It uses erf: `jax.nn.gelu` uses erfc, which costs twice as much on CPUs. The backward pass computes erf again: the float32
    arrays that it would read instead are most of a layer's memory, and reading them is no faster.
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
    """Returns two words of random bits for each count (low, high): Threefry-2x32 of 20 rounds (Salmon et al., 2011).

    This is the generator of `jax.random`, written out so that the compiler fuses it with the code that reads the bits. On CPUs
    `jax.random` draws in a loop through memory, and returns one of a block's two words.
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
    """Zeroes a share `rate` (to 1/65536) of `x` and scales up the rest; returns `x` if `key` is None.

    Four elements share a block of random bits. It depends on the key and their place alone, however `x` is laid over devices.
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
    """Applies `dropout` with a key of the module's "dropout" stream."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], deterministic: bool) -> Float[Array, "..."]:
        return dropout(x, self.rate, None if deterministic or self.rate == 0 else self.make_rng("dropout"))


def initializer(cfg: BertConfig) -> jax.nn.initializers.Initializer:
    """Returns BERT's truncated normal, cut at two sigma and not corrected for the cut (modeling.py, create_initializer)."""
    return jax.nn.initializers.truncated_normal(cfg.initializer_range)


@jax.custom_vjp
def affine(x: Float[Array, "N D"], kernel: Float[Array, "D F"], bias: Float[Array, " F"] | None) -> Float[Array, "N F"]:
    """Returns x @ kernel + bias in the type of `x`.

    The gradients of kernel and bias are summed over tokens and devices in their own type, float32. The gradient of a cast would
    be summed in the compute type and cast afterwards.
    """
    y = x @ kernel.astype(x.dtype)
    return y if bias is None else y + bias.astype(x.dtype)[None]


def _affine_forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple[Array, Array, Array | None]]:
    return affine(x, kernel, bias), (x, kernel, bias)


def _affine_backward(kept: tuple[Array, Array, Array | None], dy: Array) -> tuple[Array, Array, Array | None]:
    x, kernel, bias = kept
    of_kernel = jax.lax.dot_general(x, dy, (((0,), (0,)), ((), ())), preferred_element_type=kernel.dtype)
    return dy @ kernel.astype(x.dtype).T, of_kernel, None if bias is None else jnp.sum(dy, axis=0, dtype=bias.dtype)


affine.defvjp(_affine_forward, _affine_backward)


class Dense(nn.Module):
    """A dense layer with BERT's initialisation. It computes in the type of its input."""

    cfg: BertConfig
    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        kernel = jnp.asarray(self.param("kernel", initializer(self.cfg), (x.shape[-1], self.features)))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else None
        # All leading axes as one: then the kernel's gradient contracts one axis, and XLA's CPU backend need not transpose for it.
        flat = x.reshape(-1, x.shape[-1])
        if flat.dtype != kernel.dtype:
            y = affine(flat, kernel, bias)
        else:  # forward-mode derivatives exist
            y = flat @ kernel if bias is None else flat @ kernel + bias[None]
        return checkpoint_name(y, PRODUCT).reshape(*x.shape[:-1], self.features)


def word_table(table: Float[Array | np.ndarray, "V E"]) -> Float[Array, "V E"]:
    """Returns the word embeddings laid out for the lookup and the output layer: whole rows, cut by words over `tensor`."""
    table = jnp.asarray(table)
    whole = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1  # a constraint would sum the gradient at each use
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
    """Returns the products of `x` with each word's embedding, in float32; the table's gradient is as in `affine`."""
    if x.dtype != table.dtype:
        return _mixed_logits(x, table)
    return jnp.einsum("bpe,ve->bpv", x, table, preferred_element_type=jnp.float32)


class Decoder(NamedTuple):
    """An output layer that has not been applied.

    Attributes:
      inputs: What it would be applied to.
      table: A row for each word.
      bias: A number for each word.
    """

    inputs: Float[Array, "B P E"]
    table: Float[Array, "V E"]
    bias: Float[Array, " V"] | None

    def logits(self) -> Float[Array, "B P V"]:
        """Returns the products of the inputs with each word's row, and the bias."""
        logits = tied_logits(self.inputs, self.table)
        return logits if self.bias is None else logits + self.bias[None, None]


def nowhere_if_negative(ids: Int[Array | np.ndarray, "..."]) -> Int[Array, "..."]:
    """Returns the ids with those below 0 past the end of any array: indexing with these gives NaN, with -1 the last row."""
    ids = jnp.asarray(ids)
    wide = ids if jnp.iinfo(ids.dtype).bits >= 32 else ids.astype(jnp.int32)
    return jnp.where(wide < 0, np.iinfo(np.int32).max, wide)


def norm(cfg: BertConfig, dtype: DTypeLike, name: str) -> nn.Module:
    """Returns the norm of the config's form, a LayerNorm or an RMSNorm, with outputs of type `dtype`.

    Its statistics are float32, and the variance takes two passes, which small activations need. The backward pass keeps the
    input alone, like that of `gelu`.
    """
    if cfg.form.norm == "rms_norm":
        return nn.remat(nn.RMSNorm)(epsilon=cfg.layer_norm_eps, use_fast_variance=False, dtype=dtype, name=name)
    return nn.remat(nn.LayerNorm)(
        epsilon=cfg.layer_norm_eps, use_bias=cfg.form.norm_bias, use_fast_variance=False, dtype=dtype, name=name
    )


def rotary_angles(
    position_ids: Int[Array, "B L"], theta: float, head_size: int, ntk_factor: float = 1.0
) -> tuple[Float[Array, "B L J"], Float[Array, "B L J"]]:
    """Returns cosine and sine of position * theta^(-2j/K) for j < J = K/2 (Su et al., 2021), in float32.

    With a factor s, Alibaba's fixed NTK scaling: (theta * s)^(-2j/K) / s^(2/K). A position below 0 is none, and gives NaN.
    """
    exponents = np.arange(0, head_size, 2) / head_size
    frequencies = (theta * ntk_factor) ** -exponents / ntk_factor ** (2 / head_size)
    positions = jnp.where(position_ids < 0, jnp.nan, position_ids.astype(jnp.float32))
    angles = positions[:, :, None] * jnp.asarray(frequencies, jnp.float32)[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B L H K"], cos: Float[Array, "B L J"], sin: Float[Array, "B L J"], interleaved: bool = False
) -> Float[Array, "B L H K"]:
    """Returns `x` with the pairs (x[j], x[j + K/2]) of each head rotated by their angles, computed in float32.

    If `interleaved`, the pairs are (x[2j], x[2j + 1]); they are returned at j and j + K/2, which changes no product of two heads.
    """
    wide = x.astype(jnp.float32)
    first, second = (wide[..., ::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
