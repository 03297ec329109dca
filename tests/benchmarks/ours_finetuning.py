r"""bert_jax's side of finetuning.py: the losses of some steps, or training on batches timed on request (protocol.py).

    python tests/benchmarks/ours_finetuning.py --data DATA --model DIR \
        --losses sst2 --init HEADED_DIR --order order.json --out losses.json
    python tests/benchmarks/ours_finetuning.py --data DATA --model DIR --speed sst2 --batching packed --batches 20

--losses writes the model with its head to --init and the batches, lists of numbers of training rows (qa: of windows), to
--order, both for the peer, then trains without dropout and writes the losses. The settings are those of peer_finetuning.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import protocol

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {  # batch size, learning rate, epochs, most tokens, most rows: those of peer_finetuning.py
    **dict.fromkeys(("sst2", "cola"), (32, 5e-5, 3, 128, 2500)),
    **dict.fromkeys(("mrpc", "stsb", "rte"), (32, 5e-5, 3, 128, 1000)),
    "wnut17": (16, 1e-4, 4, 128, 1000),
    "qa": (16, 1e-4, 2, 384, 500),
}


def command(name: str, data: Path, model: Path) -> list[str]:
    """The arguments of finetune.py for a task."""
    glue = {"sst2": "SST-2", "cola": "CoLA", "mrpc": "MRPC", "stsb": "STS-B", "rte": "RTE"}
    if name in glue:
        files = ["--task", name, "--data", str(data / "glue" / glue[name])]
        files += ["--dev-size", "408"] if name == "mrpc" else []
    elif name == "wnut17":
        files = ["--task", "ner", "--data", str(data / "ner/wnut17/train.conll"), "--dev", str(data / "ner/wnut17/dev.conll")]
    else:
        files = ["--task", "squad", "--data", str(data / "qa/policyqa/dev.json"), "--dev", str(data / "qa/xquad/xquad.en.json")]
    batch, rate, epochs, length, rows = SETTINGS[name]
    numbers = {"batch-size": batch, "learning-rates": rate, "num-epochs": epochs, "max-seq-length": length,
               "max-train-rows": rows, "weight-decay": 0, "eps": 1e-8, "dropout": 0.1}  # fmt: skip
    return [
        str(model),
        *files,
        *(part for key, value in numbers.items() for part in (f"--{key}", str(value))),
        "--select",
        "last",
    ]


def prepare(name: str, args: argparse.Namespace, **changes: Any) -> Any:
    """The setting of finetune.py's runs, without dev and test."""
    from bert_jax.finetuning import stages
    from bert_jax.finetuning.config import load_finetune_config
    from bert_jax.tasks.splits import load_splits
    from bert_jax.tasks.table import find_task

    cfg = load_finetune_config(command(name, args.data, args.model))
    task = find_task(cfg.task)
    cfg = cfg.resolved(task)
    if args.file:
        changes["task_data"] = dataclasses.replace(cfg.task_data, data=str(args.file))
    elif args.speed:  # shapes as for all of the rows; the first batches of them are timed
        changes["task_data"] = dataclasses.replace(cfg.task_data, max_train_rows=None)
    cfg = cfg.replace(**changes)
    splits = dataclasses.replace(load_splits(task, cfg.task_data), dev={}, test={})
    return stages.prepare(cfg, task, splits, lambda line: print(line, file=sys.stderr))[0]


def losses(args: argparse.Namespace) -> None:
    import jax

    from bert_jax import pretrained
    from bert_jax.finetuning import runs

    setting = prepare(args.losses, args, dropout=0.0, batch_size=args.batch_size)
    steps_per_epoch = setting.batches.steps_per_epoch
    setting = dataclasses.replace(setting, cfg=setting.cfg.replace(num_epochs=args.total_steps / steps_per_epoch))
    assert setting.num_steps == args.total_steps
    pretrained.save(dataclasses.replace(setting.start.model, params=setting.start.params(0)), args.init)
    args.order.write_text(json.dumps([setting.batches.order(0, step) for step in range(args.steps)]))
    run = runs.Runs(setting, [runs.Member(0, setting.cfg.learning_rates[0])], args.init / "run")
    state, step, values = run.initial(), run.train_step(), []
    for batch in setting.batches.stream([0], 0, args.steps):
        state, metrics = step(state, batch)
        values.append(float(jax.device_get(metrics["loss"])))
    args.out.write_text(json.dumps(values) + "\n")


def speed(args: argparse.Namespace) -> None:
    """A request trains on all batches once, and waits for the last update."""
    import jax

    from bert_jax.finetuning import runs

    setting = prepare(args.speed, args, batching=args.batching)
    run = runs.Runs(setting, [runs.Member(0, setting.cfg.learning_rates[0])], Path("unused"))
    batches, state, step = setting.batches, run.initial(), run.train_step()

    def request() -> None:
        nonlocal state
        metrics = None
        for batch in batches.stream([0], 0, args.batches):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    made = [batches.train([0], number) for number in range(args.batches)]
    tokens, positions = sum(int((b["sequence_ids"] > 0).sum()) for b in made), sum(b["input_ids"].size for b in made)
    examples = sum(len(batches.order(0, number)) for number in range(args.batches))
    facts = dict(examples=examples, tokens=tokens, positions=positions, versions={"jax": jax.__version__})
    protocol.serve(request, args.requests, 1, **facts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--losses", choices=SETTINGS, metavar="TASK")
    mode.add_argument("--speed", choices=SETTINGS, metavar="TASK")
    parser.add_argument("--data", type=Path, required=True, help="directory with glue/, ner/ and qa/")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--file", type=Path, help="train on this file instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--init", type=Path, help="losses: directory to write the model with its head to")
    parser.add_argument("--order", type=Path, help="losses: JSON file of batches to write")
    parser.add_argument("--out", type=Path, help="losses: JSON file to write")
    parser.add_argument("--steps", type=int, default=50, help="losses")
    parser.add_argument("--total-steps", type=int, default=100, help="losses: where the learning rate reaches 0")
    parser.add_argument("--batch-size", type=int, default=32, help="losses")
    parser.add_argument("--batching", choices=("packed", "padded", "by_length"), default="packed", help="speed")
    parser.add_argument("--batches", type=int, default=10, help="speed: batches a request")
    parser.add_argument("--requests", type=int, default=0, help="speed: time this many and leave; 0: read `step` from stdin")
    return parser.parse_args()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from bert_jax import hugepages

    hugepages.use()  # as finetune.py does
    np.seterr(all="raise", under="ignore")
    args = parse()
    protocol.limit_cores(args.threads)
    (speed if args.speed else losses)(args)
