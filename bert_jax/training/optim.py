"""Learning-rate schedules and optimizers as Optax transformations.

The optimizers have no learning rate of their own: the training step passes it to `update` (see `scale_by_given_rate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from bert_jax.config import OptimConfig, Phase
from bert_jax.training import muon

Schedule = Callable[[Int[Array, ""] | int], ArrayLike]  # step -> learning rate


def make_schedule(cfg: OptimConfig, num_steps: int) -> Schedule:
    """Returns a function from the step to the learning rate: from 0 to the peak in `warmup_steps`, then to 0 at `num_steps`.

    `linear` and `cosine` decay from the end of the warm-up. `warmup_stable_decay` holds the peak until the last `decay_steps`
    (default: a tenth of `num_steps`) and decays on a line or, as 1 - sqrt(share), steeply at first (Hägele et al., 2024).
    `bert_tf` is google-research/bert's optimization.py: its decay is a line from the peak at step 0, which the warm-up overrides,
    so the rate drops to peak * (1 - warmup / num_steps) where the warm-up ends.

    Raises:
      InputError: Warm-up and decay are longer than `num_steps`.
    """
    peak, warmup = cfg.learning_rate, cfg.warmup_steps
    if cfg.schedule == "bert_tf":
        decay = optax.linear_schedule(peak, 0.0, num_steps)

        def bert_tf(step: Int[Array, ""] | int) -> Array:
            return jnp.where(step < warmup, peak * step / max(1, warmup), decay(step))

        return bert_tf
    remaining = num_steps - warmup
    boundaries: list[int] = []
    if cfg.schedule == "linear":
        parts = [optax.linear_schedule(peak, 0.0, remaining)]
    elif cfg.schedule == "cosine":
        parts = [optax.cosine_decay_schedule(peak, max(1, remaining))]
    else:
        decay_steps = cfg.final_decay(num_steps)
        shapes: dict[str, optax.Schedule] = {
            "linear": optax.linear_schedule(peak, 0.0, decay_steps),
            "1-sqrt": lambda step: peak * (1 - jnp.sqrt(jnp.clip(step / max(1, decay_steps), 0.0, 1.0))),
        }
        parts = [optax.constant_schedule(peak), shapes[cfg.decay_shape]]
        boundaries = [num_steps - decay_steps]
    if warmup:
        parts, boundaries = [optax.linear_schedule(0.0, peak, warmup), *parts], [warmup, *boundaries]
    return optax.join_schedules(parts, boundaries)


def scaled_by_phases(schedule: Schedule, phases: Sequence[Phase]) -> Schedule:
    """Returns the schedule times a factor that goes from 1 to the `learning_rate_scale` of one phase after another."""
    changes: list[tuple[float, Callable[[Int[Array, ""] | int], Array]]] = []
    begin, scale = 0, 1.0
    for phase in phases:
        if phase.learning_rate_scale is not None:
            changes.append((phase.learning_rate_scale - scale, _share(phase.learning_rate_shape, begin, phase.until)))
            scale = phase.learning_rate_scale
        begin = phase.until
    if not changes:
        return schedule
    return lambda step: schedule(step) * (1.0 + sum(change * share(step) for change, share in changes))


def _share(shape: str, begin: int, until: int) -> Callable[[Int[Array, ""] | int], Array]:
    """Returns the share of a change over the steps [begin, until) that is done at a step: 0 before them, 1 after them."""

    def share(step: Int[Array, ""] | int) -> Array:
        if shape == "jump":
            return jnp.where(step >= begin, 1.0, 0.0)
        part = jnp.clip((step - begin) / (until - begin), 0.0, 1.0)
        return {"linear": part, "cosine": (1 - jnp.cos(jnp.pi * part)) / 2, "1-sqrt": jnp.sqrt(part)}[shape]

    return share


def decay_mask(params: PyTree) -> PyTree[bool]:
    """Returns a tree of booleans: False for biases, norms and temperatures, which have no weight decay and no trust ratio."""
    free = ("bias", "scale", "log_temperature")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in free, params)


class ScaleByBertAdamState(NamedTuple):
    """First and second moments."""

    mu: PyTree
    nu: PyTree


def scale_by_adam(b1: float, b2: float, eps: float, bias_correction: bool) -> optax.GradientTransformationExtraArgs:
    """Returns Adam (Kingma and Ba, 2014), or google-research/bert's variant of it without bias correction.

    Its `update` takes `ok`, a boolean: if it is false, the moments stay as they are. Unlike `optax.scale_by_adam`, it keeps
    the updates behind an optimization barrier, so that XLA writes each moment in place, in one pass, and reads the written
    moments for the updates. Without the barrier XLA computes the moments twice and copies the old ones.

    Args:
      b1: Decay rate of the first moment.
      b2: Decay rate of the second moment.
      eps: Added to the root of the second moment; with bias correction, of the corrected one.
      bias_correction: False is AdamWeightDecayOptimizer of google-research/bert.
    """

    def init(params: PyTree) -> PyTree:
        mu, nu = jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu) if bias_correction else ScaleByBertAdamState(mu, nu)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, *, ok: ArrayLike = True, **extra: object
    ) -> tuple[PyTree, PyTree]:
        mu = jax.tree.map(lambda g, m: jnp.where(ok, b1 * m + (1 - b1) * g, m), updates, state.mu)
        nu = jax.tree.map(lambda g, v: jnp.where(ok, b2 * v + (1 - b2) * g * g, v), updates, state.nu)
        mu, nu = jax.lax.optimization_barrier((mu, nu))
        if not bias_correction:
            return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), ScaleByBertAdamState(mu, nu)
        count = state.count + jnp.where(ok, 1, 0)
        mu_correction, nu_correction = 1 - b1**count, 1 - b2**count
        updates = jax.tree.map(lambda m, v: (m / mu_correction) / (jnp.sqrt(v / nu_correction) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def clip_updates(adamw: optax.GradientTransformation, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Returns StableAdamW (Wortsman et al., 2023, algorithm 2) from a chain that begins with `scale_by_adam`.

    It divides the updates of a tensor, weight decay included, by max(1, RMS), where RMS is the root mean square of the gradient
    over the root of the corrected second moment. So a gradient that exceeds its history makes no larger step.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: object) -> tuple[PyTree, PyTree]:
        steps, state = optax.with_extra_args_support(adamw).update(updates, state, params, **extra)
        correction = 1 - b2 ** state[0].count

        def clipped(step: Array, gradient: Array, nu: Array) -> Array:
            ratio = jnp.square(gradient) / jnp.maximum(nu / correction, eps**2)
            return step / jnp.maximum(1.0, jnp.sqrt(jnp.mean(ratio)))

        return jax.tree.map(clipped, steps, updates, state[0].nu), state

    return optax.GradientTransformationExtraArgs(adamw.init, update)


class Guarded(optax.GradientTransformationExtraArgs):
    """A transformation that handles skipped batches itself.

    It makes finite updates of finite gradients, and its `update` takes `ok`, a boolean, and keeps its state where that is false.
    For any other transformation the step tests the updates and selects between the old and the new state, which costs a copy of
    the state.
    """


def scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that multiplies updates by minus `learning_rate`, an extra argument of `update`.

    The training step passes that argument. At the end of a chain the transformation makes a descent optimizer:
    `optax.chain(optax.scale_by_adam(), scale_by_given_rate())`.
    """

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, *, learning_rate: Array | float, **extra: object
    ) -> tuple[PyTree, PyTree]:
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    # Optax's protocol for `update` has no required extra argument.
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)  # type: ignore[arg-type]


def make_optimizer(cfg: OptimConfig, scales: PyTree | None = None) -> Guarded:
    """Returns the optimizer of a config; its `update` takes the extra arguments `learning_rate` and, optionally, `ok`.

    Clipping by the global norm belongs to the step, which computes the norm anyway. LAMB (You et al., 2020) is bias-corrected
    Adam with weight decay, scaled by |parameter| / |update| a tensor; biases and norms have neither. Muon (`muon.py`) is for the
    kernels of the layers, at a rate of its own; AdamW is for all else. Each decays its kernels by its rate * weight_decay.

    Args:
      cfg: Names the optimizer and its constants.
      scales: Multipliers of the learning rate from `layer_scales`. A parameter with 0 has no moments.
    """
    adam = scale_by_adam(cfg.b1, cfg.b2, cfg.eps, bias_correction=cfg.name != "adamw_bert")
    decay = optax.add_decayed_weights(cfg.weight_decay, mask=decay_mask)
    parts = [adam, decay]
    if cfg.name == "muon":
        parts = [*_muon_and(adam, cfg), decay, _for_kernels(cfg.muon_learning_rate / cfg.learning_rate)]
    if cfg.name == "lamb":
        parts.append(optax.masked(optax.scale_by_trust_ratio(), decay_mask))
    direction: optax.GradientTransformation = optax.chain(*parts)
    if cfg.name == "stable_adamw":
        direction = clip_updates(direction, cfg.b2, cfg.eps)
    if scales is not None:
        scale = optax.stateless(lambda updates, params: jax.tree.map(lambda u, s: u * s, updates, scales))
        direction = optax.chain(optax.masked(direction, jax.tree.map(bool, scales)), scale)
    descent = scale_by_given_rate()

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: object) -> tuple[PyTree, PyTree]:
        updates, state = direction.update(updates, state, params, **extra)
        return descent.update(updates, optax.EmptyState(), params, **extra)[0], state

    optimizer = Guarded(direction.init, update)
    return optimizer if cfg.ema is None else _with_average(optimizer, cfg.ema)


class Averaged(NamedTuple):
    """The state of an optimizer, the moving average of the parameters, and the number of updates in it (int32)."""

    inner: PyTree
    average: PyTree
    number: Array


def _with_average(optimizer: Guarded, decay: float) -> Guarded:
    """Returns `optimizer` with an exponential moving average of the parameters, which it writes in place.

    The decay of update n (from 0) is min(decay, n / (n + 9)): the average begins at the first updated parameters and covers
    about the last tenth of the updates until that is longer than 1 / (1 - decay).
    """

    def init(params: PyTree) -> Averaged:
        return Averaged(optimizer.init(params), jax.tree.map(jnp.array, params), jnp.int32(0))

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, *, ok: ArrayLike = True, **extra: object
    ) -> tuple[PyTree, PyTree]:
        updates, inner = optimizer.update(updates, state.inner, params, ok=ok, **extra)
        kept = jnp.minimum(decay, state.number / (state.number + 9.0))
        average = jax.tree.map(lambda a, p, u: jnp.where(ok, kept * a + (1 - kept) * (p + u), a), state.average, params, updates)
        return updates, Averaged(inner, average, state.number + jnp.where(ok, 1, 0))

    return Guarded(init, update)


def averaged(params: PyTree, opt_state: PyTree) -> PyTree:
    """Returns the parameters to evaluate and export: the moving average where the optimizer keeps one."""
    return opt_state.average if isinstance(opt_state, Averaged) else params


def _muon_and(adam: optax.GradientTransformationExtraArgs, cfg: OptimConfig) -> list[optax.GradientTransformationExtraArgs]:
    """Returns Muon for the kernels of the layers, and `adam` for all other parameters."""

    def others(params: PyTree) -> PyTree[bool]:
        return jax.tree.map(lambda hidden: not hidden, muon.hidden_matrices(params))

    chosen = muon.scale_by_muon(cfg.muon_momentum, muon.quintics(cfg), muon.SCALES[cfg.muon_scale], cfg.muon_dtype)
    hidden = optax.masked(chosen, muon.hidden_matrices)
    return [hidden, optax.masked(adam, others)]


def _for_kernels(factor: float) -> optax.GradientTransformation:
    """Returns a transformation that multiplies the updates of the layers' kernels: their rate in units of the others' rate."""

    def scaled(updates: PyTree, params: PyTree | None) -> PyTree:
        return jax.tree.map(lambda u, hidden: u * factor if hidden else u, updates, muon.hidden_matrices(updates))

    return optax.stateless(scaled)


def layer_scales(params: PyTree, num_layers: int, decay: float, frozen: int) -> PyTree[float]:
    """Returns a tree of multipliers of the learning rate: `decay` to the power of the layers above, and 0 for frozen parameters.

    Heads and the pooler have 1, layer i has decay**(num_layers - i), the embeddings have decay**(num_layers + 1) (Sun et al.,
    2019, section 5.3.3).

    Args:
      params: The parameter tree.
      num_layers: Layers of the encoder. Layers that share their parameters (ALBERT) count as one.
      decay: The factor from a layer to the one below.
      frozen: The number of the lowest layers that are frozen; more than 0 freezes the embeddings as well.
    """

    def scale(path: tuple[jax.tree_util.DictKey, ...], _: object) -> float:
        names = [entry.key for entry in path]
        if names[0] != "encoder":
            return 1.0
        layer = int(names[1].removeprefix("layer_")) if names[1].startswith("layer_") else -1
        return 0.0 if frozen and layer < frozen else decay ** (num_layers - layer)

    return jax.tree_util.tree_map_with_path(scale, params)
