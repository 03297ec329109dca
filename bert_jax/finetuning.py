"""Fine-tuning runs: several seeds and learning rates on one task, one after the other or in one program, resumable."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
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
from jax.sharding import Mesh

from bert_jax import pretrained
from bert_jax.config import InputError, OptimConfig
from bert_jax.data.finetuning import Batches, check_choices, encode
from bert_jax.data.layout import Layout
from bert_jax.data.splits import Splits
from bert_jax.data.tasks import Kind, Record, Task
from bert_jax.evaluation import Evaluator, Split
from bert_jax.finetune_config import FinetuneConfig
from bert_jax.model.families import Head
from bert_jax.model.heads import Bert, pool
from bert_jax.pooling import Pooling
from bert_jax.training import checkpoint, loop, losses, optim, parallel, steps, task_metrics, writer
from bert_jax.training.losses import Sum

MOST_BETWEEN_CHECKPOINTS = 1000  # steps
_HEADS: dict[Kind, Head] = {
    "classification": "sequence_classification", "multi_label": "sequence_classification",
    "regression": "sequence_classification", "tagging": "token_classification", "similarity": "encoder",
    "question_answering": "question_answering", "multiple_choice": "multiple_choice",
}  # fmt: skip
_PROBLEM_TYPES: dict[Kind, pretrained.ProblemType] = {
    "classification": "single_label_classification", "multi_label": "multi_label_classification", "regression": "regression",
}  # fmt: skip
_CLASSIFIER_PATHS = {
    f"{name}/kernel" for name in ("sequence_classifier", "token_classifier", "span_classifier", "choice_classifier")
}


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
      history: of each evaluation: step, score, scores.
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
    start: pretrained.Start
    batches: Batches | None  # None: nothing to train on
    dev: list[Split]
    evaluator: Evaluator
    mesh: Mesh
    data_key: str
    baseline: float | None  # the score of learning nothing, where that is known

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
        """As it is trained: with the config's dropout and compute type."""
        cfg, drop = self.start.model.config.replace(dtype=self.cfg.dtype), self.cfg.dropout
        if drop is not None:
            cfg = cfg.replace(hidden_dropout_prob=drop, attention_probs_dropout_prob=drop, classifier_dropout=drop)
        return Bert(cfg, self.start.model.head, max(1, len(self.start.model.labels)))

    @cached_property
    def optimizer(self) -> Any:
        """Without the learning rate, but with what layers have of it."""
        return optim.make_optimizer(self._optim, self._scales if self._layers_differ else None)

    @property
    def _optim(self) -> OptimConfig:
        cfg = self.cfg
        return OptimConfig(
            name=cfg.optimizer, learning_rate=1.0, schedule=cfg.schedule, warmup_steps=int(cfg.warmup_ratio * self.num_steps),
            weight_decay=cfg.weight_decay, eps=cfg.eps, clip_norm=cfg.clip_norm,
        )  # fmt: skip

    @property
    def _layers_differ(self) -> bool:
        return self.cfg.layer_decay != 1 or self.cfg.freeze_layers > 0

    @cached_property
    def _scales(self) -> Any:
        layers = self.module.cfg.num_hidden_layers
        return optim.layer_scales(self.start.model.params, layers, self.cfg.layer_decay, self.cfg.freeze_layers)

    @cached_property
    def step(self) -> Callable[..., Any]:
        """(state, batch, peak learning rate, seed) -> (state, metrics): one program for all runs."""
        sums_fn = make_sums(self)
        if self.cfg.freeze_layers:  # the backward pass ends above what is frozen
            sums, scales = sums_fn, self._scales

            def sums_fn(params: Any, batch: Any, key: Any) -> dict[str, Sum]:
                return sums(jax.tree.map(lambda p, s: p if s else jax.lax.stop_gradient(p), params, scales), batch, key)

        update = steps.make_update(sums_fn, self.optimizer, self.cfg.clip_norm)
        rate = optim.make_schedule(self._optim, self.num_steps)

        def step(state: steps.TrainState, batch: Any, peak: Any, seed: Any) -> Any:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            return update(state, batch, jnp.asarray(peak * rate(state.step), jnp.float32), key)

        return step

    @cached_property
    def alone(self) -> Callable[..., Any]:
        """`step`, compiled for a run by itself."""
        return jax.jit(self.step, out_shardings=parallel.replicated(self.mesh), donate_argnums=0)


def make_sums(setting: Setting) -> steps.SumsFn:
    """The loss of the task's kind."""
    cfg, kind, module, pooling = setting.cfg, setting.task.kind, setting.module, setting.start.model.pooling

    def of_items(values: jax.Array, batch: Any) -> jax.Array:
        """[B, S, ...] -> [N, k, ...]: the values of each item's sequences."""
        return values.reshape(-1, *values.shape[2:])[batch["slots"]]

    def similarity(hidden: jax.Array, batch: Any) -> Sum:
        first, ids = batch["cls_positions"], batch["sequence_ids"]
        assert isinstance(pooling, Pooling)
        if pooling.mode == "cls":
            vectors = jnp.take_along_axis(hidden, first[:, :, None], axis=1)
        else:
            vectors = pool(hidden, ids, first.shape[1], pooling.mode)
        parts = jnp.moveaxis(of_items(vectors, batch), 1, 0)
        if cfg.loss == "cosine":
            return losses.cosine_error(parts[0], parts[1], batch["labels"], batch["weights"])
        if cfg.loss == "triplet":
            return losses.triplet_loss(parts[0], parts[1], parts[2], batch["weights"])
        return losses.ranking_loss(parts[0], jnp.concatenate(parts[1:]), batch["weights"], cfg.temperature)

    def sums(params: Any, batch: Any, key: Any) -> dict[str, Sum]:
        rngs = None if key is None else {"dropout": key}
        out = module.apply({"params": params}, batch, key is None, rngs=rngs)
        labels, weights = batch["labels"], batch["weights"]
        if kind == "similarity":
            return {"similarity_loss": similarity(out["last_hidden_state"], batch)}
        if kind == "question_answering":
            spans = losses.span_cross_entropy(out["start_logits"], out["end_logits"], batch["sequence_ids"], labels, weights)
            return {"span_loss": spans}
        logits = out["logits"]
        if kind == "multi_label":
            return {"label_loss": losses.binary_cross_entropy(logits, labels, weights)}
        if kind == "regression":
            return {"squared_error_loss": losses.squared_error(logits[..., 0], labels, weights)}
        if kind == "multiple_choice":
            logits = of_items(logits, batch)
        return {
            "cross_entropy_loss": losses.cross_entropy(logits, labels, weights, cfg.label_smoothing),
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

    def _initial(self) -> steps.TrainState:
        starts = [self.setting.start.params(member.seed) for member in self.members]
        if len(starts) == 1:  # copied, as the first step gives its buffers away
            params = jax.tree.map(partial(jnp.array, copy=True), starts[0])
        else:
            params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        params = jax.device_put(params, parallel.replicated(self.setting.mesh))
        init = partial(steps.init_state, optimizer=self.setting.optimizer)
        init = init if len(starts) == 1 else jax.vmap(init)
        return jax.jit(init, out_shardings=parallel.replicated(self.setting.mesh))(params)

    def _train_step(self) -> Callable[[Any, Any], Any]:
        peaks, seeds = (np.array(values) for values in zip(*((m.learning_rate, m.seed) for m in self.members), strict=True))
        if len(self.members) == 1:
            return lambda state, batch: self.setting.alone(state, batch, peaks[0], seeds[0])
        names = [member.name for member in self.members]

        def together(states: Any, batches: Any, active: jax.Array) -> Any:
            new, metrics = jax.vmap(self.setting.step)(states, batches, peaks, seeds)

            def keep(new: jax.Array, old: jax.Array) -> jax.Array:  # a run that has stopped stays as it is
                return jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            flat = {f"{name}/{key}": value[i] for key, value in metrics.items() for i, name in enumerate(names)}
            shared = {"loss": jnp.mean(metrics["loss"], where=active), "skipped_in_a_row": jnp.min(metrics["skipped_in_a_row"])}
            return jax.tree.map(keep, new, states), flat | shared

        compiled = jax.jit(together, out_shardings=parallel.replicated(self.setting.mesh), donate_argnums=0)
        return lambda states, batches: compiled(states, batches, self.active)

    def params(self, params: Any, number: int) -> Any:
        """Those of one run."""
        return params if len(self.members) == 1 else jax.tree.map(lambda x: x[number], params)

    # --- evaluation ---

    def _evaluate(self, params: Any, stop: loop.StopRequest) -> dict[str, float]:
        setting, cfg = self.setting, self.setting.cfg
        values: dict[str, float] = {}
        for i, member in enumerate(self.members):
            if not self.active[i]:
                continue
            own, history = self.params(params, i), self.history[i]
            scores = {split.name: setting.evaluator.scores(split, setting.evaluator.predict(split, own)) for split in setting.dev}
            score = float(np.mean([setting.evaluator.main_score(of, cfg.metric) for of in scores.values()]))
            step = min((len(history) + 1) * setting.eval_every, setting.num_steps)
            history.append({"step": step, "score": score, "scores": scores})
            since = len(history) - 1 - _best(history)
            if cfg.select == "last" or since == 0:
                self._export(i, own)
            self.active[i] = cfg.early_stopping is None or since < cfg.early_stopping
            of = "" if len(self.members) == 1 else f"{member.name}/"
            for name, each in scores.items():
                among = "" if len(scores) == 1 else f"{name}/"
                values |= {f"eval/{of}{among}{metric}": value for metric, value in each.items()}
        stop.enough = not self.active.any()
        return values

    def _export(self, number: int, params: Any) -> None:
        model = dataclasses.replace(self.setting.start.model, params=jax.device_get(params))
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
                values = json.loads(path.read_text(encoding="utf-8"))
                key = values.pop("data")
                found.append(Outcome(**values))
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{path} is damaged ({error}): delete it, and the run goes on from its checkpoint") from None
            if key != self.setting.data_key:
                raise InputError(f"the data is not what {path} was made with: restore it, or give another --workdir")
        return found

    def fit(self, stop: loop.StopRequest, show: bool = True) -> list[Outcome]:
        """Trains, or goes on, to the end or to `stop`; what came of each run (nothing where `stop` ended it)."""
        setting, begun = self.setting, time.perf_counter()
        state, start, seconds = self._restore()
        num_steps, rows = setting.num_steps, 0 if len(self.members) == 1 else 1
        seeds = [member.seed for member in self.members]
        saved = checkpoint.Checkpointer(self.directory / "checkpoints", keep=1, best_metric=None)
        writer.cut(self.directory / "metrics.jsonl", start or -1)
        failed: str | None = None
        stop.enough = not self.active.any()
        with closing(writer.Writer(self.directory, num_steps, start, console=show)) as log, closing(saved):

            def save(state: steps.TrainState, evaluation: dict[str, float]) -> None:
                kept = {"data": setting.data_key, "history": self.history, "active": self.active.tolist()}
                saved.save(int(np.max(state.step)), state, kept | {"seconds": seconds + time.perf_counter() - begun})

            every = min(setting.eval_every, MOST_BETWEEN_CHECKPOINTS)
            cadence = loop.Cadence(num_steps, setting.cfg.log_every, setting.eval_every, every, OptimConfig().max_skipped)
            assert setting.batches is not None
            stream = setting.batches.stream(seeds, start, num_steps)
            try:
                state = loop.fit(
                    state, self._train_step(), stream, partial(parallel.shard_batch, mesh=setting.mesh, axis=rows), cadence,
                    partial(self._evaluate, stop=stop), save, log, stop, loop.Cost(_tokens, 0.0, None),
                )  # fmt: skip
            except loop.Diverged as error:
                failed = str(error)
        if stop.signal is not None:
            return []
        seconds += time.perf_counter() - begun
        in_a_row = np.atleast_1d(0 if failed else jax.device_get(state.skipped_in_a_row))
        outcomes = [self._outcome(i, failed, int(in_a_row[i]), seconds / len(self.members)) for i in range(len(self.members))]
        for i, outcome in enumerate(outcomes):
            write_json(self.folder(i) / "run.json", dataclasses.asdict(outcome) | {"data": setting.data_key})
        return outcomes

    def _restore(self) -> tuple[steps.TrainState, int, float]:
        """(state, its step, seconds that it took)."""
        saved = checkpoint.Checkpointer(self.directory / "checkpoints", keep=1, best_metric=None)
        fresh = self._initial()
        restored = saved.restore_latest(fresh) if saved.steps else None
        saved.close()
        if restored is None:
            return fresh, 0, 0.0
        state, meta, start = restored
        if meta["data"] != self.setting.data_key:
            raise InputError(f"the data is not what {self.directory} was begun with: restore it, or give another --workdir")
        self.history, self.active = meta["history"], np.array(meta["active"])
        return state, start, meta["seconds"]

    def _outcome(self, number: int, failed: str | None, in_a_row: int, seconds: float) -> Outcome:
        setting, member, history = self.setting, self.members[number], self.history[number]
        if in_a_row:
            failed = f"the last {in_a_row} updates were not finite"
        if not history:
            return Outcome(*member, 0, 0, float("-inf"), {}, [], failed or "it diverged before its first evaluation", seconds)
        kept = history[_best(history) if setting.cfg.select == "best" else -1]
        if failed is None and setting.baseline is not None and kept["score"] <= setting.baseline + 1e-9:
            failed = f"no better than learning nothing ({setting.baseline:.4f})"
        return Outcome(*member, history[-1]["step"], kept["step"], kept["score"], kept["scores"], history, failed, seconds)


def _best(history: Sequence[dict[str, Any]]) -> int:
    """The first of the best evaluations."""
    return max(range(len(history)), key=lambda i: (history[i]["score"], -i))


def _tokens(batch: dict[str, np.ndarray]) -> int:
    return int((batch["sequence_ids"] > 0).sum())


def baseline(task: Task, train: Sequence[Any], dev: Sequence[Any], metric: str | None) -> float | None:
    """The score of what learns nothing: the commonest class of `train` for all of `dev`, no correlation, no entity.

    None where it is not known (a metric of the user's choice, question_answering, multiple_choice).
    """
    if metric is not None or task.kind in ("question_answering", "multiple_choice"):
        return None
    if task.kind != "classification":
        return 0.0
    return float(np.mean([task_metrics.majority_baseline(name, train, dev) for name in task.metrics]))


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all. Raises InputError where it cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


# --- all of it ---


def prepare(cfg: FinetuneConfig, task: Task, splits: Splits, say: Callable[[str], None]) -> tuple[Setting, list[Split]]:
    """The setting of the runs, and the test splits. Says what became of the head, what was cut, and how batches are laid out."""
    assert cfg.max_seq_length is not None
    assert cfg.batch_size is not None
    mesh = parallel.make_mesh(cfg.num_devices)
    labels = splits.labels if task.kind in ("classification", "multi_label", "tagging") else ()
    start = pretrained.load_for_task(cfg.model, _HEADS[task.kind], labels, _PROBLEM_TYPES.get(task.kind), cfg.init_head)
    if start.note:
        say(start.note)
    model = start.model
    assert model.tokenizer is not None
    check_choices(task.kind, splits.train)
    records = splits.train
    if cfg.loss == "cosine" and (most := max(abs(record.label) for record in records)) > 1:
        say(f"scores reach {most:g}: they are divided by it, as cosines reach 1")
        records = [dataclasses.replace(record, label=record.label / most) for record in records]
    layout = Layout(model.tokenizer, model.config)

    def encoded(name: str, records: list[Record]) -> Split:
        found = encode(task.kind, records, splits.labels, layout, cfg.max_seq_length or 0)
        if found.lost:
            what = "questions have more tokens than are read" if found.reading else f"have more than {cfg.max_seq_length} tokens"
            say(f"{name}: {found.lost} of {len(records)} {what}: what is past them was not read (--max-seq-length)")
        return Split(name, records, found)

    train = encoded("train", records).encoded.items
    dev = [encoded(name, records) for name, records in splits.dev.items()]
    test = [encoded(name, records) for name, records in splits.test.items()]
    evaluator = Evaluator(task, model, cfg.max_seq_length, cfg.null_threshold)
    batches = None
    if train and cfg.num_epochs:
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        num_steps = cfg.num_epochs * len(train) / cfg.batch_size
        batches = Batches(
            task.kind, train, cfg.batch_size, cfg.batching, model.config.hidden_size, model.tokenizer.pad_id, mesh.size,
            16 if on_cpu else 128, most_shapes=min(6, max(1, int(num_steps) // 100)),
        )  # fmt: skip
        shapes = ", ".join(f"{rows}x{length}" for rows, length in batches.shapes)
        say(f"{cfg.batching} batches of {cfg.batch_size}: {shapes} (rows x tokens), {batches.padding:.0%} padding")
    elif _CLASSIFIER_PATHS & set(start.fresh):
        raise InputError(f"{cfg.model} has no head for {task.name}, and there is nothing to train it on: give a fine-tuned model")
    key = f"{splits.data_hash}-{cfg.max_seq_length}"
    learnt_nothing = None
    if dev and task.kind == "classification":
        ids = [[labels.index(record.label) for record in records] for records in (splits.train, next(iter(splits.dev.values())))]
        learnt_nothing = baseline(task, ids[0], ids[1], cfg.metric)
    elif dev:
        learnt_nothing = baseline(task, [], [], cfg.metric)
    return Setting(cfg, task, start, batches, dev, evaluator, mesh, key, learnt_nothing), test


def fit_all(setting: Setting, workdir: Path, stop: loop.StopRequest) -> list[Outcome]:
    """Trains all runs that are not done yet; what came of each, in the order of learning rates and seeds."""
    cfg = setting.cfg
    members = [Member(cfg.seed + i, rate) for rate in cfg.learning_rates for i in range(cfg.seeds)]
    together = cfg.together == "yes" or (cfg.together == "auto" and jax.default_backend() != "cpu")
    if len(members) == 1:
        groups = [(members, workdir)]
    elif together:
        groups = [(members, workdir / "runs")]
    else:
        groups = [([member], workdir / "runs" / member.name) for member in members]
    outcomes: list[Outcome] = []
    for some, directory in groups:
        runs = Runs(setting, some, directory)
        done = runs.done()
        if done is None:
            if len(members) > 1:
                print(f"run {len(outcomes) + 1} of {len(members)}: {', '.join(m.name for m in some)}", file=sys.stderr)
            done = runs.fit(stop)
            if stop.signal is not None:
                return outcomes
        outcomes += done
    return outcomes


def export_folder(workdir: Path, outcomes: Sequence[Outcome], which: Outcome) -> Path:
    """Where a run's model is."""
    if len(outcomes) == 1:
        return workdir / "export"
    return workdir / "runs" / Member(which.seed, which.learning_rate).name / "export"


def predict_all(setting: Setting, test: Sequence[Split], workdir: Path) -> dict[str, dict[str, float]]:
    """Predicts dev and test by the exported model (or, where nothing was trained, by the model itself) and writes the
    predictions; scores of the splits that have labels."""
    from bert_jax import results

    params = setting.start.model.params
    if setting.batches is not None:
        model = setting.start.model
        params = pretrained.load(workdir / "export", head=model.head, labels=model.labels or None).params
    found: dict[str, dict[str, float]] = {}
    threshold = setting.cfg.null_threshold or 0.0
    for split in [*setting.dev, *test]:
        predicted = setting.evaluator.predict(split, params)
        if split.labelled or setting.task.kind == "similarity":
            found[split.name] = setting.evaluator.scores(split, predicted)
            threshold = found[split.name].get("null_threshold", threshold)
        results.write_predictions(workdir / "predictions", split, predicted, setting.evaluator, threshold)
    return found
