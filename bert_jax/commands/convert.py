"""The command `convert`."""

from __future__ import annotations

from typing import Annotated

import tyro


def convert(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IN")],
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")],
    head: str | None = None,
    verbose: bool = False,
) -> None:
    """Write a model that bert_jax reads (see docs/library.md) in the Hugging Face layout.

    Args:
        source: Pretrained directory, TF1 checkpoint's directory, work directory of train.py, or name on the hub.
        out: Directory to write.
        head: Head to write; default: the one that it has.
        verbose: Show where each tensor came from and went to.
    """
    from bert_jax import pretrained

    for line in pretrained.convert_directory(source, out, head, verbose):  # type: ignore[arg-type]
        print(line)
