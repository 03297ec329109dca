"""The one door to attention kernels: sequence ids in, one rule for padding and packing.

    xla     everywhere, with dropout, and where probabilities are asked for
    splash  TPUs, long rows: Pallas' flash attention with segment ids (jax.experimental.pallas.ops.tpu.splash_attention)
    cudnn   NVIDIA GPUs, bfloat16: cuDNN's fused attention, by jax.nn.dot_product_attention

A kernel is chosen only where it computes the same model: none of them has dropout on the probabilities.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bert_jax.errors import InputError
from bert_jax.model.config import BertConfig, ComputeConfig
from bert_jax.model.layers import MESH_AXES, ROWS, dropout, inside_training_mesh

AnyArray: TypeAlias = Array | np.ndarray  # what callers may give
Kernel = Literal["xla", "splash", "cudnn"]
Wanted = Literal["auto", "xla", "splash", "cudnn"]  # see ComputeConfig.attention
MASKED = -1e9  # added in float32; finite, so that a row with nothing to attend to stays finite
SPLASH_FROM = 512  # tokens; below, XLA's attention takes less memory and no more time
_BLOCK = 128  # tokens that splash takes at a time are multiples of it

_compiling_for: ContextVar[tuple[str, bool] | None] = ContextVar("_compiling_for", default=None)


@contextlib.contextmanager
def for_platform(platform: str, interpret: bool = False) -> Iterator[None]:
    """Makes what is traced inside choose kernels for a platform ("cpu", "gpu", "tpu") other than the current one.

    For ahead-of-time compilation. `interpret` runs TPU kernels on any platform, slowly: for tests.
    """
    token = _compiling_for.set((platform, interpret))
    try:
        yield
    finally:
        _compiling_for.reset(token)


def choose(
    wanted: str,
    platform: str,
    length: Any,
    head_size: int,
    dtype: str,
    rate: float,
    query_length: Any = None,
    wants_weights: bool = False,
) -> tuple[Kernel, str]:
    """The kernel, and why.

    Args:
      wanted: `ComputeConfig.attention`.
      platform: "cpu", "gpu" or "tpu".
      length: tokens of a row; in jax.export it may be a symbol.
      head_size: K.
      dtype: the compute type.
      rate: dropout on the probabilities, 0 where there is none.
      query_length: tokens that ask, if these are not all (None): then it is XLA.
      wants_weights: whether the probabilities are asked for.

    Raises InputError where a kernel is wanted that cannot compute this model here.
    """
    if not isinstance(length, int):
        return "xla", "rows of any length"
    if query_length not in (None, length):
        return "xla", "queries at some positions only"
    if wanted == "xla":
        return "xla", "asked for"
    kernels: tuple[Any, ...] = ("splash", "cudnn") if wanted == "auto" else (wanted,)
    for kernel in kernels:
        obstacle = _obstacle(kernel, platform, length, head_size, dtype, rate, wants_weights)
        if obstacle is None and (wanted != "auto" or kernel != "splash" or length >= SPLASH_FROM):
            return kernel, f"on {platform}" if wanted == "auto" else "asked for"
        if wanted != "auto":
            raise InputError(f"attention={wanted!r}: {obstacle}, or set attention='xla' (or 'auto')")
    if platform == "cpu":
        return "xla", "on cpu"
    if rate:
        return "xla", f"attention_probs_dropout_prob={rate}: fused kernels have no dropout"
    return "xla", f"{length} tokens of {dtype} in heads of {head_size} on {platform}"


def _obstacle(
    kernel: str, platform: str, length: int, head_size: int, dtype: str, rate: float, wants_weights: bool
) -> str | None:
    """Why a kernel cannot compute this, with what would help; None where it can."""
    home = {"splash": "tpu", "cudnn": "gpu"}[kernel]
    if platform != home:
        return f"it runs on {home.upper()}s, and this is a {platform}: take one"
    if rate:
        return f"it has no dropout on the probabilities: set attention_probs_dropout_prob={rate} to 0"
    if wants_weights:
        return "it does not give the probabilities that output_attentions asks for: leave that out"
    if kernel == "splash" and length % _BLOCK:
        return f"rows of {length} tokens are no multiple of {_BLOCK}: set max_seq_length to one"
    if kernel == "cudnn" and dtype != "bfloat16":
        return f"it computes in bfloat16, not {dtype}: set dtype='bfloat16'"
    if kernel == "cudnn" and (head_size % 8 or head_size > 128 or length % 2):
        return f"heads of {head_size} and rows of {length} tokens are not what it takes: at most 128, by 8, and an even length"
    if _mesh_is_foreign():
        return f"it knows no mesh but one with axes {', '.join(MESH_AXES)}: use that, or shard_map"
    return None


def describe(cfg: BertConfig, compute: ComputeConfig, platform: str, length: int, deterministic: bool) -> str:
    """Returns in one line the kernel for rows of `length` tokens, the reason and, if dropout prevents a fused kernel, the cost.

    Raises InputError as `choose` does.
    """
    rate = 0.0 if deterministic else cfg.attention_probs_dropout_prob
    shape = platform, length, cfg.hidden_size // cfg.num_attention_heads, compute.dtype
    kernel, why = choose(compute.attention, *shape, rate)
    if rate and kernel != choose(compute.attention, *shape, 0.0)[0]:
        why += f", so {cfg.num_attention_heads} x {length} x {length} probabilities are kept for each row and layer"
    return f"attention by {kernel} ({why})"


def same_sequence(asking: Int[AnyArray, "B Q"], ids: Int[AnyArray, "B L"]) -> Bool[Array, "B 1 Q L"]:
    """Returns the mask of attention: tokens attend within a sequence id (0 is padding, which attends to padding only)."""
    return (jnp.asarray(asking)[:, :, None] == jnp.asarray(ids)[:, None, :])[:, None]


def attention(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    asking: Int[AnyArray, "B Q"],
    sequence_ids: Int[AnyArray, "B L"],
    wanted: Wanted,
    dropout_rate: float,
    dropout_key: PRNGKeyArray | None,
    wants_weights: bool,
) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q L"] | None]:
    """Scaled dot-product attention with dropout on the probabilities (Vaswani et al., 2017, section 3.2.1).

    `asking` are the sequence ids of the queries. Returns the mixed values and the probabilities before dropout, None of a kernel
    that does not give them. Softmax is in float32 whatever the compute type. A `dropout_key` of None means no dropout.
    """
    platform, interpret = _compiling_for.get() or (jax.default_backend(), False)
    length, head_size = key.shape[1], key.shape[3]
    rate = 0.0 if dropout_key is None else dropout_rate
    kernel, _ = choose(wanted, platform, length, head_size, query.dtype.name, rate, query.shape[1], wants_weights)
    if kernel == "splash":
        return _splash(query, key, value, jnp.asarray(sequence_ids), interpret), None
    mask = same_sequence(asking, sequence_ids)
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn"), None
    # Heads first, by a copy of each: contracted as they come, XLA's CPU backend takes up to twice the time of the whole layer.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    scores = jnp.einsum("bhlk,bhmk->bhlm", query, key, preferred_element_type=jnp.float32) * head_size**-0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    dropped = dropout(weights, dropout_rate, dropout_key).astype(value.dtype)
    return jnp.einsum("bhlm,bhmk->bhlk", dropped, value).transpose(0, 2, 1, 3), weights


def _splash(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    ids: Int[Array, "B L"],
    interpret: bool,
) -> Float[Array, "B L H K"]:
    """Pallas' kernel, device by device: the compiler cannot cut it over a mesh by itself."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # imported where there is a use: it is large

    def of_device(query: Array, key: Array, value: Array, ids: Array) -> Array:
        length, heads, head_size = query.shape[1:]
        block = next(n for n in (512, 256, _BLOCK) if length % n == 0)
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([splash.FullMask((length, length))] * heads),
            block_sizes=splash.BlockSizes(
                block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
                block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
            ),
            head_shards=1, q_seq_shards=1, interpret=interpret,
        )  # fmt: skip

        def row(query: Array, key: Array, value: Array, ids: Array) -> Array:
            return kernel(query, key, value, segment_ids=splash.SegmentIds(q=ids, kv=ids))

        scaled = (query * head_size**-0.5).astype(query.dtype)
        query, key, value = (x.transpose(0, 2, 1, 3) for x in (scaled, key, value))  # heads first
        return jax.vmap(row)(query, key, value, ids).transpose(0, 2, 1, 3)

    if not inside_training_mesh():
        return of_device(query, key, value, ids)
    heads, rows = PartitionSpec(ROWS, None, "tensor", None), PartitionSpec(ROWS, None)
    cut = jax.shard_map(of_device, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return cut(query, key, value, ids)


def _mesh_is_foreign() -> bool:
    """Tells if a mesh shards arrays and is not the training's; inside pmap and shard_map none does."""
    mesh = jax.sharding.get_abstract_mesh()
    return not inside_training_mesh() and any(kind != AxisType.Manual for kind in mesh.axis_types)
