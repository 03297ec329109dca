"""Scores of the predictions of a task, computed on the host with NumPy. No jax in here.

`METRICS` is the table: name -> function(predictions, targets) -> float, in natural units (shares from 0 to 1, correlations
from -1 to 1), where papers print a hundred times that. Every function raises InputError (a ValueError) where the two do not
belong together: another length or shape, or none at all. What a metric is of:

    accuracy, multiclass_macro_f1, matthews_correlation    class ids [N]
    f1                                                     class ids [N] of two classes; 1 is the positive one (GLUE)
    micro_f1, macro_f1                                     several labels an example: 0 or 1 [N, C]
    pearson, spearman                                      numbers [N]
    tag_accuracy, entity_f1, _precision, _recall           a list of tags a sentence
    squad_f1                                               an answer a question; targets: a list of right answers a question
    ndcg_at_10, mrr_at_10                                  relevances a query, as ranked; targets: as judged

Where nothing divides by nothing, the score is 0 and there is no warning: F1 of a class neither there nor predicted, Matthews'
and the other correlations of constants (scikit-learn and SciPy warn, SciPy's value is NaN). Numbers that are not finite, as a
diverged run predicts, give NaN.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import numpy as np

from bert_jax.errors import InputError, did_you_mean

Values = Sequence[Any] | np.ndarray  # numbers, tags, answers: a metric says which
Metric = Callable[[Any, Any], float]
Entity = tuple[str, int, int]
H = TypeVar("H", bound=Hashable)  # the id of a question
Scores = dict[str, float]


class Calibration(TypedDict):
    """The expected calibration error and its bins, each with `confidence`, `accuracy` and `count`."""

    expected_calibration_error: float
    bins: list[Scores]


class Details(TypedDict, total=False):
    """The scores of each class or type, and the calibration of the probabilities."""

    classes: dict[str, Scores]
    calibration: Calibration


def _check_lengths(predictions: Values, targets: Values, of: str = "") -> None:
    if len(predictions) != len(targets):
        raise InputError(f"{of}{len(predictions)} predictions for {len(targets)} targets; give one for each")


def _check_examples(predictions: Values, targets: Values) -> None:
    _check_lengths(predictions, targets)
    if len(targets) == 0:
        raise InputError("there is no example to score; give at least one")


def _arrays(predictions: Values, targets: Values, axes: str = "N") -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of one shape, with the axes that `axes` names."""
    _check_examples(predictions, targets)
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    if predictions.shape != targets.shape or targets.ndim != len(axes):
        shapes = f"predictions of shape {predictions.shape} and targets of shape {targets.shape}"
        raise InputError(f"{shapes}; this metric takes two of one shape [{', '.join(axes)}]")
    return predictions, targets


def _binary(predictions: Values, targets: Values, axes: str, otherwise: str) -> tuple[np.ndarray, np.ndarray]:
    predictions, targets = _arrays(predictions, targets, axes)
    other = set(np.unique([predictions, targets]).tolist()) - {0, 1}
    if other:
        raise InputError(f"this metric is of zeros and ones, and there is {min(other)}; {otherwise}")
    return predictions, targets


# Probabilities


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of classes that exclude each other, by their logits [..., C], in the type of `logits`."""
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def logistic(logits: np.ndarray) -> np.ndarray:
    """Returns the probability of each label by itself, in the type of `logits`."""
    return np.exp(-np.logaddexp(0, -logits))


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the negative log-likelihood of class ids [N] by logits [N, C]."""
    logits = logits.astype(np.float64)
    return np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(targets)), targets]


# Classes


def accuracy(predictions: Values, targets: Values) -> float:
    """Share of examples whose class [N] is right."""
    predictions, targets = _arrays(predictions, targets)
    return float(np.mean(predictions == targets))


def _f1(predictions: np.ndarray, targets: np.ndarray, average: str) -> float:
    from sklearn.metrics import f1_score  # type: ignore[import-untyped]  # here: it takes a second to import

    return float(f1_score(targets, predictions, average=average, zero_division=0))


def f1(predictions: Values, targets: Values) -> float:
    """F1 of class 1 of two, as GLUE scores MRPC and QQP."""
    return _f1(*_binary(predictions, targets, "N", "for more than two classes use multiclass_macro_f1"), "binary")


def multiclass_macro_f1(predictions: Values, targets: Values) -> float:
    """The mean of the classes' F1, over the classes that occur in either (scikit-learn's macro average)."""
    return _f1(*_arrays(predictions, targets), "macro")


def micro_f1(predictions: Values, targets: Values) -> float:
    """F1 over all labels of all examples together; both are 0 or 1 [N, C]."""
    predictions, targets = _binary(predictions, targets, "NC", "give 1 where the example has the label")
    return _f1(predictions.ravel(), targets.ravel(), "binary")


def macro_f1(predictions: Values, targets: Values) -> float:
    """The mean of the C labels' F1; both are 0 or 1 [N, C]. A label neither there nor predicted counts as 0."""
    predictions, targets = _binary(predictions, targets, "NC", "give 1 where the example has the label")
    # a column at a time: scikit-learn takes [N, 1] for two classes
    return float(np.mean([_f1(*columns, "binary") for columns in zip(predictions.T, targets.T, strict=True)]))


_LEAST_ROWS = 5  # that a label must have for a threshold of its own: of fewer it would be chance


def best_label_threshold(probabilities: Values, targets: Values) -> float:
    """The probability from which on to give a label, so that its F1 is best (Lewis et al., 1996; SCut of Yang, 2001).

    Args:
      probabilities: of one label, [N].
      targets: whether each of N has it; bool, or 0 and 1.

    Of equally good cut points the one nearest to 0.5; halfway between the probabilities on both sides of it, or 0.5 itself. It
    is 0.5 too where fewer than 5 of N have the label, and where probabilities are not finite.
    """
    from sklearn.metrics import precision_recall_curve

    probabilities, targets = _arrays(probabilities, targets)
    if targets.sum() < _LEAST_ROWS or not np.isfinite(probabilities).all():
        return 0.5
    precision, recall, cuts = precision_recall_curve(targets, probabilities.astype(np.float64))
    scores = 2 * (precision * recall / np.maximum(precision + recall, 1e-12))[:-1]
    below = np.concatenate([[0.0], cuts[:-1]])  # from there to the cut, the same examples have the label
    points = np.where((below < 0.5) & (cuts >= 0.5), 0.5, (below + cuts) / 2)[scores > scores.max() - 1e-9]
    return float(points[np.argmin(abs(points - 0.5))])


def matthews_correlation(predictions: Values, targets: Values) -> float:
    """Matthews' correlation of class ids [N], of any number of classes (CoLA, AX). 0 where either has one class only."""
    from sklearn.metrics import matthews_corrcoef

    predictions, targets = _arrays(predictions, targets)
    if len(np.unique([predictions, targets])) == 1:  # scikit-learn warns
        return 0.0
    return float(matthews_corrcoef(targets, predictions))


def confusion_matrix(predictions: Values, targets: Values, num_labels: int) -> np.ndarray:
    """Returns the number of examples of class `row` that were predicted as `column`: int [num_labels, num_labels]."""
    predictions, targets = _arrays(predictions, targets)
    if min(predictions.min(), targets.min()) < 0 or max(predictions.max(), targets.max()) >= num_labels:
        raise InputError(f"class ids are not all within 0 and {num_labels - 1}, for num_labels={num_labels}")
    cells = targets.astype(np.int64) * num_labels + predictions.astype(np.int64)
    return np.bincount(cells, minlength=num_labels**2).reshape(num_labels, num_labels)


def majority_baseline(metric: str, train_targets: Values, targets: Values) -> float:
    """The score of predicting for each of `targets` what is most frequent in `train_targets` (of several, the smallest).

    A run that scores no better has learnt nothing. For class ids [N], and for labels [N, C], where it is the most frequent
    row; where the metric is a correlation, it is 0.
    """
    if metric not in METRICS:
        raise InputError(f"no metric {metric!r}{did_you_mean(metric, METRICS)}; known: {', '.join(METRICS)}")
    if len(train_targets) == 0:
        raise InputError("there is no training label, so that none is the most frequent; give at least one")
    values, counts = np.unique(np.asarray(train_targets), axis=0, return_counts=True)
    return METRICS[metric](np.repeat(values[[counts.argmax()]], len(targets), axis=0), targets)


def roc_auc(scores: Values, targets: Values) -> float | None:
    """Area under the ROC curve: how often an example that has the class scores higher than one that has not; ties count half.

    Args:
      scores: of the class, [N].
      targets: whether each of N has it; bool, or 0 and 1.

    None where all have it or none has: there is nothing to compare. NaN where scores are not finite.
    """
    from sklearn.metrics import roc_auc_score

    scores, targets = _arrays(scores, targets)
    if targets.min() == targets.max():
        return None
    return float(roc_auc_score(targets, scores)) if np.isfinite(scores).all() else math.nan


def macro_roc_auc(scores: Values, targets: Values) -> float | None:
    """The mean of `roc_auc` over the classes that some examples have and others have not; both [N, C]. None without any.

    Of one class against the rest, as scikit-learn's `multi_class="ovr"`; of two classes it is that of either.
    """
    each = [roc_auc(*columns) for columns in zip(*(np.asarray(x).T for x in (scores, targets)), strict=True)]
    there = [area for area in each if area is not None]
    return float(np.mean(there)) if there else None


def class_report(
    predictions: Values, targets: Values, scores: Values, labels: Sequence[str], thresholds: Sequence[float] = ()
) -> dict[str, dict[str, float]]:
    """{label: {precision, recall, f1, support, roc_auc?, threshold?}}; what divides nothing by nothing is 0.

    Args:
      predictions: whether each example was given each label; bool [N, C].
      targets: whether it has it; bool [N, C].
      scores: of each label, by which `roc_auc` is; [N, C].
      labels: names of the C.
      thresholds: the probabilities from which on labels are given, to be shown.
    """
    from sklearn.metrics import precision_recall_fscore_support

    found = {}
    for i, (name, *columns) in enumerate(zip(labels, *(np.asarray(x).T for x in (predictions, targets, scores)), strict=True)):
        given, right, own = columns
        rates = precision_recall_fscore_support(right, given, average="binary", zero_division=0)[:3]
        each = dict(zip(("precision", "recall", "f1"), map(float, rates), strict=True)) | {"support": int(np.sum(right))}
        area = roc_auc(own, right)
        found[name] = each | ({} if area is None else {"roc_auc": area}) | ({"threshold": thresholds[i]} if thresholds else {})
    return found


def calibration(confidences: Values, hits: Values, bins: int = 10) -> Calibration:
    """Returns the expected calibration error (Guo et al., 2017, equation 3), and its bins.

    Args:
      confidences: probabilities, [N].
      hits: whether what each is of was right; bool [N].
      bins: as many, equally wide.

    Returns {"expected_calibration_error", "bins": [{"confidence", "accuracy", "count"}]}: means over the bins that are not empty.
    """
    confidences, hits = _arrays(confidences, hits)
    place = np.minimum((confidences * bins).astype(int), bins - 1)
    groups = [place == number for number in range(bins) if (place == number).any()]
    each = [
        {"confidence": float(confidences[g].mean()), "accuracy": float(hits[g].mean()), "count": int(g.sum())} for g in groups
    ]
    error = sum(of["count"] * abs(of["confidence"] - of["accuracy"]) for of in each) / len(hits)
    return {"expected_calibration_error": error, "bins": each}


# Numbers


def _correlation(name: str, predictions: Values, targets: Values) -> float:
    from scipy import stats  # type: ignore[import-untyped]

    predictions, targets = _arrays(predictions, targets)
    both = np.asarray([predictions, targets], np.float64)
    if not np.isfinite(both).all():
        return math.nan
    return float(getattr(stats, name)(*both).statistic) if np.ptp(both, axis=1).all() else 0.0


def pearson(predictions: Values, targets: Values) -> float:
    """Pearson's correlation of numbers [N]; 0 where either is constant."""
    return _correlation("pearsonr", predictions, targets)


def spearman(predictions: Values, targets: Values) -> float:
    """Spearman's rank correlation of numbers [N], ties by their mean rank; 0 where either is constant."""
    return _correlation("spearmanr", predictions, targets)


def summary(values: Sequence[float]) -> dict[str, float]:
    """mean, sd, median, min and max of the scores of several runs; sd is the sample's (ddof=1), and 0 of a single run."""
    if len(values) == 0:
        raise InputError("there is no score to summarize; give at least one")
    array = np.asarray(values, np.float64)
    sd = array.std(ddof=1) if len(array) > 1 else 0.0
    found = {"mean": array.mean(), "sd": sd, "median": np.median(array), "min": array.min(), "max": array.max()}
    return {name: float(value) for name, value in found.items()}


# Tags

_BIES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}  # BILOU's last and unit are BIOES's end and single


def _split_tag(tag: str) -> tuple[str, str]:
    """Returns the prefix and the type of a tag: "B-PER" -> ("B", "PER"); no type is the type "_", as in seqeval."""
    if tag == "O":
        return "O", ""
    prefix, _, name = tag.partition("-")
    if prefix not in _BIES:
        known = "neither O nor one of B- I- E- S- L- U- and a type"
        raise InputError(f"tag {tag!r} is {known}; tags.entity_tags reads other schemes, and classes of words have tag_accuracy")
    return _BIES[prefix], name or "_"


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence: (type, first word, last word), from tags in BIO (IOB1, IOB2), BIOES or BILOU.

    As seqeval's get_entities finds them in its default mode, which is conlleval's: malformed tags count too, an I- after O or
    after another type starts an entity. The code is our own, and takes BILOU's L- and U- for E- and S-, which seqeval does in
    strict mode only. Raises InputError for a tag of another form.

    >>> entities(["B-PER", "I-PER", "O", "B-LOC"])
    [('PER', 0, 1), ('LOC', 3, 3)]
    """
    found = []
    start, previous, previous_name = 0, "O", ""
    for i, (prefix, name) in enumerate([*map(_split_tag, tags), ("O", "")]):
        starts = prefix != "O" and (prefix in "BS" or previous in "ES" or name != previous_name)
        if previous != "O" and (prefix == "O" or starts):
            found.append((previous_name, start, i - 1))
        if starts:
            start = i
        previous, previous_name = prefix, name
    return found


def _check_sentences(predictions: Values, targets: Values) -> None:
    _check_examples(predictions, targets)
    for i, (predicted, right) in enumerate(zip(predictions, targets, strict=True)):
        _check_lengths(predicted, right, f"sentence {i}: ")


def tag_accuracy(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """Share of words whose tag is right, O among them; 0 where there is no word."""
    _check_sentences(predictions, targets)
    right = [p == t for sentence in zip(predictions, targets, strict=True) for p, t in zip(*sentence, strict=True)]
    return sum(right) / max(1, len(right))


def _entity_scores(predictions: Values, targets: Values) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """precision, recall, f1 and support: of all entities together (micro average), and of each type."""
    _check_sentences(predictions, targets)
    predicted = {(i, *entity) for i, tags in enumerate(predictions) for entity in entities(tags)}
    right = {(i, *entity) for i, tags in enumerate(targets) for entity in entities(tags)}
    ours, theirs, hits = (Counter(name for _, name, _, _ in found) for found in (predicted, right, predicted & right))
    each = {name: rates(hits[name], ours[name], theirs[name]) for name in sorted(ours | theirs)}
    return rates(hits.total(), ours.total(), theirs.total()), each


def rates(hits: int, ours: int, theirs: int) -> dict[str, float]:
    """Returns precision, recall, F1 and support of `hits` among `ours`, which are predicted, and `theirs`, which are right."""
    found = {"precision": hits / max(1, ours), "recall": hits / max(1, theirs), "f1": 2 * hits / max(1, ours + theirs)}
    return {**found, "support": theirs}


def entity_f1(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """F1 of `entities` over all sentences and types (micro average): an entity is right where type and both ends are."""
    return _entity_scores(predictions, targets)[0]["f1"]


def entity_precision(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """Share of the predicted entities that are right."""
    return _entity_scores(predictions, targets)[0]["precision"]


def entity_recall(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """Share of the right entities that are predicted."""
    return _entity_scores(predictions, targets)[0]["recall"]


def entity_report(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """{type: {precision, recall, f1, support}} of the types in either; support: how many of it there are in `targets`."""
    return _entity_scores(predictions, targets)[1]


# Answers, by the rules of SQuAD's evaluate-v2.0.py. Its answers that are nothing but an article are no right answers, and two
# empty answers agree; evaluate-v1.1.py is otherwise the same.

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation (ASCII's) and the words a, an, the; one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _answer_scores(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1 of words) with that right answer that gives most; with no right answer, the empty one is right."""

    def word_f1(predicted: list[str], right: list[str]) -> float:
        if not predicted or not right:
            return float(predicted == right)
        return 2 * (Counter(predicted) & Counter(right)).total() / (len(predicted) + len(right))

    predicted = normalize_answer(prediction)
    right = [gold for gold in map(normalize_answer, golds) if gold] or [""]
    return float(predicted in right), max(word_f1(predicted.split(), gold.split()) for gold in right)


def _check_questions(golds: Mapping[H, object], given: Mapping[H, object], what: str) -> None:
    odd = [*(q for q in golds if q not in given), *(q for q in given if q not in golds)]
    if odd:
        raise InputError(f"{what} and right answers: question {odd[0]!r} has only one of them (so have {len(odd)}); give both")
    _check_examples([*given], [*golds])


def squad_scores(predictions: Mapping[H, str], golds: Mapping[H, Sequence[str]]) -> dict[str, float]:
    """SQuAD's scores, from 0 to 1 (the official script prints a hundred times that).

    Args:
      predictions: an answer a question id; "" for no answer.
      golds: the right answers of the same questions; none where it cannot be answered.

    Returns:
      exact_match and f1, and where some questions cannot be answered the same of those that can (HasAns_exact_match, HasAns_f1)
      and of those that cannot (NoAns_exact_match, NoAns_f1).
    """
    _check_questions(golds, predictions, "predictions")
    scores = {question: _answer_scores(predictions[question], golds[question]) for question in golds}
    groups = {"": list(golds)}
    if not all(golds.values()):
        groups |= {"HasAns_": [q for q in golds if golds[q]], "NoAns_": [q for q in golds if not golds[q]]}
    return {
        prefix + name: sum(scores[q][i] for q in questions) / len(questions)
        for prefix, questions in groups.items()
        if questions
        for i, name in enumerate(("exact_match", "f1"))
    }


def best_null_threshold(
    predictions: Mapping[H, str], null_odds: Mapping[H, float], golds: Mapping[H, Sequence[str]]
) -> tuple[float, float]:
    """The threshold on `null_odds` that gives the best F1 if questions above it are not answered, and that F1.

    The best over all cut points, from none answered to all, as find_best_thresh of SQuAD's evaluate-v2.0.py means it; of equal
    ones that which answers fewest questions. That script takes odds for probabilities and says 0 where answering none is best;
    differences of logits may be below 0, and there 0 would answer. The threshold lies halfway between the odds on both sides of
    the cut, so that it does not depend on the last bit of one question's odds, or 1 past the least or the greatest.

    Args:
      predictions: by question the best answer that is not empty; "" where there is no such.
      null_odds: how much likelier it is that there is no answer.
      golds: the right answers, none where there is none.
    """
    _check_questions(golds, predictions, "predictions")
    _check_questions(golds, null_odds, "null odds")
    unanswered = {question: _answer_scores("", golds[question])[1] for question in golds}
    some = [question for question in golds if predictions[question] and math.isfinite(null_odds[question])]
    gains = [_answer_scores(predictions[question], golds[question])[1] - unanswered[question] for question in some]
    odds, place = np.unique([null_odds[question] for question in some], return_inverse=True)  # equal odds go together
    totals = sum(unanswered.values()) + np.cumsum([0.0, *np.bincount(place, gains)])  # with the 0, 1, 2, ... least odds answered
    cut = int(np.argmax(totals > totals.max() - 1e-9))  # sums of floats: equal ones may differ in the last bit
    edges = [odds[0] - 2, *odds, odds[-1] + 2] if some else [0.0, 0.0]
    return float(edges[cut] + edges[cut + 1]) / 2, float(totals[cut]) / len(golds)


def _squad(name: str, predictions: Values, targets: Values) -> float:
    _check_examples(predictions, targets)
    return squad_scores(dict(enumerate(predictions)), dict(enumerate(targets)))[name]


def squad_f1(predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> float:
    """`squad_scores`'s f1, of lists in one order."""
    return _squad("f1", predictions, targets)


# Rankings


def ndcg_at_10(predictions: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]) -> float:
    """Normalized discounted cumulative gain of the first ten, the mean over the queries (Järvelin & Kekäläinen, 2002).

    Args:
      predictions: the relevances of a query's documents in the order they were ranked, the first first; 0: not relevant.
      targets: those of all documents judged for the query, in any order, ranked or not.

    The gain is the relevance itself and the discount log2(1 + rank), as in trec_eval and scikit-learn; a relevance below 0
    counts as 0. A query without a relevant document scores 0.
    """
    _check_examples(predictions, targets)

    def dcg(relevances: Sequence[float] | np.ndarray) -> float:
        first = np.maximum(np.asarray(relevances, np.float64)[:10], 0)
        return float(first @ (1 / np.log2(np.arange(len(first)) + 2)))

    ideals = [dcg(np.sort(np.asarray(judged))[::-1]) for judged in targets]
    return sum(dcg(ranked) / ideal for ranked, ideal in zip(predictions, ideals, strict=True) if ideal) / len(ideals)


def mrr_at_10(predictions: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]) -> float:
    """Mean over the queries of 1 / rank of the first relevant document, 0 where none is among the first ten.

    The arguments are `ndcg_at_10`'s; `targets` are counted, not read.
    """
    _check_examples(predictions, targets)
    ranks = [next((r for r, relevance in enumerate(ranked[:10], 1) if relevance > 0), math.inf) for ranked in predictions]
    return sum(1 / rank for rank in ranks) / len(ranks)


METRICS: dict[str, Metric] = {
    "accuracy": accuracy, "f1": f1, "multiclass_macro_f1": multiclass_macro_f1, "micro_f1": micro_f1, "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation, "pearson": pearson, "spearman": spearman, "tag_accuracy": tag_accuracy,
    "entity_f1": entity_f1, "entity_precision": entity_precision, "entity_recall": entity_recall, "squad_f1": squad_f1,
    "ndcg_at_10": ndcg_at_10, "mrr_at_10": mrr_at_10,
}  # fmt: skip
