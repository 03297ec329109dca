"""The commands that predict: lines in, JSON lines out, from files, pipes and terminals."""

import contextlib
import dataclasses
import datetime
import functools
import gzip
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import console, pretrained
from bert_jax.__main__ import COMMANDS, main
from bert_jax.commands import predictors
from bert_jax.config import BertConfig, InputError
from bert_jax.model.heads import initialize
from bert_jax.pooling import TokenWeights
from bert_jax.pretrained import Model

ROOT = Path(__file__).parent.parent
LABELS = {"sequence_classification": ("bad", "good", "odd"), "token_classification": ("O", "B-X", "I-X")}
CONTEXT = "Bako tine rodusi. Tine bako."


def make_model(tokenizer, head, **more):
    config = BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=96, initializer_range=0.3)  # fmt: skip
    empty = Model(config, {}, tokenizer, head, LABELS.get(head, ()), **more)
    return Model(config, fresh(empty.module), tokenizer, head, empty.labels, **more)


@functools.cache
def fresh(module):
    return jax.jit(lambda: initialize(module, 0))()


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    """Directories of tiny models by head, and one whose texts may have several labels."""
    folder = tmp_path_factory.mktemp("models")
    for head in ("masked_lm", "sequence_classification", "token_classification", "question_answering"):
        pretrained.save(make_model(tokenizer, head), folder / head)
    several = make_model(tokenizer, "sequence_classification", problem_type="multi_label_classification")
    pretrained.save(several, folder / "several")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture
def run(capsysbinary, monkeypatch, tmp_path):
    """Runs a command in this process, on bytes as standard input where they are given; the objects that it printed."""

    def run(*arguments, stdin=None):
        if stdin is not None:
            (tmp_path / "stdin").write_bytes(stdin)
            monkeypatch.setattr(sys, "stdin", open(tmp_path / "stdin"))  # noqa: SIM115
        try:
            main(list(map(str, arguments)))
        finally:
            run.out, err = capsysbinary.readouterr()
            run.err = err.decode()
            if stdin is not None:
                sys.stdin.close()
        return [json.loads(line) for line in run.out.decode().splitlines()]

    return run


def lines_of(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# --- what each command says ---


def test_fill_mask_gives_the_best_tokens_of_each_mask(run, models):
    first, second = run("fill-mask", models["masked_lm"], "--top-k", 3, stdin=b"bako [MASK] tine\n[MASK] r [MASK]\n")
    assert list(first) == ["text", "fillings"]
    assert [list(filling) for filling in first["fillings"]] == [["token", "score", "text", "mask"]] * 3
    assert [filling["mask"] for filling in second["fillings"]] == [0, 0, 0, 1, 1, 1]
    texts = ["bako [MASK] tine", "[MASK] r [MASK]"]  # in one batch, as the command has them
    best = bert_jax.FillMask(bert_jax.load(models["masked_lm"]), 3)(texts)[0][0]
    assert first["fillings"][0] == best._asdict() | {"score": pytest.approx(best.score, rel=1e-6)}


def test_classify_gives_the_class_and_all_scores(run, models, tmp_path):
    found = run("classify", models["sequence_classification"], lines_of(tmp_path / "a.txt", "bako", "tine bako"))
    assert [list(each) for each in found] == [["text", "label", "score", "scores"]] * 2
    assert found[0]["text"] == "bako"
    assert list(found[0]["scores"]) == ["bad", "good", "odd"]
    assert found[0]["scores"][found[0]["label"]] == found[0]["score"] == max(found[0]["scores"].values())


def test_classify_gives_several_labels_where_a_text_may_have_them(run, models):
    everything, nothing = (
        run("classify", models["several"], "--threshold", threshold, stdin=b"bako\n")[0] for threshold in (0, 1)
    )
    assert (everything["labels"], nothing["labels"]) == (["bad", "good", "odd"], [])


def test_pairs_are_the_same_between_tabs_and_in_json(run, models, tmp_path):
    plain = run("classify", models["sequence_classification"], "--pairs", stdin=b"bako tine\trodusi\n\nbako\ttine\n")
    pairs = [("bako tine", "rodusi"), ("", ""), ("bako", "tine")]
    file = lines_of(tmp_path / "a.jsonl", *(json.dumps({"one": a, "two": b}) for a, b in pairs))
    assert run("classify", models["sequence_classification"], file, "--text-column", "one", "--pair-column", "two") == plain
    assert [(each["text"], each["text_pair"]) for each in plain] == pairs
    lone = run("classify", models["sequence_classification"], file, "--text-column", "one")
    assert "text_pair" not in lone[0]
    assert lone[0]["scores"] != plain[0]["scores"]


def test_tag_gives_entities_that_stand_in_the_text(run, models):
    found = run("tag", models["token_classification"], "--outside", "none", stdin=b"Bako tine rodusi.\n\n")
    assert found[0]["entities"]
    for entity in found[0]["entities"]:
        assert list(entity) == ["label", "start", "end", "text", "score"]
        assert found[0]["text"][entity["start"] : entity["end"]] == entity["text"]
    assert found[1] == {"text": "", "entities": []}
    others = [
        run("tag", models["token_classification"], "--outside", label, stdin=b"Bako tine rodusi.\n") for label in ("B-X", "I-X")
    ]
    assert any(other != found[:1] for other in others)
    assert run("tag", models["token_classification"], "--aggregation", "simple", "--outside", "none",
               stdin=b"Bako tine rodusi.\n") != found[:1]  # fmt: skip


def test_answer_reads_json_lines_with_and_without_ids(run, models):
    lines = [{"question": "bako?", "context": CONTEXT}, {"id": 7, "context": CONTEXT, "question": "tine?"}]
    text = "\n".join(map(json.dumps, lines))
    first, second = run("answer", models["question_answering"], "--top-k", 2, stdin=text.encode())
    assert list(first) == ["question", "answers"]
    assert list(second) == ["id", "question", "answers"]
    assert (second["id"], len(first["answers"])) == (7, 2)
    for answer in first["answers"]:
        assert list(answer) == ["text", "start", "end", "score"]
        assert CONTEXT[answer["start"] : answer["end"]] == answer["text"] != ""


def test_answer_may_say_that_there_is_none(run, models):
    line = json.dumps({"question": "bako?", "context": CONTEXT}).encode()
    options = ["--no-answer", "--null-threshold", "-1e9"]
    assert run("answer", models["question_answering"], *options, stdin=line)[0]["answers"][0]["text"] == ""


def test_answer_reads_squads_layout(run, models, tmp_path):
    questions = [{"id": f"q{i}", "question": "bako?" * (i + 1), "answers": []} for i in range(3)]
    squad = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": questions[:2]}]},
                      {"paragraphs": [{"context": "Rodusi.", "qas": questions[2:]}]}]}  # fmt: skip
    (tmp_path / "dev.json").write_text(json.dumps(squad))
    found = run("answer", models["question_answering"], tmp_path / "dev.json")
    assert [each["id"] for each in found] == ["q0", "q1", "q2"]
    assert found[2]["answers"][0]["text"] in "Rodusi."


def test_embed_gives_vectors_of_seven_digits(run, models):
    model = bert_jax.load(models["masked_lm"])
    found = run("embed", models["masked_lm"], stdin=b"bako\n\ntine rodusi\n")
    expected = bert_jax.Embedder(model)(["bako", "", "tine rodusi"])
    assert [each["text"] for each in found] == ["bako", "", "tine rodusi"]
    np.testing.assert_allclose([each["embedding"] for each in found], expected, rtol=1e-6)
    assert all(value == float(f"{value:.7g}") for each in found for value in each["embedding"])


@pytest.mark.parametrize(
    "options, pooling",
    [
        ([], bert_jax.Pooling("max", False, 5)),
        (["--pooling", "cls"], bert_jax.Pooling("cls", False, 5)),
        (["--normalize", "--max-length", "4"], bert_jax.Pooling("max", True, 4)),
        (["--pooling", "weightedmean", "--prompt-name", "query"], bert_jax.Pooling("weightedmean", False, 5, prompt="tine ")),
    ],
)
def test_embed_pools_as_the_model_says_but_for_the_options(run, tokenizer, tmp_path, options, pooling):
    model = make_model(tokenizer, "encoder", pooling=bert_jax.Pooling("max", False, 5, prompts={"query": "tine "}))
    pretrained.save(model, tmp_path / "model")
    with warnings.catch_warnings(action="ignore"):
        expected = bert_jax.Embedder(model, pooling)(["bako tine rodusi bako"])
    found = run("embed", tmp_path / "model", *options, stdin=b"bako tine rodusi bako\n")
    np.testing.assert_allclose([each["embedding"] for each in found], expected, rtol=1e-6)


def test_a_prompt_that_the_model_lacks_is_refused(run, models):
    with pytest.raises(InputError, match="no prompt 'query'; the model's prompts: none"):
        run("embed", models["masked_lm"], "--prompt-name", "query", stdin=b"bako\n")


def test_embed_of_a_sparse_retriever_gives_the_weights_of_tokens(run, tokenizer, tmp_path):
    model = make_model(tokenizer, "masked_lm", pooling=bert_jax.SparsePooling(24))
    pretrained.save(model, tmp_path / "model")
    (found,) = run("embed", tmp_path / "model", stdin=b"bako tine\n")
    embed = bert_jax.SparseEmbedder(model)
    (expected,) = embed.words(embed(["bako tine"]))
    assert found["embedding"] == pytest.approx(expected, rel=1e-6)
    weights = TokenWeights(np.arange(model.config.vocab_size, dtype=np.float32))
    pretrained.save(dataclasses.replace(model, pooling=bert_jax.SparsePooling(24, query_weights=weights)), tmp_path / "table")
    (found,) = run("embed", tmp_path / "table", "--prompt-name", "query", stdin=b"bako tine bako\n")
    ids = np.unique(tokenizer.encode_batch(["bako tine"])[0])[::-1].tolist()
    assert found["embedding"] == dict(zip(tokenizer.tokens(ids), ids, strict=True))
    with pytest.raises(InputError, match="is a sparse retriever: leave out --out, --pooling"):
        run("embed", tmp_path / "model", "--pooling", "cls", stdin=b"bako\n")


def test_no_normalize_leaves_lengths(run, models):
    (scaled,), (free,) = (run("embed", models["masked_lm"], *more, stdin=b"bako\n") for more in ([], ["--no-normalize"]))
    assert np.linalg.norm(scaled["embedding"]) == pytest.approx(1)
    assert np.linalg.norm(free["embedding"]) != pytest.approx(1, rel=0.1)
    with pytest.raises(InputError, match="give one of them"):
        run("embed", models["masked_lm"], "--normalize", "--no-normalize", stdin=b"")


def test_embed_writes_an_array(run, models, tmp_path, monkeypatch):
    monkeypatch.setattr(predictors, "_FIRST", 3)
    file = lines_of(tmp_path / "a.txt", *(f"bako {i}" for i in range(20)))
    assert run("embed", models["masked_lm"], file, "--out", tmp_path / "v.npy") == []
    found = np.load(tmp_path / "v.npy")
    assert (found.dtype, found.shape) == (np.float32, (20, 32))
    np.testing.assert_allclose(found, [each["embedding"] for each in run("embed", models["masked_lm"], file)], atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "v.npy"]


def test_an_array_that_cannot_be_finished_leaves_nothing(run, models, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"bako\n\xff\n")
    with pytest.raises(InputError, match=r"a\.txt:2: byte 0xff is not UTF-8"):
        run("embed", models["masked_lm"], tmp_path / "a.txt", "--out", tmp_path / "v.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(InputError, match=r"v\.npy: cannot be written"):
        run("embed", models["masked_lm"], tmp_path / "a.txt", "--out", tmp_path / "none" / "v.npy")


# --- what is read ---


def test_line_n_answers_line_n_over_many_chunks(run, models, tmp_path, monkeypatch):
    monkeypatch.setattr(predictors, "_FIRST", 2)
    monkeypatch.setattr(predictors, "_MOST", 5)
    texts = ["", *(f"bako {'tine ' * (i % 7)}{i}" for i in range(40)), "", "tine", ""]
    found = run("embed", models["masked_lm"], lines_of(tmp_path / "a.txt", *texts))
    assert [each["text"] for each in found] == texts


@pytest.mark.parametrize("ready, sizes", [(lambda: True, [2, 5, 5, 1]), (lambda: False, [1] * 13 + [0])])
def test_chunks_grow_where_lines_are_there_and_do_not_wait_for_more(monkeypatch, ready, sizes):
    monkeypatch.setattr(predictors, "_FIRST", 2)
    monkeypatch.setattr(predictors, "_MOST", 5)
    assert [len(chunk) for chunk in predictors._chunks(iter([predictors._Item({"text": "a"}, {})] * 13), ready)] == sizes


def test_a_chunk_of_long_texts_is_short(monkeypatch):
    monkeypatch.setattr(predictors, "_MOST_BYTES", 10)
    chunks = predictors._chunks(iter([predictors._Item({"text": "a" * 4}, {})] * 7), lambda: True)
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]


def test_compressed_files_byte_order_marks_and_carriage_returns_are_read(run, models, tmp_path):
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        file.write("\ufeffbako\r\nüñ\r\n".encode())
    expected = ["bako", "üñ"]
    assert [each["text"] for each in run("embed", models["masked_lm"], tmp_path / "a.txt.gz")] == expected
    assert "üñ".encode() in run.out
    stdin = "\ufeffbako\r\nüñ".encode()
    assert [each["text"] for each in run("embed", models["masked_lm"], "-", stdin=stdin)] == expected
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(b'{"text": "bako"}\n\n{"text": "tine"}\n')
    assert [each["text"] for each in run("embed", models["masked_lm"], tmp_path / "a.jsonl.gz")] == ["bako", "tine"]


def test_standard_input_is_json_where_a_column_is_named(run, models):
    assert run("embed", models["masked_lm"], "--text-column", "t", stdin=b'{"t": "bako"}')[0]["text"] == "bako"


def test_a_null_text_has_null_predictions_and_is_counted(run, models):
    lines = [{"text": "bako"}, {"text": None}, {"text": float("nan")}, {"text": ""}, {"text": "tine"}]
    found = run(
        "classify", models["sequence_classification"], "--text-column", "text", stdin="\n".join(map(json.dumps, lines)).encode()
    )
    assert [each["text"] for each in found] == ["bako", None, None, "", "tine"]
    assert found[1] == found[2] == {"text": None, "label": None, "score": None, "scores": None}
    whole = run("classify", models["sequence_classification"], stdin=b"bako\n\ntine\n")
    assert [found[i]["label"] for i in (0, 3, 4)] == [each["label"] for each in whole]
    run("classify", models["sequence_classification"], "--text-column", "text", stdin=b'{"text": null}')
    assert run.err == "warning: 1 of 1 texts are null, so their predictions are null\n"


def test_nulls_are_summed_over_chunks_and_a_pair_needs_both(run, models, monkeypatch):
    monkeypatch.setattr(predictors, "_FIRST", 1)
    monkeypatch.setattr(predictors, "_MOST", 1)
    pairs = [{"a": "bako", "b": None}, {"a": "bako", "b": "tine"}, {"a": None, "b": "tine"}]
    options = ["--text-column", "a", "--pair-column", "b"]
    found = run("classify", models["sequence_classification"], *options, stdin="\n".join(map(json.dumps, pairs)).encode())
    assert [each["label"] is None for each in found] == [True, False, True]
    assert (found[0]["text"], found[2]["text_pair"]) == ("bako", "tine")
    assert run.err == "warning: 2 of 3 texts are null, so their predictions are null\n"


def test_a_null_text_is_a_row_of_nan_in_an_array(run, models, tmp_path):
    stdin = b'{"t": null}\n{"t": "bako"}\n{"t": null}\n'
    run("embed", models["masked_lm"], "--text-column", "t", "--out", tmp_path / "v.npy", stdin=stdin)
    found = np.load(tmp_path / "v.npy")
    assert np.isnan(found).all(axis=1).tolist() == [True, False, True]
    np.testing.assert_allclose(found[1], run("embed", models["masked_lm"], stdin=b"bako\n")[0]["embedding"], rtol=1e-6)


def test_an_empty_line_has_no_mask_to_fill(run, models):
    found = run("fill-mask", models["masked_lm"], "--top-k", "1", stdin=b"\nbako [MASK]\n\n")
    assert [each["fillings"] is None for each in found] == [True, False, True]
    assert run.err == "warning: 2 of 3 texts are null or empty, so their predictions are null\n"


def test_columns_are_kept_by_their_names(run, models, tmp_path):
    (tmp_path / "a.csv").write_text("id,label,Review,input_label\n7,good,bako,x\n8,bad,tine,y\n")
    options = ["--text-column", "Review", "--keep-columns"]
    found = run("classify", models["sequence_classification"], tmp_path / "a.csv", *options)
    assert list(found[0]) == ["id", "input_label", "Review", "input_input_label", "label", "score", "scores"]
    assert [(each["id"], each["Review"], each["input_label"], each["input_input_label"]) for each in found] == [
        ("7", "bako", "good", "x"), ("8", "tine", "bad", "y")
    ]  # fmt: skip
    alone = run("classify", models["sequence_classification"], stdin=b"bako\n")[0]
    assert (found[0]["label"], list(alone)) == (alone["label"], ["text", "label", "score", "scores"])


def test_kept_values_are_those_of_the_row(run, models, tmp_path):
    kept = '{"x": [1.23456789012, NaN], "half": "\\ud800", "deep": {"n": null}, "text": "bako"}'
    found = run("embed", models["masked_lm"], "--text-column", "text", "--keep-columns", stdin=kept.encode())
    assert found[0] | {"embedding": 0} == {"x": [1.23456789012, None], "half": "\ud800", "deep": {"n": None}, "text": "bako",
                                           "embedding": 0}  # fmt: skip
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = {"text": ["bako", None], "day": [datetime.date(2020, 2, 29), None], "raw": [b"a\xff", b""]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    one, two = run("tag", models["token_classification"], tmp_path / "a.parquet", "--keep-columns")
    assert (one["day"], one["raw"]) == ("2020-02-29", "a\\xff")
    assert two == {"text": None, "day": None, "raw": "", "entities": None}


def test_an_array_keeps_no_columns(run, models, tmp_path):
    with pytest.raises(InputError, match=r"--keep-columns and --out .*v\.npy: an array has no columns"):
        run("embed", models["masked_lm"], "--keep-columns", "--out", tmp_path / "v.npy", stdin=b"bako\n")
    assert not (tmp_path / "v.npy").exists()


def test_answer_reads_tables_and_keeps_contexts_where_asked(run, models, tmp_path):
    rows = [("a", "bako?", CONTEXT), ("b", "tine?", CONTEXT)]
    (tmp_path / "a.tsv").write_text("id\tquestion\tcontext\n" + "".join("\t".join(row) + "\n" for row in rows))
    found = run("answer", models["question_answering"], tmp_path / "a.tsv")
    assert [list(each) for each in found] == [["id", "question", "answers"]] * 2
    kept = run("answer", models["question_answering"], tmp_path / "a.tsv", "--keep-columns")
    assert kept == [
        {"id": each["id"], "question": each["question"], "context": CONTEXT, "answers": each["answers"]} for each in found
    ]


@pytest.mark.parametrize("quotes, text", [("csv", "bako tine"), ("none", '"bako tine"')])
def test_quotes_say_whether_they_enclose_a_field(run, models, tmp_path, quotes, text):
    (tmp_path / "a.tsv").write_text('text\n"bako tine"\n')
    assert run("embed", models["masked_lm"], tmp_path / "a.tsv", "--quotes", quotes)[0]["text"] == text
    with pytest.raises(InputError, match=f"--quotes {quotes} is for .csv and .tsv files, and stdin is none"):
        run("embed", models["masked_lm"], "--quotes", quotes, stdin=b"bako\n")


def test_a_tsv_that_is_read_as_quoted_is_said_to_be(run, models, tmp_path):
    (tmp_path / "a.tsv").write_text('"text"\t"n"\n"bako"\t"1"\n"tine"\t"2"\n')
    assert [each["text"] for each in run("embed", models["masked_lm"], tmp_path / "a.tsv")] == ["bako", "tine"]
    assert "double quotes enclose fields of" in run.err


@pytest.mark.parametrize("option", ["--max-seq-length", "--max-length"])
def test_every_command_reads_as_many_tokens_as_it_is_told(run, models, monkeypatch, option):
    seen, predict = [], bert_jax.inference.Predictor.run

    def watched(self, examples, params=None):
        seen.append(max(len(example.input_ids) for example in examples))
        return predict(self, examples, params)

    monkeypatch.setattr(bert_jax.inference.Predictor, "run", watched)
    text = b"bako [MASK] tine rodusi bako tine rodusi"
    for command, model in (("classify", "sequence_classification"), ("embed", "masked_lm"), ("fill-mask", "masked_lm"),
                           ("tag", "token_classification")):  # fmt: skip
        run(command, models[model], option, 10, stdin=text)
    run("answer", models["question_answering"], option, 10, stdin=json.dumps({"question": "a?", "context": CONTEXT}).encode())
    assert seen == [10] * 5
    with pytest.raises(InputError, match="max_length=2 leaves no "):
        run("classify", models["sequence_classification"], option, 2, stdin=b"")


@pytest.mark.bits
def test_exact_gives_a_text_the_same_bits_in_any_file(run, models, tmp_path):
    lines = [f"bako {'tine ' * (i % 9)}{i}" for i in range(30)]
    found = {}
    for name, texts in (("all", lines), ("back", lines[::-1]), ("one", lines[4:5])):
        file = lines_of(tmp_path / f"{name}.txt", *texts)
        run("embed", models["masked_lm"], file, "--exact", "--out", tmp_path / "v.npy")
        found[name] = np.load(tmp_path / "v.npy")
    assert found["all"].tobytes() == found["back"][::-1].tobytes()
    assert found["all"][4].tobytes() == found["one"].tobytes()


def test_candidates_are_those_that_were_given(run, models):
    (all_of,) = run("fill-mask", models["masked_lm"], "--top-k", "280", stdin=b"bako [MASK] tine\n")
    by_token = {each["token"]: each["score"] for each in all_of["fillings"]}
    names = [token for token in by_token if token.isalpha() and len(token) > 1][:2]
    (some,) = run("fill-mask", models["masked_lm"], "--targets", *names, stdin=b"bako [MASK] tine\n")
    assert {each["token"] for each in some["fillings"]} == set(names)
    for each in some["fillings"]:
        assert each["score"] in [one["score"] for one in all_of["fillings"] if one["token"] == each["token"]]


def test_tables_give_their_column(run, models, tmp_path):
    (tmp_path / "a.csv").write_text('id,Review Text,Second\n1,"bako, tine\nrodusi",bako\n2,tine,\n')
    (tmp_path / "a.tsv").write_text('Review Text\tSecond\nbako "tine\tbako\n')
    column = ("--text-column", "Review Text")
    found = run("embed", models["masked_lm"], tmp_path / "a.csv", *column)
    assert [each["text"] for each in found] == ["bako, tine\nrodusi", "tine"]
    assert [each["text"] for each in run("embed", models["masked_lm"], tmp_path / "a.tsv", *column)] == ['bako "tine']
    (tmp_path / "b.tsv").write_text('text\tn\n"bako ""tine"""\t1\n')
    assert [each["text"] for each in run("embed", models["masked_lm"], tmp_path / "b.tsv")] == ['bako "tine"']
    assert run.err.count(f"double quotes enclose fields of {tmp_path}/b.tsv, and are taken off\n") == 1
    pairs = run("classify", models["sequence_classification"], tmp_path / "a.csv", *column, "--pair-column", "Second")
    assert [each["text_pair"] for each in pairs] == ["bako", ""]
    with pytest.raises(InputError, match=r"a.csv:2: no 'text', it has id, Review Text, Second.* \(--text-column\)"):
        run("embed", models["masked_lm"], tmp_path / "a.csv")
    with pytest.raises(InputError, match="--pairs is for plain text"):
        run("classify", models["sequence_classification"], tmp_path / "a.tsv", "--pairs")


def test_what_is_no_number_is_null():
    assert predictors._plain({"a": [float("nan"), (1.25, np.inf)]}) == {"a": [None, [1.25, None]]}


def test_input_of_nothing_gives_nothing(run, models, tmp_path):
    assert run("fill-mask", models["masked_lm"], stdin=b"") == []
    run("embed", models["masked_lm"], "--out", tmp_path / "v.npy", stdin=b"")
    assert np.load(tmp_path / "v.npy").shape == (0, 32)


WRONG_LINES = [
    ("a.txt", b"bako\nt\xfcne\n", "a.txt:2: byte 0xfc is not UTF-8"),
    ("a.txt", "bako\ntine\n".encode("utf-16"), "a.txt:1: a NUL byte"),
    ("a.jsonl", b'{"text": "bako"}\n{"text": bako}\n', r"a.jsonl:2: not a JSON object \(Expecting value"),
    ("a.jsonl", b'["bako"]\n', "a.jsonl:1: a JSON list, not an object"),
    ("a.jsonl", b'{"text": "bako"}\n\n{"texts": "a"}\n', "a.jsonl:3: no 'text', it has texts; did you mean 'texts'"),
    ("a.jsonl", b'{"text": 5}\n', "a.jsonl:1: 'text' is a int, not a string"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl:1: 'text' has half of a surrogate pair"),
    ("a.json", b"{}", "a.json: give plain text, one per line; .jsonl"),
    ("a.txt.gz", gzip.compress(b"bako\n" * 99)[:-9], "a.txt.gz: cannot be read .*cut short"),
]


@pytest.mark.parametrize("name, content, message", WRONG_LINES, ids=[message[:30] for *_, message in WRONG_LINES])
def test_a_line_that_cannot_be_read_is_named(run, models, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        run("embed", models["masked_lm"], tmp_path / name)


def test_what_stands_before_a_wrong_line_is_answered(run, models):
    with pytest.raises(InputError, match=r"stdin:3: no \[MASK\] in 'bako'"):
        run("fill-mask", models["masked_lm"], "--top-k", "1", stdin=b"bako [MASK]\n[MASK] tine\nbako\n[MASK]\n")
    assert [json.loads(line)["text"] for line in run.out.splitlines()] == ["bako [MASK]", "[MASK] tine"]


def test_a_pair_has_one_tab(run, models):
    with pytest.raises(InputError, match="stdin:2: 2 tabs; --pairs expects one"):
        run("classify", models["sequence_classification"], "--pairs", stdin=b"a\tb\na\tb\tc\n")
    with pytest.raises(InputError, match="--pairs is for plain text"):
        run("classify", models["sequence_classification"], "--pairs", "--pair-column", "b", stdin=b"")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "bako?", 'a.txt: expected .jsonl, with {"question"'),
        ("a.json", '{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "paragraphs[0]: has no 'context'; SQuAD's layout is"),
        ("a.json", "[]", "a.json: has no 'data'; SQuAD's layout is"),
        ("a.json", "{", "a.json:1: not JSON"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "", "qas": [{}]}]}]}', "paragraphs[0].qas[0]: no 'question'"),
        ("a.jsonl", '{"question": "bako?"}', "a.jsonl:1: no 'context', it has question"),
    ],
)
def test_answer_says_what_it_expects(run, models, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        run("answer", models["question_answering"], tmp_path / name)
    assert message in str(error.value)


def test_a_missing_file_is_missed_before_the_model_is_loaded(run, tmp_path):
    lines_of(tmp_path / "texts.txt", "bako")
    with pytest.raises(InputError, match=r"text\.txt: no such file; nearest in .*'texts\.txt'"):
        run("embed", tmp_path / "no_model", tmp_path / "text.txt")


# --- what a person sees ---


def test_texts_that_are_cut_are_said_in_one_plain_line(run, models, monkeypatch):
    monkeypatch.setattr(predictors, "_FIRST", 2)
    run("embed", models["masked_lm"], "--max-length", "5", stdin=b"bako tine rodusi bako tine\n\n" * 4 + b"a\n")
    assert run.err == "warning: 4 of 9 texts have more than 5 tokens; the rest was not read\n"


def test_other_warnings_stay_warnings():
    with pytest.warns(UserWarning, match="odd"), console.predicting(1, False):
        warnings.warn("odd", stacklevel=1)


def test_the_bar_is_on_a_terminal_only_and_leaves_stdout_alone(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    before = sys.stdout
    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with console.predicting(2, shown) as advance:
            advance(1)
            assert sys.stdout is before
        assert ("predicting" in stream.getvalue()) == shown


@pytest.mark.parametrize("command", ["fill-mask", "classify", "tag", "answer", "embed"])
def test_help_documents_every_option(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"usage: bert_jax {command} [-h]" in text
    assert COMMANDS[command].__doc__.splitlines()[0][:60] in text
    for name in inspect.signature(COMMANDS[command]).parameters:
        assert f"    {name}: " in COMMANDS[command].__doc__
        assert name in ("texts", "rows") or f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize("prog", ["bert_jax", "python -m bert_jax"])
def test_the_list_of_commands_names_each_by_what_was_typed(capsys, prog):
    assert main([], prog) is None
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {prog} COMMAND")
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []
    with pytest.raises(InputError, match=f"usage: {prog} train CONFIG"):
        main(["train"], prog)


def test_the_version_is_the_packages(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"bert_jax {bert_jax.__version__}\n"


def test_preparing_by_beam_says_what_to_install(monkeypatch, tmp_path):
    """Before anything is read or written."""
    (tmp_path / "config.py").write_text("from bert_jax.config import TrainConfig\ndef get_config(): return TrainConfig()\n")
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"apache-beam, which is not installed: pip install 'bert_jax\[beam\]'"):
        main(["prepare-beam", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run"), "--", "--runner", "FlinkRunner"])
    assert not (tmp_path / "run").exists()


# --- processes ---


@pytest.fixture
def start():
    """Starts a command as a process; one that hangs is killed."""
    begun = []

    def start(*arguments, **streams):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "",
        }  # fmt: skip
        # a process that was started in the background, as a test run may be, hands down that interrupts are ignored
        program = (
            "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "runpy.run_module('bert_jax', run_name='__main__', alter_sys=True)"
        )
        command = [sys.executable, "-c", program, *map(str, arguments)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **streams)
        begun.append((process, threading.Timer(600, process.kill)))
        begun[-1][1].start()
        return process

    yield start
    for process, timer in begun:
        timer.cancel()
        process.kill()
        with contextlib.suppress(BrokenPipeError), process:  # closes its pipes
            pass


def ended(process):
    """The exit status, and what was said on stderr."""
    return process.wait(), process.stderr.read().decode()


def test_lines_are_answered_before_the_input_ends(start, models):
    process = start("fill-mask", models["masked_lm"], stdin=subprocess.PIPE)
    for text in ("bako [MASK]", "é [MASK]", "[MASK]"):
        process.stdin.write(text.encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text
    process.stdin.close()
    assert process.stdout.read() == b""
    assert ended(process) == (0, "")


def test_a_closed_pipe_ends_it_quietly(start, models, tmp_path):
    file = lines_of(tmp_path / "a.txt", *["bako tine"] * 3000)
    process = start("embed", models["masked_lm"], file)
    assert json.loads(process.stdout.readline())["text"] == "bako tine"
    process.stdout.close()
    assert ended(process) == (141, "")


@pytest.mark.parametrize("file", ["-", "fifo"])
def test_an_interrupt_ends_it_with_a_word(start, models, tmp_path, file):
    if file == "fifo":
        os.mkfifo(tmp_path / "fifo")
        file = tmp_path / "fifo"
    process = start("embed", models["masked_lm"], file, stdin=subprocess.PIPE)
    with process.stdin if file == "-" else open(file, "wb") as pipe:
        pipe.write(b"bako\n")
        pipe.flush()
        assert process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "interrupted\n")
