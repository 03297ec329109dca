"""What the README and the guides show works: their Python runs, and their commands name what is there."""

import contextlib
import functools
import io
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
GUIDES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = {name: (ROOT / f"{name}.md").read_text() for name in ("README", "CONTRIBUTING", "SECURITY")} | GUIDES
# The sections of CONTRIBUTING.md on how to add something name files and tasks that are not there yet.
TEXT = re.sub(r"^## Add a .*?(?=^## )", "", "\n".join(PAGES.values()), flags=re.DOTALL | re.MULTILINE)


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
    params = jax.jit(lambda: initialize(Bert(cfg), 0))()
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
    encoded = jax.jit(names["model"].encode)(names["params"], names["ids"], names["mask"])
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
    expected = jax.jit(model.encode)(model.params, ids, mask)
    np.testing.assert_allclose(np.load(exported.with_name("hidden.npy")), expected, atol=1e-5)


def commands():
    """Returns the words of every command of ours on the pages, in blocks and inline, from the command's name on."""
    lines = [line.split("  # ")[0] for language, code in blocks(TEXT) if language == "sh" for line in code.splitlines()]
    lines += re.findall(r"`(?:python -m )?(bert_jax [^`]*)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
    lines = [shlex.split(line)[-1] if line.startswith("gcloud") and "--command" in line else line for line in lines]
    found = [shlex.split(" ".join(line.split()).split(" > ")[0]) for line in lines if "bert_jax " in line]
    return [words[words.index("bert_jax") + 1 :] for words in found if "bert_jax" in words[:-1]]


def named(*names):
    """Returns the commands with these names, each once."""
    return [words for words in dict.fromkeys(map(tuple, commands())) if words[0] in names]


@functools.cache
def shown_by_help(name):
    """Returns what `bert_jax NAME --help` prints; commands of a config take its fields too."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        with pytest.raises(SystemExit) as end:
            COMMANDS[name](["--help"], name)
        assert not end.value.code
    of_config = name in ("train", "prepare", "prepare-beam", "doctor", "plan")
    return shown.getvalue() + of_config * fields_shown_by_help()


@functools.cache
def fields_shown_by_help():
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        load_train_config(["--help"])
    return shown.getvalue()


def test_the_pages_show_every_command():
    assert {words[0] for words in commands()} == set(COMMANDS)


@pytest.mark.parametrize("words", named("train"), ids=" ".join)
def test_every_train_command_is_accepted(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[1:2] not in [(), ("CONFIG",)] and "--help" not in words:
        load_train_config(words[1:])


@pytest.mark.parametrize("words", named("finetune"), ids=" ".join)
def test_every_fine_tuning_command_is_accepted(words):
    if words[1:] and "--help" not in words:
        load_finetune_config(words[1:])


@pytest.mark.parametrize("words", [words for words in named(*COMMANDS) if any(w.startswith("--") for w in words)], ids=" ".join)
def test_every_command_has_the_options_that_are_shown(words):
    own = words[: words.index("--")] if "--" in words else words  # Beam's own options follow a lone --
    options = {word for word in own if word.startswith("--")} - {"--help", "--version"}
    shown = shown_by_help(words[0])
    assert [option for option in options if option not in shown] == []


def test_every_option_in_the_text_exists():
    shown = "".join(map(shown_by_help, COMMANDS))
    guides = "\n".join(page for name, page in GUIDES.items() if name != "measurements")  # options of the benchmarks
    code = re.findall(r"`([^`]*)`", re.sub(r"```.*?```", "", guides, flags=re.DOTALL))
    options = {
        option for words in code for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", " ".join(words.split()).split(" -- ")[0])
    }
    others = {"--help", "--version", "--worker", "--xla_gpu_autotune_level", "--participants"}
    assert sorted(option for option in options - others if option not in shown) == []


def test_every_file_in_the_text_exists():
    paths = re.findall(r"(?<![\w/-])(?:bert_jax|configs|docs|tests)/[\w/.]+\w", TEXT)
    assert sorted(path for path in set(paths) if not (ROOT / path).exists()) == []


def test_every_error_in_the_troubleshooting_is_one_of_ours():
    source = "".join(path.read_text() for path in (ROOT / "bert_jax").rglob("*.py"))
    quoted = re.findall(r'^## (".*)$|^("[^"]*") names', PAGES["troubleshooting"], re.MULTILINE)
    parts = [part.strip() for text in "".join(map("".join, quoted)).split('"') for part in text.split("...") if part.strip(" ,")]
    assert [part for part in parts if part not in source] == []


OWN_FILES = {  # what the README's examples of fine-tuning name
    "reviews.csv": "Review Text,Stars\n" + "".join(f'"good, ""{i}"" film",5\n"bad {i}",1\n' for i in range(20)),
    "tickets.jsonl": "".join(json.dumps({"body": f"ticket {i}", "topics": ["a", "b"][: i % 3]}) + "\n" for i in range(30)),
    "entities.conll": "Anna\tB-PER\nsleeps\tO\n\n" * 30,
    "questions.json": json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "Anna sleeps at home.", "qas": [
        {"id": str(i), "question": "Who?", "is_impossible": i % 3 == 0,
         "answers": [] if i % 3 == 0 else [{"text": "Anna", "answer_start": 0}]} for i in range(30)]}]}]}),
    "pairs.csv": "question,duplicate\n" + "".join(f"who {i}?,who is {i}?\n" for i in range(30)),
    "mined.jsonl": "".join(
        json.dumps({"query": f"q {i}", "positive": f"answer {i}", "negative_1": f"answer {i + 50}"}) + "\n" for i in range(30)
    ),
    "FOLDER/corpus.jsonl": "".join(json.dumps({"_id": f"d{i}", "title": "", "text": f"answer {i}"}) + "\n" for i in range(30)),
    "FOLDER/queries.jsonl": "".join(json.dumps({"_id": f"q{i}", "text": f"question {i}"}) + "\n" for i in range(30)),
    "FOLDER/qrels/train.tsv": "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(20)),
    "FOLDER/qrels/dev.tsv": "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(20, 30)),
}  # fmt: skip


@pytest.mark.parametrize("words", [words for words in named("finetune") if words[1:2] == ("MODEL",)], ids=" ".join)
def test_every_example_of_fine_tuning_on_own_files_runs(words, export, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, content in OWN_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    argv = [str(export / "runs/quickstart/export"), *words[2:]]
    small = ["--num-epochs", "1", "--max-seq-length", "32", "--batch-size", "8", "--num-devices", "1", "--workdir", "work"]
    assert finetune.main([*argv, *small]) == 0
    assert bert_jax.load("work/export").tokenizer is not None
    assert json.loads((tmp_path / "work/results.json").read_text())["metrics"]["dev"]
    assert (tmp_path / "work/report.html").exists()


def test_every_task_and_kind_of_the_table_exists():
    rows = re.findall(r"^\| `([a-z0-9_ ]+)` \|", PAGES["finetune"], re.MULTILINE)
    assert {name for row in rows for name in row.split()} == set(TASKS)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    folder = ROOT / "docs" if page in GUIDES else ROOT
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (folder / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([\w.]*)#([^)]*)\)", PAGES[page]):
        headings = re.findall(r"^#+ (.*)$", PAGES[target.removesuffix(".md") or page], re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_readme_s_links_lead_to_files_of_the_project():
    targets = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", README)
    paths = [link or image for link, image in targets]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_two_set_up_lines_stand_where_ci_looks_for_them():
    first, second = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert first.endswith("train.py configs/quickstart.py")
    assert second.endswith("-m pytest -n 2 --dist loadfile")
