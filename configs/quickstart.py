"""A small ModernBERT on text that every Python carries: no download.

    python train.py configs/quickstart.py

Text: the language reference's topics and the docstrings of the standard library, 2.7 MB. The vocabulary is trained on it.
Hardware: 2 CPU cores, a few minutes. transformers loads the export as ModernBertForMaskedLM. Rows are no longer than
ModernBERT's local window, so all layers see all of their text. docs/recipes.md says what each part of the recipe is worth.
"""

from bert_jax.config import BertConfig, DataConfig, MaskingConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    model = BertConfig.of_family(
        "modernbert", vocab_size=4096, hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=512,
        max_position_embeddings=128, layer_types=("full_attention",), rope_theta=10_000.0,
    )  # fmt: skip
    optim = OptimConfig(
        name="muon", learning_rate=3e-3, muon_learning_rate=0.02, muon_coefficients="polar_express", muon_iterations=3,
        warmup_steps=50,
    )  # fmt: skip
    return TrainConfig(
        workdir="runs/quickstart",
        num_steps=550,
        batch_size=16,
        eval_every=50,
        checkpoint_every=200,
        model=model,
        data=DataConfig(source=("stdlib:",), tokenizer="unigram", eval_fraction=0.05),
        masking=MaskingConfig(rate=0.3),
        optim=optim,
        fill_masks=(
            "Return the [MASK] of the list.",
            "Raise an [MASK] if the file does not exist.",
            "Open the [MASK] for reading.",
        ),
    )
