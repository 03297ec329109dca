"""Several fine-tuning runs: seeds and learning rates, one after the other and in one program."""

import json

import numpy as np
import pytest
from finetune_cases import NO_CHANGE, recorded, results_of, sst2, tagging, tune

from bert_jax.config import InputError

SEVERAL = {"seeds": 2, "learning_rates": f"{NO_CHANGE},1e-3,1e30", "eval_every": 6, "metric": "loss", "early_stopping": 2}


@pytest.fixture(scope="session")
def apart(model, finished, tmp_path_factory):
    """Six runs one after the other: two that stop early, two that learn, two that diverge."""
    workdir = tmp_path_factory.mktemp("apart")
    tune(model, "sst2", finished(sst2).workdir.parent, workdir, together="no", **SEVERAL)
    return workdir


def test_seeds_times_learning_rates_are_summarized_and_the_best_is_exported(apart):
    found = results_of(apart)
    still, learning, broken = (found["runs"][i : i + 2] for i in (0, 2, 4))
    assert [(run["learning_rate"], run["seed"]) for run in found["runs"]] == [
        (rate, seed) for rate in (1e-30, 1e-3, 1e30) for seed in (0, 1)
    ]
    assert [len(run["history"]) for run in still] == [3, 3]
    assert all(len(run["history"]) > 3 for run in learning)
    for rate, runs in (("1e-30", still), ("0.001", learning)):
        summary = found["summary"][rate]
        for values, of in (
            ([run["score"] for run in runs], summary["score"]),
            ([run["scores"]["dev"]["accuracy"] for run in runs], summary["metrics"]["dev/accuracy"]),
        ):
            assert of["mean"] == pytest.approx(np.mean(values))
            assert of["sd"] == pytest.approx(np.std(values, ddof=1))
        assert (summary["runs"], summary["failed"]) == (2, [])
    best = max(learning, key=lambda run: run["score"])
    assert found["best"] == {"seed": best["seed"], "learning_rate": 1e-3, "step": best["best_step"]}
    own = apart / "runs" / f"seed{best['seed']}-lr0.001" / "export" / "model.safetensors"
    assert (apart / "export" / "model.safetensors").read_bytes() == own.read_bytes()
    assert all("were not finite" in run["failed"] for run in broken)
    assert found["summary"]["1e+30"] == {"runs": 0, "failed": [0, 1], "score": None, "metrics": {}}


def test_what_is_not_finite_is_no_number_in_results_json(apart):
    def refuse(name):
        raise AssertionError(name)

    found = json.loads((apart / "results.json").read_text(), parse_constant=refuse)
    assert {run["score"] for run in found["runs"][4:]} == {"-inf"}


@pytest.mark.slow
def test_runs_in_one_program_score_as_they_do_one_after_the_other(model, finished, apart, tmp_path):
    found = tune(model, "sst2", finished(sst2).workdir.parent, tmp_path, together="yes", **SEVERAL)
    for ours, theirs in zip(found["runs"][:4], results_of(apart)["runs"], strict=False):
        assert [e["step"] for e in ours["history"]] == [e["step"] for e in theirs["history"]]
        for a, b in zip(ours["history"], theirs["history"], strict=True):
            assert a["scores"]["dev"] == pytest.approx(b["scores"]["dev"], abs=2e-4)
    assert found["best"] == results_of(apart)["best"]
    assert all("were not finite" in run["failed"] for run in found["runs"][4:])
    lines = [json.loads(line) for line in recorded(tmp_path / "runs")]
    rates = [line[f"train/seed0-lr{NO_CHANGE}/learning_rate"] for line in lines if "train/loss" in line]
    assert (len(rates), len(set(rates[:19])), set(rates[18:])) == (36, 19, {rates[18]})  # it stopped at step 18
    assert tune(model, "sst2", finished(sst2).workdir.parent, tmp_path, together="yes", **SEVERAL) == found


@pytest.mark.slow
@pytest.mark.parametrize("together", ["no", "yes"])
def test_where_all_runs_diverge_nothing_is_exported(model, finished, tmp_path, together):
    """Tags are scored without probabilities: that these are no numbers is not in the scores."""
    run = finished(tagging)
    options = {"learning_rates": "1e30", "seeds": 2, "together": together, "eval_every": 6}
    for _ in range(2):
        with pytest.raises(InputError, match=r"all runs diverged: the last 1\d updates were not finite; .* --learning-rates"):
            tune(model, "tagging", run.workdir.parent, tmp_path, **options)
    assert not (tmp_path / "results.json").exists()


def test_an_evaluation_that_is_not_finite_is_never_the_best(model, finished, tmp_path):
    """After the single update that breaks the weights, accuracy is still a number."""
    with pytest.raises(InputError, match="all runs diverged: its predictions were not finite"):
        tune(model, "sst2", finished(sst2).workdir.parent, tmp_path, num_epochs=0.1, learning_rates="1e30")
