"""Answers questions by spans of a context."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bert_jax.config import InputError
from bert_jax.data.layout import Reading, Window, most_context, read_windows
from bert_jax.data.tokenizer import Encoding
from bert_jax.inference.predictor import Predictor, as_list, is_pair
from bert_jax.pretrained import Model


class Answer(NamedTuple):
    """An answer, context[start:end]; "no answer" is the empty text at 0.

    Attributes:
      text: the answer.
      start: its first character.
      end: the character after its last.
      score: its probability among all candidates.
      logit: the sum of the logits of its first and its last token.
    """

    text: str
    start: int
    end: int
    score: float
    logit: float


class Answerer(Predictor):
    """Answers questions by spans of a context (Devlin et al., 2018, section 4.2; run_squad.py)."""

    needs = ("question_answering",)
    per_token = frozenset(["start", "end"])

    def __init__(
        self, model: Model, top_k: int = 1, no_answer: bool | None = None, null_threshold: float | None = None,
        max_answer_length: int = 30, max_length: int | None = None, stride: int = 128, max_question_length: int | None = None,
        n_best: int = 20, *, exact: bool = False,
    ) -> None:  # fmt: skip
        """Prepares the predictor. All lengths are in tokens.

        Args:
          model: a span classifier.
          top_k: answers returned for each question.
          no_answer: True if "no answer" is a candidate (SQuAD 2.0); default: True where fine-tuning found a threshold for it.
          null_threshold: "no answer" is best where its logit exceeds that of the best answer by more than this; default: the
            threshold of fine-tuning, else 0.
          max_answer_length: the longest answer.
          max_length: the length of a window: question, part of the context and special tokens; default: that of fine-tuning,
            else 384.
          stride: the distance between the starts of windows.
          max_question_length: the longest question; the rest is not read. Default: 64, or half of a shorter window.
          n_best: the number of candidates.
          exact: as for `Predictor`.
        """
        super().__init__(model, exact)
        tuned = model.tuned
        self.top_k, self.no_answer = top_k, tuned.null_threshold is not None if no_answer is None else no_answer
        self.null_threshold = (tuned.null_threshold or 0.0) if null_threshold is None else null_threshold
        self.max_answer_length, self.stride, self.n_best = max_answer_length, stride, max(n_best, top_k)
        self.max_length = self._longest = min(model.window if max_length is None else max_length, model.config.max_length)
        if max_question_length is None:
            max_question_length = self._layout.longest_question(self.max_length)
        self.max_question_length = max_question_length
        for name, value in (("top_k", top_k), ("stride", stride), ("max_answer_length", max_answer_length)):
            if value < 1:
                raise InputError(f"{name}={value} is below 1")
        if self.max_length <= max_question_length + 1 + len(self.tokenizer.pair):
            raise InputError(
                f"max_length={self.max_length} leaves no room for a context after max_question_length={max_question_length}: "
                "raise the first or lower the second"
            )

    def _outputs(self, params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        del batch["places"]
        outputs = self.model.apply(params, batch)
        return {"start": outputs["start_logits"], "end": outputs["end_logits"]}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[list[Answer]]:
        """Returns the `top_k` answers to each (question, context), the best first. Reads long contexts in windows."""
        pairs = as_list(pairs, "pairs")
        for i, pair in enumerate(pairs):
            if not is_pair(pair):
                raise InputError(f"pairs[{i}] is {str(pair)[:60]!r}; expected (question, context)")
        reading = self.read(pairs)
        if cut := reading.long_questions:
            most = self.max_question_length
            warnings.warn(f"{cut} of {len(pairs)} questions have more than {most} tokens; the rest was not read", stacklevel=2)
        return [self._ranked(answers, null) for answers, null in self.candidates(reading, self.run(reading.examples))]

    def read(self, pairs: Sequence[tuple[str, str]]) -> Reading:
        """Cuts (question, context) pairs into windows."""
        return read_windows(self._layout, pairs, self.max_length, self.stride, self.max_question_length)

    def candidates(self, reading: Reading, results: Sequence[dict[str, np.ndarray]]) -> list[tuple[list[Answer], float]]:
        """Collects the candidates of each pair from its windows.

        Args:
          reading: the windows.
          results: the outputs of `run` for each window.

        Returns:
          The `n_best` answers to each pair, the best first, with a `score` of 0, and the logit of no answer.
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
        """Collects the candidates of a context; its windows have `before` tokens before the part of the context."""
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
        """Returns the `top_k` best with their scores; "no answer" is a candidate where allowed or where there is no other."""
        if self.no_answer or not answers:
            answers = self._with_null(answers, null)
        logits = np.array([answer.logit for answer in answers])
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        return [answer._replace(score=float(share)) for answer, share in zip(answers, shares, strict=True)][: self.top_k]

    def _with_null(self, answers: list[Answer], null: float) -> list[Answer]:
        """Adds "no answer": first where it leads by more than the threshold, otherwise after the best answer."""
        nothing = Answer("", 0, 0, 0.0, null)
        if not answers or null - answers[0].logit > self.null_threshold:
            return [nothing, *answers]
        return [answers[0], *sorted([*answers[1:], nothing], key=lambda answer: -answer.logit)]
