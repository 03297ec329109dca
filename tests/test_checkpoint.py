"""Checkpoints: what is kept, what comes back, and what happens when the disk does not do its part."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.config import InputError
from bert_jax.disk import seal
from bert_jax.training.checkpoint import Checkpointer

pytestmark = pytest.mark.filterwarnings("error")


class Moments(NamedTuple):
    m: jax.Array
    v: jax.Array


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt: tuple


def make_state(seed: int = 0, width: int = 4096) -> State:
    # Random numbers, as in a real model: zeros would compress, and zstd would then notice each flipped bit by itself.
    x = np.random.default_rng(seed).normal(size=(8, width)).astype(np.float32)
    params = {"dense": {"kernel": jnp.asarray(x), "bias": jnp.asarray(x[0], jnp.bfloat16)}}
    return State(jnp.asarray(seed, jnp.int32), params, (Moments(jnp.asarray(x * 2), jnp.asarray(x > 0)), ()))


def assert_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def saved(folder: Path, *steps: int, **kwargs) -> Path:
    """A folder with a checkpoint of make_state(step) for each step."""
    checkpointer = Checkpointer(folder, **kwargs)
    for step in steps:
        checkpointer.save(step, make_state(step), {"step": step})
    checkpointer.close()
    return folder


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("two") / "checkpoints", 1, 2)


@pytest.fixture
def folder(two_checkpoints, tmp_path) -> Path:
    return Path(shutil.copytree(two_checkpoints, tmp_path / "checkpoints"))


@pytest.fixture
def lines() -> list[str]:
    return []


def biggest(step: Path) -> Path:
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path, *places: float) -> None:
    data = bytearray(path.read_bytes())
    for at in places:
        data[int(at * len(data))] ^= 4
    path.write_bytes(data)


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def edit_meta(step: Path) -> None:
    path = step / "meta" / "metadata"
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


DAMAGE = {
    "empty folder": (empty, "the folder is empty"),
    "missing metadata": (lambda step: (step / "state" / "_METADATA").unlink(), "state/_METADATA is missing"),
    "missing manifest": (lambda step: (step / "state" / "manifest.ocdbt").unlink(), "state/manifest.ocdbt is missing"),
    "missing data file": (lambda step: biggest(step).unlink(), "Error reading"),
    "truncated data file": (lambda step: truncate(biggest(step), 1000), "not valid for value of size 1000"),
    "emptied data file": (lambda step: truncate(biggest(step), 0), "not valid for value of size 0"),
    "bit-flipped data file": (
        lambda step: flip(biggest(step), 0.25, 0.75),
        "do not match their checksum|Error reading",
    ),
    "bit-flipped manifest": (lambda step: flip(step / "state" / "manifest.ocdbt", 0.5), "manifest.ocdbt"),
    "truncated metadata": (lambda step: truncate(step / "state" / "_METADATA", 30), "JSONDecodeError"),
    "missing state": (lambda step: shutil.rmtree(step / "state"), "state is missing"),
    "missing meta": (lambda step: shutil.rmtree(step / "meta"), "meta is missing"),
    "truncated meta": (lambda step: truncate(step / "meta" / "metadata", 30), "meta does not match its checksum"),
    "emptied meta": (lambda step: truncate(step / "meta" / "metadata", 0), "meta does not match its checksum"),
    "edited meta": (edit_meta, "meta does not match its checksum"),
}


def test_a_state_comes_back_to_the_bit_with_its_meta_and_step(folder):
    state, meta, step = Checkpointer(folder).restore_latest(make_state())
    assert_equal(state, make_state(2))
    assert (meta, step) == ({"step": 2}, 2)


def test_an_empty_or_new_folder_has_no_checkpoint(tmp_path):
    checkpointer = Checkpointer(str(tmp_path / "a" / "b"))
    assert checkpointer.restore_latest(make_state()) is None
    assert (checkpointer.steps, checkpointer.best_step) == ([], None)


def test_the_newest_and_the_best_are_kept_also_by_a_new_process(tmp_path):
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: float("nan"), 5: None, 6: 3.5}
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step, loss in list(losses.items())[:4]:
        checkpointer.save(step, make_state(step, 8), {}, {"other": 1.0, "eval/masked_lm_loss": loss})
    checkpointer.close()
    checkpointer = Checkpointer(tmp_path, keep=2)
    assert (checkpointer.steps, checkpointer.best_step) == ([2, 3, 4], 2)
    checkpointer.save(5, make_state(5, 8), {}, None)
    checkpointer.save(6, make_state(6, 8), {}, {"eval/masked_lm_loss": np.float32(3.5)})
    checkpointer.wait()
    assert (checkpointer.steps, checkpointer.best_step) == ([2, 5, 6], 2)
    checkpointer.save(7, make_state(7, 8), {}, {"eval/masked_lm_loss": 2.0})
    checkpointer.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [6, 7]
    checkpointer = Checkpointer(tmp_path, keep=2, best_metric=None)
    assert checkpointer.best_step is None


def test_a_passing_checkpoint_takes_no_place_of_the_last_ones_and_goes_with_the_next_save(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpointer.save(step, make_state(step, 8), {}, passing=step == 3)
    checkpointer.close()
    checkpointer = Checkpointer(tmp_path, keep=2)  # a new process knows it, too
    assert (checkpointer.steps, checkpointer.lasting_steps) == ([1, 2, 3], [1, 2])
    checkpointer.save(4, make_state(4, 8), {})
    checkpointer.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [2, 4]


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_told_in_one_line_and_the_one_before_is_used(kind, folder, lines, capfd, caplog):
    damage, reason = DAMAGE[kind]
    damage(folder / "2")
    checkpointer = Checkpointer(folder, report=lines.append)
    state, meta, step = checkpointer.restore_latest(make_state())
    assert_equal(state, make_state(1))
    assert (meta, step) == ({"step": 1}, 1)
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert str(folder / "2") in lines[0]
    assert len(lines[0]) < 700
    assert "spec" not in lines[0]
    assert re.search(reason, lines[0])
    assert (folder / "2.damaged").is_dir()
    assert checkpointer.steps == [1]
    checkpointer.save(2, make_state(5), {"again": True})
    checkpointer.close()
    state, meta, step = Checkpointer(folder).restore_latest(make_state())
    assert (meta, step) == ({"again": True}, 2)
    assert_equal(state, make_state(5))
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_any_flipped_bit_is_noticed_or_does_not_matter(folder):
    for path in [p for p in (folder / "2").rglob("*") if p.is_file()]:
        before = path.read_bytes()
        for at in (0.1, 0.6):
            flip(path, at)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Checkpointer, "_move_aside", lambda self, p: p)
                state, meta, step = Checkpointer(folder, report=lambda line: None).restore_latest(make_state())
            assert_equal(state, make_state(step))
            assert meta == {"step": step}
            path.write_bytes(before)


def test_if_all_are_damaged_each_is_named_and_nothing_is_moved_or_started_anew(folder, lines):
    empty(folder / "2")
    truncate(biggest(folder / "1"), 10)
    with pytest.raises(InputError) as error:
        Checkpointer(folder, report=lines.append).restore_latest(make_state())
    for part in (f"{folder}/2: the folder is empty", f"{folder}/1: ", "--workdir"):
        assert part in str(error.value)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]
    (folder / "2").rename(folder / "2.damaged")
    shutil.rmtree(folder / "1")
    with pytest.raises(InputError, match=r"2\.damaged: moved aside before"):
        Checkpointer(folder, report=lines.append).restore_latest(make_state())


def test_a_step_saved_again_does_not_inherit_the_metric_of_the_damaged_one(folder):
    checkpointer = Checkpointer(folder)
    checkpointer.save(3, make_state(3), {}, {"eval/masked_lm_loss": 1.0})
    checkpointer.close()
    truncate(biggest(folder / "3"), 0)
    checkpointer = Checkpointer(folder, report=lambda line: None)
    assert checkpointer.best_step == 3
    checkpointer.restore_latest(make_state())
    assert checkpointer.best_step is None
    checkpointer.save(3, make_state(3), {})
    assert checkpointer.best_step is None
    checkpointer.close()


def test_a_second_damage_of_a_step_is_moved_beside_the_first(folder, lines):
    empty(folder / "2")
    (folder / "2.damaged").mkdir()
    Checkpointer(folder, report=lines.append).restore_latest(make_state())
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2.damaged", "2.damaged.2"]


def test_folders_that_are_no_steps_are_told_and_left_alone(folder, lines):
    names = ["garbage", "12abc", "-3", "007", "2.damaged"]
    for name in names:
        (folder / name).mkdir()
    (folder / "notes.txt").write_text("a file")
    _, _, step = Checkpointer(folder, report=lines.append).restore_latest(make_state())
    assert step == 2
    assert sorted(line.split(" ")[0] for line in lines) == sorted(str(folder / n) for n in names[:4])
    assert all((folder / n).exists() for n in names)


def test_a_checkpoint_of_another_model_is_refused_with_the_difference(folder, lines):
    other = make_state(0, 2048).replace(opt=({"extra": jnp.zeros(3)},))
    with pytest.raises(InputError) as error:
        Checkpointer(folder, report=lines.append).restore_latest(other)
    for part in (
        "params/dense/kernel (8, 4096) in the checkpoint, (8, 2048) in this run",
        "only in the checkpoint: opt/0/m, opt/0/v",
        "only in this run: opt/0/extra",
    ):
        assert part in str(error.value)
    assert lines == []
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_a_whole_checkpoint_of_an_optimizer_with_the_same_arrays_is_not_called_damaged(folder, lines):
    """Optimizers may differ in parts without arrays alone, as optax's adamw and lamb do."""
    other = make_state().replace(opt=(*make_state().opt, ()))
    with pytest.raises(InputError, match=r"is of another model or optimizer: .*only in this run: opt/2\."):
        Checkpointer(folder, report=lines.append).restore_latest(other)
    assert lines == []
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_a_checkpoint_folder_that_was_renamed_is_not_taken_for_another_step(folder, lines):
    (folder / "2").rename(folder / "7")
    _, meta, step = Checkpointer(folder, report=lines.append).restore_latest(make_state())
    assert (meta, step) == ({"step": 1}, 1)
    assert len(lines) == 1
    assert "7 is damaged (it was saved as step 2: its folder was renamed)" in lines[0]


def test_a_checkpoint_of_before_steps_and_empty_parts_were_recorded_is_read(folder):
    path = folder / "2" / "meta" / "metadata"
    record = json.loads(path.read_text())
    for name in ("step", "empty", "crc32"):
        del record[name]
    path.write_text(json.dumps(record | {"crc32": seal(record)}))
    assert Checkpointer(folder).restore_latest(make_state())[2] == 2


def test_a_sharding_that_does_not_divide_the_array_is_not_taken_for_damage(folder):
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_state())
    kernel = jax.ShapeDtypeStruct((8, 4096), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    like.params["dense"]["kernel"] = kernel
    with pytest.raises(ValueError, match="evenly divide") as error:
        Checkpointer(folder).restore_latest(like)
    assert not isinstance(error.value, InputError)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_the_types_are_those_of_the_template(folder):
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_state())
    like.params["dense"]["kernel"] = jax.ShapeDtypeStruct((8, 4096), jnp.bfloat16)
    state, _, step = Checkpointer(folder).restore_latest(like)
    assert step == 2
    expected = make_state(2)
    expected.params["dense"]["kernel"] = expected.params["dense"]["kernel"].astype(jnp.bfloat16)
    assert_equal(state, expected)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_state_saved_on_four_devices_comes_back_on_any_number(count, tmp_path, lines):
    def placed(state, devices):
        mesh = Mesh(np.array(devices), ("data",))
        spec = lambda x: NamedSharding(mesh, P("data") if x.ndim > 1 else P())  # noqa: E731
        return jax.tree.map(lambda x: jax.device_put(x, spec(x)), state)

    checkpointer = Checkpointer(tmp_path, report=lines.append)
    checkpointer.save(3, placed(make_state(3), jax.devices()[:4]), {})
    template = placed(make_state(0), jax.devices()[:count])
    state, _, _ = checkpointer.restore_latest(template)
    assert_equal(state, make_state(3))
    for x, t in zip(jax.tree.leaves(state), jax.tree.leaves(template), strict=True):
        assert x.sharding.is_equivalent_to(t.sharding, x.ndim)
    assert lines == []
    checkpointer.close()


def test_a_state_that_is_donated_while_it_is_written_is_saved_as_it_was(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"w": jnp.zeros((512, 4096)), "b": jnp.zeros(3)}
    checkpointer = Checkpointer(tmp_path)
    state = step(state)
    checkpointer.save(1, state, {})
    for _ in range(20):
        state = step(state)
    restored, _, _ = checkpointer.restore_latest(state)
    assert float(restored["w"].min()) == float(restored["w"].max()) == float(restored["b"][0]) == 1.0
    checkpointer.close()


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_that_is_not_past_the_newest_is_refused(step, folder):
    with pytest.raises(InputError, match=f"step {step} cannot be saved .*: it holds step 2"):
        Checkpointer(folder).save(step, make_state(), {})


def test_a_save_that_orbax_declines_is_never_silent(folder, monkeypatch):
    checkpointer = Checkpointer(folder)
    monkeypatch.setattr(checkpointer._manager, "should_save", lambda step: False)
    with pytest.raises(InputError, match="Orbax declined"):
        checkpointer.save(3, make_state(), {})


def test_meta_that_is_not_json_is_refused_before_anything_is_written(folder):
    with pytest.raises(TypeError, match="not JSON serializable"):
        Checkpointer(folder).save(3, make_state(), {"a": object()})
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_a_full_disk_is_named_and_the_last_whole_checkpoint_stays(folder, capfd, caplog):
    checkpointer = Checkpointer(folder, keep=1)  # step 1 goes when step 3 is whole, and not before
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # a write past it fails, as on a full disk
    try:
        checkpointer.save(3, make_state(3), {}, {"eval/masked_lm_loss": 0.1})
        with pytest.raises(InputError, match=r"step 3 could not be saved in checkpoint folder .*: File too large") as e:
            checkpointer.save(4, make_state(4), {})
        assert str(folder) in str(e.value)
        with pytest.raises(InputError, match="step 4"):
            checkpointer.save(4, make_state(4), {})
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpointer.steps == [1, 2]
    assert checkpointer.best_step is None
    state, _, _ = checkpointer.restore_latest(make_state())
    assert_equal(state, make_state(2))
    checkpointer.save(3, make_state(3), {})
    checkpointer.close()
    assert checkpointer.steps == [3]
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_closing_tells_of_a_failed_save(folder):
    checkpointer = Checkpointer(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        checkpointer.save(3, make_state(3), {})
        with pytest.raises(InputError, match="File too large"):
            checkpointer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "checkpoints"):
        with pytest.raises(InputError, match=f"{place} cannot be used"):
            Checkpointer(place)


def test_a_folder_that_goes_away_during_the_run_is_named(folder):
    checkpointer = Checkpointer(folder)
    folder.rename(folder.parent / "elsewhere")
    folder.write_text("in the way")
    with pytest.raises(InputError, match=f"step 3 could not be saved in checkpoint folder {folder}"):
        checkpointer.save(3, make_state(3), {})
        checkpointer.wait()


KILLED = """
import os, signal, sys, time
import jax.numpy as jnp
from pathlib import Path
from bert_jax.training.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
checkpointer.save(1, {"w": jnp.ones(8)}, {})
checkpointer.wait()
rename = os.rename
os.rename = lambda *a, **k: time.sleep(600) if "2.orbax" in str(a[0]) else rename(*a, **k)  # never becomes whole
checkpointer.save(2, {"w": jnp.ones(8) * 2}, {})
while not list(Path(sys.argv[1]).glob("2.orbax-checkpoint-tmp/*")):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_while_saving_leaves_the_checkpoint_before_and_no_litter(tmp_path, lines):
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, timeout=600, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2.orbax-checkpoint-tmp"]
    checkpointer = Checkpointer(tmp_path, report=lines.append)
    state, _, step = checkpointer.restore_latest({"w": jnp.zeros(8)})
    assert (step, float(state["w"][0])) == (1, 1.0)
    checkpointer.save(3, state, {})
    checkpointer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]
    assert lines == []


def test_the_record_beside_a_checkpoint_is_plain_json(folder):
    record = json.loads((folder / "2" / "meta" / "metadata").read_text())
    assert record["meta"] == {"step": 2}
    assert record["arrays"]["params/dense/bias"][:2] == ["bfloat16", [4096]]


def test_read_only_leaves_a_folder_that_a_run_may_be_saving_in_as_it_is(folder: Path, lines: list[str]) -> None:
    newest = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    empty(folder / str(newest))
    (folder / f"{newest + 1}.orbax-checkpoint-tmp").mkdir()
    before = sorted(p.name for p in folder.iterdir())
    checkpointer = Checkpointer(folder, report=lines.append, read_only=True)
    _, _, step = checkpointer.restore_latest(make_state())
    checkpointer.close()
    assert step < newest
    assert sorted(p.name for p in folder.iterdir()) == before
    assert any("is damaged" in line and "moved" not in line for line in lines)
