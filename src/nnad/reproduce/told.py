"""A table as Markdown: our number, its interval, the paper's number and the difference."""

from itertools import groupby

import numpy as np

from nnad.errors import counted
from nnad.reproduce.run import Run
from nnad.reproduce.statistics import Scored, interval, resampled, sign_flip_p
from nnad.reproduce.store import auroc
from nnad.reproduce.tables import Cell, Entry

_Found = list[tuple[Cell, Scored]]


def markdown(run: Run, command: str) -> str:
    """The whole page.

    Args:
        run: what was computed.
        command: that made it.
    """
    table = run.table
    blocks = [f"# {table.title}", f"{table.caption}.", f"    {command}", _grid(run)]
    blocks.append(
        "Mean image AUROC, its 95 % interval by bootstrap over the test images, the paper's number "
        "and the difference. A number alone is the paper's."
    )
    if table.notes:
        blocks.append(table.notes)
    if table.kind == "table":
        blocks += _comparisons(run)
    blocks += [f"Data: {name}: {told}." for name, told in run.layouts.items()]
    blocks += [f"Not computed: {what}: {why}" for what, why in run.problems.items()]
    return "\n\n".join(blocks) + "\n"


def summary(run: Run) -> list[tuple[Entry, float | None]]:
    """Each entry and our mean AUROC, 0..1, or None."""
    return [
        (entry, float(np.mean([auroc(s) for _, s in found])) if found else None)
        for entry, found in zip(run.table.entries, run.scored, strict=True)
    ]


def _grid(run: Run) -> str:
    table = run.table
    columns = table.unique("column")
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    told = {
        (entry.row, entry.column): _told(run, entry, found)
        for entry, found in zip(table.entries, run.scored, strict=True)
    }
    lines += [
        f"| {row} | " + " | ".join(told.get((row, column), "") for column in columns) + " |"
        for row in table.unique("row")
    ]
    return "\n".join(lines)


def _told(run: Run, entry: Entry, found: _Found) -> str:
    scale, digits = (100, 1) if run.table.percent else (1, 3)
    paper = "" if entry.paper is None else f"{entry.paper:.{digits}f}"
    if not found:
        return paper or "-"
    mean = scale * float(np.mean([auroc(scored) for _, scored in found]))
    low, high = interval(scale * resampled([scored for _, scored in found]).mean(axis=0))
    text = f"**{mean:.{digits}f}** [{low:.{digits}f}, {high:.{digits}f}]"
    if entry.paper is not None:
        text += f" {paper}, {mean - entry.paper:+.{digits}f}"
    return text


def _comparisons(run: Run) -> list[str]:
    """Every column against the first one, on the tasks that both have, for each data set."""
    rows = []
    both = list(zip(run.table.entries, run.scored, strict=True))
    for data in run.table.unique("data"):
        columns: dict[str, dict[str, Scored]] = {}
        for column, entries in groupby(
            sorted(
                ((e, found) for e, found in both if e.data == data and found),
                key=lambda pair: run.table.unique("column").index(pair[0].column),
            ),
            key=lambda pair: pair[0].column,
        ):
            columns[column] = {
                cell.task(): scored for _, found in entries for cell, scored in found
            }
        if not columns:
            continue
        first, *others = columns
        for other in others:
            row = _compared(columns[other], columns[first], run.table.percent)
            if row:
                rows.append(f"| {data} | {other} | {first} | {row} |")
    if not rows:
        return []
    head = "| data | is this better | than this? | difference | 95 % interval | p | tasks |\n"
    return [
        head + "|---" * 7 + "|\n" + "\n".join(rows),
        "The interval is that of the bootstrap, with the same draws for both. p: sign-flip "
        "permutation test of the mean difference over tasks (classes, sets or draws), two-sided; "
        "with n tasks it cannot be below 2 / 2^n, and tasks with common test images are not "
        "independent. Nothing is corrected for the number of comparisons.",
    ]


def _compared(ours: dict[str, Scored], theirs: dict[str, Scored], percent: bool) -> str:
    tasks = [task for task in ours if task in theirs]
    if not tasks:
        return ""
    scale, digits = (100, 2) if percent else (1, 4)
    pairs = [ours[task] for task in tasks] + [theirs[task] for task in tasks]
    drawn = resampled(pairs)
    low, high = interval(scale * (drawn[: len(tasks)] - drawn[len(tasks) :]).mean(axis=0))
    differences = [auroc(ours[task]) - auroc(theirs[task]) for task in tasks]
    p = sign_flip_p(differences)
    told = "-" if p is None else f"{p:.2g}"
    mean = scale * float(np.mean(differences))
    return f"{mean:+.{digits}f} | [{low:+.{digits}f}, {high:+.{digits}f}] | {told} | {len(tasks)}"


def closing(run: Run) -> str:
    """One line for a terminal."""
    done = sum(bool(found) for found in run.scored)
    text = f"{counted(run.computed, 'cell')} computed, {run.known} known before; "
    return text + f"{done} of {counted(len(run.table.entries), 'number')} of {run.table.title}"
