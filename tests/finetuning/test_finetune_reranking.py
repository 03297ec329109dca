"""Cross-encoders from files to scores: a table with hard negatives, and the reranking of a first stage."""

import json

import numpy as np
import pytest
from finetune_cases import MARKERS, json_lines, recorded, results_of, text, tune

import bert_jax
from bert_jax.__main__ import main
from bert_jax.errors import InputError
from bert_jax.tasks.ranking import ranking_scores


def rows_of(seed, count):
    """Queries whose document has a marker; of some rows the last negative is missing, and one is a known document."""
    rng = np.random.default_rng(seed)
    rows = [
        {"query": text(rng), "positive": text(rng, MARKERS[0]), "negative_1": text(rng), "negative_2": text(rng) * (i % 3 > 0)}
        for i in range(count)
    ]
    return [*rows, rows[0] | {"positive": text(rng, MARKERS[0]), "negative_1": rows[0]["positive"]}]


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranking")
    for name, rows in (("train", rows_of(0, 40)), ("dev", rows_of(1, 12))):
        (folder / f"{name}.jsonl").write_text(json_lines(rows))
    tune(model, "reranking", folder, folder / "run", num_epochs=3)
    return folder / "run"


def test_a_reranker_learns_the_order_and_its_scores_are_those_of_the_saved_model(run):
    found = results_of(run)
    losses = [each["train/loss"] for line in recorded(run) if "train/loss" in (each := json.loads(line))]
    assert losses[0] > 0.5
    assert losses[-1] < 0.1
    assert found["runs"][0]["score"] > 0.95
    reranker, queries = bert_jax.Reranker(bert_jax.load(run / "export")), {}
    for row in rows_of(1, 12):
        known, others = queries.setdefault(row["query"], ([], []))
        known.append(row["positive"])
        others += [row[name] for name in ("negative_1", "negative_2") if row[name]]
    ranked = []
    for query, (known, others) in queries.items():
        documents = list(dict.fromkeys([*known, *(other for other in others if other not in known)]))
        best = reranker.rank(query, documents)
        assert [each.score for each in best] == sorted(reranker([(query, each) for each in documents]).tolist(), reverse=True)
        ranked.append([float(documents[each.document] in known) for each in best])
    expected = ranking_scores(ranked, [[1.0] * len(known) for known, _ in queries.values()])
    for name, value in found["exported"]["dev"].items():
        assert value == pytest.approx(expected[name], abs=1e-9), name


def test_rerank_puts_the_documents_of_a_first_stage_in_order(run, tmp_path, capsys):
    rng = np.random.default_rng(2)
    corpus = [{"_id": f"d{i}", "text": text(rng, *[MARKERS[0]] * (i < 4))} for i in range(12)]
    (tmp_path / "corpus.jsonl").write_text(json_lines(corpus))
    (tmp_path / "queries.jsonl").write_text(json_lines([{"_id": f"q{i}", "text": text(rng)} for i in range(5)]))
    (tmp_path / "qrels").mkdir()
    lines = "".join(f"q{i}\td{i}\t1\n" for i in range(4)) + "q4\td0\t1\n"
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    first, out = tmp_path / "first.trec", tmp_path / "second.trec"
    found = [(f"q{i}", f"d{j}", 10 - j) for i in range(4) for j in (i, *range(4, 12))]
    first.write_text("".join(f"{q} Q0 {d} 1 {-score} x\n" for q, d, score in found))  # the documents come last
    words = ["--data", str(tmp_path), "--out", str(out)]
    assert not main(["rerank", str(run / "export"), *words, "--run", str(first)])
    lines, said = [line.split() for line in out.read_text().splitlines()], capsys.readouterr()
    assert [line[2] for line in lines if line[3] == "1"] == ["d0", "d1", "d2", "d3"]
    assert len(lines) == len(found)
    assert "mrr_at_10 0.8000" in said.out  # 4 of 5 queries
    assert "1 of 5 judged queries are not in" in said.err
    with pytest.raises(InputError, match="BEIR's layout has no candidates"):
        tune(run / "export", "reranking", tmp_path, tmp_path / "run")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (("query", "positive"), {}, "have no negatives"),
        (("query", "positive", "negative"), {"loss": "triplet"}, "--loss pointwise"),
    ],
)
def test_data_and_losses_of_other_tasks_are_refused(columns, options, message, model, tmp_path):
    rows = [{name: f"{name} {i}" for name in columns} for i in range(20)]
    (tmp_path / "train.jsonl").write_text(json_lines(rows))
    with pytest.raises(InputError, match=message):
        tune(model, "reranking", tmp_path / "train.jsonl", tmp_path / "run", **options)


def test_predictions_name_the_rank_of_each_document_and_the_export_has_one_value(run):
    lines = (run / "predictions" / "dev.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["id", "prediction", "score"]
    assert len(lines) == 14
    assert json.loads((run / "export" / "config.json").read_text())["id2label"] == {"0": "LABEL_0"}


def test_score_writes_the_logits_that_a_retriever_is_distilled_from(run, model, tmp_path):
    data, out, rows = tmp_path / "mined.jsonl", tmp_path / "scored.jsonl", rows_of(3, 20)
    data.write_text(json_lines(rows))
    assert not main(["score", str(run / "export"), "--data", str(data), "--out", str(out)])
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{name: value for name, value in row.items() if name != "scores"} for row in scored] == rows
    reranker, names = bert_jax.Reranker(bert_jax.load(run / "export")), ("positive", "negative_1", "negative_2")
    for row in scored:
        there = [(row["query"], row[name]) for name in names if row[name]]
        logits = np.array([score for score in row["scores"] if score is not None])
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), reranker(there), atol=1e-6)
        assert [score is None for score in row["scores"]] == [not row[name] for name in names]
    tune(model, "retrieval", out, tmp_path / "run", score_column="scores", num_epochs=1, distillation="margin_mse")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task_data"]["label_column"] == ["scores"]


def test_a_teacher_chooses_the_negatives_that_mine_writes_with_its_logits(run, model, tmp_path, capsys):
    rng = np.random.default_rng(4)
    corpus = [{"_id": f"d{i}", "text": text(rng, *[MARKERS[0]] * (i < 6))} for i in range(14)]
    queries = [{"_id": f"q{i}", "text": text(rng)} for i in range(4)]
    (tmp_path / "corpus.jsonl").write_text(json_lines(corpus))
    (tmp_path / "queries.jsonl").write_text(json_lines(queries))
    (tmp_path / "qrels").mkdir()
    lines = "".join(f"q{i}\td{i}\t1\n" for i in range(4))
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    out, teacher = tmp_path / "mined.jsonl", run / "export"
    words = ["mine", str(model), "--data", str(tmp_path), "--out", str(out), "--negatives", "3", "--skip-top", "0"]
    assert not main([*words, "--teacher", str(teacher), "--candidates", "13", "--absolute-margin", "0.5"])
    reranker, rows = bert_jax.Reranker(bert_jax.load(teacher)), [json.loads(line) for line in out.read_text().splitlines()]
    names = ("positive", "negative_1", "negative_2", "negative_3")
    for i, row in enumerate(rows):
        others = {each["text"]: score for each, score in zip(corpus, scored(reranker, row["query"], corpus), strict=True)}
        assert row["positive"] == corpus[i]["text"]
        assert all(row[name] for name in names)
        assert max(others[row[name]] for name in names[1:]) <= others[row["positive"]] - 0.5
        assert not {row[name] for name in names[1:]} & {each["text"] for each in corpus[:6]}  # these answer the query, too
        probabilities = 1 / (1 + np.exp(-np.array(row["scores"])))
        np.testing.assert_allclose(probabilities, [others[row[name]] for name in names], atol=1e-6)
    assert "4 pairs, of which 0 have fewer" in capsys.readouterr().out
    for more, message in (
        (["--margin", "1.5"], "not in"),
        (["--absolute-margin", "-1"], "below 0"),
        (["--candidates", "0"], "below 1"),
    ):
        with pytest.raises(InputError, match=message):
            main([*words, *more])


def scored(reranker, query, documents):
    return reranker([(query, each["text"]) for each in documents]).tolist()
