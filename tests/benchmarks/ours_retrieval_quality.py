"""The models that both sides of retrieval_quality.py start from: a model of random weights, or one with a form's head.

python tests/benchmarks/ours_retrieval_quality.py --form multi_vector --model DIR --out START
python tests/benchmarks/ours_retrieval_quality.py --form random --texts corpus.txt --out TINY
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

FORMS = ("cross", "multi_vector", "sparse", "random")
VOCABULARY = 100  # pieces, random


def write_start(form: str, model: Path, out: Path) -> None:
    """Writes a model with the head of a form; a head that the model lacks is drawn by seed 0."""
    from bert_jax import SparsePooling, TokenVectors, save
    from bert_jax.finetuning.init_head import load_for_task

    pooling = {
        "multi_vector": TokenVectors(query_marker="", document_marker=""),  # as text, a marker would be several tokens there
        "sparse": SparsePooling(),
    }.get(form)
    head = {"cross": "sequence_classification", "multi_vector": "token_vectors", "sparse": "masked_lm"}[form]
    start = load_for_task(model, head, (), None, "auto", None, pooling)
    save(replace(start.model, params=start.params(0), pooling=pooling), out)


def write_random(texts: Path, out: Path) -> None:
    """Writes a very small model of random weights, with a vocabulary of its own."""
    from bert_jax import BertConfig, Model, save
    from bert_jax.data.tokenizer import Tokenizer
    from bert_jax.model.heads import Bert, initialize

    tokenizer = Tokenizer.train(texts.read_text().splitlines(), VOCABULARY, "wordpiece")
    cfg = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    save(Model(cfg, initialize(Bert(cfg, "masked_lm"), 0), tokenizer, "masked_lm"), out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, required=True)
    parser.add_argument("--model", type=Path, help="the model; random: none")
    parser.add_argument("--texts", type=Path, help="random: text to train the vocabulary on, a text a line")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.form == "random":
        write_random(args.texts, args.out)
    else:
        write_start(args.form, args.model, args.out)
