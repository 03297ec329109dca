"""ModernBERT-base (22 layers, 768 wide, 149 M parameters with its vocabulary of 50,368) on your own text, rows of 1,024 tokens.

    python train.py configs/modern_base.py --data.source 'gs://bucket/text/*.jsonl.gz' --workdir gs://bucket/runs/modern_base

Hardware: a pod slice, as `bert_jax plan configs/modern_base.py --topology v5e:4x4` says; no measured run yet.

AdamW's rate and decay rates, 30 % masks, and warm-up, stable rate and decay by 1 - sqrt are ModernBERT's as published. Muon's
rate is that of quickstart, a quarter as wide (docs/recipes.md). Nothing was tried at this size.
"""

from bert_jax.config import BertConfig, ComputeConfig, DataConfig, MaskingConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/modern_base",
        num_steps=100_000,
        batch_size=512,
        eval_every=1_000,
        checkpoint_every=1_000,
        model=BertConfig.of_family("modernbert"),
        compute=ComputeConfig(dtype="bfloat16"),
        data=DataConfig(tokenizer="bpe", max_seq_length=1024),
        masking=MaskingConfig(rate=0.3),
        optim=OptimConfig(
            name="muon", learning_rate=8e-4, muon_learning_rate=0.02, warmup_steps=2_000, b2=0.98,
            muon_coefficients="polar_express", muon_iterations=3, muon_dtype="bfloat16",
            schedule="warmup_stable_decay", decay_shape="1-sqrt",
        ),
    )  # fmt: skip
