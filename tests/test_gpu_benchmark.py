"""The script for GPUs stays alive on CPUs, and its checks see a fault."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from bert_jax.model import attention

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests/benchmarks/gpu.py"
PEERS = ("torch", "transformers", "sentence_transformers")
NOT_NEEDED = (
    "grain", "tensorflow_datasets", "tyro", "tensorboardX", "array_record", "orbax", "sentencepiece", "pyarrow", "sklearn",
    "flatbuffers", "importlib_resources",
)  # fmt: skip
CASES = {"correctness": 8, "pretraining": 5, "embedding": 4, "finetuning": 1}


def run_without(modules, folder):
    """Runs all of the script at toy sizes where `modules` cannot be imported; returns its rows by section."""
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({modules})\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "NPROC"))}
    environment |= {"PYTHONPATH": str(folder), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--json", str(folder / "out.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((folder / "out.json").read_text())["rows"]
    return {name: [row for row in rows if row["section"] == name and row["case"] != "device"] for name in CASES}


@pytest.mark.slow
def test_all_of_it_runs_with_few_packages_and_says_which_peer_is_missing(tmp_path):
    sections = run_without([*NOT_NEEDED, *PEERS], tmp_path)
    assert all(row["ok"] for row in sections["correctness"])
    assert len(sections["correctness"]) == CASES["correctness"]
    for name, count in list(CASES.items())[1:]:
        ours, peers = ([row for row in sections[name] if row["who"] == who] for who in ("ours", "peer"))
        assert len(ours) == len(peers) == count
        assert all(row["per_second"] > 0 and row["compile_seconds"] > 0 for row in ours)
        assert all("torch, " in row["skipped"] and "not installed" in row["skipped"] for row in peers)
    assert all(
        row["peak_bytes"] > 0 and 0 < row["mfu"] < 1 and row["rows_per_second"] > 0 for row in sections["pretraining"][::2]
    )


@pytest.mark.parity
@pytest.mark.parity_more
def test_peers_take_their_turns(tmp_path):
    sections = run_without([], tmp_path)
    for name, count in list(CASES.items())[1:]:
        peers = [row for row in sections[name] if row["who"] == "peer"]
        assert len(peers) == count
        assert all(row["per_second"] > 0 and row["times_ours"] > 0 for row in peers), peers


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu

    return gpu


def test_packed_rows_that_attend_across_sequences_are_seen(script, monkeypatch, capsys):
    def everywhere(queries, tokens, window=None):
        return jnp.ones((queries.sequence_ids.shape[0], 1, queries.sequence_ids.shape[1], tokens.sequence_ids.shape[1]), bool)

    monkeypatch.setattr(attention, "may_attend", everywhere)
    script.packed_is_separate(tiny=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["ok"] for row in rows] == [False, False]
    assert all(row["value"] > 0.5 for row in rows)


def test_losses_off_the_curve_are_seen(script, monkeypatch, capsys):
    stored = json.loads(script.CURVE.read_text())["losses"]
    monkeypatch.setattr(script, "curve_losses", lambda dtype: [*stored[:-1], stored[-1] + 0.06])
    script.curve(True)
    monkeypatch.setattr(script, "curve_losses", lambda dtype: [*stored[:-1], float("nan")])
    script.curve(True)
    assert [json.loads(line)["ok"] for line in capsys.readouterr().out.splitlines()] == [False] * 4


def test_a_section_that_takes_too_long_is_stopped_and_said(script, monkeypatch, capsys):
    monkeypatch.setitem(script.SECTIONS, "correctness", (0.1, script.correctness))
    assert script.main(["--sections", "correctness", "--device", "cpu", "--tiny"]) == 1
    assert "failed stopped after its 0.5 s" in capsys.readouterr().out
