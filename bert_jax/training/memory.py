"""What a training step keeps in a device's memory, estimated from the config; and how to compute so that it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from bert_jax.config import BertConfig


@dataclass(frozen=True)
class Load:
    """What a device has of a step: rows of a microbatch, tokens a row, positions the head runs at; how parameters are cut."""

    rows: int
    length: int
    slots: int
    fsdp: int = 1
    tensor: int = 1


def parameters(cfg: BertConfig) -> int:
    """Numbers in the encoder, the pooler and the masked-LM head."""
    d, m, e = cfg.hidden_size, cfg.intermediate_size, cfg.embedding_size or cfg.hidden_size
    layer = 4 * (d * d + d) + 2 * d * m + m + d + 4 * d
    tables = (cfg.vocab_size + cfg.max_position_embeddings + cfg.type_vocab_size + 2) * e + (e * d + d) * (e != d)
    return (cfg.num_hidden_groups or cfg.num_hidden_layers) * layer + tables + (d * d + d) + (d * e + 3 * e) + cfg.vocab_size


def state_bytes(cfg: BertConfig, load: Load) -> float:
    """Parameters and two moments in float32, as far as they lie on one device."""
    return 12.0 * parameters(cfg) / (load.fsdp * load.tensor)


def activation_bytes(cfg: BertConfig, load: Load, remat: str) -> float:
    """What the forward pass keeps for the backward pass, and the largest things in between; estimated.

    Per token and layer, in the compute type: `none` keeps the inputs and outputs of every product, norm and activation, the
    dropout masks, and the probabilities before and after dropout; `dots` the outputs of the products with kernels; `full` the
    layer's input. To that come one layer in full, gradients in float32 and the logits.
    """
    size = 4 if cfg.dtype == "float32" else 2
    d, m, heads = cfg.hidden_size / load.tensor, cfg.intermediate_size / load.tensor, cfg.num_attention_heads / load.tensor
    tokens, whole = load.rows * load.length, cfg.hidden_size
    attention = heads * load.length * (4 + 2 * size)
    everything = size * (8 * whole + 5 * d + 4 * m) + attention
    kept = {"none": everything, "dots": size * (3 * whole + 4 * d + m), "full": size * whole}[remat]
    one_layer = 0.0 if remat == "none" else everything
    logits = load.rows * load.slots * cfg.vocab_size / load.tensor * 4 * 2.5
    gradients = 4.0 * parameters(cfg) / (load.fsdp * load.tensor)
    return tokens * (cfg.num_hidden_layers * kept + one_layer) + logits + gradients


def automatic(cfg: BertConfig, load: Load, platform: str, memory_bytes: int | None) -> BertConfig:
    """`cfg` with `remat` and `scan_layers` chosen where it leaves them open.

    The least recomputation that is estimated to fit into nine tenths of the memory; none where that is not known, as on CPUs.
    """
    changes: dict[str, Any] = {}
    if cfg.scan_layers is None:
        changes["scan_layers"] = platform == "tpu" and cfg.num_hidden_layers > 4  # hours of compilation otherwise
    if cfg.remat == "auto":
        changes["remat"] = "none"
        if memory_bytes is not None:
            room = 0.9 * memory_bytes - state_bytes(cfg, load)
            fitting = (how for how in ("none", "dots", "full") if activation_bytes(cfg, load, how) <= room)
            changes["remat"] = next(fitting, "full")
    return cfg.replace(**changes)


def of_device(device: Any) -> int | None:
    """Bytes of a device that is here, None where it does not say (CPUs)."""
    if device.platform == "cpu":
        return None
    stats = device.memory_stats() if isinstance(device, jax.Device) else None
    return (stats or {}).get("bytes_limit")
