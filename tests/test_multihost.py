"""Several processes as one job: two with gloo on 127.0.0.1, by the command line; killed, raising, stuck, asked to stop."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import make_documents

from bert_jax.config import InputError, ParallelConfig
from bert_jax.model.convert import flatten
from bert_jax.training import multihost, writer

ROOT = Path(__file__).parent.parent
CONFIG = """
from bert_jax.config import BertConfig, DataConfig, OptimConfig, TrainConfig

def get_config():
    return TrainConfig(
        num_steps=8, batch_size=8, eval_every=4, checkpoint_every=4, log_every=1, seed=3, eval_batches=3,
        model=BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=64, max_position_embeddings=32),
        data=DataConfig(max_seq_length=32, documents="line", eval_fraction=0.2, num_workers=1),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
    )
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a config file and 300 one-line documents."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "text.txt").write_text("\n".join(" ".join(sentences) for sentences in make_documents(300)) + "\n")
    (folder / "config.py").write_text(CONFIG)
    return folder


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


JOBS = []  # all that was started and may still be there


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """However a test ends: no process of its, nor of theirs, goes on beside the tests that follow."""
    yield
    while JOBS:
        process, output = JOBS.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.close()


def start(
    project, workdir, *more, processes=2, devices=2, program="train.py", argv=None, heartbeat_timeout=100, folders=None, own=None,
    dying=None,
):  # fmt: skip
    """The processes of one job, each with some devices; number `dying` kills itself behind the checkpoint of step 4."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "8", "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }  # fmt: skip
    argv = argv or [project / "config.py", "--workdir", workdir, "--data.source", project / "text.txt"]
    prefix = "--" if program == "finetune.py" else "--parallel."
    port, started = free_port(), []
    for i in range(processes):
        flags = dict(coordinator=f"127.0.0.1:{port}", num_processes=processes, process_id=i, heartbeat_timeout=heartbeat_timeout)
        joined = [part for name, value in flags.items() for part in (prefix + name.replace("_", "-"), value)]
        run = [ROOT / "tests/dying.py", "train", workdir / "checkpoints", 4] if i == dying else [ROOT / program]
        command = [sys.executable, *run, *argv, *(joined if processes > 1 else []), *more, *(own[i] if own else [])]
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  not a pipe, which fills up while the other is waited for
        process = subprocess.Popen(
            list(map(str, command)), env=environment, cwd=folders[i] if folders else None, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        JOBS.append((process, output))
        started.append(process)
    return started


def finish(processes):
    """(exit status, output) of each, when all have ended."""
    return [(process.wait(), said_by(process)) for process in processes]


def said_by(process):
    [output] = [output for one, output in JOBS if one is process]
    output.seek(0)
    return output.read()


def losses_of(workdir):
    return [v["train/loss"] for v in writer.read(workdir / "metrics.jsonl") if "train/loss" in v]


def weights_of(workdir):
    import bert_jax

    return flatten(bert_jax.load(workdir / "export").params)


def assert_same_run(one, other):
    np.testing.assert_allclose(losses_of(one), losses_of(other), rtol=1e-5)
    ours, theirs = weights_of(one), weights_of(other)
    for path in ours:
        np.testing.assert_allclose(ours[path], theirs[path], atol=1e-5, err_msg=path)


@pytest.fixture(scope="module")
def alone(project):
    """The work directory of one process with four devices."""
    ((status, output),) = finish(start(project, project / "alone", processes=1, devices=4))
    assert status == 0, output
    return project / "alone"


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((), id="data", marks=pytest.mark.slow),
        pytest.param(("--parallel.fsdp", "2", "--parallel.tensor", "2"), id="fsdp-tensor", marks=pytest.mark.slow),
        pytest.param(("--parallel.fsdp", "4"), id="fsdp", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(project, alone, tmp_path, layout):
    (first, told), (second, quiet) = finish(start(project, tmp_path, *layout))
    assert first == second == 0, told + quiet
    assert "on 2 hosts" in told
    assert "step 8" in told
    assert "step 8" not in quiet  # one tells
    assert len(losses_of(tmp_path)) == 8
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_of_a_pmap_train_as_one_without_dropout(project, tmp_path):
    no_dropout = ("--model.hidden-dropout-prob", "0", "--model.attention-probs-dropout-prob", "0")
    two, one = tmp_path / "two", tmp_path / "one"
    results = finish(start(project, two, "--parallel.strategy", "pmap", *no_dropout))
    assert [status for status, _ in results] == [0, 0], results[0][1] + results[1][1]
    ((status, output),) = finish(start(project, one, *no_dropout, processes=1, devices=4))
    assert status == 0, output
    assert_same_run(two, one)


RECIPE = """
import dataclasses
from bert_jax.config import Phase

def get_config(base=get_config):
    cfg, mixture = base(), "a=1,b=1"
    phases = (Phase(until=3, mask_rate=0.4, causal_share=0.5), Phase(until=6, max_seq_length=16, batch_size=16, mixture=mixture),
              Phase(until=8, learning_rate_scale=0.1, learning_rate_shape="1-sqrt"))
    optim = dataclasses.replace(cfg.optim, name="muon", average="last:2")
    return dataclasses.replace(cfg, phases=phases, optim=optim, data=cfg.data.replace(source=SOURCE, mixture="a=2,b=1"))
"""


@pytest.mark.slow
def test_two_processes_train_a_recipe_of_phases_mixtures_and_averages_as_one_and_branch_from_it(project, tmp_path):
    a, b = f"a={project / 'text.txt'}", f"b={tmp_path / 'b.txt'}"
    (tmp_path / "config.py").write_text(f"SOURCE = {(a, b)}{CONFIG}{RECIPE}")
    (tmp_path / "b.txt").write_text("\n".join(" ".join(sentences) for sentences in make_documents(200, seed=9)) + "\n")

    def job(workdir, *more, **how):
        argv = [tmp_path / "config.py", "--workdir", workdir, "--eval-sources", b, *more]
        results = finish(start(project, workdir, argv=argv, **how))
        assert {status for status, _ in results} == {0}, "".join(output for _, output in results)
        return workdir

    two, one = job(tmp_path / "two"), job(tmp_path / "one", processes=1, devices=4)
    assert_same_run(two, one)
    ours, theirs = ([v for v in writer.read(of / "metrics.jsonl") if "kind" not in v] for of in (two, one))
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    forked = job(tmp_path / "forked", "--branch-from", f"{two}@6", "--optim.average", "last:1")
    np.testing.assert_allclose(losses_of(forked), losses_of(two)[6:], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_fine_tune_as_one(tokenizer, tmp_path):
    import jax

    from bert_jax import pretrained
    from bert_jax.config import BertConfig
    from bert_jax.model.heads import Bert, initialize

    cfg = BertConfig(vocab_size=280, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                     max_position_embeddings=64, initializer_range=0.2)  # fmt: skip
    params = jax.jit(lambda: initialize(Bert(cfg, "masked_lm"), 0))()
    pretrained.save(pretrained.Model(cfg, params, tokenizer, "masked_lm"), tmp_path / "model")
    texts = [" ".join(sentences) for sentences in make_documents(60, sentences=(1, 2))]
    rows = [f"{text}\t{'long' if len(text) > 45 else 'short'}" for text in texts]
    for name, part in (("train", rows[:48]), ("dev", rows[48:])):
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *part]) + "\n")

    def job(workdir, **how):
        argv = [tmp_path / "model", "--task", "classification", "--data", tmp_path / "train.tsv", "--dev", tmp_path / "dev.tsv",
                "--text-column", "text", "--label-column", "label", "--workdir", workdir, "--num-epochs", "2",
                "--batch-size", "8", "--learning-rates", "1e-3", "--seeds", "2", "--log-every", "1",
                "--max-seq-length", "48"]  # fmt: skip
        results = finish(start(None, workdir, program="finetune.py", argv=argv, **how))
        assert {status for status, _ in results} == {0}, results[0][1] + results[-1][1]
        return json.loads((workdir / "results.json").read_text())

    two, one = job(tmp_path / "two"), job(tmp_path / "one", processes=1, devices=4)
    assert [run["seed"] for run in two["runs"]] == [0, 1]
    assert two["metrics"]["dev"] == pytest.approx(one["metrics"]["dev"], abs=2e-4)
    for run in ("seed0-lr0.001", "seed1-lr0.001"):
        ours, theirs = (losses_of(tmp_path / name / "runs" / run) for name in ("two", "one"))
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


def await_checkpoint(processes, workdir, step):
    while not (workdir / "checkpoints" / str(step)).exists():
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.005)


# What JAX may say, and a collective of it, where another process is gone; which comes first is a race.
GONE = ("heartbeat", "coordination", "connection", "another task died", "unavailable", "gloo")


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_job_and_a_restart_on_other_hosts_continues(project, alone, tmp_path, victim):
    job = start(project, tmp_path, dying=victim, heartbeat_timeout=20)
    results = finish(job)
    assert results[victim][0] == -signal.SIGKILL, results[victim][1]
    status, output = results[1 - victim]
    assert status != 0
    assert any(word in output.lower() for word in GONE), output
    assert not (tmp_path / "export").exists()
    ((status, output),) = finish(start(project, tmp_path, processes=1, devices=8))
    assert status == 0, output
    assert "continuing from step 4" in output
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_sigterm_to_one_saves_and_ends_all_behind_the_same_step(project, alone, tmp_path):
    job = start(project, tmp_path, "--num-steps", "8")
    await_checkpoint(job, tmp_path, 4)
    job[1].send_signal(signal.SIGTERM)
    results = finish(job)
    if [status for status, _ in results] != [0, 0]:  # it may have come behind the last step
        assert [status for status, _ in results] == [143, 143], results
        assert "stopped at step" in results[0][1]
        results = finish(start(project, tmp_path))
        assert [status for status, _ in results] == [0, 0], results
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize("what", ["config", pytest.param("text", marks=pytest.mark.slow)])
def test_processes_that_were_given_different_things_all_say_so(project, tmp_path, what):
    """Another seed; or another text under the same name, with work directories on disks of their own."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, more in zip(folders, ("", "one more document\n"), strict=True):
        folder.mkdir()
        (folder / "text.txt").write_text((project / "text.txt").read_text() + more * (what == "text"))
    argv = [project / "config.py", "--workdir", "run", "--data.source", "text.txt", "--checkpoint-dir", tmp_path / "checkpoints"]
    seeds = [[], ["--seed", "4"] if what == "config" else []]
    job = start(project, tmp_path, argv=argv, folders=folders, own=seeds)
    for status, output in finish(job):
        assert status == 1
        assert f"error: the {what} of process 1 differs from that of process 0" in output


BROKEN = """
import sys, jax, train
from bert_jax import console
from bert_jax.training import loop

fit = loop.fit

def broken(*args, **kwargs):
    if jax.process_index() == 1:
        raise RuntimeError("this host is broken")
    return fit(*args, **kwargs)

loop.fit = broken
console.run(train.main, sys.argv[1:])
"""


@pytest.mark.slow
def test_a_process_that_raises_ends_the_other_too(project, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    argv = [project / "config.py", "--workdir", tmp_path / "run", "--data.source", project / "text.txt"]
    job = start(project, tmp_path, program=tmp_path / "broken.py", argv=argv, heartbeat_timeout=20)
    (status, output), (raised, reason) = finish(job)
    assert raised == 1, reason + output
    assert "RuntimeError: this host is broken" in reason
    assert status != 0
    assert any(word in output.lower() for word in GONE), output


@pytest.mark.slow
def test_a_stuck_peer_ends_the_others_with_the_reason(project, tmp_path):
    job = start(project, tmp_path, "--num-steps", "9000", "--parallel.stuck-timeout", "30", heartbeat_timeout=1000)
    await_checkpoint(job, tmp_path, 4)
    job[1].send_signal(signal.SIGSTOP)
    [(status, output)] = finish(job[:1])
    assert status == multihost.STUCK, output
    assert "finished no step for 30 s (parallel.stuck_timeout)" in output
    assert "loop.py" in output  # where it waits


def test_a_coordinator_that_is_not_there_is_named(project, tmp_path):
    port = free_port()
    flags = ["--parallel.coordinator", f"127.0.0.1:{port}", "--parallel.num-processes", "2", "--parallel.process-id", "1",
             "--parallel.initialization-timeout", "2"]  # fmt: skip
    ((status, output),) = finish(start(project, tmp_path, *flags, processes=1))
    assert status == 1
    assert f"error: process 0 cannot be reached at 127.0.0.1:{port} within 2 s" in output


def test_others_that_do_not_come_are_named(project, tmp_path):
    port = free_port()
    flags = ["--parallel.coordinator", f"127.0.0.1:{port}", "--parallel.num-processes", "3", "--parallel.process-id", "0",
             "--parallel.initialization-timeout", "2"]  # fmt: skip
    ((status, output),) = finish(start(project, tmp_path, *flags, processes=1))
    assert status == 1
    assert output.startswith(f"error: process 1, 2 of 3 did not connect to 127.0.0.1:{port} within 2 s (parallel.initialization_")
    assert len(output.splitlines()) == 1  # no stack of JAX's


def meeting(*numbers, count, seconds=60):
    """What each of these processes of a job hears: nothing, or an error."""
    address, heard = f"127.0.0.1:{free_port()}", {}

    def come(number):
        try:
            multihost._meet(address, count, number, seconds)
            heard[number] = ""
        except InputError as error:
            heard[number] = str(error)

    threads = {number: threading.Thread(target=come, args=(number,)) for number in numbers}
    for thread in threads.values():
        thread.start()
    if 0 in threads:  # JAX takes the port over, and the others find it there
        threads[0].join()
        with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))) if not heard[0] else contextlib.nullcontext():
            for thread in threads.values():
                thread.join()
    for thread in threads.values():
        thread.join()
    return heard


def test_processes_meet_in_whatever_order_they_come():
    assert meeting(2, 1, 0, count=3) == {0: "", 1: "", 2: ""}
    assert meeting(0, 1, count=2) == {0: "", 1: ""}


def test_a_process_goes_on_as_soon_as_the_port_is_taken_over():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=multihost._meet, args=(f"127.0.0.1:{port}", 2, 1, 600), daemon=True)
        thread.start()
        with server.accept()[0] as call:
            assert call.makefile("rb").readline() == b"bert_jax process 1\n"
            call.sendall(b"go")
        thread.join(60)
        assert not thread.is_alive()


def test_a_process_that_waits_for_others_hears_who_is_missing():
    heard = meeting(0, 1, count=4, seconds=2)
    assert heard[0].startswith("process 2, 3 of 4 did not connect to 127.0.0.1:")
    assert heard[1].startswith("process 0 cannot be reached at 127.0.0.1:")


def test_a_caller_of_another_program_is_not_counted():
    port = free_port()
    gathered = []
    thread = threading.Thread(target=lambda: gathered.append(multihost._gather(f"h:{port}", 2, time.monotonic() + 3)))
    thread.start()
    for words in (b"GET / HTTP/1.1\n", b"bert_jax process x\n", b"bert_jax process 7\n", b""):
        while multihost._knock(f"127.0.0.1:{port}"):
            pass
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as call:
            call.sendall(words)
    thread.join()
    assert gathered == [[1]]


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"process 0 cannot listen at port {port} of h:{port}: Address already in use"):
            multihost._gather(f"h:{port}", 2, time.monotonic() + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(strategy="pmap", fsdp=2), "fsdp=2 and tensor=1 are for strategy='mesh'"),
        (dict(process_id=1), "num_processes and process_id go together"),
        (dict(num_processes=2, process_id=0), "num_processes needs coordinator"),
        (dict(coordinator="h:1", num_processes=2, process_id=2), r"process_id=2 is not in \[0, num_processes=2\)"),
        (dict(coordinator="here"), "coordinator='here' is not HOST:PORT"),
        (dict(fsdp=0), "fsdp=0 is below 1"),
        (dict(multihost=False, coordinator="h:1"), "coordinator is for multihost=True"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ParallelConfig(**options)


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"SLURM_NTASKS": "4"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, True),
    ],
)
def test_the_environment_tells_of_several_processes(monkeypatch, variables, several):
    for name in ("TPU_WORKER_HOSTNAMES", "SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert multihost._environment_has_several() == several


def test_a_single_process_agrees_with_itself():
    assert multihost.from_first({"a": 1}) == {"a": 1}
    assert multihost.stop_agreed() is None
    multihost.check_equal("x", "y")
    with multihost.Watchdog(0.01) as alive:
        alive.beat()
        time.sleep(0.1)  # it would have ended this process
    assert multihost.first_then_others(lambda: 3) == 3
