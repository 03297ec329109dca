"""The loss of retrievers by its definition, and chunks of a batch that give the gradients of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import ParallelConfig
from bert_jax.model import heads
from bert_jax.model.config import BertConfig
from bert_jax.training.chunking import in_chunks
from bert_jax.training.contrastive import DOT, MAX_SIM, Known, Vectors, contrastive_loss, flops, known_of_pairs
from bert_jax.training.parallel import Devices, make_devices, make_mesh

N, C, D = 6, 3, 8
RNG = np.random.default_rng(0)
QUERIES, DOCUMENTS = RNG.standard_normal((N, D)).astype(np.float32), RNG.standard_normal((N, C, D)).astype(np.float32)
ONES = np.ones(N, np.float32)
APART = Known(np.arange(N), N + np.arange(N * C).reshape(N, C), N + C * np.arange(N)[:, None])  # no copies


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def nats(queries, documents, temperature, dropped=()):
    """The loss of each query, written out; `dropped` has (query, query of the document, number among its documents)."""
    each = []
    for i, query in enumerate(unit(queries.astype(np.float64))):
        scores = {(j, c): query @ unit(documents[j, c].astype(np.float64)) / temperature for j in range(N) for c in range(C)}
        left = [score for (j, c), score in scores.items() if (i, j, c) not in dropped]
        each.append(np.logaddexp.reduce(left) - scores[i, 0])
    return np.array(each)


STATIC = ("scoring", "in_batch", "both_directions", "dimensions", "distillation", "block")
compiled = jax.jit(contrastive_loss, static_argnames=STATIC)


def mean(*args, **options):
    return float(compiled(*args, **options).mean())


def test_a_query_meets_all_documents_of_the_batch_in_blocks_of_any_size():
    expected = nats(QUERIES, DOCUMENTS, 0.1).mean()
    for block in (1, 4, 6, 100):
        assert mean(QUERIES, DOCUMENTS, ONES, 0.1, block=block) == pytest.approx(expected, rel=1e-6)
        assert mean(QUERIES, DOCUMENTS, ONES, 0.1, block=block, known=APART) == pytest.approx(expected, rel=1e-6)
    shorter = sum(nats(QUERIES[:, :size], DOCUMENTS[..., :size], 0.1).mean() for size in (8, 4, 2))
    assert mean(QUERIES, DOCUMENTS, ONES, 0.1, dimensions=(8, 4, 2)) == pytest.approx(shorter, rel=1e-6)


def test_sparse_embeddings_are_compared_by_inner_products_and_the_cost_of_their_search_is_that_of_the_mean():
    queries, documents = np.maximum(QUERIES, 0), np.maximum(DOCUMENTS, 0)
    scores = np.einsum("nd,mcd->nmc", queries, documents).reshape(N, -1).astype(np.float64)
    expected = (np.logaddexp.reduce(scores, axis=1) - scores[np.arange(N), C * np.arange(N)]).mean()
    assert mean(queries, documents, ONES, 1.0, scoring=DOT) == pytest.approx(expected, rel=1e-6)
    weights = ONES.copy()
    weights[1:3] = 0
    cost = (queries[[0, 3, 4, 5]].mean(axis=0) ** 2).sum()
    assert float(flops(queries, weights).mean()) == pytest.approx(cost, rel=1e-6)


def test_late_interaction_sums_the_best_match_of_each_token_of_the_query_in_both_directions():
    t, u = 3, 5
    vectors = [RNG.standard_normal(shape).astype(np.float32) for shape in ((N, t, D), (N, C, u, D))]
    present = [rng > 0.3 for rng in (RNG.random((N, t)), RNG.random((N, C, u)))]
    present[0][:, 0] = present[1][:, :, 0] = True
    scores = np.zeros((N, N, C))
    for i, j, c in np.ndindex(N, N, C):
        query, document = unit(vectors[0][i][present[0][i]]), unit(vectors[1][j, c][present[1][j, c]])
        scores[i, j, c] = (query @ document.T).max(axis=1).sum()
    own = scores[np.arange(N), np.arange(N), 0]
    there = np.logaddexp.reduce(scores.reshape(N, -1), axis=1) - own
    back = np.logaddexp.reduce(scores[:, :, 0], axis=0) - own
    args = [Vectors(*both) for both in zip(vectors, present, strict=True)], ONES, 1.0
    for block in (2, 1024):
        found = mean(*args[0], *args[1:], scoring=MAX_SIM, both_directions=True, block=block, known=APART)
        assert found == pytest.approx(((there + back) / 2).mean(), rel=1e-6)


@pytest.mark.parametrize("width", [2, 40])  # few are compared one by one, many are searched
def test_known_positives_and_copies_are_no_negatives(width):
    documents = APART.documents.copy()
    documents[1, 2] = documents[0, 0]  # a copy of query 0's positive
    documents[3, 1] = 4  # a copy of query 4
    positives = np.concatenate([APART.positives, np.full((N, width - 1), -1)], axis=1)
    positives[2, 1] = documents[5, 0]  # the positive of query 5 answers query 2, too
    known = Known(APART.queries, documents, positives)
    dropped = [(0, 1, 2), (4, 3, 1), (2, 5, 0)]
    each = nats(QUERIES, DOCUMENTS, 0.1, dropped)
    assert abs(each - nats(QUERIES, DOCUMENTS, 0.1)).max() > 1e-3
    assert mean(QUERIES, DOCUMENTS, ONES, 0.1, known=known) == pytest.approx(each.mean(), rel=1e-6)
    back = DOCUMENTS[:, 0].copy()
    scores = unit(back) @ unit(QUERIES).T / 0.1
    own = np.diag(scores).copy()
    scores[5, 2] = -np.inf  # document 5 answers query 2
    other = np.logaddexp.reduce(scores, axis=1) - own
    both = mean(QUERIES, DOCUMENTS, ONES, 0.1, known=known, both_directions=True)
    assert both == pytest.approx((each.mean() + other.mean()) / 2, rel=1e-5)


@pytest.mark.parametrize("both", [False, True])
def test_many_known_positives_take_no_memory_for_each_pair_of_texts(both):
    count = 1024
    known = known_of_pairs(np.arange(2 * count, dtype=np.int32).reshape(count, 2))
    vectors = np.zeros((count, 1, 4), np.float32)
    program = compiled.lower(vectors[:, 0], vectors, np.ones(count, np.float32), 0.1, known=known, both_directions=both).compile()
    assert program.memory_analysis().temp_size_in_bytes < 100 << 20  # a byte for each comparison would be 1 GiB


def test_distillation_leaves_out_the_copies_of_the_positive_that_fill_up_rows_with_fewer_negatives():
    documents, teacher = APART.documents.copy(), np.random.default_rng(2).standard_normal((N, C))
    documents[:3, 2], documents[4, 1:] = documents[:3, 0], documents[4, :1]
    known, expected = Known(APART.queries, documents, APART.positives), {"kl": 0.0, "margin_mse": 0.0}
    for i in range(N):
        there = [c for c in range(C) if c == 0 or documents[i, c] != documents[i, 0]]
        scores, right = unit(DOCUMENTS[i, there].astype(np.float64)) @ unit(QUERIES[i]) / 0.1, teacher[i, there]
        nats = [x - np.logaddexp.reduce(x) for x in (right, scores)]
        expected["kl"] += (np.exp(nats[0]) * (nats[0] - nats[1])).sum() / N
        margins = [x[0] - x[1:] for x in (right, scores)]
        expected["margin_mse"] += np.sum((margins[0] - margins[1]) ** 2) / max(1, len(there) - 1) / N
    for kind, value in expected.items():
        options = {"in_batch": False, "distillation": kind, "teacher_scores": np.float32(teacher)}
        assert mean(QUERIES, DOCUMENTS, ONES, 0.1, known=known, **options) == pytest.approx(value, rel=1e-5)


def test_missing_items_count_neither_as_queries_nor_as_negatives():
    padded = [np.concatenate([x, np.ones_like(x[:2])]) for x in (QUERIES, DOCUMENTS)]
    weights = np.concatenate([ONES, np.zeros(2, np.float32)])
    for options in ({}, {"both_directions": True}, {"distillation": "kl", "in_batch": False}):
        teacher = {"teacher_scores": np.zeros((N, C), np.float32)} if "distillation" in options else {}
        more = {"teacher_scores": np.zeros((N + 2, C), np.float32)} if teacher else {}
        assert mean(*padded, weights, **options, **more) == pytest.approx(mean(QUERIES, DOCUMENTS, ONES, **options, **teacher))


def test_the_temperature_can_be_trained():
    gradient = jax.grad(lambda t: contrastive_loss(QUERIES, DOCUMENTS, ONES, t).mean())(jnp.float32(0.1))
    low, high = (mean(QUERIES, DOCUMENTS, ONES, t) for t in (0.0999, 0.1001))
    assert float(gradient) == pytest.approx((high - low) / 0.0002, rel=1e-2)


def test_queries_are_drawn_to_their_positives_and_from_hard_negatives_on_any_devices():
    """sentence-transformers#3453: documents gathered over devices stood in another order than the labels took them to."""
    devices = make_devices(ParallelConfig(strategy="mesh", fsdp=2))
    rng = np.random.default_rng(1)
    queries, documents = unit(rng.standard_normal((16, D))), unit(rng.standard_normal((16, C, D)))
    batch = devices.put({"queries": queries.astype(np.float32), "documents": documents.astype(np.float32)})

    def loss(scale, queries, documents):  # scale [N, N, C] changes each score by itself
        scores = jnp.einsum("nd,mcd->nmc", queries, documents) + scale
        basis = jnp.eye(16 * C).reshape(16, C, -1)  # documents whose scores are the coordinates of the queries
        lifted = jnp.concatenate([scores.reshape(16, -1), jnp.sqrt(100 - jnp.sum(scores**2, axis=(1, 2)))[:, None]], axis=1)
        return contrastive_loss(lifted / 10, jnp.pad(basis, ((0, 0), (0, 0), (0, 1))), jnp.ones(16), 0.05).mean()

    with jax.set_mesh(devices.mesh):
        gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.zeros((16, 16, C)), batch["queries"], batch["documents"]))
    drawn = np.zeros((16, 16, C), bool)
    drawn[np.arange(16), np.arange(16), 0] = True
    np.testing.assert_array_equal(gradient < 0, drawn)


# --- chunks ---

CFG = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                 max_position_embeddings=16, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)  # fmt: skip
MODULE = heads.Bert(CFG, "encoder")
NEGATIVES, CHUNK, DEVICES, LENGTH = 2, 32, 8, 8


@functools.cache
def params():
    return jax.jit(lambda: heads.initialize(MODULE, 0))()


def encoded(params, rows, key):
    hidden = heads.apply(MODULE, params, rows, key)["last_hidden_state"]
    return {"vectors": hidden.astype(jnp.float32).mean(axis=1)}


def make_batch(items):
    """A batch of as many queries, with a document and hard negatives, a text a row, and the rows of each item."""
    rows = items * (2 + NEGATIVES)
    rng = np.random.default_rng(items)
    ids = rng.integers(5, 60, (rows, LENGTH)).astype(np.int32)
    slots = rng.permutation(rows).reshape(items, -1).astype(np.int32)  # the texts of an item are anywhere, as in packed rows
    return {"input_ids": ids}, {"slots": slots, "teacher": rng.standard_normal((items, 1 + NEGATIVES)).astype(np.float32)}


OPTIONS = {"both_directions": True, "dimensions": (16, 4), "distillation": "margin_mse", "block": 16}


def trained():
    """The parameters, and the logarithm of the temperature."""
    return {"model": params(), "log_temperature": jnp.log(jnp.float32(0.05))}


def loss_of(vectors, items, log_temperature):
    own = vectors[items["slots"]]
    weights = jnp.ones(own.shape[0])
    numbers = jnp.asarray(items["slots"])  # each text is another
    known = Known(numbers[:, 0], numbers[:, 1:], numbers[:, 1:2])
    temperature, options = jnp.exp(log_temperature), OPTIONS | {"known": known, "teacher_scores": items["teacher"]}
    return contrastive_loss(own[:, 0], own[:, 1:], weights, temperature, **options).mean()


def whole(params, rows, items, keys):
    """The loss of all rows in one pass, which keeps all of them in memory; keys are [devices, chunks]."""
    parts = rows["input_ids"].reshape(len(keys), -1, keys.shape[1], LENGTH).swapaxes(1, 2)
    encode = jax.vmap(jax.vmap(lambda ids, key: encoded(params["model"], {"input_ids": ids}, key)["vectors"]))
    vectors = encode(parts, keys).swapaxes(1, 2)
    return loss_of(vectors.reshape(len(rows["input_ids"]), -1), items, params["log_temperature"])


def check(found, expected):
    assert float(found.pop("log_temperature")) == pytest.approx(float(expected.pop("log_temperature")), rel=1e-6)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert float(jnp.linalg.norm(ours - theirs)) <= 1e-6 * max(float(jnp.linalg.norm(theirs)), scale)


KEY = jax.random.key(3)


def folded(key, count):
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(count))


@pytest.mark.slow
@pytest.mark.parametrize("items", [64, 512])
def test_chunks_on_a_mesh_with_fsdp_give_the_gradients_of_the_whole_batch(items):
    """With dropout: sentence-transformers#3862, where the second pass over a chunk had other random numbers than the first."""
    rows, others = make_batch(items)
    chunks = len(rows["input_ids"]) // (CHUNK if items == 64 else CHUNK * DEVICES)
    expected = jax.jit(jax.grad(whole))(trained(), rows, others, folded(KEY, chunks)[None])
    devices = make_devices(ParallelConfig(strategy="mesh", fsdp=4))

    def loss(params, batch):
        vectors = in_chunks(functools.partial(encoded, params["model"]), {"input_ids": batch["input_ids"]}, KEY, chunks)
        return loss_of(vectors["vectors"], batch, params["log_temperature"])

    step = jax.jit(jax.grad(loss), out_shardings=devices.shardings(trained()))
    with jax.set_mesh(devices.mesh):
        found = step(devices.place(jax.device_get(trained())), devices.put(rows | others))
    check(jax.device_get(found), jax.device_get(expected))


@pytest.mark.slow
@pytest.mark.parametrize("items", [64, 512])
def test_chunks_of_each_device_by_pmap_give_the_gradients_of_the_whole_batch(items):
    rows, others = make_batch(items)
    chunks = max(2, len(rows["input_ids"]) // (CHUNK * DEVICES))
    keys = jax.vmap(lambda key: folded(key, chunks))(folded(KEY, DEVICES))
    expected = jax.jit(jax.grad(whole))(trained(), rows, others, keys)
    devices = Devices(make_mesh(jax.devices()), pmap=True)

    def step(params, batch):
        def loss(params):
            key = jax.random.fold_in(KEY, jax.lax.axis_index("data"))
            encode = functools.partial(encoded, params["model"])
            vectors = in_chunks(encode, {"input_ids": batch["input_ids"]}, key, chunks)["vectors"]
            every, items = (jax.lax.all_gather(x, "data", tiled=True) for x in (vectors, {k: batch[k] for k in others}))
            return loss_of(every, items, params["log_temperature"]) / DEVICES

        return jax.lax.psum(jax.grad(loss)(params), "data")

    found = jax.pmap(step, axis_name="data", in_axes=(None, 0), out_axes=None)(trained(), devices.put(rows | others))
    check(jax.device_get(found), jax.device_get(expected))


@pytest.mark.slow
def test_memory_is_that_of_a_chunk_whatever_the_batch():
    """Compiled only: temporary memory of 256 and 8,192 rows of MiniLM's shape, 64 at a time."""
    cfg = BertConfig(vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    module = heads.Bert(cfg, "encoder")

    def temporary(rows):
        def loss(params, ids, slots):
            def encode(rows, key):
                hidden = heads.apply(module, params, rows, key)["last_hidden_state"]
                return {"vectors": hidden.astype(jnp.float32).mean(axis=1)}

            own = in_chunks(encode, {"input_ids": ids}, KEY, rows // 64)["vectors"][slots]
            return contrastive_loss(own[:, 0], own[:, 1:], jnp.ones(own.shape[0])).mean()

        shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, 64), (rows // 2, 2))]
        compiled = jax.jit(jax.grad(loss)).lower(heads.parameter_shapes(module), *shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8192) <= 1.2 * temporary(256)
