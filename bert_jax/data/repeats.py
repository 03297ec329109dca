"""Counts repeated text in bounded memory: copies of documents and sentences, and held-out text that is also trained on.

All copies of a text have the same hash. A sample by hash therefore has all copies of a text or none, and estimates shares without
bias. A text of at most MOST entries is its own sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

MOST = 1 << 20  # entries of a sample


@dataclass
class Sample:
    """Entries whose hash is in a share of 2**-halvings of all hashes.

    Attributes:
      hashes: uint64 [n], in the order of the text.
      files: int32 [n], the number of the file of each entry.
      held_out: bool [n].
      halvings: the number of times the range of hashes was halved.
    """

    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    files: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    halvings: int = 0

    def at(self, halvings: int) -> Sample:
        """Returns the entries that are left after `halvings` halvings in all."""
        kept = self.hashes >> np.uint64(64 - halvings) == 0 if halvings else slice(None)
        return Sample(self.hashes[kept], self.files[kept], self.held_out[kept], halvings)


def joined(samples: Sequence[Sample]) -> Sample:
    """Returns the sample of a text, given the samples of its consecutive parts."""
    halvings = max(sample.halvings for sample in samples)
    parts = [sample.at(halvings) for sample in samples]
    hashes, files, held_out = (np.concatenate([getattr(p, name) for p in parts]) for name in ("hashes", "files", "held_out"))
    both = Sample(hashes, files, held_out, halvings)
    while len(both.hashes) > MOST:
        both = both.at(both.halvings + 1)
    return both


class Repeats(TypedDict):
    """The `count` of repeated entries among the `of` entries of a text.

    `worst` is [file, count] of the three files with the most, and `estimated` is True if the sample is smaller than the text.
    """

    count: int
    of: int
    share: float
    worst: list[list[int]]
    estimated: bool


def found(sample: Sample, repeated: np.ndarray, among: np.ndarray | None = None) -> Repeats:
    """Returns the repeats of a text, given the entries of its sample that are `repeated` and, if not all, those `among` them."""
    scale = 1 << sample.halvings
    counts = np.bincount(sample.files[repeated], minlength=1)
    worst = [[int(i), int(counts[i]) * scale] for i in np.argsort(-counts, kind="stable")[:3] if counts[i]]
    number = len(repeated) if among is None else int(among.sum())
    share = float(repeated.sum() / max(1, number))
    return {"count": int(repeated.sum()) * scale, "of": number * scale, "share": share, "worst": worst, "estimated": scale > 1}


def copies(sample: Sample) -> Repeats:
    """Counts the entries that are copies of earlier ones."""
    copied = np.ones(len(sample.hashes), bool)
    copied[np.unique(sample.hashes, return_index=True)[1]] = False
    return found(sample, copied)


def leaked(trained: Sample, held_out: Sample) -> Repeats:
    """Counts the held-out entries of `held_out` that are training entries of `trained`, which may be the same text."""
    halvings = max(trained.halvings, held_out.halvings)
    trained, held_out = trained.at(halvings), held_out.at(halvings)
    shared = held_out.held_out & np.isin(held_out.hashes, trained.hashes[~trained.held_out])
    return found(held_out, shared, held_out.held_out)
