"""Optimizers against transcriptions of the published code, and schedules at points computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import BertConfig, InputError, OptimConfig, Phase
from bert_jax.model.convert import flatten, unflatten
from bert_jax.model.heads import Bert, initialize
from bert_jax.training import flops, muon, parallel
from bert_jax.training.optim import decay_mask, layer_scales, make_optimizer, make_schedule, scaled_by_phases

RATES = [0.01, 0.02, 0.03, 0.02, 0.01]
SHAPES = {
    "dense/kernel": (5, 3),
    "dense/bias": (3,),
    "norm/scale": (3,),
    "norm/bias": (3,),
    "word_embeddings/embedding": (7, 3),
    "zero/kernel": (3, 2),  # starts at 0, where LAMB has no ratio
}


def arrays(seed: int) -> dict[str, np.ndarray]:
    """One array a path; gradients of very different sizes, down to epsilon's, so that epsilon's place shows."""
    rng = np.random.default_rng(seed)
    return {path: (rng.normal(size=s) * 10.0 ** rng.uniform(-7, 0, s)).astype(np.float32) for path, s in SHAPES.items()}


def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(99)
    return {path: rng.normal(size=s).astype(np.float32) * (path != "zero/kernel") for path, s in SHAPES.items()}


def ours(cfg: OptimConfig) -> list[dict[str, np.ndarray]]:
    """Parameters after each of five steps."""
    optimizer = make_optimizer(cfg)
    update = jax.jit(optimizer.update)
    params, history = unflatten(start()), []
    state = optimizer.init(params)
    for number, rate in enumerate(RATES):
        updates, state = update(unflatten(arrays(number)), state, params, learning_rate=rate)
        params = optax.apply_updates(params, updates)
        history.append(flatten(params))
    return history


def assert_equal_histories(mine: list, theirs: list, atol: float = 2e-7) -> None:
    for a, b in zip(mine, theirs, strict=True):
        for path in SHAPES:
            np.testing.assert_allclose(a[path], b[path], rtol=2e-6, atol=atol, err_msg=path)
    assert all(np.abs(mine[-1][path] - start()[path]).max() > 1e-3 for path in SHAPES)


def test_adamw_bert_is_google_research_berts_optimizer() -> None:
    """optimization.py, AdamWeightDecayOptimizer.apply_gradients, transcribed; its exclusions are
    ["LayerNorm", "layer_norm", "bias"] by name, which are our `scale`s and `bias`es."""
    b1, b2, epsilon, weight_decay = 0.9, 0.999, 1e-6, 0.01
    param = {path: p.astype(np.float64) for path, p in start().items()}
    m, v = ({path: np.zeros(shape) for path, shape in SHAPES.items()} for _ in range(2))
    history = []
    for number, learning_rate in enumerate(RATES):
        for path, grad in arrays(number).items():
            grad = grad.astype(np.float64)
            m[path] = b1 * m[path] + (1 - b1) * grad
            v[path] = b2 * v[path] + (1 - b2) * grad**2
            update = m[path] / (np.sqrt(v[path]) + epsilon)
            if path.rsplit("/", 1)[1] not in ("scale", "bias"):
                update = update + weight_decay * param[path]
            param[path] = param[path] - learning_rate * update
        history.append(dict(param))
    assert_equal_histories(ours(OptimConfig(name="adamw_bert")), history)


def test_adamw_is_optax_adamw() -> None:
    cfg = OptimConfig(name="adamw", b1=0.8, b2=0.98, eps=1e-5, weight_decay=0.1)
    optimizer = optax.adamw(lambda count: jnp.array(RATES)[count], b1=0.8, b2=0.98, eps=1e-5, weight_decay=0.1, mask=decay_mask)
    update = jax.jit(optimizer.update)
    params, history = unflatten(start()), []
    state = optimizer.init(params)
    for number in range(len(RATES)):
        updates, state = update(unflatten(arrays(number)), state, params)
        params = optax.apply_updates(params, updates)
        history.append(flatten(params))
    assert_equal_histories(ours(cfg), history)


def test_lamb_is_the_papers() -> None:
    """You et al. (2020), algorithm 2 with phi(x) = x, and the exclusions of its authors' code (exclude_from_weight_decay and
    exclude_from_layer_adaptation: LayerNorm, bias); the ratio is 1 where either norm is 0."""
    b1, b2, epsilon, weight_decay = 0.9, 0.999, 1e-6, 0.02
    param = {path: p.astype(np.float64) for path, p in start().items()}
    m, v = ({path: np.zeros(shape) for path, shape in SHAPES.items()} for _ in range(2))
    history = []
    for number, learning_rate in enumerate(RATES):
        for path, grad in arrays(number).items():
            grad = grad.astype(np.float64)
            m[path] = b1 * m[path] + (1 - b1) * grad
            v[path] = b2 * v[path] + (1 - b2) * grad**2
            corrected = m[path] / (1 - b1 ** (number + 1)), v[path] / (1 - b2 ** (number + 1))
            update, ratio = corrected[0] / (np.sqrt(corrected[1]) + epsilon), 1.0
            if path.rsplit("/", 1)[1] not in ("scale", "bias"):
                update = update + weight_decay * param[path]
                norms = np.linalg.norm(param[path]), np.linalg.norm(update)
                ratio = norms[0] / norms[1] if norms[0] > 0 and norms[1] > 0 else 1.0
            param[path] = param[path] - learning_rate * ratio * update
        history.append(dict(param))
    # In float32, 1 - b2 is off by 1 in 40 000, the update by half of that.
    assert_equal_histories(ours(OptimConfig(name="lamb", weight_decay=0.02)), history, atol=1e-6)


def test_exactly_biases_and_scales_are_excluded_from_decay() -> None:
    cfg = BertConfig.preset("tiny", vocab_size=100)
    params = jax.eval_shape(lambda: initialize(Bert(cfg, "pretraining"), 0))
    mask = flatten(decay_mask(params))
    assert mask == {path: path.endswith(("/kernel", "/embedding")) for path in flatten(params)}
    assert sum(mask.values()) == 3 + 6 * 2 + 3  # tables, six kernels a layer, pooler, MLM transform, NSP
    assert mask["encoder/embeddings/word_embeddings/embedding"]
    assert not mask["masked_lm/bias"]
    assert decay_mask({"loss": {"log_temperature": 0.0}}) == {"loss": {"log_temperature": False}}


# ---- layers that learn more slowly than others


def scales_of(cfg: BertConfig, decay: float, frozen: int) -> dict[str, float]:
    params = jax.eval_shape(lambda: initialize(Bert(cfg, "sequence_classification"), 0))
    flat = flatten(layer_scales(params, cfg.num_hidden_layers, decay, frozen))
    assert flat.keys() == flatten(params).keys()
    return flat


def by_part(scales: dict[str, float]) -> dict[str, float]:
    """The multiplier of each part, which all its parameters have."""
    parts: dict[str, set[float]] = {}
    for path, scale in scales.items():
        names = path.split("/")
        parts.setdefault(names[1] if names[0] == "encoder" else names[0], set()).add(scale)
    assert all(len(each) == 1 for each in parts.values())
    return {name: each.pop() for name, each in parts.items()}


THREE_LAYERS = BertConfig.preset("tiny", vocab_size=100, num_hidden_layers=3)


@pytest.mark.parametrize(
    ("decay", "frozen", "expected"),
    [
        (0.5, 0, [0.0625, 0.125, 0.25, 0.5]),
        (1.0, 0, [1, 1, 1, 1]),
        (1.0, 1, [0, 0, 1, 1]),
        (0.5, 2, [0, 0, 0, 0.5]),
        (1.0, 9, [0, 0, 0, 0]),
    ],
)
def test_a_layer_learns_a_fixed_share_of_what_the_one_above_does(decay: float, frozen: int, expected: list[float]) -> None:
    encoder = dict(zip(["embeddings", "layer_0", "layer_1", "layer_2"], expected, strict=True))
    assert by_part(scales_of(THREE_LAYERS, decay, frozen)) == encoder | {"pooler": 1, "sequence_classifier": 1}


def test_a_projection_is_of_the_embeddings_and_shared_layers_are_the_lowest() -> None:
    electra = THREE_LAYERS.replace(model_type="electra", embedding_size=16)
    assert by_part(scales_of(electra, 0.5, 0))["projection"] == 0.0625
    albert = THREE_LAYERS.replace(model_type="albert", embedding_size=16, num_hidden_groups=1)
    shared = by_part(scales_of(albert, 0.5, 0))
    assert (shared["embeddings"], shared["layer_0"]) == (0.0625, 0.125)


@pytest.mark.parametrize("name", ["adamw", "adamw_bert", "lamb"])
def test_scales_multiply_the_updates_decay_included_and_what_has_none_keeps_no_moments(name: str) -> None:
    cfg, params, grads = OptimConfig(name=name, weight_decay=0.1), unflatten(start()), unflatten(arrays(0))
    scales = {path: {"dense/kernel": 0.5, "dense/bias": 0.0, "word_embeddings/embedding": 0.0}.get(path, 1.0) for path in SHAPES}
    plain, scaled = make_optimizer(cfg), make_optimizer(cfg, unflatten(scales))
    state = scaled.init(params)
    theirs, ours = (flatten(o.update(grads, o.init(params), params, learning_rate=1.0)[0]) for o in (plain, scaled))
    for path, scale in scales.items():
        np.testing.assert_allclose(ours[path], scale * theirs[path], rtol=1e-6, err_msg=path)
        assert np.abs(theirs[path]).max() > 0
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(each)) for each in (plain.init(params), state)]
    assert sizes[0] - sizes[1] == 2 * (3 + 21)


LINEAR = dict(learning_rate=1.0, schedule="linear")
BERT_TF = dict(learning_rate=2.0, schedule="bert_tf")
COSINE = dict(learning_rate=1.0, schedule="cosine")
STABLE = dict(learning_rate=1.0, schedule="warmup_stable_decay")


@pytest.mark.parametrize(
    ("options", "num_steps", "points"),
    [
        (LINEAR | dict(warmup_steps=10), 110, {0: 0, 1: 0.1, 9: 0.9, 10: 1, 11: 0.99, 60: 0.5, 109: 0.01, 110: 0, 200: 0}),
        (LINEAR | dict(warmup_steps=0), 100, {0: 1, 1: 0.99, 50: 0.5, 99: 0.01, 100: 0}),
        # optimization.py: init_lr * step / warmup below the warm-up's end, init_lr * (1 - step / num_steps) from there
        (BERT_TF | dict(warmup_steps=10), 100, {0: 0, 1: 0.2, 9: 1.8, 10: 1.8, 11: 1.78, 50: 1, 99: 0.02, 100: 0, 150: 0}),
        (BERT_TF | dict(warmup_steps=0), 100, {0: 2, 1: 1.98, 50: 1, 100: 0}),
        (COSINE | dict(warmup_steps=10), 110, {0: 0, 5: 0.5, 10: 1, 35: 0.5 + 8**-0.5, 60: 0.5, 85: 0.5 - 8**-0.5, 110: 0}),
        (COSINE | dict(warmup_steps=0), 100, {0: 1, 50: 0.5, 100: 0}),
        (STABLE | dict(warmup_steps=10), 100, {0: 0, 5: 0.5, 10: 1, 50: 1, 90: 1, 91: 0.9, 95: 0.5, 100: 0, 120: 0}),
        (STABLE | dict(warmup_steps=10, decay_steps=50), 100, {0: 0, 10: 1, 50: 1, 51: 0.98, 75: 0.5, 100: 0}),
        (STABLE | dict(warmup_steps=0, decay_steps=100), 100, {0: 1, 50: 0.5, 100: 0}),
        (STABLE | dict(warmup_steps=60, decay_steps=40), 100, {30: 0.5, 60: 1, 80: 0.5, 100: 0}),
        (
            STABLE | dict(warmup_steps=10, decay_steps=64, decay_shape="1-sqrt"),
            100,
            {0: 0, 10: 1, 36: 1, 37: 0.875, 40: 0.75, 52: 0.5, 72: 0.25, 85: 0.125, 100: 0, 120: 0},
        ),
    ],
)
def test_schedules_pass_through_points_computed_by_hand(options: dict, num_steps: int, points: dict[int, float]) -> None:
    schedule = jax.jit(make_schedule(OptimConfig(**options), num_steps))
    for step, expected in points.items():
        np.testing.assert_allclose(schedule(jnp.int32(step)), expected, atol=1e-6, err_msg=f"step {step}")


def test_berts_own_schedule_drops_where_the_warm_up_ends() -> None:
    """By warmup/num_steps: after 10 % of warm-up, the rate goes on from 90 % of the peak, which it never reaches."""
    rates = [float(make_schedule(OptimConfig(**BERT_TF, warmup_steps=100), 1000)(jnp.int32(s))) for s in (98, 99, 100, 101)]
    np.testing.assert_allclose(rates, [1.96, 1.98, 1.8, 1.798], rtol=1e-6)


def test_phases_scale_the_schedule_one_after_another() -> None:
    phases = (
        Phase(until=20), Phase(until=40, learning_rate_scale=0.5), Phase(until=60, learning_rate_scale=0.5),
        Phase(until=80, learning_rate_scale=0.25, learning_rate_shape="jump"),
        Phase(until=96, learning_rate_scale=0.05, learning_rate_shape="1-sqrt"),
        Phase(until=100, learning_rate_scale=0.25, learning_rate_shape="cosine"),
    )  # fmt: skip
    constant = make_schedule(OptimConfig(learning_rate=2.0, schedule="warmup_stable_decay", warmup_steps=10, decay_steps=0), 100)
    schedule = jax.jit(scaled_by_phases(constant, phases))
    points = {5: 0.5, 10: 1, 20: 1, 30: 0.75, 40: 0.5, 59: 0.5, 60: 0.25, 79: 0.25, 84: 0.15, 96: 0.05, 98: 0.15, 99: 0.22071}
    for step, factor in points.items():
        np.testing.assert_allclose(schedule(jnp.int32(step)), 2 * factor, atol=1e-5, err_msg=f"step {step}")
    assert scaled_by_phases(constant, phases[:1]) is constant


@pytest.mark.parametrize("schedule", ["linear", "bert_tf", "cosine", "warmup_stable_decay"])
def test_a_warm_up_as_long_as_the_run_is_all_warm_up(schedule: str) -> None:
    cfg = OptimConfig(learning_rate=1.0, schedule=schedule, warmup_steps=10,
                      decay_steps=0 if schedule == "warmup_stable_decay" else None)  # fmt: skip
    rates = [float(make_schedule(cfg, 10)(jnp.int32(step))) for step in range(10)]
    np.testing.assert_allclose(rates, np.arange(10) / 10, atol=1e-6)


def test_a_warm_up_and_a_decay_that_do_not_fit_the_run_are_refused() -> None:
    cfg = OptimConfig(schedule="warmup_stable_decay", warmup_steps=60, decay_steps=50)
    with pytest.raises(InputError, match=r"warmup_steps=60 .*decay_steps=50 .*num_steps=100"):
        make_schedule(cfg, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(schedule="linaer"), "schedule='linaer'"),
        (dict(name="adam"), "name='adam'"),
        (dict(learning_rate=0.0), "learning_rate=0.0 must be positive"),
        (dict(warmup_steps=-1), "warmup_steps=-1 is below 0"),
        (dict(clip_norm=0.0), "clip_norm=0.0 must be positive"),
        (dict(b2=1.0), r"b2=1.0 is not in \[0, 1\)"),
        (dict(muon_momentum=0.9), "muon_momentum=0.9 needs name='muon', not 'adamw_bert'"),
        (dict(name="muon", muon_coefficients="polar_express", muon_iterations=2), "for 3, 4 or 5 .* not for muon_iterations=2"),
        (dict(decay_shape="1-sqrt"), "decay_shape='1-sqrt' needs schedule='warmup_stable_decay', not 'linear'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimConfig(**options)


JORDAN = dict(muon_coefficients="jordan", muon_iterations=5)
POLAR = dict(muon_coefficients="polar_express", muon_iterations=3)


def numpy_orthogonal(x, polynomials):
    """Newton-Schulz iterations of one matrix (Jordan et al., 2024), float64."""
    x = x.T if x.shape[0] > x.shape[1] else x
    y = x / np.sqrt((x**2).sum())
    for a, b, c in polynomials:
        square = y @ y.T
        y = a * y + b * square @ y + c * square @ square @ y
    return y


@pytest.mark.parametrize(("options", "polynomials"), [(JORDAN, 5 * [(3.4445, -4.7750, 2.0315)]), (POLAR, muon.POLAR_EXPRESS[3])])
def test_muon_is_an_independent_numpy_implementation_over_twenty_steps(options, polynomials, monkeypatch) -> None:
    monkeypatch.setattr(flops, "SYMMETRIC_FROM", 8 if options is POLAR else 512)
    rng = np.random.default_rng(0)
    shapes = {"query": (8, 8), "intermediate": (8, 20), "output": (20, 8)}
    layers = {f"layer_{i}": {name: {"kernel": rng.normal(size=shape), "bias": rng.normal(size=shape[1])}
                             for name, shape in shapes.items()} for i in range(2)}  # fmt: skip
    table, head = rng.normal(size=(11, 8)), rng.normal(size=(8, 3))
    params = {"encoder": layers | {"embeddings": {"embedding": table}}, "classifier": {"kernel": head}}
    cfg = OptimConfig(name="muon", learning_rate=1e-3, muon_learning_rate=0.02, weight_decay=0.1, eps=1e-8, **options)
    optimizer = make_optimizer(cfg)
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state, update = optimizer.init(ours), jax.jit(optimizer.update)
    expected = {path: np.array(x) for path, x in flatten(params).items()}
    moments = {path: [np.zeros_like(x), np.zeros_like(x)] for path, x in expected.items()}
    for step in range(20):
        rate = 1e-3 * (20 - step) / 20
        gradients = {path: rng.normal(size=x.shape) for path, x in expected.items()}
        given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), unflatten(gradients))
        updates, state = update(given, state, ours, learning_rate=rate, ok=True)
        ours = jax.tree.map(jnp.add, ours, updates)
        for path, gradient in gradients.items():
            first, second = moments[path]
            decay = 0.0 if path.endswith("bias") else 0.1
            if path.startswith("encoder/layer") and path.endswith("kernel"):
                first[:] = 0.95 * first + 0.05 * gradient
                matrix = numpy_orthogonal(0.05 * gradient + 0.95 * first, polynomials)
                rows, columns = gradient.shape
                matrix = (matrix.T if rows > columns else matrix) * max(1, columns / rows) ** 0.5
                expected[path] -= 20 * rate * (matrix + decay * expected[path])
            else:
                first[:], second[:] = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
                corrected = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
                expected[path] -= rate * (corrected + decay * expected[path])
    for path, x in flatten(ours).items():
        np.testing.assert_allclose(x, expected[path], atol=1e-5, err_msg=path)


@pytest.mark.parametrize(("number", "least", "band"), [(3, 0.01, 0.29), (4, 0.003, 0.23), (5, 0.001, 0.14)])
def test_the_polynomials_of_a_number_of_iterations_are_the_nearest_to_one(number, least, band) -> None:
    """An odd quintic is the nearest to 1 on an interval if it is off by as much, above and below in turns, at four points."""
    singular = np.linspace(least, 1, 100_001)
    begin, end = least / 1.01, 1.01
    for a, b, c in muon.POLAR_EXPRESS[number]:
        x = np.linspace(begin, end, 100_001)
        off = a * x + b * x**3 + c * x**5 - 1
        worst = np.abs(off).max()
        turns = np.flatnonzero(np.diff(np.sign(np.diff(off)))) + 1
        np.testing.assert_allclose(off[[0, *turns, -1]], worst * np.array([-1, 1, -1, 1]), rtol=0.03)
        singular = a * singular + b * singular**3 + c * singular**5
        begin, end = (1 - worst) / 1.01, (1 + worst) * 1.01
    assert 0.94 * band < np.abs(singular - 1).max() < band


@pytest.mark.parametrize(("dtype", "band"), [(jnp.float32, 0.29), (jnp.bfloat16, 0.31)])
def test_a_matrix_is_orthogonalised_also_in_bfloat16(dtype, band, monkeypatch) -> None:
    monkeypatch.setattr(flops, "SYMMETRIC_FROM", 7)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 12))
    x[2] = rng.normal(size=(7, 1)) * rng.normal(size=12)  # the largest singular value that there is, and others of 0
    result = jax.jit(muon.orthogonalise, static_argnums=1)(jnp.asarray(x, dtype), muon.POLAR_EXPRESS[3])
    assert result.dtype == dtype
    values = np.linalg.svd(np.asarray(result, np.float64), compute_uv=False)
    assert np.abs(values[:2] - 1).max() < band
    assert abs(values[2, 0] - 1) < band
    assert values[2, 1:].max() < band


def test_muon_on_any_mesh_is_muon_on_one_device() -> None:
    """Parameters cut by fsdp and tensor are whole where they are orthogonalised."""
    rng = np.random.default_rng(2)
    shapes = {"attention": {"query": (16, 16), "output": (16, 16)}, "mlp": {"intermediate": (16, 32), "output": (32, 16)}}
    layer = {part: {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in own.items()}
             for part, own in shapes.items()}  # fmt: skip
    params = {"encoder": {"layer_0": layer, "layer_1": layer, "norm": {"scale": np.ones(16, np.float32)}}}
    gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    optimizer = make_optimizer(OptimConfig(name="muon", **POLAR))

    def step(params, gradients):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(gradients, state, params, learning_rate=1e-3, ok=True)
        return updates, state

    expected = jax.jit(step)(params, gradients)[0]
    for fsdp, tensor in ((1, 1), (4, 1), (2, 2)):
        devices = parallel.Devices(parallel.make_mesh(jax.devices(), fsdp, tensor))
        placed = devices.place(params), devices.place(gradients)
        kernel = placed[0]["encoder"]["layer_0"]["mlp"]["output"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (32 // tensor, 16 // fsdp)
        with jax.set_mesh(devices.mesh):
            updates = jax.jit(step, out_shardings=None)(*placed)[0]
        jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6), devices.gather(updates), expected)


def test_muon_without_kernels_of_layers_is_refused() -> None:
    with pytest.raises(InputError, match="muon finds no kernels of layers"):
        make_optimizer(OptimConfig(name="muon")).init({"kernel": jnp.ones((2, 2))})


def test_muons_updates_may_be_as_large_as_those_of_adamw() -> None:
    """A root mean square of 0.2: that of an orthogonal matrix, (rows of the shorter side)^0.5 over all, times the factor."""
    rng = np.random.default_rng(4)
    shapes = {"query": (24, 24), "up": (24, 64), "down": (64, 24)}
    layer = {name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
    params = {"encoder": {"layer_0": layer}, "classifier": {"kernel": jnp.ones((24, 2))}}
    optimizer = make_optimizer(OptimConfig(name="muon", learning_rate=1.0, muon_learning_rate=1.0, muon_scale="adamw",
                                           muon_coefficients="polar_express", weight_decay=0.0))  # fmt: skip
    state = optimizer.init(params)
    updates = flatten(jax.jit(optimizer.update)(params, state, params, learning_rate=1e-3)[0])
    for name in shapes:
        found = np.sqrt(np.mean(np.square(updates[f"encoder/layer_0/{name}/kernel"])))
        np.testing.assert_allclose(found, 0.2e-3, rtol=0.15, err_msg=name)


def test_stable_adamw_is_an_independent_numpy_implementation_over_twenty_steps() -> None:
    rng = np.random.default_rng(1)
    expected = {"kernel": rng.normal(size=(6, 4)), "bias": rng.normal(size=4)}
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), expected)
    optimizer = make_optimizer(OptimConfig(name="stable_adamw", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1))
    state, update = optimizer.init(ours), jax.jit(optimizer.update)
    first, second, clipped = dict.fromkeys(expected, 0.0), dict.fromkeys(expected, 0.0), 0
    for step in range(20):
        size = 30.0 if step in (9, 15) else 1.0  # a gradient far beyond its history
        gradients = {k: size * rng.normal(size=x.shape) for k, x in expected.items()}
        updates, state = update({k: jnp.asarray(g, jnp.float32) for k, g in gradients.items()}, state, ours, learning_rate=0.01)
        ours = jax.tree.map(jnp.add, ours, updates)
        for k, g in gradients.items():
            first[k], second[k] = 0.9 * first[k] + 0.1 * g, 0.98 * second[k] + 0.02 * g**2
            root = np.sqrt(second[k] / (1 - 0.98 ** (step + 1)))
            rms = np.sqrt((g**2 / np.maximum(root, 1e-6) ** 2).mean())
            clipped += rms > 2
            rate = 0.01 / max(1, rms)
            expected[k] = expected[k] - rate * (
                0.1 * expected[k] * (k == "kernel") + first[k] / (1 - 0.9 ** (step + 1)) / (root + 1e-6)
            )
    assert clipped >= 4
    for k, x in expected.items():
        np.testing.assert_allclose(ours[k], x, atol=1e-5, err_msg=k)


@pytest.mark.parametrize("name", ["adamw", "adamw_bert", "stable_adamw", "lamb", "muon"])
def test_an_update_that_is_not_ok_leaves_the_state_as_it_is(name):
    optimizer = make_optimizer(OptimConfig(name=name))
    params = {"encoder": {"layer_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}}
    update = jax.jit(optimizer.update)
    state = update(params, optimizer.init(params), params, learning_rate=0.1, ok=True)[1]
    nan = jax.tree.map(lambda x: x * jnp.nan, params)
    after = update(nan, state, params, learning_rate=0.1, ok=False)[1]
    jax.tree.map(np.testing.assert_array_equal, after, state)
