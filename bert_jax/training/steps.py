"""The training state and the pure training and evaluation steps.

The steps contain no collectives unless they are given an `axis_name`, and are compiled by `parallel.Devices.jit`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bert_jax.model.layers import AnyArray
from bert_jax.training.losses import Sum
from bert_jax.training.optim import Guarded, Schedule

Batch = dict[str, AnyArray]
Metrics = dict[str, Array]
Sums = dict[str, Sum]
# (params, microbatch, dropout key or None without dropout) -> named sums, of which those ending in `_loss` are trained on.
# Their weights must follow from the batch alone, not from parameters or dropout.
SumsFn = Callable[[PyTree, Batch, PRNGKeyArray | None], Sums]


class TrainState(NamedTuple):
    """Everything that changes from step to step.

    Attributes:
      step: The number of batches seen (int32), which is also the number of the next batch.
      params: The parameter tree.
      opt_state: The state of the optimizer.
      skipped: The number of non-finite updates so far (int32).
      skipped_in_a_row: The number of non-finite updates since the last finite one (int32).
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    skipped: Array
    skipped_in_a_row: Array


def init_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0), jnp.int32(0))


def make_update(
    sums_fn: SumsFn,
    optimizer: optax.GradientTransformation,
    clip_norm: float | None = 1.0,
    microbatches: int = 1,
    axis_name: str | None = None,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> Callable[[TrainState, Batch, Array | None, PRNGKeyArray], tuple[TrainState, Metrics]]:
    """Returns a pure function (state, batch, learning rate, dropout key) -> (state, metrics).

    The loss is the sum of factor * total / weight over the sums whose names end in `_loss`. The weight is that of the whole
    batch, however the batch is divided into microbatches or over devices. Where the loss, the gradients or the updates are not
    finite, parameters and optimizer state stay as they are, and the update is counted as skipped.

    Args:
      sums_fn: Computes the sums of a microbatch.
      optimizer: Any Optax transformation; its updates are added to the parameters. Of Optax's extra arguments it is given
        `value` (the loss), `ok` (see `optim.Guarded`) and, unless it is None, `learning_rate`. Give the learning rate None to
        an optimizer that has its own, such as `optax.adamw(1e-3)`.
      clip_norm: The global norm that gradients are clipped to; None does not clip.
      microbatches: The number of parts that a batch is divided into. Each folds its number into the dropout key.
      axis_name: The axis of a surrounding map over devices, each of which has some rows of the batch; sums cross it. The
        device's number is folded into the key as well, so dropout differs from that of a run without a map.
      factors: The factors of losses, by name; those of others are 1. The metrics of single losses are without them.
    """

    def over_devices(sums: PyTree) -> PyTree:
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    def weighed(name: str, value: Array) -> Array:
        return factors[name] * value if name in factors else value

    def gradients(params: PyTree, batch: Batch, key: PRNGKeyArray, weights: Metrics) -> tuple[PyTree, Sums]:
        def loss(params: PyTree) -> tuple[Float[Array, ""], Sums]:
            sums = sums_fn(params, batch, key)
            total = sum(weighed(name, sums[name].total) / jnp.maximum(weight, 1e-9) for name, weight in weights.items())
            return jnp.asarray(total), sums

        return jax.grad(loss, has_aux=True)(params)

    def update(
        state: TrainState, batch: Batch, learning_rate: Float[Array, ""] | None, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        # The weights follow from the batch alone, so the compiler drops the forward pass of this call.
        sums = sums_fn(state.params, batch, None)
        weights = over_devices({name: s.weight for name, s in sums.items() if name.endswith("_loss")})
        grads, sums = over_devices(_accumulate(partial(gradients, weights=weights), state.params, batch, key, microbatches))
        norm = optax.tree.norm(grads)
        loss = jnp.asarray(sum(weighed(name, s.mean()) for name, s in sums.items() if name.endswith("_loss")))
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        if clip_norm is not None:
            scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-9))
            grads = jax.tree.map(lambda g: g * scale, grads)
        params, opt_state, finite = _apply(optimizer, grads, state, learning_rate, loss, finite)

        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        new_state = TrainState(state.step + 1, params, opt_state, state.skipped + jnp.where(finite, 0, 1), in_a_row)
        metrics = {"loss": loss, **{name: s.mean() for name, s in sums.items()}}
        if "masked_lm_loss" in sums:
            metrics["masked_lm_perplexity"] = jnp.exp(metrics["masked_lm_loss"])
        if learning_rate is not None:
            metrics["learning_rate"] = learning_rate
        metrics |= {"gradient_norm": norm, "skipped_updates": new_state.skipped, "skipped_in_a_row": in_a_row}
        return new_state, metrics

    return update


def _apply(
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    state: TrainState,
    learning_rate: Float[Array, ""] | None,
    loss: Float[Array, ""],
    finite: Bool[Array, ""],
) -> tuple[PyTree, PyTree, Bool[Array, ""]]:
    """Returns parameters, optimizer state and whether the update was finite; the old ones if it was not."""
    extra = {"value": loss, "ok": finite} | ({} if learning_rate is None else {"learning_rate": learning_rate})
    updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, state.opt_state, state.params, **extra)
    if not isinstance(optimizer, Guarded):
        if learning_rate is not None:
            _warn_of_an_unused_rate(optimizer, grads, state, extra)
        finite &= jnp.all(jnp.array([jnp.all(jnp.isfinite(u)) for u in jax.tree.leaves(updates)]))
        opt_state = jax.tree.map(partial(jnp.where, finite), opt_state, state.opt_state)
    params = jax.tree.map(partial(jnp.where, finite), optax.apply_updates(state.params, updates), state.params)
    return params, opt_state, finite


def _warn_of_an_unused_rate(
    optimizer: optax.GradientTransformation, grads: PyTree, state: TrainState, extra: dict[str, Array]
) -> None:
    """Warns if the optimizer ignores the learning rate: Optax silently drops extra arguments that it does not take."""
    update = optax.with_extra_args_support(optimizer).update
    jaxpr = jax.make_jaxpr(lambda rate: update(grads, state.opt_state, state.params, **extra | {"learning_rate": rate}))(
        extra["learning_rate"]
    ).jaxpr
    if not any(jaxpr.invars[0] is used for equation in jaxpr.eqns for used in equation.invars):
        warnings.warn(
            "the optimizer does not use the learning rate that the step was given: its updates are added as they are. Give the "
            "schedule None to an optimizer with a rate of its own; end one without with optim.scale_by_given_rate()",
            stacklevel=2,
        )


def make_train_step(
    sums_fn: SumsFn,
    optimizer: optax.GradientTransformation,
    schedule: Schedule | None,
    seed: int,
    clip_norm: float | None = 1.0,
    microbatches: int = 1,
    axis_name: str | None = None,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a pure training step (state, batch) -> (state, metrics).

    It is `make_update`, which describes the other arguments, at the schedule's learning rate and with dropout keys folded from
    (seed, step, microbatch). `schedule` is for the optimizers of `optim.make_optimizer`; give None to an optimizer that has its
    own learning rate, as in `make_train_step(sums, optax.adamw(1e-3), None, seed=0)`.
    """
    update = make_update(sums_fn, optimizer, clip_norm, microbatches, axis_name, factors)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        learning_rate = None if schedule is None else jnp.asarray(schedule(state.step), jnp.float32)
        return update(state, batch, learning_rate, jax.random.fold_in(jax.random.key(seed), state.step))

    return train_step


def _accumulate(
    gradients: Callable[[PyTree, Batch, PRNGKeyArray], tuple[PyTree, Sums]],
    params: PyTree,
    batch: Batch,
    key: PRNGKeyArray,
    microbatches: int,
) -> tuple[PyTree, Sums]:
    """Returns the gradients and sums of the whole batch, computed one microbatch after another.

    Microbatch m takes every `microbatches`-th row, so that no row moves to another device.
    """
    if microbatches == 1:
        return gradients(params, batch, jax.random.fold_in(key, 0))
    rows = {k: v.reshape(-1, microbatches, *v.shape[1:]) for k, v in batch.items()}

    def part(m: Array) -> tuple[PyTree, Sums]:
        microbatch = {k: jax.lax.dynamic_index_in_dim(v, m, axis=1, keepdims=False) for k, v in rows.items()}
        return gradients(params, microbatch, jax.random.fold_in(key, m))

    def add(total: tuple[PyTree, Sums], m: Array) -> tuple[tuple[PyTree, Sums], None]:
        return jax.tree.map(jnp.add, total, part(m)), None

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(part, jnp.int32(0)))
    return jax.lax.scan(add, zeros, jnp.arange(microbatches))[0]


def make_eval_step(sums_fn: SumsFn, axis_name: str | None = None) -> Callable[[PyTree, Batch], Sums]:
    """Returns a pure evaluation step (params, batch) -> named sums, without dropout; for `axis_name` see `make_update`."""

    def eval_step(params: PyTree, batch: Batch) -> Sums:
        sums = sums_fn(params, batch, None)
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return eval_step
