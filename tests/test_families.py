"""Families beyond BERT: against plain NumPy, and what holds of every layer: packing, scans, recomputation, places alone."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import OptimConfig, ParallelConfig
from bert_jax.errors import InputError
from bert_jax.model import convert
from bert_jax.model.config import BertConfig, ComputeConfig, ModelType
from bert_jax.model.families import FAMILIES
from bert_jax.model.heads import Bert, initialize
from bert_jax.model.layers import rotary_angles
from bert_jax.training import optim, parallel, steps
from bert_jax.training.losses import pretraining_sums

V, D, H, F = 61, 32, 4, 48
SIZE = dict(vocab_size=V, hidden_size=D, num_attention_heads=H, intermediate_size=F, max_position_embeddings=64,
            num_hidden_layers=3, layer_norm_eps=1e-6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
CHANGES = {
    "albert": dict(embedding_size=16, num_hidden_groups=1),
    "electra": dict(embedding_size=16),
    "rembert": dict(embedding_size=16, output_embedding_size=40),
    "roformer": dict(embedding_size=16),
    "modernbert": dict(num_hidden_layers=5, local_attention=6),
    "eurobert": dict(num_key_value_heads=2),
    "esm": dict(token_dropout=True, mask_token_id=4),
    "deberta-v2": dict(
        position_table=False, position_buckets=6, max_relative_positions=24, share_att_key=True, norm_rel_ebd=True
    ),
}
V2 = dict(position_table=True, type_vocab_size=2, conv_kernel_size=3, conv_act="gelu", max_relative_positions=8)
LENGTHS = [[13, 5], [18], [9, 3, 4]]  # of the sequences in each row; the rest of a row is padding
B, L = 3, 18


def config(family, **changes):
    return BertConfig.of_family(family, **(SIZE | CHANGES.get(family, {}) | changes))


@cache
def random_params(cfg, head):
    """Far from their initial values, biases and scales too, so that a slip anywhere shows."""
    rng = np.random.default_rng(1)
    shapes = convert.flatten(jax.eval_shape(lambda: initialize(Bert(cfg, head), 0)))
    return convert.unflatten({path: (rng.normal(0, 0.25, x.shape) + path.endswith("scale")).astype(np.float32)
                              for path, x in shapes.items()})  # fmt: skip


def make_batch(cfg):
    rng = np.random.default_rng(0)
    ids = np.zeros((B, L), np.int32)
    batch = {"input_ids": ids, "sequence_ids": ids.copy(), "position_ids": ids.copy(), "token_type_ids": ids.copy()}
    for row, lengths in enumerate(LENGTHS):
        begin = 0
        for number, length in enumerate(lengths, start=1):
            at = np.s_[row, begin : begin + length]
            batch["input_ids"][at] = rng.integers(4, V, length)
            batch["sequence_ids"][at], batch["position_ids"][at] = number, np.arange(length)
            batch["token_type_ids"][at] = rng.integers(0, max(1, cfg.type_vocab_size), length)
            begin += length
    return batch


def run(cfg, head="encoder", batch=None, **flags):
    module, params = Bert(cfg, head), random_params(cfg, head)
    return jax.jit(lambda params, batch: module.apply({"params": params}, batch, **flags))(params, batch or make_batch(cfg))


def sequences(batch):
    """(row, places) of each sequence."""
    for row in range(B):
        for number in range(1, batch["sequence_ids"][row].max() + 1):
            yield row, np.flatnonzero(batch["sequence_ids"][row] == number)


# Forward passes in float64, written from the papers and transformers' modules, one sequence at a time: no masks, no packing.


class Numpy:
    """Parameters by path, and the few operations that all passes share."""

    def __init__(self, cfg):
        self.cfg, flat = cfg, convert.flatten(random_params(cfg, "encoder")["encoder"])
        self.p = {path: np.asarray(x, np.float64) for path, x in flat.items()}

    def dense(self, x, name):
        return x @ self.p[f"{name}/kernel"] + self.p.get(f"{name}/bias", 0)

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.cfg.layer_norm_eps)
        return scaled * self.p[f"{name}/scale"] + self.p.get(f"{name}/bias", 0)

    def heads(self, x, name):
        return self.dense(x, name).reshape(len(x), H, -1).swapaxes(0, 1)

    def mix(self, scores, value, name):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.dense((weights @ value).swapaxes(0, 1).reshape(-1, D), name)

    def mlp(self, x, name):
        return self.dense(gelu(self.dense(x, f"{name}/intermediate")), f"{name}/output")


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def rotated(x, theta):
    """x [H, L, K] with each pair of a head turned by place * theta^(-2j/K)."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    turn = np.exp(1j * angles) * (x[..., :half] + 1j * x[..., half:])
    return np.concatenate([turn.real, turn.imag], axis=-1)


def modernbert(m, ids, types):
    x = m.norm(m.p["embeddings/word_embeddings/embedding"][ids], "embeddings/norm")
    distance = abs(np.arange(len(ids))[:, None] - np.arange(len(ids)))
    for i in range(m.cfg.num_hidden_layers):
        at, glob = f"layer_{i}", i % 3 == 0
        h = x if i == 0 else m.norm(x, f"{at}/attention_norm")
        q, k, v = (m.heads(h, f"{at}/attention/{name}") for name in ("query", "key", "value"))
        q, k = (rotated(y, 160000 if glob else 10000) for y in (q, k))
        scores = q @ k.swapaxes(1, 2) / math.sqrt(D // H)
        x = x + m.mix(np.where(glob | (distance <= 3), scores, -np.inf), v, f"{at}/attention/output")
        h = m.norm(x, f"{at}/mlp_norm")
        inner = gelu(m.dense(h, f"{at}/mlp/gate")) * m.dense(h, f"{at}/mlp/intermediate")
        x = x + m.dense(inner, f"{at}/mlp/output")
    return m.norm(x, "final_norm")


def mpnet(m, ids, types):
    x = m.p["embeddings/word_embeddings/embedding"][ids] + m.p["embeddings/position_embeddings/embedding"][2 : 2 + len(ids)]
    x = m.norm(x, "embeddings/norm")
    bias = np.zeros((H, len(ids), len(ids)))
    for i in range(len(ids)):
        for j in range(len(ids)):
            far = abs(j - i)
            bucket = far if far < 8 else min(15, 8 + int(math.log(far / 8) / math.log(16) * 8))
            bias[:, i, j] = m.p["relative_attention_bias/embedding"][bucket + 16 * (j > i)]
    for i in range(m.cfg.num_hidden_layers):
        at = f"layer_{i}"
        q, k, v = (m.heads(x, f"{at}/attention/{name}") for name in ("query", "key", "value"))
        mixed = m.mix(q @ k.swapaxes(1, 2) / math.sqrt(D // H) + bias, v, f"{at}/attention/output")
        x = m.norm(x + mixed, f"{at}/attention_norm")
        x = m.norm(x + m.mlp(x, f"{at}/mlp"), f"{at}/mlp_norm")
    return x


def deberta(m, ids, types):
    form, places = m.cfg.form, np.arange(len(ids))
    e = m.p["embeddings/word_embeddings/embedding"][ids]
    if form.position_table:
        e = e + m.p["embeddings/position_embeddings/embedding"][places]
    if m.cfg.type_vocab_size:
        e = e + m.p["embeddings/token_type_embeddings/embedding"][types]
    x = first = m.norm(e, "embeddings/norm")
    relative = m.p["relative_embeddings/embedding"]
    if form.norm_rel_ebd:
        relative = m.norm(relative, "relative_embeddings/norm")
    span, mid = len(relative) // 2, form.position_buckets // 2

    def row(distance):
        if mid and abs(distance) > mid:
            logarithmic = math.log(abs(distance) / mid) / math.log((form.max_relative_positions - 1) / mid) * (mid - 1)
            distance = int(math.copysign(mid + math.ceil(logarithmic), distance))
        return min(max(distance + span, 0), 2 * span - 1)

    rows = np.array([[row(i - j) for j in places] for i in places])
    names = ("key", "query") if form.share_att_key else ("position_key", "position_query")
    for i in range(m.cfg.num_hidden_layers):
        at = f"layer_{i}"
        q, k, v = (m.heads(x, f"{at}/attention/{name}") for name in ("query", "key", "value"))
        rk, rq = (m.heads(relative, f"{at}/attention/{name}") for name in names)
        content = np.einsum("hik,hijk->hij", q, rk[:, rows]) + np.einsum("hjk,hijk->hij", k, rq[:, rows])
        mixed = m.mix((q @ k.swapaxes(1, 2) + content) / math.sqrt(D // H * 3), v, f"{at}/attention/output")
        x = m.norm(x + mixed, f"{at}/attention_norm")
        x = m.norm(x + m.mlp(x, f"{at}/mlp"), f"{at}/mlp_norm")
        if i == 0 and form.conv_kernel_size:
            padded = np.pad(first, ((1, 1), (0, 0)))
            near = sum(padded[s : s + len(ids)] @ m.p["convolution/kernel"][s] for s in range(3)) + m.p["convolution/bias"]
            x = m.norm(x + gelu(near), "convolution/norm")
    return x


GOLDEN = [
    ("modernbert", {}, modernbert),
    ("mpnet", {}, mpnet),
    ("deberta-v2", {}, deberta),
    ("deberta-v2", V2 | dict(share_att_key=False, norm_rel_ebd=False, position_buckets=0), deberta),
]


@pytest.mark.parametrize(("family", "changes", "forward"), GOLDEN, ids=["modernbert", "mpnet", "deberta-v3", "deberta-v2"])
def test_packed_rows_give_what_plain_numpy_gives_of_each_sequence(family, changes, forward):
    cfg = config(family, **changes)
    batch, numpy = make_batch(cfg), Numpy(cfg)
    hidden = np.asarray(run(cfg, batch=batch)["last_hidden_state"])
    for row, at in sequences(batch):
        expected = forward(numpy, batch["input_ids"][row, at], batch["token_type_ids"][row, at])
        np.testing.assert_allclose(hidden[row, at], expected, atol=2e-5)


ALIKE = (  # others have their layers
    "camembert", "data2vec-text", "ernie", "megatron-bert", "xlm-roberta-xl", "rembert", "gte", "nomic_bert",
)  # fmt: skip


@pytest.mark.parametrize("family", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in FAMILIES])
def test_packed_and_padded_rows_give_what_each_sequence_alone_gives(family):
    cfg = config(family)
    batch = make_batch(cfg)
    hidden = np.asarray(run(cfg, batch=batch)["last_hidden_state"])
    row, at = list(sequences(batch))[-2]
    alone = {name: value[row, at][None] for name, value in batch.items()}
    np.testing.assert_allclose(hidden[row, at], run(cfg, batch=alone)["last_hidden_state"][0], atol=2e-5)
    changed = {name: value.copy() for name, value in batch.items()}
    others = np.setdiff1d(np.arange(L), at)
    changed["input_ids"][row, others] = 7
    np.testing.assert_array_equal(hidden[row, at], np.asarray(run(cfg, batch=changed)["last_hidden_state"])[row, at])


NEW = [pytest.param(family, marks=[pytest.mark.slow] * (family != "modernbert")) for family in FAMILIES]


@pytest.mark.parametrize("family", NEW)
def test_however_the_layers_run_outputs_and_gradients_are_the_same(family):
    cfg = config(family, **(V2 if family == "deberta-v2" else {}))
    head, batch = "masked_lm", make_batch(cfg)
    batch["masked_positions"] = np.array([[0, 6, 14], [17, 3, 9], [10, 2, 13]], np.int32)
    weights = np.random.default_rng(2).normal(size=(B, 3, V)).astype(np.float32)

    def loss(params, compute, head_only):
        module = Bert(cfg, head, compute=compute)
        logits = module.apply({"params": params}, batch, head_only=head_only)["masked_lm_logits"]
        return jnp.sum(logits * weights) / 50

    ways = [(ComputeConfig(), False), (ComputeConfig(scan_layers=True, remat="full"), False), (ComputeConfig(remat="dots"), True)]
    plain, *others = [jax.jit(jax.value_and_grad(lambda p, way=way: loss(p, *way)))(random_params(cfg, head)) for way in ways]
    for other in others:
        for (path, a), b in zip(convert.flatten({"loss": plain[0], **plain[1]}).items(),
                                convert.flatten({"loss": other[0], **other[1]}).values(), strict=True):  # fmt: skip
            np.testing.assert_allclose(a, b, atol=2e-4 * max(1, np.abs(a).max()), err_msg=path)


PMAP, MESH = dict(strategy="pmap"), dict(fsdp=2, tensor=2)
QUICK_STEPS = [("modernbert by muon", MESH)]
STEPS = [(family, layout) for family in (*FAMILIES, "modernbert by muon") for layout in (PMAP, MESH)]


@pytest.mark.parametrize(
    ("family", "layout"),
    [*QUICK_STEPS, *(pytest.param(*case, marks=pytest.mark.slow) for case in STEPS if case not in QUICK_STEPS)],
)
def test_a_step_on_eight_devices_is_that_on_one(family, layout):
    family, _, optimizer_name = family.partition(" by ")
    cfg = config(family, **(V2 if family == "deberta-v2" else {"num_hidden_layers": 2}))
    batch = {name: np.tile(value, (8, 1))[:8] for name, value in make_batch(cfg).items()}
    batch["masked_positions"] = np.tile(np.array([[0, 6], [17, 3], [10, 2]], np.int32), (8, 1))[:8]
    batch["masked_ids"] = np.arange(16, dtype=np.int32).reshape(8, 2)
    batch["masked_weights"] = (np.arange(16).reshape(8, 2) % 3 > 0).astype(np.float32)
    module, optimizer = Bert(cfg, "masked_lm"), optim.scale_by_given_rate()
    if optimizer_name:  # its eps hides that a gradient near 0 has no sign
        optimizer = optim.make_optimizer(OptimConfig(name=optimizer_name, learning_rate=1e-3, muon_learning_rate=0.02, eps=1e-3))

    def sums(params, batch, key):
        return pretraining_sums(module.apply({"params": params}, batch), batch)

    def after(devices):
        step = steps.make_train_step(sums, optimizer, lambda step: 1e-3 if optimizer_name else 1.0, 0, None, 1, devices.axis_name)
        state = steps.init_state(random_params(cfg, "masked_lm"), optimizer)
        state = devices.place(state)
        state, metrics = devices.jit(step, state=devices.struct(jax.eval_shape(lambda: state)))(state, devices.put(batch))
        return jax.device_get(metrics), devices.gather(state.params)

    (metrics, params), (ours, cut) = (
        after(parallel.make_devices(ParallelConfig(**how))) for how in (dict(num_devices=1), layout)
    )
    np.testing.assert_allclose(ours["masked_lm_loss"], metrics["masked_lm_loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), cut, params)  # they moved by the gradient


def test_the_list_of_types_of_models_is_that_of_the_table():
    assert set(ModelType.__args__) == set(FAMILIES)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", dict(rope_theta=5.0), "rope_theta=5.0 does not fit model_type='bert'; it is for nomic_bert, gte"),
        ("modernbert", dict(local_attention=0), "local_attention=0 leaves a window of 0: .*; give 2 or more"),
        ("modernbert", dict(layer_types=("full_attention",) * 9), "layer_types names 9 types, num_hidden_layers=5"),
        ("modernbert", dict(type_vocab_size=2), "model_type='modernbert', which has no token types"),
        ("nomic_bert", dict(type_vocab_size=0), "model_type='nomic_bert', which has token types"),
        ("modernbert", dict(hidden_size=20), "heads of size 5 .* cannot have rotary embeddings: the size must be even"),
        ("eurobert", dict(num_key_value_heads=3), "num_key_value_heads=3 does not divide num_attention_heads=4"),
        ("esm", dict(mask_token_id=None), "token_dropout=True needs mask_token_id"),
        ("deberta-v2", dict(conv_kernel_size=2), "conv_kernel_size=2 must be odd"),
        ("deberta-v2", dict(position_buckets=300), "position_buckets=300 does not fit max_relative_positions=24"),
    ],
)  # fmt: skip
def test_an_impossible_combination_is_refused_with_both_sides(family, changes, message):
    with pytest.raises(InputError, match=message):
        config(family, **changes)


BASE = {"model_type": "modernbert", "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4}
NOMIC = BASE | {"model_type": "nomic_bert"}
EUROBERT = BASE | {"model_type": "eurobert"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (BASE | {"layer_types": ["full_attention"] * 3}, "layer_types has 3 types, num_hidden_layers=4"),
        (
            BASE | {"layer_types": ["chunked_attention"] * 4},
            "layer_types has 'chunked_attention', which is not supported, only full",
        ),
        (
            BASE | {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters.full_attention: rope_type='yarn'",
        ),
        (BASE | {"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling: rope_type='yarn' is not supported, only"),
        (BASE | {"rope_parameters": {"full_attention": 3}}, "full_attention=3 is not supported, only an object such as"),
        (BASE | {"local_attention": 1}, "local_attention=1 leaves a window of 0"),
        (BASE | {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported, only 1.0"),
        (EUROBERT | {"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling: rope_type='yarn' is not supported"),
        (EUROBERT | {"head_dim": 16}, "head_dim=16 is not supported, only hidden_size=32 / num_attention_heads=4"),
        (EUROBERT | {"num_attention_heads": 0, "head_dim": 8}, "head_dim=8 is not supported"),
        (NOMIC | {"moe_every_n_layers": 2}, "moe_every_n_layers=2 is not supported, only 0"),
        (NOMIC | {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: rope_type='yarn' is not supported"),
        (BASE | {"model_type": "new", "rope_scaling": {"type": "ntk"}}, "rope_scaling.factor=None: type 'ntk' needs a number"),
        (BASE | {"model_type": "roformer", "rotary_value": True}, "rotary_value=True is not supported, only False"),
        (BASE | {"model_type": "rembert", "output_embedding_size": None}, "needs embedding_size and output_embedding_size"),
        (BASE | {"model_type": "neobert"}, "model_type 'neobert' is not known"),
        (NOMIC | {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction=0.5 is not supported, only 1.0"),
        (NOMIC | {"rotary_emb_interleaved": True}, "rotary_emb_interleaved=True is not supported"),
        (NOMIC | {"num_experts": 8}, "num_experts=8 is not supported"),
        (NOMIC | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        (BASE | {"model_type": "new", "logn_attention_scale": True}, "logn_attention_scale=True is not supported"),
        (
            BASE | {"model_type": "gte", "rope_scaling": {"type": "yarn", "factor": 2}},
            "rope_scaling.type='yarn' is not supported",
        ),
        (BASE | {"model_type": "deberta-v2"}, "relative_attention=None is not supported, only True"),
        (
            BASE | {"model_type": "esm", "position_embedding_type": "absolute"},
            "position_embedding_type='absolute' is not supported",
        ),
        (
            BASE | {"model_type": "esm", "position_embedding_type": "rotary", "emb_layer_norm_before": True},
            "emb_layer_norm_before=True is not supported, only False",
        ),
    ],
)
def test_a_switch_that_is_not_covered_is_refused_with_key_and_value(values, message):
    with pytest.raises(InputError, match=f"config.json: .*{message}"):
        convert.config_from_hugging_face(values, "config.json")


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2", "roberta"])
def test_a_row_longer_than_the_positions_is_refused_with_both_numbers(family):
    cfg = config(family)
    ids = np.full((1, cfg.max_length + 1), 5, np.int32)
    with pytest.raises(InputError, match=f"{cfg.max_length + 1} tokens per row; this model takes at most {cfg.max_length}: cut"):
        Bert(cfg, "encoder").apply({"params": {}}, {"input_ids": ids})


def test_old_and_new_spellings_of_a_config_are_the_same_model():
    old = BASE | {"global_attn_every_n_layers": 2, "global_rope_theta": 80000.0, "local_rope_theta": None}
    new = BASE | {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {"full_attention": {"rope_theta": 80000.0}, "sliding_attention": {"rope_theta": 10000.0}},
    }
    assert convert.config_from_hugging_face(old, "a") == convert.config_from_hugging_face(new, "b")
    hub = {"model_type": "nomic_bert", "n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 48, "n_positions": 8192}
    hub |= {"rotary_emb_base": 500, "rotary_scaling_factor": 2, "activation_function": "swiglu", "layer_norm_epsilon": 1e-6}
    cfg = convert.config_from_hugging_face(hub, "c")
    assert (cfg.hidden_size, cfg.form.rope_theta, cfg.hidden_act) == (32, 500, "silu")
    assert cfg.max_length == 2048  # past the trained length, dynamic scaling would change every angle


def test_fixed_ntk_scaling_is_alibabas_formula():
    cfg = config("gte", rope_ntk_factor=2.0, rope_theta=100.0)
    batch = {"input_ids": np.array([[5, 6, 7, 8, 9]], np.int32)}
    scaled, plain = (run(c, batch=batch)["last_hidden_state"] for c in (cfg, config("gte", rope_theta=100.0)))
    assert np.abs(scaled - plain).max() > 1e-3
    written = convert.config_to_hugging_face(cfg, "encoder", 0)
    assert written["rope_scaling"] == {"type": "ntk", "factor": 2.0}
    assert convert.config_from_hugging_face(written, "d").rope_ntk_factor == 2.0
    cos, _ = rotary_angles(jnp.arange(5)[None], 100.0, 8, 2.0)
    frequencies = (100.0 * 2) ** -(np.arange(0, 8, 2) / 8) / 2 ** (2 / 8)
    np.testing.assert_allclose(cos[0], np.cos(np.arange(5)[:, None] * frequencies), atol=1e-6)
