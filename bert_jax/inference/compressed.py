"""Search among vectors that are stored in less memory, as an evaluation of what that costs: blocks in, the best documents out."""

from __future__ import annotations

import tempfile

import numpy as np

from bert_jax.errors import InputError
from bert_jax.inference.search import nearest
from bert_jax.inference.vectors import Precision, quantize


class CompressedSearch:
    """Finds what `nearest` finds among the quantized vectors of a corpus, whose blocks are added one after another.

    The float vectors wait in a temporary file, because the steps of int8 follow from all of them.
    """

    def __init__(self, queries: np.ndarray, top_k: int, precision: Precision, rescore: int | None = None) -> None:
        """Begins a search.

        Args:
          queries: float32 [Q, D].
          top_k: documents to keep for each query.
          precision: the precision of the corpus.
          rescore: candidates of each query that the float vectors order again; no others are then kept. None: none.
        """
        self._queries, self._top_k, self._precision, self._rescore = queries, top_k, precision, rescore
        self._file, self._numbers = tempfile.TemporaryFile(), list[np.ndarray]()  # noqa: SIM115 (`found` closes it)

    def add(self, vectors: np.ndarray, numbers: range | np.ndarray) -> None:
        """Adds vectors, float32 [N, D], of the documents `numbers` [N], which ascend; equal ones are passages of a document."""
        try:
            self._file.write(np.ascontiguousarray(vectors, np.float32).data)
            self._file.flush()
        except OSError as error:
            where = f"{tempfile.gettempdir()}: the float vectors cannot be written ({error.strerror})"
            raise InputError(f"{where}: set TMPDIR to a folder with more room") from None
        self._numbers.append(np.asarray(numbers, np.int64))

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores, float32 [Q, k], and the numbers of the best documents, int64 [Q, k], the best first."""
        numbers = np.concatenate(self._numbers)
        with self._file:
            floats = np.memmap(self._file, np.float32, "r", shape=(len(numbers), self._queries.shape[1]))
        stored = quantize(floats, self._precision)
        if (np.diff(numbers) == 0).any():  # passages, whose candidates are not scored again
            return nearest(self._queries, stored, self._top_k, factor=0, documents=numbers)
        if self._rescore is None:
            scores, places = nearest(self._queries, stored, self._top_k)
        else:
            scores, places = nearest(self._queries, stored, self._rescore, rescore=floats, factor=1)
        return scores[:, : self._top_k], numbers[places[:, : self._top_k]]
