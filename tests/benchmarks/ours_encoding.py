"""Sentence embeddings by bert_jax's Embedder, one pass over a file timed on request (protocol.py).

    python tests/benchmarks/ours_encoding.py --model DIR --texts sentences.txt --threads 2 --steps 5
    python tests/benchmarks/ours_encoding.py --model NEW_DIR --random mpnet-base --tokenizer-of DIR

The second writes an encoder of random weights for all participants to read, and leaves.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import protocol


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random", choices=protocol.ENCODERS)
    parser.add_argument("--tokenizer-of", type=Path, metavar="DIR")
    parser.add_argument("--exact", action="store_true", help="Embedder(exact=True)")


args = protocol.encoding_arguments(__doc__, options)

import bert_jax  # noqa: E402  (after the limit on cores)


def write_random() -> None:
    """A random encoder with somebody's tokenizer, mean pooling and sentence-transformers' files."""
    import jax

    from bert_jax.model.heads import initialize

    family, layers, hidden, heads, intermediate = protocol.ENCODERS[args.random]
    tokenizer = tokenizer_for(family)
    config = bert_jax.BertConfig.of_family(
        family, vocab_size=tokenizer.vocab_size, num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads,
        intermediate_size=intermediate,
    )  # fmt: skip
    pooling = bert_jax.Pooling(max_length=256)
    model = bert_jax.Model(config, {}, tokenizer, "encoder", pooling=pooling)
    params = jax.jit(lambda: initialize(model.module, 0))()
    bert_jax.save(bert_jax.Model(config, params, tokenizer, "encoder", pooling=pooling), args.model)


def tokenizer_for(family: str) -> Any:
    """The tokenizer of --tokenizer-of; for MPNet, its words (a WordPiece vocabulary) between MPNet's own special tokens."""
    from bert_jax.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer_of)
    if family != "mpnet":
        return tokenizer
    words = ["<s>", "<pad>", "</s>", "<unk>", *tokenizer.tokens(range(tokenizer.vocab_size)), "<mask>"]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        return Tokenizer.load(directory, model_type="mpnet")


def main() -> None:
    if args.random:
        write_random()
        protocol.say(ready=True)
        return
    embed = bert_jax.Embedder(bert_jax.load(args.model), exact=args.exact)
    protocol.serve_encoding(embed, args, **({} if args.first else {"versions": versions()}))


def versions() -> dict[str, str]:
    import jax

    return {"jax": jax.__version__}


if __name__ == "__main__":
    main()
