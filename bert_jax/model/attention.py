"""Chooses and calls an attention kernel. One rule serves padding and packing: tokens attend within a sequence id.

    xla        everywhere, with dropout, and where the probabilities are returned
    banded     XLA, in long rows with a window: each block of tokens attends to itself and the blocks beside it
    blockwise  XLA, in rows past BLOCKWISE_FROM tokens: some queries at a time, so that no [L, L] array is ever held
    splash     TPUs, long rows: Pallas' flash attention with segment ids (jax.experimental.pallas.ops.tpu.splash_attention)
    cudnn      NVIDIA GPUs, bfloat16: cuDNN's fused attention, through jax.nn.dot_product_attention

A kernel is chosen only if it computes the same model. The fused ones, splash and cudnn, have no dropout on the probabilities.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bert_jax.errors import InputError
from bert_jax.model.config import BertConfig, ComputeConfig
from bert_jax.model.layers import MESH_AXES, ROWS, AnyArray, dropout, inside_training_mesh

Kernel = Literal["xla", "banded", "blockwise", "splash", "cudnn"]
Wanted = Literal["auto", "xla", "splash", "cudnn"]  # see ComputeConfig.attention
MASKED = -1e9  # the score of a masked pair; finite, so that a row with nothing to attend to stays finite
SPLASH_FROM = 512  # tokens; below, XLA's attention takes less memory and no more time
BLOCKWISE_FROM = 2048  # tokens; above, scores of all pairs would take gigabytes
_QUERY_BLOCK = 128  # queries whose scores blockwise attention holds at a time
_BLOCK = 128  # splash takes multiples of it

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
    window: int | None = None,
    biased: bool = False,
    causal: bool = False,
) -> tuple[Kernel, str]:
    """Returns the kernel, and why.

    Args:
      wanted: `ComputeConfig.attention`.
      platform: "cpu", "gpu" or "tpu".
      length: Tokens of a row; in jax.export it may be a symbol.
      head_size: K.
      dtype: The compute type.
      rate: Dropout on the probabilities; 0 for none.
      query_length: Number of queries, where these are some of the tokens; None: all tokens, in order.
      wants_weights: The probabilities are returned, too.
      window: Tokens on each side that a token attends to; None: its whole sequence.
      biased: A bias is added to the scores.
      causal: Tokens of some rows attend to no later ones.

    Raises:
      InputError: the kernel that is wanted cannot compute this model here.
    """
    if not isinstance(length, int):
        return "xla", "rows of any length"
    if query_length is not None:
        return _xla(length, query_length, wants_weights, None, biased), "queries at some positions only"
    xla = _xla(length, length, wants_weights, window, biased)
    if wanted == "xla":
        return xla, "asked for"
    kernels: tuple[Any, ...] = ("splash", "cudnn") if wanted == "auto" else (wanted,)
    for kernel in kernels:
        obstacle = _obstacle(kernel, platform, length, head_size, dtype, rate, wants_weights, biased, causal)
        if obstacle is None and (wanted != "auto" or kernel != "splash" or length >= SPLASH_FROM):
            return kernel, f"on {platform}" if wanted == "auto" else "asked for"
        if wanted != "auto":
            raise InputError(f"attention={wanted!r}: {obstacle}, or set attention='xla' (or 'auto')")
    if platform == "cpu":
        return xla, "on cpu"
    if rate:
        return xla, f"attention_probs_dropout_prob={rate}: fused kernels have no dropout"
    if causal and platform == "tpu":
        return xla, "causal rows: splash attends to both sides"
    if biased:
        return xla, "relative biases: fused kernels cannot add them to the scores"
    return xla, f"{length} tokens of {dtype} in heads of {head_size} on {platform}"


def _xla(length: int, queries: int, wants_weights: bool, window: int | None, biased: bool) -> Kernel:
    """Returns the form of XLA's attention that takes the least memory and time."""
    if wants_weights or biased:
        return "xla"
    if window is not None and length >= 4 * window:  # fewer tokens than that, and most pairs are inside the window
        return "banded"
    return "blockwise" if length > BLOCKWISE_FROM and queries > _QUERY_BLOCK else "xla"


def _obstacle(
    kernel: str,
    platform: str,
    length: int,
    head_size: int,
    dtype: str,
    rate: float,
    wants_weights: bool,
    biased: bool,
    causal: bool,
) -> str | None:
    """Returns why a kernel cannot compute this, and what would help; None if it can."""
    home = {"splash": "tpu", "cudnn": "gpu"}[kernel]
    if platform != home:
        return f"it runs on {home.upper()}s, and this is a {platform}: use one"
    if rate:
        return f"it has no dropout on the probabilities: set attention_probs_dropout_prob={rate} to 0"
    if biased:
        return "it cannot add the relative biases of this model to the scores"
    if wants_weights:
        return "it does not return the probabilities that output_attentions asks for: leave that out"
    if kernel == "splash" and causal:
        return "it attends to both sides, also in causal rows: set masking.causal_share to 0"
    if kernel == "splash" and length % _BLOCK:
        return f"rows of {length} tokens are not a multiple of {_BLOCK}: set max_seq_length to one"
    if kernel == "cudnn" and dtype != "bfloat16":
        return f"it computes in bfloat16, not {dtype}: set dtype='bfloat16'"
    if kernel == "cudnn" and (head_size % 8 or head_size > 128 or length % 2):
        return f"it takes heads of 8, 16, ... 128 and an even length, not heads of {head_size} in rows of {length} tokens"
    if _mesh_is_foreign():
        return f"it works only on a mesh with the axes {', '.join(MESH_AXES)}: use one, or shard_map"
    return None


def describe(
    cfg: BertConfig, compute: ComputeConfig, platform: str, length: int, deterministic: bool, causal: bool = False
) -> str:  # fmt: skip
    """Returns in one line the kernels for rows of `length` tokens, the reason and, if dropout prevents a fused kernel, the cost.

    Raises:
      InputError: as `choose`.
    """
    rate = 0.0 if deterministic else cfg.attention_probs_dropout_prob
    shape = platform, length, cfg.hidden_size // cfg.num_attention_heads, compute.dtype
    biased = cfg.form.relative_positions in ("bias", "disentangled")

    def of_window(window: int | None) -> tuple[Kernel, str]:
        kernel, why = choose(compute.attention, *shape, rate, None, False, window, biased, causal)
        if rate and kernel != choose(compute.attention, *shape, 0.0, None, False, window, biased, causal)[0]:
            keys = length if window is None else 3 * window
            why += f", so {cfg.num_attention_heads} x {length} x {keys} probabilities are kept for each row and layer"
        return kernel, why

    windows = dict.fromkeys(cfg.layer(i).window for i in range(cfg.num_hidden_layers))
    chosen = {of_window(window): window for window in windows}
    return "attention by " + ", ".join(
        f"{kernel}{'' if window is None or len(chosen) == 1 else f' within {window} tokens'} ({why})"
        for (kernel, why), window in chosen.items()
    )


class Tokens(NamedTuple):
    """Facts about tokens that all layers share: those of a batch's rows, or of some of their tokens (queries).

    Attributes:
      sequence_ids: 0 is padding; a token attends to those of its own id. A token of -k attends to those of k, and none to it.
      places: Places in the row; None: all, in order.
      angles: Base of the rotary angles -> cosine and sine (see `rotary_angles`), where positions are rotary.
      bias: What relative positions add to the scores, where they do.
      relative: DeBERTa's relative embeddings.
      causal: Marks rows whose tokens attend to themselves and to those before them alone; None: no row.
    """

    sequence_ids: Int[AnyArray, "B L"]
    places: Int[AnyArray, "B L"] | None = None
    angles: dict[float, tuple[Float[Array, "B L J"], Float[Array, "B L J"]]] = {}  # noqa: RUF012 (never changed)
    bias: Float[Array, "#B H Q L"] | None = None
    relative: Float[Array, "S D"] | None = None
    causal: Bool[AnyArray, " B"] | None = None

    def at(self, positions: Int[AnyArray, "B P"] | None) -> Tokens:
        """Returns the facts about the tokens at `positions`; about all, if None."""
        if positions is None:
            return self
        ids = jnp.take_along_axis(jnp.asarray(self.sequence_ids), positions, axis=1)
        at = jnp.asarray(positions)[:, :, None]
        angles = {theta: (jnp.take_along_axis(cos, at, axis=1), jnp.take_along_axis(sin, at, axis=1))
                  for theta, (cos, sin) in self.angles.items()}  # fmt: skip
        bias = None if self.bias is None else jnp.take_along_axis(self.bias, at[:, None], axis=2)
        return Tokens(ids, jnp.asarray(positions), angles, bias, self.relative, self.causal)


def may_attend(queries: Tokens, tokens: Tokens, window: int | None = None) -> Bool[Array, "B 1 Q L"]:
    """Returns the mask of attention: tokens attend within a sequence id (0, padding, to padding only) and their window.

    In causal rows they attend to no later ones.
    """
    mask = jnp.abs(jnp.asarray(queries.sequence_ids))[:, :, None] == jnp.asarray(tokens.sequence_ids)[:, None, :]
    places = jnp.arange(tokens.sequence_ids.shape[1])
    ahead = places[None, None] - (places[None] if queries.places is None else jnp.asarray(queries.places))[:, :, None]
    if window is not None:
        mask &= jnp.abs(ahead) <= window
    if queries.causal is not None:
        mask &= (ahead <= 0) | ~jnp.asarray(queries.causal)[:, None, None]
    return mask[:, None]


def attention(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    queries: Tokens,
    tokens: Tokens,
    wanted: Wanted,
    dropout_rate: float,
    dropout_key: PRNGKeyArray | None,
    wants_weights: bool,
    window: int | None = None,
) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q L"] | None]:
    """Computes scaled dot-product attention with dropout on the probabilities (Vaswani et al., 2017, section 3.2.1).

    Softmax is in float32 whatever the compute type.

    Args:
      query: Of the tokens that `queries` describes.
      key: Of the tokens that `tokens` describes.
      value: Of the same.
      queries: All tokens of the rows, or some.
      tokens: All tokens of the rows.
      wanted: `ComputeConfig.attention`.
      dropout_rate: Rate of dropout.
      dropout_key: None: no dropout.
      wants_weights: Return the probabilities, before dropout.
      window: Tokens on each side that a token attends to; None: its whole sequence.

    Returns:
      The mixed values, and the probabilities or None.
    """
    platform, interpret = _compiling_for.get() or (jax.default_backend(), False)
    length, head_size = key.shape[1], key.shape[3]
    rate = 0.0 if dropout_key is None else dropout_rate
    some = None if queries.places is None else query.shape[1]
    args = wanted, platform, length, head_size, query.dtype.name, rate, some, wants_weights
    kernel, _ = choose(*args, window, queries.bias is not None, queries.causal is not None)
    if kernel == "splash":
        return _splash(query, key, value, jnp.asarray(tokens.sequence_ids), window, interpret), None
    if kernel == "cudnn":
        mask = may_attend(queries, tokens, window)
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn"), None
    # Heads first, by a copy of each: contracted as they come, XLA's CPU backend takes up to twice the time of the whole layer.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    drop = Drop(dropout_rate, dropout_key)
    weights = None
    if kernel == "banded" and window is not None:
        mixed = _banded(query, key, value, tokens, window, drop)
    elif kernel == "blockwise":
        mixed = _blockwise(query, key, value, queries, tokens, window, drop)
    else:
        mask = may_attend(queries, tokens, window)
        mixed, weights = _mix(query, key, value, mask, drop, queries.bias)
    return mixed.transpose(0, 2, 1, 3), weights


class Drop(NamedTuple):
    """Dropout on the probabilities: a rate and a key, None for none."""

    rate: float
    key: PRNGKeyArray | None


def _mix(
    query: Float[Array, "... Q K"],
    key: Float[Array, "... L K"],
    value: Float[Array, "... L K"],
    mask: Bool[Array, "... Q L"],
    drop: Drop,
    bias: Float[Array, "... Q L"] | None = None,
) -> tuple[Float[Array, "... Q K"], Float[Array, "... Q L"]]:
    """Returns the mixed values and the probabilities, all pairs of queries and tokens at once."""
    scaled = (query * query.shape[-1] ** -0.5).astype(query.dtype)
    scores = jnp.einsum("...lk,...mk->...lm", scaled, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores if bias is None else scores + bias, MASKED)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    powers = jnp.exp(scores - largest)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    dropped = dropout(powers, drop.rate, drop.key).astype(value.dtype)
    mixed = jnp.einsum("...lm,...mk->...lk", dropped, value, preferred_element_type=jnp.float32) / total
    return mixed.astype(value.dtype), powers / total


def _banded(
    query: Float[Array, "B H L K"],
    key: Float[Array, "B H L K"],
    value: Float[Array, "B H L K"],
    tokens: Tokens,
    window: int,
    drop: Drop,
) -> Float[Array, "B H L K"]:
    """Returns the mixed values of tokens that see `window` tokens on each side, with O(L * window) scores.

    A block has `window` tokens, at least 16: a token sees no further than the blocks beside its own.
    """
    length, block, ids = query.shape[2], max(window, 16), jnp.asarray(tokens.sequence_ids)
    number = -(-length // block)

    def blocks(x: Array, axis: int, fill: int = 0) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, number * block - length)
        x = jnp.pad(x, widths, constant_values=fill)
        return x.reshape(*x.shape[:axis], number, block, *x.shape[axis + 1 :])

    def with_neighbours(x: Array, axis: int, fill: int = 0) -> Array:
        x = blocks(x, axis, fill)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (1, 1)
        x = jnp.pad(x, widths, constant_values=fill)
        return jnp.concatenate([jax.lax.slice_in_dim(x, i, i + number, axis=axis) for i in range(3)], axis=axis + 1)

    ahead = (jnp.arange(3 * block) - block)[None] - jnp.arange(block)[:, None]
    within = (jnp.abs(ahead) <= window)[None, None]
    mask = (blocks(jnp.abs(ids), 1)[..., None] == with_neighbours(ids, 1, fill=-1)[:, :, None]) & within
    if tokens.causal is not None:
        mask &= (ahead <= 0)[None, None] | ~jnp.asarray(tokens.causal)[:, None, None, None]
    mixed, _ = _mix(blocks(query, 2), with_neighbours(key, 2), with_neighbours(value, 2), mask[:, None], drop)
    return mixed.reshape(*query.shape[:2], number * block, -1)[:, :, :length]


def _blockwise(
    query: Float[Array, "B H Q K"],
    key: Float[Array, "B H L K"],
    value: Float[Array, "B H L K"],
    queries: Tokens,
    tokens: Tokens,
    window: int | None,
    drop: Drop,
) -> Float[Array, "B H Q K"]:
    """Returns the mixed values with the scores of a block of queries at a time; the backward pass computes them again."""
    number, length = -(-query.shape[2] // _QUERY_BLOCK), query.shape[2]
    ids = jnp.asarray(queries.sequence_ids)
    places = jnp.broadcast_to(jnp.arange(length)[None], ids.shape) if queries.places is None else jnp.asarray(queries.places)

    def blocks(x: Array, axis: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, number * _QUERY_BLOCK - length)
        x = jnp.pad(x, widths)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], number, _QUERY_BLOCK, *x.shape[axis + 1 :]), axis, 0)

    @jax.checkpoint
    def mix(block: tuple[Array, Array, Array, Array]) -> Array:
        query, ids, places, number = block
        key_of_block = None if drop.key is None else jax.random.fold_in(drop.key, number)
        mask = may_attend(Tokens(ids, places, causal=queries.causal), tokens, window)
        return _mix(query, key, value, mask, Drop(drop.rate, key_of_block))[0]

    mixed = jax.lax.map(mix, (blocks(query, 2), blocks(ids, 1), blocks(places, 1), jnp.arange(number)))
    return jnp.moveaxis(mixed, 0, 2).reshape(*query.shape[:2], number * _QUERY_BLOCK, -1)[:, :, :length]


def _splash(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    ids: Int[Array, "B L"],
    window: int | None,
    interpret: bool,
) -> Float[Array, "B L H K"]:
    """Calls Pallas' kernel device by device: the compiler cannot cut it over a mesh by itself."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # imported where it is used: it is large

    def of_device(query: Array, key: Array, value: Array, ids: Array) -> Array:
        length, heads, head_size = query.shape[1:]
        block = next(n for n in (512, 256, _BLOCK) if length % n == 0)
        shape = (length, length)
        mask = splash.FullMask(shape) if window is None else splash.LocalMask(shape, (window, window), 0)
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * heads),
            block_sizes=splash.BlockSizes(
                block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
                block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
            ),
            head_shards=1, q_seq_shards=1, interpret=interpret,
        )  # fmt: skip

        def row(query: Array, key: Array, value: Array, ids: Array) -> Array:
            return kernel(query, key, value, segment_ids=splash.SegmentIds(q=jnp.abs(ids), kv=ids))

        scaled = (query * head_size**-0.5).astype(query.dtype)
        query, key, value = (x.transpose(0, 2, 1, 3) for x in (scaled, key, value))  # heads first
        return jax.vmap(row)(query, key, value, ids).transpose(0, 2, 1, 3)

    if not inside_training_mesh():
        return of_device(query, key, value, ids)
    heads, rows = PartitionSpec(ROWS, None, "tensor", None), PartitionSpec(ROWS, None)
    cut = jax.shard_map(of_device, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return cut(query, key, value, ids)


def _mesh_is_foreign() -> bool:
    """Tells if arrays are sharded over a mesh other than the training's; inside pmap and shard_map they are not."""
    mesh = jax.sharding.get_abstract_mesh()
    return not inside_training_mesh() and any(kind != AxisType.Manual for kind in mesh.axis_types)
