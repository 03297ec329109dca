"""The command `finetune`."""

from __future__ import annotations

import shlex

from bert_jax.finetuning.config import load_finetune_config


def finetune(argv: list[str], prog: str = "bert_jax finetune") -> int:
    """Fine-tune a pretrained model on a task: MODEL --task NAME --data PATH [--field value ...]. The same command continues."""
    cfg = load_finetune_config(argv, prog)
    from bert_jax import compilation_cache
    from bert_jax.finetuning.finetune import finetune  # here, so that mistakes in the command line are reported at once

    compilation_cache.keep()
    return finetune(cfg, f"{prog} {shlex.join(argv)}").status
