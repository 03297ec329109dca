"""What a person sees while text is prepared: progress bars and a table, on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track as rich_track
from rich.table import Table


def track(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """The items, with a progress bar where stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or total < 2:
        return iter(items)
    return iter(rich_track(items, description=what, total=total, console=console, transient=True))


def show_table(title: str, facts: Sequence[tuple[str, str]], warnings: Sequence[str]) -> None:
    """Facts as a table, and warnings a line each."""
    console = Console(stderr=True)
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)
    for warning in warnings:
        console.print(f"[bold yellow]warning:[/] {escape(warning)}", soft_wrap=True)
