"""Programs start again with a malloc that asks for huge pages, once, and only where that is of use and breaks nothing."""

import os
import subprocess
import sys

import pytest

from bert_jax import hugepages


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What would be started, where all speaks for it: `python -u train.py --a b` on Linux with glibc."""
    started = []
    kernel = tmp_path / "enabled"
    kernel.write_text("always [madvise] never\n")
    monkeypatch.setattr(hugepages, "_KERNEL", kernel)
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(sys, "executable", "/bin/python")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "train.py", "--a", "b"])
    monkeypatch.setattr(sys, "argv", ["train.py", "--a", "b"])
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return started


def test_the_same_command_starts_again(asked):
    hugepages.use()
    ((program, command, environment),) = asked
    assert program == "/bin/python"
    assert command == ["/bin/python", "-u", "train.py", "--a", "b"]
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert environment.items() >= os.environ.items()


def test_a_module_too(asked, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "bert_jax", "plan"])
    monkeypatch.setattr(sys, "argv", ["/somewhere/bert_jax/__main__.py", "plan"])
    hugepages.use()
    assert len(asked) == 1


@pytest.mark.parametrize(
    "why", ["switched off", "the user's own", "always", "never", "no such file", "old glibc", "musl", "debugger", "notebook"]
)
def test_nothing_starts(asked, monkeypatch, why):
    if why == "switched off":
        monkeypatch.setenv("BERT_JAX_HUGE_PAGES", "0")
    elif why == "the user's own":
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    elif why in ("always", "never"):
        hugepages._KERNEL.write_text("[always] madvise never" if why == "always" else "always madvise [never]")
    elif why == "no such file":
        hugepages._KERNEL.unlink()
    elif why in ("old glibc", "musl"):
        monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.31" if why == "old glibc" else None)
    elif why == "debugger":
        monkeypatch.setattr(sys, "gettrace", lambda: print)
    elif why == "notebook":
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ipykernel_launcher", "-f", "kernel.json"])
    hugepages.use()
    assert asked == []


def test_the_log_says_so_and_how_to_turn_them_off(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert hugepages.describe() == "huge pages (BERT_JAX_HUGE_PAGES=0 turns them off)"
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert hugepages.describe() == ""


def test_a_console_script_too(asked, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "/venv/bin/bert_jax", "train"])
    monkeypatch.setattr(sys, "argv", ["/venv/bin/bert_jax", "train"])
    hugepages.use()
    assert asked[0][1] == ["/bin/python", "/venv/bin/bert_jax", "train"]


def test_once_and_with_its_arguments(tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys\n"
        "from bert_jax import hugepages\n"
        "print('begun', os.getpid(), flush=True)\n"
        f"hugepages._KERNEL = pathlib.Path({str(tmp_path / 'enabled')!r})\n"
        "hugepages._glibc_can_ask = lambda: True\n"
        "hugepages.use()\n"
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.flags.utf8_mode)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-X", "utf8", str(program), "two words", ""]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert last == "glibc.malloc.hugetlb=1 ['two words', ''] 1"
