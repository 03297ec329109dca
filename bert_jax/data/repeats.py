"""What a text repeats, counted in bounded memory: copies of documents and sentences, and held-out text that is trained on.

All copies of a text have the same hash. A sample by hash therefore has all copies of a text or none of them, and the shares that
are found in it are those of the whole. A text of at most MOST entries is its own sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST = 1 << 20  # entries of a sample


@dataclass
class Sample:
    """Entries whose hash is in a share of 2**-halvings of all hashes.

    Attributes:
      hashes: uint64 [n], in the order of the text.
      files: int32 [n], the number of the file that each is of.
      held_out: bool [n].
    """

    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    files: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    halvings: int = 0

    def at(self, halvings: int) -> Sample:
        """The entries that a sample of this many halvings, not below its own, has."""
        kept = self.hashes >> np.uint64(64 - halvings) == 0 if halvings else slice(None)
        return Sample(self.hashes[kept], self.files[kept], self.held_out[kept], halvings)


def joined(samples: Sequence[Sample]) -> Sample:
    """The sample of a text, of those of its consecutive parts."""
    halvings = max(sample.halvings for sample in samples)
    parts = [sample.at(halvings) for sample in samples]
    hashes, files, held_out = (np.concatenate([getattr(p, name) for p in parts]) for name in ("hashes", "files", "held_out"))
    both = Sample(hashes, files, held_out, halvings)
    while len(both.hashes) > MOST:
        both = both.at(both.halvings + 1)
    return both


def found(sample: Sample, repeated: np.ndarray, among: np.ndarray | None = None) -> dict[str, Any]:
    """Of the entries `repeated` (bool [n]), `among` some or all: how many there are in the whole text, which share, and the
    three files that have most of them, as [file, entries]. JSON."""
    scale = 1 << sample.halvings
    counts = np.bincount(sample.files[repeated], minlength=1)
    worst = [[int(i), int(counts[i]) * scale] for i in np.argsort(-counts, kind="stable")[:3] if counts[i]]
    number = len(repeated) if among is None else int(among.sum())
    share = float(repeated.sum() / max(1, number))
    return {"count": int(repeated.sum()) * scale, "of": number * scale, "share": share, "worst": worst, "estimated": scale > 1}


def copies(sample: Sample) -> dict[str, Any]:
    """Entries that are copies of earlier ones."""
    copied = np.ones(len(sample.hashes), bool)
    copied[np.unique(sample.hashes, return_index=True)[1]] = False
    return found(sample, copied)


def leaked(trained: Sample, held_out: Sample) -> dict[str, Any]:
    """Entries held out of `held_out` that are also among the trained ones of `trained`, which may be the same text."""
    halvings = max(trained.halvings, held_out.halvings)
    trained, held_out = trained.at(halvings), held_out.at(halvings)
    shared = held_out.held_out & np.isin(held_out.hashes, trained.hashes[~trained.held_out])
    return found(held_out, shared, held_out.held_out)
