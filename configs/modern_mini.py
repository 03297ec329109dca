"""A ModernBERT as small as Ettin's 17M encoder (7 layers, 256 wide) on your own text.

    python train.py configs/modern_mini.py --data.source 'text/*.txt' --workdir runs/modern_mini

Hardware: a laptop will do. The vocabulary, 8,192 pieces, is trained on the text. The layers are ModernBERT's: pre-norm, rotary,
gated, without biases; two in three see 64 tokens on each side. transformers loads the export as ModernBertForMaskedLM.
"""

from bert_jax.config import BertConfig, DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    model = BertConfig.of_family(
        "modernbert", vocab_size=8192, hidden_size=256, num_hidden_layers=7, num_attention_heads=4, intermediate_size=384,
        max_position_embeddings=1024,
    )  # fmt: skip
    return TrainConfig(
        workdir="runs/modern_mini",
        num_steps=20_000,
        batch_size=32,
        eval_every=500,
        checkpoint_every=500,
        model=model,
        data=DataConfig(tokenizer="bpe", max_seq_length=128),
        optim=OptimConfig(name="adamw", learning_rate=1e-3, warmup_steps=500),
    )
