"""Estimates from a config alone agree with the models that it describes, in every family."""

import math
from collections import Counter
from dataclasses import replace

import jax
import pytest

from bert_jax.config import BertConfig, ComputeConfig, DataConfig, MaskingConfig, OptimConfig, TrainConfig
from bert_jax.model.heads import Bert, parameter_shapes
from bert_jax.training import flops, memory, muon
from bert_jax.training.objectives import objective_of

MODERN = BertConfig(model_type="modernbert", type_vocab_size=0, vocab_size=5000, hidden_size=256, num_hidden_layers=6,
                    num_attention_heads=4, intermediate_size=384, max_position_embeddings=1024, local_attention=128,
                    attention_probs_dropout_prob=0.0)  # fmt: skip


@pytest.mark.parametrize(
    "cfg",
    [
        BertConfig.preset("mini"),
        MODERN,
        BertConfig.preset("mini", model_type="albert", embedding_size=128, num_hidden_groups=1),
        BertConfig.preset("mini", model_type="rembert", embedding_size=128, output_embedding_size=320, tie_word_embeddings=False),
    ],
    ids=lambda cfg: cfg.model_type,
)
def test_parameters_are_counted_as_they_are(cfg):
    shapes = jax.tree.leaves(parameter_shapes(Bert(cfg, "masked_lm")))
    pooler = cfg.hidden_size**2  # counted, though this head has none
    assert memory.num_parameters(cfg) == pytest.approx(sum(math.prod(x.shape) for x in shapes) + pooler, rel=0.01)


def test_flops_of_gated_layers_with_windows_are_those_of_their_products():
    cfg = TrainConfig(num_steps=1, batch_size=2, model=MODERN, data=DataConfig(max_seq_length=1024),
                      masking=MaskingConfig(max_predictions_per_seq=100), optim=OptimConfig(warmup_steps=0))  # fmt: skip
    d, m, tokens, predicted = 256, 384, 2 * 1024, 2 * 100
    dense = 5 * tokens * 2 * (4 * d * d + 3 * d * m) + 2 * (tokens * 2 * d * d + predicted * (2 * d * d + 3 * d * m))
    keys = [1024, 129, 129, 1024, 129]  # layers 0 and 3 attend to the whole row; the last one is below
    attention = 4 * d * (tokens * sum(keys) + predicted * 129)
    head = 2 * predicted * (d * d + d * 5000)
    assert flops.step_flops(cfg) == 3 * (dense + attention + head)


def test_layers_with_a_window_hold_fewer_scores():
    how, share = ComputeConfig(remat="none", scan_layers=False), memory.DeviceShare(8, 1024, 100, "cpu")
    whole = MODERN.replace(layer_types=("full_attention",))
    difference = memory.activation_bytes(whole, how, share) - memory.activation_bytes(MODERN, how, share)
    scores = 8 * 1024 * 4 * (1024 - 3 * 64)  # of a layer: rows, tokens, heads, keys
    assert difference == pytest.approx(1.05 * 4 * scores * 4 / 6 * (5 + 100 / 1024), rel=1e-6)  # 4 of 6 layers have the window


def test_steps_that_predict_next_tokens_run_the_head_and_the_last_layer_everywhere():
    runs = [TrainConfig(model=MODERN, masking=MaskingConfig(causal_share=share)) for share in (0.0, 0.5, 1.0)]
    masked, mixed, causal = map(flops.step_flops, runs)
    assert mixed == pytest.approx((masked + causal) / 2)
    per_place = 2 * (2 * 256**2 + 3 * 256 * 384) + 4 * 128 * 256 + 2 * (256**2 + 256 * 5000)  # MODERN's last layer, and the head
    assert causal - masked == pytest.approx(3 * 256 * (127 - 20) * per_place)
    assert [memory.DeviceShare.of_run(run, "tpu", 1, 1, 1).slots for run in runs] == [20, 127, 127]


@pytest.mark.parametrize(
    "cfg",
    [MODERN, BertConfig.preset("mini"), BertConfig.of_family("eurobert", num_hidden_layers=2)],
    ids=lambda cfg: cfg.model_type,
)
def test_muon_keeps_one_moment_of_the_kernels_of_layers_and_its_products_are_counted(cfg, monkeypatch):
    run = TrainConfig(model=cfg, optim=OptimConfig(name="muon", muon_iterations=3))
    params = parameter_shapes(Bert(cfg, "masked_lm"))
    hidden = [x.shape for x, chosen in zip(*map(jax.tree.leaves, (params, muon.hidden_matrices(params))), strict=True) if chosen]
    shares = [replace(memory.DeviceShare.of_run(run, "cpu", 1, 1, 1), muon=chosen) for chosen in (True, False)]
    assert memory.DeviceShare.of_run(run, "cpu", 1, 1, 1).muon
    assert not memory.DeviceShare.of_run(run.replace(optim=OptimConfig()), "cpu", 1, 1, 1).muon
    ours, adam = (memory.state_bytes(cfg, share) for share in shares)
    assert adam - ours == 4 * sum(map(math.prod, hidden))
    averaged = memory.DeviceShare.of_run(run.replace(optim=run.optim.replace(average="ema:0.99")), "cpu", 1, 1, 1)
    assert memory.state_bytes(cfg, averaged) - ours == 4 * memory.num_parameters(cfg)
    sides = Counter((min(shape), max(shape)) for shape in hidden)
    monkeypatch.setattr(flops, "SYMMETRIC_FROM", 10**6)
    each = {(m, n): 3 * (4 * m**2 * n + 2 * m**3) for m, n in sides}
    assert flops.muon_flops(run) == sum(number * each[shape] for shape, number in sides.items())
    monkeypatch.setattr(flops, "SYMMETRIC_FROM", 256)
    each = {(m, n): 3 * (3.5 * m**2 * n + 1.5 * m**3) for m, n in sides}  # a quarter of two of the products is copied
    assert flops.muon_flops(run, 8) == sum(math.ceil(number / 8) * each[shape] for shape, number in sides.items())
    assert flops.muon_flops(run.replace(optim=OptimConfig())) == 0


def test_a_generator_is_counted_beside_the_model():
    model = BertConfig.preset("mini", model_type="electra", embedding_size=128)
    run = TrainConfig(model=model, objective="replaced_tokens", optim=OptimConfig(name="muon"))
    objective = objective_of(run)
    params = jax.eval_shape(lambda: objective.initialize(0))
    hidden = [x.shape for x, chosen in zip(*map(jax.tree.leaves, (params, muon.hidden_matrices(params))), strict=True) if chosen]
    assert len(hidden) == 2 * 4 * 6
    shares = [replace(memory.DeviceShare.of_run(run, "cpu", 1, 1, 1), muon=chosen) for chosen in (True, False)]
    ours, adam = (memory.state_bytes(model, share) for share in shares)
    assert adam - ours == 4 * sum(map(math.prod, hidden))
    assert adam == pytest.approx(12 * sum(math.prod(x.shape) for x in jax.tree.leaves(params)), rel=0.01)

    alone = [run.replace(model=each, objective="masked_lm") for each in run.models]
    assert flops.muon_flops(run) == sum(map(flops.muon_flops, alone))
    d, m, tokens, head = 256, 1024, 256 * 128, 3 * 2 * 256 * 20 * 128 * (64 + 30522)
    whole = 4 * (2 * tokens * (4 * d**2 + 2 * d * m) + 4 * tokens * 128 * d) + 2 * tokens * (d**2 + d)
    assert flops.step_flops(run) == 3 * whole + flops.step_flops(alone[1])
    layers = flops.step_flops(alone[1]) - head
    d, m, predicted = 64, 256, 256 * 20
    dense = 3 * 2 * tokens * (4 * d**2 + 2 * d * m) + 2 * (tokens * 2 * d**2 + predicted * (2 * d**2 + 2 * d * m))
    assert layers == 3 * (dense + 4 * 128 * d * (3 * tokens + predicted))

    how = ComputeConfig(remat="none", scan_layers=False)
    both = memory.activation_bytes(model, how, shares[1])
    assert both > memory.activation_bytes(model, how, replace(shares[1], generator=None, slots=0)) > both / 2
