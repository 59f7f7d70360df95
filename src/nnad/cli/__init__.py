"""The `nnad` command: thin callers of the library, one file a command.

Exit codes: 0 done; 1 something was found: anomalies, only with --fail-on-anomaly, errors or
warnings of preflight, or a change seen by drift; 2 wrong use or input; 130 interrupted; 141 nobody
reads the output.
"""

import io
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from nnad import __version__
from nnad.cli.adapt import adapt
from nnad.cli.bench import bench
from nnad.cli.clean import clean
from nnad.cli.demo import demo
from nnad.cli.drift import drift
from nnad.cli.evaluate import evaluate
from nnad.cli.explain import explain
from nnad.cli.fit import fit
from nnad.cli.groups import groups
from nnad.cli.info import info
from nnad.cli.living import add, budget, log, remove, undo
from nnad.cli.preflight import preflight
from nnad.cli.reproduce import reproduce
from nnad.cli.score import score
from nnad.errors import ImageWarning, NnadError

app = typer.Typer(
    help="Anomaly detection in images by nearest neighbours. No training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _command in (
    fit,
    score,
    explain,
    evaluate,
    bench,
    add,
    remove,
    budget,
    undo,
    log,
    preflight,
    drift,
    clean,
    adapt,
    info,
    demo,
    reproduce,
):
    app.command()(_command)
app.add_typer(groups, name="groups")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"nnad {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Anomaly detection in images by nearest neighbours. No training."""


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, ImageWarning):
        print(f"nnad: {message}", file=sys.stderr)


def main() -> None:
    """Run the command. Exit code 1 means something found and nothing else; faults are more."""
    warnings.showwarning = _show_warning
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (to the end)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # names need be neither ASCII nor UTF-8
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    sys.exit(_run())


def _run() -> int:
    try:
        code = int(app(standalone_mode=False) or 0)
        if code == 130:  # typer's number for Ctrl-C
            print("nnad: interrupted", file=sys.stderr)
        return code
    except NnadError as error:
        print(f"nnad: {error}", file=sys.stderr)
        return 2
    except SystemExit:  # typer's way to say that the reader of a pipe has gone
        return 141
    except OSError as error:
        print(f"nnad: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if hasattr(error, "show"):  # wrong use: typer knows how to tell it
            error.show()
        else:
            traceback.print_exc()
        return 2
