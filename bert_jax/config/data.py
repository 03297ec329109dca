"""The text of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from bert_jax.config.base import Group
from bert_jax.errors import InputError

TextFormat = Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet"]
TRAINED = ("unigram", "bpe", "wordpiece")  # values of data.tokenizer that train a vocabulary; the others are paths


def named_paths(entries: Sequence[str], where: str, why: str = "") -> dict[str, tuple[str, ...]]:
    """Returns the paths of each name in entries NAME=PATH; a name may be given several times.

    >>> named_paths(["novels=a.txt", "law=b/*.txt", "novels=c.txt"], "eval_sources")
    {'novels': ('a.txt', 'c.txt'), 'law': ('b/*.txt',)}

    Raises:
        InputError: An entry is not NAME=PATH. The message begins with `where` and says `why` it must be.
    """
    found: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        parts = re.fullmatch(r"([A-Za-z0-9_.-]+)=(.+)", entry)
        if parts is None:
            raise InputError(
                f"{where}: {entry!r} is not NAME=PATH{why}, with a name of letters, digits, '_', '.' and '-': "
                "give for example novels='novels/*.txt'"
            )
        found[parts[1]] = (*found.get(parts[1], ()), parts[2])
    return found


@dataclass(frozen=True)
class DataConfig(Group):
    """The text, and how it becomes rows of token ids."""

    source: tuple[str, ...] = ()
    (
        "Files, folders, globs (.txt .md .jsonl .csv .tsv, also .gz .bz2 .xz .zst; .parquet), gs:// paths, `tfds:NAME`, or "
        "`stdlib:` (text that is part of every Python installation)."
    )
    mixture: str | None = None
    (
        "Weights of several sources, such as `books=2,web=1`: of 3 rows 2 are of the source books. Each entry of `source` is "
        "then NAME=PATH. Default: each row of the text once an epoch."
    )
    format: TextFormat = "auto"
    """Format of the files. auto: by their suffixes."""
    documents: Literal["blank_line", "line", "file"] = "blank_line"
    """A document in a .txt file ends at a blank line, at the end of a line, or at the end of the file."""
    text_column: str = "text"
    """Field of .jsonl, .csv, .tsv, .parquet and TFDS records that holds the text."""
    sentences: Literal["punctuation", "line"] = "punctuation"
    """A sentence ends at punctuation before a capital letter (lines are joined), or at the end of a line (BERT's own format)."""
    on_error: Literal["raise", "skip"] = "raise"
    """On a binary, undecodable or malformed document: stop and name its place, or skip and count it."""
    tokenizer: str = "unigram"
    (
        "Path of a tokenizer (directory, tokenizer.json, vocab.txt, SentencePiece .model); or `unigram`, `bpe` or `wordpiece`, "
        "to train a vocabulary of model.vocab_size pieces on the source and keep it in the work directory."
    )
    lowercase: bool = True
    """Lowercase the text, for a vocabulary that the run trains."""
    special_tokens: Literal["text", "read"] = "text"
    (
        "Treat a special token that is spelled out in the text (`[MASK]`, `<ent>`) as ordinary text, or read it as that token. "
        "The exported tokenizer reads it as the token, as published ones do."
    )
    tokenizer_sample_mb: int | None = 200
    (
        "Train the vocabulary on at most this many megabytes of text, lines from all parts of the source. Training takes about "
        "20 times as much memory. None: all text."
    )
    max_seq_length: int = 128
    """Tokens per row."""
    examples: Literal["full_sentences", "sentence_pairs"] = "full_sentences"
    """Full sentences packed into rows, or BERT's sentence pairs with next-sentence prediction."""
    short_seq_prob: float = 0.1
    """Sentence pairs: share of examples with a random, shorter target length."""
    dupe_factor: int = 1
    """Sentence pairs: cut the corpus into pairs this many times, differently each time (BERT: 10)."""
    eval_fraction: float = 0.01
    (
        "Share of documents held out for evaluation, chosen by a hash of their text, which keeps copies of a document "
        "together. If there are too few documents, passages are held out instead."
    )
    eval_source: tuple[str, ...] = ()
    """Held-out text, given like `source`; replaces eval_fraction."""
    cache_dir: str | None = None
    """Directory of the tokenized rows; may be gs:// (each host copies them once). Default: `cache` in the work directory."""
    num_workers: int | None = None
    """Number of processes that tokenize. Default: one per core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_least(8, "max_seq_length")
        self._require_least(1, "dupe_factor", "num_workers")
        self._require_positive("tokenizer_sample_mb")
        self._require(0 <= self.eval_fraction < 1, f"eval_fraction={self.eval_fraction} is not in [0, 1)")
        self._require(0 <= self.short_seq_prob <= 1, f"short_seq_prob={self.short_seq_prob} is not in [0, 1]")
        self._require(
            self.dupe_factor == 1 or self.examples == "sentence_pairs",
            f"dupe_factor={self.dupe_factor} needs examples='sentence_pairs': full sentences are cut in one way only",
        )
        if self.mixture is not None:
            unknown = [name for name in self.weights if name not in self.by_name]
            known = f"; source names {', '.join(self.by_name) or 'nothing'}"
            self._require(not unknown, f"mixture={self.mixture!r}: no source is named {', '.join(unknown)}{known}")

    @property
    def by_name(self) -> dict[str, tuple[str, ...]]:
        """The paths of `source` by the name of their source; without a mixture, all under the empty name."""
        if self.mixture is None:
            return {"": self.source}
        return named_paths(self.source, "DataConfig: source", f", which mixture={self.mixture!r} needs")

    @property
    def weights(self) -> dict[str, int]:
        """The weights of `mixture` in whole numbers without a common divisor; without a mixture, 1 for the empty name.

        >>> DataConfig(source=("a=x.txt", "b=y.txt"), mixture="a=0.5,b=1").weights
        {'a': 1, 'b': 2}
        """
        if self.mixture is None:
            return {"": 1}
        shares: dict[str, Fraction] = {}
        for entry in self.mixture.split(","):
            parts = re.fullmatch(r"\s*([A-Za-z0-9_.-]+)=(\d+\.?\d*|\.\d+)\s*", entry)
            what = "is not NAME=WEIGHT, with a new name and a number above 0, such as books=2"
            self._require(parts is not None and parts[1] not in shares, f"mixture={self.mixture!r}: {entry!r} {what}")
            assert parts is not None
            shares[parts[1]] = Fraction(parts[2])
            self._require(shares[parts[1]] > 0, f"mixture={self.mixture!r}: leave out {parts[1]}, whose weight is 0")
        whole = {name: int(share * math.lcm(*(each.denominator for each in shares.values()))) for name, share in shares.items()}
        whole = {name: weight // math.gcd(*whole.values()) for name, weight in whole.items()}
        self._require(sum(whole.values()) <= 100_000, f"mixture={self.mixture!r}: give weights with fewer digits")
        return whole

    @property
    def tokenizer_sample_bytes(self) -> int | None:
        """`tokenizer_sample_mb` in bytes."""
        return None if self.tokenizer_sample_mb is None else self.tokenizer_sample_mb * 1_000_000
