"""Submissions of the official sizes, from made-up predictions; zips that are wrong in one way each."""

import json
import os
import random
import re
import struct
import tracemalloc
import zipfile

import pytest

from bert_jax.__main__ import _cli
from bert_jax.commands.glue import glue_check, glue_zip
from bert_jax.config import InputError
from bert_jax.glue_zip import FILES, NUM_ROWS, check_zip, spellings, write_zip
from bert_jax.tasks.table import TASKS

# name in the zip: (task, file of predictions, rows, {our name: GLUE's word}), as gluebenchmark.com has them
NLI = {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"}
TWO = {"entailment": "entailment", "not_entailment": "not_entailment"}
EXPECTED = {
    "CoLA.tsv": ("cola", "test.tsv", 1063, {"unacceptable": "0", "acceptable": "1"}),
    "SST-2.tsv": ("sst2", "test.tsv", 1821, {"negative": "0", "positive": "1"}),
    "MRPC.tsv": ("mrpc", "test.tsv", 1725, {"not_equivalent": "0", "equivalent": "1"}),
    "STS-B.tsv": ("stsb", "test.tsv", 1379, {"-1": "0.000", "-0.0": "0.000", "2.7183": "2.718", "3": "3.000", "5.2e0": "5.000"}),
    "MNLI-m.tsv": ("mnli", "test_matched.tsv", 9796, NLI),
    "MNLI-mm.tsv": ("mnli", "test_mismatched.tsv", 9847, NLI),
    "QNLI.tsv": ("qnli", "test.tsv", 5463, TWO),
    "QQP.tsv": ("qqp", "test.tsv", 390965, {"not_duplicate": "0", "duplicate": "1"}),
    "RTE.tsv": ("rte", "test.tsv", 3000, TWO),
    "WNLI.tsv": ("wnli", "test.tsv", 146, {"not_entailment": "0", "entailment": "1"}),
    "AX.tsv": ("ax", "test.tsv", 1104, NLI),
}  # fmt: skip


def predictions(name):
    """Our names for every row of a test file, all of them in turn but in no simple order."""
    _, _, rows, words = EXPECTED[name]
    return random.Random(name).choices(list(words), k=rows)


def write_predictions(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"test-{i}\t{value}\t0.5\t0.25\n" for i, value in enumerate(values))
    path.write_text("id\tprediction\tscore_a\tscore_b\n" + "".join(lines))


def make_workdir(folder, *names):
    """The work directory of a task, with the predictions for those files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"task": EXPECTED[names[0]][0], "metrics": {"accuracy": 0.5}}))
    for name in names:
        task, file, _, _ = EXPECTED[name]
        own = task == EXPECTED[names[0]][0]
        write_predictions(folder / "predictions" / (file if own else f"{task}.tsv"), predictions(name))
    return folder


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """{task: its work directory}; mnli's has the predictions for AX."""
    root = tmp_path_factory.mktemp("runs")
    made = [make_workdir(root / "mnli", "MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv")]
    made += [make_workdir(root / EXPECTED[n][0], n) for n in EXPECTED if EXPECTED[n][0] not in ("mnli", "ax")]
    return {folder.name: folder for folder in made}


@pytest.fixture(scope="module")
def submission(workdirs, tmp_path_factory):
    """A zip of all tasks, and the lines that were shown."""
    path = tmp_path_factory.mktemp("zips") / "new folder" / "submission.zip"
    return path, write_zip(list(workdirs.values()), path, False)


@pytest.fixture(scope="module")
def right():
    """{name: bytes} of a right submission, written without any code of the module."""
    return {
        name: "".join(["index\tprediction\n", *(f"{i}\t{words[p]}\n" for i, p in enumerate(predictions(name)))]).encode()
        for name, (_, _, _, words) in EXPECTED.items()
    }


# --- writing ---


def test_the_table_has_the_official_files_tasks_and_sizes():
    assert {file.name: file[1:4] for file in FILES} == {name: row[:3] for name, row in EXPECTED.items()}
    assert NUM_ROWS == 426309


def test_a_submission_holds_every_prediction_in_order_and_in_glues_words(submission, right):
    with zipfile.ZipFile(submission[0]) as archive:
        assert archive.namelist() == list(EXPECTED)
        for name in EXPECTED:
            assert archive.read(name) == right[name], name
    assert check_zip(submission[0]) == []


def test_the_lines_shown_say_where_each_file_came_from(submission, workdirs):
    assert submission[1][0] == f"CoLA.tsv: 1063 rows, from {workdirs['cola'] / 'predictions' / 'test.tsv'}"
    assert submission[1][-1] == f"AX.tsv: 1104 rows, from {workdirs['mnli'] / 'predictions' / 'ax.tsv'}"
    assert len(submission[1]) == 11


def test_every_label_of_every_task_comes_back_from_its_spelling():
    for name, (task, _, _, words) in EXPECTED.items():
        there = spellings(TASKS[task])
        assert there == ({} if task == "stsb" else words), name
        back = {word: TASKS[task].words.get(word, word) for word in there.values()}
        assert [back[word] for word in there.values()] == list(there), name
        assert set(there) == set(TASKS[task].labels), name


def test_fillers_are_words_of_their_file():
    for file in FILES:
        words = spellings(TASKS[file.task]).values()
        assert file.filler in words if words else 0 <= float(file.filler) <= 5


def test_equal_predictions_give_equal_bytes_whatever_the_order_of_directories_the_time_and_the_system(workdirs, tmp_path):
    small = [workdirs["wnli"], workdirs["stsb"]]
    write_zip(small, tmp_path / "a.zip", True)
    write_zip(small[::-1], tmp_path / "b.zip", True)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        fixed = {(info.date_time, info.create_system, info.external_attr) for info in archive.infolist()}
    assert fixed == {((1980, 1, 1, 0, 0, 0), 3, 0o644 << 16)}


def test_all_tasks_that_were_not_run_are_named_in_one_message(workdirs, tmp_path):
    given = [folder for task, folder in workdirs.items() if task not in ("cola", "rte", "mnli")]
    with pytest.raises(InputError) as caught:
        write_zip(given, tmp_path / "x.zip", False)
    named = "CoLA.tsv (task cola), MNLI-m.tsv (task mnli), MNLI-mm.tsv (task mnli), RTE.tsv (task rte), AX.tsv (task ax)"
    assert str(caught.value).startswith(f"no predictions for {named}: ")
    assert "--fill-missing" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_missing_tasks_are_filled_on_request_and_the_lines_say_so(workdirs, tmp_path, right):
    lines = write_zip([workdirs["rte"]], tmp_path / "x.zip", True)
    assert check_zip(tmp_path / "x.zip") == []
    assert [line for line in lines if "NOT RUN" not in line] == [lines[8]]
    assert lines[9] == "WNLI.tsv: 146 rows, NOT RUN, filled with '0'"
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.read("RTE.tsv") == right["RTE.tsv"]
        assert archive.read("STS-B.tsv").splitlines()[1:] == [b"%d\t2.500" % i for i in range(1379)]


def test_ax_may_have_a_work_directory_of_its_own_but_then_not_two(workdirs, tmp_path):
    own = make_workdir(tmp_path / "own", "AX.tsv")
    assert write_zip([own], tmp_path / "x.zip", True)[-1] == f"AX.tsv: 1104 rows, from {own / 'predictions' / 'test.tsv'}"
    with pytest.raises(InputError, match=re.escape(f"{own} and {workdirs['mnli']} both have predictions for AX.tsv")):
        write_zip([own, workdirs["mnli"]], tmp_path / "y.zip", True)


def test_two_directories_of_one_task_are_refused_by_name(workdirs, tmp_path):
    other = make_workdir(tmp_path / "other", "WNLI.tsv")
    with pytest.raises(InputError, match=re.escape(f"{workdirs['wnli']} and {other} both have predictions for WNLI.tsv")):
        write_zip([workdirs["wnli"], workdirs["rte"], other], tmp_path / "x.zip", True)


def test_a_directory_that_is_no_finished_glue_run_is_refused(tmp_path):
    def refuses(message):
        with pytest.raises(InputError, match=message):
            write_zip([tmp_path], tmp_path / "x.zip", True)

    refuses(r"is not a finished work directory of finetune.py: there is no .*results\.json")
    for text, message in {
        '{"task": "squad"}': "task 'squad' is not one of GLUE's, cola, sst2,",
        "[]": "holds a list, not an object",
        '{"task"': r"results\.json is not JSON",
        '{"task": "rte"}': r"test\.tsv: no such file; finetune\.py writes it",
    }.items():
        (tmp_path / "results.json").write_text(text)
        refuses(message)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("RTE.tsv", lambda v: [*v[:7], "1", *v[8:]], r"test\.tsv:9: '1' is not one of entailment, not_entailment \(task rte\)"),
        ("WNLI.tsv", lambda v: [*v[:-1], ""], r"test\.tsv:147: '' is not one of not_entailment, entailment \(task wnli\)"),
        ("WNLI.tsv", lambda v: v[:-1], r"test\.tsv: 145 predictions, expected 146: "),
        ("WNLI.tsv", lambda v: [*v, v[0]], r"test\.tsv: 147 predictions, expected 146: "),
        ("STS-B.tsv", lambda v: ["nan", *v[1:]], r"test\.tsv:2: 'nan' is not a finite number \(task stsb\)"),
        ("STS-B.tsv", lambda v: ["1e999", *v[1:]], r"test\.tsv:2: '1e999' is not a finite number"),
    ],
)
def test_predictions_that_do_not_fit_the_test_file_are_refused(tmp_path, name, change, message):
    folder = make_workdir(tmp_path / "run", name)
    write_predictions(folder / "predictions" / "test.tsv", change(predictions(name)))
    with pytest.raises(InputError, match=message):
        write_zip([folder], tmp_path / "x.zip", True)
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", r"test\.tsv: is empty"),
        (b"index\tprediction\n", r"test\.tsv:1: expected the columns id and prediction, found 'index"),
        (b"id\tprediction\n0\t\xff\n", r"test\.tsv:2: byte 0xff is not UTF-8"),
    ],
)
def test_files_that_are_no_predictions_are_refused(tmp_path, data, message):
    folder = make_workdir(tmp_path / "run", "WNLI.tsv")
    (folder / "predictions" / "test.tsv").write_bytes(data)
    with pytest.raises(InputError, match=message):
        write_zip([folder], tmp_path / "x.zip", True)


def test_a_zip_that_cannot_be_written_leaves_nothing_behind_and_the_old_one_whole(workdirs, tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(b"old")
    monkeypatch.setattr("bert_jax.glue_zip.check_zip", lambda path: ["RTE.tsv: damaged"])
    with pytest.raises(InputError, match=r"x\.zip: the zip does not read back right.*\n  RTE\.tsv: damaged"):
        write_zip([workdirs["wnli"]], tmp_path / "x.zip", True)
    assert (tmp_path / "x.zip").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.zip"]
    with pytest.raises(InputError, match=r"x\.zip/y\.zip: cannot be written \("):
        write_zip([workdirs["wnli"]], tmp_path / "x.zip" / "y.zip", True)


# --- checking ---


def edited(name, old, new, count=1):
    return lambda files: files | {name: files[name].replace(old, new, count)}


def rows_of(name, change):
    """`change` applied to the list of a file's lines, its header among them."""
    return lambda files: files | {name: b"".join(change(files[name].splitlines(keepends=True)))}


def fitted(name, number, word):
    """The row of that number with another prediction."""
    return rows_of(name, lambda lines: [*lines[: number + 1], b"%d\t%s\n" % (number, word), *lines[number + 2 :]])


def renamed(old, new):
    return lambda files: {new if name == old else name: data for name, data in files.items()}


RTE_WORDS = "one of entailment, not_entailment"
WRONG = {
    "a file is missing": (lambda f: {n: d for n, d in f.items() if n != "WNLI.tsv"}, ["WNLI.tsv: missing"]),
    "a file too many": (lambda f: f | {"notes.txt": b"x"}, ["notes.txt: not one of the 11 files"]),
    "a file of another name": (
        renamed("RTE.tsv", "RTE.csv"),
        ["RTE.csv: not one of the 11 files; did you mean 'RTE.tsv'?", "RTE.tsv: missing"],
    ),
    "a folder": (
        lambda f: {"glue/": b""} | {f"glue/{n}" if n < "D" else n: d for n, d in f.items()},
        [f"glue/{n}: in a folder; files must stand at the top level of the zip" for n in ("CoLA.tsv", "AX.tsv")],
    ),
    "what macOS adds": (
        lambda f: f | {"__MACOSX/._RTE.tsv": b"x"},
        ["__MACOSX/._RTE.tsv: not one of the 11 files"],
    ),
    "another header": (
        edited("RTE.tsv", b"index", b"id"),
        ["RTE.tsv:1: 'id\\tprediction' is not the header 'index\\tprediction'"],
    ),
    "no header": (
        rows_of("WNLI.tsv", lambda lines: [b"0\t1\n", *lines[2:]]),
        ["WNLI.tsv:1: '0\\t1' is not the header 'index\\tprediction'"],
    ),
    "nothing in it": (
        lambda f: f | {"WNLI.tsv": b""},
        ["WNLI.tsv:1: '' is not the header 'index\\tprediction'", "WNLI.tsv: 0 rows, expected 146"],
    ),
    "a row is missing at the end": (rows_of("RTE.tsv", lambda lines: lines[:-1]), ["RTE.tsv: 2999 rows, expected 3000"]),
    "a row is missing inside": (
        rows_of("QNLI.tsv", lambda lines: [*lines[:5], *lines[6:]]),
        ["QNLI.tsv: 5462 rows, expected 5463",
         "QNLI.tsv:6: index '5', expected 4: they count from 0, in order (and 5457 more lines like it)"],
    ),
    "rows are in another order": (
        rows_of("AX.tsv", lambda lines: [lines[0], *lines[-1:0:-1]]),
        ["AX.tsv:2: index '1103', expected 0: they count from 0, in order (and 1103 more lines like it)"],
    ),
    "indices count from 1": (
        lambda f: f | {"WNLI.tsv": b"index\tprediction\n" + b"".join(b"%d\t1\n" % (i + 1) for i in range(146))},
        ["WNLI.tsv:2: index '1', expected 0: they count from 0, in order (and 145 more lines like it)"],
    ),
    "an empty line at the end": (
        lambda f: f | {"WNLI.tsv": f["WNLI.tsv"] + b"\n"},
        ["WNLI.tsv: 147 rows, expected 146", "WNLI.tsv:148: '' is not an index, one tab and a prediction, without quotes"],
    ),
    "numbers for RTE": (
        lambda f: f | {"RTE.tsv": f["RTE.tsv"].replace(b"not_entailment", b"1").replace(b"entailment", b"0")},
        [f"RTE.tsv:2: '0' is not {RTE_WORDS} (and 2999 more lines like it)"],
    ),
    "names for CoLA": (fitted("CoLA.tsv", 8, b"acceptable"), ["CoLA.tsv:10: 'acceptable' is not one of 0, 1"]),
    "neutral for RTE": (fitted("RTE.tsv", 2999, b"neutral"), [f"RTE.tsv:3001: 'neutral' is not {RTE_WORDS}"]),
    "a space too many": (fitted("RTE.tsv", 0, b"entailment "), [f"RTE.tsv:2: 'entailment ' is not {RTE_WORDS}"]),
    "no number": (fitted("STS-B.tsv", 3, b"nan"), ["STS-B.tsv:5: 'nan' is not a number from 0 to 5"]),
    "a number for Python alone": (fitted("STS-B.tsv", 3, b"1_0e-1"), ["STS-B.tsv:5: '1_0e-1' is not a number from 0 to 5"]),
    "a score above 5": (fitted("STS-B.tsv", 3, b"5.001"), ["STS-B.tsv:5: '5.001' is not a number from 0 to 5"]),
    "a score below 0": (fitted("STS-B.tsv", 3, b"-0.1"), ["STS-B.tsv:5: '-0.1' is not a number from 0 to 5"]),
    "a comma for a tab": (
        edited("WNLI.tsv", b"\n3\t", b"\n3,"),
        ["WNLI.tsv:5: '3,{}' is not an index, one tab and a prediction, without quotes"],
    ),
    "quotes": (
        fitted("WNLI.tsv", 3, b'"1"'),
        ["WNLI.tsv:5: '3\\t\"1\"' is not an index, one tab and a prediction, without quotes"],
    ),
    "a third column": (
        fitted("WNLI.tsv", 3, b"1\t0.5"),
        ["WNLI.tsv:5: '3\\t1\\t0.5' is not an index, one tab and a prediction, without quotes"],
    ),
    "a byte order mark": (
        lambda f: f | {"RTE.tsv": b"\xef\xbb\xbf" + f["RTE.tsv"]},
        ["RTE.tsv:1: a byte order mark; save the file without"],
    ),
    "line ends of Windows": (
        edited("RTE.tsv", b"\n", b"\r\n", -1),
        ["RTE.tsv: lines end in \\r\\n; save the file with \\n"],
    ),
    "not UTF-8": (fitted("RTE.tsv", 3, b"\xe9"), ["RTE.tsv:5: not UTF-8 (byte 0xe9)"]),
    "UTF-16": (
        lambda f: f | {"RTE.tsv": f["RTE.tsv"].decode().encode("utf-16")},
        ["RTE.tsv:1: not UTF-8 (byte 0xff)"],
    ),
}  # fmt: skip


@pytest.fixture
def short(right, monkeypatch):
    """`right` with QQP's first 100 rows, which make nine tenths of a zip, for tests of many zips."""
    monkeypatch.setattr(
        "bert_jax.glue_zip.FILES", tuple(file._replace(rows=100) if file.task == "qqp" else file for file in FILES)
    )
    return right | {"QQP.tsv": b"".join(right["QQP.tsv"].splitlines(keepends=True)[:101])}


def test_a_right_zip_that_others_made_passes(tmp_path, right):
    assert check_zip(make_zip(tmp_path / "x.zip", right)) == []
    scores = b"".join(b"%d\t%s\n" % (i, [b"0", b"5", b"5.0", b"3.21e-05", b"4."][i % 5]) for i in range(1379))
    others = right | {"STS-B.tsv": b"index\tprediction\n" + scores[:-1]}  # nor needs the last line an end
    assert check_zip(make_zip(tmp_path / "x.zip", dict(reversed(others.items())))) == []


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_zip_is_refused_for_exactly_what_is_wrong(tmp_path, short, what):
    change, problems = WRONG[what]
    third = short["WNLI.tsv"].split(b"\n")[4][2:].decode()
    assert check_zip(make_zip(tmp_path / "x.zip", change(short))) == [each.replace("{}", third) for each in problems]


def test_all_problems_are_told_at_once(tmp_path, short):
    changes = ["a file too many", "another header", "no number", "an empty line at the end"]
    files = short
    for what in changes:
        files = WRONG[what][0](files)
    assert sorted(check_zip(make_zip(tmp_path / "x.zip", files))) == sorted(p for what in changes for p in WRONG[what][1])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice_is_refused(tmp_path, right):
    path = make_zip(tmp_path / "x.zip", right)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("RTE.tsv", b"index\tprediction\n")
    assert check_zip(path) == ["RTE.tsv: 2 times in the zip", "RTE.tsv: 0 rows, expected 3000"]


def test_what_is_no_zip_is_refused(tmp_path, right):
    path = tmp_path / "x.zip"
    for data in (b"", right["RTE.tsv"], b"PK\x03\x04" + bytes(100)):
        path.write_bytes(data)
        assert check_zip(path) == [f"{path}: not a zip, or a damaged one (File is not a zip file)"]
    with pytest.raises(InputError, match=r"nothing\.zip: cannot be read \(No such file"):
        check_zip(tmp_path / "nothing.zip")
    with pytest.raises(InputError, match="cannot be read"):
        check_zip(tmp_path)


def test_damage_is_refused_wherever_it_is_and_never_raises(tmp_path, submission):
    data = submission[0].read_bytes()
    path = tmp_path / "x.zip"
    path.write_bytes(data[: len(data) // 2])
    assert check_zip(path) == [f"{path}: not a zip, or a damaged one (File is not a zip file)"]
    at = data.index(b"RTE.tsv") + len("RTE.tsv") + 40
    path.write_bytes(data[:at] + bytes(255 - byte for byte in data[at : at + 20]) + data[at + 20 :])
    (problem,) = check_zip(path)
    assert problem.startswith("RTE.tsv: cannot be unpacked (")


@pytest.mark.parametrize("names", [["RTE.tsv"], [f"{i}/RTE.tsv" for i in range(40)]], ids=["one", "many"])
def test_a_zip_bomb_is_not_unpacked(tmp_path, names):
    path, zeros = tmp_path / "x.zip", bytes(80 << 20 if len(names) == 1 else 2 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, zeros)
    tracemalloc.start()
    problems = check_zip(path)
    assert tracemalloc.get_traced_memory()[1] < 300 << 20
    tracemalloc.stop()
    assert any("RTE.tsv: a zip bomb, or no submission: it unpacks to more than 64 MiB" in p for p in problems)


def test_a_locked_zip_is_refused(tmp_path, right):
    path = make_zip(tmp_path / "x.zip", right)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"RTE.tsv") - 46  # its line in the zip's directory, where bit 0 of the flags says that it is encrypted
    assert data[entry : entry + 4] == b"PK\x01\x02"
    struct.pack_into("<H", data, entry + 8, 1)
    path.write_bytes(data)
    (problem,) = check_zip(path)
    assert re.fullmatch(r"RTE\.tsv: cannot be unpacked \(.*(password|encrypted).*\)", problem)


# --- the commands ---


def test_the_commands_write_a_zip_and_check_it(workdirs, tmp_path, capsys):
    out = str(tmp_path / "x.zip")
    _cli(glue_zip)([str(workdirs["rte"]), str(workdirs["wnli"]), "--out", out, "--fill-missing"], "glue-zip")
    shown = capsys.readouterr().out.splitlines()
    assert sum("NOT RUN" in line for line in shown) == 9
    assert shown[-1] == f"{out}: 11 files, 426309 rows"
    _cli(glue_check)([out], "glue-check")
    assert capsys.readouterr().out == "11 files, 426309 rows: as the leaderboard requires\n"


def test_the_check_of_a_wrong_zip_prints_the_problems_and_fails(tmp_path, right, capsys):
    path = make_zip(tmp_path / "x.zip", {name: data for name, data in right.items() if name not in ("RTE.tsv", "QQP.tsv")})
    with pytest.raises(SystemExit) as caught:
        _cli(glue_check)([str(path)], "glue-check")
    assert caught.value.code == 1
    assert capsys.readouterr().out == "QQP.tsv: missing\nRTE.tsv: missing\n"
