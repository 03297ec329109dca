"""Hard negatives by their scores: of a ranking, or of a teacher."""

import doctest

import numpy as np
import pytest

from bert_jax.data.records import Record, Records
from bert_jax.tasks import mining
from bert_jax.tasks.beir import Collection, Judged
from bert_jax.tasks.mining import Margin, Teacher, mine
from bert_jax.tasks.ranking import Ranking


def test_the_example_of_margins_is_right():
    assert doctest.testmod(mining).failed == 0


def mined(scores, margin, teacher=None, positive=2, negatives=3):
    """The rows of a query with the documents a, b, c, ..., of which one answers it; `scores` of the ranking fall."""
    records = Records()
    for i in range(len(scores)):
        records.append(Record((chr(97 + i),), None, f"d{i}", f"f:{i}"))
    query = Record(("q",), Judged({positive: 1}, Collection(records)), "q", "f:1")
    ranking = Ranking(np.arange(len(scores)), np.array(scores, np.float32))
    return list(mine([query], [ranking], negatives, 0, margin, teacher))


@pytest.mark.parametrize(
    ("scores", "margin", "expected"),
    [
        ([0.9, 0.8, 0.5, 0.49, 0.4, 0.3], Margin(0.9), ["e", "f"]),  # at most 0.45
        ([-0.1, -0.3, -0.5, -0.52, -0.6, -0.7], Margin(0.9), ["e", "f"]),  # at most -0.55, not -0.45
        ([0.1, 0.02, 0.0, -0.1, -0.2, -0.3], Margin(0.9), ["d", "e", "f"]),
        ([0.9, 0.8, 0.5, 0.45, 0.4, 0.3], Margin(None, 0.08), ["e", "f"]),
        ([-0.1, -0.3, -0.5, -0.55, -0.6, -0.7], Margin(None, 0.15), ["f"]),
        ([0.9, 0.8, 0.5, 0.45, 0.4, 0.3], Margin(0.9, 0.15), ["f"]),  # both hold
    ],
)
def test_negatives_score_below_the_document_by_the_margin_whatever_its_sign(scores, margin, expected):
    (row,) = mined(scores, margin)
    assert [row["query"], row["positive"], *(row[f"negative_{i}"] for i in (1, 2, 3))] == [
        "q", "c", *expected, *[""] * (3 - len(expected)),
    ]  # fmt: skip


def test_documents_that_answer_the_text_of_a_query_by_another_id_are_no_negatives_and_unusable_ones_no_positives():
    records = Records()
    for i, text in enumerate(["a", "b", "", "q", "c", "d"]):
        records.append(Record((text,), None, f"d{i}", f"f:{i}"))
    collection, ranking = Collection(records), Ranking(np.arange(6), np.linspace(1, 0, 6, dtype=np.float32))
    queries = [
        Record(("q",), Judged({0: 1, 2: 1, 3: 2, 5: 0}, collection), "q1", "f:1"),  # an empty document, and the query itself
        Record(("q",), Judged({4: 1}, collection), "q2", "f:2"),
    ]
    rows = list(mine(queries, [ranking] * 2, 2, 0, Margin()))
    assert rows == [
        {"query": "q", "positive": "a", "negative_1": "b", "negative_2": "d"},
        {"query": "q", "positive": "c", "negative_1": "d", "negative_2": ""},
    ]
    assert mining.unusable(queries) == ["f:1"]


def test_a_teacher_scores_the_document_and_the_first_candidates():
    asked, logits = [], {"a": 3.0, "b": -2.0, "c": 1.0, "d": 0.9, "e": -1.0, "f": -3.0}

    def score(pairs):
        asked.extend(pairs)
        return np.array([logits[text] for _, text in pairs], np.float32)

    teacher = Teacher(score, lambda x: 1 / (1 + np.exp(-x)), candidates=4)
    (row,) = mined([0.9, 0.8, 0.5, 0.45, 0.4, 0.3], Margin(0.9), teacher)
    assert asked == [("q", text) for text in "cabde"]
    assert row == {
        "query": "q", "positive": "c", "negative_1": "b", "negative_2": "e", "negative_3": "", "scores": [1.0, -2.0, -1.0, None],
    }  # fmt: skip
