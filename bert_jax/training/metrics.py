"""What a step costs and what a device can do."""

from __future__ import annotations

from bert_jax.model.config import BertConfig

# Dense bf16 FLOP/s of one jax device, by a part of its device_kind (makers' data sheets). First match counts.
PEAK_FLOPS = {
    "TPU v6 lite": 918e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12,
    "TPU v4": 275e12, "TPU v3": 61.5e12, "TPU v2": 23e12,
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of a device, or None where it is not known (CPUs, new devices)."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def pretraining_flops(cfg: BertConfig, batch_size: int, length: int, slots: int, pairs: bool = False) -> float:
    """Multiplications and additions of a training step's matrix products: 3 times the forward pass's; recomputation
    (remat) not counted. Attention over whole rows; the last layer and the MLM head on `slots` positions a row (with `pairs`
    the layer on [CLS] too)."""
    d, tokens, read = cfg.hidden_size, batch_size * length, batch_size * (slots + pairs)

    def layer(asking: int) -> int:
        own = 2 * asking * (2 * d * d + 2 * d * cfg.intermediate_size) + 4 * asking * length * d
        return own + 2 * tokens * 2 * d * d  # keys and values

    head = 2 * batch_size * slots * (d * d + d * cfg.vocab_size)
    return 3.0 * ((cfg.num_hidden_layers - 1) * layer(tokens) + layer(read) + head)
