"""Training steps: that they learn, and that accumulation, devices and bad batches do not change what is computed."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import BertConfig, ComputeConfig, OptimConfig, ParallelConfig
from bert_jax.model.convert import flatten
from bert_jax.model.heads import Bert
from bert_jax.training import losses, optim, parallel, steps

CFG = BertConfig(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80, max_position_embeddings=16,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
)  # fmt: skip
DROPOUT = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
L, P = 16, 4


def make_batch(rows: int, seed: int = 0, input_ids=None, masked_positions=None) -> dict[str, np.ndarray]:
    """Rows of random tokens (or those given), `masked_positions` of which are masked and to be predicted."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, CFG.vocab_size - 1, (rows, L)) if input_ids is None else input_ids
    at = np.argsort(rng.random((rows, L)), axis=1)[:, :P] if masked_positions is None else masked_positions
    masked = ids.copy()
    np.put_along_axis(masked, at, CFG.vocab_size - 1, axis=1)
    batch = {
        "input_ids": masked,
        "token_type_ids": np.zeros((rows, L)),
        "position_ids": np.tile(np.arange(L), (rows, 1)),
        "sequence_ids": np.ones((rows, L)),
        "masked_positions": at,
        "masked_ids": np.take_along_axis(ids, at, axis=1),
        "next_sentence_label": rng.integers(0, 2, rows),
    }
    batch = {name: values.astype(np.int32) for name, values in batch.items()}
    return batch | {"masked_weights": np.ones((rows, P), np.float32)}


def uneven_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """16 rows whose weights differ between rows, microbatches and devices; of eight devices, one has none."""
    batch = make_batch(16, seed)
    rng = np.random.default_rng(seed)
    batch["masked_weights"] = (rng.random((16, P)) < 0.8).astype(np.float32) * rng.uniform(0.5, 1.5, (16, P)).astype(np.float32)
    batch["masked_weights"][::4] = 0  # nearly all of one microbatch of four,
    batch["masked_weights"][0, 0] = 1
    batch["masked_weights"][6:8] = 0  # and all of the fourth device
    batch["next_sentence_label"][[1, 2, 3, 6, 7, 10]] = -1
    return batch


def sums_of(cfg: BertConfig, next_sentence: bool = True, **how):
    model = Bert(cfg, "pretraining" if next_sentence else "masked_lm", compute=ComputeConfig(**how))

    def sums(params, batch, key):
        rngs = None if key is None else {"dropout": key}
        return losses.pretraining_sums(model.apply({"params": params}, batch, key is None, rngs=rngs), batch)

    return sums


OPTIMIZERS = {
    "plain": (optim.scale_by_given_rate(), lambda step: 1.0),  # the parameters' change is the gradient
    "adamw_bert": (optim.make_optimizer(OptimConfig()), lambda step: 1e-3),
}


@cache
def initial_params() -> dict:
    model = Bert(CFG, "pretraining")
    return jax.device_get(jax.jit(model.init)(jax.random.key(0), make_batch(1))["params"])


@cache
def evaluation():
    """(params, NumPy batch) -> sums, without dropout, on one device."""
    return jax.jit(steps.make_eval_step(sums_of(CFG)))


LAYOUTS = {  # name: (devices, fsdp, tensor, pmap)
    "one": (1, 1, 1, False), "8x1x1": (8, 1, 1, False), "4x2x1": (8, 2, 1, False), "2x2x2": (8, 2, 2, False),
    "pmap": (8, 1, 1, True),
}  # fmt: skip


def devices_of(layout: str) -> parallel.Devices:
    count, fsdp, tensor, pmap = LAYOUTS[layout]
    return parallel.make_devices(ParallelConfig(strategy="pmap" if pmap else "mesh", num_devices=count, fsdp=fsdp, tensor=tensor))


def initial_state(optimizer: str, layout: str) -> steps.TrainState:
    state = jax.device_get(steps.init_state(initial_params(), OPTIMIZERS[optimizer][0]))
    return devices_of(layout).place(state)


@cache
def lowered(optimizer: str, layout: str, microbatches: int, dropout: bool, clip_norm: float | None):
    """The step as train.py has it, and a state and a batch for it."""
    devices = devices_of(layout)
    sums = sums_of(CFG.replace(**DROPOUT), scan_layers=True) if dropout else sums_of(CFG)  # a scan compiles twice as fast
    step = steps.make_train_step(sums, *OPTIMIZERS[optimizer], 7, clip_norm, microbatches, devices.axis_name)
    state = initial_state(optimizer, layout)
    return devices.jit(step, state=state), state, devices.put(uneven_batch())


@cache
def compiled(optimizer: str, layout: str, microbatches: int, dropout: bool, clip_norm: float | None):
    """(state, NumPy batch) -> (state, metrics), as train.py compiles it."""
    step, state, batch = lowered(optimizer, layout, microbatches, dropout, clip_norm)
    run, devices = step.compile(state, batch), devices_of(layout)
    return lambda state, batch: run(state, devices.put(batch))


def assert_close(a, b, **tolerance) -> None:
    a, b = flatten(jax.device_get(a)), flatten(jax.device_get(b))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], err_msg=path, **tolerance)


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def train(batches, cfg: OptimConfig, num_steps: int, dtype: str = "float32") -> tuple[dict, list[float]]:
    """Parameters and losses after steps on `batches(step)`."""
    optimizer, sums = optim.make_optimizer(cfg), sums_of(CFG, next_sentence=False, dtype=dtype)
    params = {name: initial_params()[name] for name in ("encoder", "masked_lm")}
    state = jax.jit(partial(steps.init_state, optimizer=optimizer))(params)
    step = jax.jit(steps.make_train_step(sums, optimizer, optim.make_schedule(cfg, num_steps), 0), donate_argnums=0)
    history = []
    for i in range(num_steps):
        state, metrics = step(state, batches(i))
        history.append(float(metrics["loss"]))
    assert int(state.skipped) == 0
    return state.params, history


def test_one_batch_is_learnt_by_heart() -> None:
    batch = make_batch(8)
    _, history = train(lambda step: batch, OptimConfig(name="adamw", learning_rate=5e-3, warmup_steps=10), 120)
    assert history[0] > 3
    assert history[-1] < 0.05


def pairs_batch(seed: int) -> dict[str, np.ndarray]:
    """Pairs x, 7x + 3 mod 29, of which one is masked: no sequence comes twice, so it is the rule that is learnt."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 29, (64, L // 2))
    ids = np.stack([first, (7 * first + 3) % 29], axis=-1).reshape(64, L)
    pairs = np.argsort(rng.random((64, L // 2)), axis=1)[:, :P]
    return make_batch(64, seed, ids, 2 * pairs + rng.integers(0, 2, (64, P)))


@pytest.mark.slow
def test_bfloat16_learns_along_the_curve_of_float32() -> None:
    cfg = OptimConfig(name="adamw", learning_rate=5e-3, warmup_steps=50)
    _, full = train(pairs_batch, cfg, 200)
    half_params, half = train(pairs_batch, cfg, 200, "bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(half_params)} == {"float32"}
    assert full[0] - full[-1] > 2  # there was something to learn
    smooth = [np.convolve(curve, np.ones(20) / 20, "valid") for curve in (full, half)]
    np.testing.assert_allclose(*smooth, atol=0.25)
    assert abs(smooth[0][:50] - smooth[1][:50]).max() < 0.03
    assert half != full


def test_a_language_where_neighbours_tell_the_masked_token_is_learnt() -> None:
    params, _ = train(pairs_batch, OptimConfig(name="adamw", learning_rate=5e-3, warmup_steps=50), 400)
    sums = jax.jit(steps.make_eval_step(sums_of(CFG, next_sentence=False)))(params, pairs_batch(10**6))
    assert sums["masked_lm_accuracy"].weight == 64 * P
    assert sums["masked_lm_accuracy"].mean() > 0.95


SLOW_LAYOUTS = [pytest.param(layout, marks=pytest.mark.slow) for layout in ("8x1x1", "4x2x1")]  # 2x2x2 has both in one


@pytest.mark.parametrize("layout", ["one", SLOW_LAYOUTS[0], "pmap", pytest.param("2x2x2", marks=pytest.mark.slow)])
def test_accumulation_gives_the_loss_and_gradients_of_the_whole_batch(layout: str) -> None:
    batch, microbatches = uneven_batch(), 4 if layout == "one" else 2
    whole, metrics = compiled("plain", "one", 1, False, None)(initial_state("plain", "one"), batch)
    parts, others = compiled("plain", layout, microbatches, False, None)(initial_state("plain", layout), batch)
    assert_close(whole.params, parts.params, atol=1e-5)
    assert_close(metrics, others, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(whole.params), initial_params())
    assert min(jax.tree.leaves(moved["masked_lm"])) > 1e-3  # there were gradients to compare


def test_means_of_microbatch_means_would_have_been_another_loss() -> None:
    """That the weights of the test above are uneven enough to tell."""
    batch, sums = uneven_batch(), evaluation()
    whole = sums(initial_params(), batch)
    parts = [sums(initial_params(), {name: values[m::4] for name, values in batch.items()}) for m in range(4)]
    for name in ("masked_lm_loss", "next_sentence_loss"):
        assert abs(np.mean([part[name].mean() for part in parts]) - whole[name].mean()) > 1e-2
        together = sum(part[name].total for part in parts) / sum(part[name].weight for part in parts)
        np.testing.assert_allclose(together, whole[name].mean(), rtol=1e-5)


@pytest.mark.parametrize("layout", [*SLOW_LAYOUTS, "2x2x2", "pmap"])
def test_eight_devices_train_as_one_does(layout: str) -> None:
    """Meshes with dropout too."""
    dropout = layout != "pmap"  # whose devices draw by themselves
    one, eight = initial_state("adamw_bert", "one"), initial_state("adamw_bert", layout)
    laid_out = jax.tree.map(lambda x: x.sharding, eight)
    assert not uneven_batch()["masked_weights"].reshape(8, -1).any(axis=1).all()  # one device has none
    for seed in range(3):
        one, metrics = compiled("adamw_bert", "one", 1, dropout, 1.0)(one, uneven_batch(seed))
        eight, others = compiled("adamw_bert", layout, 1, dropout, 1.0)(eight, uneven_batch(seed))
        assert_close(metrics, others, rtol=1e-5)
    assert_close(one.params, eight.params, atol=1e-5)
    assert_close(one.opt_state[0].mu, eight.opt_state[0].mu, atol=1e-6)
    same = jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim), eight, laid_out)
    assert all(jax.tree.leaves(same))
    if dropout:
        deterministic = evaluation()(initial_params(), uneven_batch())["masked_lm_loss"].mean()
        _, first = compiled("adamw_bert", "one", 1, True, 1.0)(initial_state("adamw_bert", "one"), uneven_batch())
        assert abs(float(deterministic) - float(first["masked_lm_loss"])) > 1e-3  # dropout was on


def test_devices_of_a_pmap_draw_dropout_of_their_own() -> None:
    """Equal rows on all devices: with equal masks too, the loss would be that of one device alone."""
    rows = make_batch(2)
    everywhere = {name: np.concatenate(8 * [values]) for name, values in rows.items()}

    def loss_of_all(dropout: bool) -> float:
        step = compiled("adamw_bert", "pmap", 1, dropout, 1.0)
        return float(step(initial_state("adamw_bert", "pmap"), everywhere)[1]["masked_lm_loss"])

    without = evaluation()(initial_params(), rows)["masked_lm_loss"].mean()
    assert loss_of_all(dropout=False) == pytest.approx(float(without), rel=1e-5)
    alone = lowered("adamw_bert", "one", 1, True, 1.0)[0](initial_state("adamw_bert", "one"), rows)[1]["masked_lm_loss"]
    assert abs(loss_of_all(dropout=True) - float(alone)) > 1e-3


@pytest.mark.parametrize("layout", ["one", *SLOW_LAYOUTS, "2x2x2", "pmap"])
def test_a_step_reuses_the_buffers_of_the_state(layout: str) -> None:
    before = initial_state("adamw_bert", layout)
    after, _ = compiled("adamw_bert", layout, 1, layout != "pmap", 1.0)(before, uneven_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_is_skipped_and_counted(bad: float) -> None:
    step = compiled("adamw_bert", "one", 1, True, 1.0)
    state, metrics = step(initial_state("adamw_bert", "one"), uneven_batch(0))
    assert (int(metrics["skipped_updates"]), int(metrics["skipped_in_a_row"])) == (0, 0)
    before = jax.device_get(state)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(before.opt_state))
    poisoned = uneven_batch(1)
    poisoned["masked_weights"][3, 2] = bad
    for times in (1, 2):
        state, metrics = step(state, poisoned)
        assert_same(jax.device_get(state.params), before.params)
        assert_same(jax.device_get(state.opt_state), before.opt_state)
        assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (1 + times, times, times)
        assert (int(metrics["skipped_updates"]), int(metrics["skipped_in_a_row"])) == (times, times)
        assert not np.isfinite(metrics["loss"])
    state, metrics = step(state, uneven_batch(2))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (4, 2, 0)
    assert np.isfinite(metrics["loss"])
    assert not np.array_equal(state.params["masked_lm"]["bias"], before.params["masked_lm"]["bias"])


# A model of one vector, for what does not depend on BERT.


def toy_sums(params, batch, key):
    """The loss's gradient is the mean of the rows; the noise tells which key came."""
    noise = jnp.float32(-1) if key is None else jax.random.uniform(key)
    rows = jnp.float32(len(batch["x"]))
    return {
        "toy_loss": losses.Sum(jnp.sum(batch["x"] @ params["w"]), rows),
        "noise": losses.Sum(noise * rows + 0 * params["w"].sum(), rows),
    }


def toy_state(optimizer=optim.scale_by_given_rate()) -> steps.TrainState:  # noqa: B008
    return steps.init_state({"w": jnp.ones(2)}, optimizer)


@pytest.mark.parametrize(
    ("clip_norm", "expected"), [(None, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8]), (0.5, [0.3, 0.4])]
)
def test_gradients_are_clipped_by_their_global_norm(clip_norm: float | None, expected: list[float]) -> None:
    def sums(params, batch, key):
        loss = params["a"] * batch["x"][:, 0].sum() + params["b"]["c"] * batch["x"][:, 1].sum()
        return {"toy_loss": losses.Sum(loss, jnp.float32(len(batch["x"])))}

    step = steps.make_train_step(sums, optim.scale_by_given_rate(), lambda step: 0.1, 0, clip_norm)
    state = steps.init_state({"a": jnp.float32(0), "b": {"c": jnp.float32(0)}}, optim.scale_by_given_rate())
    after, metrics = jax.jit(step)(state, {"x": np.array([[2.0, 5.0], [4.0, 3.0]], np.float32)})
    np.testing.assert_allclose(metrics["gradient_norm"], 5.0, rtol=1e-6)  # as it was before
    np.testing.assert_allclose([after.params["a"], after.params["b"]["c"]], -0.1 * np.array(expected), rtol=1e-6)


def test_a_loss_that_is_finite_with_a_gradient_that_is_not_is_skipped() -> None:
    def sums(params, batch, key):
        return {"toy_loss": losses.Sum(jnp.sqrt(batch["x"].sum() * params["w"].sum()), jnp.float32(1))}

    step = jax.jit(steps.make_train_step(sums, optim.scale_by_given_rate(), lambda step: 0.1, 0))
    state, metrics = step(toy_state(), {"x": np.zeros((1, 2), np.float32)})
    assert float(metrics["loss"]) == 0
    assert (int(state.skipped), int(state.step)) == (1, 1)
    np.testing.assert_array_equal(state.params["w"], [1, 1])


def square_sums(params, batch, key):
    """The mean of (w - x)**2 over the rows."""
    return {"square_loss": losses.Sum(jnp.sum((params["w"][None] - batch["x"]) ** 2), jnp.float32(len(batch["x"])))}


THEIRS = {  # name: (optimizer, schedule)
    "adamw": (optax.adamw(0.1), None),
    "a schedule inside": (optax.adamw(optax.linear_schedule(0.1, 0.0, 100)), None),
    "sgd with momentum": (optax.sgd(0.05, momentum=0.5), None),
    "adafactor": (optax.adafactor(0.1), None),
    "reads the loss": (optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau()), None),
    "a rate given": (optax.chain(optax.scale_by_adam(), optim.scale_by_given_rate()), lambda step: 0.1),
    "ours": (optim.make_optimizer(OptimConfig(name="adamw", weight_decay=0.0)), lambda step: 0.1),
}


@pytest.mark.parametrize("name", THEIRS)
def test_any_optax_optimizer_trains_as_optax_says_and_survives_a_bad_batch(name: str) -> None:
    """Not so once: the loss of w**2 rose with AdamW at 0.1, and one NaN stayed in Adam's moments."""
    optimizer, schedule = THEIRS[name]
    step = jax.jit(steps.make_train_step(square_sums, optimizer, schedule, 0))
    good, bad = ({"x": jnp.full((4, 2), value)} for value in (0.0, jnp.nan))
    state, history = toy_state(optimizer), []
    for batch in [good, good, bad, good, good]:
        before = state
        state, metrics = step(state, batch)
        assert ("learning_rate" in metrics) == (schedule is not None)
        if batch is bad:
            assert_same((state.params, state.opt_state), (before.params, before.opt_state))
        else:
            history.append(float(metrics["loss"]))
    assert history == sorted(history, reverse=True)
    assert len(set(history)) == 4
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (5, 1, 0)


def test_an_update_that_is_not_finite_where_loss_and_gradient_are_is_skipped_with_the_whole_state() -> None:
    def update(updates, count, params=None):
        return jax.tree.map(lambda u: jnp.where(count == 1, jnp.inf, -0.1 * u), updates), count + 1

    optimizer = optax.GradientTransformation(lambda params: jnp.int32(0), update)
    step = jax.jit(steps.make_train_step(square_sums, optimizer, None, 0))
    state, batch = toy_state(optimizer), {"x": jnp.zeros((1, 2))}
    state, _ = step(state, batch)
    after, metrics = step(state, batch)
    assert_same((after.params, after.opt_state), (state.params, state.opt_state))
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["gradient_norm"])
    assert int(after.skipped) == 1


def test_a_rate_that_the_optimizer_does_not_use_is_warned_of() -> None:
    for optimizer in (optax.adamw(0.1), optax.scale_by_adam()):
        step = steps.make_train_step(square_sums, optimizer, lambda step: 1.0, 0)
        with pytest.warns(UserWarning, match="does not use the learning rate that the step was given"):
            jax.eval_shape(step, toy_state(optimizer), {"x": jnp.zeros((1, 2))})


def test_only_names_ending_in_loss_are_trained_on_with_their_factors() -> None:
    def sums(params, batch, key):
        w = params["w"]
        one = jnp.float32(1)
        return {name: losses.Sum(w[i] * one, one) for i, name in enumerate(["a_loss", "an_accuracy"])}

    for factors, expected in (({}, 1), ({"a_loss": 3.0, "an_accuracy": 7.0}, 3)):
        step = jax.jit(steps.make_train_step(sums, optim.scale_by_given_rate(), lambda step: 1.0, 0, None, factors=factors))
        state, metrics = step(toy_state(), {"x": np.zeros((1, 2), np.float32)})
        np.testing.assert_array_equal(state.params["w"], [1 - expected, 1])
        assert float(metrics["loss"]) == expected
        assert float(metrics["a_loss"]) == float(metrics["an_accuracy"]) == 1


def test_dropout_keys_follow_seed_step_and_microbatch() -> None:
    def noises(seed: int, start: int, microbatches: int) -> list[float]:
        step = jax.jit(steps.make_train_step(toy_sums, optim.scale_by_given_rate(), lambda step: 0.1, seed, None, microbatches))
        state, seen = toy_state()._replace(step=jnp.int32(start)), []
        for _ in range(3):
            state, metrics = step(state, {"x": np.ones((4, 2), np.float32)})
            seen.append(float(metrics["noise"]))
        return seen

    first = noises(seed=0, start=0, microbatches=1)
    assert first == noises(seed=0, start=0, microbatches=1)
    assert first[1:] == noises(seed=0, start=1, microbatches=1)[:2]  # a resumed run draws what the first one drew
    assert len({*first, *noises(seed=1, start=0, microbatches=1)}) == 6
    for once, twice in zip(first, noises(seed=0, start=0, microbatches=2), strict=True):
        assert abs(once - twice) > 1e-3  # the mean of two draws: had both the same key, it would be the one draw


def test_the_learning_rate_is_the_schedules_at_the_step_that_is_taken() -> None:
    step = jax.jit(steps.make_train_step(toy_sums, optim.scale_by_given_rate(), lambda step: 0.25 * step, 0, None))
    state = toy_state()
    for number in range(3):
        before = np.asarray(state.params["w"])
        state, metrics = step(state, {"x": np.ones((4, 2), np.float32)})
        assert float(metrics["learning_rate"]) == 0.25 * number
        np.testing.assert_allclose(state.params["w"], before - 0.25 * number)


def test_an_update_takes_its_learning_rate_and_key_from_the_caller_as_a_step_does_from_schedule_and_seed() -> None:
    update = jax.jit(steps.make_update(toy_sums, optim.scale_by_given_rate(), None, 2))
    step = jax.jit(steps.make_train_step(toy_sums, optim.scale_by_given_rate(), lambda step: 0.25 * (step + 1), 5, None, 2))
    batch = {"x": np.arange(8, dtype=np.float32).reshape(4, 2)}
    ours = theirs = toy_state()
    for number in range(3):
        key = jax.random.fold_in(jax.random.key(5), number)
        ours, metrics = update(ours, batch, jnp.float32(0.25 * (number + 1)), key)
        theirs, others = step(theirs, batch)
        assert_same((ours, metrics), (theirs, others))
    several = jax.vmap(update, (None, None, 0, None))(toy_state(), batch, jnp.array([0.0, 0.5]), jax.random.key(0))[0]
    np.testing.assert_allclose(several.params["w"], [[1, 1], 1 - 0.5 * batch["x"].mean(axis=0)])


def test_a_batch_without_weight_changes_nothing_and_is_finite() -> None:
    batch = uneven_batch()
    batch["masked_weights"][:] = 0
    batch["next_sentence_label"][:] = -1
    state, metrics = compiled("plain", "one", 1, False, None)(initial_state("plain", "one"), batch)
    assert_same(jax.device_get(state.params), initial_params())
    assert float(metrics["loss"]) == 0
    assert int(state.skipped) == 0


def test_evaluation_has_no_dropout() -> None:
    batch = uneven_batch()
    others = jax.jit(steps.make_eval_step(sums_of(CFG.replace(**DROPOUT))))
    assert_same(*jax.device_get([run(initial_params(), batch) for run in (evaluation(), others)]))
    toy = steps.make_eval_step(toy_sums)({"w": jnp.ones(2)}, {"x": jnp.ones((4, 2))})
    assert float(toy["noise"].mean()) == -1  # no key came


def test_the_weights_are_had_without_a_second_forward_pass() -> None:
    """The step has as many products as the gradient alone."""

    def products(function, *args) -> int:
        return jax.jit(function).lower(*args).as_text().count("stablehlo.dot_general")

    state, batch = jax.eval_shape(lambda: steps.init_state(initial_params(), optim.scale_by_given_rate())), uneven_batch()
    step = steps.make_train_step(sums_of(CFG), optim.scale_by_given_rate(), lambda step: 1.0, 7, None)

    def gradient(params, batch):
        sums = sums_of(CFG)(params, batch, jax.random.key(0))
        return sums["masked_lm_loss"].mean() + sums["next_sentence_loss"].mean()

    assert products(step, state, batch) == products(jax.grad(gradient), state.params, batch) > 30
