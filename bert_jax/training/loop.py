"""fit and evaluate: take callables, know no model and no dataset."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import jax
import numpy as np

from bert_jax.config import InputError
from bert_jax.training.steps import TrainState

Batch = dict[str, np.ndarray]


class Log(Protocol):
    """What the loop asks of a writer."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...
    def timing(self, step: int, values: dict[str, float]) -> None: ...
    def progress(self, step: int, **shown: float) -> None: ...
    def message(self, text: str) -> None: ...
    def flush(self) -> None: ...


class Diverged(InputError):
    """Too many updates in a row were not finite."""


class StopRequest:
    """Set by SIGTERM and SIGINT, so that the loop ends behind the step it is in; a second signal ends it at once.

    An evaluation may set `enough`: then the loop ends behind it. `agreed` (whether to stop) takes the place of signals
    where several processes must end behind the same step.
    """

    def __init__(self, agreed: Callable[[], bool] | None = None) -> None:
        self.signal: int | None = None
        self.enough = False
        self._agreed = agreed
        self._before: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether to end behind this step; called once a step."""
        if self._agreed is not None and self.signal is None and self._agreed():
            self.signal = signal.SIGTERM
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if self._agreed is not None:
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
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
    """How far, and how often what."""

    num_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    max_skipped: int


@dataclass(frozen=True)
class Cost:
    """What a step processes, for tokens/s and MFU."""

    tokens: Callable[[Batch], int]  # real ones, padding left out
    flops: float
    peak_flops: float | None  # of all devices together


class _Clock:
    """Wall time since the last line, the part of it spent waiting for data, and the tokens that passed."""

    def __init__(self, cost: Cost) -> None:
        self.cost = cost
        self.restart()

    def restart(self) -> None:
        self.begun, self.waited, self.tokens, self.steps = time.perf_counter(), 0.0, 0, 0

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.begun
        values = {
            "step_seconds": seconds / max(1, self.steps),
            "tokens_per_second": self.tokens / seconds,
            "data_wait_share": self.waited / seconds,
        }
        if self.cost.peak_flops:
            values["mfu"] = self.cost.flops * self.steps / seconds / self.cost.peak_flops
        return values


class _Account:
    """Reads the metrics of a step and logs them, one step behind the dispatch."""

    def __init__(self, cadence: Cadence, log: Log, clock: _Clock, first_loss: float | None) -> None:
        self.cadence, self.log, self.clock, self.first_loss = cadence, log, clock, first_loss
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.shown: dict[str, float] = {}

    def settle(self) -> None:
        """Waits for the pending step, so that no more than two are under way, and logs it where it is its turn."""
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
                "(guessing by chance): something is wrong with the weights or the labels"
            )
        self.log.scalars(step, {f"train/{name}": value for name, value in values.items()})
        timing = self.clock.read()
        self.log.timing(step, timing)
        self.clock.restart()
        self.shown.update(loss=values["loss"], tokens_per_second=timing["tokens_per_second"])
        if in_a_row >= self.cadence.max_skipped:
            raise Diverged(
                f"the updates of steps {step - in_a_row + 1} to {step} were not finite and were skipped: {in_a_row} in a row "
                "(optim.max_skipped). Lower optim.learning_rate, or look at those batches"
            )


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[Batch],
    put: Callable[[Batch], Any],
    cadence: Cadence,
    evaluate: Callable[[Any], dict[str, float]],
    save: Callable[[TrainState, dict[str, float]], None],
    log: Log,
    stop: StopRequest,
    cost: Cost,
    first_loss: float | None = None,
) -> TrainState:
    """Trains from `state.step` to `cadence.num_steps`, or until `stop`.

    Step n + 1 is dispatched before the metrics of step n are read, so the device does not wait for the host. `evaluate`
    (params -> values) and `save` (state, last evaluation) run at their cadences and at the end; all metrics up to a step
    are on disk before it is saved. `first_loss` is what the loss of step 1 should be near.

    Raises Diverged where `cadence.max_skipped` updates in a row were not finite, naming the steps.
    """
    step = int(np.max(state.step))  # of several runs in one program, that of those that go on
    account = _Account(cadence, log, _Clock(cost), first_loss)
    stopped = stop.signal is not None
    while step < cadence.num_steps and not stopped and not stop.enough:
        asked = time.perf_counter()
        batch = next(batches)
        account.clock.waited += time.perf_counter() - asked
        state, metrics = train_step(state, put(batch))
        account.settle()
        step += 1
        account.clock.steps += 1
        account.clock.tokens += cost.tokens(batch)
        account.pending = step, metrics
        log.progress(step, **account.shown)
        evaluation: dict[str, float] = {}
        if step % cadence.eval_every == 0 or step == cadence.num_steps:
            account.settle()
            evaluation = evaluate(state.params)
            log.scalars(step, evaluation)
            log.message(f"step {step}: " + "  ".join(f"{name.removeprefix('eval/')} {v:.4f}" for name, v in evaluation.items()))
            account.clock.restart()
        stopped = stop.asked()  # behind the evaluation, which may take long
        if step % cadence.checkpoint_every == 0 or step == cadence.num_steps or stopped:
            account.settle()
            log.flush()
            save(state, evaluation)
    account.settle()
    log.flush()
    return state


def profiled(step: Callable[..., Any], skip: int, count: int, directory: Any) -> Callable[..., Any]:
    """`step`, which writes a trace of its calls number `skip` + 1 to `skip` + `count`."""
    calls = 0

    def traced(*args: Any) -> Any:
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
    eval_step: Callable[[Any, Any], dict[str, Any]],
    params: Any,
    batches: Iterable[Batch],
    put: Callable[[Batch], Any],
    weights: dict[str, float],
) -> dict[str, float]:
    """Means over all `batches` of what `eval_step` sums; `weights` are the sums' weights that all examples add up to."""
    total: dict[str, Any] = {}
    for batch in batches:
        sums = jax.device_get(eval_step(params, put(batch)))
        total = {n: (s.total + total[n][0], s.weight + total[n][1]) if total else (s.total, s.weight) for n, s in sums.items()}
    for name, expected in weights.items():
        if abs(float(total[name][1]) - expected) > 1e-3 * expected:
            raise AssertionError(f"evaluation counted a weight of {total[name][1]} in {name}, where the set has {expected}")
    return {name: float(t) / max(float(w), 1e-9) for name, (t, w) in total.items()}
