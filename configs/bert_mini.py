"""BERT-mini (4 layers, 256 wide) on your own text.

    python train.py configs/bert_mini.py --data.source 'text/*.txt' --workdir runs/mini

Hardware: a laptop will do. The vocabulary, 8,192 pieces, is trained on the text.
"""

from bert_jax.config import BertConfig, DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/bert_mini",
        num_steps=20_000,
        batch_size=32,
        eval_every=500,
        checkpoint_every=500,
        model=BertConfig.preset("mini", vocab_size=8192, max_position_embeddings=128),
        data=DataConfig(tokenizer="bpe", max_seq_length=128),
        optim=OptimConfig(name="adamw", learning_rate=1e-3, warmup_steps=500),
    )
