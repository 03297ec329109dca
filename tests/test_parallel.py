"""Devices: what lies where, what crosses them, and what does not divide over them."""

import math

import jax
import numpy as np
import pytest
from test_steps import CFG, compiled, devices_of, evaluation, initial_params, initial_state, lowered, sums_of, uneven_batch

from bert_jax import plan
from bert_jax.config import InputError, ParallelConfig
from bert_jax.model.convert import flatten
from bert_jax.training import parallel, steps


@pytest.mark.parametrize("layout", ["8x1x1", "4x2x1", "2x2x2"])
def test_rows_are_laid_over_the_devices(layout: str) -> None:
    devices = devices_of(layout)
    batch, parts = devices.put(uneven_batch()), devices.rows_cut
    assert parts == {"8x1x1": 8, "4x2x1": 8, "2x2x2": 4}[layout]
    for name, values in uneven_batch().items():
        shards = {shard.index[0].start: shard.data for shard in batch[name].addressable_shards}
        assert [shards[start].shape[0] for start in sorted(shards)] == parts * [16 // parts]
        np.testing.assert_array_equal(np.concatenate([shards[start] for start in sorted(shards)]), values)


def test_a_pmap_gets_its_rows_device_by_device() -> None:
    batch = devices_of("pmap").put(uneven_batch())
    for name, values in uneven_batch().items():
        assert batch[name].shape[:2] == (8, 2)
        np.testing.assert_array_equal(batch[name].reshape(values.shape), values)
    several = {"input_ids": np.zeros((3, 16, 5), np.int32)}  # of three runs in one program
    assert devices_of("pmap").put(several, axis=1)["input_ids"].shape == (3, 8, 2, 5)


def test_parameters_and_moments_are_cut_by_the_table() -> None:
    state = initial_state("adamw_bert", "2x2x2")
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        shapes = {path: x.addressable_shards[0].data.shape for path, x in flatten(tree).items()}
        layer = "encoder/layer_1"
        assert shapes[f"{layer}/attention/query/kernel"] == (16, 16)
        assert shapes[f"{layer}/attention/output/kernel"] == (16, 16)
        assert shapes[f"{layer}/mlp/intermediate/kernel"] == (16, 40)
        assert shapes[f"{layer}/mlp/intermediate/bias"] == (40,)
        assert shapes[f"{layer}/mlp/output/kernel"] == (40, 16)
        assert shapes[f"{layer}/mlp/output/bias"] == (32,)
        assert shapes["encoder/embeddings/word_embeddings/embedding"] == (61, 16)  # 2 does not divide 61 words
        assert shapes["encoder/embeddings/position_embeddings/embedding"] == (16, 32)
    assert state.step.sharding.is_fully_replicated


def test_what_was_cut_is_gathered_as_it_was() -> None:
    devices = devices_of("2x2x2")
    state = initial_state("adamw_bert", "2x2x2")
    for whole in (devices.gather(state.params), devices.one_device(state.params)):
        jax.tree.map(np.testing.assert_array_equal, whole, initial_params())
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(devices.one_device(state.params)))


def of_step(layout: str) -> list[plan.Collective]:
    step, state, batch = lowered("adamw_bert", layout, 1, False, 1.0)
    return plan.collectives(step.lower(state, batch).compile().as_text())


def shapes_of(found: list[plan.Collective]) -> list[tuple[int, ...]]:
    """Of all arrays that cross."""
    return [tuple(int(n) for n in shape.rstrip("]").split("[")[1].split(",") if n) for each in found for shape in each.shapes]


@pytest.mark.parametrize("layout", ["8x1x1", "pmap"])
def test_data_parallel_devices_cross_each_gradient_once_and_scalars(layout: str) -> None:
    found = of_step(layout)
    assert {each.kind for each in found} == {"all-reduce"}
    sizes = [math.prod(shape) for shape in shapes_of(found)]
    gradients = sum(x.size for x in jax.tree.leaves(initial_params()))
    table = 61 * 32 if layout == "8x1x1" else 0  # lookup and output layer each have a part in it: CPUs' compiler sums both
    assert sum(size for size in sizes if size > 1) == gradients + table
    assert sizes.count(1) < 20


def test_the_encoder_of_data_parallel_devices_crosses_nothing() -> None:
    devices = devices_of("8x1x1")
    step = devices.jit(steps.make_eval_step(sums_of(CFG)))
    params = devices.place(initial_params())
    found = plan.collectives(step.lower(params, devices.put(uneven_batch())).compile().as_text())
    assert set(shapes_of(found)) == {()}


def test_cut_parameters_are_gathered_where_they_are_used_and_hidden_states_stay() -> None:
    """What is gathered has a parameter's shape."""
    found = of_step("4x2x1")
    assert {each.kind for each in found} <= {"all-reduce", "all-gather", "reduce-scatter"}
    of_a_layer = {x.shape for x in jax.tree.leaves(initial_params()) if x.ndim == 2}
    gathered = shapes_of([each for each in found if each.kind == "all-gather"])
    assert {shape[-2:] for shape in gathered} <= of_a_layer


def test_cut_heads_and_layers_cross_hidden_states_by_sums_alone() -> None:
    found = of_step("2x2x2")
    assert {each.kind for each in found} <= {"all-reduce", "all-gather", "reduce-scatter"}


@pytest.mark.parametrize("layout", ["one", "8x1x1", pytest.param("4x2x1", marks=pytest.mark.slow), "2x2x2", "pmap"])
def test_an_evaluation_sums_over_all_rows(layout: str) -> None:
    devices = devices_of(layout)
    step = devices.jit(steps.make_eval_step(sums_of(CFG), devices.axis_name))
    sums = jax.device_get(step(devices.place(initial_params()), devices.put(uneven_batch())))
    whole = jax.device_get(evaluation()(initial_params(), uneven_batch()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, whole)


def test_what_does_not_divide_is_refused_with_what_would() -> None:
    eight, cut, both = (devices_of(layout) for layout in ("8x1x1", "4x2x1", "2x2x2"))
    parallel.check_fit(eight, CFG, 32, 4)
    parallel.check_fit(both, CFG, 4)
    with pytest.raises(InputError, match=r"batch_size=24 .* 8 devices \(data=8\) .*=2; the nearest that do: 16 or 32$"):
        parallel.check_fit(eight, CFG, 24, 2)
    with pytest.raises(InputError, match=r"batch_size=4 .* 8 devices \(data=4 x fsdp=2\) .*: 8$"):
        parallel.check_fit(cut, CFG, 4)
    with pytest.raises(InputError, match=r"num_attention_heads=1 .*\.tensor=2; tensor may be 1, or num_attention_heads 2$"):
        parallel.check_fit(both, CFG.replace(num_attention_heads=1), 8)
    with pytest.raises(InputError, match=r"intermediate_size=81 .* parallel.tensor=2; .* or intermediate_size 80 or 82$"):
        parallel.check_fit(both, CFG.replace(intermediate_size=81), 8)
    with pytest.raises(InputError, match=r"hidden_size=33 does not divide over parallel.fsdp=2"):
        parallel.check_fit(cut, CFG.replace(hidden_size=33, num_attention_heads=1), 8)


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match=r"num_devices=9, but there are 8 .*: choose 1 to 8"):
        parallel.make_devices(ParallelConfig(num_devices=9))
    with pytest.raises(InputError, match=r"fsdp=3 x parallel.tensor=1 does not divide 8 devices: .* one of 1, 2, 4, 8"):
        parallel.make_devices(ParallelConfig(fsdp=3))


def test_a_state_that_was_saved_on_one_mesh_trains_on_another() -> None:
    one = initial_state("adamw_bert", "one")
    one, _ = compiled("adamw_bert", "one", 1, True, 1.0)(one, uneven_batch())
    moved = devices_of("2x2x2").place(jax.device_get(one))
    one, metrics = compiled("adamw_bert", "one", 1, True, 1.0)(one, uneven_batch(1))
    _, others = compiled("adamw_bert", "2x2x2", 1, True, 1.0)(moved, uneven_batch(1))
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-5)
