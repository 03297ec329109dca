"""Resumable fine-tuning runs: several seeds and learning rates on a task, one after the other or in one program."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bert_jax import pretrained
from bert_jax.config import OptimConfig
from bert_jax.disk import as_numbers, write_json
from bert_jax.errors import InputError
from bert_jax.finetuning.trainer import Stepped, Trainer
from bert_jax.pooling import Embedding
from bert_jax.tasks.metrics import Scores
from bert_jax.tasks.split import Predictions
from bert_jax.training import checkpoint, loop, multihost, steps, writer
from bert_jax.tuned import Tuned

MOST_BETWEEN_CHECKPOINTS = 1000  # steps


class Member(NamedTuple):
    """The seed and the learning rate of a run."""

    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        """The name of the folder and the metrics of the run."""
        return f"seed{self.seed}-lr{self.learning_rate:g}"


class Evaluation(TypedDict):
    """The scores of the dev splits after a step; `score` is -inf where a value is not finite."""

    step: int
    score: float
    scores: dict[str, Scores]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run, as in run.json and results.json."""

    seed: int
    learning_rate: float
    steps: int
    best_step: int  # the step whose weights are kept
    score: float  # the score at that step that compares checkpoints
    scores: dict[str, Scores]  # dev split -> metric -> value, at that step
    history: list[Evaluation]  # all evaluations; empty, as `scores`, where no weights are usable
    failed: str | None  # the reason if the run diverged or learnt nothing
    seconds: float  # the duration of training

    @property
    def member(self) -> Member:
        """The seed and the learning rate."""
        return Member(self.seed, self.learning_rate)


class Scored(NamedTuple):
    """The predictions for the dev splits by the weights that a run exported, and the checksum of these weights."""

    checksum: int
    predictions: dict[str, Predictions]


def checksum(params: PyTree) -> int:
    """Returns a CRC-32 of parameters on the host, which tells whether an export has the weights that were scored."""
    return reduce(lambda crc, leaf: zlib.crc32(np.ascontiguousarray(leaf).data, crc), jax.tree.leaves(params), 0)


class Runs:
    """One run, or several that train in one program, each with its own order of the data and dropout.

    `directory` has metrics.jsonl, checkpoints/ and the export/ of each run (of several runs in a folder of its name).
    """

    def __init__(self, trainer: Trainer, members: Sequence[Member], directory: Path) -> None:
        self.trainer, self.members, self.directory = trainer, members, directory
        self.active = np.ones(len(members), bool)
        self.history: list[list[Evaluation]] = [[] for _ in members]
        self.scored: dict[Member, Scored] = {}  # for the models that this process exported

    def folder(self, number: int) -> Path:
        """Returns the folder of a run."""
        return self.directory if len(self.members) == 1 else self.directory / self.members[number].name

    # --- one program for several ---

    def initial(self) -> steps.TrainState:
        """Returns the state before the first step, in buffers of its own, which the first step donates."""
        devices, starts = self.trainer.devices, [self.trainer.initial_params(member.seed) for member in self.members]
        params = starts[0] if len(starts) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
        init = partial(steps.init_state, optimizer=self.trainer.optimizer)
        init = init if len(starts) == 1 else jax.vmap(init)
        params = devices.place(jax.tree.map(np.array, params))
        return jax.jit(init, out_shardings=devices.shardings(jax.eval_shape(init, params)))(params)

    def train_step(self) -> Callable[[steps.TrainState, steps.Batch], Stepped]:
        """Returns the compiled function (state, batch) -> (state, metrics)."""
        peaks, seeds = (np.array(values) for values in zip(*((m.learning_rate, m.seed) for m in self.members), strict=True))
        if len(self.members) == 1:
            return lambda state, batch: self.trainer.alone(state, batch, peaks[0], seeds[0])
        names = [member.name for member in self.members]

        def together(states: steps.TrainState, batches: steps.Batch, active: jax.Array) -> Stepped:
            new, metrics = jax.vmap(self.trainer.step)(states, batches, peaks, seeds)

            def keep(new: jax.Array, old: jax.Array) -> jax.Array:  # stopped runs do not change
                return jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            flat = {f"{name}/{key}": value[i] for key, value in metrics.items() for i, name in enumerate(names)}
            skipped = jnp.min(metrics["skipped_in_a_row"], where=active, initial=2**30)  # the minimum over the active runs
            shared = {"loss": jnp.mean(metrics["loss"], where=active), "skipped_in_a_row": skipped}
            return jax.tree.map(keep, new, states), flat | shared

        alone = self.trainer.abstract_state
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.members), *x.shape), x.dtype), alone)
        compiled = self.trainer.devices.jit(together, state=state, axis=1, others=1)
        return lambda states, batches: compiled(states, batches, self.active)

    def trained(self, params: PyTree, number: int) -> PyTree:
        """Returns the trained tree of one run."""
        return params if len(self.members) == 1 else jax.tree.map(lambda x: x[number], params)

    # --- evaluation ---

    def _evaluate(self, params: PyTree, stop: loop.StopRequest) -> list[dict[str, float]]:
        trainer, evaluator, cfg = self.trainer, self.trainer.evaluator, self.trainer.cfg
        values: dict[str, float] = {}
        here = trainer.devices.one_device(params)
        for i, member in enumerate(self.members):
            if not self.active[i]:
                continue
            trained, history = self.trained(here, i), self.history[i]
            own, temperature = trainer.merged(trained), trainer.temperature(trained)
            with np.errstate(all="ignore"):  # the NaN of diverged runs is handled below
                predicted: dict[str, Predictions] = {split.name: evaluator.predict(split, own) for split in trainer.dev}
                tuned = evaluator.tune(trainer.dev, predicted)
                tuned = dataclasses.replace(tuned, temperature=None if temperature is None else float(temperature))
                scores = {split.name: evaluator.scores(split, predicted[split.name], tuned) for split in trainer.dev}
            scores = multihost.from_first(scores)  # other hosts may differ in the last bit
            score = float(np.mean([evaluator.main_score(of, cfg.metric) for of in scores.values()]))
            if not all(np.isfinite(value) for of in scores.values() for value in of.values()):
                score = float("-inf")  # NaN does not compare
            step = min((len(history) + 1) * trainer.eval_every, trainer.num_steps)
            history.append({"step": step, "score": score, "scores": scores})
            since = len(history) - 1 - _best(history)
            if multihost.is_first() and (cfg.select == "last" or since == 0):
                self._export(i, own, tuned, predicted)
            self.active[i] = cfg.early_stopping is None or since < cfg.early_stopping
            of = "" if len(self.members) == 1 else f"{member.name}/"
            for name, each in scores.items():
                among = "" if len(scores) == 1 else f"{name}/"
                values |= {f"eval/{of}{among}{metric}": value for metric, value in each.items()}
        stop.enough = not self.active.any()
        return [values]

    def _export(self, number: int, params: PyTree, tuned: Tuned, predicted: dict[str, Predictions]) -> None:
        """Saves the model of a run with the lengths and thresholds that it was scored with."""
        model, pooling = self.trainer.start.model, self.trainer.start.model.pooling
        if isinstance(pooling, Embedding):
            pooling = pooling.replace(max_length=tuned.max_length)
        model = dataclasses.replace(model, params=jax.device_get(params), tuned=tuned, pooling=pooling)
        pretrained.save(model, self.folder(number) / "export")
        self.scored[self.members[number]] = Scored(checksum(model.params), predicted)

    # --- the run ---

    def done(self) -> list[Outcome] | None:
        """Returns the outcome of each run, or None unless all are done."""
        found = []
        for number in range(len(self.members)):
            path = self.folder(number) / "run.json"
            if not path.is_file():
                return None
            try:
                values = json.loads(path.read_text(encoding="utf-8"), object_hook=as_numbers)
                key = values.pop("data")
                found.append(Outcome(**values))
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{path} is damaged ({error}): delete it to repeat the run") from None
            if key != self.trainer.data_key:
                raise InputError(_other_data(str(path)))
        return found

    def fit(self, stop: loop.StopRequest) -> list[Outcome]:
        """Trains from the start or the last checkpoint; returns the outcome of each run, or none where `stop` ended them."""
        trainer, begun = self.trainer, time.perf_counter()
        saved = checkpoint.Checkpointer(self.directory / "checkpoints", keep=1, best_metric=None)
        state, start, seconds, lines = self._restore(saved)
        num_steps, rows = trainer.num_steps, 0 if len(self.members) == 1 else 1
        seeds = [member.seed for member in self.members]
        first = multihost.is_first()
        if first:
            writer.cut(self.directory / "metrics.jsonl", start or -1, lines)
        stop.enough = not self.active.any()
        train, newest = self.train_step(), state

        def step(state: steps.TrainState, batch: steps.Batch) -> Stepped:
            nonlocal newest
            newest, metrics = train(state, batch)
            return newest, metrics

        log = writer.Writer(self.directory, num_steps, start) if first else writer.Silent()
        with closing(log), closing(saved), multihost.Watchdog(trainer.cfg.parallel.stuck_timeout) as alive:

            def save(state: steps.TrainState, evaluation: dict[str, float]) -> None:
                if self._ended(int(np.max(state.step)), stop):
                    return  # run.json follows, and the checkpoints of finished runs are deleted
                kept: dict[str, object] = {"data": trainer.data_key, "history": self.history, "active": self.active.tolist()}
                kept |= {"lines": log.lines, "seconds": seconds + time.perf_counter() - begun}
                saved.save(int(np.max(state.step)), state, kept)

            every = min(trainer.eval_every, MOST_BETWEEN_CHECKPOINTS)
            cadence = loop.Cadence(num_steps, trainer.cfg.log_every, trainer.eval_every, every, OptimConfig().max_skipped)
            assert trainer.batches is not None
            stream = trainer.batches.stream(seeds, start, num_steps)
            with contextlib.suppress(loop.Diverged):  # the state has the number of skipped updates
                loop.fit(
                    state, step, stream, alive.watched(partial(trainer.devices.put_whole, axis=rows)), cadence,
                    partial(self._evaluate, stop=stop), save, log, stop, loop.Cost(_tokens, 0.0, None),
                )  # fmt: skip
        if stop.signal is not None and not self._ended(int(np.max(jax.device_get(newest.step))), stop):
            return []
        seconds += time.perf_counter() - begun
        ends, in_a_row = (np.atleast_1d(jax.device_get(x)).tolist() for x in (newest.step, newest.skipped_in_a_row))
        outcomes = [self._outcome(i, ends[i], in_a_row[i], seconds / len(self.members)) for i in range(len(self.members))]
        for i, outcome in enumerate(outcomes if first else ()):
            write_json(self.folder(i) / "run.json", dataclasses.asdict(outcome) | {"data": trainer.data_key})
        multihost.barrier("the run is written")
        return outcomes

    def _ended(self, step: int, stop: loop.StopRequest) -> bool:
        return step == self.trainer.num_steps or stop.enough

    def drop_checkpoints(self) -> None:
        """Deletes the checkpoints of finished runs, which are three times as large as the model."""
        if multihost.is_first():
            shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)

    def _restore(self, saved: checkpoint.Checkpointer) -> tuple[steps.TrainState, int, float, int]:
        """Returns the state, its step, the seconds of training so far, and the number of lines of metrics."""
        fresh = self.initial()
        restored = saved.restore_latest(fresh)
        if restored is None:
            return fresh, 0, 0.0, 0
        state, meta, start = restored
        if meta["data"] != self.trainer.data_key:
            raise InputError(_other_data(str(self.directory)))
        self.history, self.active = meta["history"], np.array(meta["active"])
        return state, start, meta["seconds"], meta.get("lines", 0)

    def _outcome(self, number: int, end: int, in_a_row: int, seconds: float) -> Outcome:
        """Returns the outcome of a run of `end` steps, of which the last `in_a_row` were skipped because they were not finite."""
        trainer, member, history = self.trainer, self.members[number], self.history[number]
        kept = history[_best(history) if trainer.cfg.select == "best" else -1] if history else None
        failed = f"the last {in_a_row} updates were not finite" if in_a_row else None
        if kept is None or not np.isfinite(kept["score"]) or (in_a_row and kept["step"] >= end - in_a_row):
            return Outcome(*member, end, 0, float("-inf"), {}, [], failed or "its predictions were not finite", seconds)
        if failed is None and trainer.baseline is not None and kept["score"] <= trainer.baseline + 1e-9:
            failed = f"no better than a model that learnt nothing ({trainer.baseline:.4f})"
        return Outcome(*member, history[-1]["step"], kept["step"], kept["score"], kept["scores"], history, failed, seconds)


def _best(history: Sequence[Evaluation]) -> int:
    """Returns the best evaluation: of the highest score, then of the lowest dev loss, then the first."""

    def rank(i: int) -> tuple[float, float, int]:
        losses = [scores["loss"] for scores in history[i]["scores"].values() if "loss" in scores]
        loss = float(np.mean(losses)) if losses else 0.0
        return history[i]["score"], -loss if np.isfinite(loss) else float("-inf"), -i

    return max(range(len(history)), key=rank)


def _other_data(what: str) -> str:
    changed = "the files, or the way this version reads or splits them, have changed"
    return f"the data differs from that of {what}: {changed}. Restore them, or give another --workdir"


def _tokens(batch: dict[str, np.ndarray]) -> int:
    return int((batch["sequence_ids"] > 0).sum())
