"""The parts that all runs of a fine-tuning share: model, batches, optimizer, step and evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bert_jax.config import OptimConfig
from bert_jax.data.finetuning import Batches
from bert_jax.finetuning.config import FinetuneConfig
from bert_jax.finetuning.evaluation import Evaluator
from bert_jax.finetuning.init_head import StartingModel
from bert_jax.model import attention, heads, lora
from bert_jax.model.config import ComputeConfig
from bert_jax.model.heads import Bert
from bert_jax.pretrained import Model
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.split import Split
from bert_jax.tasks.task import LEAST_TEMPERATURE, Options, Task
from bert_jax.training import memory, optim, parallel, steps
from bert_jax.training.chunking import in_chunks
from bert_jax.training.losses import Sum

LOSS = "loss"  # the parameters of the loss in the trained tree, beside those of the model
_TEMPERATURE_RATE = 10.0  # the learning rate of log(temperature) in units of that of the weights: CLIP's 5e-4 for 5e-5
Stepped = tuple[steps.TrainState, steps.Metrics]
# (state, batch, peak learning rate, seed) -> (state, metrics): one program for all runs
StepFn = Callable[[steps.TrainState, steps.Batch, ArrayLike, ArrayLike], Stepped]


@dataclass(frozen=True)
class Trainer:
    """Trains a model on a task with any seed and learning rate."""

    cfg: FinetuneConfig  # the config without unset values (`FinetuneConfig.resolved`)
    task: Task
    options: Options  # the options of its kind
    start: StartingModel  # the model that the runs start from
    batches: Batches | None  # the training batches; None where nothing is trained
    dev: list[Split]
    evaluator: Evaluator  # predicts and scores the splits
    devices: parallel.Devices
    data_key: str  # a key of the data; runs with other data have another one
    baseline: float | None  # the score of a model that learnt nothing, where it is known

    @property
    def num_steps(self) -> int:
        """The number of steps of a run."""
        assert self.cfg.num_epochs is not None
        assert self.batches is not None
        return max(1, round(self.cfg.num_epochs * self.batches.steps_per_epoch))

    @property
    def eval_every(self) -> int:
        """The number of steps between evaluations."""
        assert self.batches is not None
        return min(self.cfg.eval_every or self.batches.steps_per_epoch, self.num_steps)

    @cached_property
    def module(self) -> Bert:
        """The module in training: with the dropout and compute type of the config, and recomputation as memory requires."""
        cfg, compute, drop = self.start.model.config, ComputeConfig(dtype=self.cfg.dtype), self.cfg.dropout
        if drop is not None:
            cfg = cfg.replace(hidden_dropout_prob=drop, attention_probs_dropout_prob=drop, classifier_dropout=drop)
        if self.batches is not None:
            devices, cut = self.devices, self.devices.mesh.shape
            shape = max(self.batches.shapes, key=lambda shape: shape.rows * shape.length)
            rows = min(-(-shape.rows // devices.rows_cut), self.cfg.chunk_size or shape.rows)
            muon = self.cfg.optimizer == "muon"
            share = memory.DeviceShare(rows, shape.length, 0, devices.platform, cut["fsdp"], cut["tensor"], muon=muon)
            compute = memory.choose_recomputation(cfg, compute, share, memory.device_bytes(devices.mesh.local_devices[0]))
        return Bert(cfg, self.start.model.head, self.start.model.outputs, compute)

    @property
    def kernel(self) -> str:
        """The attention kernel of the longest batches, for the log."""
        assert self.batches is not None
        longest = max(shape.length for shape in self.batches.shapes)
        return attention.describe(self.module.cfg, self.module.compute, self.devices.platform, longest, deterministic=False)

    @cached_property
    def optimizer(self) -> optim.Guarded:
        """The optimizer for a learning rate of 1, scaled by layer."""
        return optim.make_optimizer(self._optim, self._scales)

    @property
    def _optim(self) -> OptimConfig:
        cfg = self.cfg
        chosen = OptimConfig(
            name=cfg.optimizer, learning_rate=1.0, schedule=cfg.schedule, warmup_steps=int(cfg.warmup_ratio * self.num_steps),
            weight_decay=cfg.weight_decay, eps=cfg.eps, clip_norm=cfg.clip_norm,
        )  # fmt: skip
        if cfg.optimizer != "muon":
            return chosen
        return chosen.replace(
            muon_learning_rate=1.0, muon_scale="adamw", muon_coefficients="polar_express", muon_iterations=3, muon_dtype=cfg.dtype
        )

    @cached_property
    def _scales(self) -> PyTree | None:
        """The scale of the learning rate of each parameter (0: frozen); None where all are 1."""
        cfg, params = self.cfg, self.start.model.params
        of_loss = jax.tree.map(lambda _: _TEMPERATURE_RATE, self._of_loss)
        if cfg.lora_rank is not None:
            adapters = jax.eval_shape(partial(lora.initialize, params, cfg.lora_rank), 0)
            head = {name: jax.tree.map(lambda _, of=name: float(of != "encoder"), tree) for name, tree in params.items()}
            return {"model": head, "adapters": jax.tree.map(lambda _: 1.0, adapters), **of_loss}
        if cfg.layer_decay == 1 and cfg.freeze_layers == 0 and not of_loss:
            return None
        own = optim.layer_scales(params, self.module.cfg.num_hidden_layers, cfg.layer_decay, cfg.freeze_layers)
        return {**own, **of_loss}

    @property
    def _of_loss(self) -> dict[str, dict[str, np.ndarray]]:
        """The first values of the parameters of the loss, by their place in the trained tree."""
        if not self.options.learn_temperature:
            return {}
        return {LOSS: {"log_temperature": np.array(math.log(self.options.temperature), np.float32)}}

    def initial_params(self, seed: int) -> PyTree:
        """Returns the trained tree of a run: the parameters of the model, or with adapters {model, adapters}; and of the loss."""
        params = self.start.params(seed)
        if self.cfg.lora_rank is not None:
            params = {"model": params, "adapters": lora.initialize(params, self.cfg.lora_rank, seed)}
        return {**params, **self._of_loss}

    def temperature(self, params: PyTree) -> jax.Array | None:
        """Returns the learnt temperature in the trained tree of a run; None where it is not learnt."""
        return jnp.exp(params[LOSS]["log_temperature"]) if LOSS in params else None

    def merged(self, params: PyTree) -> PyTree:
        """Returns the parameters of the model from the trained tree of a run."""
        if self.cfg.lora_rank is None:
            return {name: tree for name, tree in params.items() if name != LOSS}
        return lora.merge(params["model"], params["adapters"], self.cfg.lora_alpha / self.cfg.lora_rank)

    @cached_property
    def step(self) -> StepFn:
        """The training step, not compiled."""
        model, scales = self.start.model, self._scales
        devices, chunk = self.devices, self.cfg.chunk_size
        together = None if chunk is None else chunk if devices.pmap else chunk * devices.rows_cut
        sums = make_sums(self.evaluator.kind, self.module, model, self.options, together, devices.axis_name)

        def sums_fn(params: PyTree, batch: steps.Batch, key: jax.Array | None) -> dict[str, Sum]:
            if scales is not None:  # ends the backward pass above the frozen layers
                params = jax.tree.map(lambda p, s: p if s else jax.lax.stop_gradient(p), params, scales)
            if (temperature := self.temperature(params)) is not None:
                batch = {**batch, "temperature": temperature}
            return sums(self.merged(params), batch, key)

        update = steps.make_update(sums_fn, self.optimizer, self.cfg.clip_norm, axis_name=self.devices.axis_name)
        rate = optim.make_schedule(self._optim, self.num_steps)

        def step(state: steps.TrainState, batch: steps.Batch, peak: ArrayLike, seed: ArrayLike) -> Stepped:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            if self.task.kind.reads_progress:
                batch = {**batch, "progress": state.step / self.num_steps}
            temperature = self.temperature(state.params)
            state, metrics = update(state, batch, jnp.asarray(peak * rate(state.step), jnp.float32), key)
            return (state, metrics) if temperature is None else (_bounded(state), {**metrics, "temperature": temperature})

        return step

    @cached_property
    def alone(self) -> StepFn:
        """`step`, compiled for a single run."""
        return self.devices.jit(self.step, state=self.abstract_state, others=2)

    @cached_property
    def abstract_state(self) -> steps.TrainState:
        """The shapes and types of the state of a run."""
        return jax.eval_shape(partial(steps.init_state, optimizer=self.optimizer), self.initial_params(0))


def _bounded(state: steps.TrainState) -> steps.TrainState:
    """Returns the state with a temperature that is not below the least, as CLIP bounds it: after the update, not in the loss."""
    bounded = jnp.maximum(state.params[LOSS]["log_temperature"], math.log(LEAST_TEMPERATURE))
    return state._replace(params={**state.params, LOSS: {"log_temperature": bounded}})


def make_sums(
    kind: Kind, module: Bert, model: Model, options: Options, chunk_rows: int | None = None, axis_name: str | None = None
) -> steps.SumsFn:
    """Returns the function (parameters, batch, key) -> losses and other sums; the key is None for no dropout.

    Args:
      kind: the kind of the task.
      module: the module.
      model: the model, for its pooling and classes.
      options: the options of the kind.
      chunk_rows: rows that are encoded at a time (of the batch, or under a map of a device); None: all.
      axis_name: the axis of a surrounding map, over which the loss compares the sequences of all devices.
    """

    def sums(params: PyTree, batch: steps.Batch, key: jax.Array | None) -> dict[str, Sum]:
        def encode(rows: steps.Batch, key: jax.Array | None) -> dict[str, jax.Array]:
            rows = kind.inputs(rows, model)
            outputs = heads.apply(module, params, rows, key, head_only=not kind.reads_every_token)
            return kind.reduce(outputs, rows, model)

        rows = {name: batch[name] for name in _ROWS if name in batch}
        outputs = in_chunks(encode, rows, key, 1 if chunk_rows is None else rows["input_ids"].shape[0] // chunk_rows)
        if axis_name is None or not kind.needs_all_rows:
            return kind.loss(outputs, batch, options, model)
        rest = {name: value for name, value in batch.items() if name not in rows}
        same = {name: value for name, value in rest.items() if not value.ndim}
        outputs, apart = jax.lax.all_gather((outputs, {x: rest[x] for x in rest.keys() - same}), axis_name, tiled=True)
        rest = same | apart
        share = 1 / jax.lax.axis_size(axis_name)  # every device computes the loss of the whole batch
        found = kind.loss(outputs, rest, options, model)
        return {name: Sum(total * share, weight * share) for name, (total, weight) in found.items()}

    return sums


_ROWS = ("input_ids", "token_type_ids", "position_ids", "sequence_ids", "cls_positions")  # arrays that the encoder reads
