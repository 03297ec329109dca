"""Huge pages for the programs: XLA's CPU backend takes the memory of a step from malloc and returns it, at every step."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"
_ASKING = "glibc.malloc.hugetlb=1"  # since glibc 2.35: malloc asks for huge pages by madvise(MADV_HUGEPAGE)
SWITCH = "BERT_JAX_HUGE_PAGES"  # 0 turns them off


def use() -> None:
    """Starts this program again, in the same process, with a malloc that asks for huge pages; returns if they are of no use.

    With small pages, a step of BERT-base touches 250,000 new pages, each through the kernel, which takes 15 % of its time. malloc
    reads its settings when a process starts, so call this before anything else. A notebook, a debugger or a test run is never
    started again, and the user's own GLIBC_TUNABLES stay as they are.
    """
    if os.environ.get(SWITCH) == "0" or _TUNABLES in os.environ:
        return
    if _given_when_asked() and _glibc_can_ask() and _process_is_ours():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, _TUNABLES: _ASKING})


def describe() -> str:
    """Returns the part of a run's log about huge pages; empty if `use` did not turn them on."""
    return f"huge pages ({SWITCH}=0 turns them off)" if os.environ.get(_TUNABLES) == _ASKING else ""


def _given_when_asked() -> bool:
    try:
        return "[madvise]" in _KERNEL.read_text()  # with [always] they come unasked, with [never] not at all
    except OSError:  # not Linux, or a kernel without them
        return False


def _glibc_can_ask() -> bool:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
    except ValueError:  # another libc
        return False


def _process_is_ours() -> bool:
    """True if the interpreter was started for this program, and no debugger or profiler, which would be lost, watches it."""
    started = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    ours = started[-1:] == sys.argv[:1] or started[-2:] == ["-m", __package__]
    return bool(ours and sys.executable and sys.gettrace() is None and sys.getprofile() is None)
