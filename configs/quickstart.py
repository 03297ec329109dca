"""A small BERT on text that every Python carries: no download.

    python train.py configs/quickstart.py

Text: the language reference's topics and the docstrings of the standard library. The vocabulary is trained on it.
"""

from bert_jax.config import BertConfig, DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/quickstart",
        num_steps=300,
        batch_size=32,
        eval_every=50,
        checkpoint_every=100,
        model=BertConfig(
            vocab_size=4096, hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768,
            max_position_embeddings=128,
        ),
        data=DataConfig(source=("stdlib:",), tokenizer="unigram", eval_fraction=0.05),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=30),
        fill_masks=(
            "Return the [MASK] of the list.",
            "If the file does not [MASK], an error is raised.",
            "This function takes two [MASK].",
        ),
    )  # fmt: skip
