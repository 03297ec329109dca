"""Pretrain a BERT from raw text: `python train.py CONFIG [--field value ...]`, which is `bert_jax train`."""

from __future__ import annotations

import sys

from bert_jax.commands.train import train


def main(argv: list[str]) -> int:
    """Runs one command line; returns the exit status."""
    return train(argv, "python train.py")


if __name__ == "__main__":
    from bert_jax import console

    console.run(main, sys.argv[1:], "the same command continues")
