"""The table of pretraining runs: seeds grouped, and warnings where runs do not compare."""

import json

import pytest

from bert_jax.__main__ import main
from bert_jax.config import DataConfig, InputError, OptimConfig, Phase, TrainConfig, to_dict
from bert_jax.data.heldout import metric_prefix


def write_run(folder, losses, unigram=6.0, texts=("",), bits=True, start=0, **changes):
    """A work directory with an evaluation every 10 steps from `start` on; a step takes 2 seconds for 100 tokens."""
    folder.mkdir()
    steps = start + 10 * max(1, len(losses))
    optim, data = OptimConfig(warmup_steps=1), DataConfig(source=("a.txt",))
    cfg = TrainConfig(workdir=str(folder), num_steps=steps, optim=optim, data=data)
    (folder / "config.json").write_text(json.dumps(to_dict(cfg.replace(**changes))))
    lines = [{"step": start, "kind": "timing", "compile_seconds": 9.0}]
    for number, loss in enumerate(losses, 1):
        step = start + 10 * number
        lines.append({"step": step, "kind": "timing", "step_seconds": 2.0, "tokens_per_second": 50.0})
        for text in texts:
            values = {"masked_lm_loss": loss, "masked_lm_accuracy": 0.25, "unigram_loss": unigram}
            values |= {"bits_per_byte": loss / 2} if bits else {}
            lines.append({"step": step} | {metric_prefix(text) + name: value for name, value in values.items()})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.fixture
def compared(capsys):
    """Runs the command: the rows of its table as dictionaries, the lines below it, and the warnings."""

    def run(*argv):
        main(["compare", *argv])
        out, err = capsys.readouterr()
        head, _, *lines = out.splitlines()
        cut = [[cell.strip() for cell in line.strip("|").split("|")] for line in [head, *lines] if line.startswith("|")]
        below = [line for line in lines if line and not line.startswith("|")]
        return [dict(zip(cut[0], row, strict=True)) for row in cut[1:]], below, err.splitlines()

    return run


def test_seeds_of_a_recipe_are_one_row_with_mean_and_sample_deviation(tmp_path, compared):
    seeds = [write_run(tmp_path / f"a{seed}", [5.0, 4.0 + seed], seed=seed) for seed in (0, 1, 2)]
    other = write_run(tmp_path / "b", [5.5, 5.6], optim=OptimConfig(warmup_steps=1, name="lamb"), bits=False)
    rows, below, warnings = compared(*seeds, other)
    assert rows[0] == {
        "run": f"{seeds[0]} + 2", "seeds": "0,1,2", "text": "held out", "loss": "5.000 ± 1.000", "best loss": "4.667 ± 0.577",
        "below unigram": "1.000 ± 1.000", "accuracy": "25.0 ± 0.0 %", "bits/byte": "2.500 ± 0.500", "steps": "20 of 20",
        "tokens": "0.0 ± 0.0 M", "time": "0.7 ± 0.0 min",
    }  # fmt: skip
    assert (rows[1]["loss"], rows[1]["best loss"], rows[1]["bits/byte"], rows[1]["seeds"]) == ("5.600", "5.500", "-", "0")
    assert below == ["Settings that differ, in the order of the rows:", "  optim.name: adamw_bert | lamb"]
    assert warnings == []
    rows, *_ = compared(*seeds, "--each")
    assert [(row["run"], row["loss"]) for row in rows] == [(run, f"{4 + seed:.3f}") for seed, run in enumerate(seeds)]


def test_each_text_has_a_row(tmp_path, compared):
    rows, below, _ = compared(write_run(tmp_path / "a", [5.0], texts=("", "law")))
    assert [(row["run"], row["text"]) for row in rows] == [(str(tmp_path / "a"), "held out"), ("", "law")]
    assert below == []


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ({}, ""),
        ({"unigram": 6.01}, "different masks or training text (unigram losses 6.0000 and 6.0100)"),
        ({"data": "other+other"}, "different held-out text"),
        ({"data": "key+key+longer"}, ""),  # an older run with rows of two lengths
        ({"tokenizer": "other", "data": "other+other"}, "different vocabularies: compare bits per byte"),
    ],
)
def test_a_warning_names_runs_that_do_not_compare(tmp_path, compared, monkeypatch, difference, said):
    record = {"data": "key+key", "tokenizer": "print"}
    records = {"a": record, "b": record | {name: difference[name] for name in ("data", "tokenizer") if name in difference}}
    monkeypatch.setattr("bert_jax.workdir.recorded", lambda folder: records[folder.split("/")[-2]])
    runs = write_run(tmp_path / "a", [5.0]), write_run(tmp_path / "b", [5.0], unigram=difference.get("unigram", 6.0), seed=1)
    *_, warnings = compared(*runs)
    assert len(warnings) == bool(said)
    for warning in warnings:
        assert said in warning
        assert warning.startswith(f"warning: {runs[0]} and {runs[1]}: ")


def test_runs_of_different_objectives_are_warned_of(tmp_path, compared):
    runs = write_run(tmp_path / "a", [5.0]), write_run(tmp_path / "b", [5.0], objective="replaced_tokens")
    _, below, (warning,) = compared(*runs)
    assert below[-1] == "  objective: masked_lm | replaced_tokens"
    assert "different objectives: the loss of replaced_tokens is its generator's; compare fine-tuned models" in warning


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no runs: bert_jax compare RUN"):
        main(["compare"])
    with pytest.raises(InputError, match="nothing is not the work directory of a pretraining run"):
        main(["compare", str(tmp_path / "nothing")])
    with pytest.raises(InputError, match="has no evaluation yet: the first is at step 10"):
        main(["compare", write_run(tmp_path / "a", [])])
    with pytest.raises(InputError, match="has no evaluation, since it has no held-out text"):
        main(["compare", write_run(tmp_path / "b", [5.0], texts=())])


def test_a_run_is_counted_once_and_a_seed_that_is_there_twice_is_warned_of(tmp_path, compared):
    one, same = write_run(tmp_path / "a", [5.0]), write_run(tmp_path / "b", [5.0])
    (row,), _, warnings = compared(one, f"{tmp_path}/../{tmp_path.name}/a")
    assert (row["run"], row["seeds"], row["loss"], warnings) == (one, "0", "5.000", [])
    (row,), _, warnings = compared(one, same)
    assert row["loss"] == "5.000 ± 0.000"
    assert warnings == [f"warning: {one} and {same} have one recipe and one seed, 0: leave one out"]


def test_a_branch_has_the_time_of_its_own_steps_and_a_loss_that_is_not_finite_is_shown(tmp_path, compared):
    branches = [write_run(tmp_path / str(seed), [loss], start=100, seed=seed) for seed, loss in enumerate([5.0, float("inf")])]
    (row,), *_ = compared(*branches)
    assert (row["time"], row["steps"], row["loss"]) == ("0.3 ± 0.0 min", "110 of 110", "inf ± nan")


def test_settings_of_phases_are_compared_one_by_one(tmp_path, compared):
    phases = Phase(until=5), Phase(until=10, batch_size=64)
    runs = [write_run(tmp_path / str(i), [5.0], phases=each) for i, each in enumerate([phases, (phases[0], Phase(until=10)), ()])]
    _, below, _ = compared(*runs[:2])
    assert below[1:] == ["  phases[1].batch_size: 64 | None"]
    _, below, _ = compared(*runs[1:])
    assert [line.split(": ")[0] for line in below[1:]] == ["  phases[0]", "  phases[1]"]
