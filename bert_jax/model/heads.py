"""Heads, and the encoder with a head. The parameter tree's root is {encoder, pooler?, <head>}."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bert_jax.errors import InputError
from bert_jax.model.config import BertConfig, ComputeConfig
from bert_jax.model.convert import Params, flatten, unflatten
from bert_jax.model.encoder import Encoder
from bert_jax.model.families import FAMILIES, Head
from bert_jax.model.layers import (
    ACTIVATIONS,
    AnyArray,
    Decoder,
    Dense,
    Dropout,
    gelu,
    initializer,
    norm,
    nowhere_if_negative,
    word_table,
)

Batch = Mapping[str, AnyArray]


class Transform(nn.Module):
    """A dense layer with an activation, and a norm where the family has one: what stands before most output layers."""

    cfg: BertConfig
    activation: str
    normed: bool

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        activation = self.cfg.form.classifier_activation or self.activation
        return _transform(self.cfg, x, activation, self.cfg.hidden_size, self.normed)


def _transform(cfg: BertConfig, x: Array, activation: str, features: int, normed: bool) -> Array:
    """Applies `Transform` in the scope of the calling module."""
    dense = Dense(cfg, features, cfg.form.classifier_bias, name="dense")
    x = {"tanh": jnp.tanh, **ACTIVATIONS}[activation](dense(x))
    return norm(cfg, x.dtype, "norm")(x) if normed else x


class MaskedLMHead(nn.Module):
    """The transform, then an output layer: the word-embedding table, or a table of its own where that is not tied."""

    cfg: BertConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B P D"], table: Float[AnyArray, "V E"]) -> Decoder:
        cfg, family = self.cfg, FAMILIES[self.cfg.model_type]
        width = cfg.output_embedding_size or table.shape[1]
        x = hidden
        if "masked_lm/dense" in family.head("masked_lm"):
            of_form = family.masked_lm_activation == "classifier_activation"
            activation = cfg.form.classifier_activation if of_form else family.masked_lm_activation
            x = _transform(cfg, hidden, activation or cfg.hidden_act, width, normed=True)
        if not cfg.tie_word_embeddings:
            table = nn.Embed(cfg.vocab_size, width, embedding_init=initializer(cfg), name="decoder").embedding
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (cfg.vocab_size,))) if cfg.form.decoder_bias else None
        return Decoder(x, word_table(table), bias)


def has_masked_lm(parts: Mapping[str, str]) -> bool:
    """Tells if the parts of a head include the masked-LM head."""
    return any(name.startswith("masked_lm/") for name in parts)


class ReplacedTokenHead(nn.Module):
    """ELECTRA's discriminator: the logit that a token was put in place of another (Clark et al., 2020)."""

    cfg: BertConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B L"]:
        cfg = self.cfg
        x = ACTIVATIONS[cfg.hidden_act](Dense(cfg, cfg.hidden_size, name="dense")(hidden))
        return Dense(cfg, 1, name="output")(x)[..., 0].astype(jnp.float32)


def gather_positions(hidden: Float[Array, "B L D"], positions: Int[AnyArray, "B P"]) -> Float[Array, "B P D"]:
    """Returns hidden[b, positions[b, p]], the states that a head reads."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


def pool(
    hidden: Float[Array, "B L D"], sequence_ids: Int[AnyArray, "B L"], first: Int[AnyArray, "B S"], modes: Sequence[str]
) -> Float[Array, "B S E"]:
    """Returns one vector for each of the sequences 1 to S of each row, made of its tokens from `first` on.

    Vectors of several `modes` (see `Pooling`) stand side by side. Sequences that a row lacks give finite values.
    """
    places = jnp.arange(hidden.shape[1])[None, None]
    belongs = sequence_ids[:, None, :] == jnp.arange(1, first.shape[1] + 1)[None, :, None]
    counted = belongs & (places >= first[:, :, None])

    def one(mode: str) -> Float[Array, "B S D"]:
        if mode in ("cls", "lasttoken"):
            return gather_positions(hidden, first if mode == "cls" else jnp.max(jnp.where(counted, places, 0), axis=2))
        if mode == "max":
            highest = jnp.max(jnp.where(counted[..., None], hidden[:, None], -jnp.inf), axis=2)
            return jnp.where(counted.any(axis=2)[..., None], highest, 0)
        start = jnp.argmax(belongs, axis=2, keepdims=True)
        weights = jnp.where(counted, places - start + 1 if mode == "weightedmean" else 1, 0)
        exact = jnp.float32 if mode == "weightedmean" else hidden.dtype  # bfloat16 has no place past 256
        sums = jnp.einsum("bsl,bld->bsd", weights.astype(exact), hidden.astype(exact))
        total = jnp.maximum(jnp.sum(weights, axis=2), 1)[..., None]
        return sums / (jnp.sqrt(total) if mode == "mean_sqrt_len_tokens" else total)

    return jnp.concatenate([one(mode) for mode in modes], axis=-1)


def pool_words(
    logits: Float[Array, "B L V"], sequence_ids: Int[AnyArray, "B L"], count: int, activation: str = "relu"
) -> Float[Array, "B S V"]:
    """Returns the weight of each word in the sequences 1 to `count` of each row (SPLADE v2, Formal et al., 2021, section 3.1).

    The weight is the maximum of log(1 + relu(logit)) over the tokens of a sequence, special tokens included; with the activation
    "log1p_relu", the logarithm of 1 and that is taken once more. Sequences that a row lacks have zeros.
    """
    # The logarithm of the largest logit is the largest logarithm, and there are fewer sequences than tokens.
    highest = jax.vmap(partial(_highest, count=count))(logits, jnp.asarray(sequence_ids))
    weights = jnp.log1p(jax.nn.relu(highest))
    return jnp.log1p(weights) if activation == "log1p_relu" else weights


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _highest(x: Float[Array, "L V"], ids: Int[Array, " L"], count: int) -> Float[Array, "S V"]:
    """Returns the maximum of each column over the rows of the ids 1 to `count`; the gradient is that of the first such row."""
    return _highest_forward(x, ids, count)[0]


def _highest_forward(x: Array, ids: Array, count: int) -> tuple[Array, tuple[Array, Array]]:
    highest = jax.ops.segment_max(x, ids, count + 1)
    places = jnp.where(x == highest[ids], jnp.arange(x.shape[0])[:, None], x.shape[0])
    return highest[1:], (jax.ops.segment_min(places, ids, count + 1), ids)


def _highest_backward(count: int, kept: tuple[Array, Array], of_highest: Array) -> tuple[Array, None]:
    first, ids = kept  # the logits, which are much larger, are not kept
    of_all = jnp.pad(of_highest, ((1, 0), (0, 0)))
    return jnp.where(first[ids] == jnp.arange(ids.shape[0])[:, None], of_all[ids], 0), None


_highest.defvjp(_highest_forward, _highest_backward)


def unseen_masks(
    sequence_ids: Int[AnyArray, "B L"], input_ids: Int[AnyArray, "B L"], mask_id: int
) -> Int[Array, "B L"]:  # fmt: skip
    """Returns sequence ids in which the mask tokens at the end of a sequence k have -k: they attend to it, and nothing to them.

    ColBERT's expansion of queries does this (Khattab and Zaharia, 2020, section 3.2).
    """

    def one(ids: Int[Array, " L"], tokens: Int[Array, " L"]) -> Int[Array, " L"]:
        places = jnp.arange(ids.shape[0])
        last = jax.ops.segment_max(jnp.where(tokens == mask_id, -1, places), ids, ids.shape[0] + 1)
        return jnp.where(places > last[ids], -ids, ids)

    return jax.vmap(one)(jnp.asarray(sequence_ids), jnp.asarray(input_ids))


TORCH_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {  # the classes of torch.nn that pooling.ACTIVATIONS names
    "Identity": lambda x: x, "Tanh": jnp.tanh, "Sigmoid": jax.nn.sigmoid, "ReLU": jax.nn.relu, "GELU": gelu, "SiLU": jax.nn.silu,
}  # fmt: skip


_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "sequence_ids")  # [B, L] each


def _check_shapes(batch: dict[str, Array]) -> None:
    absent = [name for name in _OF_TOKENS if name not in batch]
    for name in batch.keys() - set(_OF_TOKENS):
        if meant := difflib.get_close_matches(name, absent, n=1, cutoff=0.85):
            raise InputError(f"the batch has {name!r}; did you mean {meant[0]!r}?")
    if "input_ids" not in batch:
        raise InputError(f"the batch has no 'input_ids', it has {', '.join(batch) or 'nothing'}")
    ids = batch["input_ids"]
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"input_ids is {ids.dtype} of shape {ids.shape}; expected integers [B, L], such as [[101, 2023, 102]]")
    for name in _OF_TOKENS:
        if name in batch and batch[name].shape != ids.shape:
            raise InputError(f"{name} has the shape {batch[name].shape}, and input_ids {ids.shape}: they must be the same")
        if name in batch and name != "attention_mask" and not jnp.issubdtype(batch[name].dtype, jnp.integer):
            raise InputError(f"{name} is {batch[name].dtype}; expected integers")
    if AxisType.Explicit in jax.typeof(ids).sharding.mesh.axis_types:
        raise InputError("input_ids lies on a mesh with explicit axes; make it with axis_types=(jax.sharding.AxisType.Auto, ...)")


def _at_hand(given: AnyArray | None) -> np.ndarray | None:
    """Returns the values; None for tracers and for arrays with parts on other hosts."""
    elsewhere = isinstance(given, jax.core.Tracer) or (isinstance(given, jax.Array) and not given.is_fully_addressable)
    return None if given is None or elsewhere else np.asarray(given)


def _check_values(batch: Batch, cfg: BertConfig, length: Any) -> None:
    tables = dict(input_ids=cfg.vocab_size, token_type_ids=cfg.type_vocab_size, position_ids=cfg.max_length)
    limits = {name: (rows, "the rows of its table") for name, rows in tables.items() if rows}
    if isinstance(length, int):
        limits |= dict.fromkeys(("masked_positions", "cls_positions"), (length, "the tokens of a row"))
    limits["attention_mask"] = (2, "1 at tokens and 0 at padding")
    for name, (limit, what) in limits.items():
        if (values := _at_hand(batch.get(name))) is None or not values.size:
            continue
        low, high = values.min(), values.max()
        if not (low >= 0 and high < limit):
            raise InputError(f"{name} holds {high if low >= 0 else low}, which is not in [0, {limit}), {what}")
    positions = _at_hand(batch.get("position_ids"))
    if not cfg.position_offset or positions is None or not positions.size:
        return
    real = _at_hand(batch.get("sequence_ids", batch.get("attention_mask", np.ones_like(positions))))
    if real is not None and not _from_zero(positions, real != 0).all():
        raise InputError(
            f"position_ids has a row without a 0: here they count from 0 in each sequence, in transformers from "
            f"{cfg.position_offset}: give jnp.maximum(position_ids - {cfg.position_offset}, 0), or leave position_ids out"
        )


def _from_zero(position_ids: AnyArray, real: AnyArray) -> AnyArray:
    """Returns for each row, [B, 1], if it has a token at position 0, as each sequence has; true for a row of padding."""
    return cast(AnyArray, (real & (position_ids == 0)).any(-1, keepdims=True) | ~real.any(-1, keepdims=True))


def _position_rows(full: dict[str, Array], given: Batch, cfg: BertConfig) -> Int[Array, "B L"]:
    """Returns rows of the position table. `full` has sequence_ids; -1, which has no row, stands for an impossible position."""
    ids, of, offset = full["input_ids"], full["sequence_ids"], cfg.position_offset
    if "position_ids" in given:
        positions = full["position_ids"].astype(jnp.int32)
        right = (positions >= 0) & _from_zero(positions, of != 0) if offset else positions >= 0
        return jnp.where(right, positions + offset, -1)
    if offset and "sequence_ids" not in given:  # as transformers, whatever the mask says
        real = ids != offset - 1
        return jnp.where(real, jnp.cumsum(real, axis=-1, dtype=jnp.int32), 0) + (offset - 1)
    place = jnp.broadcast_to(jnp.arange(ids.shape[-1], dtype=jnp.int32), ids.shape)
    if "sequence_ids" in given:
        starts = jnp.concatenate([jnp.ones_like(of[..., :1], bool), of[..., 1:] != of[..., :-1]], axis=-1)
        place = place - jax.lax.cummax(jnp.where(starts, place, 0), axis=ids.ndim - 1)
    return place + offset


def complete(batch: Batch, cfg: BertConfig) -> dict[str, Array]:
    """Returns the batch with the arrays that callers may leave out, and with rows of the position table as `position_ids`.

    `sequence_ids`: 1 where `attention_mask` is not 0, else ones. `position_ids`: from 0 in each sequence; without
    `sequence_ids`, as transformers counts them (BERT: the place in the row; RoBERTa and XLM-R: tokens that are not the
    padding's id, whatever the mask). `token_type_ids`: zeros.

    Raises:
      InputError: shapes or types do not fit, rows are longer than the model takes, ids are past their tables, or RoBERTa's
        positions do not begin at 0. Values can only be checked outside jit; inside, they give NaN.
    """
    full = {name: jnp.asarray(value) for name, value in batch.items()}
    _check_shapes(full)
    ids = full["input_ids"]
    length = ids.shape[-1]
    _check_values(batch, cfg, length)
    if not full.keys() & {"position_ids", "sequence_ids"} and isinstance(length, int) and length > cfg.max_length:
        raise InputError(f"input_ids has {length} tokens per row; this model takes at most {cfg.max_length}: cut the rows")
    for name in full.keys() & {"masked_positions", "cls_positions"}:
        full[name] = nowhere_if_negative(full[name])
    full.setdefault("sequence_ids", (full.get("attention_mask", jnp.ones_like(ids)) != 0).astype(jnp.int32))
    full["position_ids"] = _position_rows(full, batch, cfg)
    full.setdefault("token_type_ids", jnp.zeros_like(ids))
    return full


class Bert(nn.Module):
    """An encoder of any family with one head.

    Call it with a batch: int32 `input_ids` [B, L] (multiple choice: [B, C, L]) and, optionally, `attention_mask` or
    `sequence_ids`, `token_type_ids` and `position_ids` of the same shape (`complete` fills in those that are left out);
    `masked_positions` [B, P], where the masked-LM head runs (default: everywhere); `cls_positions` [B, S], the first tokens of
    the sequences packed in a row (default: one sequence a row, from 0, and no axis S in the outputs). `causal` (booleans [B])
    marks rows whose tokens attend to themselves and to those before them alone.

    With `head_only`, the last layer is computed only where the head reads it, if the head reads few places of a row (sequence
    classification, multiple choice, pooled output, masked LM at `masked_positions`): the same outputs for less work, but no
    `last_hidden_state`. Without `decode`, a masked-LM head returns not logits but `masked_lm_decoder`, its output layer, for a
    loss that never holds all of them.

    Returns `last_hidden_state` [B, L, D], on request `hidden_states` and `attentions`, and by `head`, in float32:
      encoder: `pooled_output` [B, S, D], where the family has a pooler
      masked_lm: `masked_lm_logits` [B, P, V]; pretraining: also `next_sentence_logits` [B, S, 2] (ALBERT: of sentence order)
      next_sentence: `next_sentence_logits` [B, S, 2]
      replaced_token: `replaced_token_logits` [B, L]
      token_vectors: `token_vectors` [B, L, N], not normalized
      sequence_classification: `logits` [B, S, N]; token_classification: `logits` [B, L, N]; N = `num_labels`
      question_answering: `start_logits` and `end_logits` [B, L]
      multiple_choice: `logits` [B, C]; of packed choices, which come with `cls_positions` as [B, L]: `logits` [B, S]
    """

    cfg: BertConfig
    head: Head = "masked_lm"
    num_labels: int = 2
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(
        self,
        batch: Batch,
        deterministic: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        head_only: bool = False,
        decode: bool = True,
    ) -> dict[str, Any]:
        choices = None
        if self.head == "multiple_choice" and batch["input_ids"].ndim == 3:
            choices = batch["input_ids"].shape[:2]
            batch = {name: value.reshape(-1, value.shape[-1]) for name, value in batch.items()}
        batch = complete(batch, self.cfg)
        encoder = Encoder(self.cfg, self.compute, name="encoder")
        read = self._read(batch) if head_only else {}
        positions = jnp.concatenate(list(read.values()), axis=1) if read else None
        outputs = encoder(
            batch["input_ids"], batch["token_type_ids"], batch["position_ids"], batch["sequence_ids"],
            deterministic, output_hidden_states, output_attentions, positions, batch.get("causal"),
        )  # fmt: skip
        hidden = outputs["last_hidden_state"]
        if read:
            del outputs["last_hidden_state"]
            ends = np.cumsum([each.shape[1] for each in read.values()])[:-1]
            at = dict(zip(read, jnp.split(hidden, ends, axis=1), strict=True))
        else:
            places = {name: batch[name] for name in ("masked_positions", "cls_positions") if name in batch}
            at = {name: gather_positions(hidden, place) for name, place in places.items()}
        outputs |= self._head(hidden, at, batch, encoder, deterministic, decode)
        if choices:
            outputs["logits"] = outputs["logits"].reshape(choices)
        return outputs

    def _read(self, batch: Batch) -> dict[str, Array]:
        """Returns the batch's name for the positions that the head reads; empty if it reads all."""
        parts, read = FAMILIES[self.cfg.model_type].head(self.head), {}
        if has_masked_lm(parts):
            if "masked_positions" not in batch:
                return {}
            read["masked_positions"] = jnp.asarray(batch["masked_positions"])
        if "pooler/dense" in parts:
            if self._pools_mean():
                return {}
            first = jnp.zeros((batch["input_ids"].shape[0], 1), jnp.int32)
            read["cls_positions"] = jnp.asarray(batch.get("cls_positions", first))
        return read

    def _pools_mean(self) -> bool:
        """Tells if the head reads the mean over a sequence's tokens, not its first token."""
        return self.cfg.form.classifier_pooling != "cls" and self.head in ("sequence_classification", "multiple_choice")

    def hidden_states(self, batch: Batch) -> Array:
        """Returns `last_hidden_state` alone."""
        return self(batch)["last_hidden_state"]

    def _head(
        self, hidden: Array, at: dict[str, Array], batch: Batch, encoder: Encoder, deterministic: bool, decode: bool
    ) -> dict[str, Any]:
        """Returns the head's outputs for the hidden states, and for those `at` the batch's positions."""
        cfg, head = self.cfg, self.head
        family = FAMILIES[cfg.model_type]
        parts = family.head(head)
        outputs: dict[str, Any] = {}
        drop = Dropout(cfg.hidden_dropout_prob if cfg.classifier_dropout is None else cfg.classifier_dropout)

        def classify(x: Array, features: int, name: str) -> Array:
            return Dense(cfg, features, name=name)(drop(x, deterministic)).astype(jnp.float32)

        def transform(x: Array, name: str) -> Array:
            normed = f"{name}/norm" in parts
            return Transform(cfg, family.pooler_activation or cfg.hidden_act, normed, name=name)(x)

        pooled = hidden
        if "pooler/dense" in parts:
            first = at.get("cls_positions", hidden[:, :1])
            late = self._pools_mean() and cfg.form.classifier_pooling == "late"
            if self._pools_mean():
                starts = jnp.asarray(batch.get("cls_positions", jnp.zeros((hidden.shape[0], 1), jnp.int32)))
                first = pool(transform(hidden, "pooler") if late else hidden, batch["sequence_ids"], starts, ("mean",))
            if "cls_positions" not in batch:
                first = first[:, 0]
            if head == "sequence_classification" and family.dropout_before_pooler:
                first = drop(first, deterministic)
            pooled = first if late else transform(first, "pooler")
        if "transform/dense" in parts:
            hidden = transform(hidden, "transform")
        if head == "encoder" and "pooler/dense" in parts:
            outputs["pooled_output"] = pooled.astype(jnp.float32)
        if has_masked_lm(parts):
            table = encoder.variables["params"]["embeddings"]["word_embeddings"]["embedding"]
            picked = at.get("masked_positions", hidden)
            decoder = MaskedLMHead(cfg, name="masked_lm")(picked, table)
            outputs |= {"masked_lm_logits": decoder.logits()} if decode else {"masked_lm_decoder": decoder}
        if "next_sentence" in parts:
            outputs["next_sentence_logits"] = Dense(cfg, 2, name="next_sentence")(pooled).astype(jnp.float32)
        if head == "replaced_token":
            outputs["replaced_token_logits"] = ReplacedTokenHead(cfg, name="replaced_token")(hidden)
        if head == "token_vectors":
            outputs["token_vectors"] = Dense(cfg, self.num_labels, False, name="token_projection")(hidden).astype(jnp.float32)
        if head == "sequence_classification":
            outputs["logits"] = classify(pooled, self.num_labels, "sequence_classifier")
        if head == "multiple_choice":
            outputs["logits"] = classify(pooled, 1, "choice_classifier")[..., 0]
        if head == "token_classification":
            outputs["logits"] = classify(hidden, self.num_labels, "token_classifier")
        if head == "question_answering":
            spans = Dense(cfg, 2, name="span_classifier")(hidden).astype(jnp.float32)
            outputs["start_logits"], outputs["end_logits"] = spans[..., 0], spans[..., 1]
        return outputs


class Discriminator(nn.Module):
    """An encoder of any family with the head that detects replaced tokens.

    Its parameters are {encoder, replaced_token}, as those of a `Bert` of ELECTRA's family, which alone has files with this head.
    Call it with a batch as `Bert`; it returns the log-odds [B, L] that each token is replaced.
    """

    cfg: BertConfig
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True) -> Float[Array, "B L"]:
        full = complete(batch, self.cfg)
        encoder = Encoder(self.cfg, self.compute, name="encoder")
        outputs = encoder(full["input_ids"], full["token_type_ids"], full["position_ids"], full["sequence_ids"], deterministic)
        return ReplacedTokenHead(self.cfg, name="replaced_token")(outputs["last_hidden_state"])


def initialize(module: Bert, seed: ArrayLike) -> Params:
    """Returns fresh parameters. Pure: it can be jitted and given to `jax.eval_shape`."""
    ids = jnp.zeros((1, 1, 1) if module.head == "multiple_choice" else (1, 1), jnp.int32)
    return module.init(jax.random.key(seed), {"input_ids": ids})["params"]


def _scanned(module: Bert) -> Bert:
    """Returns a module with the same parameters whose trace takes a time that does not depend on the number of layers."""
    return module.clone(compute=module.compute.replace(scan_layers=True))


def parameter_shapes(module: Bert) -> Params:
    """Returns the parameter tree as ShapeDtypeStructs; no device is touched."""
    return unflatten(_flat_shapes(module))


@lru_cache(maxsize=32)  # loading and saving ask for the same shapes, and a trace takes longer than a small file
def _flat_shapes(module: Bert) -> Params:
    return flatten(jax.eval_shape(partial(initialize, _scanned(module)), 0))


def initial_values(module: Bert, paths: Sequence[str], seed: int = 0) -> Params:
    """Returns the initial values of some parameters; no others are computed."""

    def pick(seed: ArrayLike) -> Params:
        flat = flatten(initialize(_scanned(module), seed))
        return {path: flat[path] for path in paths}

    return jax.device_get(jax.jit(pick)(seed))


def apply(
    module: Bert,
    params: PyTree,
    batch: Batch,
    dropout_key: PRNGKeyArray | None,
    head_only: bool = False,
    decode: bool = True,
) -> dict[str, Any]:
    """Returns the outputs of `module` for a batch: with dropout where there is a key, else deterministic."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    outputs = module.apply({"params": params}, batch, dropout_key is None, head_only=head_only, decode=decode, rngs=rngs)
    return cast(dict[str, Any], outputs)
