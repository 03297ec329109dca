"""Retrieval from files to scores: a folder in BEIR's layout, and a table with hard negatives."""

import dataclasses
import functools
import json
import re
import shlex

import jax.numpy as jnp
import numpy as np
import pytest
from finetune_cases import FILLERS, ROOT, arguments, recorded, results_of, text, tune

import bert_jax
import finetune
from bert_jax.__main__ import main
from bert_jax.data.batching import PackedBatch
from bert_jax.data.layout import Layout
from bert_jax.data.plain_tokenizer import PlainTokenizer
from bert_jax.data.records import Record
from bert_jax.errors import InputError
from bert_jax.finetuning.config import FinetuneConfig
from bert_jax.finetuning.trainer import _bounded
from bert_jax.tasks.forms import FORMS
from bert_jax.tasks.ranking import ranking_scores
from bert_jax.tasks.splits import load_splits
from bert_jax.tasks.table import KINDS, RETRIEVERS, find_task, in_precision, task_of
from bert_jax.tasks.task import Options, TaskData
from bert_jax.training.contrastive import Known, contrastive_loss
from bert_jax.training.steps import TrainState

RETRIEVAL = KINDS["retrieval"]
PROMPTS = {"query": f"{FILLERS[0]}: ", "document": f"{FILLERS[1]} "}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents of two words that no other has both of, and queries with these among others."""
    folder, rng = tmp_path_factory.mktemp("beir"), np.random.default_rng(0)
    (folder / "qrels").mkdir()
    pairs = [(a, b) for i, a in enumerate(FILLERS[:9]) for b in FILLERS[:i]]
    corpus = [{"_id": f"d{i}", "text": text(rng, *pair, words=6)} for i, pair in enumerate(pairs)]
    queries = [{"_id": f"q{i}", "text": text(rng, *pair, words=3)} for i, pair in enumerate(pairs)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, own in (("train", range(24)), ("dev", range(24, 30)), ("test", range(30, 36))):
        lines = "".join(f"q{i}\td{i}\t1\n" for i in own)
        (folder / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


@pytest.fixture(scope="module")
def run(model, folder, tmp_path_factory):
    """A run on one device."""
    workdir = tmp_path_factory.mktemp("retrieval")
    options = {"query_prompt": PROMPTS["query"], "document_prompt": PROMPTS["document"], "dimensions": "32,8"}
    tune(model, "retrieval", folder, workdir, num_epochs=12, learning_rates="1e-2", **options)
    return workdir


def losses_of(workdir, *names):
    """The loss, the norm of its gradients and metrics by name of each step."""
    steps = [each for line in recorded(workdir) if "train/loss" in (each := json.loads(line))]
    return np.array([[each[f"train/{name}"] for name in ("loss", "gradient_norm", *names)] for each in steps])


def scores_by_hand(embed, folder, split, rank=None):
    """The scores of a predictor, by a ranking of all documents, or by the numbers that `rank` gives for vectors."""
    files = ((folder / f"{name}.jsonl").read_text().splitlines() for name in ("corpus", "queries"))
    corpus, queries = ([json.loads(line) for line in lines] for lines in files)
    corpus.sort(key=lambda row: row["_id"], reverse=True)  # of equal scores, the larger id comes first
    own = [line.split("\t")[:2] for line in (folder / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]]
    documents = embed([row["text"] for row in corpus], prompt_name="document")
    asked = {row["_id"]: row["text"] for row in queries}
    queries = embed([asked[q] for q, _ in own], prompt_name="query")
    if rank is None:
        scores = queries @ documents.T
        order = np.argsort(-(scores if isinstance(scores, np.ndarray) else scores.toarray()), axis=1)
    else:
        order = rank(queries, documents)
    return ranking_scores(
        [[float(corpus[j]["_id"] == d) for j in row] for row, (_, d) in zip(order, own, strict=True)], [[1]] * len(own)
    )


def test_the_scores_are_those_of_the_saved_model_with_its_prompts(run, folder):
    found, embed = results_of(run), bert_jax.Embedder(bert_jax.load(run / "export"))
    for split in ("dev", "test"):
        assert found["exported"][split] == pytest.approx(scores_by_hand(embed, folder, split), abs=1e-6)
    losses = losses_of(run)[:, 0]
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    history = [each["score"] for each in found["runs"][0]["history"]]
    assert history[1] > history[0]
    library = json.loads((run / "export" / "config_sentence_transformers.json").read_text())
    assert (library["prompts"], library["similarity_fn_name"]) == (PROMPTS, "cosine")
    lines = (run / "predictions" / "dev.trec").read_text().splitlines()
    assert len(lines) == 6 * 36
    assert lines[0].split()[:2] == ["q24", "Q0"]


def test_evaluate_scores_a_folder_with_the_prompts_of_the_model(run, folder, tmp_path):
    main(["evaluate", str(run / "export"), "--data", str(folder), "--out", str(tmp_path)])
    assert results_of(tmp_path)["exported"]["test"] == pytest.approx(results_of(run)["exported"]["test"], abs=1e-6)


def test_evaluate_scores_a_table_of_token_vectors_with_its_prompts(tokenizer, folder, tmp_path):
    table = np.random.default_rng(0).standard_normal((280, 16)).astype(np.float32)
    made = bert_jax.StaticEmbedder(table, PlainTokenizer.of(tokenizer), prompts=PROMPTS)
    made.save(tmp_path / "table")
    main(["evaluate", str(tmp_path / "table"), "--data", str(folder), "--out", str(tmp_path / "out")])
    found, expected = results_of(tmp_path / "out")["exported"], scores_by_hand(made, folder, "test")
    assert found == {"test": pytest.approx(expected, abs=1e-6)}
    assert 0 < expected["ndcg_at_10"] < 1
    rows = [{"query": f"{a} {b}", "positive": f"{b} {a} {a}"} for a, b in zip(FILLERS[:8], FILLERS[8:16], strict=True)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["evaluate", str(tmp_path / "table"), "--data", str(tmp_path / "test.jsonl"), "--out", str(tmp_path / "rows")])
    products = made([row["query"] for row in rows], "query") @ made([row["positive"] for row in rows], "document").T
    ranked = [(np.argsort(-own) == i).astype(float) for i, own in enumerate(products)]
    assert results_of(tmp_path / "rows")["exported"]["test"] == pytest.approx(ranking_scores(ranked, [[1]] * 8), abs=1e-6)


def test_a_learnt_temperature_has_its_own_rate_no_decay_and_a_place_in_the_export(model, folder, run, tmp_path):
    options = {"query_prompt": PROMPTS["query"], "document_prompt": PROMPTS["document"], "dimensions": "32,8"}
    argv = arguments(model, "retrieval", folder, tmp_path, num_epochs=1, learning_rates="1e-2", weight_decay=0.1, **options)
    assert finetune.main([*argv, "--learn-temperature"]) == 0
    losses = losses_of(tmp_path, "temperature")
    loss, norm = losses_of(run)[0]
    np.testing.assert_allclose(losses[0, [0, 2]], [loss, 0.05], rtol=1e-5)
    assert losses[0, 1] > norm  # its gradient counts, too
    moves = np.diff(np.log(losses[:, 2]))
    assert abs(moves[0]) == pytest.approx(0.1, rel=1e-3)  # the first update of Adam is the rate
    said = json.loads((tmp_path / "export" / "config.json").read_text())["bert_jax"]
    assert abs(np.log(said["temperature"] / losses[-1, 2])) < 0.1
    assert said == {"task": "retrieval", "temperature": bert_jax.pretrained.describe(tmp_path / "export").tuned.temperature}
    low = TrainState(0, {"loss": {"log_temperature": jnp.float32(-9)}}, (), 0, 0)
    assert float(jnp.exp(_bounded(low).params["loss"]["log_temperature"])) == pytest.approx(0.01)


def test_evaluate_searches_vectors_in_less_precision_as_nearest_does(run, tokenizer, folder, tmp_path):
    table = np.random.default_rng(0).standard_normal((280, 16)).astype(np.float32)
    made = bert_jax.StaticEmbedder(table, PlainTokenizer.of(tokenizer), prompts=PROMPTS)
    made.save(tmp_path / "table")

    def ranked(queries, documents, precision, rescore):
        queries, documents = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents))
        again = {"rescore": documents, "factor": 1} if rescore else {}
        return bert_jax.nearest(queries, bert_jax.quantize(documents, precision), rescore or 36, **again)[1]

    encoder, seen = bert_jax.Embedder(bert_jax.load(run / "export")), set()
    for embed, precision, rescore in ((made, "int8", 0), (made, "binary", 0), (made, "binary", 9), (encoder, "binary", 9)):
        path = tmp_path / "table" if embed is made else run / "export"
        more = ["--precision", precision, *["--rescore", str(rescore)] * (rescore > 0)]
        main(["evaluate", str(path), "--data", str(folder), "--out", str(tmp_path / "out"), *more])
        expected = scores_by_hand(embed, folder, "test", functools.partial(ranked, precision=precision, rescore=rescore))
        assert results_of(tmp_path / "out")["exported"]["test"] == pytest.approx(expected, abs=1e-6)
        seen.add(expected["map"])
        if rescore:
            lines = (tmp_path / "out" / "predictions" / "test.trec").read_text().splitlines()
            assert len(lines) == 6 * 9
    assert len(seen) == 4
    for task, precision, rescore, message in (
        (find_task("retrieval"), "float32", 9, "--rescore 9 --precision float32: expected a number of candidates, with"),
        (find_task("retrieval"), "int8", 0, "--rescore 0 --precision int8: expected a number of candidates"),
        (find_task("retrieval", "sparse"), "int8", None, "--precision int8 is for retrieval with a vector for each text"),
        (find_task("cola"), "binary", None, "--precision binary is for retrieval with a vector for each text"),
    ):
        with pytest.raises(InputError, match=message):
            in_precision(task, precision, rescore)
    with pytest.raises(InputError, match="--rescore and --chunk-documents exclude each other"):
        main(["evaluate", "x", "--data", "x", "--precision", "int8", "--rescore", "9", "--chunk-documents", "9"])


@pytest.mark.slow
def test_a_learnt_temperature_is_the_same_in_chunks_on_any_devices(model, folder, tmp_path):
    found, more = [], {"chunk_size": 1, "batching": "padded", "num_devices": 8}
    for name, how in (("one", {}), ("pmap", {"strategy": "pmap", **more}), ("mesh", {"strategy": "mesh", "fsdp": 2, **more})):
        argv = arguments(model, "retrieval", folder, tmp_path / name, num_epochs=1, learning_rates="1e-5", **how)
        assert finetune.main([*argv, "--learn-temperature"]) == 0
        found.append(losses_of(tmp_path / name, "temperature"))
    assert len(set(found[0][:, 2])) == 3
    for each in found[1:]:
        np.testing.assert_allclose(each[0], found[0][0], rtol=1e-5)
        np.testing.assert_allclose(each[:, [0, 2]], found[0][:, [0, 2]], rtol=1e-5)
    more = {"seeds": 2, "together": "yes"}
    argv = arguments(model, "retrieval", folder, tmp_path / "two", num_epochs=1, learning_rates="1e-5", **more)
    assert finetune.main([*argv, "--learn-temperature"]) == 0
    steps = [each for line in recorded(tmp_path / "two" / "runs") if "train/loss" in (each := json.loads(line))]
    np.testing.assert_allclose([each["train/seed0-lr1e-05/temperature"] for each in steps], found[0][:, 2], rtol=1e-5)


def test_a_sparse_retriever_learns_is_scored_as_its_export_and_keeps_its_form(model, folder, tmp_path):
    weights = {"query_regularizer_weight": 1e-3, "document_regularizer_weight": 2e-3}
    more = {"query_prompt": PROMPTS["query"], "document_prompt": PROMPTS["document"], "form": "sparse", **weights}
    found = tune(model, "retrieval", folder, tmp_path, num_epochs=6, learning_rates="1e-2", **more)
    expected = scores_by_hand(bert_jax.SparseEmbedder(bert_jax.load(tmp_path / "export")), folder, "dev")
    assert found["exported"]["dev"] == pytest.approx(expected, abs=1e-6)
    steps = [each for line in recorded(tmp_path) if "train/loss" in (each := json.loads(line))]
    losses = [each["train/retrieval_loss"] for each in steps]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:2])
    assert steps[0]["train/document_flops_loss"] == 0 < steps[2]["train/document_flops_loss"]
    assert 0 < steps[-1]["train/query_tokens"] < 280
    described = bert_jax.pretrained.describe(tmp_path / "export")
    assert task_of("retrieval", described).kind.form.name == "sparse"
    with pytest.raises(InputError, match=r"has sparse embeddings, not dense ones: give --task retrieval --form sparse"):
        tune(tmp_path / "export", "retrieval", folder, tmp_path / "dense", num_epochs=1)


def test_queries_have_the_idf_of_their_tokens_in_the_corpus_and_nothing_of_the_encoder(tokenizer, folder):
    form, cfg = FORMS["sparse"], bert_jax.BertConfig(vocab_size=280)
    splits = load_splits(find_task("retrieval"), TaskData(data=str(folder)))
    corpus = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
    having = np.zeros(280)
    for ids in tokenizer.encode_batch(corpus):
        having[np.unique(ids)] += 1
    expected = np.log(1 + (36 - having + 0.5) / (having + 0.5))
    expected[list(tokenizer.special_ids)] = 0
    model = bert_jax.Model(cfg, {}, tokenizer, "masked_lm", pooling=bert_jax.SparsePooling())
    model, notes = RETRIEVERS["sparse"].adapt(model, 16, find_task("retrieval"), splits, Options(query_weights="idf"))
    table = model.pooling.query_weights.values
    np.testing.assert_allclose(table, expected, rtol=1e-6)
    assert f"a table, {np.count_nonzero(expected)} tokens" in notes[0]
    with pytest.raises(InputError, match="query_regularizer_weight is for queries that the encoder reads"):
        RETRIEVERS["sparse"].adapt(model, 16, find_task("retrieval"), splits, Options(query_regularizer_weight=1.0))
    # two rows of packed sequences: [document, query, padding] and [query, document]
    ids = np.array([[9, 8, 7, 7, 5, 0, 0], [6, 6, 9, 8, 8, 8, 8]], np.int32)
    rows = {"input_ids": ids, "sequence_ids": np.array([[1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 2, 2, 2, 2]], np.int32),
            "cls_positions": np.zeros((2, 2), np.int32)}  # fmt: skip
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 280)), jnp.float32)
    reduced = form.reduce({"masked_lm_logits": logits}, rows, model)
    queries, documents = form.items(reduced, {"slots": np.array([[1, 0], [2, 3]], np.int32)}, model)
    looked_up = np.zeros((2, 280), np.float32)
    for row, own in zip(looked_up, ([7, 5], [6, 9]), strict=True):
        row[own] = table[own]
    np.testing.assert_array_equal(queries, looked_up)
    plain = dataclasses.replace(model, pooling=bert_jax.SparsePooling())
    pooled = form.reduce({"masked_lm_logits": logits}, rows, plain)
    assert pooled.keys() == {"vectors"}
    np.testing.assert_array_equal(documents[:, 0], np.asarray(pooled["vectors"]).reshape(4, 280)[[0, 3]])


@pytest.mark.slow
def test_a_sparse_retriever_without_inference_of_queries_learns_is_scored_as_its_export_and_keeps_its_table(
    model, folder, tmp_path
):
    more = {"query_prompt": PROMPTS["query"], "document_prompt": PROMPTS["document"], "form": "sparse", "learning_rates": "1e-2"}
    found = tune(model, "retrieval", folder, tmp_path / "first", num_epochs=6, query_weights="idf", **more)
    trained = bert_jax.load(tmp_path / "first" / "export")
    embed = bert_jax.SparseEmbedder(trained)
    corpus, queries = ([json.loads(line)["text"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
                       for name in ("corpus", "queries"))  # fmt: skip
    scores = (embed.queries(queries[24:30]) @ embed(corpus, prompt_name="document").T).toarray()
    ranked = [[float(j == i) for j in np.argsort(-row)] for i, row in enumerate(scores, 24)]
    assert found["exported"]["dev"] == pytest.approx(ranking_scores(ranked, [[1]] * 6), abs=1e-6)
    losses = [each["train/retrieval_loss"] for line in recorded(tmp_path / "first") if "train/loss" in (each := json.loads(line))]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:2])
    table = trained.pooling.query_weights
    for given, expected in ((None, table), ("encoder", None)):
        options = {} if given is None else {"query_weights": given}
        tune(tmp_path / "first" / "export", "retrieval", folder, tmp_path / str(given), num_epochs=1, **more, **options)
        assert bert_jax.pretrained.describe(tmp_path / str(given) / "export").pooling.query_weights == expected


@pytest.mark.slow
def test_a_retriever_with_a_vector_for_each_token_learns_and_is_scored_as_its_export(model, folder, tmp_path):
    more = {"query_prompt": PROMPTS["query"], "document_prompt": PROMPTS["document"], "form": "multi_vector", "query_length": 12}
    found = tune(model, "retrieval", folder, tmp_path, num_epochs=4, learning_rates="1e-2", **more)
    embed = bert_jax.MultiVector(bert_jax.load(tmp_path / "export"))
    assert (embed.pooling.query_length, embed.pooling.query_marker, embed.pooling.width) == (12, "", 128)
    corpus, queries = ([json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
                       for name in ("corpus", "queries"))  # fmt: skip
    asked = embed.queries([row["text"] for row in queries[24:30]])
    assert all(vectors.shape == (12, 128) for vectors in asked)
    scores = embed.scores(asked, embed.documents([row["text"] for row in corpus]))
    ranked = [[float(j == i) for j in np.argsort(-row)] for i, row in enumerate(scores, 24)]
    assert found["exported"]["dev"] == pytest.approx(ranking_scores(ranked, [[1]] * 6), abs=1e-6)
    losses = losses_of(tmp_path)[:, 0]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert task_of("retrieval", bert_jax.pretrained.describe(tmp_path / "export")).kind.form.name == "multi_vector"


def test_forms_and_their_options_are_refused_where_they_do_not_belong():
    with pytest.raises(InputError, match="form='sparse' is for retrieval, not for cola"):
        find_task("cola", "sparse")
    for name, value, form in (("dimensions", (8,), "dense"), ("document_regularizer_weight", 1.0, "sparse")):
        other = {"dense": "sparse", "sparse": "dense"}[form]
        with pytest.raises(InputError, match=f"{name}=.* is for retrieval --form {form}, not for retrieval"):
            FinetuneConfig(**{name: value}).options(find_task("retrieval", other).kind)
        assert getattr(FinetuneConfig(**{name: value}).options(find_task("retrieval", form).kind), name) == value
    sparse = find_task("retrieval", "sparse")
    assert [FinetuneConfig().resolved(task).temperature for task in (sparse, find_task("retrieval"))] == [1, 0.05]


def test_a_document_has_the_score_of_its_best_passage(run, folder, tmp_path):
    size, words = (8, 1), ["evaluate", str(run / "export"), "--data", str(folder), "--out", str(tmp_path / "out")]
    main([*words, "--chunk-documents", "8,1"])
    corpus, asked = (
        {row["_id"]: row["text"] for row in map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())}
        for name in ("corpus", "queries")
    )
    embedder, queries = bert_jax.Embedder(bert_jax.load(run / "export")), [f"q{i}" for i in range(30, 36)]
    vectors, documents = embedder.passages(list(corpus.values()), *size, prompt_name="document")
    assert len(vectors) > 1.5 * len(corpus)
    products = embedder([asked[query] for query in queries], prompt_name="query") @ vectors.T
    best = np.array([products[:, documents == i].max(axis=1) for i in range(len(corpus))]).T
    scores, found = bert_jax.nearest(products, np.eye(len(vectors)), 36, documents=documents)
    np.testing.assert_allclose(scores, np.take_along_axis(best, found, axis=1), atol=1e-6)
    ranked = [[float(f"d{j}" == f"d{i}") for j in own] for i, own in enumerate(np.argsort(-best, axis=1), 30)]
    assert results_of(tmp_path / "out")["exported"]["test"] == pytest.approx(ranking_scores(ranked, [[1]] * 6), abs=1e-6)
    with pytest.raises(InputError, match="--chunk-documents is for retrieval from a folder"):
        load_splits(find_task("retrieval"), TaskData(data=str(folder / "corpus.jsonl"), chunk_documents="14"))
    with pytest.raises(InputError, match="expected TOKENS or TOKENS,OVERLAP"):
        TaskData(data=str(folder), chunk_documents="14;3")


def test_mined_negatives_rank_high_below_the_margin_and_answer_no_query(run, folder, tmp_path, capsys):
    out = tmp_path / "mined.jsonl"
    main(["mine", str(run / "export"), "--data", str(folder), "--out", str(out), "--negatives", "3", "--skip-top", "2"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 24
    embedder = bert_jax.Embedder(bert_jax.load(run / "export"))
    corpus = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
    documents = embedder(corpus, prompt_name="document")
    for row, query in zip(rows, embedder([row["query"] for row in rows], prompt_name="query"), strict=True):
        scores = documents @ query
        allowed = [i for i in np.argsort(-scores)[2:] if scores[i] <= 0.95 * scores[corpus.index(row["positive"])]]
        expected = [corpus[i] for i in allowed if corpus[i] != row["positive"]][:3]
        assert [row[f"negative_{i}"] for i in (1, 2, 3)] == expected + [""] * (3 - len(expected))
    fewer, none = (sum(not row[name] for row in rows) for name in ("negative_3", "negative_1"))
    assert f"24 pairs, of which {fewer} have fewer than 3 negatives and {none} none" in capsys.readouterr().out


@pytest.mark.slow
def test_chunks_on_eight_devices_by_pmap_train_as_the_whole_batch_on_one(model, folder, run, tmp_path):
    options = {"query_prompt": PROMPTS["query"], "document_prompt": PROMPTS["document"], "dimensions": "32,8"}
    more = {"num_devices": 8, "strategy": "pmap", "chunk_size": 1, "batching": "padded"}
    tune(model, "retrieval", folder, tmp_path, num_epochs=1, **options, **more)
    np.testing.assert_allclose(losses_of(tmp_path)[0], losses_of(run)[0], rtol=1e-5)  # before the weights change


@pytest.mark.slow
@pytest.mark.parametrize("form", [name for name in FORMS if name != "dense"])
def test_chunks_of_every_form_on_eight_devices_train_as_the_whole_batch_on_one(form, model, folder, tmp_path):
    eight = {"num_devices": 8, "strategy": "pmap", "chunk_size": 1, "batching": "padded"}
    for name, more in (("one", {}), ("eight", eight)):
        tune(model, "retrieval", folder, tmp_path / name, num_epochs=1, form=form, **more)
    np.testing.assert_allclose(losses_of(tmp_path / "eight")[0], losses_of(tmp_path / "one")[0], rtol=1e-5)


def test_known_documents_and_copies_have_the_numbers_that_the_loss_leaves_out(tokenizer):
    rows = [("ab", "cd", "ef", ""), ("gh", "ij", "cd", "ab"), ("ab", "kl", "ij", "mn")]
    layout = Layout(tokenizer, bert_jax.BertConfig(vocab_size=280), 16)
    items = RETRIEVAL.encode([Record(texts, None, str(i), f"f:{i}") for i, texts in enumerate(rows)], (), layout).items
    #   query, document, two negatives (the missing one is a copy of the document), and the known documents of the query
    assert [item.target.tolist() for item in items] == [[0, 1, 2, 1, 1, 5], [3, 4, 1, 0, 4, -1], [0, 5, 4, 6, 1, 5]]


def scored_table(folder, scores):
    """A table of 12 rows, every other one without a second negative."""
    rows = [{"query": f"q {i}", "positive": f"p {i}", "negative_1": f"n {i}", "negative_2": "m" * (i % 2), "scores": scores(i)}
            for i in range(12)]  # fmt: skip
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "train.jsonl")


def test_a_teachers_scores_are_read_where_their_column_is_named_and_nothing_changes_without(tokenizer, tmp_path):
    data = scored_table(tmp_path, lambda i: [1.5 + i, -0.5, 0.25 if i % 2 else None])
    layout, task = Layout(tokenizer, bert_jax.BertConfig(vocab_size=280), 16), find_task("retrieval")
    vectors, batches = np.random.default_rng(0).standard_normal((1, 8, 6)).astype(np.float32), []
    for column in ((), ("scores",)):
        records = load_splits(task, TaskData(data=data, label_column=column, dev_size=2)).train
        options, records, _ = RETRIEVAL.settle(Options(), records)
        items = RETRIEVAL.encode(records, (), layout).items[:2]
        assert options.distillation == ("kl" if column else None)
        packed = PackedBatch({}, np.zeros((1, 8), np.int32), [])
        batches.append(RETRIEVAL.targets(items, packed, 2))
    plain, scored = batches
    assert all(np.array_equal(plain[name], scored[name]) and plain[name].dtype == scored[name].dtype for name in plain)
    assert set(scored) - set(plain) == {"teacher_scores"}
    numbers = [int(record.texts[0][2:]) for record in records[:2]]
    expected = [[1.5 + i, -0.5, 0.25 if i % 2 else 1.5 + i] for i in numbers]  # a missing negative is a copy of the document
    np.testing.assert_array_equal(scored["teacher_scores"], np.array(expected, np.float32))
    slots = np.arange(8, dtype=np.int32).reshape(2, 4)
    for batch, teacher in ((plain, {}), (scored, {"distillation": "kl", "teacher_scores": scored["teacher_scores"]})):
        given = Options(distillation="kl" if teacher else None)
        found = RETRIEVAL.loss({"vectors": vectors}, batch | {"slots": slots}, given, None)["retrieval_loss"]
        own = vectors.reshape(2, 4, 6)
        known = Known(batch["query_ids"], batch["document_ids"], batch["positive_ids"])
        assert float(found.total) == float(
            contrastive_loss(own[:, 0], own[:, 1:], batch["weights"], known=known, **teacher).total
        )


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0], "2 scores for 3 documents"),
        ([1.0, None, 0.5], "a document has no score"),
        ("high", "expected a list of numbers"),
    ],
)
def test_scores_that_do_not_fit_are_refused_with_their_line(scores, message, tmp_path):
    data = scored_table(tmp_path, lambda i: scores)
    with pytest.raises(InputError, match=f"train.jsonl:1: .*{message}"):
        load_splits(find_task("retrieval"), TaskData(data=data, label_column=("scores",)))


@pytest.mark.slow
def test_a_table_is_searched_among_its_own_documents(model, tmp_path):
    rng = np.random.default_rng(1)
    rows = [{"query": q, "positive": f"{q} {FILLERS[2]}", "negative_1": text(rng), "negative_2": text(rng) * (i % 2)}
            for i, q in enumerate(text(rng, words=3) for _ in range(16))]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tune(
        model, "retrieval", tmp_path / "train.jsonl", tmp_path / "run", num_epochs=1, eval_every=1, batch_size=14, dev_size=2
    )
    assert set(found["metrics"]["dev"]) == {"ndcg_at_10", "mrr_at_10", "map", "recall_at_1", "recall_at_10", "recall_at_100"}


def commands_of_the_guide(small):
    """Returns the words of the commands of each block, with small sizes in place of its own."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "retrieval.md").read_text(), re.DOTALL)
    small = {"256": "48", "64": "8", "10": "2", **small}
    return [[[small.get(word, word) for word in shlex.split(line)[1:]] for line in block.splitlines()] for block in blocks]


def run_commands(commands, epochs="2"):
    for words in commands:
        more = ["--num-epochs", epochs, "--num-devices", "1", "--learning-rates", "1e-2"] if words[0] == "finetune" else []
        assert not main([*words, *more])


@pytest.mark.docs
def test_the_first_commands_of_the_guide_lead_from_a_folder_of_text_to_a_tested_retriever(model, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "text").mkdir()
    pairs = [(a, b) for i, a in enumerate(FILLERS[:9]) for b in FILLERS[:i]]
    for number, (a, b) in enumerate(pairs):
        below = f"{a} {b} {text(rng, a, b, words=8)}"
        (tmp_path / "text" / f"{number}.txt").write_text(f"{a.title()} {b}\n\n{below}\n\n{b.title()}\n\n{below} {b}\n")
    monkeypatch.chdir(tmp_path)
    (first, *_) = commands_of_the_guide({"MODEL": str(model)})
    assert [words[0] for words in first] == ["titles", "finetune", "mine", "finetune", "evaluate"]
    run_commands(first, epochs="8")
    judged = (tmp_path / "FOLDER" / "qrels" / "test.tsv").read_text().splitlines()[1:]
    assert len(judged) == 8  # two of each of four titles
    scores = results_of(tmp_path / "runs" / "search2")["metrics"]["dev"], results_of(tmp_path / "evaluation")["exported"]["test"]
    assert min(each["ndcg_at_10"] for each in scores) > 0.5


@pytest.mark.docs
def test_the_other_commands_of_the_guide_run_on_a_folder_of_judged_queries(model, folder, tmp_path, monkeypatch):
    first, *others = commands_of_the_guide({"MODEL": str(model), "FOLDER": str(folder)})
    monkeypatch.chdir(tmp_path)
    for name in ("corpus", "queries"):
        rows = map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
        (tmp_path / f"{name}.txt").write_text("".join(row["text"] + "\n" for row in rows))
    run_commands([*first[1:], *(words for block in others for words in block)])
    rows = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert set(results_of(tmp_path / "evaluation")["exported"]) == {"test"}
