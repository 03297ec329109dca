"""Sentence embeddings by bert_jax's Embedder, one pass over a file timed on request (protocol.py).

    python tests/benchmarks/ours_encoding.py --model DIR --texts sentences.txt --threads 2 --steps 5
    python tests/benchmarks/ours_encoding.py --model NEW_DIR --base-with-tokenizer-of DIR

The second writes a base-size encoder (12 layers of 768) of random weights for all participants to read, and leaves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import protocol


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-with-tokenizer-of", type=Path, metavar="DIR", default=None)
    parser.add_argument("--exact", action="store_true", help="Embedder(exact=True)")


args = protocol.encoding_arguments(__doc__, options)

import bert_jax  # noqa: E402  (after the limit on cores)


def write_base() -> None:
    """A random encoder with somebody's tokenizer, mean pooling and sentence-transformers' files."""
    import jax

    from bert_jax.data.tokenizer import Tokenizer
    from bert_jax.model.heads import initialize

    tokenizer = Tokenizer.load(args.base_with_tokenizer_of)
    config = bert_jax.BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    pooling = bert_jax.Pooling(max_length=256)
    model = bert_jax.Model(config, {}, tokenizer, "encoder", pooling=pooling)
    params = jax.jit(lambda: initialize(model.module, 0))()
    bert_jax.save(bert_jax.Model(config, params, tokenizer, "encoder", pooling=pooling), args.model)


def main() -> None:
    if args.base_with_tokenizer_of:
        write_base()
        protocol.say(ready=True)
        return
    embed = bert_jax.Embedder(bert_jax.load(args.model), exact=args.exact)
    protocol.serve_encoding(embed, args, **({} if args.first else {"versions": versions()}))


def versions() -> dict[str, str]:
    import jax

    return {"jax": jax.__version__}


if __name__ == "__main__":
    main()
