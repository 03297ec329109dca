"""A small BERT on text that every Python carries: no download.

    python train.py configs/quickstart.py

Text: the language reference's topics and the docstrings of the standard library, 2.7 MB. The vocabulary is trained on it.
Hardware: 2 CPU cores, a few minutes. No dropout: so short a run does not overfit.
"""

from bert_jax.config import BertConfig, DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/quickstart",
        num_steps=800,
        batch_size=16,
        eval_every=100,
        checkpoint_every=200,
        model=BertConfig(
            vocab_size=4096, hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768,
            max_position_embeddings=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        data=DataConfig(source=("stdlib:",), tokenizer="unigram", eval_fraction=0.05),
        optim=OptimConfig(name="adamw", learning_rate=1e-3, warmup_steps=50),
        fill_masks=(
            "Return the [MASK] of the list.",
            "If the file does not [MASK], an error is raised.",
            "This function takes two [MASK].",
        ),
    )  # fmt: skip
