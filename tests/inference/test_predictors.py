"""All predictors: the same packed as alone, in order; few shapes."""

import pickle

import jax
import numpy as np
from inference_models import close, with_inputs

from bert_jax.inference import predictor as of_predictors


@with_inputs
def test_packed_results_are_those_of_each_alone_and_in_order_and_shapes_are_few_and_compiled_once(predictor, inputs):
    predictor = pickle.loads(pickle.dumps(predictor))  # for which nothing is compiled yet
    order = np.random.default_rng(0).permutation(len(inputs))
    together = predictor([inputs[i] for i in order])
    for i in range(0, len(inputs), 7):
        (alone,) = predictor([inputs[order[i]]])
        close(together[i], alone)
    for count in (1, 2, 5, len(inputs)):
        predictor(inputs[:count])
    compiled = predictor._run_batch._cache_size()
    assert 0 < compiled <= 16  # 16, 32, 64 and 96 tokens by at most 6 numbers of rows, of which few occur
    for count in (1, 2, 5, len(inputs)):
        predictor(inputs[:count])
    assert predictor._run_batch._cache_size() == compiled


@with_inputs
def test_rows_on_three_devices_give_what_one_gives(predictor, inputs, monkeypatch):
    expected = predictor(inputs[:9])
    monkeypatch.setattr(of_predictors, "devices", lambda: jax.local_devices()[:3])
    copy = pickle.loads(pickle.dumps(predictor))
    for results in (copy(inputs[:9]), [copy([one])[0] for one in inputs[:2]]):
        for got, one in zip(results, expected, strict=False):
            close(got, one)
    placed = jax.tree.leaves(of_predictors.place(predictor.model.params))[0]
    assert len(placed.devices()) == 3


def test_the_default_device_predicts_alone():
    with jax.default_device(jax.local_devices()[2]):
        assert of_predictors.devices() == [jax.local_devices()[2]]
    with jax.default_device("cpu"):
        assert of_predictors.devices() == jax.local_devices()[:1]
    assert of_predictors.devices() == jax.local_devices()[:1]  # a CPU uses all cores
