"""`nnad add`, `remove`, `budget`, `undo` and `log`: a model that lives."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from nnad.cli.options import Device, Images, Json, Model, fraction
from nnad.cli.telling import REMOVED, not_promised, promise, tell_passed_over, tell_unread, visible
from nnad.errors import counted

if TYPE_CHECKING:
    from nnad.detector import Detector
    from nnad.history import Change, History

_NAMES = 5  # of a change, told on the terminal

Reason = Annotated[str, typer.Option(help="Why, for the log.")]
By = Annotated[
    Optional[str],  # noqa: UP045 (typer wants it)
    typer.Option(help="Who, for the log; the login by default."),
]


def add(
    model: Model,
    images: Images,
    reason: Reason = "",
    by: By = None,
    cache: Annotated[bool, typer.Option(help="Use the feature cache.")] = True,
    device: Device = "cpu",
) -> None:
    """Add good images: the model is then equal to one fitted on all of them."""
    from nnad import living

    tell_passed_over(images)
    detector = living.add(
        model, images, reason=reason, by=by, cache=cache, progress=True, device=device
    )
    tell_unread(list(detector.skipped))
    _tell(model, detector)


def remove(
    model: Model,
    names: Annotated[
        list[str], typer.Argument(help="Good images as nnad info --images lists them.")
    ],
    reason: Reason = "",
    by: By = None,
) -> None:
    """Remove good images: the model is then equal to one fitted on the others."""
    from nnad import living

    _tell(model, living.change(model, lambda d: d.remove(names, reason=reason, by=by)))
    print(f"nnad: {REMOVED}", file=sys.stderr)


def budget(
    model: Model,
    false_alarms: Annotated[
        str, typer.Argument(help="The fraction of good images that may be anomalies, or default.")
    ],
    reason: Reason = "",
    by: By = None,
) -> None:
    """Change the false-alarm budget of a model; no image is looked at again."""
    from nnad import living

    asked = None if false_alarms == "default" else fraction(false_alarms)
    _tell(model, living.change(model, lambda d: d.set_budget(asked, reason=reason, by=by)))


def undo(model: Model, reason: Reason = "", by: By = None) -> None:
    """Take back the last add, remove or budget; once more, the one before it."""
    from nnad import living

    _tell(model, living.change(model, lambda d: d.undo(reason=reason, by=by)))


def log(model: Model, json: Json = None) -> None:
    """Tell every change of a model: when, by whom, what and why."""
    from contextlib import ExitStack
    from dataclasses import asdict

    from nnad.model_file import read_model
    from nnad.report import check_outputs, json_writer

    if json is not None:
        check_outputs([json], model)
    saved = read_model(model)
    history = saved.history
    groups = len(saved.settings["groups"]["names"]) if "groups" in saved.settings else None
    with ExitStack() as stack:
        write = stack.enter_context(json_writer(json)) if json else None
        for change in history.changes:
            if write:
                told = asdict(change)
                del told["runs"]
                write({**told, "images": _names(history, change)})
            if json != "-":
                print(_line(history, change, groups))


def _tell(model: Path, detector: "Detector") -> None:
    history = detector.history
    print(_line(history, history.changes[-1]))
    print(f"{model}: {counted(len(detector.names), 'good image')}; {promise(detector)}")
    if told := not_promised(detector):
        print(told)


def _names(history: "History", change: "Change") -> list[str]:
    return [history.stored_names[row] for row in change.rows]


def _line(history: "History", change: "Change", groups: int | None = None) -> str:
    """An entry of the log; `groups` is how many a model of groups was fitted on."""
    if groups is not None:  # such a model never changes
        told = f"fitted on {counted(groups, 'good group')} of {counted(len(change.rows), 'image')}"
    elif change.undoes is None:
        told = _what(history, change)
    else:
        told = f"took back {change.undoes} ({_what(history, history.changes[change.undoes])})"
    why = f' ("{change.reason}")' if change.reason else ""
    return visible(f"{change.number:>3}  {change.time}  {change.by}  {told}{why}")


def _what(history: "History", change: "Change") -> str:
    if change.budgets:
        before, after = ("default" if b is None else f"{b:g}" for b in change.budgets)
        return f"budget {after} instead of {before}"
    names = _names(history, change)
    verb = {"fit": "fitted on", "add": "added", "remove": "removed"}[change.action]
    told = f"{verb} {counted(len(names), 'good image')}"
    if change.action == "fit":
        return told
    return f"{told}: {', '.join(names[:_NAMES])}{', ...' if len(names) > _NAMES else ''}"
