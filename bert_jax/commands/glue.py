"""The commands `glue-zip` and `glue-check`, for submissions to GLUE's leaderboard."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from bert_jax.glue_zip import FILES, NUM_ROWS, check_zip, write_zip


def glue_zip(
    workdirs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="WORKDIR...")],
    out: str,
    fill_missing: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Make a submission for GLUE's leaderboard from the predictions of fine-tuned tasks.

    Args:
        workdirs: Work directories of finetune, one for each of cola sst2 mrpc stsb qqp mnli qnli rte wnli. AX.tsv comes from
            the work directory of task ax, or from predictions/ax.tsv in that of mnli.
        out: Zip to write.
        fill_missing: Predict the most frequent class in every row of a task without a work directory.
    """
    print("\n".join([*write_zip(workdirs, out, fill_missing), f"{out}: {len(FILES)} files, {NUM_ROWS} rows"]))


def glue_check(submission: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ZIP")]) -> None:
    """Check a zip for GLUE's leaderboard. The exit status is 1 if it has faults.

    Args:
        submission: Zip to check.
    """
    if problems := check_zip(submission):
        print("\n".join(problems))
        sys.exit(1)
    print(f"{len(FILES)} files, {NUM_ROWS} rows: as the leaderboard requires")
