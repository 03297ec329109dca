"""Counts the floating-point operations of a pretraining step, and lists what devices reach at most.

A multiplication and an addition count as two. Only matrix products are counted: they are nearly all of a Transformer's work.
"""

from __future__ import annotations

from collections import Counter

from bert_jax.config import BertConfig, TrainConfig

# Dense bf16 FLOP/s of one jax device, by a part of its device_kind (makers' data sheets). The first match counts.
PEAK_FLOPS = {
    "TPU v6 lite": 918e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12,
    "TPU v4": 275e12, "TPU v3": 61.5e12, "TPU v2": 23e12,
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip

SYMMETRIC_FROM = 512  # rows from which Muon copies a block of a symmetric product; at 256, copies take a CPU as long as products


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak FLOP/s of a device, or None for a device that the table lacks (CPUs, new devices)."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def step_flops(cfg: TrainConfig) -> float:
    """Returns the FLOPs of a training step on the global batch, in the mean: three times those of the forward pass.

    Attention is counted over whole rows or, in sliding layers, over windows. The last layer and the masked-LM head run only on
    the masked positions of a row and, with sentence pairs, the layer on [CLS]. Where replaced tokens are detected, the
    generator is counted so, and the model on all tokens. Recomputation is not counted (see `recomputed_flops`).
    """
    return 3.0 * sum(_forward_flops(cfg))


def recomputed_flops(cfg: TrainConfig) -> float:
    """Returns the FLOPs that `cfg.compute.remat` adds to a step: all of the layers' forward pass, or its attention products."""
    dense, attention, _ = _forward_flops(cfg)
    return {"full": float(dense + attention), "dots": float(attention)}.get(cfg.compute.remat, 0.0)


def layer_kernels(cfg: BertConfig) -> list[tuple[int, int]]:
    """Returns the shapes of the kernels of a layer."""
    d, m, form = cfg.hidden_size, cfg.intermediate_size, cfg.form
    kv = d * (cfg.num_key_value_heads or cfg.num_attention_heads) // cfg.num_attention_heads
    own_positions = form.relative_positions == "disentangled" and not form.share_att_key
    return [(d, d), (d, kv), (d, kv), (d, d), *[(d, d)] * (2 * own_positions), *[(d, m)] * (1 + form.gated_mlp), (m, d)]


def muon_flops(cfg: TrainConfig, devices: int = 1) -> float:
    """Returns the FLOPs by which Muon orthogonalises the updates of a step (`muon.orthogonalise`); 0 for other optimizers.

    With `devices`, it is the work of one of them: matrices of one shape are divided over them whole.
    """
    if cfg.optim.name != "muon":
        return 0.0
    shapes, work = Counter[tuple[int, int]](), 0
    for model in cfg.models:
        for shape in layer_kernels(model):
            shapes[min(shape), max(shape)] += model.num_hidden_groups or model.num_hidden_layers
    for (short, long), number in shapes.items():
        each = _symmetric_flops(short, long) + _symmetric_flops(short, short) + 2 * short**2 * long
        work += -(-number // devices) * each
    return float(cfg.optim.muon_iterations * work)


def _symmetric_flops(rows: int, inner: int) -> int:
    """Returns the FLOPs of `muon._symmetric_product`, which copies a block of large matrices."""
    half = rows // 2 if rows >= SYMMETRIC_FROM else 0
    return 2 * inner * (half * rows + (rows - half) ** 2)


def _forward_flops(cfg: TrainConfig) -> tuple[float, float, float]:
    """Returns the mean FLOPs of the layers' dense products, of their attention products and of the heads."""
    length, share = cfg.data.max_seq_length, cfg.masking.causal_share
    if cfg.generator is not None:
        d, detector = cfg.model.hidden_size, _flops_with(cfg, cfg.model, length)
        own = _flops_with(cfg, cfg.generator, cfg.masking.num_slots(length))
        return detector[0] + own[0], detector[1] + own[1], 2 * cfg.batch_size * length * (d * d + d) + own[2]
    masked, causal = _flops_with(cfg, cfg.model, cfg.masking.num_slots(length)), _flops_with(cfg, cfg.model, length - 1)
    dense, attention, head = ((1 - share) * a + share * b for a, b in zip(masked, causal, strict=True))
    return dense, attention, head


def _flops_with(cfg: TrainConfig, model: BertConfig, slots: int) -> tuple[int, int, int]:
    """Returns `_forward_flops` of a masked LM with `slots` predictions a row; attention's triangle counts as all pairs."""
    form, length = model.form, cfg.data.max_seq_length
    rows, d = cfg.batch_size, model.hidden_size
    kv = d * (model.num_key_value_heads or model.num_attention_heads) // model.num_attention_heads
    per_query = 2 * d * d + (2 + form.gated_mlp) * d * model.intermediate_size
    dense = attention = 0
    for i in range(model.num_hidden_layers):
        last = i == model.num_hidden_layers - 1
        queries = rows * (slots + (cfg.data.examples == "sentence_pairs")) if last else rows * length
        window = model.layer(i).window
        keys = length if window is None else min(length, 2 * window + 1)
        dense += 2 * queries * per_query + 2 * rows * length * 2 * d * kv
        attention += 4 * queries * keys * d
    narrow = model.output_embedding_size or model.embedding_size or d
    return dense, attention, 2 * rows * slots * narrow * (d + model.vocab_size)
