"""What a training step keeps in a device's memory, estimated from the config; and how to compute so that it fits.

The numbers of `activation_bytes` are what the TPU compiler's buffer assignments show (libtpu 0.0.42, v5e; BERT-base at 512 x 8 to
32 and 128 x 64, BERT-large at 512 x 8): with the state, the estimate is 2 % below to 9 % above what it needs, a little above
nearly always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from bert_jax.config import BertConfig, TrainConfig
from bert_jax.model import attention

SHARE = 0.9  # of a device's memory that an estimate may fill


@dataclass(frozen=True)
class Load:
    """What a device has of a step: rows of a microbatch, tokens a row, positions a row that the masked-LM head reads (0: there is
    no such head); its platform, which says whether attention is by a kernel; how parameters are cut; microbatches."""

    rows: int
    length: int
    slots: int
    platform: str
    fsdp: int = 1
    tensor: int = 1
    microbatches: int = 1

    @classmethod
    def of(cls, cfg: TrainConfig, platform: str, rows_cut: int, fsdp: int, tensor: int) -> Load:
        """A pretraining run's, its rows laid over so many devices."""
        length, microbatches = cfg.data.max_seq_length, cfg.gradient_accumulation_steps
        rows = -(-cfg.batch_size // rows_cut // microbatches)
        return cls(rows, length, cfg.masking.num_slots(length), platform, fsdp, tensor, microbatches)


def parameters(cfg: BertConfig) -> int:
    """Numbers in the encoder, the pooler and the masked-LM head."""
    d, e = cfg.hidden_size, cfg.embedding_size or cfg.hidden_size
    tables = (cfg.vocab_size + cfg.max_position_embeddings + cfg.type_vocab_size + 2) * e + (e * d + d) * (e != d)
    head = (d * d + d) + (d * e + 3 * e) + cfg.vocab_size
    return (cfg.num_hidden_groups or cfg.num_hidden_layers) * _layer_parameters(cfg) + tables + head


def _layer_parameters(cfg: BertConfig) -> int:
    d, m = cfg.hidden_size, cfg.intermediate_size
    return 4 * (d * d + d) + 2 * d * m + m + d + 4 * d


def state_bytes(cfg: BertConfig, load: Load) -> float:
    """Parameters and two moments in float32, as far as they lie on one device."""
    return 12.0 * parameters(cfg) / (load.fsdp * load.tensor)


def activation_bytes(cfg: BertConfig, load: Load, remat: str) -> float:
    """All else that a step needs at its peak: what the forward pass keeps for the backward pass, what one layer's backward pass
    (or the head's) has in flight, and gradients. `cfg.scan_layers` must be chosen."""
    size = 4 if cfg.dtype == "float32" else 2
    tokens, read = load.rows * load.length, load.slots / load.length or 1.0
    d, m, scores = cfg.hidden_size / load.tensor, cfg.intermediate_size / load.tensor, _scores(cfg, load)
    kept = tokens * (cfg.num_hidden_layers - 1 + read) * _kept(cfg, load, remat)
    # Of scores and of the inner layer, in float32; of a kernel its operands and their gradients.
    of_attention, of_mlp = (4 + size) * scores or 24 * d, 12 * m
    if cfg.scan_layers and remat == "dots":  # what is recomputed and what is derived are partly there together
        of_attention *= 1.5
    head = 6.5 * load.rows * load.slots * cfg.vocab_size / load.tensor
    return 1.05 * (kept + max(tokens * (of_attention + of_mlp), head) + _weights(cfg, load))  # the allocator leaves gaps


def _kept(cfg: BertConfig, load: Load, remat: str) -> float:
    """Bytes a token and layer. Without a scan the compiler recomputes by itself some of what costs it no product, but draws
    dropout (here as scores) once; through a scan it can do neither: all that the derivatives read is stacked."""
    size = 4 if cfg.dtype == "float32" else 2
    whole, d, m = cfg.hidden_size, cfg.hidden_size / load.tensor, cfg.intermediate_size / load.tensor
    scores = _scores(cfg, load)
    if remat == "full":  # the layer's input
        return size * whole + (0 if cfg.scan_layers else 3 * scores)
    if remat == "dots":  # and what its products with kernels give
        return size * (3 * whole + 3 * d + m) + (0 if cfg.scan_layers else 1.5 * scores)
    of_kernel = 0.0 if scores else 6 * size * d  # its operands as it wants them, and what it gives
    if cfg.scan_layers:
        return (5 + size) * scores + of_kernel + size * (2 * m + 2 * whole + 4 * d)
    return 4 * scores + of_kernel + size * (2 * m + 2 * whole + 3 * d)


def _scores(cfg: BertConfig, load: Load) -> float:
    """Scores of attention that a token has in memory in a layer: none where a kernel computes it."""
    rate, head = cfg.attention_probs_dropout_prob, cfg.hidden_size // cfg.num_attention_heads
    kernel, _ = attention.choose(cfg.attention, load.platform, load.length, head, cfg.dtype, rate)
    return load.length * cfg.num_attention_heads / load.tensor if kernel == "xla" else 0.0


def _weights(cfg: BertConfig, load: Load) -> float:
    """Gradients, and copies of parameters: a scan has those of its layers stacked, and their gradients; fsdp gathers words."""
    cut = load.fsdp * load.tensor
    gradients = 4.0 * parameters(cfg) / cut
    stacked = 8.0 * (cfg.num_hidden_layers - 1) * _layer_parameters(cfg) / cut if cfg.scan_layers else 0.0
    words = 4.0 * cfg.vocab_size * (cfg.embedding_size or cfg.hidden_size) / load.tensor if load.fsdp > 1 else 0.0
    return max(gradients, stacked) + words + (gradients if load.microbatches > 1 else 0.0)


def total_bytes(cfg: BertConfig, load: Load) -> float:
    """State and activations, with `cfg.remat` and `cfg.scan_layers` as chosen."""
    return state_bytes(cfg, load) + activation_bytes(cfg, load, cfg.remat)


def automatic(cfg: BertConfig, load: Load, memory_bytes: int | None) -> BertConfig:
    """`cfg` with `remat` and `scan_layers` chosen where it leaves them open.

    The least recomputation that is estimated to fit into `SHARE` of the memory; none where that is not known, as on CPUs.
    """
    if cfg.scan_layers is None:  # compiling for TPUs takes many times as long otherwise
        cfg = cfg.replace(scan_layers=load.platform == "tpu" and cfg.num_hidden_layers > 4)
    if cfg.remat == "auto":
        choices = [cfg.replace(remat=how) for how in ("none", "dots", "full")]
        if memory_bytes is None:
            return choices[0]
        return next((choice for choice in choices if total_bytes(choice, load) <= SHARE * memory_bytes), choices[-1])
    return cfg


def of_device(device: Any) -> int | None:
    """Bytes of a device that is here, None where it does not say (CPUs)."""
    if device.platform == "cpu":
        return None
    stats = device.memory_stats() if isinstance(device, jax.Device) else None
    return (stats or {}).get("bytes_limit")
