"""A ModernBERT as small as Ettin's 17M encoder (7 layers, 256 wide) on your own text.

    python train.py configs/modern_mini.py --data.source 'text/*.txt' --workdir runs/modern_mini

Hardware: a laptop will do. The vocabulary, 8,192 pieces, is trained on the text. The layers are ModernBERT's: pre-norm, rotary,
gated, without biases; two in three see 64 tokens on each side. transformers loads the export as ModernBertForMaskedLM.

The recipe (Muon at 0.02, AdamW at 1e-3, 30 % masks) was tried with 4 layers of this width for 500 steps on 45 MB of text, one
seed; docs/recipes.md has the numbers. Neither other rates nor the whole run were tried.
"""

from bert_jax.config import BertConfig, DataConfig, MaskingConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    model = BertConfig.of_family(
        "modernbert", vocab_size=8192, hidden_size=256, num_hidden_layers=7, num_attention_heads=4, intermediate_size=384,
        max_position_embeddings=1024,
    )  # fmt: skip
    optim = OptimConfig(
        name="muon", learning_rate=1e-3, muon_learning_rate=0.02, muon_coefficients="polar_express", muon_iterations=3,
        warmup_steps=500,
    )  # fmt: skip
    return TrainConfig(
        workdir="runs/modern_mini",
        num_steps=20_000,
        batch_size=32,
        eval_every=500,
        checkpoint_every=500,
        model=model,
        data=DataConfig(tokenizer="bpe", max_seq_length=128),
        masking=MaskingConfig(rate=0.3),
        optim=optim,
    )
