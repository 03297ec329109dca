"""Fine-tuning runs: several seeds and learning rates on one task, one after the other or in one program, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import pretrained
from bert_jax.config import InputError, OptimConfig
from bert_jax.data.finetuning import Batches
from bert_jax.disk import as_numbers, write_json
from bert_jax.finetuning.config import FinetuneConfig
from bert_jax.finetuning.evaluation import Evaluator, Split
from bert_jax.finetuning.init_head import StartingModel
from bert_jax.inference import sentence_vectors
from bert_jax.model import attention, heads, lora
from bert_jax.model.config import ComputeConfig
from bert_jax.model.heads import Bert
from bert_jax.pooling import Pooling
from bert_jax.tasks.task import Task
from bert_jax.training import checkpoint, loop, losses, memory, multihost, optim, parallel, steps, writer
from bert_jax.training.losses import Sum
from bert_jax.tuned import Tuned

MOST_BETWEEN_CHECKPOINTS = 1000  # steps


class Member(NamedTuple):
    """One run of several."""

    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        """Of its folder and its metrics."""
        return f"seed{self.seed}-lr{self.learning_rate:g}"


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
      best_step: the step whose weights are kept.
      score: what checkpoints are compared by, at that step.
      scores: dev split -> metric -> value, at that step.
      history: of each evaluation: step, score (-inf where not all is finite), scores; empty, and so `scores`, where no weights
        are of use.
      failed: why the run counts as failed: it diverged, or learnt nothing.
    """

    seed: int
    learning_rate: float
    steps: int
    best_step: int
    score: float
    scores: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    failed: str | None
    seconds: float


@dataclass(frozen=True)
class Setting:
    """All that the runs share. `cfg` has no unset values (see `FinetuneConfig.resolved`)."""

    cfg: FinetuneConfig
    task: Task
    start: StartingModel
    batches: Batches | None  # None: nothing to train on
    dev: list[Split]
    evaluator: Evaluator
    devices: parallel.Devices
    data_key: str
    baseline: float | None  # the score of learning nothing, where that is known
    class_weights: np.ndarray | None = None  # float32 [C]: see FinetuneConfig

    @property
    def num_steps(self) -> int:
        """Of a run."""
        assert self.cfg.num_epochs is not None
        assert self.batches is not None
        return max(1, round(self.cfg.num_epochs * self.batches.steps_per_epoch))

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        assert self.batches is not None
        return min(self.cfg.eval_every or self.batches.steps_per_epoch, self.num_steps)

    @cached_property
    def module(self) -> Bert:
        """As it is trained: with the config's dropout and compute type, recomputing what the devices' memory asks for."""
        cfg, compute, drop = self.start.model.config, ComputeConfig(dtype=self.cfg.dtype), self.cfg.dropout
        if drop is not None:
            cfg = cfg.replace(hidden_dropout_prob=drop, attention_probs_dropout_prob=drop, classifier_dropout=drop)
        if self.batches is not None:
            devices, cut = self.devices, self.devices.mesh.shape
            shape = max(self.batches.shapes, key=lambda shape: shape.rows * shape.length)
            rows = -(-shape.rows // devices.rows_cut)
            share = memory.DeviceShare(rows, shape.length, 0, devices.platform, cut["fsdp"], cut["tensor"])
            compute = memory.choose_recomputation(cfg, compute, share, memory.device_bytes(devices.mesh.local_devices[0]))
        return Bert(cfg, self.start.model.head, max(1, len(self.start.model.labels)), compute)

    @property
    def kernel(self) -> str:
        """Which attention kernel the longest batches get, for the log."""
        assert self.batches is not None
        longest = max(shape.length for shape in self.batches.shapes)
        return attention.describe(self.module.cfg, self.module.compute, self.devices.platform, longest, deterministic=False)

    @cached_property
    def optimizer(self) -> Any:
        """Without the learning rate, but with what layers have of it."""
        return optim.make_optimizer(self._optim, self._scales)

    @property
    def _optim(self) -> OptimConfig:
        cfg = self.cfg
        return OptimConfig(
            name=cfg.optimizer, learning_rate=1.0, schedule=cfg.schedule, warmup_steps=int(cfg.warmup_ratio * self.num_steps),
            weight_decay=cfg.weight_decay, eps=cfg.eps, clip_norm=cfg.clip_norm,
        )  # fmt: skip

    @cached_property
    def _scales(self) -> Any:
        """What each parameter that is trained has of the learning rate (0: it is frozen); None where all have all of it."""
        cfg, params = self.cfg, self.start.model.params
        if cfg.lora_rank is not None:
            adapters = jax.eval_shape(partial(lora.initialize, params, cfg.lora_rank), 0)
            head = {name: jax.tree.map(lambda _, of=name: float(of != "encoder"), tree) for name, tree in params.items()}
            return {"model": head, "adapters": jax.tree.map(lambda _: 1.0, adapters)}
        if cfg.layer_decay == 1 and cfg.freeze_layers == 0:
            return None
        return optim.layer_scales(params, self.module.cfg.num_hidden_layers, cfg.layer_decay, cfg.freeze_layers)

    def initial_params(self, seed: int) -> Any:
        """What a run trains: the model's parameters, or with adapters {model, adapters}."""
        params = self.start.params(seed)
        if self.cfg.lora_rank is None:
            return params
        return {"model": params, "adapters": lora.initialize(params, self.cfg.lora_rank, seed)}

    def merged(self, params: Any) -> Any:
        """The model's parameters of what a run trains."""
        if self.cfg.lora_rank is None:
            return params
        return lora.merge(params["model"], params["adapters"], self.cfg.lora_alpha / self.cfg.lora_rank)

    @cached_property
    def step(self) -> Callable[..., Any]:
        """(state, batch, peak learning rate, seed) -> (state, metrics): one program for all runs."""
        sums, scales = make_sums(self), self._scales

        def sums_fn(params: Any, batch: Any, key: Any) -> dict[str, Sum]:
            if scales is not None:  # the backward pass ends above what is frozen
                params = jax.tree.map(lambda p, s: p if s else jax.lax.stop_gradient(p), params, scales)
            return sums(self.merged(params), batch, key)

        update = steps.make_update(sums_fn, self.optimizer, self.cfg.clip_norm, axis_name=self.devices.axis_name)
        rate = optim.make_schedule(self._optim, self.num_steps)

        def step(state: steps.TrainState, batch: Any, peak: Any, seed: Any) -> Any:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            return update(state, batch, jnp.asarray(peak * rate(state.step), jnp.float32), key)

        return step

    @cached_property
    def alone(self) -> Callable[..., Any]:
        """`step`, compiled for a run by itself."""
        return self.devices.jit(self.step, state=self.abstract_state, others=2)

    @cached_property
    def abstract_state(self) -> steps.TrainState:
        """Shapes and types of a run's state."""
        return jax.eval_shape(partial(steps.init_state, optimizer=self.optimizer), self.initial_params(0))


def make_sums(setting: Setting) -> steps.SumsFn:
    """The loss of the task's kind."""
    cfg, kind, module, pooling = setting.cfg, setting.task.kind, setting.module, setting.start.model.pooling
    by_class = None if setting.class_weights is None else jnp.asarray(setting.class_weights)

    def of_items(values: jax.Array, batch: Any) -> jax.Array:
        """[B, S, ...] -> [N, k, ...]: the values of each item's sequences."""
        return values.reshape(-1, *values.shape[2:])[batch["slots"]]

    def similarity(hidden: jax.Array, batch: Any) -> Sum:
        assert isinstance(pooling, Pooling)
        scaled = dataclasses.replace(pooling, normalize=False)  # the losses do it
        vectors = sentence_vectors(scaled, pooling.arrays, hidden, batch["sequence_ids"], batch["cls_positions"])
        parts = jnp.moveaxis(of_items(vectors, batch), 1, 0)
        if cfg.loss == "cosine":
            return losses.cosine_error(parts[0], parts[1], batch["labels"], batch["weights"])
        if cfg.loss == "triplet":
            return losses.triplet_loss(parts[0], parts[1], parts[2], batch["weights"])
        texts, weights = batch["text_ids"].T, batch["weights"]
        candidates, ids = jnp.concatenate(parts[1:]), texts[1:].reshape(-1)
        return losses.ranking_loss(parts[0], candidates, weights, cfg.temperature, texts[0], ids)

    def sums(params: Any, batch: Any, key: Any) -> dict[str, Sum]:
        out = heads.apply(module, params, batch, key, head_only=kind != "similarity")
        labels, weights = batch["labels"], batch["weights"]
        if kind == "similarity":
            return {"similarity_loss": similarity(out["last_hidden_state"], batch)}
        if kind == "question_answering":
            spans = losses.span_cross_entropy(out["start_logits"], out["end_logits"], batch["sequence_ids"], labels, weights)
            return {"span_loss": spans}
        logits = out["logits"]
        if kind == "multi_label":
            return {"label_loss": losses.binary_cross_entropy(logits, labels, weights, by_class)}
        if kind == "regression":
            return {"squared_error_loss": losses.squared_error(logits[..., 0], labels, weights)}
        if kind == "multiple_choice":
            logits = of_items(logits, batch)
        weighted = weights if by_class is None else weights * by_class[labels]
        return {
            "cross_entropy_loss": losses.cross_entropy(logits, labels, weighted, cfg.label_smoothing),
            "accuracy": losses.accuracy(logits, labels, weights),
        }

    return sums


class Runs:
    """Some runs that are trained together: one, or several in one program, each with its own data order and dropout.

    `directory` keeps metrics.jsonl, checkpoints/ and, for each run, export/ (in a folder of its name if there are several).
    """

    def __init__(self, setting: Setting, members: Sequence[Member], directory: Path) -> None:
        self.setting, self.members, self.directory = setting, members, directory
        self.active = np.ones(len(members), bool)
        self.history: list[list[dict[str, Any]]] = [[] for _ in members]

    def folder(self, number: int) -> Path:
        """Where a run's own things are."""
        return self.directory if len(self.members) == 1 else self.directory / self.members[number].name

    # --- one program for several ---

    def initial(self) -> steps.TrainState:
        """The state before the first step; it aliases nothing, as a step gives its buffers away."""
        devices, starts = self.setting.devices, [self.setting.initial_params(member.seed) for member in self.members]
        params = starts[0] if len(starts) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
        init = partial(steps.init_state, optimizer=self.setting.optimizer)
        init = init if len(starts) == 1 else jax.vmap(init)
        params = devices.place(jax.tree.map(np.array, params))  # copied, as the first step gives its buffers away
        return jax.jit(init, out_shardings=devices.shardings(jax.eval_shape(init, params)))(params)

    def train_step(self) -> Callable[[Any, Any], Any]:
        """(state, batch) -> (state, metrics), compiled."""
        peaks, seeds = (np.array(values) for values in zip(*((m.learning_rate, m.seed) for m in self.members), strict=True))
        if len(self.members) == 1:
            return lambda state, batch: self.setting.alone(state, batch, peaks[0], seeds[0])
        names = [member.name for member in self.members]

        def together(states: Any, batches: Any, active: jax.Array) -> Any:
            new, metrics = jax.vmap(self.setting.step)(states, batches, peaks, seeds)

            def keep(new: jax.Array, old: jax.Array) -> jax.Array:  # a run that has stopped stays as it is
                return jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            flat = {f"{name}/{key}": value[i] for key, value in metrics.items() for i, name in enumerate(names)}
            skipped = jnp.min(metrics["skipped_in_a_row"], where=active, initial=2**30)  # the least of those that go on
            shared = {"loss": jnp.mean(metrics["loss"], where=active), "skipped_in_a_row": skipped}
            return jax.tree.map(keep, new, states), flat | shared

        alone = self.setting.abstract_state
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.members), *x.shape), x.dtype), alone)
        compiled = self.setting.devices.jit(together, state=state, axis=1, others=1)
        return lambda states, batches: compiled(states, batches, self.active)

    def params(self, params: Any, number: int) -> Any:
        """The model's of one run."""
        return self.setting.merged(params if len(self.members) == 1 else jax.tree.map(lambda x: x[number], params))

    # --- evaluation ---

    def _evaluate(self, params: Any, stop: loop.StopRequest) -> dict[str, float]:
        setting, evaluator, cfg = self.setting, self.setting.evaluator, self.setting.cfg
        values: dict[str, float] = {}
        here = setting.devices.one_device(params)
        for i, member in enumerate(self.members):
            if not self.active[i]:
                continue
            own, history = self.params(here, i), self.history[i]
            with np.errstate(all="ignore"):  # NaN of a run that diverged is dealt with below
                predicted = {split.name: evaluator.predict(split, own) for split in setting.dev}
                tuned = evaluator.tune(setting.dev, predicted)
                scores = {split.name: evaluator.scores(split, predicted[split.name], tuned) for split in setting.dev}
            scores = multihost.from_first(scores)  # another host's may differ in the last bit
            score = float(np.mean([evaluator.main_score(of, cfg.metric) for of in scores.values()]))
            if not all(np.isfinite(value) for of in scores.values() for value in of.values()):
                score = float("-inf")  # NaN would be neither better nor worse than any other
            step = min((len(history) + 1) * setting.eval_every, setting.num_steps)
            history.append({"step": step, "score": score, "scores": scores})
            since = len(history) - 1 - _best(history)
            if multihost.is_first() and (cfg.select == "last" or since == 0):
                self._export(i, own, tuned)
            self.active[i] = cfg.early_stopping is None or since < cfg.early_stopping
            of = "" if len(self.members) == 1 else f"{member.name}/"
            for name, each in scores.items():
                among = "" if len(scores) == 1 else f"{name}/"
                values |= {f"eval/{of}{among}{metric}": value for metric, value in each.items()}
        stop.enough = not self.active.any()
        return values

    def _export(self, number: int, params: Any, tuned: Tuned) -> None:
        """With all that predictors need to predict as it was scored."""
        model, pooling = self.setting.start.model, self.setting.start.model.pooling
        if isinstance(pooling, Pooling):
            pooling = dataclasses.replace(pooling, max_length=tuned.max_length)
        model = dataclasses.replace(model, params=jax.device_get(params), tuned=tuned, pooling=pooling)
        pretrained.save(model, self.folder(number) / "export")

    # --- the run ---

    def done(self) -> list[Outcome] | None:
        """What came of each run, where all are done."""
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
                raise InputError(f"{path} is damaged ({error}): delete it, and the run is made again") from None
            if key != self.setting.data_key:
                raise InputError(_other_data(f"{path} was made"))
        return found

    def fit(self, stop: loop.StopRequest) -> list[Outcome]:
        """Trains, or goes on, to the end or to `stop`; what came of each run (nothing where `stop` ended it)."""
        setting, begun = self.setting, time.perf_counter()
        saved = checkpoint.Checkpointer(self.directory / "checkpoints", keep=1, best_metric=None)
        state, start, seconds, lines = self._restore(saved)
        num_steps, rows = setting.num_steps, 0 if len(self.members) == 1 else 1
        seeds = [member.seed for member in self.members]
        first = multihost.is_first()
        if first:
            writer.cut(self.directory / "metrics.jsonl", start or -1, lines)
        stop.enough = not self.active.any()
        train, newest = self.train_step(), state

        def step(state: steps.TrainState, batch: Any) -> Any:
            nonlocal newest
            newest, metrics = train(state, batch)
            return newest, metrics

        log = writer.Writer(self.directory, num_steps, start) if first else writer.Silent()
        with closing(log), closing(saved), multihost.Watchdog(setting.cfg.parallel.stuck_timeout) as alive:

            def save(state: steps.TrainState, evaluation: dict[str, float]) -> None:
                kept: dict[str, Any] = {"data": setting.data_key, "history": self.history, "active": self.active.tolist()}
                kept |= {"lines": log.lines, "seconds": seconds + time.perf_counter() - begun}
                saved.save(int(np.max(state.step)), state, kept)

            every = min(setting.eval_every, MOST_BETWEEN_CHECKPOINTS)
            cadence = loop.Cadence(num_steps, setting.cfg.log_every, setting.eval_every, every, OptimConfig().max_skipped)
            assert setting.batches is not None
            stream = setting.batches.stream(seeds, start, num_steps)
            with contextlib.suppress(loop.Diverged):  # what was skipped tells
                loop.fit(
                    state, step, stream, alive.watched(partial(setting.devices.put_whole, axis=rows)), cadence,
                    partial(self._evaluate, stop=stop), save, log, stop, loop.Cost(_tokens, 0.0, None),
                )  # fmt: skip
        if stop.signal is not None:
            return []
        seconds += time.perf_counter() - begun
        ends, in_a_row = (np.atleast_1d(jax.device_get(x)).tolist() for x in (newest.step, newest.skipped_in_a_row))
        outcomes = [self._outcome(i, ends[i], in_a_row[i], seconds / len(self.members)) for i in range(len(self.members))]
        for i, outcome in enumerate(outcomes if first else ()):
            write_json(self.folder(i) / "run.json", dataclasses.asdict(outcome) | {"data": setting.data_key})
        multihost.barrier("the run is written")
        return outcomes

    def drop_checkpoints(self) -> None:
        """Of runs that are done, and will not go on: parameters and moments, three times what a model's file has."""
        if multihost.is_first():
            shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)

    def _restore(self, saved: checkpoint.Checkpointer) -> tuple[steps.TrainState, int, float, int]:
        """(state, its step, seconds that it took, lines of metrics that were written)."""
        fresh = self.initial()
        restored = saved.restore_latest(fresh)
        if restored is None:
            return fresh, 0, 0.0, 0
        state, meta, start = restored
        if meta["data"] != self.setting.data_key:
            raise InputError(_other_data(f"{self.directory} was begun"))
        self.history, self.active = meta["history"], np.array(meta["active"])
        return state, start, meta["seconds"], meta.get("lines", 0)

    def _outcome(self, number: int, end: int, in_a_row: int, seconds: float) -> Outcome:
        """`in_a_row`: the updates up to step `end` that were skipped, as they were not finite."""
        setting, member, history = self.setting, self.members[number], self.history[number]
        kept = history[_best(history) if setting.cfg.select == "best" else -1] if history else None
        failed = f"the last {in_a_row} updates were not finite" if in_a_row else None
        if kept is None or not np.isfinite(kept["score"]) or (in_a_row and kept["step"] >= end - in_a_row):
            return Outcome(*member, end, 0, float("-inf"), {}, [], failed or "its predictions were not finite", seconds)
        if failed is None and setting.baseline is not None and kept["score"] <= setting.baseline + 1e-9:
            failed = f"no better than learning nothing ({setting.baseline:.4f})"
        return Outcome(*member, history[-1]["step"], kept["step"], kept["score"], kept["scores"], history, failed, seconds)


def _best(history: Sequence[dict[str, Any]]) -> int:
    """The best evaluation; of equal scores, as accuracies often are, that of the lowest loss on dev, then the first."""

    def rank(i: int) -> tuple[float, float, int]:
        losses = [scores["loss"] for scores in history[i]["scores"].values() if "loss" in scores]
        loss = float(np.mean(losses)) if losses else 0.0
        return history[i]["score"], -loss if np.isfinite(loss) else float("-inf"), -i

    return max(range(len(history)), key=rank)


def _other_data(what: str) -> str:
    return (
        f"the data is not what {what} with: the files differ, or this version reads or splits them in another way. "
        "Restore them, or give another --workdir"
    )


def _tokens(batch: dict[str, np.ndarray]) -> int:
    return int((batch["sequence_ids"] > 0).sum())
