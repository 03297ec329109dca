"""The page of a fine-tuning work directory: whole, escaped, and with the right numbers in the right cells."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from bert_jax.config import InputError
from bert_jax.data.finetuning import Encoded
from bert_jax.data.records import Record
from bert_jax.finetuning.finetune import judge
from bert_jax.finetuning.results import results
from bert_jax.finetuning.runs import Outcome
from bert_jax.inference import Answer
from bert_jax.report import charts
from bert_jax.report.page import write_report
from bert_jax.tasks.split import Predicted, Split
from bert_jax.tasks.table import find_task
from bert_jax.tuned import Tuned

VOID = {"meta"}
HOSTILE = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """What a page says: text, rows of cells' texts by heading, attributes; fails where tags do not match."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.attributes, self.names, self.text = html, [], [], set(), []
        self.tables, self.heading = {}, ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs
        self.open += [] if tag in VOID else [tag]
        if tag in ("h2", "h3"):
            self.heading = ""
        elif tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        elif tag in ("td", "th"):
            self.tables[self.heading][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text.append(data)
        if {"h2", "h3"} & set(self.open):
            self.heading += data
        elif {"td", "th"} & set(self.open):
            self.tables[self.heading][-1][-1] += data

    def rows(self, heading):
        """Those below the header, of the one table whose heading starts so."""
        (found,) = [rows for name, rows in self.tables.items() if name.startswith(heading)]
        return found[1:]

    def charts(self):
        """By what they show: the SVG elements, parsed as XML."""
        drawn = map(ElementTree.fromstring, re.findall(r"<svg.*?</svg>", self.html, re.DOTALL))
        return {svg.get("aria-label"): svg for svg in drawn}

    def paths(self, chart, kind):
        """[(points [N, 2], element)] of the paths of a class."""
        found = [path for path in self.charts()[chart] if path.get("class") == kind]
        return [(np.array(re.findall(r"([-\d.]+),([-\d.]+)", path.get("d")), float), path) for path in found]


def outcome(seed=0, rate=3e-5, scores=(0.5, 0.75), failed=None, steps=None):
    """A run that was evaluated every ten steps."""
    history = [{"step": 10 * (i + 1), "score": s, "scores": {"dev": {"accuracy": s}}} for i, s in enumerate(scores)]
    last = history[-1] if history else {"step": 0, "score": float("-inf"), "scores": {}}
    return Outcome(seed, rate, steps or last["step"], last["step"], last["score"], last["scores"], history, failed, 12.3)


def losses(path, values, key="train/loss", every=1):
    """A metrics.jsonl with a loss a step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": every * (i + 1), key: value}) for i, value in enumerate(values)]
    timing = '{"step": 1, "kind": "timing", "step_seconds": 1.0}'
    path.write_text("\n".join([*lines, timing]) + "\n")


def records(*examples):
    return [Record(texts, label, f"id{i}", f"dev.tsv:{i + 1}") for i, (texts, label) in enumerate(examples)]


@pytest.fixture
def page(tmp_path):
    """A function that writes a page and reads it: (task, records, predictions, labels, scores of dev, outcomes, thresholds)."""

    def made(task="sst2", examples=(), predicted=(), labels=(), scores=None, outcomes=(), tuned=None, **changes):
        best = max(outcomes, key=lambda each: each.score, default=None)
        test = {"dev": scores or {"accuracy": 0.5}}
        split = Split("dev", list(examples), Encoded([]))
        each = {"dev": Predicted(split, list(predicted), tuple(labels), tuned or Tuned())} if examples else {}
        data = {"hash": "abc123", "train": 320, "dev": len(examples)}
        data |= {"dev_labelled": split.labelled} if 0 < split.labelled < len(examples) else {}
        details, mistakes = judge(find_task(task).kind, each)
        found = results(task, "some/model", "python finetune.py some/model", outcomes, best, data, test, details) | changes
        path = write_report(tmp_path, found, mistakes)
        assert path == tmp_path / "report.html"
        return Page(path.read_text(encoding="utf-8"))

    return made


# ---- the page


def test_the_page_is_whole_and_needs_nothing_but_itself(page, tmp_path):
    losses(tmp_path / "metrics.jsonl", [1.0, 0.5])
    found = page(
        examples=records((("a",), "bad"), (("b",), "good")),
        predicted=[np.array([2.0, 0.0]), np.array([1.0, 0.0])],
        labels=["bad", "good"],
        outcomes=[outcome()],
    )
    assert not found.names & {"script", "link", "img", "iframe", "object"}
    assert not {name for name, _ in found.attributes} & {"src", "href", "onclick", "onload"}
    assert "url(" not in found.html
    assert "default-src 'none'" in found.html
    assert "width=device-width" in found.html
    assert "prefers-color-scheme: dark" in found.html
    assert len(found.charts()) == 3
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_the_command_the_versions_and_the_hash_of_the_data_are_at_the_bottom(page):
    found = page()
    rows = dict(found.tables["Command, data and versions"])
    assert rows["hash"] == "abc123"
    assert rows["train examples"] == "320"
    assert {"python", "jax", "numpy"} <= set(rows)
    assert "python finetune.py some/model" in found.text


@pytest.mark.parametrize(
    "task, record, prediction, labels",
    [
        ("sst2", Record((HOSTILE,), HOSTILE, HOSTILE, HOSTILE), np.array([0.0, 1.0]), (HOSTILE, HOSTILE + "b")),
        ("swag", Record((HOSTILE, HOSTILE, "b"), 0, HOSTILE, HOSTILE), np.array([0.0, 1.0]), ()),
        ("multi_label", Record((HOSTILE,), (HOSTILE,), HOSTILE, HOSTILE), np.array([-1.0]), (HOSTILE,)),
        ("stsb", Record((HOSTILE,), 1.0, HOSTILE, HOSTILE), 2.0, ()),
        ("similarity", Record((HOSTILE, HOSTILE), None, HOSTILE, HOSTILE), np.eye(2), ()),
        ("ner", Record((HOSTILE,), ("O",), HOSTILE, HOSTILE), ["B-" + HOSTILE], ("O", "B-" + HOSTILE)),
        ("squad", Record((HOSTILE, HOSTILE), ((HOSTILE, 0),), HOSTILE, HOSTILE), ([Answer("<b>", 0, 3, 0.0, 1.0)], 0.0), ()),
    ],
)
def test_all_that_is_not_the_pages_own_is_escaped(page, tmp_path, task, record, prediction, labels):
    losses(tmp_path / "metrics.jsonl", [1.0])
    more = dict(model=HOSTILE, command=HOSTILE, versions={HOSTILE: HOSTILE})
    found = page(task, [record], [prediction], labels, {HOSTILE: 0.5}, [outcome(failed=HOSTILE)], **more)
    assert "script" not in found.names
    assert "".join(found.text).count(HOSTILE) >= 8
    assert ("title", HOSTILE) in found.attributes  # the place


def test_long_texts_are_cut_and_whole_in_the_title_and_have_their_own_direction(page):
    long, half = "שלום " * 100, "\ud800"
    found = page("stsb", records(((long, "short" + half), 1.0)), [2.0])
    cell = found.rows("Largest")[0][1]
    assert cell == long[:300] + "…" + "short?"
    assert found.attributes.count(("title", long)) == 1
    assert found.attributes.count(("dir", "auto")) == 2


def test_a_split_without_labels_has_no_mistakes_and_one_with_some_those_of_them(page):
    assert "dev" not in "".join(page("sst2", records((("a",), None)), [np.zeros(2)], ["bad", "good"]).tables)
    logits = [np.array([0.0, 1.0])] * 3
    found = page("sst2", records((("a",), None), (("b",), "bad"), (("c",), "good")), logits, ["bad", "good"])
    assert "<h2>dev: 2 of 3 examples have a label</h2>" in found.html
    assert [row[0] for row in found.rows("Surest mistakes")] == ["id1"]


# ---- scores


def test_scores_of_every_split_and_why_runs_failed(page, tmp_path):
    for each in ("seed0-lr1e-05", "seed1-lr1e-05", "seed0-lr0.001"):
        losses(tmp_path / "runs" / each / "metrics.jsonl", [1.0])
    runs = [outcome(0, 1e-5, (0.5, 0.7)), outcome(1, 1e-5, (0.6, 0.8)), outcome(0, 1e-3, (), failed="it diverged")]
    test = {"dev": {"accuracy": 0.8}, "test": {"accuracy": 0.65, "loss": float("nan")}}
    found = page(outcomes=runs, exported=test)
    assert found.rows("The model that is kept: learning rate 1e-05, seed 1, step 20") == [
        ["dev", "accuracy", "0.8000"],
        ["test", "accuracy", "0.6500"],
        ["test", "loss", "–"],
    ]
    assert found.rows("Over the seeds") == [
        ["1e-05", "2", "0", "mean ± sd", "0.7500\xa0±\xa00.0707"],
        ["1e-05", "2", "0", "median", "0.7500"],
    ]
    assert found.rows("Runs") == [
        ["1e-05", "0", "", "0.7000", "20", "20", "12"],
        ["1e-05", "1", "", "0.8000", "20", "20", "12"],
        ["0.001", "0", "failed: it diverged", "–", "0", "0", "12"],
    ]


def test_a_single_run_has_no_means_and_no_run_no_curves(page, tmp_path):
    found = page()
    assert not found.charts()
    assert [name for name in found.tables if name.startswith("The model")] == ["The model that is kept: nothing was trained"]
    losses(tmp_path / "metrics.jsonl", [1.0])
    assert not [name for name in page(outcomes=[outcome()]).tables if name.startswith("Over the seeds")]


# ---- curves

LOSS, SCORE = "training loss against step", "dev score against step"


def test_the_curves_of_a_run_are_its_losses_smoothed_and_its_scores(page, tmp_path):
    losses(tmp_path / "metrics.jsonl", [2.0, 0.0] * 40)
    found = page(outcomes=[outcome(scores=(0.1, 0.9, 0.5))])
    ((points, _),) = found.paths(LOSS, "points")
    ((line, _),) = found.paths(LOSS, "line")
    assert len(points) == len(line) == 80
    assert np.ptp(points[:, 1]) > 2 * np.ptp(line[5:-5, 1])  # the mean of five batches moves less than the batches
    ((line, path),) = found.paths(SCORE, "line")
    np.testing.assert_allclose(np.diff(line[:, 0]), np.diff(line[:, 0])[0], atol=0.11)
    assert line[:, 1].argmin() == 1  # up is less
    assert (line[1, 1] - line[0, 1]) / (line[2, 1] - line[0, 1]) == pytest.approx(2, abs=0.01)
    assert path.get("stroke-dasharray") is None
    assert path.find("title").text == "learning rate 3e-05, seed 0"


@pytest.mark.parametrize("together", [True, False])
def test_each_run_has_its_line_in_the_colour_of_its_learning_rate_and_failed_ones_are_dashed(page, tmp_path, together):
    runs = [outcome(0, 1e-5), outcome(1, 1e-5), outcome(0, 1e-3, (0.5,), failed="it learnt nothing", steps=10)]
    names = ["seed0-lr1e-05", "seed1-lr1e-05", "seed0-lr0.001"]
    if together:
        path = tmp_path / "runs" / "metrics.jsonl"
        path.parent.mkdir()
        path.write_text(json.dumps({"step": 1} | {f"train/{name}/loss": i for i, name in enumerate(names)}) + "\n")
    for i, name in enumerate(names):
        if not together:
            losses(tmp_path / "runs" / name / "metrics.jsonl", [float(i)])
    found = page(outcomes=runs)
    lines = found.paths(LOSS, "line")
    heights = [points[0, 1] for points, _ in lines]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3
    for chart in (LOSS, SCORE):
        styles = [path.get("style") for _, path in found.paths(chart, "line")]
        assert styles[0] == styles[1] != styles[2]
        assert [path.get("stroke-dasharray") is not None for _, path in found.paths(chart, "line")] == [False, False, True]
    assert {"learning rate 1e-05", "learning rate 0.001", "dashed: failed"} <= set(found.text)


def test_a_run_that_stopped_early_ends_where_it_stopped_though_the_others_went_on(page, tmp_path):
    path = tmp_path / "runs" / "metrics.jsonl"
    path.parent.mkdir()
    both = ({"step": step, "train/seed0-lr1e-05/loss": 1.0, "train/seed1-lr1e-05/loss": 1.0} for step in range(1, 21))
    path.write_text("".join(json.dumps(line) + "\n" for line in both))
    found = page(outcomes=[outcome(0, 1e-5, (0.5,)), outcome(1, 1e-5, (0.5, 0.6))])
    assert [len(points) for points, _ in found.paths(LOSS, "line")] == [10, 20]
    assert {"seed 0", "seed 1"} <= set(found.text)  # one learning rate: the colours are the seeds'


def test_losses_that_are_not_finite_are_left_out(page, tmp_path):
    losses(tmp_path / "metrics.jsonl", [1.0, "nan", "inf", "-inf", 2.0])
    found = page(outcomes=[outcome()])
    assert [len(points) for points, _ in found.paths(LOSS, "points")] == [2]
    losses(tmp_path / "metrics.jsonl", ["nan"])
    found = page(outcomes=[outcome(scores=(), failed="it diverged")])
    assert {"There is no finite training loss to show.", "There is no finite dev score to show."} <= set(found.text)


def test_long_runs_are_thinned(page, tmp_path):
    losses(tmp_path / "metrics.jsonl", [1.0] * 9000)
    ((points, _),) = page(outcomes=[outcome()]).paths(LOSS, "points")
    assert 3000 <= len(points) <= 4500


def test_ticks_are_round_numbers_within_the_axis():
    assert charts.ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert charts.ticks(-0.13, 0.31) == [-0.1, 0, 0.1, 0.2, 0.3]
    assert charts.ticks(0.912, 0.9169) == [0.912, 0.913, 0.914, 0.915, 0.916]


# ---- mistakes


def test_classes_have_a_confusion_matrix_and_the_mistakes_that_the_model_is_surest_of(page):
    examples = records((("one",), "good"), (("two", "two b"), "bad"), (("three",), "good"), (("four",), "good"))
    logits = np.log([[0.6, 0.4], [0.7, 0.3], [0.9, 0.1], [0.2, 0.8]])
    found = page("sst2", examples, list(logits), ["bad", "good"])
    assert found.rows("Confusion") == [["bad", "1", "0"], ["good", "2", "1"]]
    assert found.rows("Surest mistakes, of 2") == [
        ["id2", "three", "good", "bad", "0.9000"],
        ["id0", "one", "good", "bad", "0.6000"],
    ]
    assert found.rows("By label") == [
        ["bad", "0.3333", "1.0000", "0.5000", "1", "0.6667"], ["good", "1.0000", "0.3333", "0.5000", "3", "0.6667"]
    ]  # fmt: skip
    shades = [value for name, value in found.attributes if name == "style" and "background" in value]
    assert shades[1] == "background: rgba(var(--wrong), 0.000)"
    assert shades[2] == "background: rgba(var(--wrong), 0.400)"
    assert ("title", "dev.tsv:3") in found.attributes


def test_the_calibration_of_a_split_is_drawn_and_told(page):
    """Of the two that are taken for 0.75 one is right, and both that are taken for 0.95."""
    examples = records(*(((name,), label) for name, label in zip("abcd", ("good", "bad", "good", "good"), strict=True)))
    found = page("sst2", examples, list(np.log([[0.25, 0.75]] * 2 + [[0.05, 0.95]] * 2)), ["bad", "good"])
    assert "Calibration: expected calibration error 0.1500" in found.html
    ((points, _),) = found.paths("share that is right against probability", "points")
    assert points.shape == (2, 2)
    assert points[1, 0] > points[0, 0]


def test_of_many_classes_the_most_confused_pairs_are_shown(page):
    labels = [f"c{i:02d}" for i in range(21)]
    right, guessed = [3, 3, 3, 5, 5, 7], [4, 4, 3, 6, 5, 7]
    found = page("classification", records(*((("t",), labels[i]) for i in right)), list(np.eye(21)[guessed]), labels)
    assert found.rows("Most confused") == [["c03", "c04", "2", "66.7%"], ["c05", "c06", "1", "50.0%"]]
    assert not [name for name in found.tables if name.startswith("Confusion")]


def test_at_most_twenty_examples_are_shown(page):
    found = page("sst2", records(*[(("t",), "good")] * 30), [np.array([1.0, 0.0])] * 30, ["bad", "good"])
    assert len(found.rows("Surest mistakes, of 30")) == 20


def test_choices_are_shown_by_their_texts(page):
    examples = records((("stem", "a", "b", "c"), 2), (("stem", "d", "e", "f"), 0))
    found = page("swag", examples, [np.log([0.1, 0.8, 0.1]), np.log([0.8, 0.1, 0.1])])
    assert found.rows("Surest mistakes, of 1") == [["id0", "stem", "c", "b", "0.8000"]]


def test_several_labels_have_precision_recall_and_f1_each(page):
    examples = records((("one",), ("x", "y")), (("two",), ()), (("three",), ("x",)))
    found = page("multi_label", examples, list(np.array([[2.0, -3.0], [1.0, -1.0], [0.5, -0.5]])), ["x", "y"])
    assert found.rows("By label") == [
        ["x", "0.6667", "1.0000", "0.8000", "2", "0.5000", "0.5000"], ["y", "0.0000", "0.0000", "0.0000", "1", "0.0000", "0.5000"]
    ]  # fmt: skip
    assert found.rows("Surest") == [["id0", "one", "y", "yes", "no", "0.0474"], ["id1", "two", "x", "no", "yes", "0.7311"]]


def test_several_labels_are_given_by_the_thresholds_of_each(page):
    examples = records((("one",), ("x", "y")), (("two",), ("y",)))
    logits = list(np.log(np.array([[1.0, 1.0], [4.0, 0.25]])))  # probabilities 0.5 0.5, 0.8 0.2
    found = page("multi_label", examples, logits, ["x", "y"], tuned=Tuned(label_thresholds=(0.9, 0.1)))
    assert found.rows("By label") == [  # all texts have y: there is no area under its curve
        ["x", "0.0000", "0.0000", "0.0000", "1", "0.0000", "0.9000"], ["y", "1.0000", "1.0000", "1.0000", "2", "–", "0.1000"]
    ]  # fmt: skip
    assert found.rows("Surest") == [["id0", "one", "x", "yes", "no", "0.5000"]]


def test_numbers_have_a_scatter_and_the_largest_differences(page):
    examples = records((("one",), 1.0), (("two",), 2.0), (("three",), 5.0))
    found = page("stsb", examples, [1.5, 2.0, 3.0])
    assert found.rows("Largest differences") == [
        ["id2", "three", "5.0000", "3.0000", "-2.0000"],
        ["id0", "one", "1.0000", "1.5000", "0.5000"],
    ]
    ((points, _),) = found.paths("predicted against right", "points")
    assert (points[2] - points[0])[0] / (points[1] - points[0])[0] == pytest.approx(4, abs=0.01)
    assert (points[2] - points[0])[1] / (points[1] - points[0])[1] == pytest.approx(3, abs=0.01)
    diagonal = [points for points, path in found.paths("predicted against right", "grid") if path.get("stroke-dasharray")]
    at = np.array([np.interp(points[1, 0], *diagonal[0].T)])
    assert at == pytest.approx(points[1, 1], abs=0.2)  # what is right lies on it


def test_scored_pairs_have_a_scatter_and_those_that_are_ranked_most_wrongly(page):
    vectors = [np.array([[1.0, 0.0], [np.cos(a), np.sin(a)]]) for a in (0.1, 0.2, 0.3)]
    found = page("similarity", records((("a", "b"), 1.0), (("c", "d"), 3.0), (("e", "f"), 2.0)), vectors)
    assert found.rows("Largest differences of ranks") == [
        ["id0", "ab", "1.0000", "0.9950", "0.6667"],
        ["id1", "cd", "3.0000", "0.9801", "-0.3333"],
        ["id2", "ef", "2.0000", "0.9553", "-0.3333"],
    ]
    assert "cosine against right" in found.charts()


def test_pairs_without_a_score_are_shown_where_they_are_least_alike(page):
    vectors = [np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])]
    found = page("similarity", records((("a", "b", "n"), None), (("c", "d", "n"), None)), vectors, scores={"mrr_at_10": 1.0})
    assert found.rows("Pairs with the lowest cosine") == [["id1", "cd", "0.0000"], ["id0", "ab", "0.7071"]]


def test_tagged_sentences_have_scores_a_type_and_their_wrong_words_marked(page):
    examples = records(
        (("Ann", "met", "Bo"), ("B-PER", "O", "B-PER")),
        (("in", "New", "York"), ("O", "B-LOC", "I-LOC")),
        (("fine",), ("O",)),
    )
    labels = ("O", "B-LOC", "B-PER", "I-LOC")
    found = page("ner", examples, [["B-PER", "O", "O"], ["O", "O", "B-LOC"], ["O"]], labels)
    assert found.rows("By label") == [["PER", "1.0000", "0.5000", "0.6667", "2"], ["LOC", "0.0000", "0.0000", "0.0000", "1"]]
    assert found.rows("Sentences with the most wrong words, of 2") == [
        ["id1", "2 of 3", "in NewB-LOC O YorkI-LOC B-LOC"],
        ["id0", "1 of 3", "AnnB-PER met BoB-PER O"],
    ]
    assert [value for name, value in found.attributes if name == "class" and value in ("bad", "good")] == [
        "bad",
        "bad",
        "good",
        "bad",
    ]


def test_parts_of_speech_have_scores_a_tag(page):
    examples = records((("Ann", "met", "Bo"), ("NNP", "VBD", "NNP")), (("go",), ("VB",)))
    found = page("tagging", examples, [["NNP", "NNP", "NNP"], ["VB"]], ("NNP", "UH", "VB", "VBD"))
    assert found.rows("By label") == [
        ["NNP", "0.6667", "1.0000", "0.8000", "2"], ["VB", "1.0000", "1.0000", "1.0000", "1"],
        ["VBD", "0.0000", "0.0000", "0.0000", "1"],
    ]  # fmt: skip
    assert found.rows("Sentences with the most wrong words, of 1") == [["id0", "1 of 3", "AnnNNP metVBD NNP BoNNP"]]


def test_of_long_sentences_the_words_around_the_wrong_ones_are_shown(page):
    words = tuple(f"w{i}" for i in range(60))
    predicted = ["O"] * 60
    predicted[20] = predicted[50] = "B-PER"
    ((_, _, shown),) = page("ner", records((words, ("O",) * 60)), [predicted], ("O", "B-PER")).rows("Sentences")
    left = " ".join(words[12:20])
    assert shown.startswith(f"… {left} w20O B-PER w21")
    assert " w28 … w42 " in shown
    assert shown.endswith(" w58 …")


def answered(*logits, null=0.0):
    """Candidates that read (text, logit)."""
    return [Answer(text, 0, len(text), 0.0, logit) for text, logit in logits], null


def test_the_worst_answers_are_shown_the_surest_first(page):
    context = "x" * 400 + " Paris in the spring"
    examples = records(
        (("where?", context), (("Paris", 401), ("Paris", 401))),
        (("when?", context), (("spring", 414),)),
        (("what?", context), (("the spring", 410), ("spring", 414))),
        (("who?", context), (("Paris in", 401),)),
    )
    given = [answered(("London", 3.0)), answered(("Rome", 1.0)), answered(("spring", 9.0)), answered(("Paris", 9.0))]
    found = page("squad", examples, given)
    rows = found.rows("Worst answers, the most probable first; F1 is 0 for 2 questions")
    assert [[row[0], *row[2:]] for row in rows] == [
        ["id0", "Paris", "London", "0.0000", "0.9526"],
        ["id1", "spring", "Rome", "0.0000", "0.7311"],
        ["id3", "Paris in", "Paris", "0.6667", "0.9999"],
    ]
    assert rows[0][1] == "where?…" + context[251:]  # what is around the right answer
    assert not [name for name in found.tables if name.startswith("Whether")]


def test_questions_without_an_answer_are_counted_at_the_models_threshold(page):
    examples = records((("q", "Rome"), ()), (("q", "Rome"), (("Rome", 0),)), (("q", "Rome"), (("Rome", 0),)), (("q", "Oslo"), ()))
    given = [answered(("Rome", 1.0)), answered(("Rome", 0.0), null=1.0), answered(("Rome", 0.0), null=4.0), ([], 0.0)]
    found = page("squad2", examples, given, tuned=Tuned(null_threshold=2.0))
    assert found.rows("Questions with and without an answer") == [["answer", "1", "1"], ["none", "1", "1"]]
    rows = found.rows("Worst answers, the most probable first; F1 is 0 for 2 questions")
    assert [[row[0], *row[2:]] for row in rows] == [
        ["id2", "Rome", "none", "0.0000", "0.9820"],
        ["id0", "none", "Rome", "0.0000", "0.7311"],
    ]


# ---- files


def test_a_log_that_is_missing_is_named(page, tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        page(outcomes=[outcome()])
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_named(page, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*report\.html"):
        page()
