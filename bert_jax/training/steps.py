"""TrainState and the two pure steps, jitted once by the caller's `parallel`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bert_jax.training.losses import Sum
from bert_jax.training.optim import Guarded, Schedule

Batch = dict[str, Array]
Metrics = dict[str, Array]
Sums = dict[str, Sum]
# (params, microbatch, dropout key or None for deterministic) -> named sums; those ending in `_loss` are trained on.
# Their weights must follow from the batch alone, not from parameters or dropout.
SumsFn = Callable[[Any, Batch, Array | None], Sums]


class TrainState(NamedTuple):
    """All that changes from step to step."""

    step: Array  # int32: batches seen, which is also the number of the next batch
    params: Any
    opt_state: Any
    skipped: Array  # int32: non-finite updates so far
    skipped_in_a_row: Array  # int32


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0), jnp.int32(0))


def make_update(
    sums_fn: SumsFn,
    optimizer: optax.GradientTransformation,
    clip_norm: float | None = 1.0,
    microbatches: int = 1,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch, Array | None, Array], tuple[TrainState, Metrics]]:
    """A pure update (state, batch, learning rate, dropout key) -> (state, metrics of the step).

    The loss is the sum of total / weight over the names of `sums_fn` that end in `_loss`, with the weight of the whole
    batch however it is cut into `microbatches` or laid over devices. Each microbatch folds its number into the key.
    Gradients are clipped to `clip_norm`. Any Optax optimizer will do; its updates are added to the parameters, as Optax says.
    One with a rate or schedule of its own, such as `optax.adamw(1e-3)`, needs no learning rate: give None. Of the extra
    arguments of Optax it is given `learning_rate` (where there is one), `value` (the loss) and `ok` (see `optim.Guarded`).
    Where the loss, the gradients or the updates are not finite, parameters and optimizer state stay as they are, and the
    update is counted as skipped.
    Inside a map over devices each sees its own rows: `axis_name` is the axis that sums are crossed over. There the number of
    the device is folded into the key too, so dropout is another than without a map.
    """

    def across(sums: Any) -> Any:
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    def gradients(params: Any, batch: Batch, key: Array, weights: dict[str, Array]) -> tuple[Any, Sums]:
        def loss(params: Any) -> tuple[Array, Sums]:
            sums = sums_fn(params, batch, key)
            total = sum(sums[name].total / jnp.maximum(weight, 1e-9) for name, weight in weights.items())
            return jnp.asarray(total), sums

        return jax.grad(loss, has_aux=True)(params)

    def update(state: TrainState, batch: Batch, learning_rate: Array | None, key: Array) -> tuple[TrainState, Metrics]:
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        # Weights follow from the batch alone: the compiler drops the forward pass that this asks for.
        weights = across({n: s.weight for n, s in sums_fn(state.params, batch, None).items() if n.endswith("_loss")})
        grads, sums = across(_accumulate(partial(gradients, weights=weights), state.params, batch, key, microbatches))
        norm = optax.tree.norm(grads)
        loss = jnp.asarray(sum(s.mean() for name, s in sums.items() if name.endswith("_loss")))
        ok = jnp.isfinite(norm) & jnp.isfinite(loss)
        if clip_norm is not None:
            scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-9))
            grads = jax.tree.map(lambda g: g * scale, grads)
        params, opt_state, ok = _apply(optimizer, grads, state, learning_rate, loss, ok)

        in_a_row = jnp.where(ok, 0, state.skipped_in_a_row + 1)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=state.skipped + jnp.where(ok, 0, 1),
            skipped_in_a_row=in_a_row,
        )
        metrics = {"loss": loss, **{name: s.mean() for name, s in sums.items()}}
        if "masked_lm_loss" in sums:
            metrics["masked_lm_perplexity"] = jnp.exp(metrics["masked_lm_loss"])
        if learning_rate is not None:
            metrics["learning_rate"] = learning_rate
        metrics |= {"gradient_norm": norm, "skipped_updates": new_state.skipped, "skipped_in_a_row": in_a_row}
        return new_state, metrics

    return update


def _apply(
    optimizer: optax.GradientTransformation, grads: Any, state: TrainState, learning_rate: Array | None, loss: Array, ok: Array
) -> tuple[Any, Any, Array]:
    """(parameters, optimizer state, whether the update was finite); both are the old ones where it was not."""
    given = {"value": loss, "ok": ok} | ({} if learning_rate is None else {"learning_rate": learning_rate})
    updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, state.opt_state, state.params, **given)
    if not isinstance(optimizer, Guarded):
        if learning_rate is not None:
            _warn_of_an_unused_rate(optimizer, grads, state, given)
        ok &= jnp.all(jnp.array([jnp.all(jnp.isfinite(u)) for u in jax.tree.leaves(updates)]))
        opt_state = jax.tree.map(partial(jnp.where, ok), opt_state, state.opt_state)
    params = jax.tree.map(partial(jnp.where, ok), optax.apply_updates(state.params, updates), state.params)
    return params, opt_state, ok


def _warn_of_an_unused_rate(
    optimizer: optax.GradientTransformation, grads: Any, state: TrainState, given: dict[str, Any]
) -> None:
    """Optax drops extra arguments that an optimizer does not take: a schedule would be given in vain, and in silence."""
    update = optax.with_extra_args_support(optimizer).update
    traced = jax.make_jaxpr(
        lambda rate: update(grads, state.opt_state, state.params, **{**given, "learning_rate": rate})
    )(given["learning_rate"]).jaxpr  # fmt: skip
    if not any(traced.invars[0] is used for equation in traced.eqns for used in equation.invars):
        warnings.warn(
            "the optimizer does not use the learning rate that the step was given: its updates are added as they are. Give no "
            "schedule (None) to an optimizer with a rate of its own; end one without with optim.scale_by_given_rate()",
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
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure training step (state, batch) -> (state, metrics): `make_update` at the schedule's rate, with dropout keys folded
    from (seed, step, microbatch).

    `schedule` is for an optimizer that takes its rate from the step, as those of `optim.make_optimizer`; give None where it has
    one of its own, as in `make_train_step(sums, optax.adamw(1e-3), None, seed=0)`.
    """
    update = make_update(sums_fn, optimizer, clip_norm, microbatches, axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        learning_rate = None if schedule is None else jnp.asarray(schedule(state.step), jnp.float32)
        return update(state, batch, learning_rate, jax.random.fold_in(jax.random.key(seed), state.step))

    return train_step


def _accumulate(
    gradients: Callable[..., tuple[Any, Sums]], params: Any, batch: Batch, key: Array, microbatches: int
) -> tuple[Any, Sums]:
    """Gradients and sums of the whole batch, `microbatches` one after the other.

    Microbatch m takes every microbatches-th row, so that each device keeps the rows it has.
    """
    if microbatches == 1:
        return gradients(params, batch, jax.random.fold_in(key, 0))
    rows = {k: v.reshape(-1, microbatches, *v.shape[1:]) for k, v in batch.items()}

    def part(m: Array) -> tuple[Any, Sums]:
        microbatch = {k: jax.lax.dynamic_index_in_dim(v, m, axis=1, keepdims=False) for k, v in rows.items()}
        return gradients(params, microbatch, jax.random.fold_in(key, m))

    def add(total: tuple[Any, Sums], m: Array) -> tuple[tuple[Any, Sums], None]:
        return jax.tree.map(jnp.add, total, part(m)), None

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(part, jnp.int32(0)))
    return jax.lax.scan(add, zeros, jnp.arange(microbatches))[0]


def make_eval_step(sums_fn: SumsFn, axis_name: str | None = None) -> Callable[[Any, Batch], Sums]:
    """A pure evaluation step (params, batch) -> named sums, without dropout. `axis_name`: see `make_update`."""

    def eval_step(params: Any, batch: Batch) -> Sums:
        sums = sums_fn(params, batch, None)
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return eval_step
