"""ModernBERT-base (22 layers, 768 wide, 149 M parameters with its vocabulary of 50,368) on your own text, rows of 1,024 tokens.

    python train.py configs/modern_base.py --data.source 'gs://bucket/text/*.jsonl.gz' --workdir gs://bucket/runs/modern_base

Hardware: a pod slice, as `bert_jax plan configs/modern_base.py --topology v5e:4x4` says; no measured run yet.
"""

from bert_jax.config import BertConfig, ComputeConfig, DataConfig, OptimConfig, TrainConfig


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
        optim=OptimConfig(name="adamw", learning_rate=8e-4, warmup_steps=2_000, schedule="warmup_stable_decay"),
    )
