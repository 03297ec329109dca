"""What a run leaves: files of predictions that scorers read, whatever stands in the texts, and summaries of several runs."""

import csv
import json
import math
import os
import tracemalloc

import numpy as np
import pytest
from rich.console import Console

from bert_jax.config import InputError
from bert_jax.data.files import read_conll
from bert_jax.data.records import Record
from bert_jax.finetuning import results
from bert_jax.finetuning.runs import Outcome
from bert_jax.inference import Answer
from bert_jax.tasks.split import Predicted, Split
from bert_jax.tasks.table import TASKS
from bert_jax.tuned import Tuned

UGLY = 'a\tb\n"c"\r\\d, é'


def record(label, id="0", texts=("x",)):
    return Record(texts, label, id, "f.tsv:2")


def write(folder, kind, records, predicted, labels=(), threshold=None, name="dev", label_thresholds=()):
    """The path that was written."""
    tuned = Tuned(null_threshold=threshold, label_thresholds=label_thresholds)
    return TASKS[kind].kind.write(folder / "predictions", Predicted(Split(name, records, None), predicted, labels, tuned))


def rows(path):
    """The fields of each line, as any reader of tabs and lines finds them."""
    text = path.read_bytes().decode()
    assert text.endswith("\n")
    return [line.split("\t") for line in text[:-1].split("\n")]


# ---- tables


def test_classes_are_written_with_the_right_one_and_each_ones_probability(tmp_path):
    logits = [np.log([0.1, 0.7, 0.2]), np.log([0.5, 0.25, 0.25]) + 3]
    records = [record("b", "q1"), record("c", "q2")]
    path = write(tmp_path, "classification", records, logits, ("a", "b", "c"))
    assert path == tmp_path / "predictions" / "dev.tsv"
    assert rows(path) == [
        ["id", "prediction", "label", "a", "b", "c"],
        ["q1", "b", "b", "0.1", "0.7", "0.2"],
        ["q2", "a", "c", "0.5", "0.25", "0.25"],
    ]


def test_predictions_are_written_row_by_row_and_whole_or_not_at_all(tmp_path):
    records, logits = [record("a", str(i)) for i in range(4000)], np.zeros((4000, 10))
    tracemalloc.start()
    path = write(tmp_path, "classification", records, logits, "abcdefghij")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows(path)) == 4001
    assert peak < path.stat().st_size
    before = path.read_bytes()
    with pytest.raises(ValueError, match="shorter"):
        write(tmp_path, "classification", records, logits[1:], "abcdefghij")
    assert [each.read_bytes() for each in path.parent.iterdir()] == [before]


def test_without_labels_there_is_no_column_of_them_and_some_leave_it_empty_for_the_others(tmp_path):
    for labels, header, cells in (((None, None), [], []), ((None, "a"), ["label"], [""])):
        records = [record(label, str(i)) for i, label in enumerate(labels)]
        path = write(tmp_path, "classification", records, [np.zeros(2)] * 2, ("a", "b"), name="test")
        assert path.name == "test.tsv"
        assert rows(path)[:2] == [["id", "prediction", *header, "a", "b"], ["0", "a", *cells, "0.5", "0.5"]]
    assert rows(path)[2] == ["1", "a", "a", "0.5", "0.5"]


def test_several_labels_are_those_of_a_probability_of_one_half_or_more(tmp_path):
    logits = [np.array([0.0, -1000.0, 1000.0], np.float32), np.array([-1.0, -1, -1])]
    path = write(tmp_path, "multi_label", [record(("a",)), record(("b", "c"))], logits, ("a", "b", "c"))
    assert rows(path)[1:] == [["0", "a,c", "a", "0.5", "0", "1"], ["0", "", "b,c", "0.268941", "0.268941", "0.268941"]]


def test_several_labels_follow_the_thresholds_of_each(tmp_path):
    logits = [np.array([0.0, 0.0]), np.array([2.0, -3.0])]
    records, thresholds = [record(("a",)), record(("b",))], (0.51, 0.1)
    path = write(tmp_path, "multi_label", records, logits, ("a", "b"), label_thresholds=thresholds)
    assert [row[1] for row in rows(path)[1:]] == ["b", "a"]


def test_values_choices_and_cosines_are_written(tmp_path):
    assert rows(write(tmp_path, "regression", [record(2.0)], [1.23456789])) == [
        ["id", "prediction", "label"],
        ["0", "1.23457", "2.0"],
    ]
    choices = write(tmp_path, "multiple_choice", [record(0)], [np.log([0.25, 0.75])])
    assert rows(choices) == [["id", "prediction", "label", "0", "1"], ["0", "1", "0", "0.25", "0.75"]]
    vectors = [np.array([[3.0, 0], [1, 1]]), np.zeros((3, 2))]
    cosines = write(tmp_path, "similarity", [record(None), record(None)], vectors)
    assert rows(cosines) == [["id", "prediction"], ["0", "0.707107"], ["0", "0"]]


def test_tabs_quotes_backslashes_and_newlines_do_not_break_a_line(tmp_path):
    records = [record(UGLY, UGLY), record("plain", '"')]
    path = write(tmp_path, "classification", records, [np.array([9.0, 0]), np.array([0, 9.0])], (UGLY, "plain"))
    shown = 'a\\tb\\n"c"\\r\\\\d, é'
    found = rows(path)
    assert [row[:3] for row in found] == [["id", "prediction", "label"], [shown] * 3, ['"', "plain", "plain"]]
    assert {len(row) for row in found} == {5}
    with path.open(newline="") as file:
        assert list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)) == found
    assert shown.encode().decode("unicode_escape").encode("latin-1").decode() == UGLY


def test_tags_are_written_as_they_are_read(tmp_path):
    records = [record(("B-X", "O"), texts=("New York", "is")), record(("O",), texts=("big",))]
    path = write(tmp_path, "tagging", records, [["B-X", "B-X"], ["O"]])
    assert path.name == "dev.conll"
    assert path.read_text() == "New York\tB-X\tB-X\nis\tO\tB-X\n\nbig\tO\tO\n\n"
    assert [row.values["tags"] for row in read_conll(str(path)).rows] == [["B-X", "B-X"], ["O"]]
    assert [row.values["words"] for row in read_conll(str(path), 1).rows] == [["New York", "is"], ["big"]]


def test_words_without_tags_and_with_tabs_keep_to_their_lines(tmp_path):
    path = write(tmp_path, "tagging", [record(None, texts=("a\tb", "c\nd"))], [["O", "B-X"]])
    assert path.read_text() == "a\\tb\tO\nc\\nd\tB-X\n\n"
    path = write(tmp_path, "tagging", [record(None, texts=("a", "b")), record(("O",), texts=("c",))], [["O", "B-X"], ["O"]])
    assert path.read_text() == "a\t_\tO\nb\t_\tB-X\n\nc\tO\tO\n\n"


# ---- answers


ODD = 'an\t"é"\n'
ANSWERS = [
    ([Answer("first", 3, 8, 0.0, 2.0), Answer("other", 9, 14, 0.0, 1.0)], 0.0),
    ([Answer(ODD, 0, 7, 0.0, 1.0)], 4.0),
    ([], 0.5),
]  # fmt: skip
QUESTIONS = [record((("first", 3),), "q1"), record((), "q2"), record((), "q3")]


def read(path, part=""):
    return json.loads(path.with_name(f"dev{part}.json").read_text(encoding="utf-8"))


def test_answers_are_written_in_squads_three_files(tmp_path):
    path = write(tmp_path, "question_answering", QUESTIONS, ANSWERS, threshold=1.0)
    assert path.name == "dev.json"
    assert read(path) == {"q1": "first", "q2": "", "q3": ""}
    assert read(path, ".null_odds") == {"q1": -2.0, "q2": 3.0, "q3": 1e9}
    best = read(path, ".nbest")
    assert [row["text"] for row in best["q1"]] == ["first", "other", ""]
    assert [row["text"] for row in best["q2"]] == ["", ODD]
    assert best["q3"] == [{"text": "", "logit": 0.5, "probability": 1.0}]
    share = math.exp(2) / (math.exp(2) + math.e + 1)
    assert best["q1"][0] == {"text": "first", "start": 3, "logit": 2.0, "probability": pytest.approx(share)}
    assert all(sum(row["probability"] for row in each) == pytest.approx(1) for each in best.values())


@pytest.mark.parametrize("threshold, second", [(2.9, ""), (3.0, ODD), (None, ODD)])
def test_there_is_no_answer_where_that_is_likelier_by_more_than_the_threshold(tmp_path, threshold, second):
    assert read(write(tmp_path, "question_answering", QUESTIONS, ANSWERS, threshold=threshold))["q2"] == second


def test_questions_whose_answers_are_not_known_may_have_none(tmp_path):
    records = [record(None, f"q{i}") for i in (1, 2, 3)]
    assert read(write(tmp_path, "question_answering", records, ANSWERS, threshold=1.0)) == {"q1": "first", "q2": "", "q3": ""}


def test_the_threshold_holds_where_all_questions_have_answers_too(tmp_path):
    """As in the predictor, which does not know."""
    records = [record((("x", 0),), f"q{i}") for i in (1, 2, 3)]
    path = write(tmp_path, "question_answering", records, ANSWERS, threshold=-9.0)
    assert read(path) == {"q1": "", "q2": "", "q3": ""}
    path = write(tmp_path, "question_answering", records, ANSWERS, threshold=None)
    assert read(path) == {"q1": "first", "q2": ODD, "q3": ""}


# ---- whole or not at all


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path, monkeypatch):
    first = write(tmp_path, "regression", [record(1.0)], [1.0])
    content = first.read_text()

    def broken(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(InputError, match=r"cannot write .*dev.tsv: No space left on device"):
        write(tmp_path, "regression", [record(2.0)], [2.0])
    assert first.read_text() == content
    monkeypatch.undo()
    write(tmp_path, "regression", [record(2.0)], [2.0])
    assert first.read_text() != content
    assert [path.name for path in first.parent.iterdir()] == ["dev.tsv"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "predictions").touch()
    with pytest.raises(InputError, match=r"cannot write .*dev.tsv: File exists"):
        write(tmp_path, "regression", [record(1.0)], [1.0])


# ---- several runs


def outcome(seed, rate, accuracy, failed=None):
    scores = {"dev": {"accuracy": accuracy, "loss": 1 - accuracy}}
    return Outcome(seed, rate, 100, 50, accuracy, scores, [{"step": 50, "score": accuracy, "scores": scores}], failed, 12.0)


def lost(seed, rate):
    return Outcome(seed, rate, 3, 0, -math.inf, {}, [], "it diverged", 1.0)


OUTCOMES = [outcome(0, 3e-5, 0.5), outcome(1, 3e-5, 0.7, "no better than nothing"), outcome(2, 3e-5, 0.9), lost(3, 3e-5),
            outcome(0, 2e-5, 0.6), lost(0, 1e-2)]  # fmt: skip


def test_runs_are_summed_up_by_learning_rate():
    summary = results.summarize(OUTCOMES)
    assert list(summary) == ["2e-05", "3e-05", "0.01"]
    three = summary["3e-05"]
    assert (three["runs"], three["failed"]) == (3, [1, 3])
    assert three["score"] == pytest.approx({"mean": 0.7, "sd": 0.2, "median": 0.7, "min": 0.5, "max": 0.9})
    assert three["metrics"]["dev/accuracy"] == pytest.approx(three["score"])
    assert three["metrics"]["dev/loss"] == pytest.approx({"mean": 0.3, "sd": 0.2, "median": 0.3, "min": 0.1, "max": 0.5})
    assert summary["2e-05"]["score"] == {"mean": 0.6, "sd": 0.0, "median": 0.6, "min": 0.6, "max": 0.6}
    assert summary["0.01"] == {"runs": 0, "failed": [0], "score": None, "metrics": {}}
    assert results.summarize([]) == {}


def test_results_hold_the_best_run_all_runs_and_what_they_were_made_of():
    best = OUTCOMES[2]
    found = results.results("sst2", "model", "python finetune.py", OUTCOMES, best, {"hash": "f00"}, {"test": {"accuracy": 0.8}})
    assert (found["metrics"], found["score"]) == ({"dev": {"accuracy": 0.9, "loss": pytest.approx(0.1)}}, 0.9)
    assert found["best"] == {"seed": 2, "learning_rate": 3e-5, "step": 50}
    assert [run["seed"] for run in found["runs"]] == [0, 1, 2, 3, 0, 0]
    assert found["summary"] == results.summarize(OUTCOMES)
    assert (found["task"], found["model"], found["command"]) == ("sst2", "model", "python finetune.py")
    assert (found["data"], found["exported"]) == ({"hash": "f00"}, {"test": {"accuracy": 0.8}})
    assert {"python", "jax", "numpy", "tokenizers"} <= set(found["versions"])


def test_without_a_run_there_is_no_best():
    found = results.results("sst2", "model", "", [], None, {}, {})
    assert (found["best"], found["score"], found["metrics"], found["runs"]) == (None, None, {}, [])


def test_the_table_on_the_screen_has_a_line_a_run_and_the_spread_of_several():
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    results.show(OUTCOMES, OUTCOMES[2], console)
    lines = console.export_text().splitlines()
    console.file.close()
    (best,) = [line for line in lines if "best" in line]
    assert "3e-05" in best
    assert "0.9000" in best
    assert sum("failed" in line for line in lines) == 3
    (mean,) = [line.replace("│", " ").split() for line in lines if "±" in line]
    assert mean == ["3e-05", "mean", "±", "sd", "0.7000", "±", "0.2000", "0.3000", "±", "0.2000"]
    assert sum("median" in line for line in lines) == 1
