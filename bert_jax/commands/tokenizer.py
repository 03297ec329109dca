"""The command `tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from bert_jax.config import DataConfig, TextFormat


def tokenizer(
    source: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")],
    out: str,
    vocab_size: int = 30522,
    kind: Literal["unigram", "bpe", "wordpiece"] = "unigram",
    lowercase: bool = True,
    documents: Literal["blank_line", "line", "file"] = "blank_line",
    text_column: str = "text",
    format: TextFormat = "auto",
    sample_mb: int | None = 200,
) -> None:
    """Train a vocabulary on text and write tokenizer.json.

    Args:
        source: Files, globs, tfds:NAME, or stdlib: (text that comes with Python).
        out: Directory to write.
        vocab_size: Number of pieces, special tokens included.
        kind: unigram and bpe (SentencePiece) give the same vocabulary each time; wordpiece may break ties differently.
        lowercase: Make an uncased vocabulary.
        documents: End of a document in a .txt file.
        text_column: Column or field of the text in .jsonl, .csv, .tsv, .parquet and TFDS records.
        format: Format of the files. auto: by their suffixes.
        sample_mb: Train on at most this many megabytes of text, lines from all parts of it; None: all text. Training takes about
            20 times as much memory.
    """
    from bert_jax.console import track
    from bert_jax.data.corpus import read_texts
    from bert_jax.data.tokenizer import Tokenizer

    text = dict(source=source, documents=documents, text_column=text_column, format=format, tokenizer_sample_mb=sample_mb)
    cfg = DataConfig(**text, eval_fraction=0.0)  # type: ignore[arg-type]
    made = Tokenizer.train(read_texts(cfg, track), vocab_size, kind, lowercase)
    made.save(out)
    print(f"{made.vocab_size} pieces in {Path(out) / 'tokenizer.json'}; train with --data.tokenizer {out}")
