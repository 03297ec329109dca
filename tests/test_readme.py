"""What the README and the guides show works: their Python runs, and their commands name what is there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import bert_jax
import finetune
from bert_jax import pretrained
from bert_jax.__main__ import COMMANDS
from bert_jax.config import BertConfig, load_train_config
from bert_jax.finetuning.config import load_finetune_config
from bert_jax.model.heads import Bert, initialize
from bert_jax.tasks.table import TASKS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
TEXT = "\n".join(PAGES.values())


def blocks(text):
    """(language, code) of the examples of a page."""
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def export(tokenizer, tmp_path_factory):
    """A folder in which runs/quickstart/export is a small model, as after the README's first command."""
    folder = tmp_path_factory.mktemp("readme")
    cfg = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    params = initialize(Bert(cfg), 0)
    pretrained.save(pretrained.Model(cfg, params, tokenizer), folder / "runs/quickstart/export")
    return folder


def run_python(page):
    """The names that a page's Python leaves, run from top to bottom."""
    names = {}
    for code in (code for language, code in blocks(PAGES[page]) if language == "python"):
        exec(compile(code, f"{page}.md", "exec"), names)
    return names


def test_the_python_of_the_readme_runs(export, monkeypatch):
    monkeypatch.chdir(export)
    names = run_python("README")
    assert names["hidden"].shape == (1, 5, 32)
    assert names["vectors"].shape == (2, 32)


def test_the_python_of_the_library_s_guide_runs_from_top_to_bottom(export, monkeypatch):
    monkeypatch.chdir(export)
    names = run_python("library")
    encoded = names["model"].encode(names["params"], names["ids"], names["mask"])
    np.testing.assert_allclose(names["hidden"][:2], encoded, atol=1e-5)  # shard_map's
    assert names["one_each"]["encoder"]["embeddings"]["norm"]["bias"].shape == (2, 32)
    before, after = names["params"], names["my_params"]["bert"]
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))  # frozen
    assert int(names["train_state"].step) == 3
    assert np.isfinite(names["metrics"]["masked_lm_loss"])
    assert_runs_without_bert_jax(export / "encoder.stablehlo", names["model"])


def assert_runs_without_bert_jax(exported, model):
    """In a process of its own, for two shapes; the same numbers."""
    ids = np.random.default_rng(0).integers(5, 200, (3, 11)).astype(np.int32)
    mask = (np.arange(11) < np.array([[11], [7], [2]])).astype(np.int32)
    np.savez(exported.with_name("inputs.npz"), ids=ids, mask=mask)
    [line] = re.findall(r"# there: (.*)\(ids, mask\)", TEXT)
    program = (
        "import jax, jax.export, numpy as np, sys\n"
        "inputs = np.load('inputs.npz')\n"
        f"call = {line}\n"
        "np.save('hidden.npy', call(inputs['ids'], inputs['mask']))\n"
        "call(inputs['ids'][:1, :4], inputs['mask'][:1, :4])\n"
        "assert not any(name.startswith(('bert_jax', 'flax')) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=exported.parent, check=True, timeout=600)
    np.testing.assert_allclose(np.load(exported.with_name("hidden.npy")), model.encode(model.params, ids, mask), atol=1e-5)


def commands():
    """Command lines of the README and the guides, in blocks and inline; of those for a cloud, what runs there."""
    lines = [line.split("  # ")[0] for language, code in blocks(TEXT) if language == "sh" for line in code.splitlines()]
    remote = [shlex.split(line)[-1] for line in lines if line.startswith("gcloud") and "--command" in line]
    lines = [line for line in lines if not line.startswith("gcloud")] + [part for line in remote for part in line.split(" && ")]
    return [line for line in [*lines, *re.findall(r"`(python [^`]*)`", TEXT)] if line.strip()]


@pytest.mark.parametrize("line", [c for c in commands() if re.search(r"python train.py \S", c)])
def test_every_train_command_is_accepted(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line[line.index("train.py") :])[1:]
    if "--help" in words:
        with pytest.raises(SystemExit) as end:
            load_train_config(words)
        assert end.value.code == 0
    else:
        load_train_config(words)


@pytest.mark.parametrize("line", [c for c in commands() if "-m bert_jax" in c])
def test_every_bert_jax_command_exists_with_its_options(line, capsys):
    words = line.split("-m bert_jax ")[1].split(" -- ")[0].split()  # behind a lone -- stand Beam's own
    options = {word for word in words if word.startswith("--")}
    with pytest.raises(SystemExit):
        COMMANDS[words[0]](["--help"], words[0])
    shown = capsys.readouterr().out
    if any(word.endswith(".py") for word in words):  # a config's fields go with it
        with pytest.raises(SystemExit):
            load_train_config(["--help"])
        shown += capsys.readouterr().out
    assert [option for option in options if option not in shown and option != "--help"] == []


OWN_FILES = {  # what the README's examples of fine-tuning name
    "reviews.csv": "Review Text,Stars\n" + "".join(f'"good, ""{i}"" film",5\n"bad {i}",1\n' for i in range(20)),
    "tickets.jsonl": "".join(json.dumps({"body": f"ticket {i}", "topics": ["a", "b"][: i % 3]}) + "\n" for i in range(30)),
    "entities.conll": "Anna\tB-PER\nsleeps\tO\n\n" * 30,
    "questions.json": json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "Anna sleeps at home.", "qas": [
        {"id": str(i), "question": "Who?", "is_impossible": i % 3 == 0,
         "answers": [] if i % 3 == 0 else [{"text": "Anna", "answer_start": 0}]} for i in range(30)]}]}]}),
    "pairs.csv": "question,duplicate\n" + "".join(f"who {i}?,who is {i}?\n" for i in range(30)),
}  # fmt: skip


@pytest.mark.parametrize("line", [c for c in commands() if "finetune.py MODEL" in c])
def test_every_example_of_fine_tuning_on_own_files_runs(line, export, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, content in OWN_FILES.items():
        (tmp_path / name).write_text(content)
    words = shlex.split(line.replace("MODEL", str(export / "runs/quickstart/export")))[2:]
    assert finetune.main([*words, "--num-epochs", "1", "--max-seq-length", "32", "--batch-size", "8", "--workdir", "work"]) == 0
    assert bert_jax.load("work/export").tokenizer is not None
    assert json.loads((tmp_path / "work/results.json").read_text())["metrics"]["dev"]
    assert (tmp_path / "work/report.html").exists()


@pytest.mark.parametrize("line", [c for c in commands() if re.search(r"python finetune.py \S", c)])
def test_every_fine_tuning_command_is_accepted(line):
    words = shlex.split(line[line.index("finetune.py") :])[1:]
    if "--help" in words:
        with pytest.raises(SystemExit) as end:
            load_finetune_config(words)
        assert end.value.code == 0
    else:
        load_finetune_config(words)


def test_every_task_and_kind_of_the_table_exists():
    rows = re.findall(r"^\| `([a-z0-9_ ]+)` \|", PAGES["finetune"], re.MULTILINE)
    assert {name for row in rows for name in row.split()} == set(TASKS)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    folder = ROOT if page == "README" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (folder / target).exists(), target


def test_the_two_set_up_lines_stand_where_ci_looks_for_them():
    first, second = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert first.endswith("train.py configs/quickstart.py")
    assert second.endswith("-m pytest -n 2 --dist loadfile")
