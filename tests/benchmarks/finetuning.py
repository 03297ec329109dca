r"""Fine-tuning by bert_jax beside transformers: equal losses, equal scores, and how fast.

    python tests/benchmarks/finetuning.py --data DATA --model DIR --losses sst2 cola mrpc stsb rte wnut17 qa --batch-size 8
    python tests/benchmarks/finetuning.py --data DATA --model DIR --scores sst2 cola mrpc stsb rte wnut17 qa --workdir runs/scores
    python tests/benchmarks/finetuning.py --data DATA --model DIR --speed sst2 --batches 20 --rounds 5 --json finetuning.json
    python tests/benchmarks/finetuning.py --data DATA --model DIR --speed qa --file DATA/qa/xquad/xquad.en.json \
        --participants longest

--losses trains both sides from the same weights on the same batches without dropout, and prints how far the losses of 50 steps
are apart at most. --scores runs finetune.py with three seeds and puts its scores beside those in peer_finetuning.json, which
peer_finetuning.py made: means must be within two pooled standard deviations or one point, whichever is larger. --speed times
training in turns on the same cores: ours on packed random batches, the peer padded to the task's most tokens (`max`, run_glue's
default), to the longest of a random batch (`longest`), and with the batches sorted by length (`sorted`). Medians over rounds;
ratios round by round, then their median. DATA is that of peer_finetuning.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import ours_finetuning
import protocol
from protocol import ENVIRONMENT

HERE = Path(__file__).parent
MAIN = {"sst2": "accuracy", "cola": "matthews_correlation", "mrpc": "f1", "stsb": "spearman", "rte": "accuracy",
        "wnut17": "entity_f1", "qa": "f1"}  # fmt: skip
TOLERANCE = 1e-3


def script(name: str, args: argparse.Namespace, *more: object) -> list[str]:
    python = args.peer_python if name.startswith("peer") else sys.executable
    common = ["--data", args.data, "--model", args.model, "--threads", args.threads]
    if args.file:
        common += ["--file", args.file]
    return [str(part) for part in (python, HERE / name, *common, *more)]


def losses(args: argparse.Namespace) -> int:
    """Prints a line a task; returns how many are further apart than the tolerance."""
    wrong = 0
    for task in args.losses:
        with tempfile.TemporaryDirectory() as folder:
            init, order, ours, peer = (Path(folder) / name for name in ("init", "order.json", "ours.json", "peer.json"))
            shared = ["--losses", task, "--init", init, "--order", order, "--steps", 50, "--total-steps", 100]
            for name, out, more in (
                ("ours_finetuning.py", ours, ["--batch-size", args.batch_size]),
                ("peer_finetuning.py", peer, []),
            ):
                subprocess.run(
                    script(name, args, *shared, "--out", out, *more), check=True, env=ENVIRONMENT, stderr=subprocess.DEVNULL
                )
            a, b = json.loads(ours.read_text()), json.loads(peer.read_text())
        apart = [abs(x - y) for x, y in zip(a, b, strict=True)]
        wrong += max(apart) > TOLERANCE
        print(f"{task}: losses {a[0]:.4f} ... {a[-1]:.4f}, at most {max(apart):.1e} apart in {len(a)} steps", flush=True)
    return wrong


def scores(args: argparse.Namespace) -> int:
    """Prints a row a task; returns how many differ by more than noise."""
    peer = json.loads((HERE / "peer_finetuning.json").read_text())["runs"]
    wrong = 0
    for task in args.scores:
        scale = 0.01 if task == "qa" else 1  # SQuAD's script gives percent
        theirs = [scale * run["scores"][MAIN[task]] for run in peer if run["task"] == task]
        if not theirs:
            print(f"{task}: not in peer_finetuning.json", flush=True)
            continue
        workdir = args.workdir / task
        more = ["--seeds", str(args.seeds), "--workdir", str(workdir)]
        command = [sys.executable, str(HERE.parent.parent / "finetune.py"), *ours_finetuning.command(task, args.data, args.model)]
        subprocess.run([*command, *more], check=True, env=ENVIRONMENT)
        runs = json.loads((workdir / "results.json").read_text())["runs"]
        ours = [run["scores"]["dev"][MAIN[task]] for run in runs]
        apart, allowed = mean(ours) - mean(theirs), max(2 * protocol.pooled_sd(ours, theirs), 0.01)
        wrong += abs(apart) > allowed
        print(f"{task} {MAIN[task]}: ours {mean(ours):.4f} ± {stdev(ours):.4f}, transformers {mean(theirs):.4f} ± "
              f"{stdev(theirs):.4f}, apart {apart:+.4f}, allowed {allowed:.4f}", flush=True)  # fmt: skip
    return wrong


def speed(args: argparse.Namespace) -> int:
    """Prints a line a participant."""
    shared = ["--speed", args.speed, "--batches", args.batches]
    commands = {"ours": script("ours_finetuning.py", args, *shared)}
    commands |= {name: script("peer_finetuning.py", args, *shared, "--padding", name) for name in args.participants}
    people = [protocol.Participant(name, command, ENVIRONMENT) for name, command in commands.items()]
    seconds: dict[str, list[float]] = {person.name: [] for person in people}
    memory: dict[str, float] = {}
    for _ in range(args.rounds):
        for person in people:
            answer = person.step()
            seconds[person.name].append(answer["seconds"])
            memory[person.name] = answer["peak_rss_mb"]
    rows: list[dict[str, Any]] = []
    for person in people:
        own, facts = seconds[person.name], person.facts
        rate = [facts["examples"] / s for s in own]
        ratio = median(
            (e / facts["examples"]) / (o / people[0].facts["examples"]) for e, o in zip(own, seconds["ours"], strict=True)
        )
        rows.append({
            "participant": person.name, "examples_per_second": median(rate), "ours_is_faster": ratio, "seconds": own,
            "warmup_seconds": facts["warmup_seconds"], "peak_rss_mb": memory[person.name],
            "tokens_an_example": facts["tokens"] / facts["examples"], "padding": 1 - facts["tokens"] / facts["positions"],
        })  # fmt: skip
        print(
            f"{person.name:8} {median(rate):7.1f} examples/s  ours is {ratio:.2f} times as fast  "
            f"{rows[-1]['padding']:.0%} padding, first pass {facts['warmup_seconds']:.1f} s, peak {memory[person.name]:.0f} MB",
            flush=True,
        )
        person.stop()
    if args.json:
        args.json.write_text(json.dumps({"load_before": LOAD, "rows": rows}, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--losses", nargs="+", choices=MAIN, metavar="TASK")
    mode.add_argument("--scores", nargs="+", choices=MAIN, metavar="TASK")
    mode.add_argument("--speed", choices=MAIN, metavar="TASK")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--file", type=Path, help="qa: train on this file in SQuAD's layout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="losses")
    parser.add_argument("--workdir", type=Path, default=Path("runs/scores"), help="scores")
    parser.add_argument("--seeds", type=int, default=3, help="scores")
    parser.add_argument("--participants", nargs="*", choices=("max", "longest", "sorted"), default=("max", "longest", "sorted"))
    parser.add_argument("--batches", type=int, default=20, help="speed: batches a round")
    parser.add_argument("--rounds", type=int, default=5, help="speed")
    parser.add_argument("--json", type=Path, help="speed: file to write")
    parser.add_argument("--peer-python", default=sys.executable)
    return parser.parse_args()


if __name__ == "__main__":
    LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    args = parse()
    sys.exit((losses if args.losses else scores if args.scores else speed)(args))
