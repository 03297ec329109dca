"""Makes the HTML of a self-contained page. All text that is not `Html` is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise

from bert_jax.tasks.figures import Cell, Matrix, Nothing, RecordId, TaggedWords, Text

LONGEST = 300  # characters of a text that are shown
_NEAR, _MOST_WORDS = 8, 100  # words shown on each side of a wrong tag, and at most


class Html(str):
    """Text that is HTML already."""


def tag(name: str, content: object, **attributes: object) -> Html:
    """Returns an element; `_class` gives the attribute class."""
    inner = content if isinstance(content, Html) else escape(str(content))
    given = "".join(f' {key.lstrip("_")}="{escape(str(value))}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{inner}</{name}>")


def joined(parts: Iterable[Html], between: str = "") -> Html:
    """Returns the parts as one."""
    return Html(between.join(parts))


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Cell | Html]]) -> Html:
    """Returns a table with a caption; a table wider than the screen has a scroll bar."""
    head = [tag("tr", joined(tag("th", name) for name in header))] if header else []
    body = [tag("tr", joined(tag("td", _cell(cell)) for cell in row)) for row in rows]
    wide = tag("div", tag("table", joined([*head, *body])), _class="wide")
    return joined([tag("h3", caption), wide]) if caption else wide


def draw_matrix(figure: Matrix) -> Html:
    """Returns a confusion matrix, each cell shaded by its share of the row."""
    names, counts = figure.names, figure.counts

    def cell(row: int, column: int) -> Html:
        share = counts[row, column] / max(1, counts[row].sum())
        shade = f"background: rgba(var(--{'right' if row == column else 'wrong'}), {0.6 * share:.3f})"
        title = f"right: {names[row]}, predicted: {names[column]}, {share:.1%} of the row"
        return tag("div", counts[row, column], _class="shade", style=shade, title=title)

    size = range(len(names))
    rows = [[tag("b", names[i]), *(cell(i, j) for j in size)] for i in size]
    return table(figure.caption, ["right ↓ predicted →", *names], rows)


def _cell(value: Cell | Html) -> Html | str:
    match value:
        case float():
            return f"{value:.4f}" if math.isfinite(value) else "–"
        case Text():
            return _text(value)
        case RecordId():
            return tag("div", value.id, _class="id", title=value.place)
        case TaggedWords():
            return _tagged_words(value)
        case Nothing():
            return tag("em", "none")
        case tuple():
            return joined(map(_text, value))
    return value if isinstance(value, Html) else str(value)


def _text(value: Text) -> Html:
    text = value.text
    if value.bold:
        return tag("b", _text(Text(text, value.around)))
    start = max(0, value.around - LONGEST // 2) if len(text) > LONGEST else 0
    cut = "…" * (start > 0) + text[start : start + LONGEST] + "…" * (start + LONGEST < len(text))
    return tag("div", cut, dir="auto", **({} if cut == text else {"title": text}))


def _tagged_words(value: TaggedWords) -> Html:
    words, right, predicted = value.words, value.right, value.predicted
    wrong = [i for i in range(len(words)) if right[i] != predicted[i]]
    near = sorted({i for at in wrong for i in range(max(0, at - _NEAR), min(len(words), at + _NEAR + 1))})[:_MOST_WORDS]
    parts = []
    for before, i in pairwise([-1, *near]):
        parts += [tag("span", "…")] * (i != before + 1)
        word, struck = tag("span", words[i]), [tag("s", predicted[i])] if right[i] != predicted[i] else []
        if struck or right[i] != "O":
            tags = tag("rt", joined([tag("span", right[i]), *struck], " "), dir="ltr")
            word = tag("ruby", joined([word, tags]), _class="bad" if struck else "good")
        parts.append(word)
    parts += [tag("span", "…")] * (near[-1] != len(words) - 1)
    return tag("div", joined(parts, " "), dir="auto", title=" ".join(words))


def whole_page(title: str, body: Iterable[Html]) -> str:
    """Returns the page; half a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
    head, shown = tag("title", title), tag("body", joined(body, "\n"))
    page = f"{_HEAD}{head}</head>\n{shown}</html>\n"
    return page.encode("utf-8", "replace").decode("utf-8")


_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { --ink: #1c1c1a; --soft: #6b6a64; --grid: #dddcd6; --page: #fdfdfc; --bad: #b3261e;
  --right: 42, 120, 214; --wrong: 213, 94, 0;
  --colour0: #0072b2; --colour1: #d55e00; --colour2: #009e73; --colour3: #b4569a; --colour4: #b07d00; --colour5: #6a5acd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceae4; --soft: #a3a199; --grid: #3b3a37; --page: #191918; --bad: #ff8a80;
    --right: 74, 144, 226; --wrong: 230, 110, 30;
    --colour0: #56b4e9; --colour1: #ff8c42; --colour2: #2fcf9f; --colour3: #e08fc8; --colour4: #e6b422; --colour5: #a79bff; } }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; } p, h3 { color: var(--soft); } h2 { margin: 2.5rem 0 0.5rem; } h3 { margin: 1.5rem 0 0.3rem; font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top;
  overflow-wrap: normal; }
th { font-weight: 600; color: var(--soft); } td { font-variant-numeric: tabular-nums; }
td div[dir] { min-width: 8rem; overflow-wrap: anywhere; } td:nth-child(2) div[dir] { min-width: 16rem; }
.id { max-width: 7rem; overflow-wrap: break-word; }
.shade { padding: 0.2rem 0.5rem; border-radius: 0.2rem; text-align: center; }
pre { white-space: pre-wrap; } strong, s { color: var(--bad); }
ruby { white-space: nowrap; line-height: 2; } ruby.bad { color: var(--bad); font-weight: 600; }
rt { font-size: 0.65rem; font-weight: 400; } rt span { color: var(--soft); }
svg { display: block; width: 100%; max-width: 40rem; font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
svg text { fill: var(--soft); text-anchor: middle; } svg text.y { text-anchor: end; }
svg path { fill: none; stroke: var(--grid); stroke-linecap: round; stroke-linejoin: round; } svg .line { stroke-width: 2; }
svg .points { stroke-width: 5; opacity: 0.35; } svg + svg .points { opacity: 1; }
.legend span { margin-right: 1rem; } .legend span::before { content: "● "; color: var(--own); }
</style>
"""
