"""Answers to questions from a context."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.config import InputError
from bert_jax.data.layout import Reading, Window, most_context, read_windows
from bert_jax.data.tokenizer import Encoding
from bert_jax.inference.predictor import Predictor, as_list, is_pair
from bert_jax.pretrained import Model


class Answer(NamedTuple):
    """An answer: context[start:end], its share of the probability of all candidates, and the sum of its two logits.

    No answer is the empty text at 0.
    """

    text: str
    start: int
    end: int
    score: float
    logit: float


class Answerer(Predictor):
    """Answers to questions as stretches of a context (Devlin et al., 2018, section 4.2; run_squad.py)."""

    needs = ("question_answering",)
    per_token = frozenset(["start", "end"])

    def __init__(
        self, model: Model, top_k: int = 1, no_answer: bool | None = None, null_threshold: float | None = None,
        max_answer_length: int = 30, max_length: int | None = None, stride: int = 128, max_question_length: int | None = None,
        n_best: int = 20, *, exact: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
        model: a span classifier.
        top_k: answers returned for each question.
        no_answer: whether "there is no answer" is a candidate (SQuAD 2.0); default: where fine-tuning found a threshold for it.
        null_threshold: no answer is given where its logit is above the best answer's by more than this; default: that
          threshold, else 0.
        max_answer_length: tokens.
        max_length: tokens of a window: question, stretch of the context and special ones; default: as many as in
          fine-tuning, of other models 384.
        stride: tokens from the start of one window to the next.
        max_question_length: tokens of a question that are read; default: 64, or half of a shorter window.
        n_best: candidates kept.
        exact: same text, same bits (`Predictor`).
        """
        super().__init__(model, exact)
        tuned = model.tuned
        self.top_k, self.no_answer = top_k, tuned.null_threshold is not None if no_answer is None else no_answer
        self.null_threshold = (tuned.null_threshold or 0.0) if null_threshold is None else null_threshold
        self.max_answer_length, self.stride, self.n_best = max_answer_length, stride, max(n_best, top_k)
        if max_length is None:
            max_length = model.window
        self.max_length = self._longest = min(max_length, model.config.max_length)
        if max_question_length is None:
            max_question_length = self._layout.longest_question(self.max_length)
        self.max_question_length = max_question_length
        least = max_question_length + 1 + len(self.tokenizer.pair)
        for name, value in (("top_k", top_k), ("stride", stride), ("max_answer_length", max_answer_length)):
            if value < 1:
                raise InputError(f"{name}={value} is below 1")
        if self.max_length <= least:
            raise InputError(
                f"max_length={self.max_length} leaves no room for a context behind max_question_length={max_question_length}"
            )

    def _outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        del batch["places"]
        outputs = self.model.apply(params, batch)
        return {"start": outputs["start_logits"], "end": outputs["end_logits"]}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[list[Answer]]:
        """For each (question, context) the `top_k` answers, the best first. Long contexts are read in windows."""
        pairs = as_list(pairs, "pairs")
        for i, pair in enumerate(pairs):
            if not is_pair(pair):
                raise InputError(f"pairs[{i}] is {str(pair)[:60]!r}; expected (question, context)")
        reading = self.read(pairs)
        if reading.long_questions:
            warnings.warn(
                f"{reading.long_questions} of {len(pairs)} questions have more than {self.max_question_length} tokens; "
                "the rest was not read",
                stacklevel=2,
            )
        return [self._ranked(answers, null) for answers, null in self.candidates(reading, self.run(reading.examples))]

    def read(self, pairs: Sequence[tuple[str, str]]) -> Reading:
        """The windows that (question, context) pairs are read in."""
        return read_windows(self._layout, pairs, self.max_length, self.stride, self.max_question_length)

    def candidates(self, reading: Reading, results: Sequence[dict[str, np.ndarray]]) -> list[tuple[list[Answer], float]]:
        """For each pair its `n_best` answers, the best first, with `score` left at 0, and the logit of no answer.

        `results` are what `run` says of the windows.
        """
        found: list[list[tuple[Window, dict[str, np.ndarray]]]] = [[] for _ in reading.pairs]
        for window, result in zip(reading.windows, results, strict=True):
            found[window.text].append((window, result))
        return [
            self._candidates(context, encoding, self._layout.before([question, encoding.ids]), each)
            for (_, context), encoding, question, each in zip(
                reading.pairs, reading.contexts, reading.questions, found, strict=True
            )
        ]

    def _candidates(
        self, context: str, encoding: Encoding, before: int, found: list[tuple[Window, dict[str, np.ndarray]]]
    ) -> tuple[list[Answer], float]:
        """`before`: tokens before the context in each window."""
        size = len(encoding.ids)
        home = most_context([window for window, _ in found], size) if size else np.zeros(0, np.int64)
        logits: dict[tuple[int, int], float] = {}
        for number, (window, result) in enumerate(found):
            inside = slice(before, before + window.stop - window.start)
            start, end = result["start"][inside], result["end"][inside]
            own = np.flatnonzero(home[window.start : window.stop] == number)
            for i in own[np.argsort(-start[own])[: self.n_best]].tolist():
                for j in i + np.argsort(-end[i : i + self.max_answer_length])[: self.n_best]:
                    span = (int(encoding.offsets[window.start + i, 0]), int(encoding.offsets[window.start + j, 1]))
                    if span[0] < span[1]:
                        logits[span] = max(logits.get(span, -np.inf), float(start[i] + end[j]))
        ranked = sorted(logits.items(), key=lambda item: -item[1])[: self.n_best]
        null = min(float(result["start"][0] + result["end"][0]) for _, result in found)
        return [Answer(context[a:b], a, b, 0.0, logit) for (a, b), logit in ranked], null

    def _ranked(self, answers: list[Answer], null: float) -> list[Answer]:
        """The `top_k` best with their scores, no answer among them where that is allowed, or nothing else is there."""
        if self.no_answer or not answers:
            answers = self._with_null(answers, null)
        logits = np.array([answer.logit for answer in answers])
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        return [answer._replace(score=float(share)) for answer, share in zip(answers, shares, strict=True)][: self.top_k]

    def _with_null(self, answers: list[Answer], null: float) -> list[Answer]:
        """The candidates with no answer in its place: first where it wins by the threshold, else behind the best answer."""
        nothing = Answer("", 0, 0, 0.0, null)
        if not answers or null - answers[0].logit > self.null_threshold:
            return [nothing, *answers]
        behind = sorted([*answers[1:], nothing], key=lambda answer: -answer.logit)
        return [answers[0], *behind]
