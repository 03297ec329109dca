"""Estimates the device memory of a training step from the config, and chooses the least recomputation that fits.

The coefficients come from the buffer assignments of the TPU compiler (libtpu 0.0.42, v5e; BERT-base at 512 x 8 to 32 and
128 x 64, BERT-large at 512 x 8). The estimate of state and activations together is 2 % below to 9 % above what the compiler
needs, and almost always above it. For GPUs (H100, CUDA plugin of jax 0.10.2, BERT-base at 512 x 32, BERT-large at
512 x 8) it is 2 % above with dropout on attention's probabilities, and 13 to 17 % above where cuDNN computes attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax

from bert_jax.config import TrainConfig
from bert_jax.model import attention
from bert_jax.model.config import BertConfig, ComputeConfig
from bert_jax.training import flops

USABLE = 0.9  # the share of a device's memory that an estimate may fill


@dataclass(frozen=True)
class DeviceShare:
    """The part of a training step that one device computes.

    Attributes:
      rows: Rows of a microbatch.
      length: Tokens in a row.
      slots: Positions in a row that the masked-LM head reads; 0 without that head.
      platform: cpu, gpu or tpu. It decides whether a kernel computes attention.
      fsdp: Devices over which the parameters are sharded.
      tensor: Devices over which attention heads and the intermediate layer are sharded.
      microbatches: Microbatches in a step.
      muon: Muon updates the kernels of the layers.
      average: The optimizer keeps a moving average of the parameters.
      causal: Rows are causal.
      generator: A second model of the step, which alone has a masked-LM head; its embeddings are those of the first.
    """

    rows: int
    length: int
    slots: int
    platform: str
    fsdp: int = 1
    tensor: int = 1
    microbatches: int = 1
    muon: bool = False
    average: bool = False
    causal: bool = False
    generator: BertConfig | None = None

    @classmethod
    def of_run(cls, cfg: TrainConfig, platform: str, row_shards: int, fsdp: int, tensor: int) -> DeviceShare:
        """Returns the share of a pretraining run whose rows are divided over `row_shards` devices."""
        length, microbatches = cfg.data.max_seq_length, cfg.gradient_accumulation_steps
        rows = -(-cfg.batch_size // row_shards // microbatches)
        muon, average = cfg.optim.name == "muon", cfg.optim.ema is not None
        causal, slots = cfg.masking.causal_share > 0, cfg.masking.most_slots(length)
        return cls(rows, length, slots, platform, fsdp, tensor, microbatches, muon, average, causal, cfg.generator)

    def models(self, cfg: BertConfig) -> list[tuple[BertConfig, DeviceShare]]:
        """Returns the model and, if there is one, the generator, each with its own share."""
        alone = replace(self, generator=None)
        return [(cfg, alone)] if self.generator is None else [(cfg, replace(alone, slots=0)), (self.generator, alone)]


def num_parameters(cfg: BertConfig) -> int:
    """Returns the number of parameters of the encoder, the pooler and the masked-LM head."""
    d, e, form = cfg.hidden_size, cfg.embedding_size or cfg.hidden_size, cfg.form
    tables = (_table_rows(cfg) + 2 * form.embedding_norm) * e + (e * d + d) * (e != d) + 2 * d * form.final_norm
    out = cfg.output_embedding_size or e
    head = (d * d + d) + (d * out + 3 * out) + cfg.vocab_size * (1 + out * (not cfg.tie_word_embeddings))
    return (cfg.num_hidden_groups or cfg.num_hidden_layers) * _layer_parameters(cfg) + tables + head


def _layer_parameters(cfg: BertConfig) -> int:
    d, m, form = cfg.hidden_size, cfg.intermediate_size, cfg.form
    kv = d * (cfg.num_key_value_heads or cfg.num_attention_heads) // cfg.num_attention_heads
    own_positions = form.relative_positions == "disentangled" and not form.share_att_key
    biases = 2 * (d + kv) * form.attention_bias + 2 * d * own_positions + ((1 + form.gated_mlp) * m + d) * form.mlp_bias
    return sum(rows * columns for rows, columns in flops.layer_kernels(cfg)) + biases + 2 * d * (1 + form.norm_bias)


def state_bytes(cfg: BertConfig, share: DeviceShare) -> float:
    """Returns the bytes of float32 parameters, moments (two, and one of what Muon updates) and averages on one device."""
    parameters = kernels = 0
    for model, _ in share.models(cfg):
        parameters += num_parameters(model)
        of_layer = sum(rows * columns for rows, columns in flops.layer_kernels(model))
        kernels += of_layer * (model.num_hidden_groups or model.num_hidden_layers)
    if share.generator is not None:
        parameters -= _table_rows(cfg) * (cfg.embedding_size or cfg.hidden_size)  # both models have the same
    return 4.0 * ((3 + share.average) * parameters - kernels * share.muon) / (share.fsdp * share.tensor)


def _table_rows(cfg: BertConfig) -> int:
    return cfg.vocab_size + cfg.type_vocab_size + (cfg.max_position_embeddings if cfg.form.position_table else 0)


def activation_bytes(cfg: BertConfig, compute: ComputeConfig, share: DeviceShare) -> float:
    """Returns the bytes that a step needs at its peak in addition to its state.

    These are the values that the forward pass saves for the backward pass, the temporaries of one layer's (or the head's)
    backward pass, and the gradients. `compute.remat` and `compute.scan_layers` must be set. With a generator, it is the sum of
    both models, which is more than they need at one time.
    """
    return sum(_activation_bytes(model, compute, part) for model, part in share.models(cfg))


def _activation_bytes(cfg: BertConfig, compute: ComputeConfig, share: DeviceShare) -> float:
    """Returns `activation_bytes` of one model."""
    size = 4.0 if compute.dtype == "float32" else 2.0
    tokens, last_layer = share.rows * share.length, share.slots / share.length or 1.0
    d, m = cfg.hidden_size / share.tensor, cfg.intermediate_size / share.tensor
    saved = tokens * (cfg.num_hidden_layers - 1 + last_layer) * _saved_per_token(cfg, compute, share)
    # In float32: attention scores and the intermediate layer; with a kernel its operands and their gradients.
    attention_bytes, mlp_bytes = (4 + size) * max(_score_values(cfg, compute, share)) or 24 * d, 12 * m
    if compute.scan_layers and compute.remat == "dots":  # some recomputed values live beside their gradients
        attention_bytes *= 1.5
    head_bytes = 6.5 * share.rows * share.slots * cfg.vocab_size / share.tensor
    temporaries = max(tokens * (attention_bytes + mlp_bytes), head_bytes)
    return 1.05 * (saved + temporaries + _parameter_copies(cfg, compute, share))  # 5 %: gaps that the allocator leaves


def _saved_per_token(cfg: BertConfig, compute: ComputeConfig, share: DeviceShare) -> float:
    """Returns the bytes per token that a layer saves for the backward pass, as a mean over the layers.

    Without a scan the compiler recomputes some cheap values on its own, but draws dropout (counted here as scores) once. Through
    a scan it can do neither: every value that the derivatives read is stacked.
    """
    size = 4.0 if compute.dtype == "float32" else 2.0
    whole, d, m = cfg.hidden_size, cfg.hidden_size / share.tensor, cfg.intermediate_size / share.tensor
    scores = sum(_score_values(cfg, compute, share)) / cfg.num_hidden_layers
    if compute.remat == "full":  # the layer's input
        return size * whole + (0 if compute.scan_layers else 3 * scores)
    gated = cfg.form.gated_mlp  # a gate's output, its activation and their product are saved, too
    if compute.remat == "dots":  # the layer's input and the outputs of its dense products
        return size * (3 * whole + 3 * d + (1 + gated) * m) + (0 if compute.scan_layers else 1.5 * scores)
    kernel = 0.0 if scores else 6 * size * d  # the operands in the kernel's layout, and its output
    if compute.scan_layers:
        return (5 + size) * scores + kernel + size * ((2 + 2 * gated) * m + 2 * whole + 4 * d)
    per_score = 5 + size if share.platform == "gpu" else 4  # the compiler for GPUs keeps each, as through a scan
    return per_score * scores + kernel + size * ((2 + 2 * gated) * m + 2 * whole + 3 * d)


def _score_values(cfg: BertConfig, compute: ComputeConfig, share: DeviceShare) -> list[float]:
    """Returns the attention scores per token that each layer holds in memory: none if a kernel computes them block by block."""
    rate, head_size = cfg.attention_probs_dropout_prob, cfg.hidden_size // cfg.num_attention_heads
    biased = cfg.form.relative_positions in ("bias", "disentangled")
    keys = []
    for window in (cfg.layer(i).window for i in range(cfg.num_hidden_layers)):
        args = compute.attention, share.platform, share.length, head_size, compute.dtype, rate, None, False, window, biased
        kernel, _ = attention.choose(*args, share.causal)
        keys.append({"xla": share.length, "banded": 3 * (window or 0)}.get(kernel, 0))
    return [number * cfg.num_attention_heads / share.tensor for number in keys]


def _parameter_copies(cfg: BertConfig, compute: ComputeConfig, share: DeviceShare) -> float:
    """Returns the bytes of the gradients, of a scan's stacked layers with their gradients, and of gathered word embeddings."""
    shards = share.fsdp * share.tensor
    gradients = 4.0 * num_parameters(cfg) / shards
    stacked = 8.0 * (cfg.num_hidden_layers - 1) * _layer_parameters(cfg) / shards if compute.scan_layers else 0.0
    words = 4.0 * cfg.vocab_size * (cfg.embedding_size or cfg.hidden_size) / share.tensor if share.fsdp > 1 else 0.0
    return max(gradients, stacked) + words + (gradients if share.microbatches > 1 else 0.0)


def total_bytes(cfg: BertConfig, compute: ComputeConfig, share: DeviceShare) -> float:
    """Returns the bytes of state and activations; `compute.remat` and `compute.scan_layers` must be set."""
    return state_bytes(cfg, share) + activation_bytes(cfg, compute, share)


def choose_recomputation(cfg: BertConfig, compute: ComputeConfig, share: DeviceShare, memory_bytes: int | None) -> ComputeConfig:
    """Returns `compute` with a choice for a `remat` of "auto" and for a `scan_layers` of None.

    The choice is the least recomputation whose estimate fits into `USABLE` of `memory_bytes`, and none if the memory is not
    known, as on CPUs.
    """
    if compute.scan_layers is None:  # without a scan, compilation for TPUs takes many times as long
        compute = compute.replace(scan_layers=share.platform == "tpu" and cfg.num_hidden_layers > 4)
    if compute.remat != "auto":
        return compute
    choices = [compute.replace(remat=remat) for remat in ("none", "dots", "full")]
    if memory_bytes is None:
        return choices[0]
    return next((choice for choice in choices if total_bytes(cfg, choice, share) <= USABLE * memory_bytes), choices[-1])


def device_bytes(device: jax.Device) -> int | None:
    """Returns the bytes of memory of a device, or None for one that does not report them, such as a CPU."""
    return (device.memory_stats() or {}).get("bytes_limit")
