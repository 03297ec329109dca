"""train.py from end to end: text in, a pretrained directory out, stopped anywhere and continued to the bit."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from helpers import make_documents

import bert_jax
import train
from bert_jax.config import InputError, load_train_config
from bert_jax.training import loop, writer
from bert_jax.training.checkpoint import Checkpointer

ROOT = Path(__file__).parent.parent
STEPS = 12
TWO_STEPS = ["--num-steps", "2", "--optim.warmup-steps", "1"]
ONE_DEVICE = ["--parallel.num-devices", "1"]  # whose programs compile sooner

CONFIG = """
from bert_jax.config import BertConfig, DataConfig, OptimConfig, TrainConfig

def get_config():
    return TrainConfig(
        num_steps=12, batch_size=8, eval_every=4, checkpoint_every=4, log_every=1, seed=3,
        model=BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=64, max_position_embeddings=32),
        data=DataConfig(max_seq_length=32, documents="line", eval_fraction=0.2),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
        fill_masks=("bako [MASK] bako.",),
    )
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a config file and 300 one-line documents."""
    folder = tmp_path_factory.mktemp("project")
    lines = [" ".join(sentences) for sentences in make_documents(300)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    (folder / "config.py").write_text(CONFIG)
    return folder


def arguments(project, workdir, *more):
    return [str(project / "config.py"), "--workdir", str(workdir), "--data.source", str(project / "text.txt"), *more]


@pytest.fixture(scope="module")
def whole_run(project):
    """The work directory of an uninterrupted run."""
    assert train.main(arguments(project, project / "whole")) == 0
    return project / "whole"


def recorded(workdir):
    """metrics.jsonl without its timing lines."""
    lines = (Path(workdir) / "metrics.jsonl").read_bytes().splitlines()
    return [line for line in lines if json.loads(line).get("kind") != "timing"]


def test_a_run_leaves_what_it_promises(whole_run):
    values = writer.read(whole_run / "metrics.jsonl")
    assert [v["step"] for v in values if "train/loss" in v] == list(range(1, STEPS + 1))
    evaluations = [v for v in values if "eval/masked_lm_loss" in v]
    assert [v["step"] for v in evaluations] == [4, 8, 12]
    assert all(np.isfinite(v["eval/unigram_loss"]) for v in evaluations)
    assert abs(values[1]["train/masked_lm_loss"] - np.log(200)) < 0.5
    assert evaluations[-1]["eval/masked_lm_loss"] < evaluations[0]["eval/masked_lm_loss"]
    timing = [v for v in values if v.get("kind") == "timing"]
    assert {"compile_seconds", "tokens_per_second", "data_wait_share", "step_seconds"} <= set().union(*timing)
    assert list((whole_run / "tensorboard").iterdir())
    model = bert_jax.load(whole_run / "export")
    assert model.head == "masked_lm"
    assert len(bert_jax.FillMask(model)(["bako [MASK] bako."])[0]) == 5


def test_another_run_of_the_same_seed_gives_the_same_bytes(project, whole_run, tmp_path):
    assert train.main(arguments(project, tmp_path / "again")) == 0
    assert recorded(tmp_path / "again") == recorded(whole_run)
    first, second = ((d / "export" / "model.safetensors").read_bytes() for d in (whole_run, tmp_path / "again"))
    assert first == second


def send_in_step(monkeypatch, count, number):
    """Sends a signal to this process during the first run's step `count`."""
    fit, calls = loop.fit, []

    def fit_and_count(state, train_step, *rest, **more):
        def step(*args):
            calls.append(1)
            if len(calls) == count:
                os.kill(os.getpid(), number)
            return train_step(*args)

        return fit(state, step, *rest, **more)

    monkeypatch.setattr(loop, "fit", fit_and_count)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_continues_to_the_bit(project, whole_run, tmp_path, monkeypatch, number):
    send_in_step(monkeypatch, 6, number)
    assert train.main(arguments(project, tmp_path)) == 128 + number
    assert len(recorded(tmp_path)) == 6 + 1
    assert not (tmp_path / "export").exists()
    with closing(Checkpointer(tmp_path / "checkpoints", read_only=True)) as saved:
        assert (saved.steps, saved.lasting_steps) == ([4, 6], [4])  # which an average would take
    assert train.main(arguments(project, tmp_path)) == 0
    assert recorded(tmp_path) == recorded(whole_run)


def test_a_run_that_goes_on_may_be_evaluated_on_further_text(project, whole_run, tmp_path, capsys):
    shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    (tmp_path / "other.txt").write_text("\n".join(" ".join(sentences) for sentences in make_documents(40, seed=8)))
    further = ("--eval-sources", f"other={tmp_path / 'other.txt'}")
    assert train.main(arguments(project, tmp_path / "run", *further)) == 0
    *before, last = recorded(tmp_path / "run")
    assert before == recorded(whole_run)  # the run's own held-out text has a line of its own
    assert json.loads(last).keys() - {"step"} == {name.replace("eval/", "eval/other/") for name in json.loads(before[-1])} - {
        "step"
    }
    assert re.search(r"held-out loss \d\.\d+ nats .*\nloss on other \d\.\d+ nats", capsys.readouterr().out)
    with pytest.raises(InputError, match=r"eval_sources: other: .*missing\.txt"):
        train.main(arguments(project, tmp_path / "new", "--eval-sources", f"other={tmp_path}/missing.txt"))
    assert not (tmp_path / "new").exists()  # refused before any text is tokenized


PHASES = """
import dataclasses
from bert_jax.config import Phase

def get_config(base=get_config):
    phases = (
        Phase(until=4, mask_rate=0.4), Phase(until=9, mask_rate=0.3, final_mask_rate=0.1, batch_size=16, max_seq_length=16,
                                            causal_share=0.5),
        Phase(until=12, learning_rate_scale=0.1, learning_rate_shape="1-sqrt"),
    )
    return dataclasses.replace(base(), phases=phases, checkpoint_every=3, keep_checkpoints=9)
"""


@pytest.fixture(scope="module")
def phased(project):
    """The folder and the uninterrupted run of a config with three phases."""
    folder = project / "phased"
    folder.mkdir()
    shutil.copy(project / "text.txt", folder)
    one_device = CONFIG.replace("import ", "import ParallelConfig, ")
    one_device = one_device.replace("seed=3", "seed=3, parallel=ParallelConfig(num_devices=1)")
    (folder / "config.py").write_text(one_device + PHASES)
    assert train.main(arguments(folder, folder / "whole")) == 0
    return folder


def test_a_run_in_phases_changes_its_batches_and_rates_and_continues_to_the_bit(phased, tmp_path):
    whole = phased / "whole"
    values = writer.read(whole / "metrics.jsonl")
    rates = {v["step"]: v["train/learning_rate"] for v in values if "train/loss" in v}
    peaks = {step: 1e-3 * (12 - (step - 1)) / 10 for step in rates if step > 2}  # that of the run's own schedule
    for step in range(4, 13):
        scale = 1 - 0.9 * (max(0, step - 1 - 9) / 3) ** 0.5
        assert rates[step] == pytest.approx(peaks[step] * scale, rel=1e-5)
    assert [v["step"] for v in values if "eval/masked_lm_loss" in v] == [4, 8, 9, 12]
    kinds = {name: [v["step"] for v in values if f"train/{name}_loss" in v] for name in ("next_token", "masked_lm")}
    assert sorted(kinds["next_token"] + kinds["masked_lm"]) == list(range(1, 13))
    assert set(kinds["next_token"]) <= set(range(5, 10))
    assert 0 < len(kinds["next_token"]) < 5
    shutil.copytree(whole, tmp_path / "run")
    for step in (9, 12):  # it goes on inside the second phase
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    assert train.main(arguments(phased, tmp_path / "run")) == 0
    assert recorded(tmp_path / "run") == recorded(whole)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4, 6, 9])
def test_a_run_killed_in_each_phase_and_across_a_change_equals_one_that_was_not(phased, tmp_path, step):
    """It dies behind checkpoint 3 (before the change at 4), 4 (behind it), 6 (before the change at 9) and 9 (behind it)."""
    program = ["tests/dying.py", "train", tmp_path / "checkpoints", step]
    process = run(phased, tmp_path, program=program)
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    process = run(phased, tmp_path)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert f"continuing from step {step} " in output
    assert recorded(tmp_path) == recorded(phased / "whole")


@pytest.mark.slow
def test_averages_of_weights_are_evaluated_and_exported(project, whole_run, tmp_path, monkeypatch):
    assert train.main(arguments(project, tmp_path / "ema", "--optim.average", "ema:0.5")) == 0
    (losses, averaged), lines = ({}, {}), (recorded(folder) for folder in (whole_run, tmp_path / "ema"))
    for found, each in zip((losses, averaged), lines, strict=True):
        values = [json.loads(line) for line in each]
        found |= {v["step"]: v["train/loss"] for v in values if "train/loss" in v}
        found["eval"] = values[-1]["eval/masked_lm_loss"]
    assert losses.pop("eval") != averaged.pop("eval")
    assert losses == averaged  # training is what it was
    shutil.rmtree(tmp_path / "ema" / "checkpoints" / "12")
    before = recorded(tmp_path / "ema")
    assert train.main(arguments(project, tmp_path / "ema", "--optim.average", "ema:0.5")) == 0
    assert recorded(tmp_path / "ema") == before
    ids = np.arange(5, 12)[None]
    exported, converted = bert_jax.load(tmp_path / "ema" / "export"), bert_jax.load(tmp_path / "ema")
    np.testing.assert_array_equal(*(model.encode(model.params, ids) for model in (exported, converted)))

    reached = bert_jax.train(cfg := load_train_config(arguments(project, tmp_path / "last", "--optim.average", "last:2")))
    evaluated = [v for v in writer.read(tmp_path / "last" / "metrics.jsonl") if "eval/masked_lm_loss" in v]
    assert [v["step"] for v in evaluated] == [4, 8, 12, 12]  # of the last weights, then of their mean
    assert evaluated[-1] == {"step": 12, **reached.metrics}
    before = recorded(tmp_path / "last")
    bert_jax.train(cfg)
    assert recorded(tmp_path / "last") == before
    encoded = []
    for step in (12, 8):
        model = bert_jax.load(tmp_path / "last")  # of the newest checkpoint
        encoded.append(np.asarray(model.params["encoder"]["embeddings"]["word_embeddings"]["embedding"]))
        shutil.rmtree(tmp_path / "last" / "checkpoints" / str(step))
    exported = bert_jax.load(tmp_path / "last" / "export").params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_allclose(exported, (encoded[0] + encoded[1]) / 2, atol=1e-7)

    stopped = arguments(project, tmp_path / "stopped", "--optim.average", "last:2")
    send_in_step(monkeypatch, 10, signal.SIGTERM)
    assert [train.main(stopped) for _ in range(2)] == [128 + signal.SIGTERM, 0]
    assert recorded(tmp_path / "stopped") == before  # the checkpoint of step 10 is not among the averaged
    one, other = ((tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("stopped", "last"))
    assert one == other


def test_a_branch_goes_on_from_a_checkpoint_of_another_run_to_the_bit(project, whole_run, tmp_path):
    branched = ("--branch-from", f"{whole_run}@8")
    assert train.main(arguments(project, tmp_path / "run", *branched)) == 0
    assert recorded(tmp_path / "run") == [line for line in recorded(whole_run) if json.loads(line)["step"] > 8]
    for more, message in (
        (("--branch-from", f"{whole_run}@5"), r"branch_from: .*whole has no whole checkpoint of step 5; it has 4, 8, 12"),
        (("--branch-from", str(tmp_path)), "branch_from: .* has no checkpoint; it has none"),
        ((*branched, "--num-steps", "8"), "stands at step 8: give a --num-steps above it"),
        ((*branched, "--optim.average", "last:2"), "average='last:2', but the run makes 1 checkpoints"),
        ((*branched, "--data.sentences", "line"), "the text of .* is not what .* was begun with"),
        ((*branched, "--objective", "replaced_tokens"), "branch_from: .*\n  objective: 'masked_lm' there, 'replaced"),
    ):
        with pytest.raises(InputError, match=message):
            train.main(arguments(project, tmp_path / "refused", *more))


@pytest.mark.slow
def test_a_branch_may_end_in_a_decay_of_its_own(project, whole_run, tmp_path):
    shorter = ("--optim.schedule", "warmup_stable_decay", "--optim.decay-steps", "2", "--num-steps", "10")
    assert train.main(arguments(project, tmp_path, "--branch-from", f"{whole_run}@8", *shorter)) == 0
    rates = [v["train/learning_rate"] for v in writer.read(tmp_path / "metrics.jsonl") if "train/loss" in v]
    np.testing.assert_allclose(rates, [1e-3, 5e-4], rtol=1e-6)


@pytest.mark.slow
def test_checkpoints_may_be_elsewhere(project, whole_run, tmp_path):
    elsewhere = ("--checkpoint-dir", str(tmp_path / "elsewhere"))
    assert train.main(arguments(project, tmp_path / "run", *elsewhere)) == 0
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [".lock", "12", "4", "8"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    shutil.rmtree(tmp_path / "elsewhere" / "12")
    assert train.main(arguments(project, tmp_path / "run", *elsewhere)) == 0
    assert recorded(tmp_path / "run") == recorded(whole_run)
    exported, again = bert_jax.load(whole_run / "export"), bert_jax.load(tmp_path / "run")  # of the newest checkpoint
    ids = np.arange(5, 12)[None]
    np.testing.assert_array_equal(*(model.encode(model.params, ids) for model in (exported, again)))
    with pytest.raises(InputError, match="holds another run"):
        train.main(arguments(project, tmp_path / "run", *elsewhere, "--seed", "4"))
    with pytest.raises(InputError, match=r"holds checkpoints of another run:\n  seed: 3 there, 4 here"):
        train.main(arguments(project, tmp_path / "other", *elsewhere, "--seed", "4"))


@pytest.mark.slow
def test_a_checkpoint_of_another_run_before_a_damaged_one_is_refused(project, whole_run, tmp_path):
    """The newest record is this run's, so nothing is refused before it proves to be damaged."""
    shutil.copytree(whole_run, tmp_path / "run")
    assert train.main(arguments(project, tmp_path / "other", "--seed", "4")) == 0
    for step in (4, 8):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    shutil.copytree(tmp_path / "other" / "checkpoints" / "8", tmp_path / "run" / "checkpoints" / "8")
    (tmp_path / "run" / "checkpoints" / "12" / "state" / "_METADATA").unlink()
    with pytest.raises(InputError, match=r"checkpoint .*8 is of another run:\n  seed: 4 there, 3 here"):
        train.main(arguments(project, tmp_path / "run"))


def test_lost_lines_of_metrics_are_said(project, whole_run, tmp_path, capfd):
    shutil.copytree(whole_run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert train.main(arguments(project, tmp_path / "run")) == 0
    assert "has 0 lines of metrics up to step 12, where 15 were written" in capfd.readouterr().err


@pytest.mark.slow
def test_a_profile_is_a_trace_of_the_steps_asked_for(project, tmp_path):
    assert train.main(arguments(project, tmp_path, "--profile", "1")) == 0
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"train_step" in trace.read_bytes()


def environment(devices):
    return os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "16", "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }  # fmt: skip


def run(project, workdir, *more, devices=8, program=("train.py",)):
    command = [sys.executable, *map(str, program), *arguments(project, workdir, *more)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment(devices), **pipes)


def run_and_kill_behind_step_4(project, workdir, *more):
    process = run(project, workdir, *more, program=["tests/dying.py", "train", workdir / "checkpoints", 4])
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output


def test_a_killed_run_continues_to_the_bit(project, whole_run, tmp_path):
    run_and_kill_behind_step_4(project, tmp_path)
    assert not (tmp_path / "export").exists()
    process = run(project, tmp_path)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "continuing from step" in output
    assert recorded(tmp_path) == recorded(whole_run)


@pytest.mark.slow
def test_a_run_goes_on_with_its_parameters_cut_otherwise(project, whole_run, tmp_path):
    assert train.main(arguments(project, tmp_path, "--num-steps", "12", "--parallel.fsdp", "2", "--parallel.tensor", "2")) == 0
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    assert train.main(arguments(project, tmp_path, "--parallel.strategy", "mesh", "--parallel.fsdp", "8")) == 0
    lines = (writer.read(folder / "metrics.jsonl") for folder in (tmp_path, whole_run))
    ours, theirs = ([v["train/loss"] for v in of if "train/loss" in v] for of in lines)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
def test_a_run_killed_at_five_random_moments_equals_one_that_was_not(project, tmp_path):
    """All kills between the first and the last checkpoint; the third one while a checkpoint is being written."""
    more = ["--num-steps", "60", "--checkpoint-every", "3", "--eval-every", "10"]
    assert train.main(arguments(project, tmp_path / "whole", *more)) == 0
    rng, checkpoints, said = random.Random(7), tmp_path / "run" / "checkpoints", []

    def newest():
        return max((int(p.name) for p in checkpoints.glob("*") if p.name.isdigit()), default=0)

    for kill in range(5):
        process, begun = run(project, tmp_path / "run", *more), newest()
        while process.poll() is None and newest() <= begun:
            time.sleep(0.001)
        if kill == 2:
            while process.poll() is None and not list(checkpoints.glob("*.orbax-checkpoint-tmp")):
                pass
        else:
            time.sleep(rng.uniform(0, 0.1))
        process.kill()
        output = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, output
        said.append((newest(), [p.name for p in checkpoints.glob("*.orbax-checkpoint-tmp")]))
    assert 3 <= said[0][0] <= said[-1][0] < 60, said
    assert said[2][1], said
    print("newest checkpoint and unfinished ones at each kill:", said)
    process = run(project, tmp_path / "run", *more)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert recorded(tmp_path / "run") == recorded(tmp_path / "whole")


def test_one_device_sees_the_same_batches_and_losses_as_eight(project, whole_run, tmp_path):
    assert train.main(arguments(project, tmp_path, "--parallel.num-devices", "1")) == 0
    for one, eight in zip(recorded(tmp_path), recorded(whole_run), strict=True):
        one, eight = json.loads(one), json.loads(eight)
        assert one.keys() == eight.keys()
        for name in one:
            assert one[name] == pytest.approx(eight[name], rel=2e-4, abs=2e-4), name


@pytest.mark.slow
def test_a_run_continues_on_another_number_of_devices(project, whole_run, tmp_path):
    run_and_kill_behind_step_4(project, tmp_path, "--parallel.num-devices", "2")
    assert train.main(arguments(project, tmp_path)) == 0
    losses = [[json.loads(x).get("train/loss", 0.0) for x in recorded(d)] for d in (tmp_path, whole_run)]
    np.testing.assert_allclose(losses[0], losses[1], atol=2e-4)


def test_sentence_pairs_train_both_heads_and_export_for_pretraining(project, tmp_path):
    pairs = ["--data.examples", "sentence_pairs", "--data.dupe-factor", "2", "--num-steps", "4", "--optim.warmup-steps", "1"]
    assert train.main(arguments(project, tmp_path, *pairs, *ONE_DEVICE, "--gradient-accumulation-steps", "1")) == 0
    last = writer.read(tmp_path / "metrics.jsonl")[-1]
    assert {"eval/masked_lm_loss", "eval/next_sentence_loss", "eval/next_sentence_accuracy"} <= last.keys()
    assert bert_jax.load(tmp_path / "export").head == "pretraining"


def test_init_from_continues_the_weights_at_another_length(project, whole_run, tmp_path):
    """In the architecture and vocabulary of the model, whatever the config file has."""
    other = tmp_path / "config.py"
    other.write_text(CONFIG.replace("num_hidden_layers=1", "num_hidden_layers=2").replace("vocab_size=200", "vocab_size=190"))
    more = ["--init-from", str(whole_run / "export"), "--data.max-seq-length", "16", *TWO_STEPS, *ONE_DEVICE]
    assert train.main([str(other), *arguments(project, tmp_path / "shorter", *more)[1:]]) == 0
    first = next(v for v in writer.read(tmp_path / "shorter" / "metrics.jsonl") if "train/loss" in v)
    fresh = next(v for v in writer.read(whole_run / "metrics.jsonl") if "train/loss" in v)
    assert first["train/masked_lm_loss"] < fresh["train/masked_lm_loss"] - 0.3
    same = (tmp_path / "shorter" / "tokenizer" / "tokenizer.json").read_bytes()
    assert same == (whole_run / "tokenizer" / "tokenizer.json").read_bytes()
    assert bert_jax.load(tmp_path / "shorter" / "export").config.num_hidden_layers == 1
    wider = arguments(project, tmp_path / "wider", "--init-from", str(whole_run / "export"), "--model.hidden-size", "64")
    with pytest.raises(InputError, match=r"model.hidden_size: 32 there, 64 in this run"):
        train.main(wider)
    assert not (tmp_path / "wider").exists()  # nothing was begun: no text was read


@pytest.mark.slow
def test_a_begun_run_goes_on_without_the_model_it_started_from(project, whole_run, tmp_path):
    shutil.copytree(whole_run / "export", tmp_path / "model")
    command = arguments(project, tmp_path / "run", "--init-from", str(tmp_path / "model"), *TWO_STEPS)
    assert train.main(command) == 0
    shutil.rmtree(tmp_path / "model")
    assert train.main(command) == 0
    with pytest.raises(InputError, match=r"no directory .*model"):
        train.main(arguments(project, tmp_path / "new", "--init-from", str(tmp_path / "model"), *TWO_STEPS))


def test_a_run_of_another_configuration_is_refused_with_the_difference(project, whole_run):
    with pytest.raises(InputError, match=r"seed: 3 there, 4 here"):
        train.main(arguments(project, whole_run, "--seed", "4"))


def test_changed_text_is_refused_and_moved_text_is_not(project, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    moved = tmp_path / "text.txt"
    shutil.copy(project / "text.txt", moved)
    command = [str(project / "config.py"), "--workdir", str(tmp_path / "run"), "--data.source", str(moved)]
    assert train.main(command) == 0
    moved.write_text(moved.read_text() + "The dog sleeps. The cat sleeps.\n")
    with pytest.raises(InputError, match=r"is not what .* was begun with"):
        train.main(command)


@pytest.mark.slow
def test_extend_goes_on_past_the_end_and_says_so(project, whole_run, tmp_path, capsys):
    import shutil

    shutil.copytree(whole_run, tmp_path / "run")
    with pytest.raises(InputError, match="--extend"):
        train.main(arguments(project, tmp_path / "run", "--num-steps", "16"))
    assert train.main(arguments(project, tmp_path / "run", "--num-steps", "16", "--extend")) == 0
    assert "extending from 12 to 16 steps" in capsys.readouterr().err
    assert writer.read(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 16


def test_a_batch_that_does_not_divide_names_the_nearest(project, tmp_path):
    with pytest.raises(InputError, match=r"batch_size=12 does not divide over 8 devices .* nearest that do: 8 or 16"):
        train.main(arguments(project, tmp_path / "run", "--batch-size", "12"))
    assert not (tmp_path / "run").exists()  # said before any text was read


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(project, whole_run, tmp_path, capfd):
    import shutil

    shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "export")
    (tmp_path / "run" / "checkpoints" / "12" / "state" / "_METADATA").unlink()
    assert train.main(arguments(project, tmp_path / "run")) == 0
    said = capfd.readouterr().err
    assert "12 is damaged" in said
    assert "continuing from step 8" in said
    assert recorded(tmp_path / "run") == recorded(whole_run)


@pytest.mark.slow
def test_updates_that_are_never_finite_stop_the_run_and_name_the_steps(project, tmp_path):
    with pytest.raises(InputError, match=r"steps 2 to 4 were not finite .* 3 in a row"):
        train.main(arguments(project, tmp_path, "--optim.learning-rate", "1e38", "--optim.warmup-steps", "0",
                             "--optim.max-skipped", "3"))  # fmt: skip


@pytest.mark.slow
def test_a_run_without_held_out_text_trains(project, tmp_path):
    assert train.main(arguments(project, tmp_path, "--data.eval-fraction", "0", *TWO_STEPS, *ONE_DEVICE)) == 0
    assert not any(name.startswith("eval/") for v in writer.read(tmp_path / "metrics.jsonl") for name in v)


def test_convert_writes_what_the_newest_checkpoint_holds(project, whole_run, tmp_path):
    from bert_jax.__main__ import main

    main(["convert", str(whole_run), str(tmp_path / "out")])
    wanted = (whole_run / "export" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == wanted


def test_the_loop_says_when_the_first_loss_is_far_from_chance():
    import jax.numpy as jnp

    from bert_jax.training.steps import TrainState

    said = []

    class Log(writer.Silent):
        def message(self, text):
            said.append(text)

    def step(state, batch):
        metrics = {"loss": jnp.float32(9.0), "masked_lm_loss": jnp.float32(9.0), "skipped_in_a_row": jnp.int32(0)}
        return state._replace(step=state.step + 1), metrics

    loop.fit(
        TrainState(jnp.int32(0), None, None, jnp.int32(0), jnp.int32(0)), step, iter([{"sequence_ids": np.ones((1, 1))}] * 2),
        lambda b: b, loop.Cadence(2, 1, 9, 9, 3), lambda p: [], lambda *a: None, Log(), loop.StopRequest(),
        loop.Cost(lambda b: 1, 1.0, None), 4.0,
    )  # fmt: skip
    assert any("first loss is 9.00" in text for text in said)


def test_a_run_in_another_thread_than_the_main_one_trains_without_signal_handlers(project, whole_run, tmp_path):
    """Python allows signal handlers in the main thread only; a notebook or a server may train from another."""
    cfg = load_train_config(arguments(project, tmp_path))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with ThreadPoolExecutor(1) as pool:
        reached = pool.submit(bert_jax.train, cfg).result()
    assert (reached.signal, reached.export) == (None, tmp_path / "export")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert recorded(tmp_path) == recorded(whole_run)
