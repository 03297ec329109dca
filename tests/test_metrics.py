"""Metrics of tasks against literal values: of scikit-learn's, SciPy's and seqeval's documentation, SQuAD's script, by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics

from bert_jax.config import InputError
from bert_jax.tasks import metrics as task_metrics
from bert_jax.tasks.metrics import METRICS, entities, entity_report, squad_scores

# arguments that each metric takes, at a perfect score
PERFECT = {
    name: values
    for names, values in [
        ("accuracy f1 multiclass_macro_f1 matthews_correlation", [0, 1, 1]),
        ("micro_f1 macro_f1", [[0, 1], [1, 0], [1, 1]]),
        ("pearson spearman", [0.5, 1.0, 4.0]),
        ("entity_f1 entity_precision entity_recall tag_accuracy", [["B-X"], ["O"], ["I-X", "B-Y"]]),
        ("ndcg_at_10 mrr_at_10", [[2, 1, 0], [1], [1, 1]]),
    ]
    for name in names.split()
}


@pytest.mark.parametrize("name", PERFECT)
def test_predicting_the_targets_scores_one(name):
    assert METRICS[name](PERFECT[name], PERFECT[name]) == pytest.approx(1)


def test_the_table_has_every_metric_once_and_gives_python_floats():
    assert set(METRICS) == {*PERFECT, "squad_f1"}
    for name, values in PERFECT.items():
        assert type(METRICS[name](values, values)) is float
    assert type(METRICS["squad_f1"](["a b"], [["a b"]])) is float


@pytest.mark.parametrize("name", METRICS)
def test_another_number_of_predictions_is_refused(name):
    values = PERFECT.get(name, ["x", "y", "z"])
    with pytest.raises(InputError, match=r"2 predictions for 3 targets; give one for each"):
        METRICS[name](values[:2], values)
    with pytest.raises(InputError, match="no example to score"):
        METRICS[name]([], [])


@pytest.mark.parametrize("name", ["accuracy", "f1", "multiclass_macro_f1", "matthews_correlation", "pearson", "spearman"])
def test_a_column_is_not_taken_for_a_row(name):
    with pytest.raises(InputError, match=r"shape \(2, 1\) and targets of shape \(2,\); .* of one shape \[N\]"):
        METRICS[name]([[0], [1]], [0, 1])
    with pytest.raises(InputError, match=r"of one shape \[N\]"):
        METRICS[name]([[0], [1]], [[0], [1]])


# Classes


def test_accuracy_is_the_share_that_is_right():
    assert METRICS["accuracy"](np.array([0, 2, 1, 3]), [0, 1, 2, 3]) == 0.5
    assert METRICS["accuracy"](["NOUN", "VERB"], ["NOUN", "NOUN"]) == 0.5


def test_f1_is_that_of_class_one():
    assert METRICS["f1"]([1, 1, 1, 0, 0], [1, 0, 1, 1, 0]) == pytest.approx(2 / 3)
    assert METRICS["f1"]([1, 1, 1, 0], [1, 0, 0, 0]) == 0.5  # precision 1/3, recall 1; of class 0 it is the same
    assert METRICS["f1"]([1, 1, 0, 0, 0], [1, 0, 0, 0, 0]) == pytest.approx(2 / 3)  # of class 0: 6/7


def test_f1_of_a_class_that_is_never_there_is_0_without_a_warning():
    assert METRICS["f1"]([0, 0], [0, 0]) == METRICS["f1"]([0, 0], [0, 1]) == METRICS["f1"]([1, 1], [0, 0]) == 0


def test_f1_refuses_a_third_class():
    with pytest.raises(InputError, match="zeros and ones, but found 2; for more than two classes use multiclass_macro_f1"):
        METRICS["f1"]([0, 1, 1], [0, 1, 2])


def test_multiclass_macro_f1_is_that_of_scikit_learn():
    assert METRICS["multiclass_macro_f1"]([0, 2, 1, 0, 0, 1], [0, 1, 2, 0, 1, 2]) == pytest.approx(0.8 / 3)
    assert METRICS["multiclass_macro_f1"]([5, 5, 5], [7, 5, 5]) == pytest.approx(0.4)  # only the classes in either: 0.8 and 0


LABELS = [[0, 0, 0], [1, 1, 1], [0, 1, 1]]
PREDICTED_LABELS = [[0, 0, 0], [1, 1, 1], [1, 1, 0]]


def test_f1_of_several_labels_is_that_of_scikit_learn():
    assert METRICS["micro_f1"](PREDICTED_LABELS, LABELS) == pytest.approx(0.8)
    assert METRICS["macro_f1"](PREDICTED_LABELS, LABELS) == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)


def test_f1_of_a_single_label_does_not_count_its_absence():
    for name in ("micro_f1", "macro_f1"):
        assert METRICS[name]([[1], [0], [0], [1]], [[1], [0], [0], [0]]) == pytest.approx(2 / 3)


def test_a_label_never_there_counts_as_0_without_a_warning():
    assert METRICS["macro_f1"]([[1, 0], [1, 0]], [[1, 0], [1, 0]]) == 0.5
    assert METRICS["micro_f1"]([[1, 0], [1, 0]], [[1, 0], [1, 0]]) == 1
    assert METRICS["micro_f1"]([[0, 0]], [[0, 0]]) == METRICS["macro_f1"]([[0, 0]], [[0, 0]]) == 0


def test_several_labels_are_zeros_and_ones():
    for name in ("micro_f1", "macro_f1"):
        with pytest.raises(InputError, match=r"zeros and ones, but found 0\.5; give 1 where the example has the label"):
            METRICS[name]([[0.5, 1]], [[0, 1]])
        with pytest.raises(InputError, match=r"of one shape \[N, C\]"):
            METRICS[name]([0, 1], [0, 1])


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    logits, right = np.round(rng.normal(0, 1, (60, 3)), 1), rng.integers(0, 3, 60)  # some are equal
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    has = right[:, None] == np.arange(3)
    expected = sklearn.metrics.roc_auc_score(right, shares, multi_class="ovr")
    assert task_metrics.macro_roc_auc(shares, has) == pytest.approx(expected)
    assert task_metrics.roc_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75  # scikit-learn's documentation
    two = np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])
    assert task_metrics.macro_roc_auc(two, np.array([[1, 0], [1, 0], [0, 1], [0, 1]])) == 0.75


def test_a_class_that_all_have_or_none_has_no_area():
    assert task_metrics.roc_auc([0.1, 0.4], [1, 1]) is None
    assert task_metrics.macro_roc_auc([[0.1, 0.2, 0.9], [0.4, 0.1, 0.8]], [[0, 1, 0], [1, 1, 0]]) == 1.0
    assert task_metrics.macro_roc_auc([[0.1], [0.4]], [[0], [0]]) is None
    assert math.isnan(task_metrics.roc_auc([math.nan, 0.4], [0, 1]))


def test_each_class_has_the_scores_of_scikit_learn():
    rng = np.random.default_rng(0)
    shares, right = rng.random((50, 3)), rng.random((50, 3)) < 0.4
    given = shares >= 0.5
    right[:, 2] = False
    found = task_metrics.class_report(given, right, shares, ["a", "b", "c"], (0.5, 0.5, 0.5))
    expected = sklearn.metrics.precision_recall_fscore_support(right, given, zero_division=0)
    for i, name in enumerate("abc"):
        assert [found[name][key] for key in ("precision", "recall", "f1", "support")] == pytest.approx([e[i] for e in expected])
    assert found["a"]["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(right[:, 0], shares[:, 0]))
    assert found["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0, "threshold": 0.5}


def test_calibration_is_computed_by_hand():
    found = task_metrics.calibration([0.75, 0.75, 0.95, 1.0, 0.0], [True, False, True, True, False])
    assert found["expected_calibration_error"] == pytest.approx((2 * 0.25 + 2 * 0.025) / 5)
    assert [(each["count"], each["accuracy"]) for each in found["bins"]] == [(1, 0), (2, 0.5), (2, 1)]
    assert found["bins"][2]["confidence"] == pytest.approx(0.975)


def test_the_threshold_of_a_label_is_where_its_f1_is_best():
    shares = np.array([0.05, 0.1, 0.2, 0.3, 0.32, 0.4, 0.6, 0.9])
    has = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    assert task_metrics.best_label_threshold(shares, has) == pytest.approx(0.25)
    assert task_metrics.best_label_threshold(shares[::-1], has[::-1]) == pytest.approx(0.25)
    assert task_metrics.best_label_threshold(shares + 0.35, has) == pytest.approx(0.6)
    high = np.array([0.7, 0.8, 0.85, 0.9, 0.95, 0.96, 0.97, 0.99])
    assert task_metrics.best_label_threshold(high, has) == pytest.approx(0.875)


def test_the_threshold_of_a_label_stays_at_one_half_where_none_is_better_or_nothing_tells():
    apart, has = np.array([0.1, 0.2, 0.7, 0.8, 0.9, 0.91, 0.92]), np.array([0, 0, 1, 1, 1, 1, 1])
    assert task_metrics.best_label_threshold(apart, has) == 0.5
    few = np.array([0.1, 0.2, 0.3, 0.31, 0.4, 0.41, 0.42])
    assert task_metrics.best_label_threshold(few, np.array([0, 0, 0, 1, 1, 1, 1])) == 0.5  # four rows
    assert task_metrics.best_label_threshold(few, np.zeros(7)) == 0.5
    assert task_metrics.best_label_threshold(np.full(7, np.nan), has) == 0.5


def test_no_threshold_of_a_label_has_a_better_f1():
    rng = np.random.default_rng(0)
    for _ in range(20):
        shares = np.round(rng.random(40), 2)  # some are equal
        has = rng.random(40) < shares
        found = task_metrics.best_label_threshold(shares, has)
        of = {t: sklearn.metrics.f1_score(has, shares >= t) for t in [*shares, found]}
        assert of[found] == pytest.approx(max(of.values()))


def test_matthews_correlation_is_that_of_scikit_learn():
    assert METRICS["matthews_correlation"]([1, 0, 1, 1], [1, 1, 1, 0]) == pytest.approx(-1 / 3)
    # (n * trace - sum of products of the margins) / sqrt(...): (5 * 3 - 9) / sqrt((25 - 9) * (25 - 9))
    assert METRICS["matthews_correlation"]([0, 1, 2, 2, 1], [0, 1, 2, 1, 2]) == pytest.approx(6 / 16)


def test_matthews_correlation_of_one_class_is_0_without_a_warning():
    for predictions, targets in ([[1, 1, 1], [0, 1, 1]], [[0, 1, 1], [1, 1, 1]], [[1, 1], [1, 1]], [[0], [1]]):
        assert METRICS["matthews_correlation"](predictions, targets) == 0


def test_confusion_matrix_has_rows_for_targets_and_columns_for_predictions():
    found = task_metrics.confusion_matrix([0, 0, 2, 2, 0, 2], [2, 0, 2, 2, 0, 1], 4)
    assert found.tolist() == [[2, 0, 0, 0], [0, 0, 1, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert np.issubdtype(found.dtype, np.integer)


def test_confusion_matrix_does_not_overflow_narrow_ids():
    found = task_metrics.confusion_matrix(np.array([99], np.uint8), np.array([99], np.uint8), 100)
    assert found[99, 99] == found.sum() == 1


@pytest.mark.parametrize("ids", [[0, 3], [-1, 0]])
def test_confusion_matrix_refuses_ids_that_have_no_row(ids):
    for both in ((ids, [0, 0]), ([0, 0], ids)):
        with pytest.raises(InputError, match="not all from 0 to 2, for num_labels=3"):
            task_metrics.confusion_matrix(*both, 3)


def test_majority_baseline_predicts_the_most_frequent_training_label():
    # MRPC's dev set: 279 of 408 are paraphrases
    targets = [1] * 279 + [0] * 129
    assert task_metrics.majority_baseline("accuracy", [0, 1, 1], targets) == pytest.approx(0.6838, abs=5e-5)
    assert task_metrics.majority_baseline("f1", [0, 1, 1], targets) == pytest.approx(0.8122, abs=5e-5)
    assert task_metrics.majority_baseline("accuracy", [0, 1, 0], targets) == pytest.approx(129 / 408)
    assert task_metrics.majority_baseline("accuracy", [2, 1, 1, 2], [1, 1, 1, 2]) == 0.75  # of two, the smaller


def test_majority_baseline_of_several_labels_is_the_most_frequent_row():
    train = [[1, 0], [0, 1], [1, 0], [1, 1]]
    assert task_metrics.majority_baseline("micro_f1", train, [[1, 0], [0, 1]]) == 0.5
    assert task_metrics.majority_baseline("macro_f1", train, [[1, 0], [0, 1]]) == pytest.approx(1 / 3)


def test_majority_baseline_of_a_correlation_is_0():
    assert task_metrics.majority_baseline("matthews_correlation", [0, 1, 1], [0, 1, 0]) == 0
    assert task_metrics.majority_baseline("pearson", [0.5, 2.5, 2.5], [1.0, 2.0, 3.0]) == 0


def test_majority_baseline_names_what_is_wrong():
    with pytest.raises(InputError, match="no metric 'acuracy'; did you mean 'accuracy'"):
        task_metrics.majority_baseline("acuracy", [0], [0])
    with pytest.raises(InputError, match="no training label"):
        task_metrics.majority_baseline("accuracy", [], [0])


# Numbers


def test_correlations_are_those_of_scipys_documentation():
    assert METRICS["pearson"]([1, 2, 3, 4, 5, 6, 7], [10, 9, 2.5, 6, 4, 3, 2]) == pytest.approx(-0.828503883588428)
    assert METRICS["spearman"]([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)
    assert METRICS["spearman"]([1.0, 10.0, 100.0], [1, 2, 3]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", [[2.0, 2.0, 2.0], np.full(3, 0.1, np.float32)])
def test_the_correlation_of_a_constant_is_0_without_a_warning(name, constant):
    assert METRICS[name](constant, [1, 2, 3]) == METRICS[name]([1, 2, 3], constant) == METRICS[name]([1], [2]) == 0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_of_a_diverged_run_score_nan_without_a_warning(name, value):
    assert math.isnan(METRICS[name]([1.0, value, 2.0], [1.0, 2.0, 3.0]))


def test_summary_has_the_sample_standard_deviation():
    found = task_metrics.summary([1.0, 2.0, 4.0, 9.0])
    assert found == {"mean": 4.0, "sd": pytest.approx(math.sqrt(38 / 3)), "median": 3.0, "min": 1.0, "max": 9.0}
    assert all(type(value) is float for value in found.values())


def test_summary_of_one_run_has_no_spread():
    assert task_metrics.summary([0.5]) == {"mean": 0.5, "sd": 0.0, "median": 0.5, "min": 0.5, "max": 0.5}


def test_summary_of_a_diverged_run_is_nan():
    assert all(math.isnan(value) for value in task_metrics.summary([0.5, math.nan]).values())


def test_summary_of_nothing_is_refused():
    with pytest.raises(InputError, match="no score to summarize"):
        task_metrics.summary([])


# Tags


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),  # seqeval's documentation
        ("B-PER I-PER", [("PER", 0, 1)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("I-PER I-PER B-PER O I-LOC", [("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4)]),  # IOB1: B- only between two of one type
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("B-PER I-PER E-PER S-LOC S-LOC", [("PER", 0, 2), ("LOC", 3, 3), ("LOC", 4, 4)]),  # BIOES
        ("B-PER I-PER L-PER U-LOC U-LOC", [("PER", 0, 2), ("LOC", 3, 3), ("LOC", 4, 4)]),  # BILOU
        ("B-PER L-PER I-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("E-PER E-PER O E-PER", [("PER", 0, 0), ("PER", 1, 1), ("PER", 3, 3)]),
        ("S-PER I-PER S-PER", [("PER", 0, 0), ("PER", 1, 1), ("PER", 2, 2)]),
        ("B I O B-", [("_", 0, 1), ("_", 3, 3)]),
        ("B-work-of-art I-work-of-art I-work", [("work-of-art", 0, 1), ("work", 2, 2)]),
    ],
)
def test_entities_are_found_in_every_scheme_and_in_malformed_tags(tags, expected):
    assert entities(tags.split()) == expected


@pytest.mark.parametrize("tag", ["NOUN", "O-PER", "b-PER", "X-PER", "BPER", "", "-PER"])
def test_a_tag_of_another_form_is_named(tag):
    with pytest.raises(InputError, match=f"tag '{tag}' is neither O nor B-, I-, .*tag_accuracy"):
        entities(["O", tag])


# seqeval's README
TAGS = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
PREDICTED_TAGS = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


def test_entity_scores_are_those_of_seqevals_readme():
    assert METRICS["entity_f1"](PREDICTED_TAGS, TAGS) == 0.5
    assert METRICS["tag_accuracy"](PREDICTED_TAGS, TAGS) == 0.8
    assert entity_report(PREDICTED_TAGS, TAGS) == {
        "MISC": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
        "PER": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1},
    }


def test_precision_is_of_the_predicted_and_recall_of_the_right_entities():
    predictions, targets = [["B-X", "B-X", "B-X", "O"]], [["B-X", "O", "O", "B-Y"]]
    assert METRICS["entity_precision"](predictions, targets) == pytest.approx(1 / 3)
    assert METRICS["entity_recall"](predictions, targets) == 0.5
    assert METRICS["entity_f1"](predictions, targets) == pytest.approx(0.4)
    assert entity_report(predictions, targets)["Y"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert entity_report(targets, predictions)["X"]["support"] == 3
    assert entity_report(targets, predictions)["Y"]["support"] == 0


def test_the_same_entity_in_another_sentence_is_another():
    assert METRICS["entity_f1"]([["B-X"], ["O"]], [["O"], ["B-X"]]) == 0


def test_an_entity_does_not_go_on_in_the_next_sentence():
    assert METRICS["entity_f1"]([["B-X"], ["I-X"]], [["B-X"], ["B-X"]]) == 1


def test_no_entity_in_either_scores_0_as_in_seqeval():
    assert METRICS["entity_f1"]([["O"]], [["O"]]) == METRICS["entity_recall"]([["B-X"]], [["O"]]) == 0
    assert METRICS["tag_accuracy"]([[]], [[]]) == 0
    assert entity_report([["O"]], [["O"]]) == {}


@pytest.mark.parametrize("name", ["entity_f1", "entity_precision", "entity_recall", "tag_accuracy"])
def test_a_sentence_of_another_length_is_named(name):
    with pytest.raises(InputError, match="sentence 1: 1 predictions for 2 targets"):
        METRICS[name]([["O"], ["O"]], [["O"], ["O", "O"]])


# Answers


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Denver Broncos!", "denver broncos"),
        ("  a  U.S.\tcompany's\nAnswer ", "us companys answer"),
        ("an apple, the other", "apple other"),
        ("theory of Ana", "theory of ana"),
        ("the", ""),
        ("“quoted” – 12.5%", "“quoted” – 125"),  # only ASCII's punctuation goes
        ("a-b", "ab"),  # punctuation goes first, so that its "a" is no article
    ],
)
def test_answers_are_normalized_as_in_squads_script(text, expected):
    assert task_metrics.normalize_answer(text) == expected


def test_the_best_of_the_right_answers_counts():
    golds = {"q": ["Denver Broncos", "The Broncos of Denver, Colorado"]}
    assert squad_scores({"q": "the broncos"}, golds) == {"exact_match": 0, "f1": pytest.approx(2 / 3)}
    assert squad_scores({"q": "Broncos of Denver"}, golds) == {"exact_match": 0, "f1": pytest.approx(6 / 7)}
    for right in ("denver broncos.", "broncos of denver colorado"):
        assert squad_scores({"q": right}, golds) == {"exact_match": 1, "f1": 1}


def test_f1_of_answers_counts_a_word_as_often_as_both_have_it():
    assert METRICS["squad_f1"](["x x x y"], [["x x z"]]) == pytest.approx(4 / 7)


ANSWERABLE = {"a": ["Paris"], "b": ["two words", "some other"], "c": [], "d": []}


def test_questions_without_an_answer_are_scored_apart():
    found = squad_scores({"a": "paris", "b": "words", "c": "", "d": "something"}, ANSWERABLE)
    assert found == {
        "exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3 + 1 + 0) / 4),
        "HasAns_exact_match": 0.5, "HasAns_f1": pytest.approx(5 / 6), "NoAns_exact_match": 0.5, "NoAns_f1": 0.5,
    }  # fmt: skip


def test_an_empty_answer_is_wrong_where_there_is_one():
    assert squad_scores({"q": ""}, {"q": ["Paris"]}) == {"exact_match": 0, "f1": 0}


def test_scores_are_apart_only_where_some_question_has_no_answer():
    assert set(squad_scores({"q": "x"}, {"q": ["x"]})) == {"exact_match", "f1"}
    assert set(squad_scores({"q": "x"}, {"q": []})) == {"exact_match", "f1", "NoAns_exact_match", "NoAns_f1"}


def test_a_right_answer_that_is_only_an_article_is_none_but_its_question_has_one():
    assert squad_scores({"q": "a", "r": "x"}, {"q": ["the"], "r": ["a", "x"]}) == {"exact_match": 1, "f1": 1}
    assert squad_scores({"q": ""}, {"q": ["a", "x"]}) == {"exact_match": 0, "f1": 0}
    assert set(squad_scores({"q": "a"}, {"q": ["the"]})) == {"exact_match", "f1"}


def test_squad_metrics_of_the_table_are_those_of_squad_scores():
    predictions, golds = ["paris", "words", "", "something"], list(ANSWERABLE.values())
    assert METRICS["squad_f1"](predictions, golds) == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)


def test_a_question_without_a_prediction_is_named():
    with pytest.raises(InputError, match=r"predictions and right answers: question 'b' has only one of them \(2 in all\)"):
        squad_scores({"a": "x"}, {"a": ["x"], "b": [], "c": []})
    with pytest.raises(InputError, match="question 'z' has only one"):
        squad_scores({"a": "x", "z": "x"}, {"a": ["x"]})
    with pytest.raises(InputError, match="no example to score"):
        squad_scores({}, {})
    with pytest.raises(InputError, match="null odds and right answers: question 'a'"):
        task_metrics.best_null_threshold({"a": "x"}, {}, {"a": ["x"]})


PREDICTIONS = {"a": "Paris", "b": "words", "c": "wrong", "d": "wrong"}


@pytest.mark.parametrize(
    "odds, expected",
    [
        # answered, the surest first: a (1), b (2/3); c and d cost 1 each, and answering none gives 2
        ({"a": -4.0, "b": -2.0, "c": 1.0, "d": 3.0}, (-0.5, (2 + 5 / 3) / 4)),
        ({"a": -4.0, "c": -3.0, "b": -2.0, "d": 3.0}, (-3.5, 3 / 4)),
        ({"c": -4.0, "a": -3.0, "b": -2.0, "d": 1.0}, (-0.5, (2 - 1 + 5 / 3) / 4)),
        ({"a": 1.0, "c": 1.0, "b": 2.0, "d": 2.5}, (2.25, (2 - 1 + 5 / 3) / 4)),  # equal odds go together
        ({"c": -4.0, "d": -3.0, "a": 0.5, "b": 1.0}, (-5.0, 2 / 4)),  # answering none is best: below the least
        ({"a": -4.0, "b": -4.0, "c": 8.0, "d": 8.0}, (2.0, (2 + 5 / 3) / 4)),
    ],
)
def test_the_best_null_threshold_is_that_of_all_cut_points(odds, expected):
    assert task_metrics.best_null_threshold(PREDICTIONS, odds, ANSWERABLE) == (expected[0], pytest.approx(expected[1]))


def test_answering_no_question_or_all_of_them_may_be_best():
    """Where odds are differences of logits, a threshold of 0 would answer all three."""
    texts, odds = {"1": "x", "2": "y", "3": "z"}, {"1": -5.0, "2": -4.0, "3": -3.0}
    assert task_metrics.best_null_threshold(texts, odds, {"1": [], "2": [], "3": ["q"]}) == (-6.0, pytest.approx(2 / 3))
    all_right = {question: [text] for question, text in texts.items()}
    assert task_metrics.best_null_threshold(texts, odds, all_right) == (-2.0, 1.0)


def test_a_question_without_prediction_moves_no_threshold():
    for odds in ({"a": 2.0, "b": 1.0}, {"a": 2.0, "b": 1e9}):
        assert task_metrics.best_null_threshold({"a": "x", "b": ""}, odds, {"a": ["x"], "b": []}) == (3.0, 1.0)
    assert task_metrics.best_null_threshold({"a": ""}, {"a": 1e9}, {"a": []}) == (0.0, 1.0)
    assert task_metrics.best_null_threshold({"a": "x"}, {"a": math.nan}, {"a": []}) == (0.0, 1.0)


@pytest.mark.parametrize("shift", [-40.0, 0.0, 40.0])
def test_predicting_with_the_best_threshold_gives_its_f1_and_no_other_gives_more(shift):
    rng = np.random.default_rng(0)
    for share in (0.1, 0.6, 0.9):
        golds = {q: ["right answer"] if rng.random() < share else ["the"] if rng.random() < 0.1 else [] for q in range(60)}
        predictions = {q: ["right answer", "answer", "wrong", ""][rng.choice(4, p=(0.3, 0.3, 0.3, 0.1))] for q in golds}
        odds = {q: shift + round(float(rng.normal() + (0 if golds[q] else 0.5)), 1) for q in golds}  # some are equal

        def f1_at(threshold, golds=golds, predictions=predictions, odds=odds):
            return squad_scores({q: "" if odds[q] > threshold else predictions[q] for q in golds}, golds)["f1"]

        threshold, score = task_metrics.best_null_threshold(predictions, odds, golds)
        assert f1_at(threshold) == pytest.approx(score)
        assert max(f1_at(t) for t in [*odds.values(), -1e6]) == pytest.approx(score)


# Rankings


def test_ndcg_is_that_computed_by_hand():
    # Wikipedia's example: DCG 3 + 2/log2(3) + 3/2 + 0 + 1/log2(6) + 2/log2(7) = 6.861; two more are judged 3 and 2
    found = METRICS["ndcg_at_10"]([[3, 2, 3, 0, 1, 2]], [[3, 2, 3, 0, 1, 2, 3, 2]])
    ideal = 3 + 3 / math.log2(3) + 3 / 2 + 2 / math.log2(5) + 2 / math.log2(6) + 2 / math.log2(7) + 1 / 3
    assert found == pytest.approx(6.861126688593502 / ideal)


def test_ndcg_is_of_the_first_ten_the_mean_over_queries():
    tenth, eleventh = [0] * 9 + [1], [0] * 10 + [1]
    assert METRICS["ndcg_at_10"]([tenth], [tenth]) == pytest.approx(1 / math.log2(11))
    assert METRICS["ndcg_at_10"]([eleventh, [1]], [eleventh, [1]]) == 0.5
    assert METRICS["ndcg_at_10"]([[1] * 10], [[1] * 30]) == pytest.approx(1)


def test_ndcg_counts_a_query_without_a_relevant_document_and_no_relevance_below_0():
    assert METRICS["ndcg_at_10"]([[1, 0], [0, 0], []], [[1], [0], []]) == pytest.approx(1 / 3)
    assert METRICS["ndcg_at_10"]([[-1, 1]], [[-1, 1]]) == pytest.approx(1 / math.log2(3))


def test_mrr_is_of_the_first_relevant_document_of_ten():
    ranked = [[0, 1, 1], [2, 0], [0] * 9 + [1], [0] * 10 + [1], [-1, 0], []]
    assert METRICS["mrr_at_10"](ranked, ranked) == pytest.approx((0.5 + 1 + 0.1 + 0 + 0 + 0) / 6)
    assert METRICS["mrr_at_10"](np.array([[0, 0, 1]]), [[1]]) == pytest.approx(1 / 3)


def test_importing_the_metrics_brings_in_no_heavy_library():
    command = "import sys, bert_jax.tasks.metrics; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.split()
    assert not {"sklearn", "scipy", "jax", "seqeval"} & set(loaded)
