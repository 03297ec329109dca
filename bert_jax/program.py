"""The program of a pretraining run, from its config: the objective, the steps and the state before the first step.

`pretrain.train` feeds it with text; `plan` compiles it for devices that are not here.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray, PyTree

from bert_jax import warm_start
from bert_jax.config import BertConfig, InputError, Phase, Span, TrainConfig, from_dict, spans, upgrade
from bert_jax.disk import read_json
from bert_jax.model import attention
from bert_jax.training import losses, memory, objectives, optim, parallel, steps

# Products of float32 arrays by matmul_precision and platform; a CPU computes float32 in any case.
_PRODUCTS = {
    "default": {"gpu": "TF32", "tpu": "one bfloat16 pass"},
    "high": {"gpu": "TF32", "tpu": "three bfloat16 passes"},
    "highest": {"gpu": "float32", "tpu": "six bfloat16 passes, which is float32"},
}


@dataclass(frozen=True)
class Program:
    """The computation of a run on its devices: the objective, the optimizer, the steps and the state before the first step.

    Attributes:
        cfg: The run; `cfg.compute` says how the model is computed on these devices (see `build`).
        devices: The devices.
        phases: The phases of a run of which `cfg` is one; they scale the learning rate.
    """

    cfg: TrainConfig
    devices: parallel.Devices
    phases: tuple[Phase, ...] = ()

    @cached_property
    def objective(self) -> objectives.Objective:
        """The models and the losses that they are trained by."""
        return objectives.objective_of(self.cfg)

    @cached_property
    def optimizer(self) -> optim.Guarded:
        """The optimizer, without the learning rate."""
        return optim.make_optimizer(self.cfg.optim)

    def describe(self) -> str:
        """Describes the computation in a line of the log."""
        cfg, how = self.cfg, self.cfg.compute
        kernel = attention.describe(cfg.model, how, self.devices.platform, cfg.data.max_seq_length, deterministic=False)
        products = _PRODUCTS[how.matmul_precision].get(self.devices.platform, "float32")
        dtype = how.dtype if how.dtype != "float32" else f"float32 (products in {products}: --compute.matmul-precision)"
        generator = "" if (of := cfg.generator) is None else f", a generator of {of.num_hidden_layers} x {of.hidden_size}"
        return f"{dtype}, {kernel}, recomputed: {how.remat}{', layers by a scan' if how.scan_layers else ''}{generator}"

    def sums(self, params: PyTree, batch: steps.Batch, key: PRNGKeyArray | None) -> dict[str, losses.Sum]:
        """Returns the losses of a batch; dropout is on if there is a key."""
        precision = self.cfg.compute.matmul_precision  # the backward pass takes over that of the forward pass
        with contextlib.nullcontext() if precision == "default" else jax.default_matmul_precision(precision):
            return self.objective.sums(params, batch, key)

    def fresh(self) -> steps.TrainState:
        """Returns the state before the first step, with random weights. Pure."""
        return steps.init_state(self.objective.initialize(self.cfg.seed), self.optimizer)

    @cached_property
    def abstract_state(self) -> steps.TrainState:
        """Shapes, types and shardings of the state."""
        return self.devices.struct(jax.eval_shape(self.fresh))

    def initial_state(self) -> steps.TrainState:
        """Returns the state of `fresh`, each array made on the devices that hold it."""
        return jax.jit(self.fresh, out_shardings=self.devices.shardings(self.abstract_state))()

    @cached_property
    def train_step(self) -> parallel.Step:
        """(state, batch) -> (state, metrics)."""
        cfg = self.cfg
        schedule = optim.scaled_by_phases(optim.make_schedule(cfg.optim, cfg.num_steps), self.phases)
        step = steps.make_train_step(
            self.sums, self.optimizer, schedule, cfg.seed, cfg.optim.clip_norm, cfg.gradient_accumulation_steps,
            self.devices.axis_name, self.objective.factors,
        )  # fmt: skip
        return self.devices.jit(step, state=self.abstract_state)

    @cached_property
    def eval_step(self) -> parallel.Step:
        """(params, batch) -> named sums."""
        return self.devices.jit(steps.make_eval_step(self.sums, self.devices.axis_name))

    @cached_property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a global batch (see `data.pretraining.BatchSource`), that with the most predictions."""
        cfg = self.cfg
        rows, length = cfg.batch_size, cfg.data.max_seq_length
        slots = cfg.masking.most_slots(length)
        tokens = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
        shapes: dict[str, tuple[tuple[int, ...], DTypeLike]] = dict.fromkeys(tokens, ((rows, length), jnp.int32))
        shapes |= dict.fromkeys(("masked_positions", "masked_ids"), ((rows, slots), jnp.int32))
        floats = ("masked_weights", *["masked_draws"] * cfg.draws)
        shapes |= dict.fromkeys(floats, ((rows, slots), jnp.float32))
        if cfg.masking.causal_share > 0:
            shapes["causal"] = (rows,), jnp.bool_
        if cfg.data.examples == "sentence_pairs":
            shapes["next_sentence_label"] = (rows,), jnp.int32
        return self.devices.abstract_batch({name: jax.ShapeDtypeStruct(*of) for name, of in shapes.items()})


def architecture(init_from: str, workdir: str) -> BertConfig:
    """Returns the config of the model at `init_from`, or the one that the run in `workdir` recorded if that model is gone.

    Raises:
        InputError: Neither can be read.
    """
    try:
        return warm_start.architecture(init_from)
    except InputError:
        with contextlib.suppress(InputError):
            old = read_json(Path(workdir) / "config.json", dict)
            if old and old.get("init_from") == init_from:
                return from_dict(TrainConfig, upgrade(old)).model
        raise


def check(cfg: TrainConfig, devices: parallel.Devices, begun: bool) -> None:
    """Checks a run before its text is read.

    Raises:
        InputError: The model, or the batch of a phase or of the evaluation, does not divide over the devices; the attention
            kernel that is asked for cannot compute a phase; or, of a run that has not `begun` (has no checkpoint), the weights
            that it is to start from do not fit the model.
    """
    own = [Span("evaluation", cfg, 0, cfg.num_steps, (0, cfg.num_steps))] if cfg.phases else []  # by the run's own batch size
    for span in [*spans(cfg), *own]:
        try:
            _check_fit(span.cfg, devices)
            _check_attention(span.cfg, devices.platform)
        except InputError as error:
            raise span.named(error) from None
    if cfg.init_from and not begun:
        warm_start.check_start(cfg.init_from, cfg.model)
        if cfg.generator is not None and (beside := warm_start.generator_beside(cfg.init_from)):
            try:
                warm_start.check_start(beside, cfg.generator)
            except InputError as error:
                fix = "give the --replaced-tokens.generator-width and -depth that it has, or move it away"
                raise InputError(f"{error}\n{fix}") from None


def _check_attention(cfg: TrainConfig, platform: str) -> None:
    """Raises InputError if the kernel that is asked for cannot compute the attention of a step."""
    for model in cfg.models:
        for causal in {False, cfg.masking.causal_share > 0}:
            attention.describe(model, cfg.compute, platform, cfg.data.max_seq_length, deterministic=False, causal=causal)


def _check_fit(cfg: TrainConfig, devices: parallel.Devices) -> None:
    """Raises InputError if the batch or one of the models does not divide over the devices."""
    parallel.check_fit(devices, cfg.model, cfg.batch_size, cfg.gradient_accumulation_steps)
    if cfg.generator is not None:
        try:
            parallel.check_fit(devices, cfg.generator, cfg.batch_size, cfg.gradient_accumulation_steps)
        except InputError as error:
            raise InputError(f"the generator of objective={cfg.objective!r}: {error}") from None


def build(cfg: TrainConfig, devices: parallel.Devices, memory_bytes: int | None, phases: tuple[Phase, ...] = ()) -> Program:
    """Returns the program of a run; recomputation and scan follow the devices if the config leaves them open.

    Args:
        cfg: The run, or one of its phases (see `spans`).
        devices: The devices that compute it.
        memory_bytes: Memory of a device; None if it is not known.
        phases: The phases of the run.

    Raises:
        InputError: The batch or the model does not divide over the devices.
    """
    _check_fit(cfg, devices)
    shape = devices.mesh.shape
    share = memory.DeviceShare.of_run(cfg, devices.platform, devices.rows_cut, shape["fsdp"], shape["tensor"])
    compute = memory.choose_recomputation(cfg.model, cfg.compute, share, memory_bytes)
    return Program(cfg.replace(compute=compute), devices, phases)
