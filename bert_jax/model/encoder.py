"""The encoder as functional Flax Linen modules: embeddings, the layer that a config's form describes, and the stack of layers.

Axes: B rows, L tokens of a row, E embedding size, D hidden size, H heads, K head size, J = K/2, M intermediate size, Q queries, P
prediction slots of a row, S sequences packed in a row, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from bert_jax.model import disentangled
from bert_jax.model.attention import Tokens, Wanted, attention, may_attend
from bert_jax.model.config import BertConfig, ComputeConfig, LayerKind
from bert_jax.model.convert import Params
from bert_jax.model.layers import (
    ACTIVATIONS,
    PRODUCT,
    ROWS,
    AnyArray,
    Dense,
    Dropout,
    initializer,
    laid_out,
    norm,
    nowhere_if_negative,
    rotary_angles,
    rotate,
    word_table,
)

REMAT_POLICIES = {  # ComputeConfig.remat -> what the backward pass keeps; with other values it keeps everything
    "full": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),  # attention's scores and probabilities are recomputed
}


class Embeddings(nn.Module):
    """Word embeddings, with position and token-type embeddings where the form has them, normalised and dropped out.

    `position_ids` are rows of the position table (`heads.complete` makes them of a batch's). An id without a row gives NaN.
    """

    cfg: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_ids: Int[AnyArray, "B L"],
        token_type_ids: Int[AnyArray, "B L"],
        position_ids: Int[AnyArray, "B L"],
        sequence_ids: Int[AnyArray, "B L"],
        deterministic: bool,
    ) -> Float[Array, "B L E"]:
        cfg = self.cfg

        def table(rows: int, name: str, **kwargs: Any) -> nn.Embed:
            width = cfg.embedding_size or cfg.hidden_size
            return nn.Embed(rows, width, embedding_init=initializer(cfg), name=name, **kwargs)

        def promoted(table: AnyArray, dtype: DTypeLike | None, inexact: bool) -> tuple[Array]:
            return (word_table(table),)

        x = table(cfg.vocab_size, "word_embeddings", promote_dtype=promoted)(nowhere_if_negative(input_ids))
        if cfg.form.token_dropout:
            x = _scaled_for_masks(x, jnp.equal(jnp.asarray(input_ids), cfg.mask_token_id or 0), sequence_ids)
        if cfg.form.position_table:
            x += table(cfg.max_position_embeddings, "position_embeddings")(nowhere_if_negative(position_ids))
        if cfg.type_vocab_size:
            x += table(cfg.type_vocab_size, "token_type_embeddings")(nowhere_if_negative(token_type_ids))
        if cfg.type_vocab_size == 1:  # nn.Embed then looks nothing up
            x = jnp.where(jnp.asarray(token_type_ids)[..., None] == 0, x, jnp.nan)
        if cfg.embedding_size is not None and cfg.form.inner_projection:
            x = Dense(cfg, cfg.hidden_size, use_bias=False, name="projection")(x)
        # The tables are looked up and added in float32, and so are the sums of their gradients over tokens.
        x = norm(cfg, self.dtype, "norm")(x) if cfg.form.embedding_norm else x.astype(self.dtype)
        rate = cfg.hidden_dropout_prob if cfg.embedding_dropout_prob is None else cfg.embedding_dropout_prob
        return Dropout(rate)(x, deterministic)


def _scaled_for_masks(
    x: Float[Array, "B L E"], masked: Bool[Array, "B L"], sequence_ids: Int[AnyArray, "B L"]
) -> Float[Array, "B L E"]:
    """Returns ESM-2's embeddings: zeros at mask tokens, the others scaled as if 15 % * 80 % of a sequence were masked."""
    tokens = Tokens(sequence_ids)
    own = may_attend(tokens, tokens)[:, 0].astype(jnp.float32)
    share = (own @ masked.astype(jnp.float32)[:, :, None])[..., 0] / own.sum(axis=-1)
    return jnp.where(masked[..., None], 0, x * ((1 - 0.15 * 0.8) / (1 - share))[..., None])


class SelfAttention(nn.Module):
    """Multi-head self-attention with its output projection."""

    cfg: BertConfig
    kind: LayerKind
    kernel: Wanted = "auto"

    @nn.compact
    def __call__(
        self,
        asking: Float[Array, "B Q D"],
        queries: Tokens,
        x: Float[Array, "B L D"],
        tokens: Tokens,
        deterministic: bool,
        wants_weights: bool = False,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B H Q L"] | None]:
        cfg, form, theta = self.cfg, self.cfg.form, self.kind.theta
        heads, size = cfg.num_attention_heads, cfg.hidden_size // cfg.num_attention_heads
        groups = cfg.num_key_value_heads or heads

        def project(name: str, heads: int) -> Callable[[Array], Array]:
            dense = Dense(cfg, heads * size, form.attention_bias, name=name)
            return lambda x: dense(x).reshape(*x.shape[:-1], heads, size)

        to = {name: project(name, heads if name == "query" else groups) for name in ("query", "key", "value")}
        query, key, value = to["query"](asking), to["key"](x), to["value"](x)
        if theta is not None:
            pairs = form.rope_interleaved
            query, key = rotate(query, *queries.angles[theta], pairs), rotate(key, *tokens.angles[theta], pairs)
        if tokens.relative is not None:
            relative = Dropout(cfg.hidden_dropout_prob)(tokens.relative.astype(x.dtype), deterministic)
            own = {} if form.share_att_key else {"key": "position_key", "query": "position_query"}
            terms = {name: to[name] if not own else project(own[name], heads)
                     for term, name in (("c2p", "key"), ("p2c", "query")) if term in form.pos_att_type}  # fmt: skip
            positions = {name: project_one(relative) for name, project_one in terms.items()}
            query = query * jnp.asarray(disentangled.scale(form), query.dtype)
            bias = disentangled.position_scores(query, key, positions.get("key"), positions.get("query"), queries, cfg)
            queries = queries._replace(bias=bias)
        if groups < heads:
            key, value = (jnp.repeat(x, heads // groups, axis=2) for x in (key, value))
        rate = 0.0 if deterministic else cfg.attention_probs_dropout_prob
        dropout_key = self.make_rng("dropout") if rate else None
        mixed, weights = attention(
            query, key, value, queries, tokens, self.kernel, rate, dropout_key, wants_weights, self.kind.window
        )
        return Dense(cfg, cfg.hidden_size, form.attention_bias, name="output")(mixed.reshape(asking.shape)), weights


class Mlp(nn.Module):
    """The feed-forward sublayer, gated where the form says so (Shazeer, 2020)."""

    cfg: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], deterministic: bool = True) -> Float[Array, "B L D"]:
        cfg, form = self.cfg, self.cfg.form
        inner = Dense(cfg, cfg.intermediate_size, form.mlp_bias, name="intermediate")(x)
        if form.gated_mlp:
            inner *= ACTIVATIONS[cfg.hidden_act](Dense(cfg, cfg.intermediate_size, form.mlp_bias, name="gate")(x))
        else:
            inner = ACTIVATIONS[cfg.hidden_act](inner)
        inner = Dropout(cfg.mlp_dropout_prob)(inner, deterministic)
        out_bias = form.mlp_bias if form.mlp_output_bias is None else form.mlp_output_bias
        return Dense(cfg, cfg.hidden_size, out_bias, name="output")(inner)


class EncoderLayer(nn.Module):
    """A Transformer layer: attention and feed-forward, each added to its input, with norms before or after (see `Form`).

    With `positions`, it returns its output at those positions alone: they attend to all of `x`, but nothing else is computed for
    the other tokens. Where `normed` is given and false, the norm before attention is left out.
    """

    cfg: BertConfig
    kind: LayerKind = LayerKind(None, None, True)
    kernel: Wanted = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        tokens: Tokens,
        deterministic: bool,
        positions: Int[AnyArray, "B P"] | None = None,
        wants_weights: bool = False,
        normed: Bool[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B H Q L"] | None]:
        before = self.cfg.form.norm_placement == "pre"
        norms = {name: norm(self.cfg, x.dtype, name) for name in ("attention_norm", "mlp_norm")}

        def at(x: Array) -> Array:
            return x if positions is None else jnp.take_along_axis(x, jnp.asarray(positions)[:, :, None], axis=1)

        def drop(x: Array) -> Array:
            return Dropout(self.cfg.hidden_dropout_prob)(x, deterministic)

        attend = SelfAttention(self.cfg, self.kind, self.kernel, name="attention")
        reads = norms["attention_norm"](x) if before and self.kind.attention_norm else x
        if normed is not None:
            reads = jnp.where(normed, reads, x)
        mixed, weights = attend(at(reads), tokens.at(positions), reads, tokens, deterministic, wants_weights)
        x = at(x) + drop(mixed)
        if not before:
            x = norms["attention_norm"](x)
        x = x + drop(Mlp(self.cfg, name="mlp")(norms["mlp_norm"](x) if before else x, deterministic))
        return x if before else norms["mlp_norm"](x), weights


class RelativeBias(nn.Module):
    """One bias for each head and bucket of distances, added to the scores of all layers (Raffel et al., 2020; T5's buckets)."""

    cfg: BertConfig

    @nn.compact
    def __call__(self, length: Any) -> Float[Array, "1 H L L"]:
        table = self.param("embedding", initializer(self.cfg), (32, self.cfg.num_attention_heads))
        table = jnp.asarray(table)[relative_buckets(np.arange(-128, 129))]  # further tokens are in the last buckets, too
        distances = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
        return table[jnp.clip(distances + 128, 0, 256)].transpose(2, 0, 1)[None]


def relative_buckets(distances: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Returns T5's bucket, of 32, of each distance (place of the key minus place of the query), up to 128 tokens apart.

    >>> relative_buckets(np.array([-200, -8, -7, 0, 7, 8, 12, 200])).tolist()
    [15, 8, 7, 0, 23, 24, 25, 31]
    """
    far = np.abs(distances)
    logarithmic = 8 + (np.log(np.maximum(far, 1) / 8) / np.log(128 / 8) * 8).astype(np.int64)
    return np.where(distances > 0, 16, 0) + np.where(far < 8, far, np.minimum(logarithmic, 15))


class Encoder(nn.Module):
    """Embeddings and the layers: token ids to hidden states.

    Parameters are one subtree a layer, `layer_0` ... `layer_{N-1}`, however the layers are run: one after the other, recomputed
    in the backward pass (`remat`) or stacked for a scan (`scan_layers`), with the same numbers. If groups of layers share
    parameters (Lan et al., 2019), there is one subtree a group.
    """

    cfg: BertConfig
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(
        self,
        input_ids: Int[AnyArray, "B L"],
        token_type_ids: Int[AnyArray, "B L"],
        position_ids: Int[AnyArray, "B L"],
        sequence_ids: Int[AnyArray, "B L"],
        deterministic: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        positions: Int[AnyArray, "B P"] | None = None,
        causal: Bool[AnyArray, " B"] | None = None,
    ) -> dict[str, Any]:
        """Runs the encoder.

        Args:
          input_ids: Token ids.
          token_type_ids: Segment of each token.
          position_ids: Rows of the position table, or positions for the rotary angles.
          sequence_ids: 0 at padding; tokens attend within an id.
          deterministic: Without dropout.
          output_hidden_states: Return the output of the embeddings and of each layer, too.
          output_attentions: Return each layer's probabilities [B, H, L, L], before dropout, too.
          positions: Compute the last layer at these alone, which saves most of its work.
          causal: Marks rows whose tokens attend to themselves and to those before them alone.

        Returns:
          `last_hidden_state` [B, L, D], or [B, P, D] at `positions`; on request `hidden_states` and `attentions`.
        """
        cfg, compute = self.cfg, self.compute
        x = Embeddings(cfg, compute.dtype, name="embeddings")(
            input_ids, token_type_ids, position_ids, sequence_ids, deterministic
        )  # fmt: skip
        if cfg.embedding_size is not None and not cfg.form.inner_projection:
            x = Dense(cfg, cfg.hidden_size, name="projection")(x)
        x = laid_out(x, ROWS, None, None)
        tokens = self._tokens(sequence_ids, position_ids)._replace(causal=causal)
        groups = cfg.num_hidden_groups or cfg.num_hidden_layers
        kinds = [cfg.layer(i) for i in range(cfg.num_hidden_layers)]
        modules = {kind: EncoderLayer(cfg, kind, compute.attention, parent=None) for kind in dict.fromkeys(kinds)}

        def initial(key: Array, kind: LayerKind) -> Params:
            return modules[kind].init(key, x, tokens, True)["params"]

        def parameters_of(i: int) -> Params:
            if self.has_variable("params", f"layer_{i}"):  # `self.param` would trace the layer once more, to check what it checks
                return self.get_variable("params", f"layer_{i}")
            return self.param(f"layer_{i}", partial(initial, kind=kinds[i]))

        distinct = [parameters_of(i) for i in range(groups)]
        parameters = [distinct[i * groups // len(kinds)] for i in range(len(kinds))]
        keys = jax.random.split(jax.random.key(0) if deterministic else self.make_rng("dropout"), len(kinds))

        def layer(kind: LayerKind, positions: Int[AnyArray, "B P"] | None = None) -> Run:
            def run(x: Array, given: Given) -> tuple[Array, Asked]:
                params, key, normed = given
                args = x, tokens, deterministic, positions, output_attentions, normed
                applied = modules[kind].apply({"params": params}, *args, rngs={"dropout": key})
                x, weights = cast(tuple[Array, Array | None], applied)
                x = laid_out(x, ROWS, None, None)
                return x, (x if output_hidden_states else None, weights if output_attentions else None)

            if compute.remat not in REMAT_POLICIES:
                return run
            return jax.checkpoint(run, prevent_cse=not compute.scan_layers, policy=REMAT_POLICIES[compute.remat])

        first, whole = x, len(kinds) - (positions is not None)
        runs = {kind: layer(kind) for kind in modules}
        kept: list[Asked] = []
        given: list[Given] = [(params, key, None) for params, key in zip(parameters, keys, strict=True)]
        start, scanned, period = self._loops(whole)
        if scanned and not kinds[0].attention_norm:  # with a norm that is not used, the first layer is like others
            kinds[0] = dataclasses.replace(kinds[0], attention_norm=True)
            unused = jax.tree.map(jnp.ones_like, {"attention_norm": parameters[1]["attention_norm"]})
            given = [({**unused, **params}, key, jnp.bool(i > 0)) for i, (params, key, _) in enumerate(given)]
        for i in range(min(start, whole)):
            x, asked = runs[kinds[i]](x, given[i])
            if i == 0 and cfg.form.conv_kernel_size:
                x = disentangled.TokenConvolution(cfg, name="convolution")(first, x, tokens, deterministic)
                asked = (x if output_hidden_states else None, asked[1])
            kept.append(asked)
        if scanned:
            x, several = _scan([runs[kind] for kind in kinds[start : start + period]], x, given[start : start + scanned])
            kept += several
        for i in range(start + scanned, whole):
            x, asked = runs[kinds[i]](x, given[i])
            kept.append(asked)
        if positions is not None:
            x, asked = layer(kinds[-1], positions)(x, given[-1])
            kept.append(asked)
        states, attentions = zip(*kept, strict=True)
        if cfg.form.final_norm:
            x = norm(cfg, x.dtype, "final_norm")(x)
            states = (*states[:-1], x)
        outputs: dict[str, Any] = {"last_hidden_state": x}
        if output_hidden_states:
            outputs["hidden_states"] = (first, *states)
        if output_attentions:
            outputs["attentions"] = attentions
        return outputs

    def _loops(self, whole: int) -> tuple[int, int, int]:
        """Returns which of the first `whole` layers a scan runs: the first one, their number, and the layers of a period."""
        cfg = self.cfg
        if not self.compute.scan_layers:
            return whole, 0, 1
        start = int(cfg.form.conv_kernel_size > 0)
        kinds = [dataclasses.replace(cfg.layer(i), attention_norm=True) for i in range(cfg.num_hidden_layers)]
        period = next(n for n in range(1, len(kinds) + 1) if kinds[n:] == kinds[:-n])
        scanned = max(0, whole - start) // period * period
        return start, scanned if scanned > period else 0, period

    def _tokens(self, sequence_ids: Int[AnyArray, "B L"], position_ids: Int[AnyArray, "B L"]) -> Tokens:
        """Returns what the layers need to know of the tokens, computed once for all layers."""
        cfg, form = self.cfg, self.cfg.form
        thetas = dict.fromkeys(cfg.layer(i).theta for i in range(cfg.num_hidden_layers))
        head_size = cfg.hidden_size // cfg.num_attention_heads
        positions = jnp.asarray(position_ids)
        angles = {
            theta: rotary_angles(positions, theta, head_size, form.rope_ntk_factor) for theta in thetas if theta is not None
        }
        bias = None
        if form.relative_positions == "bias":
            bias = RelativeBias(cfg, name="relative_attention_bias")(positions.shape[1])
        relative = None
        if form.relative_positions == "disentangled":
            relative = disentangled.RelativeEmbeddings(cfg, name="relative_embeddings")()
        return Tokens(sequence_ids, None, angles, bias, relative)


Given = tuple[Params, Array, Array | None]  # a layer's parameters, its dropout key, and if it has a norm before attention
Asked = tuple[Array | None, Array | None]  # a layer's output and its probabilities, where they are asked for
Run = Callable[[Array, Given], tuple[Array, Asked]]


def _scan(period: list[Run], x: Array, given: list[Given]) -> tuple[Array, list[Asked]]:
    """Runs layers of repeating kinds by a scan over the periods, in which a scan of its own runs neighbors of one kind.

    Each body has one layer of a kind. With several in a body, XLA's CPU backend recomputes all of them before it begins the
    backward pass of the last one.

    Args:
      period: The layers of one period.
      x: Their input.
      given: What each layer is given; a multiple of the period.

    Returns:
      The output, and what each layer was asked for.
    """
    size = len(period)
    alike = [list(run) for _, run in itertools.groupby(range(size), key=lambda i: period[i])]
    starts = range(0, len(given), size)

    def together(layers: list[Given]) -> Given:
        return layers[0] if len(layers) == 1 else _stacked(layers)

    stacked = [_stacked([together([given[start + i] for i in run]) for start in starts]) for run in alike]

    def body(x: Array, given: list[Given]) -> tuple[Array, list[Asked]]:
        kept = []
        for run, layers in zip(alike, given, strict=True):
            layer = period[run[0]]
            x, asked = layer(x, layers) if len(run) == 1 else jax.lax.scan(layer, x, layers)
            kept.append(asked)
        return x, kept

    x, kept = jax.lax.scan(body, x, stacked)
    places = [(asked, (n,) if len(run) > 1 else ()) for run, asked in zip(alike, kept, strict=True) for n in range(len(run))]
    return x, [jax.tree.map(lambda x: x[n, *place], asked) for n in range(len(starts)) for asked, place in places]  # noqa: B023


def _stacked(given: list[Given]) -> Given:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)
