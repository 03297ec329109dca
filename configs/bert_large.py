r"""BERT-large as published: 1 M steps of 256 rows, Adam 1e-4, 10,000 steps of warm-up (Devlin et al., 2018, appendix A.2).

    python train.py configs/bert_large.py --data.source 'text/*.txt' --data.tokenizer vocab.txt --workdir runs/large

The paper trains 900,000 steps at length 128 and then 100,000 at 512; the second part here:

    python train.py configs/bert_large.py --data.source 'text/*.txt' --init-from runs/large/export --workdir runs/large-512 \
        --data.max-seq-length 512 --num-steps 100000

Hardware: the paper's was 16 Cloud TPUs for four days. Not measured here.
"""

from bert_jax.config import BertConfig, ComputeConfig, DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/bert_large",
        num_steps=900_000,
        batch_size=256,
        eval_every=5000,
        checkpoint_every=5000,
        log_every=100,
        model=BertConfig.preset("large"),
        compute=ComputeConfig(dtype="bfloat16"),
        data=DataConfig(examples="sentence_pairs", dupe_factor=5),
        optim=OptimConfig(name="adamw_bert", learning_rate=1e-4, schedule="bert_tf", warmup_steps=10_000),
    )
