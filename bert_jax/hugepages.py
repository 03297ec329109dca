"""Huge pages for the programs: XLA's CPU backend takes a step's memory from malloc and gives it back, every step."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"
_ASKING = "glibc.malloc.hugetlb=1"  # from glibc 2.35: malloc asks by madvise(MADV_HUGEPAGE)


def use() -> None:
    """Starts this program again, in the same process, with a malloc that asks for huge pages; returns where that is of no use.

    Of small pages a step of BERT-base touches 250,000 anew, each by way of the kernel: 15 % of its time. malloc reads the wish
    at the start of a process only, so call this before anything else is done. A GLIBC_TUNABLES of the user's is left as it is.
    """
    if _TUNABLES in os.environ or not _gives_when_asked() or not _glibc_can_ask() or not _alone():
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, _TUNABLES: _ASKING})


def _gives_when_asked() -> bool:
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


def _alone() -> bool:
    """Whether the interpreter was started for this program and nobody watches it: a notebook's and a debugger's would be lost."""
    started = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    ours = started[-1:] == sys.argv[:1] or started[-2:] == ["-m", __package__]
    return bool(ours and sys.executable and sys.gettrace() is None and sys.getprofile() is None)
