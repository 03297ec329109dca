"""What the README shows works: its Python runs, and its commands name what is there."""

import re
import shlex
from pathlib import Path

import pytest

from bert_jax import pretrained
from bert_jax.__main__ import COMMANDS
from bert_jax.config import BertConfig, load_train_config
from bert_jax.model.heads import Bert

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    params = pretrained.initialize(Bert(cfg), 0)
    pretrained.save(pretrained.Model(cfg, params, tokenizer), "runs/quickstart/export")
    examples = [code for language, code in BLOCKS if language == "python"]
    assert examples
    for code in examples:
        exec(compile(code, "README.md", "exec"), {})


def commands():
    """Command lines of the README, in blocks and inline."""
    lines = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
    return [line for line in [*lines, *re.findall(r"`(python [^`]*)`", README)] if line.strip()]


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
def test_every_bert_jax_command_exists(line):
    assert line.split("-m bert_jax ")[1].split()[0] in COMMANDS


def test_the_two_set_up_lines_stand_where_ci_looks_for_them():
    first, second = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert first.endswith("train.py configs/quickstart.py")
    assert second.endswith("-m pytest")
