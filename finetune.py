"""Fine-tune a pretrained model on a task: `python finetune.py MODEL --task sst2 --data DIR`, which is `bert_jax finetune`."""

from __future__ import annotations

import sys

from bert_jax.commands.finetune import finetune


def main(argv: list[str]) -> int:
    """Runs one command line; returns the exit status."""
    return finetune(argv, "python finetune.py")


if __name__ == "__main__":
    from bert_jax import console

    console.run(main, sys.argv[1:], "the same command continues")
