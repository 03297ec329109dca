"""The command `train`."""

from __future__ import annotations

from bert_jax.config import BertConfig, TrainConfig, load_train_config


def train(argv: list[str], prog: str = "bert_jax train") -> int:
    """Pretrain a model on raw text: CONFIG [--field value ...]. The same command continues."""
    cfg = read_config(argv, prog)
    from bert_jax import compilation_cache, pretrain  # here, so that mistakes in the command line are reported at once

    compilation_cache.keep()
    return pretrain.train(cfg, prog).status


def read_config(argv: list[str], prog: str) -> TrainConfig:
    """Returns the config of a command line, with the architecture of the model that `--init-from` names."""
    return load_train_config(argv, prog, _architecture)


def _architecture(init_from: str, workdir: str) -> BertConfig:
    from bert_jax import program

    return program.architecture(init_from, workdir)
