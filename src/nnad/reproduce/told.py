"""A table as Markdown: our number, its interval, the paper's number and the difference."""

import numpy as np

from nnad.errors import counted
from nnad.reproduce.settings import Run
from nnad.reproduce.statistics import Scored, auroc, interval, resampled, sign_flip_p
from nnad.reproduce.tables import OURS, Cell, Entry, Table, short_name

_Found = list[tuple[Cell, Scored]]
_Cells = dict[tuple[str, str], Scored]  # unit and task -> scores
NOTES = {
    "panda": (
        "PANDA: on the embedded networks with the settings of docs/adaptation.md, which were "
        "chosen for them, and not with the paper's."
    ),
    "ocsvm": "OC-SVM: nu and gamma are fixed; DN2's numbers are the best of a grid on test images.",
    "mhrot": "MHRot: on images of 32 pixels there is no reference, see docs/baselines.md.",
}


def markdown(run: Run, command: str, *, picture: bool = False) -> str:
    """The whole page.

    Args:
        run: what was computed.
        command: that made it.
        picture: show the one beside it.
    """
    table = run.table
    blocks = [f"# {table.title}", f"{table.caption}.", f"    {command}"]
    if table.entries:
        blocks.append(_grid(run))
        legend = (
            "Mean image AUROC and its 95 % interval by bootstrap over the test images (too narrow "
            "where these are few, or the AUROC is 1)"
        )
        if any(entry.paper is not None for entry in table.entries):
            legend += ", the paper's number and the difference; a number alone is the paper's"
        blocks.append(f"{legend}.")
    if picture:
        blocks.append(f"![{table.caption}]({table.name}.png)")
    blocks += filter(None, (_computed_with(run), table.notes))
    blocks += [NOTES[name] for name in _systems(run) if name in NOTES]
    blocks += _comparisons(run)
    blocks += [f"Data: {name}: {told}." for name, told in run.layouts.items()]
    blocks += [f"Not computed: {what}: {why}" for what, why in run.problems.items()]
    return "\n\n".join(blocks) + "\n"


def _systems(run: Run) -> list[str]:
    """Those of which something was computed."""
    pairs = zip(run.table.entries, run.scored, strict=True)
    return list(dict.fromkeys(entry.system.name for entry, found in pairs if found))


def _computed_with(run: Run) -> str:
    """Which networks, transform and commits made the numbers, and what the paper's were."""
    ours, theirs = run.table.backbones, run.declared.backbones
    told = []
    if run.networks:
        names = (f"{short_name(name)} ({key})" for name, key in run.networks.items())
        told.append(f"Features of {', '.join(names)}")
        if not set(ours) <= set(theirs):
            told[0] += (
                f", not of the paper's {', '.join(map(short_name, theirs))}: columns that differ "
                "by their network alone are the same here"
            )
    transforms = {
        entry.system.transform
        for entry in run.table.entries
        if entry.system.backbone and not entry.column.endswith(OURS)
    }
    if transforms - {"raw"}:
        told.append(f"Transform {', '.join(transforms)}; the paper's features are raw")
    if run.commits:
        told.append(f"Computed by commit {', '.join(run.commits)}")
    return "".join(f"{sentence}. " for sentence in told).strip()


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
    scale, digits = 100 if run.table.percent else 1, run.table.digits
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
    for data, row in _compared_parts(run.table):
        columns = _columns(run, data, row)
        for column, cells in columns.items():
            main = run.table.main if column.endswith(OURS) else ""
            other = run.table.against.get(column, main)
            if other in columns and (told := _compared(cells, columns[other], run.table)):
                where = row if data in row else ", ".join(filter(None, (data, row)))
                rows.append(f"| {where} | {column} | {other} | {told} |")
    if not rows:
        return []
    head = "| data | is this better | than this? | difference | 95 % interval | p | units |\n"
    return [
        head + "|---" * 7 + "|\n" + "\n".join(rows),
        "The interval is that of the bootstrap, with the same draws for both. p: sign-flip "
        "permutation test of the mean difference over units (classes, sets or draws, each the mean "
        "of its cells), two-sided; with n units it cannot be below 2 / 2^n, and units with common "
        "test images are not independent. Nothing is corrected for the number of comparisons.",
    ]


def _compared_parts(table: Table) -> list[tuple[str, str]]:
    """Data, or data and row, within which columns are compared."""
    parts = ((entry.data, entry.row if table.by_row else "") for entry in table.entries)
    return list(dict.fromkeys(parts))


def _columns(run: Run, data: str, row: str) -> dict[str, _Cells]:
    """Column -> unit and task -> its scores."""
    columns: dict[str, _Cells] = {}
    for entry, found in zip(run.table.entries, run.scored, strict=True):
        if entry.data == data and row in ("", entry.row):
            pooling = entry.system.pooling or ""
            about = f"{entry.system.backbone} {pooling} " if run.table.networks else ""
            own = {(cell.unit(), about + cell.task()): scored for cell, scored in found}
            columns.setdefault(entry.column, {}).update(own)
    return {name: cells for name, cells in columns.items() if cells}


def _compared(ours: _Cells, theirs: _Cells, table: Table) -> str:
    """Difference, interval, p and number of units."""
    tasks = [task for task in ours if task in theirs]
    if not tasks:
        return ""
    scale, digits = 100 if table.percent else 1, table.digits + 1
    units = list(dict.fromkeys(unit for unit, _ in tasks))
    member = np.array([[unit == of for of, _ in tasks] for unit in units], np.float64)
    member /= member.sum(axis=1, keepdims=True)  # (units, tasks), a mean over each unit's tasks
    pairs = [ours[task] for task in tasks] + [theirs[task] for task in tasks]
    drawn = resampled(pairs)
    low, high = interval(
        scale * (member @ (drawn[: len(tasks)] - drawn[len(tasks) :])).mean(axis=0)
    )
    differences = member @ [auroc(ours[task]) - auroc(theirs[task]) for task in tasks]
    p = sign_flip_p(differences.tolist())
    told = "-" if p is None else f"{p:.2g}"
    mean = scale * float(np.mean(differences))
    return f"{mean:+.{digits}f} | [{low:+.{digits}f}, {high:+.{digits}f}] | {told} | {len(units)}"


def closing(run: Run) -> str:
    """One line for a terminal."""
    done = sum(bool(found) for found in run.scored)
    text = f"{counted(run.computed, 'cell')} computed, {run.known} known before; "
    return text + f"{done} of {counted(len(run.table.entries), 'number')} of {run.table.title}"
