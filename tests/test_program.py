"""The program of a run: the precision of its matrix products, and the line of the log that names it."""

import re
from typing import get_args, get_type_hints

import pytest

from bert_jax.config import BertConfig, ComputeConfig, DataConfig, InputError, OptimConfig, Phase, TrainConfig, objectives
from bert_jax.program import Program, build, check
from bert_jax.training import parallel
from bert_jax.training.objectives import OBJECTIVES


def program(**compute) -> Program:
    model = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                       max_position_embeddings=16)  # fmt: skip
    cfg = TrainConfig(num_steps=2, batch_size=2, model=model, data=DataConfig(max_seq_length=16),
                      optim=OptimConfig(warmup_steps=1), compute=ComputeConfig(**compute))  # fmt: skip
    return build(cfg, parallel.make_devices(cfg.parallel.replace(num_devices=1)), None)


def precisions(**compute) -> set[str]:
    """The precisions of all matrix products of the training step, forward and backward."""
    made = program(**compute)
    text = made.train_step.lower(made.abstract_state, made.abstract_batch).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 15
    return {found[1] if (found := re.search(r"precision = \[(\w+), \1\]", line)) else "none" for line in products}


@pytest.mark.parametrize("more", [{}, {"remat": "full", "scan_layers": True}], ids=["plain", "recomputed, by a scan"])
@pytest.mark.parametrize("precision", ["default", pytest.param("high", marks=pytest.mark.slow), "highest"])
def test_every_matrix_product_of_a_step_has_the_precision_of_the_config(precision, more):
    assert precisions(matmul_precision=precision, **more) == {precision.upper()}


@pytest.mark.parametrize(
    ("platform", "precision", "words"),
    [
        ("cpu", "default", "float32 (products in float32: --compute.matmul-precision)"),
        ("gpu", "default", "float32 (products in TF32: --compute.matmul-precision)"),
        ("tpu", "default", "float32 (products in one bfloat16 pass: --compute.matmul-precision)"),
        ("gpu", "highest", "float32 (products in float32: --compute.matmul-precision)"),
    ],
)
def test_the_log_names_the_precision_of_float32_products(monkeypatch, platform, precision, words):
    made = program(matmul_precision=precision)
    monkeypatch.setattr(parallel.Devices, "platform", platform)
    assert made.describe().startswith(f"{words}, ")


def test_the_log_says_nothing_of_them_in_bfloat16():
    assert program(dtype="bfloat16").describe().startswith("bfloat16, ")


def test_each_objective_has_a_row_of_what_it_asks_of_a_run_and_one_that_computes_it():
    assert objectives.OBJECTIVES.keys() == OBJECTIVES.keys() == set(get_args(get_type_hints(TrainConfig)["objective"]))


def test_a_batch_that_does_not_divide_is_refused_by_the_name_of_its_phase_or_as_that_of_the_evaluation():
    cfg = TrainConfig(num_steps=9, batch_size=8, optim=OptimConfig(warmup_steps=1))
    devices = parallel.make_devices(cfg.parallel)  # eight
    with pytest.raises(InputError, match=r"phases\[1\] \(steps 4 to 9\): batch_size=12 does not divide over 8 devices"):
        check(cfg.replace(phases=(Phase(until=4), Phase(until=9, batch_size=12))), devices, begun=False)
    with pytest.raises(InputError, match="evaluation: batch_size=6 does not divide over 8 devices"):
        check(cfg.replace(batch_size=6, phases=(Phase(until=9, batch_size=8),)), devices, begun=False)


def test_a_kernel_that_cannot_compute_the_steps_of_a_phase_is_refused_by_its_name(monkeypatch):
    model, phases = BertConfig(attention_probs_dropout_prob=0.0), (Phase(until=4), Phase(until=9, causal_share=0.5))
    cfg = TrainConfig(num_steps=9, batch_size=8, model=model, optim=OptimConfig(warmup_steps=1),
                      compute=ComputeConfig(attention="splash"), phases=phases)  # fmt: skip
    devices = parallel.make_devices(cfg.parallel)
    with pytest.raises(InputError, match=r"phases\[0\] .*: attention='splash': it runs on TPUs, and this is a cpu"):
        check(cfg, devices, begun=False)
    monkeypatch.setattr(parallel.Devices, "platform", "tpu")
    with pytest.raises(InputError, match=r"phases\[1\] .*: attention='splash': .*in causal rows: set masking.causal_share to 0"):
        check(cfg, devices, begun=False)
