"""Scores of rankings by trec_eval's rules."""

import re

import numpy as np
import pytest

from bert_jax.errors import InputError
from bert_jax.tasks.ranking import Ranking, by_descending_id, in_run, merge, ranking_scores, read_run, write_run


def runs(seed):
    """Rankings of twelve queries with many equal scores, made as the ones that pytrec_eval scored were."""
    rng, ids = np.random.default_rng(seed), [str(i) for i in range(300)]
    place = {d: i for i, d in enumerate(by_descending_id(ids))}
    ranked, judged = [], []
    for q in range(12):
        documents, scores = rng.permutation(300)[:200], rng.integers(0, 12, 200) / np.float32(8)
        chosen, grades = rng.permutation(300)[:40], rng.integers(-1, 4, 40)
        relevances = dict(zip(chosen.tolist(), grades.tolist(), strict=True))
        scores = np.array([score + (relevances.get(d, 0) > 0) for d, score in zip(documents.tolist(), scores, strict=True)])
        if q == 3:  # without a relevant document
            relevances = dict.fromkeys(relevances, 0)
        order = np.array([place[d] for d in documents.tolist()])
        halves = [Ranking(order[part], scores[part].astype(np.float32)) for part in (slice(0, 90), slice(90, None))]
        best = merge(merge(None, halves[0]), halves[1])
        by_place = by_descending_id(ids)
        ranked.append([relevances.get(by_place[i], 0) for i in best.documents.tolist()])
        judged.append(list(relevances.values()))
    return ranked, judged


def test_scores_of_tied_runs_are_those_of_trec_eval():
    """The values are those of pytrec_eval (pytrec_eval-terrier 0.5.11) for the same run, means over all judged queries."""
    found = ranking_scores(*runs(5))
    for name, value in PYTREC_EVAL.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_a_judged_query_without_a_ranking_scores_zero():
    found = ranking_scores([[1, 0], []], [[1], [2, 1]])
    assert found == {
        "ndcg_at_10": 0.5,
        "mrr_at_10": 0.5,
        "map": 0.5,
        "recall_at_1": 0.5,
        "recall_at_10": 0.5,
        "recall_at_100": 0.5,
    }


def test_a_run_has_the_lines_of_trec_eval(tmp_path):
    ranking = Ranking(np.array([2, 0]), np.array([0.5, 0.25], np.float32))
    write_run(tmp_path / "dev.trec", ["q1"], [ranking], ["a", "b", "c"])
    assert (tmp_path / "dev.trec").read_text() == "q1 Q0 c 1 0.5 bert_jax\nq1 Q0 a 2 0.25 bert_jax\n"
    (found,) = read_run(tmp_path / "dev.trec", ["a", "b", "c"]).values()
    assert (found.documents.tolist(), found.scores.tolist()) == ([2, 0], [0.5, 0.25])


def test_ids_with_blanks_and_of_any_script_come_back_from_a_run(tmp_path):
    ids, path = ["annual report.pdf", "a\tb", "no\u00a0break", "全角\u3000空白", "line\u2028end"], tmp_path / "a.trec"
    ranking = Ranking(np.arange(5), np.linspace(1, 0, 5, dtype=np.float32))
    write_run(path, ["a query"], [ranking], ids)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    assert all(len(re.split("[ \t]", line)) == 6 for line in lines)  # as trec_eval reads them
    assert lines[0] == "a%20query Q0 annual%20report.pdf 1 1 bert_jax"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as Windows saves it
    found = read_run(path, ids)
    assert [*found] == [in_run("a query")]
    assert found[in_run("a query")].documents.tolist() == ranking.documents.tolist()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 a 1 0.5", ":2: 5 fields"),
        ("q1 Q0 z 2 0.5 x", ":2: the document 'z' is not in"),
        ("q1 Q0 a 2 0.5 x", ":2: query 'q1' has the document 'a' twice"),
        ("q1 Q0 b 2 half x", ":2: the score 'half'"),
        ("q1 Q0 b 2 nan x", ":2: the score 'nan' is not a number"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_its_line(line, message, tmp_path):
    (tmp_path / "first.trec").write_text(f"q1 Q0 a 1 0.5 x\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / "first.trec", ["a", "b"])


PYTREC_EVAL = {
    "ndcg_at_10": 0.6225515561206081, "map": 0.476681630482477, "recall_at_1": 0.03612332112332113,
    "recall_at_10": 0.33747252747252743, "recall_at_100": 0.6188278388278389,
}  # fmt: skip
