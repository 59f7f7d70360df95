"""A table as Markdown: our number, its interval, the paper's number and the difference."""

import numpy as np

from nnad.errors import counted
from nnad.reproduce.run import Run
from nnad.reproduce.statistics import Scored, auroc, interval, resampled, sign_flip_p
from nnad.reproduce.tables import OURS, Cell, Entry, short_name

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
    if told := _networks(run):
        blocks.append(told)
    if table.notes:
        blocks.append(table.notes)
    if table.kind == "table":
        blocks += _comparisons(run)
    blocks += [f"Data: {name}: {told}." for name, told in run.layouts.items()]
    blocks += [f"Not computed: {what}: {why}" for what, why in run.problems.items()]
    return "\n\n".join(blocks) + "\n"


def _networks(run: Run) -> str:
    """Which networks made the features, and which did in the paper, if these are others."""
    if set(run.table.backbones) <= set(run.declared.backbones):
        return ""
    ours, theirs = (", ".join(map(short_name, t.backbones)) for t in (run.table, run.declared))
    return f"Features of {ours}, not of the paper's {theirs}."


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
    """Columns against what they build on, for each data set, on the tasks that both have."""
    rows = []
    for data in run.table.unique("data"):
        columns = _columns(run, data)
        for number, column in enumerate(columns):
            other = _compared_with(column, list(columns)[:number])
            if other and (row := _compared(columns[column], columns[other], run.table.percent)):
                rows.append(f"| {data} | {column} | {other} | {row} |")
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


def _columns(run: Run, data: str) -> dict[str, dict[str, Scored]]:
    """Column -> task -> its scores, of one data set."""
    columns: dict[str, dict[str, Scored]] = {name: {} for name in run.table.unique("column")}
    for entry, found in zip(run.table.entries, run.scored, strict=True):
        if entry.data == data:
            pooling = entry.system.pooling or ""
            about = f"{entry.system.backbone} {pooling} " if run.table.networks else ""
            columns[entry.column].update({about + cell.task(): scored for cell, scored in found})
    return {name: tasks for name, tasks in columns.items() if tasks}


def _compared_with(column: str, before: list[str]) -> str | None:
    """`SPADE + k-NNN` -> `SPADE`, `k-NNN` -> `k-NN`; one of ours -> the first; else the last."""
    if not before:
        return None
    shorter = [name for name in before if column.startswith(name)]
    paper = [name for name in before if not name.endswith(OURS)]
    if column.endswith(OURS):
        return paper[0] if paper else None
    return max(shorter, key=len) if shorter else before[-1]


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
