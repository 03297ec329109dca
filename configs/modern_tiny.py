"""A ModernBERT for minutes on a CPU: 4 layers of width 192, on your own text.

    python train.py configs/modern_tiny.py --data.source 'text/*.txt' --workdir runs/modern_tiny

Hardware: one CPU core. The vocabulary, 8,192 pieces, is trained on the text. Model and batches are small, so that there are many
updates a minute. On 45 MB of novels and textbooks its 4,000 steps take half an hour and reach 4.16 nats per masked token, where
BERT-mini, trained as its paper did, reaches 6.65 (docs/recipes.md). With hours or an accelerator take configs/modern_mini.py.
transformers loads the export as ModernBertForMaskedLM.
"""

from bert_jax.config import BertConfig, DataConfig, MaskingConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    model = BertConfig.of_family(
        "modernbert", vocab_size=8192, hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=512,
        max_position_embeddings=1024, layer_types=("full_attention",), rope_theta=10_000.0,
    )  # fmt: skip
    optim = OptimConfig(
        name="muon", learning_rate=2e-3, muon_learning_rate=0.02, muon_coefficients="polar_express", muon_iterations=3,
        warmup_steps=200,
    )  # fmt: skip
    return TrainConfig(
        workdir="runs/modern_tiny",
        num_steps=4_000,
        batch_size=16,
        eval_every=200,
        checkpoint_every=200,
        model=model,
        data=DataConfig(tokenizer="bpe", max_seq_length=128),
        masking=MaskingConfig(rate=0.3),
        optim=optim,
    )
