"""`nnad preflight`."""

import sys
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnad.cli.options import Json
from nnad.cli.telling import visible
from nnad.errors import counted

if TYPE_CHECKING:
    from nnad.preflight import Report

_FINDINGS = 5  # findings of a kind, and files of a finding, told on the terminal


def preflight(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", help="Sets of pictures: folders, .zip, lists, globs."),
    ],
    json: Json = None,
) -> None:
    """Look for duplicates, leaks between sets and odd pictures before a fit."""
    from nnad.preflight import preflight as look_over
    from nnad.report import check_outputs, json_writer

    if json is not None:
        check_outputs([json], inputs=folders)
    with ExitStack() as stack:
        writers = [stack.enter_context(json_writer(json))] if json else []
        report = look_over(folders, progress=True)
        for add in writers:
            for finding in report.findings:
                add(finding)
    _tell_findings(report, sys.stderr if json == "-" else sys.stdout)
    if not report.read:
        raise typer.Exit(2)
    if report.serious:
        raise typer.Exit(1)


def _tell_findings(report: "Report", out: Any) -> None:
    from nnad.preflight import KINDS

    for kind, (severity, advice) in KINDS.items():
        findings = [finding for finding in report.findings if finding.kind == kind]
        if not findings:
            continue
        print(f"{severity}: {kind}: {advice}", file=out)
        for finding in findings[:_FINDINGS]:
            names = "".join(f"\n      {visible(name)}" for name in finding.files[:_FINDINGS])
            if len(finding.files) > _FINDINGS:
                names += f"\n      ... and {len(finding.files) - _FINDINGS} more"
            names = "" if kind == "unreadable" else names  # the message has the name
            print(f"   {visible(finding.message)}{names}", file=out)
        if len(findings) > _FINDINGS:
            print(f"   ... and {len(findings) - _FINDINGS} more", file=out)
    counts = Counter(finding.severity for finding in report.findings)
    told = [counted(counts[severity], severity) for severity in ("error", "warning", "note")]
    sets = counted(len(report.sets), "set")
    print(f"{counted(report.read, 'picture')} read in {sets}: {', '.join(told)}", file=out)
