"""All predictors: the same packed as alone, in order; long, empty and wrong input."""

import numpy as np
from inference_models import close, with_inputs


@with_inputs
def test_packed_results_are_those_of_each_alone_and_in_order(predictor, inputs):
    order = np.random.default_rng(0).permutation(len(inputs))
    together = predictor([inputs[i] for i in order])
    for i in range(0, len(inputs), 7):
        (alone,) = predictor([inputs[order[i]]])
        close(together[i], alone)


@with_inputs
def test_no_shape_is_compiled_twice_and_shapes_are_few(predictor, inputs):
    for count in (1, 2, 5, len(inputs)):
        predictor(inputs[:count])
    compiled = predictor._run_batch._cache_size()
    assert compiled <= 16  # 16, 32, 64 and 96 tokens by at most 6 numbers of rows, of which few occur
    for count in (1, 2, 5, len(inputs)):
        predictor(inputs[:count])
    assert predictor._run_batch._cache_size() == compiled
