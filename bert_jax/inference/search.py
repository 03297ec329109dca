"""Exact search: the vectors of a corpus with the largest inner products, in blocks, over arrays that may be mapped files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from bert_jax.errors import InputError
from bert_jax.inference.vectors import Vectors, as_vectors

_QUERIES = 8192  # whose best vectors are kept at a time
_ROWS, _COLUMNS = 512, 4096  # queries and vectors that NumPy compares at a time
_DEVICE_ROWS, _DEVICE_COLUMNS = 1024, 65536  # and that a device does
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
_RESCORED = 1 << 24  # values that are scored again at a time
_NONE = np.uint64(2**64 - 1)  # the key of no vector: it comes after all others


class Best:
    """The best numbers of each query among the scores that were added so far.

    A number is kept with its score as a key of 64 bits: the score, turned so that the best is least, and then the number. The
    least keys are the best; of equal scores, the smaller number comes first, and scores that are no numbers come last. Nearly all
    scores are below the last one that is kept, so that their keys are never made.
    """

    def __init__(self, queries: int, top_k: int) -> None:
        """Begins with nothing; `top_k` numbers, at least 1, are kept for each query."""
        self._keys = np.full((queries, top_k), _NONE, np.uint64)
        self._least = np.full(queries, np.nan, np.float32)
        self._seen = 0

    def add(self, scores: np.ndarray, numbers: range | np.ndarray, first: int = 0) -> None:
        """Adds scores.

        Args:
          scores: float32 [R, N], of the queries from `first` on.
          numbers: [N], below 2^32 - 1, ascending, and larger than those that these queries were given before. Equal ones are
            parts of a document, which has the best of their scores.
          first: the first of the queries.
        """
        own, scores = np.asarray(numbers, np.uint64), np.asarray(scores, np.float32)
        starts = np.flatnonzero(np.diff(own, prepend=_NONE))
        if len(starts) < len(own):
            scores, own = np.maximum.reduceat(scores, starts, axis=1), own[starts]
        self._seen += len(own) * (first == 0)
        least = self._least[first : first + len(scores), None]
        passed = np.flatnonzero(~(scores <= least))  # an equal score comes after those that are kept
        if not len(passed):
            return
        row, column = np.divmod(passed, len(own))
        counts = np.bincount(row, minlength=len(scores))
        changed = np.flatnonzero(counts)
        place = np.arange(len(row)) - np.repeat((np.cumsum(counts) - counts)[changed], counts[changed])
        keys = np.full((len(changed), int(counts.max())), _NONE, np.uint64)
        keys[np.repeat(np.arange(len(changed)), counts[changed]), place] = _keys(scores.reshape(-1)[passed], own[column])
        self._merge(first + changed, keys)

    def add_best(self, scores: np.ndarray, numbers: np.ndarray, real: np.ndarray, first: int, seen: int) -> None:
        """Adds the best of `seen` numbers that another has chosen: scores, their numbers, and which count, [R, k]."""
        self._seen += seen * (first == 0)
        self._merge(slice(first, first + len(scores)), np.where(real, _keys(scores, numbers), _NONE))

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores, float32 [Q, k], and the numbers, int64 [Q, k], the best first; k is the number of those seen."""
        keys = np.sort(self._keys, axis=1)[:, : self._seen]
        return _scores_of(keys), _numbers_of(keys)

    def _merge(self, rows: np.ndarray | slice, keys: np.ndarray) -> None:
        """Keeps the least of these keys and those that are kept."""
        both, last = np.concatenate([self._keys[rows], keys], axis=1), self._keys.shape[1] - 1
        both.partition(last, axis=1)
        self._keys[rows] = both[:, : last + 1]
        self._least[rows] = _scores_of(both[:, last])


class Search:
    """The best vectors for each query among those that were added so far; `block` of them are best added at a time."""

    def __init__(
        self,
        queries: np.ndarray,
        top_k: int,
        offsets: np.ndarray | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Begins a search.

        Args:
          queries: float32 [Q, D].
          top_k: vectors to keep for each query, at least 1.
          offsets: added to all scores of each query, float32 [Q].
          devices: devices that compute the scores, each of a share of the blocks; empty: NumPy does. Default: the accelerators
            of this process, if there are any.
        """
        if devices is None:
            devices = [] if jax.default_backend() == "cpu" else jax.local_devices()
        self.block = _DEVICE_COLUMNS if devices else _COLUMNS
        self._queries, self._offsets = queries, np.zeros(len(queries), np.float32) if offsets is None else offsets
        self._best, self._turn = Best(len(queries), top_k), 0
        self._top_k, self._devices = top_k, [(own, *jax.device_put((queries, self._offsets), own)) for own in devices]
        self._in_flight: deque[tuple[int, np.ndarray, jax.Array, jax.Array]] = deque()

    def add(self, vectors: np.ndarray, numbers: range | np.ndarray) -> None:
        """Adds vectors, float32 [N, D], of the numbers [N], as in `Best.add`."""
        for part in cuts(numbers, self.block):
            some, own = vectors[part], np.asarray(numbers[part], np.uint64)
            if self._devices:
                self._dispatch(some, own)
                continue
            for start in range(0, len(self._queries), _ROWS):
                rows = slice(start, start + _ROWS)
                scores = self._queries[rows] @ some.T
                scores += self._offsets[rows, None]
                self._best.add(scores, own, start)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores and the numbers of the best vectors, as `Best.found`."""
        while self._in_flight:
            self._collect()
        return self._best.found()

    def _dispatch(self, vectors: np.ndarray, numbers: np.ndarray) -> None:
        """Sends vectors to the next device, in one of few shapes."""
        device, queries, offsets = self._devices[self._turn % len(self._devices)]
        self._turn += 1
        documents, of = np.unique(numbers, return_inverse=True)
        missing = (0, (1 << (len(vectors) - 1).bit_length()) - len(vectors))
        there = jax.device_put(
            (np.pad(vectors, (missing, (0, 0))), np.pad(of.astype(np.int32), missing, constant_values=-1)), device
        )
        for start in range(0, len(self._queries), _DEVICE_ROWS):
            rows, most = slice(start, start + _DEVICE_ROWS), min(self._top_k, len(there[0]))
            found = _best_of(queries[rows], offsets[rows], *there, most, len(documents) < len(vectors))
            self._in_flight.append((start, documents, *found))
        while len(self._in_flight) > 2 * len(self._devices) * -(-len(self._queries) // _DEVICE_ROWS):
            self._collect()

    def _collect(self) -> None:
        """Merges what a device found in a block."""
        start, numbers, *found = self._in_flight.popleft()
        scores, places = jax.device_get(found)
        real = places < len(numbers)
        scores = np.where(np.isneginf(scores), np.float32(np.nan), scores)  # no numbers, as NumPy has them
        self._best.add_best(scores, numbers[np.where(real, places, 0)], real, start, len(numbers))


def cuts(numbers: range | np.ndarray, size: int) -> Iterator[slice]:
    """Yields slices of at most `size` vectors that keep those of equal numbers together; a longer document is alone."""
    start = 0
    while start < len(numbers):
        stop = min(start + size, len(numbers))
        if stop < len(numbers) and numbers[stop] == numbers[stop - 1]:
            first, after = (int(np.searchsorted(numbers, numbers[stop], side)) for side in _SIDES)
            stop = first if first > start else after
        yield slice(start, stop)
        start = stop


@partial(jax.jit, static_argnames=("top_k", "several"))
def _best_of(
    queries: jax.Array, offsets: jax.Array, vectors: jax.Array, documents: jax.Array, top_k: int, several: bool
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Returns the scores and places of the best documents; of equal scores, the first. `documents` is the document of a vector.

    It ascends from 0, and is -1 for padding; with `several`, some have more than one vector.
    """
    scores = jnp.matmul(queries, vectors.T, precision="highest") + offsets[:, None]
    scores = jnp.where((documents >= 0)[None] & ~jnp.isnan(scores), scores, -jnp.inf)
    if several:
        scores = jax.ops.segment_max(scores.T, documents, len(documents)).T
    return jax.lax.top_k(scores, top_k)


def nearest(
    queries: ArrayLike,
    corpus: ArrayLike | Vectors,
    top_k: int = 10,
    *,
    rescore: np.ndarray | None = None,
    factor: int = 4,
    allow: Sequence[int] | np.ndarray | None = None,
    deny: Sequence[int] | np.ndarray | None = None,
    documents: np.ndarray | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the vectors of a corpus with the largest inner products, exactly.

    Inner products of normalized embeddings are cosine similarities. The corpus is read in blocks: a mapped file may be larger
    than the memory.

    int8 vectors are compared with the query as the values that they stand for. Bits are compared with the signs of the query (by
    Hamming distance); the best `top_k * factor` vectors are then scored again by the query and their bits, as
    sentence-transformers' `semantic_search_usearch` does, or by float vectors in `rescore`.

    Args:
      queries: [Q, D], or one query [D].
      corpus: [N, D], or vectors of `quantize` or `open_vectors`; N is below 2^32 - 1.
      top_k: vectors for each query; k is the smaller of this and the number of vectors that are searched.
      rescore: the corpus as floats, [N, D], such as a mapped .npy file; the best `top_k * factor` vectors are scored again by it.
      factor: candidates that are scored again, as a multiple of `top_k`; 0: none. The scores of bits are then the negative
        Hamming distances.
      allow: the numbers of the vectors that are searched. Default: all.
      deny: numbers of vectors that are not searched.
      documents: the document of each vector, int [N], ascending, such as `Embedder.passages` returns. The score of a document is
        that of its best vector, and indices are those of documents. Not with candidates that are scored again.
      devices: devices that compute. Default: this process's accelerators, else NumPy.

    Returns:
      Scores, float32 [Q, k], and indices, int64 [Q, k], the best first, ties by index.

    Raises:
      InputError: shapes do not fit; `allow` or `deny` has a number that the corpus lacks; `factor` is negative; `documents` do
        not ascend, or candidates of documents would be scored again.
    """
    if top_k < 1:
        raise InputError(f"top_k={top_k} is below 1")
    if factor < 0:
        raise InputError(f"factor={factor} is below 0")
    asked, vectors = np.atleast_2d(np.asarray(queries, np.float32)), as_vectors(corpus)
    if asked.shape[1] != vectors.width:
        raise InputError(f"queries have {asked.shape[1]} dimensions, the corpus {vectors.width}: embed both with one model")
    if rescore is not None and rescore.shape != (len(vectors), vectors.width):
        raise InputError(f"rescore has the shape {rescore.shape}, the corpus {(len(vectors), vectors.width)}")
    numbers = _searched(len(vectors), allow, deny)
    again, count = factor > 0 and (rescore is not None or vectors.precision == "binary"), len(numbers)
    if documents is not None:
        documents = _checked(documents, len(vectors))
        if again:
            raise InputError("documents: candidates are not scored again by passages: give factor=0, or no documents")
        count = len(np.unique(documents[np.asarray(numbers, np.int64)]))
    top_k, most = min(top_k, count), min(top_k * factor if again else top_k, count)
    scores, indices = np.empty((len(asked), top_k), np.float32), np.empty((len(asked), top_k), np.int64)
    for start in range(0, len(asked) if top_k else 0, _QUERIES):
        own = asked[start : start + _QUERIES]
        found = _search(own, vectors, numbers, documents, most, devices)
        if again:
            found = _rescored(own, found[1], vectors if rescore is None else as_vectors(rescore), top_k)
        scores[start : start + _QUERIES], indices[start : start + _QUERIES] = found
    return scores, indices


def _search(
    queries: np.ndarray, vectors: Vectors, numbers: range | np.ndarray, documents: np.ndarray | None, top_k: int,
    devices: Sequence[jax.Device] | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns the scores and numbers of the best vectors among those of these numbers, or of the best documents."""
    offsets = None
    if vectors.precision == "binary":  # with signs s of the bits q: s . d - |q| is minus the number of bits that differ
        signs = np.where(queries > 0, np.float32(1), np.float32(-1))
        none = np.isnan(queries).any(axis=1)  # they have no signs
        queries, offsets = signs, np.where(none, np.float32(np.nan), -np.sum(signs > 0, axis=1, dtype=np.float32))
    search = Search(queries, top_k, offsets, devices)
    of = numbers if documents is None else documents[np.asarray(numbers, np.int64)]
    for part in cuts(of, search.block):
        some = numbers[part]
        search.add(vectors.decode(slice(some.start, some.stop) if isinstance(some, range) else some), of[part])
    return search.found()


def _rescored(queries: np.ndarray, candidates: np.ndarray, vectors: Vectors, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores and numbers of the best candidates [Q, C] by other vectors."""
    best, rows = np.empty((len(queries), top_k), np.uint64), max(1, _RESCORED // max(1, candidates.shape[1] * vectors.width))
    for start in range(0, len(queries), rows):
        some = slice(start, start + rows)
        own = vectors.decode(candidates[some].reshape(-1)).reshape(*candidates[some].shape, -1)
        keys = _keys(np.matmul(own, queries[some, :, None])[..., 0], candidates[some].astype(np.uint64))
        best[some] = np.sort(keys, axis=1)[:, :top_k]
    return _scores_of(best), _numbers_of(best)


def _checked(documents: np.ndarray, count: int) -> np.ndarray:
    """Returns the document of each of `count` vectors. Raises InputError unless they ascend from 0 or above."""
    found = _whole("documents", documents)
    if found.shape != (count,) or (count and found[0] < 0) or (np.diff(found) < 0).any():
        raise InputError(f"documents {found.shape} must ascend from 0 or above, one for each of the {count} vectors")
    return found


def _whole(name: str, given: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns int64 numbers. Raises InputError for others, such as those of a mask."""
    found = np.asarray(given)
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        said = f"{name} is an array {found.shape} of {found.dtype}, not one of whole numbers"
        raise InputError(f"{said}: np.flatnonzero(mask) gives those of a mask")
    return found.astype(np.int64, copy=False)


def _searched(
    count: int, allow: Sequence[int] | np.ndarray | None, deny: Sequence[int] | np.ndarray | None
) -> range | np.ndarray:  # fmt: skip
    """Returns the numbers of the vectors that are searched, ascending."""
    if allow is None and deny is None:
        return range(count)
    given = {name: _whole(name, own) for name, own in (("allow", allow), ("deny", deny)) if own is not None}
    for name, own in given.items():
        if len(own) and not 0 <= own.min() <= own.max() < count:
            wrong = own[(own < 0) | (own >= count)][0]
            raise InputError(f"{name} has the number {wrong}; the corpus has the numbers 0 to {count - 1}")
    mask = np.full(count, allow is None)
    if "allow" in given:
        mask[given["allow"]] = True
    if "deny" in given:
        mask[given["deny"]] = False
    return np.flatnonzero(mask)


def _keys(scores: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns uint64 keys that ascend as scores (float32) fall, and with the numbers (uint64) of equal ones."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 becomes 0
    falling = np.where(bits >> np.uint32(31), bits, bits ^ np.uint32(0x7FFFFFFF))
    falling = np.where(np.isnan(scores), np.uint32(0xFFFFFFFF), falling)
    return (falling.astype(np.uint64) << np.uint64(32)) | numbers


def _numbers_of(keys: np.ndarray) -> np.ndarray:
    """Inverts `_keys`: int64 numbers."""
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _scores_of(keys: np.ndarray) -> np.ndarray:
    """Inverts `_keys`: float32 scores."""
    falling = (keys >> np.uint64(32)).astype(np.uint32)
    return np.where(falling >> np.uint32(31), falling, falling ^ np.uint32(0x7FFFFFFF)).view(np.float32)
