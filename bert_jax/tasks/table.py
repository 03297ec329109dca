"""The table of named tasks: GLUE's, SQuAD's, and one for each kind of task on the user's own files."""

from __future__ import annotations

import dataclasses

from bert_jax.errors import InputError, did_you_mean
from bert_jax.inference import Precision
from bert_jax.pretrained import Model
from bert_jax.tasks.classification import Classification, MultiLabel, Regression
from bert_jax.tasks.forms import FORMS, Dense, form_of
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.multiple_choice import MultipleChoice
from bert_jax.tasks.question_answering import QuestionAnswering
from bert_jax.tasks.reranking import Reranking
from bert_jax.tasks.retrieval import Retrieval
from bert_jax.tasks.similarity import Similarity
from bert_jax.tasks.tagging import Tagging
from bert_jax.tasks.task import Task

classification, multi_label, regression = Classification(), MultiLabel(), Regression()
tagging, question_answering = Tagging(), QuestionAnswering()
multiple_choice, similarity = MultipleChoice(), Similarity()
RETRIEVERS = {form.name: Retrieval(form) for form in FORMS.values()}
retrieval, reranking = RETRIEVERS["dense"], Reranking()
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        classification, multi_label, regression, tagging, question_answering, multiple_choice, similarity, retrieval, reranking,
    )
}  # fmt: skip

_YES_NO = {"0": "not_entailment", "1": "entailment"}
_NLI = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")
_SQUAD = {"num_epochs": 2, "batch_size": 12, "learning_rates": (3e-5,), "max_seq_length": 384}

TASKS: dict[str, Task] = {
    task.name: task
    for task in [
        Task("cola", classification, ("sentence",), labels=("unacceptable", "acceptable"),
             words={"0": "unacceptable", "1": "acceptable"}, metrics=("matthews_correlation",),
             header=("source", "label", "star", "sentence")),
        Task("sst2", classification, ("sentence",), labels=("negative", "positive"), words={"0": "negative", "1": "positive"}),
        Task("mrpc", classification, ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"),
             {"0": "not_equivalent", "1": "equivalent"}, ("f1", "accuracy"),
             files={"train": ("msr_paraphrase_train",), "test": ("msr_paraphrase_test",)}),
        Task("stsb", regression, _PAIR, "score", metrics=("pearson", "spearman"),
             header=("genre", "filename", "year", "old_index", "score", *_PAIR, "...")),
        Task("qqp", classification, ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"),
             {"0": "not_duplicate", "1": "duplicate"}, ("f1", "accuracy"), skip_ragged=True),
        Task("mnli", classification, _PAIR, "gold_label", _MNLI),
        Task("qnli", classification, ("question", "sentence"), labels=_NLI),
        Task("rte", classification, _PAIR, labels=_NLI),
        Task("wnli", classification, _PAIR, labels=("not_entailment", "entailment"), words=_YES_NO),
        Task("ax", classification, _PAIR, labels=_MNLI, metrics=("matthews_correlation",),
             files={"test": ("diagnostic", "diagnostic-full")}, test_only=True),
        Task("squad", question_answering, metrics=("f1", "exact_match"), defaults=_SQUAD),
        Task("squad2", question_answering, metrics=("f1", "exact_match"), defaults=_SQUAD),
        Task("ner", tagging, metrics=("entity_f1",)),
        Task("swag", multiple_choice, ("sent1", "ending0", "ending1", "ending2", "ending3"), stem="sent2"),
        # the user's own files
        Task("classification", classification, metrics=("accuracy", "multiclass_macro_f1")),
        Task("multi_label", multi_label, metrics=("micro_f1", "macro_f1")),
        Task("regression", regression, metrics=("pearson", "spearman")),
        Task("tagging", tagging, metrics=("entity_f1",)),
        Task("question_answering", question_answering, metrics=("f1", "exact_match"), defaults=_SQUAD),
        Task("multiple_choice", multiple_choice),
        Task("similarity", similarity, metrics=("spearman",)),
        Task("retrieval", retrieval, metrics=("ndcg_at_10",)),
        Task("reranking", reranking, metrics=("ndcg_at_10",)),
    ]
}  # fmt: skip


def find_task(name: str, form: str = "dense") -> Task:
    """Returns the task of a name, also in GLUE's spelling (SST-2, STS-B, CoLA), and for retrieval in a form of `FORMS`.

    Raises InputError for an unknown name, and for a form of a task that has none.
    """
    plain = name.lower().replace("-", "") if name.lower().replace("-", "") in TASKS else name.replace("-", "_")
    if plain not in TASKS:
        raise InputError(f"no task {name!r}{did_you_mean(name, TASKS)}; known: {', '.join(TASKS)}")
    task = TASKS[plain]
    if form == "dense":
        return task
    if task.kind is not retrieval:
        raise InputError(f"form={form!r} is for retrieval, not for {task.name}")
    return dataclasses.replace(task, kind=RETRIEVERS[form], defaults={**task.defaults, **FORMS[form].defaults})


def task_of(name: str, model: Model) -> Task:
    """Returns the task of a name for a trained model: retrieval in the form of the model."""
    task = find_task(name)
    return find_task(name, form_of(model)) if task.kind is retrieval else task


def in_precision(task: Task, precision: Precision, rescore: int | None) -> Task:
    """Returns retrieval whose documents are searched in a precision, as `forms.Dense` describes.

    Raises InputError for tasks and forms without vectors of texts, and for a `rescore` that does not fit.
    """
    if rescore is not None and (rescore < 1 or precision == "float32"):
        expected = "a number of candidates, with --precision bfloat16, int8 or binary"
        raise InputError(f"--rescore {rescore} --precision {precision}: expected {expected}")
    if precision == "float32":
        return task
    if not isinstance(task.kind, Retrieval) or not isinstance(task.kind.form, Dense):
        raise InputError(f"--precision {precision} is for retrieval with a vector for each text, not for this model and task")
    return dataclasses.replace(task, kind=Retrieval(Dense(precision, rescore)))
