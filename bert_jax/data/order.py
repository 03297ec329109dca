"""The order in which training draws rows: a function of the seed and of the place in the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np


@dataclass(frozen=True)
class Part:
    """Rows that are shuffled among themselves.

    Attributes:
      first: The first row.
      stop: The row behind the last one.
      weight: The number of its rows in as many draws as all weights together.
      drawn: The number of its rows that the phases before have drawn.
      name: The name of its source; empty without a mixture.
    """

    first: int
    stop: int
    weight: int = 1
    drawn: int = 0
    name: str = ""


class Order:
    """An endless sequence of rows of one or several parts, interleaved by their weights.

    Each part is shuffled, otherwise in each epoch. `seed` decides the orders.
    """

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        self.parts = tuple(parts)
        sizes = [part.stop - part.first for part in parts]
        self._shuffled = [grain.MapDataset.range(size).seed(seed).shuffle().repeat() for size in sizes]
        self._pattern = interleave([part.weight for part in parts])
        is_part = self._pattern[:, None] == np.arange(len(parts))
        self._before = np.concatenate([np.zeros((1, len(parts)), np.int64), np.cumsum(is_part, axis=0)])  # [places + 1, parts]

    def rows(self, places: Sequence[int]) -> list[int]:
        """Returns the rows at `places` of the sequence."""
        found, numbers = [], self._pattern[np.asarray(places) % len(self._pattern)].tolist()
        for number, counts in zip(numbers, self.counts(places).tolist(), strict=True):
            part = self.parts[number]
            found.append(part.first + self._shuffled[number][part.drawn + counts[number]])
        return found

    def counts(self, places: Sequence[int]) -> np.ndarray:
        """Returns the number of rows of each part before each of `places`, int64 [places, parts]."""
        periods, rest = np.divmod(np.asarray(places, np.int64), len(self._pattern))
        return periods[:, None] * self._before[-1] + self._before[rest]


def interleave(weights: Sequence[int]) -> np.ndarray:
    """Returns the part at each place of a period, `weights[i]` times part i, spread evenly.

    >>> interleave([2, 1]).tolist()
    [0, 1, 0]
    """
    share, taken, pattern = np.array(weights) / sum(weights), np.zeros(len(weights)), []
    for place in range(1, sum(weights) + 1):
        pattern.append(int(np.argmax(share * place - taken)))
        taken[pattern[-1]] += 1
    return np.array(pattern)
