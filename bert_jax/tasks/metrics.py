"""Scores of the predictions of a task, computed on the host with NumPy. No jax in here.

`METRICS` maps names to functions (predictions, targets) -> float, from 0 to 1 (correlations from -1). Each raises InputError
where the lengths or shapes differ or there is no example. The arguments:

    accuracy, multiclass_macro_f1, matthews_correlation    class ids [N]
    f1                                                     class ids [N] of two classes; 1 is the positive one (GLUE)
    micro_f1, macro_f1                                     several labels per example: 0 or 1 [N, C]
    pearson, spearman                                      numbers [N]
    tag_accuracy, entity_f1, _precision, _recall           a list of tags per sentence
    squad_f1                                               an answer per question; targets: a list of right answers per question
    ndcg_at_10, mrr_at_10                                  the relevances of the ranked documents of each query; targets: of all

0 / 0 is 0, without a warning: the F1 of a class that is neither present nor predicted, correlations of constants. Predictions
that are not finite give NaN.
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
    _check_examples(predictions, targets)
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    if predictions.shape != targets.shape or targets.ndim != len(axes):
        shapes = f"predictions of shape {predictions.shape} and targets of shape {targets.shape}"
        raise InputError(f"{shapes}; this metric takes two arrays of one shape [{', '.join(axes)}]")
    return predictions, targets


def _binary(predictions: Values, targets: Values, axes: str, otherwise: str) -> tuple[np.ndarray, np.ndarray]:
    predictions, targets = _arrays(predictions, targets, axes)
    other = set(np.unique([predictions, targets]).tolist()) - {0, 1}
    if other:
        raise InputError(f"this metric takes zeros and ones, but found {min(other)}; {otherwise}")
    return predictions, targets


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of classes that exclude each other from logits [..., C], in their type."""
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def logistic(logits: np.ndarray) -> np.ndarray:
    """Returns the probability of each label by itself, in the type of its logit."""
    return np.exp(-np.logaddexp(0, -logits))


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the negative log-likelihood of class ids [N] under logits [N, C]."""
    logits = logits.astype(np.float64)
    return np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(targets)), targets]


def accuracy(predictions: Values, targets: Values) -> float:
    """Returns the share of examples whose class is right."""
    predictions, targets = _arrays(predictions, targets)
    return float(np.mean(predictions == targets))


def _f1(predictions: np.ndarray, targets: np.ndarray, average: str) -> float:
    from sklearn.metrics import f1_score  # type: ignore[import-untyped]  # here: it takes a second to import

    return float(f1_score(targets, predictions, average=average, zero_division=0))


def f1(predictions: Values, targets: Values) -> float:
    """Returns the F1 of class 1 of two, as GLUE scores MRPC and QQP."""
    return _f1(*_binary(predictions, targets, "N", "for more than two classes use multiclass_macro_f1"), "binary")


def multiclass_macro_f1(predictions: Values, targets: Values) -> float:
    """Returns the mean F1 of the classes that occur in predictions or targets (scikit-learn's macro average)."""
    return _f1(*_arrays(predictions, targets), "macro")


def micro_f1(predictions: Values, targets: Values) -> float:
    """Returns the F1 over all labels of all examples together."""
    predictions, targets = _binary(predictions, targets, "NC", "give 1 where the example has the label")
    return _f1(predictions.ravel(), targets.ravel(), "binary")


def macro_f1(predictions: Values, targets: Values) -> float:
    """Returns the mean F1 of the C labels; a label that is neither present nor predicted counts as 0."""
    predictions, targets = _binary(predictions, targets, "NC", "give 1 where the example has the label")
    # One column at a time, because scikit-learn reads [N, 1] as two classes.
    return float(np.mean([_f1(*columns, "binary") for columns in zip(predictions.T, targets.T, strict=True)]))


def best_label_threshold(probabilities: Values, targets: Values) -> float:
    """Returns the least probability with which to give a label, for the best F1 (Lewis et al., 1996; SCut of Yang, 2001).

    The threshold is halfway between two probabilities, or 0.5; among equally good ones it is the one nearest to 0.5. It is 0.5
    where fewer than 5 examples have the label, as another would be chance, and where probabilities are not finite.

    Args:
      probabilities: [N], of the label.
      targets: bool, or 0 and 1, [N]: whether each example has the label.
    """
    from sklearn.metrics import precision_recall_curve

    probabilities, targets = _arrays(probabilities, targets)
    if targets.sum() < 5 or not np.isfinite(probabilities).all():
        return 0.5
    precision, recall, cuts = precision_recall_curve(targets, probabilities.astype(np.float64))
    scores = 2 * (precision * recall / np.maximum(precision + recall, 1e-12))[:-1]
    below = np.concatenate([[0.0], cuts[:-1]])  # thresholds from here to the cut give the label to the same examples
    points = np.where((below < 0.5) & (cuts >= 0.5), 0.5, (below + cuts) / 2)[scores > scores.max() - 1e-9]
    return float(points[np.argmin(abs(points - 0.5))])


def matthews_correlation(predictions: Values, targets: Values) -> float:
    """Returns Matthews' correlation of any number of classes (CoLA, AX); 0 where all predictions and targets are one class."""
    from sklearn.metrics import matthews_corrcoef

    predictions, targets = _arrays(predictions, targets)
    if len(np.unique([predictions, targets])) == 1:  # scikit-learn warns
        return 0.0
    return float(matthews_corrcoef(targets, predictions))


def confusion_matrix(predictions: Values, targets: Values, num_labels: int) -> np.ndarray:
    """Returns the number of examples of class `row` that were predicted as `column`: int [num_labels, num_labels]."""
    predictions, targets = _arrays(predictions, targets)
    if min(predictions.min(), targets.min()) < 0 or max(predictions.max(), targets.max()) >= num_labels:
        raise InputError(f"class ids are not all from 0 to {num_labels - 1}, for num_labels={num_labels}")
    cells = targets.astype(np.int64) * num_labels + predictions.astype(np.int64)
    return np.bincount(cells, minlength=num_labels**2).reshape(num_labels, num_labels)


def majority_baseline(metric: str, train_targets: Values, targets: Values) -> float:
    """Returns the score of always predicting the most frequent of `train_targets` (ties: the smallest).

    It is the score of a run that learnt nothing. `train_targets` are class ids [N] or labels [N, C]; for correlations it is 0.
    """
    if metric not in METRICS:
        raise InputError(f"no metric {metric!r}{did_you_mean(metric, METRICS)}; known: {', '.join(METRICS)}")
    if len(train_targets) == 0:
        raise InputError("there are no training labels, so none is the most frequent; give at least one")
    values, counts = np.unique(np.asarray(train_targets), axis=0, return_counts=True)
    return METRICS[metric](np.repeat(values[[counts.argmax()]], len(targets), axis=0), targets)


def roc_auc(scores: Values, targets: Values) -> float | None:
    """Returns the area under the ROC curve of scores [N] and bool [N]: how often a positive scores above a negative, ties half.

    Returns None where all examples are positive or all negative, and NaN where scores are not finite.
    """
    from sklearn.metrics import roc_auc_score

    scores, targets = _arrays(scores, targets)
    if targets.min() == targets.max():
        return None
    return float(roc_auc_score(targets, scores)) if np.isfinite(scores).all() else math.nan


def macro_roc_auc(scores: Values, targets: Values) -> float | None:
    """Returns the mean of `roc_auc` over the C classes, each against the rest (scikit-learn's "ovr"); both are [N, C].

    Classes that all examples have or none has are left out; None where no class is left.
    """
    each = [roc_auc(*columns) for columns in zip(*(np.asarray(x).T for x in (scores, targets)), strict=True)]
    there = [area for area in each if area is not None]
    return float(np.mean(there)) if there else None


def class_report(
    predictions: Values, targets: Values, scores: Values, labels: Sequence[str], thresholds: Sequence[float] = ()
) -> dict[str, dict[str, float]]:
    """Returns {label: {precision, recall, f1, support, roc_auc?, threshold?}}.

    Args:
      predictions: bool [N, C]: the labels that are predicted.
      targets: bool [N, C]: the labels that are right.
      scores: [N, C], for `roc_auc`.
      labels: the names of the C labels.
      thresholds: the thresholds of the labels, which are only shown.
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
    """Returns the expected calibration error (Guo et al., 2017, equation 3), and the means of the bins that are not empty.

    Args:
      confidences: probabilities [N] of predictions.
      hits: bool [N]: whether each prediction was right.
      bins: the number of bins, which are equally wide.
    """
    confidences, hits = _arrays(confidences, hits)
    place = np.minimum((confidences * bins).astype(int), bins - 1)
    groups = [place == number for number in range(bins) if (place == number).any()]
    each = [
        {"confidence": float(confidences[g].mean()), "accuracy": float(hits[g].mean()), "count": int(g.sum())} for g in groups
    ]
    error = sum(of["count"] * abs(of["confidence"] - of["accuracy"]) for of in each) / len(hits)
    return {"expected_calibration_error": error, "bins": each}


def _correlation(name: str, predictions: Values, targets: Values) -> float:
    from scipy import stats  # type: ignore[import-untyped]

    predictions, targets = _arrays(predictions, targets)
    both = np.asarray([predictions, targets], np.float64)
    if not np.isfinite(both).all():
        return math.nan
    return float(getattr(stats, name)(*both).statistic) if np.ptp(both, axis=1).all() else 0.0


def pearson(predictions: Values, targets: Values) -> float:
    """Returns Pearson's correlation; 0 where either side is constant."""
    return _correlation("pearsonr", predictions, targets)


def spearman(predictions: Values, targets: Values) -> float:
    """Returns Spearman's rank correlation, ties by their mean rank; 0 where either side is constant."""
    return _correlation("spearmanr", predictions, targets)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Returns mean, sd, median, min and max of the scores of several runs; sd is the sample's (ddof=1), 0 for a single run."""
    if len(values) == 0:
        raise InputError("there is no score to summarize; give at least one")
    array = np.asarray(values, np.float64)
    sd = array.std(ddof=1) if len(array) > 1 else 0.0
    found = {"mean": array.mean(), "sd": sd, "median": np.median(array), "min": array.min(), "max": array.max()}
    return {name: float(value) for name, value in found.items()}


# --- tags ---

_BIES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}  # last and unit of BILOU are end and single of BIOES


def _split_tag(tag: str) -> tuple[str, str]:
    """Returns the prefix and the type of a tag: "B-PER" -> ("B", "PER"); the type is "_" where there is none, as in seqeval."""
    if tag == "O":
        return "O", ""
    prefix, _, name = tag.partition("-")
    if prefix not in _BIES:
        known = "neither O nor B-, I-, E-, S-, L- or U- with a type"
        raise InputError(
            f"tag {tag!r} is {known}; tags.entity_tags reads other schemes, and tag_accuracy scores classes of words"
        )
    return _BIES[prefix], name or "_"


def entities(tags: Sequence[str]) -> list[Entity]:
    """Returns the entities of a sentence, (type, first word, last word), from tags in BIO (IOB1, IOB2), BIOES or BILOU.

    Malformed tags are read as in seqeval's default mode and conlleval: an I- after O or after another type starts an entity.
    Raises InputError for a tag of another form.

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
    """Returns the share of words whose tag is right, O included; 0 where there is no word."""
    _check_sentences(predictions, targets)
    right = [p == t for sentence in zip(predictions, targets, strict=True) for p, t in zip(*sentence, strict=True)]
    return sum(right) / max(1, len(right))


def _entity_scores(predictions: Values, targets: Values) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Returns precision, recall, f1 and support of all entities together (micro average), and of each type."""
    _check_sentences(predictions, targets)
    predicted = {(i, *entity) for i, tags in enumerate(predictions) for entity in entities(tags)}
    right = {(i, *entity) for i, tags in enumerate(targets) for entity in entities(tags)}
    ours, theirs, hits = (Counter(name for _, name, _, _ in found) for found in (predicted, right, predicted & right))
    each = {name: rates(hits[name], ours[name], theirs[name]) for name in sorted(ours | theirs)}
    return rates(hits.total(), ours.total(), theirs.total()), each


def rates(hits: int, ours: int, theirs: int) -> dict[str, float]:
    """Returns precision, recall, F1 and support for `hits` among `ours` (predicted) and `theirs` (right)."""
    found = {"precision": hits / max(1, ours), "recall": hits / max(1, theirs), "f1": 2 * hits / max(1, ours + theirs)}
    return {**found, "support": theirs}


def entity_f1(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """Returns the F1 of `entities` over all sentences and types (micro average); type and both ends must be right."""
    return _entity_scores(predictions, targets)[0]["f1"]


def entity_precision(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """Returns the share of the predicted entities that are right."""
    return _entity_scores(predictions, targets)[0]["precision"]


def entity_recall(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """Returns the share of the right entities that are predicted."""
    return _entity_scores(predictions, targets)[0]["recall"]


def entity_report(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Returns {type: {precision, recall, f1, support}}; support is the number of entities in `targets`."""
    return _entity_scores(predictions, targets)[1]


# --- answers, as SQuAD's evaluate-v2.0.py scores them; evaluate-v1.1.py differs in answers that are an article alone ---

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Returns the text in lower case, without ASCII punctuation and the words a, an, the; one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _answer_scores(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """Returns exact match and F1 of words, each the best over the right answers; without any, the empty answer is right."""

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
        raise InputError(f"{what} and right answers: question {odd[0]!r} has only one of them ({len(odd)} in all); give both")
    _check_examples([*given], [*golds])


def squad_scores(predictions: Mapping[H, str], golds: Mapping[H, Sequence[str]]) -> dict[str, float]:
    """Returns SQuAD's exact_match and f1, from 0 to 1.

    Where some questions have no answer, also those of the questions with an answer (HasAns_...) and without (NoAns_...).

    Args:
      predictions: the answer to each question id; "" for no answer.
      golds: the right answers to the same questions; none for a question without an answer.
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
    """Returns the threshold on `null_odds` with the best F1 where questions above it are not answered, and that F1.

    All cut points from no answered question to all are tried; ties go to the one that answers fewest. The threshold is halfway
    between the odds on both sides of the cut, or 1 past the least or the greatest. (find_best_thresh of evaluate-v2.0.py returns
    0 where answering nothing is best, because its odds are probabilities; differences of logits may be below 0.)

    Args:
      predictions: the best answer to each question that is not empty; "" where there is none.
      null_odds: the lead of no answer over it, in logits.
      golds: the right answers; none for a question without an answer.
    """
    _check_questions(golds, predictions, "predictions")
    _check_questions(golds, null_odds, "null odds")
    unanswered = {question: _answer_scores("", golds[question])[1] for question in golds}
    some = [question for question in golds if predictions[question] and math.isfinite(null_odds[question])]
    gains = [_answer_scores(predictions[question], golds[question])[1] - unanswered[question] for question in some]
    odds, place = np.unique(
        [null_odds[question] for question in some], return_inverse=True
    )  # questions of equal odds go together
    totals = sum(unanswered.values()) + np.cumsum([0.0, *np.bincount(place, gains)])  # with the 0, 1, 2, ... least odds answered
    cut = int(np.argmax(totals > totals.max() - 1e-9))  # sums of floats that are equal may differ in the last bit
    edges = [odds[0] - 2, *odds, odds[-1] + 2] if some else [0.0, 0.0]
    return float(edges[cut] + edges[cut + 1]) / 2, float(totals[cut]) / len(golds)


def squad_f1(predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> float:
    """Returns the f1 of `squad_scores` for lists in one order."""
    _check_examples(predictions, targets)
    return squad_scores(dict(enumerate(predictions)), dict(enumerate(targets)))["f1"]


# --- rankings ---


def ndcg_at_10(predictions: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]) -> float:
    """Returns the mean normalized discounted cumulative gain of the first ten documents (Järvelin & Kekäläinen, 2002).

    The gain is the relevance and the discount log2(1 + rank), as in trec_eval and scikit-learn. A negative relevance counts as
    0, and a query without a relevant document scores 0.

    Args:
      predictions: the relevances of the documents of each query, in the order of the ranking.
      targets: the relevances of all judged documents of each query, in any order.
    """
    _check_examples(predictions, targets)

    def dcg(relevances: Sequence[float] | np.ndarray) -> float:
        first = np.maximum(np.asarray(relevances, np.float64)[:10], 0)
        return float(first @ (1 / np.log2(np.arange(len(first)) + 2)))

    ideals = [dcg(np.sort(np.asarray(judged))[::-1]) for judged in targets]
    return sum(dcg(ranked) / ideal for ranked, ideal in zip(predictions, ideals, strict=True) if ideal) / len(ideals)


def mrr_at_10(predictions: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]) -> float:
    """Returns the mean over queries of 1 / rank of the first relevant document, 0 where none is among the first ten.

    The arguments are those of `ndcg_at_10`; only the number of `targets` is used.
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
