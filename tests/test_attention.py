"""Attention kernels: which is chosen, and that each computes what XLA does."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import BertConfig, ComputeConfig, InputError, ParallelConfig
from bert_jax.model import attention
from bert_jax.model.attention import Tokens
from bert_jax.model.encoder import Encoder
from bert_jax.training import parallel

CFG = BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=256,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
)  # fmt: skip
ROWS, LENGTH, HEADS, HEAD_SIZE = 2, 128, 2, 16
PACKED = np.zeros((ROWS, LENGTH), np.int32)  # the second row: three sequences and padding
PACKED[0] = 1
PACKED[1, :50], PACKED[1, 50:51], PACKED[1, 51:120] = 1, 2, 3


def inputs(rows=ROWS, length=LENGTH, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(rows, length, HEADS, HEAD_SIZE)), dtype) for _ in range(3)]


def mixed(kernel, query, key, value, ids):
    return attention.attention(query, key, value, Tokens(ids), Tokens(ids), kernel, 0.0, None, False)[0]


def values_and_gradients(kernel, ids, *arrays):
    """What attention gives, and the gradients of a sum that weighs each number otherwise."""
    weights = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)

    def total(*arrays):
        out = mixed(kernel, *arrays, ids)
        return jnp.sum(out * weights), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return jax.device_get([out, *gradients])


@pytest.fixture(scope="module")
def interpreted():
    """TPU kernels, run on CPUs."""
    with attention.for_platform("tpu", interpret=True):
        yield


def test_splash_gives_the_values_and_gradients_of_xla_packed_and_padded(interpreted):
    ours, xla = (values_and_gradients(kernel, PACKED, *inputs()) for kernel in ("splash", "xla"))
    for a, b in zip(ours, xla, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    other = values_and_gradients("xla", np.ones_like(PACKED), *inputs())
    assert abs(other[0] - xla[0]).max() > 0.1  # the ids mattered


@pytest.mark.parametrize("layout", [dict(fsdp=2, tensor=2), dict(strategy="pmap", num_devices=2)], ids=["2x2x2", "pmap"])
def test_splash_runs_device_by_device(interpreted, layout):
    devices = parallel.make_devices(ParallelConfig(**layout))
    ids, arrays = np.tile(PACKED, (2, 1)), inputs(4)
    batch = devices.put({"ids": ids} | {name: np.asarray(x) for name, x in zip("qkv", arrays, strict=True)})

    def step(_, batch):
        out = mixed("splash", batch["q"], batch["k"], batch["v"], batch["ids"])
        return jax.lax.all_gather(out, "data", tiled=True) if devices.pmap else out

    out = devices.jit(step)(np.float32(0), batch)
    np.testing.assert_allclose(out, mixed("xla", *arrays, ids), atol=2e-5)


def test_an_encoder_by_splash_is_the_one_by_xla_layers_scanned_and_some_positions_alone(interpreted):
    ids = np.random.default_rng(0).integers(5, 50, PACKED.shape).astype(np.int32)
    places = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    args = ids, np.zeros_like(ids), places, PACKED
    params = jax.jit(Encoder(CFG).init)(jax.random.key(0), *args)
    for how in (dict(), dict(positions=np.array([[0, 7], [0, 51]], np.int32))):
        outputs = [
            jax.jit(partial(Encoder(CFG, ComputeConfig(attention=kernel, scan_layers=True)).apply, **how))(params, *args)
            for kernel in ("splash", "xla")
        ]
        np.testing.assert_allclose(*(out["last_hidden_state"] for out in outputs), atol=5e-5)
    with pytest.raises(InputError, match="attention='splash': it does not return the probabilities that output_attentions"):
        Encoder(CFG, ComputeConfig(attention="splash")).apply(params, *args, output_attentions=True)


def plain(query, key, value, ids, window, causal=False):
    """Attention in NumPy, float64, pair by pair."""
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    places = np.arange(q.shape[1])
    seen = (ids[:, :, None] == ids[:, None]) & (abs(places[:, None] - places) <= (window or len(places)))
    seen &= (places[None] <= places[:, None]) | (not causal)
    scores = np.where(seen[:, None], np.einsum("blhk,bmhk->bhlm", q, k) * q.shape[-1] ** -0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhlm,bmhk->blhk", weights / weights.sum(-1, keepdims=True), v)


def attend(tokens, window, *arrays, wants_weights=False):
    """What the tokens of rows get from one another, and the probabilities or None."""
    run = partial(attention.attention, queries=tokens, tokens=tokens, wanted="auto", dropout_rate=0.0, dropout_key=None)
    return jax.jit(lambda q, k, v: run(q, k, v, wants_weights=wants_weights, window=window))(*arrays)


@pytest.mark.parametrize(("window", "length"), [(3, 128), (16, 128), (17, 100), (30, 128), (31, 128)])
def test_a_window_lets_a_token_see_so_many_on_each_side_of_its_own_sequence(window, length):
    arrays, ids = [x[:, :length] for x in inputs()], PACKED[:, :length]
    kernel, _ = attention.choose("auto", "cpu", length, HEAD_SIZE, "float32", 0.0, window=window)
    assert kernel == ("banded" if window < 32 and length >= 4 * window else "xla")
    out, _ = attend(Tokens(ids), window, *arrays)
    np.testing.assert_allclose(out, plain(*arrays, ids, window), atol=2e-5)
    dense, weights = attend(Tokens(ids), window, *arrays, wants_weights=True)
    np.testing.assert_allclose(dense, out, atol=2e-5)
    assert weights.shape == (ROWS, HEADS, length, length)


@pytest.mark.parametrize(("kernel", "window"), [("xla", None), ("banded", 5), ("blockwise", None), ("blockwise", 5)])
def test_tokens_of_causal_rows_see_no_later_ones(kernel, window, monkeypatch):
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 32)
    monkeypatch.setattr(attention, "_xla", lambda *args: kernel)
    arrays, ids = inputs(), np.stack([PACKED[1], PACKED[1]])
    tokens = Tokens(ids, causal=np.array([True, False]))
    out, _ = attend(tokens, window, *arrays)
    for row, causal in enumerate((True, False)):
        expected = plain(*(x[row : row + 1] for x in arrays), ids[row : row + 1], window, causal)
        np.testing.assert_allclose(out[row : row + 1], expected, atol=2e-5)


def test_an_encoder_keeps_later_tokens_from_those_of_causal_rows_also_at_some_positions():
    ids = np.random.default_rng(0).integers(5, 50, (2, 20)).astype(np.int32)
    places, ones = np.tile(np.arange(20, dtype=np.int32), (2, 1)), np.ones_like(ids)
    params = jax.jit(Encoder(CFG).init)(jax.random.key(0), ids, 0 * ids, places, ones)
    for positions in (None, np.array([[3, 18], [3, 18]], np.int32)):
        apply = jax.jit(partial(Encoder(CFG).apply, positions=positions, causal=np.array([True, False])))
        other = ids.copy()
        other[:, -1] = 1
        one, two = (apply(params, x, 0 * ids, places, ones)["last_hidden_state"] for x in (ids, other))
        changed = np.abs(one - two).max(-1)
        assert changed[0, : 19 if positions is None else 2].max() == 0
        assert changed[1].min() > 1e-4


def weighted_sum(arrays, ids, window=None, positions=None):
    """A sum that weighs each number otherwise, and its gradients."""
    tokens = Tokens(ids)
    queries = tokens.at(positions)

    def total(query, key, value):
        if positions is not None:
            query = jnp.take_along_axis(query, positions[:, :, None, None], axis=1)
        out, _ = attention.attention(query, key, value, queries, tokens, "auto", 0.0, None, False, window)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    return jax.device_get(jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*arrays))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("positions", [None, np.stack([np.arange(127, 57, -1), np.arange(1, 71)]).astype(np.int32)])
def test_scores_by_blocks_give_the_values_and_gradients_of_all_at_once(window, positions, monkeypatch):
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 32)
    results = []
    for kernel in ("xla", "blockwise"):
        monkeypatch.setattr(attention, "_xla", lambda *args, kernel=kernel: kernel)
        results.append(jax.tree.leaves(weighted_sum(inputs(), PACKED, window, positions)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


def test_long_rows_never_hold_the_scores_of_all_pairs():
    length = 4096
    arrays = [jax.ShapeDtypeStruct((1, length, HEADS, HEAD_SIZE), jnp.float32)] * 3
    ids = np.ones((1, length), np.int32)

    def bytes_of(window, rate):
        def total(*arrays):
            key = jax.random.key(0) if rate else None
            out, _ = attention.attention(*arrays, Tokens(ids), Tokens(ids), "auto", rate, key, False, window)
            return jnp.sum(out**2)

        return jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * HEADS * length**2
    assert bytes_of(None, 0.0) < scores / 4
    assert bytes_of(None, 0.1) < scores / 4
    assert bytes_of(64, 0.0) < scores / 4


def test_cudnn_is_asked_for_what_xla_computes(monkeypatch):
    """It is not here; XLA's implementation of the same function takes its place."""
    called, real = [], jax.nn.dot_product_attention

    def instead(*args, implementation, **kwargs):
        called.append(implementation)
        return real(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    arrays = inputs()
    half = inputs(dtype=jnp.bfloat16)
    with attention.for_platform("gpu"):
        out, weights = attention.attention(*half, Tokens(PACKED), Tokens(PACKED), "auto", 0.0, None, False)
    assert called == ["cudnn"]
    assert weights is None
    np.testing.assert_allclose(np.asarray(out, np.float32), mixed("xla", *arrays, PACKED), atol=0.03)


CHOICES = [  # wanted, platform, length, head size, dtype, dropout, queries, weights asked for -> kernel
    ("auto", "cpu", 512, 64, "float32", 0.0, None, False, "xla"),
    ("auto", "tpu", 512, 64, "bfloat16", 0.0, None, False, "splash"),
    ("auto", "tpu", 128, 64, "bfloat16", 0.0, None, False, "xla"),
    ("auto", "tpu", 600, 64, "bfloat16", 0.0, None, False, "xla"),
    ("auto", "tpu", 512, 64, "bfloat16", 0.1, None, False, "xla"),
    ("auto", "tpu", 512, 64, "bfloat16", 0.0, 77, False, "xla"),
    ("auto", "tpu", 512, 64, "bfloat16", 0.0, None, True, "xla"),
    ("splash", "tpu", 128, 64, "bfloat16", 0.0, None, False, "splash"),
    ("splash", "tpu", 512, 64, "bfloat16", 0.1, 77, False, "xla"),
    ("xla", "tpu", 512, 64, "bfloat16", 0.0, None, False, "xla"),
    ("auto", "gpu", 128, 64, "bfloat16", 0.0, None, False, "cudnn"),
    ("auto", "gpu", 128, 64, "float32", 0.0, None, False, "xla"),
    ("auto", "gpu", 128, 64, "bfloat16", 0.1, None, False, "xla"),
    ("auto", "gpu", 128, 20, "bfloat16", 0.0, None, False, "xla"),
    ("auto", "gpu", 127, 64, "bfloat16", 0.0, None, False, "xla"),
]


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: "-".join(map(str, case)))
def test_the_kernel_is_the_fastest_that_computes_the_same(case):
    assert attention.choose(*case[:-1])[0] == case[-1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("splash", "cpu", 512, 64, "bfloat16", 0.0), "it runs on TPUs, and this is a cpu"),
        (("splash", "tpu", 512, 64, "bfloat16", 0.1), "set attention_probs_dropout_prob=0.1 to 0, or set attention='xla'"),
        (("splash", "tpu", 100, 64, "bfloat16", 0.0), "rows of 100 tokens are not a multiple of 128"),
        (("splash", "tpu", 512, 64, "bfloat16", 0.0, None, False, None, False, True), "set masking.causal_share to 0"),
        (("cudnn", "tpu", 512, 64, "bfloat16", 0.0), "it runs on GPUs, and this is a tpu"),
        (("cudnn", "gpu", 512, 64, "float32", 0.0), "computes in bfloat16, not float32: set dtype='bfloat16'"),
        (("cudnn", "gpu", 512, 20, "bfloat16", 0.0), "not heads of 20 in rows of 512 tokens"),
    ],
)
def test_a_kernel_that_cannot_is_refused_with_the_reason(args, message):
    with pytest.raises(InputError, match=message):
        attention.choose(*args)


def test_a_mesh_of_someone_else_gets_xla():
    mesh = jax.make_mesh((8,), ("rows",), (jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert attention.choose("auto", "tpu", 512, 64, "bfloat16", 0.0)[0] == "xla"
        with pytest.raises(InputError, match="it works only on a mesh with the axes data, fsdp, tensor"):
            attention.choose("splash", "tpu", 512, 64, "bfloat16", 0.0)


def test_the_choice_is_told_in_a_line():
    base, half = BertConfig.preset("base"), ComputeConfig(dtype="bfloat16")
    assert attention.describe(base, half, "tpu", 512, True) == "attention by splash (on tpu)"
    assert attention.describe(base, half, "tpu", 512, False) == (
        "attention by xla (attention_probs_dropout_prob=0.1: fused kernels have no dropout, so 12 x 512 x 512 probabilities are "
        "kept for each row and layer)"
    )
    for platform, length in ("tpu", 128), ("cpu", 512):  # XLA's without dropout too: it costs nothing
        assert "probabilities are kept" not in attention.describe(base, half, platform, length, False)
    assert attention.describe(base, half.replace(attention="xla"), "gpu", 512, True) == "attention by xla (asked for)"


FOR_A_TPU = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from bert_jax.model import attention
from bert_jax.model.attention import Tokens
from bert_jax.training import parallel

found = topologies.get_topology_desc("v5e:2x4", "tpu").devices
devices = parallel.Devices(parallel.make_mesh(found, 2, 2))

def step(_, batch):
    def total(q, k, v):
        out, _ = attention.attention(q, k, v, Tokens(batch["ids"]), Tokens(batch["ids"]), "auto", 0.0, None, False)
        return jnp.sum(out.astype(jnp.float32))
    return jax.grad(total, argnums=(0, 1, 2))(batch["q"], batch["k"], batch["v"])

shapes = {name: jax.ShapeDtypeStruct((8, 512, 12, 64), jnp.bfloat16) for name in "qkv"}
shapes["ids"] = jax.ShapeDtypeStruct((8, 512), jnp.int32)
with attention.for_platform("tpu"):
    compiled = devices.jit(step).lower(jax.ShapeDtypeStruct((), jnp.float32, sharding=devices.replicated),
                                       devices.abstract_batch(shapes)).compile()
print(compiled.as_text().count("tpu_custom_call"), "kernels")
"""


@pytest.mark.tpu_compile
def test_splash_and_its_gradient_compile_for_a_tpu():
    pytest.importorskip("libtpu")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_OPTIMIZATION_LEVEL": "O0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", FOR_A_TPU], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-2]) >= 3  # forward, and two of the backward pass
