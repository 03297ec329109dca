"""The weights of the tokens of queries that need no encoder, from the documents that are searched. No jax in here."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Literal

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.pooling import TokenWeights

_TOGETHER = 1024  # documents that are tokenized at a time


def token_weights(kind: Literal["idf", "ones"], documents: Iterable[str], tokenizer: Tokenizer, vocab_size: int) -> TokenWeights:
    """Returns a weight for each token of the vocabulary, 0 for special tokens.

    The idf of a token that n of N documents have is log(1 + (N - n + 0.5) / (n + 0.5)), Robertson and Sparck Jones' weight as
    Lucene keeps it above 0.

    Args:
      kind: the idf (Geng et al., 2024), or 1 for every token (SPLADE-doc; Formal et al., 2021).
      documents: the documents; only the idf reads them.
      tokenizer: the tokenizer.
      vocab_size: V.
    """
    values = np.ones(vocab_size, np.float32)
    if kind == "idf":
        texts, count, having = iter(documents), 0, np.zeros(max(vocab_size, tokenizer.vocab_size), np.int64)
        while some := list(islice(texts, _TOGETHER)):
            count += len(some)
            for ids in tokenizer.encode_batch(some):
                having[np.unique(ids)] += 1
        values = np.log1p((count - having + 0.5) / (having + 0.5))[:vocab_size].astype(np.float32)
    values[[id for id in tokenizer.special_ids if id < vocab_size]] = 0
    return TokenWeights(values)
