"""The model: against a plain-NumPy BERT, and what must hold of padding, packing, scan, remat, bf16, dropout, initialisation.

`PYTHONPATH=. python tests/test_model.py > tests/param_tree.txt` writes the parameter tree anew; do that only where it is to
change, for published checkpoints and saved runs depend on it.
"""

import math
from functools import cache, partial
from pathlib import Path

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import InputError
from bert_jax.model.attention import Tokens
from bert_jax.model.config import PRESETS, BertConfig, ComputeConfig
from bert_jax.model.convert import flatten, unflatten
from bert_jax.model.encoder import Embeddings, Encoder, EncoderLayer
from bert_jax.model.heads import Bert, complete
from bert_jax.model.layers import ACTIVATIONS, affine, dropout, threefry, tied_logits
from bert_jax.training.losses import pretraining_sums

# Sizes with no common products, so that an array's number of elements tells what it is: 61 is prime.
CFG = BertConfig(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80,
    max_position_embeddings=24, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2,
)  # fmt: skip
B, L, P, V = 3, 16, 4, CFG.vocab_size
LENGTHS = [[7, 5], [16], [9]]  # of the sequences in each row; the rest of a row is padding


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Packed and padded rows, with their prediction slots at real positions."""
    rng = np.random.default_rng(seed)
    sequence_ids, position_ids = np.zeros((2, B, L), np.int32)
    for row, lengths in enumerate(LENGTHS):
        begin = 0
        for number, length in enumerate(lengths, start=1):
            sequence_ids[row, begin : begin + length] = number
            position_ids[row, begin : begin + length] = np.arange(length)
            begin += length
    real = sequence_ids > 0
    return {
        "input_ids": np.where(real, rng.integers(1, V, (B, L)), 0).astype(np.int32),
        "token_type_ids": np.where(real, rng.integers(0, 2, (B, L)), 0).astype(np.int32),
        "position_ids": position_ids,
        "sequence_ids": sequence_ids,
        "masked_positions": np.stack([rng.choice(np.flatnonzero(r), P, replace=False) for r in real]).astype(np.int32),
        "masked_ids": rng.integers(1, V, (B, P)).astype(np.int32),
        "masked_weights": rng.integers(0, 2, (B, P)).astype(np.float32),
        "next_sentence_label": rng.integers(0, 2, B).astype(np.int32),
    }


def shapes(cfg: BertConfig = CFG, **how) -> dict:
    """Shapes and dtypes of the parameters with every head."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda: pretrained_bert(cfg, **how).init(key, make_batch()))["params"]


def pretrained_bert(cfg: BertConfig = CFG, **how) -> Bert:
    """A model with every head, computed as fields of ComputeConfig say."""
    return Bert(cfg, "pretraining", compute=ComputeConfig(**how))


@cache
def params() -> dict:
    """Parameters far from their small initial values, biases and scales too, so that a slip anywhere shows."""
    rng = np.random.default_rng(1)
    spread = {"kernel": 0.2, "embedding": 0.2, "bias": 0.2, "scale": 0.2}
    flat = {}
    for path, leaf in flatten(shapes()).items():
        kind = path.rsplit("/", 1)[1]
        flat[path] = (rng.normal(0, spread[kind], leaf.shape) + (kind == "scale")).astype(np.float32)
    return unflatten(flat)


def changed(new: dict[str, float]) -> dict:
    """The parameters with the arrays at some paths filled with one value."""
    flat = flatten(params())
    assert set(new) <= set(flat)
    return unflatten(flat | {path: np.full_like(flat[path], value) for path, value in new.items()})


KEYS = [jax.random.key(seed, impl="unsafe_rbg") for seed in (0, 1)]  # compile faster than threefry's
ENCODER_INPUTS = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")


def forward(cfg: BertConfig, params, batch, key=None, **how) -> dict:
    """All that the model and its encoder return."""
    rngs = None if key is None else {"dropout": key}
    model, encoder = pretrained_bert(cfg, **how), Encoder(cfg, ComputeConfig(**how))
    outputs = model.apply({"params": params}, batch, key is None, rngs=rngs)
    encoder_inputs = [batch[name] for name in ENCODER_INPUTS]
    return outputs | encoder.apply({"params": params["encoder"]}, *encoder_inputs, key is None, True, True, rngs=rngs)


@cache
def compiled(changes=(), **how):
    return jax.jit(partial(forward, CFG.replace(**dict(changes)), **how))


def pretraining_loss(cfg: BertConfig, params, batch, key=None, **how):
    rngs = None if key is None else {"dropout": key}
    outputs = pretrained_bert(cfg, **how).apply({"params": params}, batch, key is None, rngs=rngs)
    sums = pretraining_sums(outputs, batch)
    return sums["masked_lm_loss"].mean() + sums["next_sentence_loss"].mean()


# A BERT in plain NumPy, float64, after Devlin et al. (2018) and google-research/bert's modeling.py. No masks: each sequence
# attends within itself because it is computed by itself.


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


NUMPY_ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}
for name in ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"):
    NUMPY_ACTIVATIONS[name] = NUMPY_ACTIVATIONS["gelu_new"]
NUMPY_ACTIVATIONS["gelu_python"] = NUMPY_ACTIVATIONS["gelu"]
NUMPY_ACTIVATIONS["gelu_10"] = lambda x: np.clip(NUMPY_ACTIVATIONS["gelu"](x), -10, 10)
NUMPY_ACTIVATIONS["silu"] = NUMPY_ACTIVATIONS["swish"] = lambda x: x / (1 + np.exp(-x))
NUMPY_ACTIVATIONS["quick_gelu"] = lambda x: x / (1 + np.exp(-1.702 * x))


def numpy_bert(params: dict, batch: dict, act: str) -> dict:
    p = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    heads, size = CFG.num_attention_heads, CFG.hidden_size // CFG.num_attention_heads

    def dense(x, name):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def norm(x, name):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-12) * p[f"{name}/scale"] + p[f"{name}/bias"]

    hidden = np.zeros((CFG.num_hidden_layers + 1, B, L, CFG.hidden_size))
    attentions = np.zeros((CFG.num_hidden_layers, B, heads, L, L))
    for b in range(B):
        for number in np.unique(batch["sequence_ids"][b]):
            at = np.flatnonzero(batch["sequence_ids"][b] == number)
            e = "encoder/embeddings"
            x = p[f"{e}/word_embeddings/embedding"][batch["input_ids"][b, at]]
            x = x + p[f"{e}/position_embeddings/embedding"][batch["position_ids"][b, at]]
            x = x + p[f"{e}/token_type_embeddings/embedding"][batch["token_type_ids"][b, at]]
            x = hidden[0, b, at] = norm(x, f"{e}/norm")
            for i in range(CFG.num_hidden_layers):
                layer = f"encoder/layer_{i}"
                q, k, v = (dense(x, f"{layer}/attention/{n}") for n in ("query", "key", "value"))
                mixed = []
                for h in range(heads):
                    cols = slice(h * size, (h + 1) * size)
                    scores = np.exp(q[:, cols] @ k[:, cols].T / math.sqrt(size))
                    weights = scores / scores.sum(-1, keepdims=True)
                    attentions[i, b, h][np.ix_(at, at)] = weights
                    mixed.append(weights @ v[:, cols])
                x = norm(x + dense(np.concatenate(mixed, -1), f"{layer}/attention/output"), f"{layer}/attention_norm")
                wide = NUMPY_ACTIVATIONS[act](dense(x, f"{layer}/mlp/intermediate"))
                x = hidden[i + 1, b, at] = norm(x + dense(wide, f"{layer}/mlp/output"), f"{layer}/mlp_norm")
    picked = np.stack([hidden[-1, b, batch["masked_positions"][b]] for b in range(B)])
    transformed = norm(NUMPY_ACTIVATIONS[act](dense(picked, "masked_lm/dense")), "masked_lm/norm")
    table = p["encoder/embeddings/word_embeddings/embedding"]
    pooled = np.tanh(dense(hidden[-1][:, 0], "pooler/dense"))
    return {
        "hidden_states": hidden,
        "attentions": attentions,
        "masked_lm_logits": transformed @ table.T + p["masked_lm/bias"],
        "next_sentence_logits": dense(pooled, "next_sentence"),
    }


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_outputs_equal_those_of_a_plain_numpy_bert(act: str) -> None:
    batch = make_batch()
    ours, theirs = compiled((("hidden_act", act),))(params(), batch), numpy_bert(params(), batch, act)
    real = batch["sequence_ids"] > 0
    for mine, golden in zip(ours["hidden_states"], theirs["hidden_states"], strict=True):
        np.testing.assert_allclose(mine[real], golden[real], atol=1e-5, rtol=0)
    for mine, golden in zip(ours["attentions"], theirs["attentions"], strict=True):
        np.testing.assert_allclose(mine, golden, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(ours["last_hidden_state"], ours["hidden_states"][-1])
    for name in ("masked_lm_logits", "next_sentence_logits"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_formulas_they_are_named_for(name: str) -> None:
    x = np.linspace(-8, 8, 641, dtype=np.float32)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), NUMPY_ACTIVATIONS[name](x.astype(np.float64)), atol=1e-6)


def test_the_clipped_activation_is_clipped() -> None:
    assert ACTIVATIONS["gelu_10"](jnp.array([9.5, 12.0, -12.0])).tolist() == [9.5, 10.0, 0.0]


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(InputError, match="hidden_act='mish'"):
        CFG.replace(hidden_act="mish")


def test_what_stands_at_padding_does_not_change_outputs_at_real_positions() -> None:
    batch = make_batch()
    padding = batch["sequence_ids"] == 0
    other = dict(batch)
    for name, limit in (("input_ids", V), ("token_type_ids", 2), ("position_ids", L)):
        noise = np.random.default_rng(5).integers(0, limit, (B, L))
        other[name] = np.where(padding, noise, batch[name]).astype(np.int32)
    a, b = (compiled()(params(), x) for x in (batch, other))
    assert not np.array_equal(a["last_hidden_state"], b["last_hidden_state"])  # the noise was there
    np.testing.assert_array_equal(a["last_hidden_state"][~padding], b["last_hidden_state"][~padding])
    np.testing.assert_array_equal(a["masked_lm_logits"], b["masked_lm_logits"])
    np.testing.assert_array_equal(a["next_sentence_logits"], b["next_sentence_logits"])


def test_more_columns_of_padding_do_not_change_outputs_at_real_positions() -> None:
    batch = make_batch()
    wider = batch | {name: np.pad(batch[name], ((0, 0), (0, 8))) for name in ENCODER_INPUTS}
    a, b = (compiled()(params(), x) for x in (batch, wider))
    real = batch["sequence_ids"] > 0
    np.testing.assert_allclose(a["last_hidden_state"][real], b["last_hidden_state"][:, :L][real], atol=2e-6)
    np.testing.assert_allclose(a["masked_lm_logits"], b["masked_lm_logits"], atol=5e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(b))


def test_examples_packed_in_a_row_give_what_they_give_apart() -> None:
    batch = make_batch()
    first, second = LENGTHS[0]
    batch["masked_positions"][0] = [1, 6, 8, 11]  # two slots in each example
    apart = {name: np.zeros_like(values) for name, values in batch.items()}
    for name in ENCODER_INPUTS:
        apart[name][0, :first] = batch[name][0, :first]
        apart[name][1, :second] = batch[name][0, first : first + second]
    apart["masked_positions"][:2, :2] = [[1, 6], [8 - first, 11 - first]]
    a, b = (compiled()(params(), x) for x in (batch, apart))
    hidden = np.concatenate([b["last_hidden_state"][0, :first], b["last_hidden_state"][1, :second]])
    np.testing.assert_allclose(a["last_hidden_state"][0, : first + second], hidden, atol=2e-6)
    logits = np.concatenate([b["masked_lm_logits"][0, :2], b["masked_lm_logits"][1, :2]])
    np.testing.assert_allclose(a["masked_lm_logits"][0], logits, atol=5e-6)


@cache
def test_choices_packed_in_rows_have_the_logits_that_they_have_apart() -> None:
    """Two examples of three choices: [2, 3, 12], or the six in three rows of 24, with their first tokens' places."""
    rng, cfg = np.random.default_rng(0), CFG.replace(num_hidden_layers=1)
    module, sizes = Bert(cfg, "multiple_choice"), np.array([[12, 5, 7], [9, 3, 11]])
    there = np.arange(12) < sizes[..., None]
    apart = {
        "input_ids": np.where(there, rng.integers(1, V, there.shape), 0),
        "token_type_ids": rng.integers(0, 2, there.shape) * there,
        "attention_mask": there.astype(int),
    }
    rows, firsts = [[(0, 0), (1, 2)], [(0, 1), (0, 2), (1, 1)], [(1, 0)]], np.zeros((3, 4), int)
    packed = {name: np.zeros((3, 24), int) for name in ("input_ids", "token_type_ids", "position_ids", "sequence_ids")}
    for row, chosen in enumerate(rows):
        at = 0
        for slot, (example, choice) in enumerate(chosen):
            size = sizes[example, choice]
            for name in ("input_ids", "token_type_ids"):
                packed[name][row, at : at + size] = apart[name][example, choice, :size]
            packed["position_ids"][row, at : at + size] = np.arange(size)
            packed["sequence_ids"][row, at : at + size] = slot + 1
            firsts[row, slot] = at
            at += size
    leaves = jax.eval_shape(lambda: module.init(jax.random.key(0), apart))["params"]
    random = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), leaves)
    logits = jax.jit(module.apply)({"params": random}, apart)["logits"]
    found = jax.jit(module.apply)({"params": random}, packed | {"cls_positions": firsts})["logits"]
    assert (logits.shape, found.shape) == ((2, 3), (3, 4))
    assert np.ptp(logits) > 0.1
    for row, chosen in enumerate(rows):
        np.testing.assert_allclose(found[row, : len(chosen)], [logits[where] for where in chosen], atol=1e-5)


def outputs_and_gradients(dropped: bool, **how):
    """Of one batch: loss, hidden states, attentions, and the loss's gradients by parameter."""

    def loss(params, batch, key):
        rngs = None if key is None else {"dropout": key}
        outputs = pretrained_bert(**how).apply({"params": params}, batch, key is None, rngs=rngs)
        sums = pretraining_sums(outputs, batch)
        return sums["masked_lm_loss"].mean() + sums["next_sentence_loss"].mean(), outputs

    quickly = {"xla_backend_optimization_level": 0}  # compiled in half the time
    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=quickly)
    return jax.device_get(run(params(), make_batch(), KEYS[0] if dropped else None))


HOW = [dict(scan_layers=True), dict(remat="full"), dict(remat="dots"), dict(scan_layers=True, remat="full")]


@pytest.mark.parametrize("how", [HOW[0], HOW[2]], ids=lambda how: "+".join(how))
def test_scan_and_remat_change_neither_outputs_nor_gradients_under_dropout(how: dict) -> None:
    plain, other = outputs_and_gradients(True), outputs_and_gradients(True, **how)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), other, plain)


def test_scan_and_remat_change_neither_outputs_nor_gradients_without_dropout() -> None:
    plain, other = outputs_and_gradients(False), outputs_and_gradients(False, **HOW[1])
    assert abs(plain[0][0] - outputs_and_gradients(True)[0][0]) > 1e-3  # there, dropout was on
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), other, plain)


def test_a_scan_gives_the_same_hidden_states_and_attentions() -> None:
    batch = make_batch()
    plain, scanned = compiled()(params(), batch), compiled(scan_layers=True)(params(), batch)
    assert type(scanned["attentions"]) is tuple
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), scanned, plain)


@pytest.mark.parametrize("how", HOW, ids=lambda how: "+".join(how))
def test_scan_and_remat_are_really_used(how: dict) -> None:
    def scanned_and_recomputed(**how) -> tuple[bool, bool]:
        """Whether there is a scan, and whether products are computed again (what GELU and LayerNorm compute always is)."""
        found = equations(partial(pretraining_loss, CFG, **how), params(), make_batch())
        again = [eqn for eqn in found if eqn.primitive.name in ("remat2", "checkpoint")]
        assert again
        inner = (e.primitive.name for eqn in again for e in equations_of(eqn.params["jaxpr"]))
        return any(eqn.primitive.name == "scan" for eqn in found), "dot_general" in inner

    assert scanned_and_recomputed() == (False, False)
    assert scanned_and_recomputed(**how) == (how.get("scan_layers", False), "remat" in how)


def equations(function, *args) -> list:
    """Every equation in the jaxpr of function(*args), those of inner jaxprs too."""
    return list(equations_of(jax.make_jaxpr(function)(*args).jaxpr))


def equations_of(jaxpr):
    def is_jaxpr(x) -> bool:
        return isinstance(x, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr))

    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from equations_of(inner)


def arrays_of_all_logits(function, *args) -> list:
    """Arrays in the jaxpr of `function` whose number of elements is a multiple of B*L*V."""
    arrays = [v.aval for eqn in equations(function, *args) for v in (*eqn.invars, *eqn.outvars)]
    return [a for a in arrays if getattr(a, "size", 0) and a.size % (B * L * V) == 0]


def test_no_array_of_all_positions_by_all_tokens_is_made() -> None:
    key = jax.random.key(0)
    step = jax.value_and_grad(partial(pretraining_loss, CFG))
    assert arrays_of_all_logits(step, params(), make_batch(), key) == []
    scanned = jax.value_and_grad(partial(pretraining_loss, CFG, scan_layers=True, remat="full"))
    assert arrays_of_all_logits(scanned, params(), make_batch(), key) == []


def test_the_test_for_such_an_array_would_see_one() -> None:
    def all_logits(params, batch):
        encoder_inputs = [batch[name] for name in ENCODER_INPUTS]
        hidden = Encoder(CFG).apply({"params": params["encoder"]}, *encoder_inputs)["last_hidden_state"]
        table = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        return (hidden @ table.T).sum()

    def hidden_in_a_scan(params, batch):
        return jax.lax.scan(lambda total, _: (total + jax.jit(all_logits)(params, batch), None), 0.0, None, length=2)[0]

    assert arrays_of_all_logits(all_logits, params(), make_batch())
    assert arrays_of_all_logits(jax.grad(jax.checkpoint(hidden_in_a_scan)), params(), make_batch())


def test_bfloat16_is_close_to_float32_and_really_used() -> None:
    exact, rough = (compiled(dtype=dtype)(params(), make_batch()) for dtype in ("float32", "bfloat16"))
    real = make_batch()["sequence_ids"] > 0
    assert rough["last_hidden_state"].dtype == jnp.bfloat16
    hidden = np.asarray(rough["last_hidden_state"], np.float32)[real] - exact["last_hidden_state"][real]
    assert 1e-4 < np.abs(hidden).max() < 0.15  # values are of order 1; bfloat16 has 8 bits
    assert np.abs(hidden).mean() < 0.02
    for name in ("masked_lm_logits", "next_sentence_logits"):
        assert rough[name].dtype == jnp.float32
        error = np.abs(rough[name] - exact[name]).mean() / np.abs(exact[name]).mean()
        assert 1e-4 < error < 0.04


def test_under_bfloat16_products_are_rough_and_softmax_norms_losses_gradients_are_float32() -> None:
    loss = partial(pretraining_loss, CFG, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(dtype="bfloat16"))} == {jnp.dtype("float32")}
    grads = jax.eval_shape(jax.grad(loss), params(), make_batch())
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    found = {}
    for eqn in equations(loss, params(), make_batch(), jax.random.key(0)):
        kinds = {str(v.aval.dtype) for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)}
        found[eqn.primitive.name] = found.get(eqn.primitive.name, set()) | kinds
    assert found["dot_general"] == {"bfloat16"}
    for name in ("exp", "log", "rsqrt", "reduce_sum", "reduce_max", "erf"):
        assert found[name] == {"float32"}, name


@cache
def initial() -> dict[str, np.ndarray]:
    """Freshly initialised parameters by path."""
    model = Bert(CFG, "pretraining")
    return flatten(jax.device_get(jax.jit(model.init)(jax.random.key(0), make_batch())["params"]))


def test_weights_start_from_a_truncated_normal_of_deviation_0_0176() -> None:
    weights = {path: w for path, w in initial().items() if path.endswith(("/kernel", "/embedding"))}
    assert len(weights) == 3 + 6 * CFG.num_hidden_layers + 3
    deviation = 0.02 * 0.87963  # of a standard normal cut at two
    for path, w in weights.items():
        assert np.abs(w).max() <= 0.04, path
        # five times the sampling error (the cut distribution's kurtosis is 2.37)
        assert abs(w.std() / deviation - 1) < 5 * math.sqrt((2.37 - 1) / 4 / w.size), path
        assert abs(w.mean()) < 5 * deviation / math.sqrt(w.size), path
    everything = np.concatenate([w.ravel() for w in weights.values()])
    assert everything.size > 15_000
    assert abs(everything.std() / deviation - 1) < 0.015
    assert np.abs(everything).max() > 0.0395


def test_biases_start_at_zero_and_scales_at_one() -> None:
    rest = {path: w for path, w in initial().items() if not path.endswith(("/kernel", "/embedding"))}
    assert {path.rsplit("/", 1)[1] for path in rest} == {"bias", "scale"}
    for path, w in rest.items():
        np.testing.assert_array_equal(w, 1.0 if path.endswith("/scale") else 0.0, err_msg=path)


def test_no_two_weights_start_from_the_same_draws() -> None:
    beginnings = [tuple(w.ravel()[:8]) for path, w in initial().items() if path.endswith(("/kernel", "/embedding"))]
    assert len(set(beginnings)) == len(beginnings)


@pytest.mark.parametrize("shape", [(64, 512), (64, 511)])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_scales_up_the_rest(shape: tuple[int, ...], rate: float) -> None:
    x = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    y = np.asarray(dropout(jnp.asarray(x), rate, jax.random.key(0)))
    kept = y != 0
    assert abs((~kept).mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=2e-5)  # the rate is a multiple of 1/65536
    assert abs(y.mean() / x.mean() - 1) < 5 * math.sqrt(rate / (1 - rate) / x.size) * 1.05
    for axis in (0, 1):  # neighbours, which share a draw, are dropped independently
        a, b = kept.take(range(kept.shape[axis] - 1), axis), kept.take(range(1, kept.shape[axis]), axis)
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)


def test_the_mean_of_dropout_is_its_input() -> None:
    x = jnp.linspace(-1, 1, 7)
    many = jax.vmap(lambda key: dropout(x, 0.3, key))(jax.random.split(jax.random.key(1), 20_000))
    np.testing.assert_allclose(many.mean(0), x, atol=5 * math.sqrt(0.3 / 0.7 / 20_000))


def test_dropout_is_a_function_of_its_key_and_the_identity_without_one() -> None:
    x = jnp.ones((8, 32), jnp.bfloat16)
    a, again, b = (dropout(x, 0.5, jax.random.key(seed)) for seed in (0, 0, 1))
    assert a.dtype == jnp.bfloat16
    np.testing.assert_array_equal(a, again)
    assert not np.array_equal(a, b)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_gradients_pass_where_values_pass() -> None:
    x = jnp.full((4, 64), 3.0)
    y, pull = jax.vjp(lambda x: dropout(x, 0.25, jax.random.key(0)), x)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], y / 3.0, rtol=1e-6)


OFF = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def test_dropout_follows_the_key_and_deterministic_has_none() -> None:
    batch, run = make_batch(), compiled()
    a, again, b = (run(params(), batch, KEYS[seed]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a["masked_lm_logits"], again["masked_lm_logits"])
    assert not np.allclose(a["masked_lm_logits"], b["masked_lm_logits"], atol=1e-2)
    without = compiled(tuple(OFF.items()))
    np.testing.assert_array_equal(run(params(), batch)["masked_lm_logits"], without(params(), batch)["masked_lm_logits"])
    keyed = without(params(), batch, KEYS[0])  # rates of 0: a key changes nothing
    np.testing.assert_array_equal(keyed["masked_lm_logits"], without(params(), batch)["masked_lm_logits"])


# What makes the other places of a layer idle: a sublayer that puts out zeros has nothing to drop.
PLACES = {
    "attention probabilities": (dict(attention_probs_dropout_prob=0.5), {}),
    "attention output": (dict(hidden_dropout_prob=0.5), {"mlp/output/kernel": 0, "mlp/output/bias": 0}),
    "feed-forward output": (dict(hidden_dropout_prob=0.5), {"attention/output/kernel": 0, "attention/output/bias": 0}),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_layer_has_dropout_at(place: str) -> None:
    rates, idle = PLACES[place]
    layer = EncoderLayer(CFG.replace(**(OFF | rates)))
    weights = changed({f"encoder/layer_0/{path}": value for path, value in idle.items()})["encoder"]["layer_0"]
    x = np.broadcast_to(np.random.default_rng(0).normal(size=(1, L, CFG.hidden_size)), (2, L, CFG.hidden_size))
    ids = np.ones((2, L), np.int32)

    @partial(jax.jit, static_argnums=0)
    def run(deterministic: bool):
        return layer.apply(
            {"params": weights}, jnp.asarray(x, jnp.float32), Tokens(ids), deterministic, rngs={"dropout": KEYS[0]}
        )[0]

    without, dropped = np.asarray(run(True)), np.asarray(run(False))
    assert np.abs(dropped - without).mean() > 1e-2
    assert np.abs(dropped[0] - dropped[1]).mean() > 1e-2  # equal rows are dropped differently
    np.testing.assert_array_equal(without[0], without[1])


def test_the_embeddings_have_dropout() -> None:
    def share_of_zeros(rates: dict[str, float]) -> float:
        cfg, batch = CFG.replace(**(OFF | rates)), make_batch()
        inputs = [batch[name] for name in ENCODER_INPUTS]
        run = jax.jit(partial(Embeddings(cfg).apply, deterministic=False))
        out = run({"params": params()["encoder"]["embeddings"]}, *inputs, rngs={"dropout": KEYS[0]})
        return float(np.mean(np.asarray(out) == 0))

    assert abs(share_of_zeros(dict(hidden_dropout_prob=0.5)) - 0.5) < 5 * 0.5 / math.sqrt(B * L * CFG.hidden_size)
    assert share_of_zeros(dict(attention_probs_dropout_prob=0.5)) == 0


def test_there_is_no_dropout_elsewhere() -> None:
    """One draw for the embeddings, three a layer; none in the feed-forward, the pooler or the heads."""
    drawn = masks(equations(partial(pretraining_loss, CFG), params(), make_batch(), jax.random.key(0)))
    hidden, probabilities = (B, L, CFG.hidden_size), (B, CFG.num_attention_heads, L, L)
    assert sorted(drawn) == sorted([hidden] + CFG.num_hidden_layers * [hidden, hidden, probabilities])
    assert masks(equations(partial(pretraining_loss, CFG), params(), make_batch())) == []


def masks(found: list) -> list[tuple[int, ...]]:
    """Shapes of dropout's masks, which are put together of four parts."""
    parts = [eqn for eqn in found if eqn.primitive.name == "concatenate" and eqn.outvars[0].aval.dtype == bool]
    assert all(len(eqn.invars) == 4 for eqn in parts)
    return [eqn.outvars[0].aval.shape for eqn in parts]


# Key, counts and words of Random123's known answers (kat_vectors, threefry2x32 20).
PI = (0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)
KNOWN = [((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)), ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)), PI]


@pytest.mark.parametrize("key, counts, words", KNOWN)
def test_threefry_gives_the_known_answers(key: tuple, counts: tuple, words: tuple) -> None:
    low, high = (jnp.array([count], jnp.uint32) for count in counts)
    assert tuple(int(word[0]) for word in threefry(jnp.array(key, jnp.uint32), low, high)) == words


@pytest.mark.parametrize("shape", [(7,), (3, 10), (2, 3, 5, 16), (256, 256)])
def test_dropout_zeroes_its_share_of_each_row_and_scales_up_the_rest(shape: tuple[int, ...]) -> None:
    x = jnp.ones(shape)
    dropped = np.asarray(jax.jit(dropout, static_argnums=1)(x, 0.25, jax.random.key(3)))
    assert set(np.unique(dropped)) <= {0.0, np.float32(4 / 3)}
    other = np.asarray(dropout(x, 0.25, jax.random.key(4)))
    if x.size > 1000:
        share = 0.25 * 0.75
        assert abs((dropped == 0).mean() - 0.25) < 5 * (share / x.size) ** 0.5
        for axis in (0, 1):  # no row and no column has a mask of its own kind, or that of another
            assert np.abs((dropped == 0).mean(axis) - 0.25).max() < 5 * (share / shape[axis]) ** 0.5
        same = [np.mean(dropped[1:] == dropped[:-1]), np.mean(dropped[:, 1:] == dropped[:, :-1]), np.mean(dropped == other)]
        same += [np.mean(dropped[:, k:] == dropped[:, :-k]) for k in (2, 64, 128, 192)]  # words of a block are 64 columns apart
        assert np.abs(np.array(same) - (0.75**2 + 0.25**2)).max() < 0.02
        blocks = np.asarray(dropout(jnp.ones((4, *shape)), 0.25, jax.random.key(3))) == 0
        same = [np.mean(blocks[:, 1:, :-1] == blocks[:, :-1, 1:]), np.mean(blocks[1:] == blocks[:-1])]
        assert np.abs(np.array(same) - (0.75**2 + 0.25**2)).max() < 0.02
    first = np.asarray(dropout(x[: len(x) // 2], 0.25, jax.random.key(3)))
    if x.ndim > 1:  # a mask is that of the row's place, however many rows there are
        np.testing.assert_array_equal(first, dropped[: len(x) // 2])


def test_hidden_states_and_attentions_come_on_request() -> None:
    batch = make_batch()
    encoder_inputs = [batch[name] for name in ENCODER_INPUTS]
    plain = jax.eval_shape(Encoder(CFG).apply, {"params": params()["encoder"]}, *encoder_inputs)
    assert set(plain) == {"last_hidden_state"}
    for scan_layers in (False, True):
        outputs = jax.eval_shape(partial(forward, CFG, scan_layers=scan_layers), params(), batch)
        assert [a.shape for a in outputs["hidden_states"]] == (CFG.num_hidden_layers + 1) * [(B, L, CFG.hidden_size)]
        assert [a.shape for a in outputs["attentions"]] == CFG.num_hidden_layers * [(B, CFG.num_attention_heads, L, L)]


def test_attention_sums_to_one_and_is_zero_across_sequences() -> None:
    batch = make_batch()
    same = batch["sequence_ids"][:, :, None] == batch["sequence_ids"][:, None, :]
    for weights in compiled()(params(), batch)["attentions"]:
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
        assert np.all(np.asarray(weights).transpose(0, 2, 3, 1)[~same] == 0)
        assert np.all(np.asarray(weights).transpose(0, 2, 3, 1)[same] > 0)


def param_tree() -> str:
    """Path, shape and dtype of every parameter of a small model with every head, sorted."""
    leaves = flatten(shapes()).items()
    return "".join(f"{path} {'x'.join(map(str, leaf.shape))} {leaf.dtype}\n" for path, leaf in sorted(leaves))


def test_the_parameter_tree_is_the_one_on_file() -> None:
    assert param_tree() == (Path(__file__).parent / "param_tree.txt").read_text()


@pytest.mark.parametrize("how", [*HOW, dict(dtype="bfloat16")], ids=lambda how: "+".join(how))
def test_the_parameter_tree_does_not_depend_on_how_the_model_is_computed(how: dict) -> None:
    assert shapes(**how) == shapes()


def test_pooler_and_next_sentence_head_exist_only_where_asked_for() -> None:
    tree = jax.eval_shape(Bert(CFG).init, jax.random.key(0), make_batch())["params"]
    assert set(tree) == {"encoder", "masked_lm"}
    assert set(shapes()) == {"encoder", "masked_lm", "pooler", "next_sentence"}


# google-research/bert, README ("smaller BERT models"): layers, hidden size, and millions of parameters in its table.
PUBLISHED = {
    "tiny": (2, 128, 4.4), "mini": (4, 256, 11.3), "small": (4, 512, 29.1), "medium": (8, 512, 41.7), "base": (12, 768, 110.1),
    "large": (24, 1024, 336.2),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_sizes(name: str) -> None:
    layers, hidden, millions = PUBLISHED[name]
    cfg = BertConfig.preset(name)
    assert (cfg.num_hidden_layers, cfg.hidden_size) == (layers, hidden)
    assert (cfg.num_attention_heads, cfg.intermediate_size) == (hidden // 64, 4 * hidden)
    assert (cfg.vocab_size, cfg.max_position_embeddings, cfg.type_vocab_size) == (30522, 512, 2)
    assert (cfg.hidden_act, cfg.layer_norm_eps, cfg.initializer_range) == ("gelu", 1e-12, 0.02)
    assert (cfg.hidden_dropout_prob, cfg.attention_probs_dropout_prob) == (0.1, 0.1)
    small = cfg.replace(num_hidden_layers=1)  # tracing 24 layers would take seconds: the others are like the first
    sizes = {path: leaf.size for path, leaf in flatten(shapes(small)).items()}
    layer = sum(size for path, size in sizes.items() if path.startswith("encoder/layer_0/"))
    assert round((sum(sizes.values()) + (layers - 1) * layer) / 1e6, 1) == millions
    assert set(PRESETS) == set(PUBLISHED)


if __name__ == "__main__":
    print(param_tree(), end="")


HEAD_ONLY = [
    ("masked_lm", "bert"), ("multiple_choice", "bert"), ("token_classification", "bert"), ("question_answering", "electra"),
]  # fmt: skip
HEAD_ONLY_TOO = [  # whose parts the others have
    ("pretraining", "albert"), ("pretraining", "bert"), ("next_sentence", "bert"), ("encoder", "bert"),
    ("sequence_classification", "bert"), ("sequence_classification", "roberta"), ("sequence_classification", "distilbert"),
]  # fmt: skip


@pytest.mark.parametrize("packed, scan", [(False, True), (True, False)])
@pytest.mark.parametrize("head, family", [*HEAD_ONLY, *(pytest.param(*case, marks=pytest.mark.slow) for case in HEAD_ONLY_TOO)])
def test_the_last_layer_at_the_heads_places_alone_gives_the_same_outputs_and_gradients(head, family, packed, scan):
    sizes = {
        "albert": dict(embedding_size=8, num_hidden_groups=1),
        "electra": dict(embedding_size=8),
        "distilbert": dict(type_vocab_size=0),
    }
    cfg = BertConfig(model_type=family, vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                     intermediate_size=24, initializer_range=0.3, **sizes.get(family, {}))  # fmt: skip
    module, rng = Bert(cfg, head, compute=ComputeConfig(scan_layers=scan)), np.random.default_rng(0)
    batch = {"input_ids": rng.integers(5, 50, (2, 12)).astype(np.int32)}
    batch["sequence_ids"] = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 3 + [2] * 8 + [0]], np.int32)
    if packed:
        batch["cls_positions"] = np.array([[0, 5], [0, 3]], np.int32)
    if head in ("masked_lm", "pretraining"):
        batch["masked_positions"] = np.array([[1, 6, 8], [4, 10, 0]], np.int32)
    if head == "multiple_choice" and not packed:
        batch = {name: value[None] for name, value in batch.items()}
    params = jax.jit(module.init)(jax.random.key(0), batch)["params"]

    @partial(jax.jit, static_argnums=1)
    @partial(jax.grad, has_aux=True)
    def gradients_and_outputs(params, head_only):
        found = module.apply({"params": params}, batch, head_only=head_only)
        outputs = {name: value for name, value in found.items() if name != "last_hidden_state"}
        return sum(jnp.sum(jnp.sin(value)) for value in outputs.values()), outputs

    (of_whole, whole), (of_part, part) = (gradients_and_outputs(params, head_only) for head_only in (False, True))
    assert whole.keys() == part.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), whole, part)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3), of_whole, of_part)


def test_gradients_of_a_bfloat16_layer_are_summed_in_float32() -> None:
    """Of kernels, biases and the output layer's table; the rule for a cast would round them to 8 bits."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(4096, n)), jnp.bfloat16) for n in (8, 6))
    kernel, bias = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32), jnp.zeros(6)
    gradients = jax.vjp(affine, x, kernel, bias)[1](dy)
    exact_x, exact_dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    np.testing.assert_allclose(gradients[1], exact_x.T @ exact_dy, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(gradients[2], exact_dy.sum(0), rtol=1e-4, atol=1e-3)
    assert gradients[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(gradients[0].astype(np.float32), exact_dy @ np.asarray(kernel).T, rtol=0.02, atol=0.05)

    table = jnp.asarray(rng.normal(size=(7, 8)), jnp.float32)
    outputs, back = jax.vjp(lambda table: tied_logits(x.reshape(64, 64, 8), table), table)
    assert outputs.dtype == jnp.float32
    (of_table,) = back(jnp.tile(dy.reshape(64, 64, 6)[..., :1].astype(jnp.float32), 7))
    exact = np.tile((exact_dy[:, :1] * exact_x).sum(0), (7, 1))
    np.testing.assert_allclose(of_table, exact, rtol=1e-4, atol=1e-3)


WRONG_BATCHES = [
    ({"input_ids": None}, "the batch has no 'input_ids', it has token_type_ids, "),
    ({"input_ids": np.array([5, 6])}, r"input_ids is int32 of shape \(2,\); expected integers \[B, L\]"),
    ({"input_ids": np.ones((B, L), np.float32)}, "input_ids is float32 of shape"),
    ({"sequence_ids": np.ones((B, L - 1), np.int32)}, r"sequence_ids has the shape \(3, 15\), and input_ids \(3, 16\)"),
    ({"input_ids": np.full((B, L), V)}, r"input_ids holds 61, which is not in \[0, 61\)"),
    ({"input_ids": np.full((B, L), -1)}, r"input_ids holds -1, which is not in \[0, 61\)"),
    ({"token_type_ids": np.full((B, L), 2)}, r"token_type_ids holds 2, which is not in \[0, 2\)"),
    ({"position_ids": np.full((B, L), 24)}, r"position_ids holds 24, which is not in \[0, 24\)"),
    ({"token_type_ids": np.zeros((B, L))}, "token_type_ids is float32; expected integers"),
    ({"masked_positions": np.full((B, P), -1)}, r"masked_positions holds -1, which is not in \[0, 16\), the tokens of a row"),
    ({"attention_mask": np.full((B, L), -1e9)}, r"attention_mask holds -1000000000.0, which is not in \[0, 2\), 1 at tokens"),
    ({"attention_maks": np.ones((B, L), np.int32)}, "the batch has 'attention_maks'; did you mean 'attention_mask'"),
]


@pytest.mark.parametrize("change, message", WRONG_BATCHES, ids=[message[:40] for _, message in WRONG_BATCHES])
def test_a_batch_that_does_not_fit_is_refused(change, message):
    batch = {name: value for name, value in (make_batch() | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        Bert(CFG, "pretraining").apply({"params": params()}, batch)


def test_a_batch_at_hand_may_stand_inside_a_jitted_function():
    batch = {name: jnp.asarray(value) for name, value in make_batch().items()}
    model = Bert(CFG, "encoder")
    inside = jax.jit(lambda params: model.apply({"params": params}, batch)["last_hidden_state"])(params())
    np.testing.assert_allclose(inside, compiled()(params(), batch)["last_hidden_state"], atol=1e-5)


def test_a_mesh_of_explicit_axes_is_refused_with_the_fix():
    mesh = jax.make_mesh((1,), ("mine",), axis_types=(jax.sharding.AxisType.Explicit,))
    batch = jax.device_put(make_batch(), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    with pytest.raises(InputError, match=r"axis_types=.*Auto"):
        jax.jit(lambda batch: Bert(CFG, "encoder").apply({"params": params()}, batch))(batch)


@cache
def of_any_batch():
    """Outputs of a batch that is not at hand while the model is traced, by family."""

    def compiled(**changes):
        cfg = CFG.replace(num_hidden_layers=1, **changes)
        random = Bert(cfg, "pretraining" if cfg.model_type == "bert" else "masked_lm")
        random_params = jax.jit(random.init)(jax.random.key(0), {"input_ids": np.ones((1, 1), np.int32)})
        return jax.jit(lambda batch: random.apply(random_params, batch)["masked_lm_logits"])

    return {"bert": compiled(), "roberta": compiled(model_type="roberta", type_vocab_size=1)}


NOWHERE = [
    ("bert", "input_ids", V), ("bert", "input_ids", -1), ("bert", "token_type_ids", -1), ("bert", "token_type_ids", 2),
    ("bert", "position_ids", -1), ("bert", "position_ids", 24), ("bert", "masked_positions", -1), ("bert", "masked_positions", L),
    ("roberta", "position_ids", -1), ("roberta", "position_ids", 22), ("roberta", "token_type_ids", 1),
]  # fmt: skip


@pytest.mark.parametrize("family, name, wrong", NOWHERE)
def test_an_id_without_a_row_gives_nan_where_it_cannot_be_refused(family, name, wrong):
    batch = make_batch()
    if family == "roberta":
        batch["token_type_ids"] = np.zeros((B, L), np.int32)
    batch[name][0, 1] = wrong
    logits = of_any_batch()[family](batch)
    assert np.isnan(logits[0]).any()
    assert np.isfinite(logits[1:]).all()


ROBERTA = BertConfig(model_type="roberta", vocab_size=61, max_position_embeddings=24)
POSITIONS = [  # what is given, and the rows of the table
    ({"attention_mask": [[1, 1, 0, 1, 1]]}, [[2, 3, 4, 5, 6]]),  # as transformers, whatever the mask says
    ({"input_ids": [[0, 5, 2, 1, 1]]}, [[2, 3, 4, 1, 1]]),
    ({"input_ids": [[1, 1, 0, 5, 2]], "attention_mask": [[0, 0, 1, 1, 1]]}, [[1, 1, 2, 3, 4]]),
    ({"sequence_ids": [[1, 1, 1, 2, 2]]}, [[2, 3, 4, 2, 3]]),
    ({"sequence_ids": [[1, 1, 2, 2, 0]], "position_ids": [[0, 1, 0, 1, 0]]}, [[2, 3, 2, 3, 2]]),
    ({"position_ids": np.array([[0, 1, 2, 3, 4]], np.int8)}, [[2, 3, 4, 5, 6]]),
]


@pytest.mark.parametrize("given, rows", POSITIONS)
@pytest.mark.parametrize("pad", [1, 3])
def test_robertas_positions_are_counted_from_the_paddings_id(given, rows, pad):
    batch = {name: np.asarray(value) for name, value in ({"input_ids": [[0, 5, 6, 7, 2]]} | given).items()}
    batch["input_ids"] = np.where(batch["input_ids"] == 1, pad, batch["input_ids"])
    cfg = ROBERTA.replace(pad_token_id=pad)
    assert (cfg.position_offset, cfg.max_length) == (pad + 1, 24 - pad - 1)
    assert (np.asarray(complete(batch, cfg)["position_ids"]) - (pad - 1)).tolist() == rows


@pytest.mark.parametrize("positions", [[[2, 3, 4, 5, 1]], [[2, 3, 4, 5, 0]]])
def test_robertas_positions_in_the_form_of_transformers_are_refused_or_nan(positions):
    batch = {"input_ids": np.array([[0, 5, 6, 2, 1]]), "attention_mask": np.array([[1, 1, 1, 1, 0]])}
    batch["position_ids"] = np.array(positions)
    with pytest.raises(InputError, match=r"row without a 0.*give jnp.maximum\(position_ids - 2, 0\)"):
        complete(batch, ROBERTA)
    assert jax.jit(lambda batch: complete(batch, ROBERTA)["position_ids"])(batch)[0, :4].tolist() == [-1] * 4
    assert complete(batch, CFG)["position_ids"].tolist() == positions  # BERT's may begin anywhere


def test_names_that_are_like_ours_may_stand_beside_them():
    batch = make_batch()
    Bert(CFG, "encoder").apply({"params": params()}, batch | {"input_ids_2": batch["input_ids"][:1]})
