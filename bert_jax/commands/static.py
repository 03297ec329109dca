"""The command `static`: a table of token vectors in place of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from bert_jax.errors import InputError


def static(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")],
    dimensions: int | None = None,
    sif: float | None = 1e-4,
) -> None:
    """Distil a model into a table of token vectors, which embeds texts without the model: much faster, and less well.

    The model embeds each token of its vocabulary alone; the main directions are kept (PCA), and frequent tokens weigh less, as in
    model2vec. `bert_jax embed`, `bert_jax evaluate --task retrieval` and sentence-transformers read the folder.

    Args:
        model: Retriever, or any other model.
        out: Directory to write.
        dimensions: Values of a vector. Default: 256, or all of a narrower model.
        sif: Frequency of a token at which its weight is a half, by Zipf's law for the ids. None: no weights.
    """
    import bert_jax
    from bert_jax import compilation_cache
    from bert_jax.static import is_static

    if (Path(out) / "config.json").exists() and not is_static(Path(out)):
        raise InputError(f"{out} has the config.json of another model, which would be replaced: give a new folder")
    compilation_cache.keep()
    embedder = bert_jax.to_static(bert_jax.load(model), dimensions, sif)
    embedder.save(out)
    print(f"{out}: {len(embedder.table)} tokens of {embedder.table.shape[1]} values")
