"""The script that measures the quality of retrievers stays alive: all of it runs at toy sizes, and is not repeated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORMS = ["dense", "multi_vector", "sparse", "cross"]


def run(folder, *more):
    """Runs the script; returns what it printed and quality.json of the synthetic set."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "NPROC"))}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    core = str(min(os.sched_getaffinity(0)))
    words = ["--tiny", "--out", str(folder), "--seeds", "0", "--cores", core, *more]
    command = [sys.executable, str(ROOT / "tests/benchmarks/retrieval_quality.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, json.loads((folder / "quality.json").read_text())["synthetic"]


@pytest.mark.slow
def test_every_form_and_comparison_is_measured_and_no_run_is_repeated(tmp_path):
    printed, found = run(tmp_path, "--no-peers")
    assert [row[0] for row in found["tables"]["forms"]] == ["form", *FORMS]
    assert len(found["tables"]["claims"]) == 5
    assert all(0 <= score <= 1 for each in found["runs"].values() for score in each["scores"].values())
    assert printed.count("|") > 50
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/result.json")}
    assert len(before) == 4 + 4 + 3  # starts, forms and what is made of them
    again, same = run(tmp_path, "--no-peers")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/result.json")} == before
    assert same == found
    assert again.strip() == printed[printed.index("\nsynthetic, ") :].strip()
    result = tmp_path / "synthetic" / "dense-0-ours" / "result.json"
    result.write_text(result.read_text().replace('"settings": [', '"settings": [3,'))
    with pytest.raises(AssertionError, match="is of the settings"):
        run(tmp_path, "--no-peers")


@pytest.mark.parity
@pytest.mark.parity_more
def test_sentence_transformers_trains_every_form_and_its_models_are_scored_here(tmp_path):
    _, found = run(tmp_path, "--extras")
    assert all(row[-1] in ("yes", "no") for row in found["tables"]["forms"][1:])
    for form in FORMS:
        for side in ("ours", "peer"):
            assert found["runs"][f"{form}-0-{side}"]["seconds"] > 0
