"""Exact search: among arrays, in mapped files, in less precision, on devices, and the commands for it."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from bert_jax.__main__ import main
from bert_jax.config import InputError
from bert_jax.inference import CompressedSearch, nearest, open_vectors, quantize, search, vectors
from bert_jax.inference.vectors import write_vectors


@pytest.mark.parametrize("top_k", [1, 3, 10, 50, 80])
def test_the_nearest_are_those_of_brute_force_and_ties_go_by_index(top_k):
    rng = np.random.default_rng(top_k)
    queries, corpus = rng.integers(-2, 3, (7, 4)).astype(np.float32), rng.integers(-2, 3, (50, 4)).astype(np.float32)
    scores, indices = nearest(queries, corpus, top_k)
    assert (scores.dtype, indices.dtype, scores.shape) == (np.float32, np.int64, (7, min(top_k, 50)))
    for query, some, best in zip(queries, scores, indices, strict=True):
        products = corpus @ query
        expected = sorted(range(50), key=lambda i: (-products[i], i))[:top_k]
        assert best.tolist() == expected
        np.testing.assert_array_equal(some, products[expected])


def test_all_equal_vectors_are_given_in_order():
    _, indices = nearest(np.ones((2, 3), np.float32), np.ones((1000, 3), np.float32), 4)
    assert indices.tolist() == [[0, 1, 2, 3]] * 2


def test_nearest_takes_one_query_none_and_an_empty_corpus():
    corpus = np.eye(3, dtype=np.float32)
    assert nearest(corpus[1], corpus, 1)[1].tolist() == [[1]]
    assert nearest(corpus[:0], corpus, 2)[1].shape == (0, 2)
    assert nearest(corpus, corpus[:0], 2)[1].shape == (3, 0)


def test_nearest_computes_in_floats_whatever_it_is_given():
    corpus = np.array([[100, 100], [1, 1]], np.int8)
    scores, indices = nearest(corpus, corpus, 1)
    assert indices.tolist() == [[0], [0]]
    assert scores.tolist() == [[20000], [200]]


def test_vectors_of_two_models_and_no_neighbours_are_refused():
    with pytest.raises(InputError, match="queries have 3 dimensions, the corpus 4"):
        nearest(np.ones((2, 3)), np.ones((5, 4)))
    with pytest.raises(InputError, match="top_k=0"):
        nearest(np.ones((2, 3)), np.ones((5, 3)), 0)


def test_vectors_that_are_no_numbers_come_last():
    corpus = np.array([[np.nan], [1], [3], [2], [np.nan]], np.float32)
    assert nearest(np.ones((1, 1)), corpus, 3)[1].tolist() == [[2, 3, 1]]
    for devices in ((), jax.local_devices()[:1]):
        scores, found = nearest(np.ones((1, 1)), corpus, 4, devices=devices)
        assert found.tolist() == [[2, 3, 1, 0]]
        np.testing.assert_array_equal(scores, [[3, 2, 1, np.nan]])
    bits = quantize(corpus[1:4], "binary")
    scores, _ = nearest([[np.nan], [1.0]], bits, 3, factor=0)
    np.testing.assert_array_equal(scores, [[np.nan] * 3, [0] * 3])


# --- blocks, filters and devices ---


@pytest.fixture
def small_blocks(monkeypatch):
    for name, size in (("_QUERIES", 8), ("_ROWS", 3), ("_COLUMNS", 7), ("_DEVICE_ROWS", 4), ("_DEVICE_COLUMNS", 16)):
        monkeypatch.setattr(search, name, size)
    monkeypatch.setattr(search, "_RESCORED", 64)
    monkeypatch.setattr(vectors, "_VALUES", 40)


def ranked(products, numbers, top_k):
    """The best numbers of each row, by sorting; of equal products, the smaller number first."""
    return np.array([sorted(numbers, key=lambda i, row=row: (-row[i], i))[:top_k] for row in products])


@pytest.mark.parametrize(("devices", "asked"), [(0, 11), (2, 8)])
def test_blocks_filters_and_devices_change_no_result(devices, asked, small_blocks):
    rng = np.random.default_rng(0)
    queries, corpus = (rng.integers(-2, 3, (count, 4)).astype(np.float32) for count in (asked, 90))
    on, allow, deny = jax.local_devices()[:devices], rng.permutation(90)[:48], rng.permutation(90)[:30]
    for filters, numbers in (
        ({}, range(90)), ({"allow": allow}, allow), ({"deny": deny}, set(range(90)) - set(deny.tolist())),
        ({"allow": allow, "deny": deny}, set(allow.tolist()) - set(deny.tolist())),
    ):  # fmt: skip
        numbers = sorted(map(int, numbers))
        for top_k in (5,) if devices else (5, 90):  # each is compiled
            scores, found = nearest(queries, corpus, top_k, devices=on, **filters)
            expected = ranked(queries @ corpus.T, numbers, top_k)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(scores, np.take_along_axis(queries @ corpus.T, expected, axis=1))
    with pytest.raises(InputError, match="deny has the number 90; the corpus has the numbers 0 to 89"):
        nearest(queries, corpus, deny=[3, 90])


@pytest.mark.parametrize(("devices", "asked"), [(0, 11), (2, 8)])
def test_a_document_has_the_score_of_its_best_vector(devices, asked, small_blocks):
    rng = np.random.default_rng(2)
    queries, corpus = (rng.integers(-2, 3, (count, 4)).astype(np.float32) for count in (asked, 90))
    documents = np.sort(np.append(rng.choice(np.arange(3, 40), 60), [2] * 30))  # the first fills several blocks
    on, products = jax.local_devices()[:devices], queries @ corpus.T
    for filters, kept in (({}, range(90)), ({"deny": range(20, 55)}, [*range(20), *range(55, 90)])):
        there = sorted(set(documents[list(kept)].tolist()))
        best = np.full((asked, 40), -np.inf, np.float32)
        np.maximum.at(best, (slice(None), documents[list(kept)]), products[:, list(kept)])
        for top_k in (3,) if devices else (3, 90):  # each is compiled
            scores, found = nearest(queries, corpus, top_k, documents=documents, devices=on, **filters)
            expected = ranked(best, there, top_k)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(scores, np.take_along_axis(best, expected, axis=1))
    for wrong, rescore, message in ((documents[::-1], None, "must ascend"), (documents, corpus, "not scored again by passages")):
        with pytest.raises(InputError, match=message):
            nearest(queries, corpus, documents=wrong, rescore=rescore)


# --- precisions ---

RNG = np.random.default_rng(1)
QUERIES, CORPUS = (RNG.standard_normal((count, 20)).astype(np.float32) for count in (9, 120))


def written(precision, folder):
    """The corpus in a file, as it was read back, and as it is in memory."""
    path = folder / f"{precision}.safetensors"
    write_vectors(path, CORPUS, precision)
    return open_vectors(path), quantize(CORPUS, precision)


@pytest.mark.parametrize(
    ("precision", "size", "exact"),
    [("float32", 80, CORPUS), ("bfloat16", 40, CORPUS.astype(ml_dtypes.bfloat16)), ("int8", 20, None), ("binary", 3, CORPUS > 0)],
)
def test_a_search_in_less_precision_is_that_of_the_values_that_are_stored(precision, size, exact, small_blocks, tmp_path):
    mapped, kept = written(precision, tmp_path)
    assert (mapped.precision, mapped.width, mapped.array.nbytes) == (precision, 20, 120 * size)
    assert mapped.array.dtype == kept.array.dtype
    np.testing.assert_array_equal(mapped.array.view(np.uint8), kept.array.view(np.uint8))
    stored = mapped.decode(slice(0, 120))
    if exact is None:  # a step is 1 / 255 of the range, and values are rounded down to it
        steps = (CORPUS.max(axis=0) - CORPUS.min(axis=0)) / 255
        assert ((stored <= CORPUS + 1e-5) & (stored >= CORPUS - 1.001 * steps)).all()
    else:
        np.testing.assert_array_equal(stored, exact.astype(np.float32))
    scores, found = nearest(QUERIES, mapped, 5, factor=24)  # all 120 bits are scored again
    products = QUERIES @ stored.T
    np.testing.assert_array_equal(found, ranked(products, range(120), 5))
    np.testing.assert_allclose(scores, np.take_along_axis(products, found, axis=1), rtol=1e-4, atol=1e-5)


def test_bits_are_compared_by_hamming_distance_and_the_best_scored_again(small_blocks, tmp_path):
    bits, _ = written("binary", tmp_path)
    distances = np.sum((QUERIES > 0)[:, None] != (CORPUS > 0)[None], axis=-1)
    scores, found = nearest(QUERIES, bits, 6, factor=0)
    np.testing.assert_array_equal(found, ranked(-distances, range(120), 6))
    np.testing.assert_array_equal(scores, -np.take_along_axis(distances, found, axis=1))
    for rescore, products in ((None, QUERIES @ (CORPUS > 0).T), (CORPUS, QUERIES @ CORPUS.T)):
        scores, found = nearest(QUERIES, bits, 3, rescore=rescore, factor=2)
        candidates = ranked(-distances, range(120), 6)
        expected = np.array([sorted(own, key=lambda i, q=q: -products[q, i])[:3] for q, own in enumerate(candidates)])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(scores, np.take_along_axis(products, expected, axis=1), rtol=1e-4, atol=1e-5)


def test_blocks_that_are_compressed_at_the_end_are_searched_as_a_whole_corpus():
    """Documents have every other number; then passages, three a document."""
    for precision, rescore in (("bfloat16", None), ("int8", None), ("binary", None), ("int8", 7), ("binary", 20)):
        kept, search = quantize(CORPUS, precision), CompressedSearch(QUERIES, 11, precision, rescore)
        for part in (slice(0, 50), slice(50, 51), slice(51, 120)):
            search.add(CORPUS[part], range(0, 240, 2)[part])
        again = {"rescore": CORPUS, "factor": 1} if rescore else {}
        scores, found = nearest(QUERIES, kept, rescore or 11, **again)
        for ours, theirs in zip(search.found(), (scores, 2 * found), strict=True):
            np.testing.assert_array_equal(ours, theirs[:, :11])
        search, documents = CompressedSearch(QUERIES, 11, precision), np.repeat(range(40), 3)
        search.add(CORPUS, documents)
        for ours, theirs in zip(search.found(), nearest(QUERIES, kept, 11, factor=0, documents=documents), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantize(np.array([[1.0, 2.0], [np.nan, 0.0]]), "int8"), "vector 1 has a value that is not finite"),
        (lambda: quantize(CORPUS, "int4"), "precision='int4': expected one of float32, bfloat16, int8, binary"),
        (lambda: quantize(CORPUS, "int8", np.zeros((2, 3))), r"ranges of the shape \(2, 3\); vectors of width 20"),
        (lambda: nearest(QUERIES, quantize(CORPUS, "binary"), rescore=CORPUS[:5]), r"rescore has the shape \(5, 20\)"),
        (lambda: nearest(QUERIES, CORPUS, factor=-1), "factor=-1 is below 0"),
        (lambda: nearest(QUERIES, CORPUS, allow=CORPUS[:, 0] > 0), r"allow is an array \(120,\) of bool, not one of whole"),
        (lambda: nearest(QUERIES, CORPUS, deny=3), r"deny is an array \(\) of int64, not one"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_files_without_vectors_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"text")
    np.save(tmp_path / "b.npy", np.zeros(3))
    vectors.write_vectors(tmp_path / "c.safetensors", CORPUS, "int8")
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:-1])
    for name, message in (
        ("a.npy", "is not a .npy of vectors"), ("b.npy", "does not hold vectors"), ("c.safetensors", "is damaged"),
        ("d.npy", "^no "),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            open_vectors(tmp_path / name)


# --- commands ---


def test_quantize_and_nearest_search_files_by_ids(tmp_path, capsys):
    names = {"queries": QUERIES, "corpus": CORPUS, "odd": np.where(np.arange(120)[:, None] == 4, np.nan, CORPUS)}
    path = {name: str(tmp_path / f"{name}.npy") for name in names}
    for name, array in names.items():
        np.save(path[name], array.astype(np.float32))
    ids, denied, bits, run = (str(tmp_path / name) for name in ("ids.txt", "deny.txt", "bits.safetensors", "a.trec"))
    (tmp_path / "ids.txt").write_text("".join(f"d{i}\n" for i in range(120)))
    best = ranked(QUERIES @ CORPUS.T, range(120), 3)
    (tmp_path / "deny.txt").write_text(f"d{best[0, 0]}\n")
    assert not main(["quantize", path["corpus"], "--out", bits, "--precision", "binary"])
    assert capsys.readouterr().out == f"{bits}: 120 vectors of 20, binary\n"
    more = ["--top-k", "3", "--factor", "40", "--rescore", path["corpus"], "--ids", ids]
    assert not main(["nearest", path["queries"], bits, *more, "--deny", denied])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == [str(i) for i in range(9)]
    for query, line in enumerate(lines):
        expected = ranked(QUERIES @ CORPUS.T, sorted(set(range(120)) - {best[0, 0]}), 3)[query]
        assert [each["id"] for each in line["nearest"]] == [f"d{i}" for i in expected]
    assert not main(["nearest", path["queries"], bits, *more, "--out", run])
    lines = (tmp_path / "a.trec").read_text().splitlines()
    assert [line.split()[2] for line in lines] == [f"d{i}" for i in best.reshape(-1)]
    assert not main(["nearest", path["queries"], path["odd"], "--top-k", "120"])  # a null text has no vector
    assert all(len(json.loads(line)["nearest"]) == 119 for line in capsys.readouterr().out.splitlines())
    (tmp_path / "deny.txt").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(b"d%d" % i for i in range(120)) + b"\r\n")
    with pytest.raises(InputError, match="--allow and --deny leave none of the 120 vectors"):
        main(["nearest", path["queries"], bits, *more, "--deny", denied])
    (tmp_path / "deny.txt").write_text("d0\nx\n")
    for words, message in (
        (["nearest", path["queries"], bits, *more, "--deny", denied], r"deny.txt:2: no vector of .* has the id 'x' \(--ids\)"),
        (["nearest", bits, path["corpus"]], "is binary: give vectors as"),
        (["nearest", path["queries"], bits, "--ids", denied], "2 ids for the 120 vectors"),
        (["quantize", path["odd"], "--out", bits], "vector 4 has a value that is not finite"),
        (["quantize", bits, "--out", bits], "is binary already"),
    ):
        with pytest.raises(InputError, match=message):
            main(words)
