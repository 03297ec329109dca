"""The pretraining step of bert_jax beside those of transformers in PyTorch and in Flax, in turns on the same cores.

    python tests/benchmarks/pretraining_step.py --preset mini --batch 16 --length 128 --rounds 20 --threads 2 \
        --torch-python PATH --flax-python PATH --json pretraining_step.json

PATH are interpreters: one with PyTorch and transformers >= 5, one with transformers 4.57.6, jax and flax (the last Flax
models). Every participant lives in its own process (protocol.py); a round asks each for three steps and times a fourth, while
the others sleep. Medians over rounds; ratios (how many times the first participant's seconds) are taken round by round, then
their median. "of peak" is the analytic FLOPs of what a model computes (the peers: last layer and logits at every position;
ours: at the masked ones) over its time and the best NumPy matrix product of the same run. "start s" is all that comes before
the first timed step: imports, compilation, two warm-up steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from statistics import median

import protocol

PRESETS = {
    "mini": dict(layers=4, hidden=256, heads=4, intermediate=1024),
    "base": dict(layers=12, hidden=768, heads=12, intermediate=3072),
    "ettin-17m": dict(layers=7, hidden=256, heads=4, intermediate=384, family="modernbert"),
    "modern-base": dict(layers=22, hidden=768, heads=12, intermediate=1152, family="modernbert"),
}
SCRIPTS = {"ours": "ours_step.py", "torch": "peer_torch_step.py", "flax": "peer_flax_step.py", "sgemm": "sgemm_peak.py"}
PARTICIPANTS = ("ours", "torch", "flax")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="mini")
    for name, default in dict(batch=16, length=128, predictions=20, threads=2, rounds=20).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--participants", nargs="+", choices=PARTICIPANTS, default=PARTICIPANTS)
    parser.add_argument("--ours-python", default=sys.executable)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--flax-python", default=sys.executable)
    parser.add_argument("--json", type=Path, default=None, help="write everything measured to this file")
    return parser.parse_args()


def main() -> None:
    args = parse()
    shape = {**PRESETS[args.preset], **{k: getattr(args, k) for k in ("batch", "length", "predictions", "threads")}}
    flags = [part for name, value in shape.items() for part in (f"--{name}", str(value))]
    sgemm_environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    sgemm_environment["OPENBLAS_NUM_THREADS"] = str(args.threads)
    load = os.getloadavg()[0]  # of other work: near 0 where the numbers are worth keeping
    running: list[protocol.Participant] = []
    try:
        for name in (*args.participants, "sgemm"):
            python = getattr(args, f"{name}_python", sys.executable)
            command = [python, str(Path(__file__).with_name(SCRIPTS[name])), *flags]
            environment = sgemm_environment if name == "sgemm" else dict(os.environ)
            running.append(protocol.Participant(name, command, environment))
        answers = [{p.name: p.step() for p in running} for _ in range(args.rounds)]
        facts = {p.name: p.facts for p in running}
    finally:
        for participant in running:
            participant.stop()

    seconds = {name: [answer[name]["seconds"] for answer in answers] for name in facts}
    peak = facts["sgemm"]["flops"] / min(seconds["sgemm"])
    first = args.participants[0]
    rows = {}
    for name in args.participants:
        scored = args.predictions if name == "ours" else args.length
        modern = shape.get("family") == "modernbert"
        sizes = shape["layers"], shape["hidden"], shape["intermediate"], args.batch, args.length, scored
        flops = protocol.training_flops(*sizes, protocol.MODERN_VOCAB_SIZE if modern else protocol.VOCAB_SIZE, modern)
        rows[name] = {
            "median_seconds": median(seconds[name]),
            "fastest_seconds": min(seconds[name]),
            "ratio": median(theirs / ours for theirs, ours in zip(seconds[name], seconds[first], strict=True)),
            "peak_rss_mb": answers[-1][name]["peak_rss_mb"],
            "gflop": flops / 1e9,
            "of_peak": flops / median(seconds[name]) / peak,
            "start_seconds": facts[name]["start_seconds"],
        }
    print(f"{args.preset}, batch {args.batch} x {args.length}, {args.threads} cores, {args.rounds} rounds; ", end="")
    print(f"sgemm peak {peak / 1e9:.1f} GFLOP/s; load before {load:.2f}")
    columns = ("", "median s", "fastest s", f"x {first}", "RSS MB", "GFLOP", "of peak", "start s")
    print("".join(f"{column:>10}" for column in columns))
    for name, row in rows.items():
        print(
            f"{name:>10}{row['median_seconds']:10.4f}{row['fastest_seconds']:10.4f}{row['ratio']:10.2f}"
            f"{row['peak_rss_mb']:10.0f}{row['gflop']:10.1f}{row['of_peak']:10.1%}{row['start_seconds']:10.1f}"
        )
    if args.json:
        machine = {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}
        record = dict(preset=args.preset, shape=shape, rounds=args.rounds, load_before=load, peak_gflops=peak / 1e9)
        record |= {**machine, "results": rows, "facts": facts, "answers": answers}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
