"""How a program ends: with a status, and with one line for what is not its own fault."""

import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax import console
from bert_jax.config import InputError

ROOT = Path(__file__).parent.parent


def ended(main, *more):
    with pytest.raises(SystemExit) as stop:
        console.run(main, [], *more)
    return stop.value.code


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a: no such file"), "error: a: no such file"),
        (OSError(28, "No space left on device", "runs/x"), "error: runs/x: No space left on device"),
        (
            RuntimeError("Unable to initialize backend 'tpu':\n no libtpu"),
            "error: JAX_PLATFORMS=cpu: Unable to initialize backend 'tpu': no libtpu",
        ),
    ],
)
def test_what_is_wrong_with_the_input_or_the_machine_is_one_line(capsys, error, line):
    assert ended(raising(error)) == 1
    assert capsys.readouterr().err == f"{line}\n"


def test_an_error_of_the_program_keeps_its_traceback(capsys):
    assert ended(raising(RuntimeError("odd"))) == 1
    assert "Traceback" in capsys.readouterr().err
    assert ended(raising(FileNotFoundError(2, "No such file or directory", "x"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_says_what_to_do_next(capsys):
    assert ended(raising(KeyboardInterrupt()), "the same command continues") == 130
    assert capsys.readouterr().err == "interrupted; the same command continues\n"
    assert ended(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_status_is_passed_on():
    assert ended(lambda argv: None) == 0
    assert ended(lambda argv: 143) == 143


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_behind_the_output_is_one_line():
    code = "from bert_jax import console; console.run(lambda argv: print('x' * 100), [])"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: what was being written, such as the output: No space left on device\n"


def test_an_output_that_is_not_utf_8_is_one_line():
    code = "import sys; sys.stdout.reconfigure(encoding='ascii'); from bert_jax import console; "
    code += "console.run(lambda argv: print('\\u2581'), [])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output cannot be shown in ascii, the encoding here (")
    assert done.stderr.endswith("): set PYTHONIOENCODING=utf-8\n")
