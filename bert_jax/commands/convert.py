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
    """Write any model that bert_jax reads (docs/library.md) in the Hugging Face layout.

    Args:
        source: Pretrained directory, directory of a TensorFlow 1 checkpoint, work directory of `bert_jax train`, or name on the
            hub.
        out: Directory to write.
        head: Head to write. Default: that of the model.
        verbose: Print the source and the target of each tensor.
    """
    from bert_jax import pretrained

    for line in pretrained.convert_directory(source, out, head, verbose):  # type: ignore[arg-type]
        print(line)
