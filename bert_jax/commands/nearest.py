"""The commands `quantize` and `nearest`: search among the vectors of a file."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bert_jax.data import files
from bert_jax.errors import InputError

_Vectors = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VECTORS")]
_Queries = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUERIES")]
_Corpus = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
_AT_A_TIME = 1024  # queries


def quantize(vectors: _Vectors, out: str, precision: Literal["bfloat16", "int8", "binary"] = "int8") -> None:
    """Store vectors in less memory, for nearest: 2 bytes a value, 1, or 1 bit, as sentence-transformers' quantize_embeddings.

    Args:
        vectors: Array of vectors (.npy), such as `bert_jax embed --out` writes.
        out: File to write (.safetensors).
        precision: bfloat16; int8, the range of each dimension in 255 steps; or binary, 1 for values above 0.
    """
    if not out.endswith(".safetensors"):
        raise InputError(f"--out {out}: give a name that ends in .safetensors")
    from bert_jax.inference.vectors import open_vectors, write_vectors

    source = open_vectors(vectors)
    if source.precision != "float32":
        raise InputError(f"{vectors} is {source.precision} already: give the vectors that it was made of")
    write_vectors(Path(out), source.array, precision)
    print(f"{out}: {len(source)} vectors of {source.width}, {precision}")


def nearest(
    queries: _Queries,
    corpus: _Corpus,
    top_k: int = 10,
    rescore: str | None = None,
    factor: int = 4,
    ids: str | None = None,
    query_ids: str | None = None,
    allow: str | None = None,
    deny: str | None = None,
    out: str | None = None,
) -> None:
    """Find the nearest vectors of each query: {"id", "nearest": [{"id", "score"}]}, or a run for trec_eval.

    The search is exact, by inner products, in bounded memory: files of vectors may be larger than it.

    Args:
        queries: Array of vectors (.npy), such as `bert_jax embed --out` writes.
        corpus: Array of vectors (.npy), or file of `bert_jax quantize`.
        top_k: Number of vectors for each query.
        rescore: Array of the vectors (.npy) that `quantize` read: the best candidates are scored again by it.
        factor: Number of candidates for each query that are scored again, as a multiple of --top-k; 0: none.
        ids: File with the id of each vector of the corpus, one per line. Default: their numbers, from 0.
        query_ids: File with the id of each query, one per line. Default: their numbers, from 0.
        allow: File with the ids that are searched, one per line. Default: all.
        deny: File with ids that are not searched, one per line.
        out: File to write in trec_eval's form, for `bert_jax rerank --run`. Default: JSON lines on standard output.
    """
    import numpy as np

    from bert_jax.inference import search
    from bert_jax.inference.vectors import open_vectors
    from bert_jax.tasks.ranking import Ranking, write_run

    vectors = open_vectors(corpus)
    floats = {path: open_vectors(path) for path in (queries, rescore) if path is not None}
    for path, own in floats.items():
        if own.precision != "float32":
            raise InputError(f"{path} is {own.precision}: give vectors as `bert_jax embed --out` writes them")
    asked, again = floats[queries], None if rescore is None else floats[rescore].array
    names, query_names = _names(ids, corpus, len(vectors)), _names(query_ids, queries, len(asked))
    numbers = {name: i for i, name in enumerate(names)} if allow or deny else {}
    allowed, denied = (None if path is None else _numbers(path, numbers, corpus) for path in (allow, deny))
    if allow or deny:
        left = np.setdiff1d(np.arange(len(vectors)) if allowed is None else allowed, denied or [])
        if not len(left):
            raise InputError(f"--allow and --deny leave none of the {len(vectors)} vectors of {corpus}")

    def rankings() -> Iterator[Ranking]:
        for start in range(0, len(asked), _AT_A_TIME):
            some = np.asarray(asked.array[start : start + _AT_A_TIME], np.float32)
            scores, documents = search.nearest(
                some, vectors, top_k, rescore=again, factor=factor, allow=allowed, deny=denied
            )  # fmt: skip
            for own, values in zip(documents, scores, strict=True):
                real = ~np.isnan(values)  # null texts have no vector
                yield Ranking(own[real], values[real])

    if out is not None:
        write_run(Path(out), query_names, rankings(), names, top_k)
        return
    for query, (documents, scores) in zip(query_names, rankings(), strict=True):
        each = zip(documents.tolist(), scores.tolist(), strict=True)
        line = {"id": query, "nearest": [{"id": names[i], "score": float(f"{score:.7g}")} for i, score in each]}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


def _names(path: str | None, vectors: str, count: int) -> Sequence[str]:
    """Returns the id of each vector. Raises InputError unless a file names each once."""
    if path is None:
        return list(map(str, range(count)))
    names = [name for _, name in files.text_lines(path)]
    if len(names) != count:
        raise InputError(f"{path}: {len(names)} ids for the {count} vectors of {vectors}: give one for each")
    if len(set(names)) < count:
        again = Counter(names).most_common(1)[0][0]
        raise InputError(f"{path}: the id {again!r} is there twice: give each vector an id of its own")
    return names


def _numbers(path: str, numbers: dict[str, int], corpus: str) -> list[int]:
    found = []
    for place, name in files.text_lines(path):
        if name not in numbers:
            raise InputError(f"{place}: no vector of {corpus} has the id {name!r} (--ids)")
        found.append(numbers[name])
    return found
