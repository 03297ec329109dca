"""A tokenizer.json that is followed as it is: text in, ids out, without roles and templates, which tables of vectors lack."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import normalizers

from bert_jax.data.tokenizer import Tokenizer, encoded
from bert_jax.data.tokenizer_files import failures_named, read_engine
from bert_jax.disk import put
from bert_jax.errors import InputError


class PlainTokenizer:
    """The ids of texts by a tokenizer.json alone.

    `Tokenizer` also follows the files beside, and needs the special tokens of an encoder.

    Attributes:
      vocab_size: V; ids are 0..V-1.
    """

    def __init__(self, engine: tokenizers.Tokenizer) -> None:
        """Takes over `engine`; its truncation is kept, its padding is not."""
        engine.no_padding()
        self._engine = engine
        self.vocab_size = max(engine.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def of(cls, tokenizer: Tokenizer, lowercase: bool = False) -> PlainTokenizer:
        """Returns the tokenizer of an encoder without its template, which reads texts in lower case if so asked."""
        engine = tokenizer.engine()
        if lowercase:
            own = [] if engine.normalizer is None else [engine.normalizer]
            engine.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        return cls(engine)

    @classmethod
    def load(cls, path: Path) -> PlainTokenizer:
        """Reads a tokenizer.json. Raises InputError if it is missing or damaged."""
        if not path.is_file():
            raise InputError(f"no {path}: the tokenizer of a table of token vectors is in that file")
        with failures_named(f"{path}: not a tokenizer that can be used"):
            return cls(read_engine(path))

    def encode(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Yields the ids of each text, int32 [n_i]. Raises InputError as `Tokenizer.encode_batch`."""
        return (np.array(encoding.ids, np.int32) for encoding in encoded(self._engine, texts))

    def save(self, path: Path) -> None:
        """Writes a tokenizer.json. Raises OSError if it cannot."""
        put(path, json.dumps(json.loads(self._engine.to_str()), ensure_ascii=False, sort_keys=True, indent=1) + "\n")
