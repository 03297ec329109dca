"""What a pretraining run computes, from its config: the model, the steps and the state before the first. train.py feeds it,
`plan` compiles it for devices that are not here."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax import warm_start
from bert_jax.config import BertConfig, InputError, TrainConfig, from_dict
from bert_jax.disk import read_json
from bert_jax.model import attention, heads
from bert_jax.model.heads import Bert, initialize
from bert_jax.training import losses, memory, optim, parallel, steps


@dataclass(frozen=True)
class Pretraining:
    """A run's program on some devices. `cfg.model` says how it is computed there (`build`)."""

    cfg: TrainConfig
    devices: parallel.Devices

    @cached_property
    def module(self) -> Bert:
        """The encoder with the head that is trained."""
        return Bert(self.cfg.model, self.cfg.head)

    @cached_property
    def optimizer(self) -> Any:
        """Without the learning rate."""
        return optim.make_optimizer(self.cfg.optim)

    def describe(self) -> str:
        """How it is computed, for the log."""
        cfg = self.cfg.model
        kernel = attention.describe(cfg, self.devices.platform, self.cfg.data.max_seq_length, deterministic=False)
        return f"{cfg.dtype}, {kernel}, recomputed: {cfg.remat}{', layers by a scan' if cfg.scan_layers else ''}"

    def sums(self, params: Any, batch: Any, key: Any) -> dict[str, losses.Sum]:
        """The losses of a batch, with dropout if there is a key."""
        return losses.pretraining_sums(heads.apply(self.module, params, batch, key, head_only=True), batch)

    def fresh(self) -> steps.TrainState:
        """The state before the first step, of random weights. Pure."""
        return steps.init_state(initialize(self.module, self.cfg.seed), self.optimizer)

    @cached_property
    def abstract_state(self) -> steps.TrainState:
        """Shapes, types and shardings of the state."""
        return self.devices.struct(jax.eval_shape(self.fresh))

    def initial_state(self) -> steps.TrainState:
        """`fresh`, born where it stays."""
        return jax.jit(self.fresh, out_shardings=self.devices.shardings(self.abstract_state))()

    @cached_property
    def train_step(self) -> Any:
        """(state, batch) -> (state, metrics)."""
        cfg = self.cfg
        schedule = optim.make_schedule(cfg.optim, cfg.num_steps)
        step = steps.make_train_step(
            self.sums, self.optimizer, schedule, cfg.seed, cfg.optim.clip_norm, cfg.gradient_accumulation_steps,
            self.devices.axis_name,
        )  # fmt: skip
        return self.devices.jit(step, state=self.abstract_state)

    @cached_property
    def eval_step(self) -> Any:
        """(params, batch) -> named sums."""
        return self.devices.jit(steps.make_eval_step(self.sums, self.devices.axis_name))

    @cached_property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a global batch (see `data.pretraining.BatchSource`)."""
        cfg = self.cfg
        rows, length = cfg.batch_size, cfg.data.max_seq_length
        slots = cfg.masking.num_slots(length)
        tokens = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
        shapes: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(tokens, ((rows, length), jnp.int32))
        shapes |= dict.fromkeys(("masked_positions", "masked_ids"), ((rows, slots), jnp.int32))
        shapes["masked_weights"] = (rows, slots), jnp.float32
        if cfg.data.examples == "sentence_pairs":
            shapes["next_sentence_label"] = (rows,), jnp.int32
        return self.devices.abstract_batch({name: jax.ShapeDtypeStruct(*of) for name, of in shapes.items()})


def architecture(init_from: str, workdir: str) -> BertConfig:
    """The model that a run of `init_from` trains; of one that is begun, also where `init_from` is no longer there.

    Raises InputError where neither can be read.
    """
    try:
        return warm_start.architecture(init_from)
    except InputError:
        with contextlib.suppress(InputError):
            old = read_json(Path(workdir) / "config.json", dict)
            if old and old.get("init_from") == init_from:
                return from_dict(TrainConfig, old).model
        raise


def check(cfg: TrainConfig, devices: parallel.Devices, begun: bool) -> None:
    """Raises InputError for what can be known of a run before its text is read: that the batch and the model divide over the
    devices and, before it has a checkpoint, that the weights it is to start from fit the model."""
    parallel.check_fit(devices, cfg.model, cfg.batch_size, cfg.gradient_accumulation_steps)
    if cfg.init_from and not begun:
        warm_start.check_start(cfg.init_from, cfg.model)


def build(cfg: TrainConfig, devices: parallel.Devices, memory_bytes: int | None) -> Pretraining:
    """The program of a run, with what its config leaves to us: recomputation and scan, by the devices' memory (bytes; None: not
    known) and platform. Raises InputError where the batch or the model does not divide over the devices."""
    parallel.check_fit(devices, cfg.model, cfg.batch_size, cfg.gradient_accumulation_steps)
    shape = devices.mesh.shape
    share = memory.DeviceShare.of_run(cfg, devices.platform, devices.rows_cut, shape["fsdp"], shape["tensor"])
    return Pretraining(cfg.replace(model=memory.choose_recomputation(cfg.model, share, memory_bytes)), devices)
