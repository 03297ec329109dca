"""The share of a pretraining step that Muon takes, by formula and on this machine.

    python tests/benchmarks/muon_cost.py --config modern_mini --batch 128 --length 128
    python tests/benchmarks/muon_cost.py --config modern_base --batch 2 --length 1024 --rounds 3

Times the step of --config by AdamW on --batch rows, and the updates alone by AdamW and by each kind of Muon, all in turns;
medians over --rounds. The share is what an update by Muon takes longer than one by AdamW, over the step by AdamW at --tokens
tokens: all of a step but its update takes as long as it has tokens, so a machine too small for the batch can measure it.
"FLOPs" is the same share of the matrix products, by `bert_jax.training.flops`.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from statistics import median

import protocol

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", default="modern_mini")
for option, default in dict(batch=128, length=128, tokens=16_384, threads=2, rounds=10).items():
    parser.add_argument(f"--{option}", type=int, default=default)
parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
args = parser.parse_args()
protocol.limit_cores(args.threads)

import jax  # noqa: E402  (after the limit on cores)
import numpy as np  # noqa: E402

from bert_jax.config import OptimConfig, ParallelConfig, load_config_file  # noqa: E402
from bert_jax.program import build  # noqa: E402
from bert_jax.training import flops, parallel  # noqa: E402
from bert_jax.training.optim import make_optimizer  # noqa: E402

KINDS = {
    "jordan, 5": dict(muon_coefficients="jordan", muon_iterations=5),
    **{f"polar_express, {n}": dict(muon_coefficients="polar_express", muon_iterations=n) for n in (5, 4, 3)},
}


def main() -> None:
    cfg = load_config_file(args.config)
    cfg = cfg.replace(
        batch_size=args.batch, gradient_accumulation_steps=1, data=cfg.data.replace(max_seq_length=args.length),
        compute=cfg.compute.replace(dtype=args.dtype, scan_layers=None), optim=OptimConfig(name="adamw"), phases=(),
    )  # fmt: skip
    program = build(cfg, parallel.make_devices(ParallelConfig(num_devices=1)), None)
    rng = np.random.default_rng(0)
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in program.abstract_batch.items()}
    batch["input_ids"][:] = rng.integers(1000, cfg.model.vocab_size, batch["input_ids"].shape)
    batch["position_ids"][:] = np.arange(args.length)
    batch["sequence_ids"][:] = 1
    slots = batch["masked_ids"].shape[1]
    batch["masked_positions"][:] = np.sort(rng.permuted(np.tile(np.arange(args.length), (args.batch, 1)), axis=1)[:, :slots])
    batch["masked_ids"][:] = np.take_along_axis(batch["input_ids"], batch["masked_positions"], axis=1)
    batch["masked_weights"][:] = 1
    batch, state = program.devices.put(batch), program.initial_state()
    compiled = program.train_step.compile(state, batch)

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    kinds = {"adamw": OptimConfig(name="adamw")}
    kinds |= {name: OptimConfig(name="muon", muon_dtype=args.dtype, **fields) for name, fields in KINDS.items()}
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), state.params)
    updates, states = {}, {}
    for name, optim in kinds.items():
        optimizer = make_optimizer(optim)
        states[name] = optimizer.init(state.params)
        updates[name] = jax.jit(partial(optimizer.update, learning_rate=1e-3), donate_argnums=1)

    def update(name: str) -> None:
        made, states[name] = updates[name](gradients, states[name], state.params)
        jax.block_until_ready((made, states[name]))

    calls = {"step": step, **{name: partial(update, name) for name in kinds}}
    load = os.getloadavg()[0]
    for call in calls.values():
        call()
    rounds = [{name: protocol.timed(call)[0] for name, call in calls.items()} for _ in range(args.rounds)]
    seconds = {name: median(each[name] for each in rounds) for name in calls}
    scale = args.tokens / (args.batch * args.length)
    whole = (seconds["step"] - seconds["adamw"]) * scale + seconds["adamw"]
    print(f"{args.config}, {args.dtype}, {args.batch} x {args.length}, {args.threads} cores, {args.rounds} rounds; ", end="")
    print(f"load before {load:.2f}; a step by AdamW {seconds['step']:.3f} s, at {args.tokens} tokens {whole:.3f} s")
    print(f"{'':>20}{'update s':>10}{'of step':>10}{'FLOPs':>10}")
    for name, optim in kinds.items():
        more, work = (seconds[name] - seconds["adamw"]) / whole, flops.muon_flops(cfg.replace(optim=optim))
        print(f"{name:>20}{seconds[name]:10.4f}{more:10.1%}{work / (flops.step_flops(cfg) * scale):10.1%}")


if __name__ == "__main__":
    main()
