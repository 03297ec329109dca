"""The training loop and evaluation; they take callables and know no model and no dataset."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.training.losses import Sum
from bert_jax.training.optim import averaged
from bert_jax.training.steps import TrainState
from bert_jax.training.writer import Log

HostBatch = dict[str, np.ndarray]
T = TypeVar("T")


class Diverged(InputError):
    """Raised when too many updates in a row were not finite."""


class StopRequest:
    """A context in which SIGTERM and SIGINT end the loop after the current step; a second signal ends it at once.

    Python delivers signals to the main thread only, so in another thread no handlers are set and the loop runs to its end.
    An evaluation may set `enough` to end the loop after it. Where several processes must end after the same step, `agreed`,
    which returns True to stop, replaces the handlers.
    """

    def __init__(self, agreed: Callable[[], bool] | None = None) -> None:
        self.signal: int | None = None
        self.enough = False
        self._agreed = agreed
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def asked(self) -> bool:
        """Returns True if the loop is to end after this step; called once a step."""
        if self._agreed is not None and self.signal is None and self._agreed():
            self.signal = signal.SIGTERM
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if self._agreed is None and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@dataclass(frozen=True)
class Cadence:
    """The number of steps, and the numbers of steps between log lines, evaluations and checkpoints."""

    num_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    max_skipped: int


@dataclass(frozen=True)
class Cost:
    """The work of a step, from which tokens/s and MFU are computed.

    Attributes:
      tokens: Counts the tokens of a batch without padding.
      flops: FLOPs of a step on all devices.
      peak_flops: Peak FLOP/s of all devices together, or None if it is not known.
    """

    tokens: Callable[[HostBatch], int]
    flops: float
    peak_flops: float | None


class _Meter:
    """Reads and logs the metrics of a step, one step after its dispatch, with the speed since the last line."""

    def __init__(self, cadence: Cadence, log: Log, cost: Cost, first_loss: float | None) -> None:
        self.cadence, self.log, self.cost, self.first_loss = cadence, log, cost, first_loss
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.shown: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Restarts the clock."""
        self.begun, self.waited, self.tokens, self.steps = time.perf_counter(), 0.0, 0, 0

    def _speed(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.begun
        values = {
            "step_seconds": seconds / max(1, self.steps),
            "tokens_per_second": self.tokens / seconds,
            "data_wait_share": self.waited / seconds,
        }
        if self.cost.peak_flops:
            values["mfu"] = self.cost.flops * self.steps / seconds / self.cost.peak_flops
        return values

    def settle(self) -> None:
        """Waits for the pending step, so that at most two are in flight, and logs it at the cadence."""
        if self.pending is None:
            return
        (step, on_device), self.pending = self.pending, None
        jax.block_until_ready(on_device)
        if step % self.cadence.log_every and step not in (1, self.cadence.num_steps):
            return
        values = {name: value.item() for name, value in jax.device_get(on_device).items()}
        in_a_row = int(values.pop("skipped_in_a_row"))
        if self.first_loss is not None and step == 1 and not abs(values["loss"] - self.first_loss) < 1:
            self.log.message(
                f"warning: the first loss is {values['loss']:.2f}, where an untrained model has about {self.first_loss:.2f} "
                "(guessing at random): something is wrong with the weights or the labels"
            )
        self.log.scalars(step, {f"train/{name}": value for name, value in values.items()})
        speed = self._speed()
        self.log.timing(step, speed)
        self.restart()
        self.shown.update(loss=values["loss"], tokens_per_second=speed["tokens_per_second"])
        if in_a_row >= self.cadence.max_skipped:
            raise Diverged(
                f"the updates of steps {step - in_a_row + 1} to {step} were not finite and were skipped: {in_a_row} in a row "
                "(optim.max_skipped). Lower optim.learning_rate, or look at those batches"
            )


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[HostBatch],
    put: Callable[[HostBatch], PyTree],
    cadence: Cadence,
    evaluate: Callable[[PyTree], list[dict[str, float]]],
    save: Callable[[TrainState, dict[str, float]], None],
    log: Log,
    stop: StopRequest,
    cost: Cost,
    first_loss: float | None = None,
) -> TrainState:
    """Trains from `state.step` to `cadence.num_steps`, or until `stop`; returns the last state.

    Step n + 1 is dispatched before the metrics of step n are read, so the device does not wait for the host. All metrics up to a
    step are on disk before the step is saved.

    Args:
      state: The state to start from.
      train_step: (state, batch on the devices) -> (state, metrics).
      batches: The batches of this process, from `state.step` on.
      put: Moves a batch to the devices.
      cadence: When to log, evaluate, save and end.
      evaluate: params, or their moving average -> values by name, a dictionary for each line of the log; called at its cadence
        and at the end.
      save: Called with the state and the last evaluation, at its cadence and at the end.
      log: Receives metrics, times and messages.
      stop: Ends the loop early.
      cost: The work of a step.
      first_loss: The expected loss of an untrained model; a loss of step 1 that is 1 away from it is warned of.

    Raises:
      Diverged: `cadence.max_skipped` updates in a row were not finite; the message names the steps.
    """
    step = int(np.max(state.step))  # several runs in one program: the step of those that continue
    meter = _Meter(cadence, log, cost, first_loss)
    stopped = stop.signal is not None
    while step < cadence.num_steps and not stopped and not stop.enough:
        asked = time.perf_counter()
        batch = next(batches)
        meter.waited += time.perf_counter() - asked
        state, metrics = train_step(state, put(batch))
        meter.settle()
        step += 1
        meter.steps += 1
        meter.tokens += cost.tokens(batch)
        meter.pending = step, metrics
        log.progress(step, **meter.shown)
        evaluation: dict[str, float] = {}
        if step % cadence.eval_every == 0 or step == cadence.num_steps:
            meter.settle()
            for values in evaluate(averaged(state.params, state.opt_state)):
                log.scalars(step, values)
                shown = (f"{name.removeprefix('eval/')} {value:.4f}" for name, value in values.items())
                log.message(f"step {step}: " + "  ".join(shown))
                evaluation |= values
            meter.restart()
        stopped = stop.asked()  # after the evaluation, which may take long
        if step % cadence.checkpoint_every == 0 or step == cadence.num_steps or stopped:
            meter.settle()
            log.flush()
            save(state, evaluation)
    meter.settle()
    log.flush()
    return state


def profiled(step: Callable[..., T], skip: int, count: int, directory: Path) -> Callable[..., T]:
    """Returns `step`, traced by the profiler from call `skip` + 1 to call `skip` + `count`."""
    calls = 0

    def traced(*args: PyTree) -> T:
        nonlocal calls
        if calls == skip:
            jax.profiler.start_trace(directory)
        calls += 1
        results = step(*args)
        if calls == skip + count:
            jax.block_until_ready(results)
            jax.profiler.stop_trace()
        return results

    return traced


def evaluate_sums(
    eval_step: Callable[[PyTree, PyTree], dict[str, Sum]],
    params: PyTree,
    batches: Iterable[HostBatch],
    put: Callable[[HostBatch], PyTree],
    weights: Mapping[str, float],
) -> dict[str, float]:
    """Returns the means over all `batches` of the sums of `eval_step`.

    `weights` holds the weight of all examples together, by name of the sum.

    Raises:
      AssertionError: The batches add up to another weight.
    """
    sums = [jax.device_get(eval_step(params, put(batch))) for batch in batches]
    total: dict[str, Sum] = jax.tree.map(lambda *parts: sum(parts), *sums)
    for name, expected in weights.items():
        if abs(float(total[name].weight) - expected) > 1e-3 * expected:
            raise AssertionError(f"evaluation counted a weight of {total[name].weight} in {name}, but the set has {expected}")
    return {name: float(s.total) / max(float(s.weight), 1e-9) for name, s in total.items()}
