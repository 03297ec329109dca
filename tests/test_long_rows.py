"""Long rows take work and memory in proportion to their length: counted in compiled programs, of which none runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import OptimConfig
from bert_jax.model import heads
from bert_jax.model.attention import Tokens
from bert_jax.model.config import BertConfig, ComputeConfig
from bert_jax.model.encoder import EncoderLayer
from bert_jax.model.heads import Bert, parameter_shapes
from bert_jax.model.layers import rotary_angles
from bert_jax.training import losses, optim, steps

BASE = BertConfig.of_family("modernbert")
MB = 1e6


def local_layer_flops(length: int) -> float:
    """FLOPs of one local layer, as compiled."""
    kind = BASE.layer(1)
    layer = EncoderLayer(BASE, kind)

    def run(params, x):
        places = jnp.arange(length)[None]
        angles = {kind.theta: rotary_angles(places, kind.theta, BASE.hidden_size // BASE.num_attention_heads)}
        return layer.apply({"params": params}, x, Tokens(jnp.ones_like(places), None, angles), True)[0]

    params = parameter_shapes(Bert(BASE, "masked_lm"))["encoder"]["layer_1"]
    x = jax.ShapeDtypeStruct((1, length, BASE.hidden_size), jnp.float32)
    return jax.jit(run).lower(params, x).compile().cost_analysis()["flops"]


def test_a_local_layer_computes_little_beyond_its_windows_and_twice_as_much_for_twice_the_length():
    d, m, keys = BASE.hidden_size, BASE.intermediate_size, BASE.form.local_attention + 1
    found = {length: local_layer_flops(length) for length in (4096, 8192)}
    analytic = 4096 * (2 * (4 * d * d + 3 * d * m) + 4 * keys * d)
    assert 1 <= found[4096] / analytic <= 1.15
    assert found[8192] / found[4096] == pytest.approx(2, rel=0.01)


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@pytest.mark.slow
def test_a_row_of_8192_tokens_takes_half_a_gigabyte_forward_and_two_and_a_half_for_a_step():
    module = Bert(BASE, "encoder", compute=ComputeConfig())
    run = jax.jit(lambda params, batch: module.apply({"params": params}, batch)["last_hidden_state"])
    params = {"encoder": parameter_shapes(Bert(BASE, "masked_lm"))["encoder"]}
    forward = run.lower(params, {"input_ids": ints(1, 8192), "attention_mask": ints(1, 8192)}).compile()
    assert forward.memory_analysis().temp_size_in_bytes < 600 * MB

    module = Bert(BASE, "masked_lm", compute=ComputeConfig(scan_layers=True, remat="full"))
    optimizer = optim.make_optimizer(OptimConfig())

    def sums(params, batch, key):
        return losses.pretraining_sums(heads.apply(module, params, batch, key, head_only=True, decode=False), batch)

    step = steps.make_train_step(sums, optimizer, lambda step: 1e-4, seed=0)
    state = jax.eval_shape(lambda: steps.init_state(heads.initialize(module, 0), optimizer))
    predictions = int(0.3 * 8192)
    batch = dict.fromkeys(("input_ids", "token_type_ids", "position_ids", "sequence_ids"), ints(1, 8192))
    batch |= dict.fromkeys(("masked_positions", "masked_ids"), ints(1, predictions))
    batch |= {"masked_weights": jax.ShapeDtypeStruct((1, predictions), jnp.float32)}
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    gradients = sum(4 * x.size for x in jax.tree.leaves(state.params))  # not counted, like parameters and moments
    assert compiled.memory_analysis().temp_size_in_bytes - gradients < 2500 * MB


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_scan_over_periods_gives_the_outputs_and_gradients_of_one_layer_after_the_other(dropout):
    """Global and local layers, of which the first lacks a norm; with dropout, the last one at some positions alone."""
    cfg = BertConfig.of_family(
        "modernbert", vocab_size=30, hidden_size=8, num_hidden_layers=7, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=64, local_attention=4, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = {"input_ids": rng.integers(5, 30, (2, 20)), "masked_positions": rng.integers(0, 20, (2, 3))}
    plain = Bert(cfg, "masked_lm")
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), heads.initialize(plain, 0))

    def run(how):
        module = plain.clone(compute=how)

        def loss(params):
            args = batch, not dropout, not dropout, False, bool(dropout)
            outputs = module.apply({"params": params}, *args, rngs={"dropout": jax.random.key(1)})
            return jnp.sum(jnp.square(outputs["masked_lm_logits"])), outputs.get("hidden_states", ())

        quickly = {"xla_backend_optimization_level": 0}
        return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=quickly)(params)

    one_by_one, scanned = run(ComputeConfig()), run(ComputeConfig(scan_layers=True, remat="full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max()), one_by_one, scanned)
