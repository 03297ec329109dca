"""The model that fine-tuning starts from: its head, its pooling, its length."""

import dataclasses
import warnings

import numpy as np
import pytest
from finetune_cases import (
    NO_CHANGE,
    WORDS,
    check_cosines,
    mnli,
    results_of,
    rte,
    scored_pairs,
    sst2,
    tagging,
    tune,
    weights,
)

import bert_jax
from bert_jax import pretrained
from bert_jax.config import InputError
from bert_jax.finetuning.runs import Runs
from bert_jax.pooling import Dense


@pytest.mark.slow
def test_the_head_of_the_same_classes_is_kept_or_starts_anew_as_asked(finished, tmp_path, capsys):
    run = finished(sst2)
    kept = tune(run.export, "sst2", run.workdir.parent, tmp_path / "kept", learning_rates=NO_CHANGE, init_head="keep")
    assert "is kept" in capsys.readouterr().err
    assert kept["metrics"]["dev"] == pytest.approx(run.results["metrics"]["dev"], abs=1e-6)
    fresh = tune(run.export, "sst2", run.workdir.parent, tmp_path / "fresh", learning_rates=NO_CHANGE, init_head="fresh")
    assert "is replaced by a fresh one" in capsys.readouterr().err
    before, kept, fresh = (weights(d) for d in (run.export, tmp_path / "kept" / "export", tmp_path / "fresh" / "export"))
    for path, value in before.items():
        np.testing.assert_array_equal(kept[path], value)
        assert np.array_equal(fresh[path], value) == (not path.startswith("sequence_classifier"))


@pytest.mark.slow
def test_the_rows_of_classes_that_both_have_are_kept(finished, tmp_path, capsys):
    run, other = finished(mnli), finished(rte)
    match = {"learning_rates": NO_CHANGE, "init_head": "match"}
    tune(run.export, "rte", other.workdir.parent, tmp_path, **match)
    assert "the rows of entailment are kept, the others are fresh" in capsys.readouterr().err
    of_three, of_two = (weights(d)["sequence_classifier/kernel"] for d in (run.export, tmp_path / "export"))
    np.testing.assert_array_equal(of_two[:, 0], of_three[:, 0])
    assert not np.any(np.all(of_two[:, 1:] == of_three, axis=0))
    with pytest.raises(
        InputError,
        match=r"--init-head keep: .* neutral, contradiction; the classes of this task .*not_entailment\. Use --init-head fresh",
    ):
        tune(run.export, "rte", other.workdir.parent, tmp_path / "keep", init_head="keep")
    with pytest.raises(InputError, match=r"--init-head match: .* the classes of this task.* negative, positive"):
        tune(run.export, "sst2", finished(sst2).workdir.parent, tmp_path / "none", init_head="match")


@pytest.mark.slow
def test_a_fine_tuned_directory_starts_another_task(finished, tmp_path):
    run, other = finished(sst2), finished(tagging)
    tune(run.export, "tagging", other.workdir.parent, tmp_path, learning_rates=NO_CHANGE)
    before, after = weights(run.export), weights(tmp_path / "export")
    assert all(np.array_equal(after[path], value) for path, value in before.items() if path.startswith("encoder/"))
    assert after["token_classifier/kernel"].shape == (32, 5)


@pytest.mark.slow
def test_via_fine_tunes_on_another_task_first(model, finished, tmp_path, monkeypatch, capsys):
    first, then = finished(mnli).workdir.parent, finished(rte).workdir.parent
    options = {"via": f"mnli={first}", "learning_rates": NO_CHANGE}
    found = tune(model, "rte", then, tmp_path, **options)
    assert "first mnli, then rte" in capsys.readouterr().err
    between = results_of(tmp_path / "via")
    assert (between["task"], between["model"]) == ("mnli", str(model))
    assert (found["task"], found["model"]) == ("rte", str(tmp_path / "via" / "export"))
    begun, before, after = (weights(d) for d in (model, tmp_path / "via" / "export", tmp_path / "export"))
    encoder = [path for path in begun if path.startswith("encoder/") and path.endswith("kernel")]
    assert all(np.array_equal(before[path], after[path]) and not np.array_equal(before[path], begun[path]) for path in encoder)
    monkeypatch.setattr(Runs, "fit", lambda *args: pytest.fail("it trains"))
    assert tune(model, "rte", then, tmp_path, **options) == found


def test_a_model_of_sentence_transformers_is_trained_as_it_embeds(model, tmp_path, capsys):
    """With its prompt, whose tokens are not pooled, in lower case, no longer than its texts may be, through its dense layer."""
    rng = np.random.default_rng(0)
    dense = Dense(rng.standard_normal((64, 24), np.float32) / 8, rng.standard_normal(24, np.float32))
    prompts = {"ours": f"{WORDS[9]}: ", "other": "x: "}
    pooling = bert_jax.Pooling(("max", "mean"), normalize=False, max_length=8, lowercase=True, prompt=prompts["ours"],
                               prompts=prompts, include_prompt=False, dense=(dense,), truncate_dim=16)  # fmt: skip
    pretrained.save(dataclasses.replace(bert_jax.load(model, head="encoder"), pooling=pooling), tmp_path / "model")
    case = scored_pairs()
    case.files = {name: content.title() for name, content in case.files.items()}
    case.files = {name: content.replace("Sentence", "sentence").replace("Score", "score") for name, content in case.files.items()}
    case.dev = [tuple(text.title() for text in pair) for pair in case.dev]
    tune(tmp_path / "model", "similarity", workdir=tmp_path / "run", **case.write(tmp_path))
    export = bert_jax.load(tmp_path / "run" / "export")
    assert export.pooling == pooling
    said = capsys.readouterr().err
    assert "Dense(64 -> 24, Tanh) after the pooling: used unchanged, not trained" in said
    assert "cut to their first 16 values (truncate_dim), also in training" in said
    assert f"default prompt {prompts['ours']!r} is added before each text" in said
    assert "prompts other are kept, but added to no text" in said
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "16 of 16 texts have more than 8 tokens")
        check_cosines(case, export, tmp_path / "run" / "predictions" / "dev.tsv")


def test_the_length_that_was_trained_at_is_that_of_the_export(model, tmp_path):
    options = scored_pairs().write(tmp_path) | {"max_seq_length": 8, "num_epochs": 0.1}
    tune(model, "similarity", workdir=tmp_path / "run", **options)
    assert bert_jax.load(tmp_path / "run" / "export").pooling.max_length == 8
