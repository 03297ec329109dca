"""Schedules, what decays, and optimizers as Optax chains. The step gives them its learning rate (`scale_by_given_rate`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from bert_jax.config import InputError, OptimConfig

Schedule = Callable[[jax.Array], ArrayLike]


def make_schedule(cfg: OptimConfig, num_steps: int) -> Schedule:
    """step -> learning rate, from 0 up to the peak in `warmup_steps`, then down to 0 at `num_steps`.

    `bert_tf` is google-research/bert's optimization.py: the decay is a line from the peak at step 0, which the warm-up
    overrides, so the rate drops to peak * (1 - warmup/num_steps) where the warm-up ends. `linear` decays from the peak.
    `warmup_stable_decay` holds the peak until the last `decay_steps`. Raises InputError where they do not fit.
    """
    peak, warmup = cfg.learning_rate, cfg.warmup_steps
    left = num_steps - warmup
    if cfg.schedule == "bert_tf":
        decay = optax.linear_schedule(peak, 0.0, num_steps)
        return lambda step: jnp.where(step < warmup, peak * step / max(1, warmup), decay(step))
    ends: list[int] = []
    if cfg.schedule == "linear":
        parts = [optax.linear_schedule(peak, 0.0, left)]
    elif cfg.schedule == "cosine":
        parts = [optax.cosine_decay_schedule(peak, max(1, left))]
    else:
        decay_steps = num_steps // 10 if cfg.decay_steps is None else cfg.decay_steps
        if decay_steps > left:
            raise InputError(
                f"optim.warmup_steps={warmup} and optim.decay_steps={decay_steps} are more than num_steps={num_steps}"
            )
        parts = [optax.constant_schedule(peak), optax.linear_schedule(peak, 0.0, decay_steps)]
        ends = [num_steps - decay_steps]
    if warmup:
        parts, ends = [optax.linear_schedule(0.0, peak, warmup), *parts], [warmup, *ends]
    return optax.join_schedules(parts, ends)


def decays(params: Any) -> Any:
    """A tree of booleans: True where weight decay (and LAMB's trust ratio) applies, so not to biases and LayerNorm."""

    def one(path: tuple[Any, ...], leaf: Any) -> bool:
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(one, params)


class ScaleByBertAdamState(NamedTuple):
    """First and second moments."""

    mu: Any
    nu: Any


def scale_by_adam(b1: float, b2: float, eps: float, bias_correction: bool) -> optax.GradientTransformationExtraArgs:
    """Adam (Kingma and Ba, 2014; its eps is of the corrected second moment's root), or without bias correction and with epsilon
    outside the root google-research/bert's AdamWeightDecayOptimizer.

    `ok` in its update, a boolean: where it is false the moments stay as they are. Not Optax's, so that XLA updates
    each moment where it lies, in one pass, and computes updates from what it wrote: told nothing, it computes moments twice and
    copies the old ones.
    """

    def init(params: Any) -> Any:
        mu, nu = jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu) if bias_correction else ScaleByBertAdamState(mu, nu)

    def update(updates: Any, state: Any, params: Any = None, *, ok: Any = True, **_: Any) -> tuple[Any, Any]:
        mu = jax.tree.map(lambda g, m: jnp.where(ok, b1 * m + (1 - b1) * g, m), updates, state.mu)
        nu = jax.tree.map(lambda g, v: jnp.where(ok, b2 * v + (1 - b2) * g * g, v), updates, state.nu)
        mu, nu = jax.lax.optimization_barrier((mu, nu))
        if not bias_correction:
            return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), ScaleByBertAdamState(mu, nu)
        count = state.count + jnp.where(ok, 1, 0)
        of_mu, of_nu = 1 - b1**count, 1 - b2**count
        updates = jax.tree.map(lambda m, v: (m / of_mu) / (jnp.sqrt(v / of_nu) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


class Guarded(optax.GradientTransformationExtraArgs):
    """A transformation that needs no guard against bad batches: of finite gradients it makes finite updates, and its `update`
    takes `ok`, a boolean, and keeps its state where that is false.

    Any other has its updates tested by the step, and its whole old state kept, at the cost of a copy of it.
    """


def scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
    """Updates times minus `learning_rate`, an extra argument of `update`, which the training step gives.

    Last in a chain it makes an optimizer of a direction: `optax.chain(optax.scale_by_adam(), scale_by_given_rate())`.
    """

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: Any, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)  # type: ignore[arg-type]


def make_optimizer(cfg: OptimConfig, scales: Any = None) -> Guarded:
    """The optimizer of a config; its `update` takes the extra arguments `learning_rate` and, if it is to be guarded, `ok`.

    Clipping by the global norm is the step's, which knows the norm anyway. LAMB (You et al., 2020): bias-corrected Adam with
    decay, scaled per tensor by |parameter| / |update|; biases and LayerNorm are excluded from both. `scales`: see
    `layer_scales`; what has 0 takes no room for moments.
    """
    adam = scale_by_adam(cfg.b1, cfg.b2, cfg.eps, bias_correction=cfg.name != "adamw_bert")
    chain = [adam, optax.add_decayed_weights(cfg.weight_decay, mask=decays)]
    if cfg.name == "lamb":
        chain.append(optax.masked(optax.scale_by_trust_ratio(), decays))
    direction = optax.chain(*chain)
    if scales is not None:
        direction = optax.chain(optax.masked(direction, jax.tree.map(bool, scales)), _scale(scales))
    rated = scale_by_given_rate()

    def update(updates: Any, state: Any, params: Any = None, **given: Any) -> tuple[Any, Any]:
        updates, state = direction.update(updates, state, params, **given)
        return rated.update(updates, optax.EmptyState(), params, **given)[0], state

    return Guarded(direction.init, update)


def layer_scales(params: Any, num_layers: int, decay: float, frozen: int) -> Any:
    """A tree of multipliers of the learning rate: `decay` to the power of the layers above; 0 for what is frozen.

    Heads and the pooler have 1, layer i decay**(num_layers - i), the embeddings decay**(num_layers + 1) (Sun et al., 2019,
    section 5.3.3). The lowest `frozen` layers and, with them, the embeddings have 0. Layers that share their parameters
    (ALBERT) count as one, groups of them in the place of layers.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> float:
        names = [entry.key for entry in path]
        if names[0] != "encoder":
            return 1.0
        layer = int(names[1].removeprefix("layer_")) if names[1].startswith("layer_") else -1
        return 0.0 if frozen and layer < frozen else decay ** (num_layers - layer)

    return jax.tree_util.tree_map_with_path(one, params)


def _scale(scales: Any) -> optax.GradientTransformation:
    """Updates times `scales`: last in a chain, so that it scales the learning rate."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, s: u * s, updates, scales))
