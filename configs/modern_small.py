"""A ModernBERT of the shape of Ettin's 32M encoder (10 layers, 384 wide) on your own text, rows of 512 tokens.

    python train.py configs/modern_small.py --data.source 'text/*.jsonl.gz' --workdir runs/modern_small

Hardware: one GPU or a few TPU chips; `bert_jax plan configs/modern_small.py --topology v5e:2x2` says how many rows fit. The
vocabulary, 32,768 pieces, is trained on the text. transformers loads the export as ModernBertForMaskedLM.

Muon's rate and 30 % masks are those of quickstart, which is half as wide (docs/recipes.md); warm-up, stable rate and decay by
1 - sqrt, and AdamW's decay rates, are ModernBERT's as published. Not tried at this size.
"""

from bert_jax.config import BertConfig, ComputeConfig, DataConfig, MaskingConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    model = BertConfig.of_family(
        "modernbert", vocab_size=32_768, hidden_size=384, num_hidden_layers=10, num_attention_heads=6, intermediate_size=576,
        max_position_embeddings=1024,
    )  # fmt: skip
    return TrainConfig(
        workdir="runs/modern_small",
        num_steps=50_000,
        batch_size=128,
        eval_every=1_000,
        checkpoint_every=1_000,
        model=model,
        compute=ComputeConfig(dtype="bfloat16"),
        data=DataConfig(tokenizer="bpe", max_seq_length=512),
        masking=MaskingConfig(rate=0.3),
        optim=OptimConfig(
            name="muon", learning_rate=1e-3, muon_learning_rate=0.02, warmup_steps=1_000, b2=0.98,
            muon_coefficients="polar_express", muon_iterations=3, muon_dtype="bfloat16",
            schedule="warmup_stable_decay", decay_shape="1-sqrt",
        ),
    )  # fmt: skip
