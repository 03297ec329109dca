"""Adapters: nothing changes at first, merging is the same as running beside, and only they and the head are trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import BertConfig, OptimConfig
from bert_jax.model import lora
from bert_jax.model.convert import flatten
from bert_jax.model.heads import Bert, initialize
from bert_jax.training import optim

CFG = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
IDS = np.arange(12, dtype=np.int32).reshape(2, 6)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: initialize(Bert(CFG, "sequence_classification"), 0))()


def first_update(optimizer, params):
    """The state at first, and the updates by gradients of 1."""

    @jax.jit
    def update(params):
        state = optimizer.init(params)
        return state, optimizer.update(jax.tree.map(jnp.ones_like, params), state, params, learning_rate=0.1)[0]

    return update(params)


def test_query_and_value_of_each_layer_have_adapters_of_the_rank(params):
    adapters = lora.initialize(params, 3, 0)
    names = ("query", "value")
    assert sorted(adapters) == [f"encoder/layer_{i}/attention/{name}/kernel" for i in range(2) for name in names]
    assert all(pair["a"].shape == (16, 3) and pair["b"].shape == (3, 16) for pair in adapters.values())


def test_adapters_change_nothing_at_first(params):
    merged = lora.merge(params, lora.initialize(params, 3, 0), 4.0)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, merged))


def test_two_adapters_start_differently_and_seeds_too(params):
    first, other = lora.initialize(params, 3, 0), lora.initialize(params, 3, 1)
    values = [np.asarray(pair["a"]) for adapters in (first, other) for pair in adapters.values()]
    assert len({value.tobytes() for value in values}) == 8
    assert abs(np.std(values) * 4 - 1) < 0.1  # of 16 inputs


def test_merging_adds_the_scaled_product(params):
    adapters = lora.initialize(params, 3, 0)
    path = "encoder/layer_1/attention/value/kernel"
    adapters[path]["b"] = jnp.arange(48.0).reshape(3, 16)
    merged = flatten(lora.merge(params, adapters, 0.5))
    expected = flatten(params)[path] + 0.5 * adapters[path]["a"] @ adapters[path]["b"]
    np.testing.assert_allclose(merged[path], expected, rtol=1e-6)
    assert all(np.array_equal(merged[name], x) for name, x in flatten(params).items() if name != path)


def test_what_is_frozen_has_no_moments_and_does_not_move(params):
    scales = {name: jax.tree.map(lambda _, of=name: float(of != "encoder"), tree) for name, tree in params.items()}
    state, updates = first_update(optim.make_optimizer(OptimConfig(name="adamw", weight_decay=0.1), scales), params)
    assert all(not np.any(x) for x in jax.tree.leaves(updates["encoder"]))
    assert all(np.all(x) for x in jax.tree.leaves(updates["sequence_classifier"]))
    trained = sum(x.size for name in ("pooler", "sequence_classifier") for x in jax.tree.leaves(params[name]))
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 * trained + 1  # the count of steps


def test_scales_multiply_the_updates(params):
    plain, half = (
        optim.make_optimizer(OptimConfig(name="adamw"), scales) for scales in (None, jax.tree.map(lambda _: 0.5, params))
    )
    whole, halved = (first_update(optimizer, params)[1] for optimizer in (plain, half))
    np.testing.assert_allclose(optax.tree.norm(halved), 0.5 * optax.tree.norm(whole), rtol=1e-6)
