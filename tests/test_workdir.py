"""A work directory belongs to one run."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bert_jax import disk
from bert_jax.commands import prepare
from bert_jax.config import (
    BertConfig,
    ComputeConfig,
    DataConfig,
    InputError,
    MaskingConfig,
    OptimConfig,
    Phase,
    TrainConfig,
    from_dict,
    to_dict,
)
from bert_jax.workdir import FREE_FIELDS, begun, branch, claim, recorded


@pytest.fixture
def run(tmp_path):
    return TrainConfig(workdir=str(tmp_path / "runs" / "one"), num_steps=20_000)


def test_the_same_run_continues(run):
    assert claim(run) == []
    path = Path(run.workdir) / "config.json"
    assert from_dict(TrainConfig, json.loads(path.read_text())) == run
    assert claim(run) == []
    assert sorted(str(p.relative_to(run.workdir)) for p in Path(run.workdir).rglob("*")) == [
        ".lock", "checkpoints", "checkpoints/.lock", "config.json",
    ]  # fmt: skip


def test_a_second_process_is_kept_out_until_the_first_ends(run):
    folder = Path(run.workdir)
    code = "import pathlib, sys; from bert_jax import workdir; workdir.hold(pathlib.Path(sys.argv[1])); print('in', flush=True); "
    code += "sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match=rf"{folder} is in use by process {other.pid} on .*: wait .* another --workdir"):
            claim(run)
        assert not (folder / "config.json").exists()
        assert claim(run, first=False) == []  # a process of the same program
        other.kill()
    assert claim(run) == []
    assert claim(run) == []  # this process may come again


def test_what_a_killed_process_left_half_written_is_removed(run):
    folder = Path(run.workdir)
    (folder / "export").mkdir(parents=True)
    names = ("config.json.77.tmp", "export/model.safetensors.77.tmp", "export/.tokenizer.json.77")
    left = [folder / name for name in names]
    kept = [folder / "notes.tmp", folder / "export" / "model.safetensors"]
    for path in left + kept:
        path.write_text("half")
    claim(run, first=False)  # others of the same program may be writing
    assert all(path.exists() for path in left + kept)
    claim(run)
    assert [path for path in left + kept if path.exists()] == kept


def begin(run):
    """A run that has reached its first checkpoint."""
    claim(run)
    (Path(run.workdir) / "checkpoints" / "1000").mkdir(parents=True)
    (Path(run.workdir) / "tokenizer").mkdir()


def checkpoint_of(run, step=1000, **record):
    """The record that lies beside a checkpoint of `run`."""
    record = {"meta": {"config": to_dict(run), "data": "key", **record}, "arrays": {}}
    path = Path(run.checkpoints) / str(step) / "meta" / "metadata"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record | {"crc32": disk.seal(record)}))
    return path


def test_a_checkpoint_folder_of_another_run_is_refused_whatever_the_work_directory_says(run, tmp_path):
    run = run.replace(checkpoint_dir=str(tmp_path / "shared"))
    claim(run)
    checkpoint_of(run)
    other = run.replace(workdir=str(tmp_path / "runs" / "two"), seed=3)
    for _ in range(2):  # the refused one leaves nothing behind that the next could agree with
        with pytest.raises(InputError) as error:
            claim(other)
        assert str(error.value).splitlines() == [
            f"{tmp_path}/shared holds checkpoints of another run:", "  seed: 0 there, 3 here", "use another --workdir",
        ]  # fmt: skip
        assert not Path(other.workdir, "config.json").exists()
    assert claim(other.replace(seed=0)) == []  # the same run, told from elsewhere


def test_a_run_without_its_config_json_is_held_against_its_checkpoints(run):
    claim(run)
    checkpoint_of(run)
    (Path(run.workdir) / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints of another run:\n  model.num_hidden_layers: 12 there, 2 here"):
        claim(run.replace(model=run.model.replace(num_hidden_layers=2)))
    with pytest.raises(InputError, match=r"num_steps: 20000 there, 30000 here\n.*--extend"):
        claim(run.replace(num_steps=30_000))
    assert claim(run) == []


def test_an_extended_run_goes_on_before_its_next_checkpoint(run, tmp_path):
    claim(run)
    checkpoint_of(run)
    longer = run.replace(num_steps=30_000)
    (line,) = claim(longer.replace(extend=True))
    assert "extending from 20000 to 30000 steps" in line
    assert claim(longer) == []
    shutil.copytree(run.checkpoints, tmp_path / "copy")  # which that work directory has not extended
    with pytest.raises(InputError, match=r"copy holds checkpoints of another run:\n  num_steps: 20000 there, 30000 here"):
        claim(longer.replace(checkpoint_dir=str(tmp_path / "copy")))


def test_a_record_that_is_damaged_is_passed_over(run):
    assert recorded(run.checkpoints) is None
    checkpoint_of(run, 1000, data="first")
    path = checkpoint_of(run, 2000, data="second")
    (path.parent.parent.parent / "3000.orbax-checkpoint-tmp").mkdir()
    assert recorded(run.checkpoints)["data"] == "second"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 4'))
    assert recorded(run.checkpoints)["data"] == "first"
    path.write_text("[]")
    assert recorded(run.checkpoints)["data"] == "first"


def test_checkpoints_of_no_pretraining_run_are_refused(run):
    path = checkpoint_of(run)
    record = {"meta": {"history": []}}
    path.write_text(json.dumps(record | {"crc32": disk.seal(record)}))
    with pytest.raises(InputError, match="holds checkpoints of another kind of run"):
        claim(run)


def test_text_and_tokenizer_may_move_once_a_checkpoint_knows_them(run):
    run = run.replace(data=run.data.replace(source=("a",), tokenizer="vocab.txt"))
    moved = run.replace(data=run.data.replace(source=("b",), tokenizer="elsewhere/vocab.txt"))
    begin(run)
    with pytest.raises(InputError, match=r"data\.source: "):
        claim(moved)
    (Path(run.workdir) / "checkpoints" / "1000").rmdir()
    checkpoint_of(run)
    assert claim(moved) == []
    for other in (dict(tokenizer="bpe"), dict(eval_source=("c",)), dict(max_seq_length=64)):
        with pytest.raises(InputError, match=f"data.{next(iter(other))}: "):
            claim(run.replace(data=run.data.replace(**other)))


def test_a_checkpoint_folder_keeps_a_second_program_out(run, tmp_path):
    """Two work directories may be given the same one."""
    shared = tmp_path / "shared"
    code = "import pathlib, sys; from bert_jax import workdir; workdir.hold(pathlib.Path(sys.argv[1])); print('in', flush=True); "
    code += "sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(shared)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match=rf"{shared} is in use by process {other.pid} on .*another --checkpoint-dir"):
            claim(run.replace(checkpoint_dir=str(shared)))
        other.kill()
    assert claim(run.replace(checkpoint_dir=str(shared))) == []
    assert claim(run.replace(checkpoint_dir="gs://bucket/run")) == []  # which knows no locks


def test_before_the_first_checkpoint_another_config_replaces_the_old_one_and_its_vocabulary(run):
    begin(run)
    (Path(run.workdir) / "checkpoints" / "1000").rmdir()
    assert claim(run.replace(seed=1)) == []
    assert json.loads((Path(run.workdir) / "config.json").read_text())["seed"] == 1
    assert not (Path(run.workdir) / "tokenizer").exists()


def test_a_config_written_before_a_field_existed_stands_for_its_default(run):
    begin(run)
    path = Path(run.workdir) / "config.json"
    values = json.loads(path.read_text())
    del values["log_every"], values["optim"]["max_skipped"]
    path.write_text(json.dumps(values))
    assert claim(run) == []
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"optim.max_skipped: 10 there, 3 here"):
        claim(run.replace(optim=run.optim.replace(max_skipped=3)))


def test_another_run_is_refused_with_a_list_of_what_differs(run):
    begin(run)
    before = (Path(run.workdir) / "config.json").read_text()
    other = run.replace(seed=3, model=run.model.replace(num_hidden_layers=2), data=run.data.replace(source=("x",)), log_every=1)
    with pytest.raises(InputError) as error:
        claim(other)
    assert str(error.value).splitlines() == [
        f"{run.workdir} holds another run:",
        "  seed: 0 there, 3 here",
        "  model.num_hidden_layers: 12 there, 2 here",
        "  data.source: [] there, ['x'] here",
        "use another --workdir",
    ]
    assert (Path(run.workdir) / "config.json").read_text() == before


OTHER_VALUE = {
    "eval_every": 7, "checkpoint_every": 7, "keep_checkpoints": 7, "log_every": 7, "profile": 7, "extend": True,
    "fill_masks": ["x"], "eval_sources": ["a=a.txt"],
    "data.cache_dir": "x", "data.num_workers": 7, "checkpoint_dir": "x", "parallel.num_devices": 7, "parallel.strategy": "pmap",
    "parallel.fsdp": 2, "parallel.stuck_timeout": 9,
    "compute.remat": "full", "compute.scan_layers": True, "compute.attention": "xla",
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_VALUE)
def test_free_fields_may_differ(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a checkpoint_dir is made and locked
    claim(run)
    values = to_dict(run)
    *groups, last = name.split(".")
    (values[groups[0]] if groups else values)[last] = OTHER_VALUE[name]
    other = from_dict(TrainConfig, values)
    assert other != run
    assert claim(other) == []
    assert json.loads((Path(run.workdir) / "config.json").read_text()) == values


def test_a_work_directory_of_before_there_was_compute_goes_on_and_its_compute_type_is_held(run):
    claim(run)
    path = Path(run.workdir) / "config.json"
    values = json.loads(path.read_text())
    values["model"] |= values.pop("compute")
    path.write_text(json.dumps(values))
    (path.parent / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(InputError, match=r"compute\.dtype: 'float32' there, 'bfloat16' here"):
        claim(run.replace(compute=ComputeConfig(dtype="bfloat16")))
    assert claim(run.replace(compute=ComputeConfig(remat="full"))) == []
    assert json.loads(path.read_text())["compute"]["remat"] == "full"


def test_the_list_of_free_fields_names_fields_that_are_there_and_tested():
    groups = {"": TrainConfig, "data.": DataConfig, "model.": BertConfig, "compute.": ComputeConfig}
    names = {prefix + f.name for prefix, cls in groups.items() for f in fields(cls)}
    assert names >= FREE_FIELDS
    assert FREE_FIELDS - {"workdir"} == {name for name in OTHER_VALUE if not name.startswith("parallel.")}


def test_a_moved_work_directory_still_continues(run, tmp_path):
    claim(run)
    Path(run.workdir).rename(tmp_path / "moved")
    assert claim(run.replace(workdir=str(tmp_path / "moved"))) == []


def test_more_steps_need_extend_and_say_what_happens_to_the_schedule(run):
    begin(run)
    longer = run.replace(num_steps=30_000)
    with pytest.raises(InputError, match=r"num_steps: 20000 there, 30000 here\n.*--extend to go on past its num_steps"):
        claim(longer)
    (line,) = claim(longer.replace(extend=True))
    assert re.match("extending from 20000 to 30000 steps: the linear schedule now ends there", line)
    assert claim(longer) == []  # from now on it is a run of 30000
    with pytest.raises(InputError, match=r"num_steps: 30000 there, 20000 here\nuse another --workdir$"):
        claim(run.replace(extend=True))  # fewer are never allowed


def test_extend_does_not_let_other_fields_through(run):
    begin(run)
    with pytest.raises(InputError) as error:
        claim(run.replace(num_steps=30_000, extend=True, seed=1))
    assert "seed: 0 there, 1 here" in str(error.value)
    assert json.loads((Path(run.workdir) / "config.json").read_text())["num_steps"] == 20_000


@pytest.mark.parametrize("below", ["file", "file/below"])
def test_a_work_directory_that_cannot_be_used_is_named(run, tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"cannot use the work directory .*{below}: "):
        claim(run.replace(workdir=str(tmp_path / below)))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_work_directory_without_permission_is_named(run, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"cannot use the work directory .*Permission denied"):
        claim(run)


def test_a_full_disk_leaves_the_old_config_whole(run, monkeypatch):
    claim(run)
    before = (Path(run.workdir) / "config.json").read_text()

    def full(self, text, encoding):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"cannot use the work directory .*No space left on device"):
        claim(run)
    assert (Path(run.workdir) / "config.json").read_text() == before


@pytest.mark.parametrize("content", [b"", b'{"num_steps": 3', b"\xff\xfe\x00", b"[]", b"null", b'{"num_steps": null}'])
def test_a_damaged_config_json_is_named(run, content):
    path = Path(run.workdir) / "config.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{re.escape(str(path.parent))}.*"):
        claim(run)
    assert path.read_bytes() == content


def test_a_branch_of_no_run_is_refused():
    with pytest.raises(InputError, match="branch_from is empty: give the work directory of another run, or RUN@STEP"):
        branch(TrainConfig(branch_from=""))


def test_a_branch_has_the_model_and_the_optimizer_of_its_run_and_ends_after_it(run):
    claim(run)
    checkpoint_of(run)
    forked = run.replace(workdir=f"{run.workdir}-2", branch_from=run.workdir, num_steps=15_000, seed=4)
    assert (branch(forked).step, begun(forked)[1]) == (1000, branch(forked))
    assert begun(run)[0]["step"] == 1000
    assert prepare._beginning(forked) == (branch(forked).record, Path(run.workdir) / "tokenizer")  # of doctor, too
    dropout = run.model.replace(hidden_dropout_prob=0.0)
    for same in (dict(model=dropout), dict(optim=OptimConfig(learning_rate=1.0)), dict(masking=MaskingConfig(rate=0.3))):
        assert branch(forked.replace(**same)).step == 1000
    for other, message in (
        (dict(model=run.model.replace(hidden_act="relu")), "model.hidden_act: 'gelu' there, 'relu' here"),
        (dict(optim=OptimConfig(name="muon")), "optim.name: 'adamw_bert' there, 'muon' here"),
        (dict(optim=OptimConfig(average="ema:0.9")), "optim.average: None there, 'ema:0.9' here"),
        (dict(objective="replaced_tokens"), "objective: 'masked_lm' there, 'replaced_tokens' here"),
    ):
        with pytest.raises(InputError, match=f"branch_from: .* has another model or optimizer:\n  {message}\na branch has"):
            branch(forked.replace(**other))
    with pytest.raises(InputError, match="stands at step 1000: give a --num-steps above it"):
        branch(forked.replace(num_steps=1000, optim=OptimConfig(warmup_steps=10)))


def test_a_run_in_phases_is_extended_by_a_longer_last_phase_and_by_further_ones(run):
    phases = Phase(until=15_000, mask_rate=0.3), Phase(until=20_000)
    run = run.replace(phases=phases)
    claim(run)
    checkpoint_of(run)
    longer = run.replace(num_steps=30_000, phases=(phases[0], Phase(until=25_000), Phase(until=30_000, batch_size=32)))
    changes = ("num_steps: 20000 there, 30000 here", r"phases\[1\].until: 20000 there, 25000 here", r"phases\[2\]: None there")
    with pytest.raises(InputError, match=r"[\s\S]*".join(changes) + r"[\s\S]*--extend to go on past its num_steps"):
        claim(longer)
    other = longer.replace(extend=True, phases=(Phase(until=15_000, mask_rate=0.2), *longer.phases[1:]))
    with pytest.raises(InputError, match=r"another run:\n  phases\[0\].mask_rate: 0.3 there, 0.2 here\nuse another"):
        claim(other)
    (line,) = claim(longer.replace(extend=True))
    assert "extending from 20000 to 30000 steps" in line
    assert claim(longer) == []  # it stays so before the next checkpoint
    plain = run.replace(workdir=f"{run.workdir}-2", phases=())
    claim(plain)
    checkpoint_of(plain)
    with pytest.raises(InputError, match=r"another run:\n  phases\[0\]: None there"):  # which would say what has been done
        claim(longer.replace(workdir=plain.workdir, extend=True))


def test_phases_of_before_a_phase_had_a_field_are_the_same(run):
    run = run.replace(phases=(Phase(until=15_000), Phase(until=20_000)))
    begin(run)
    path = Path(run.workdir) / "config.json"
    values = json.loads(path.read_text())
    del values["phases"][0]["causal_share"]
    path.write_text(json.dumps(values))
    assert claim(run) == []
