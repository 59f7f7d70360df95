"""Write benchmark rows to results/*.csv with the command, commit, machine and date beside them."""

import csv
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace `results/<name>.csv` with these rows, and print them."""
    told = {"command": _command(), "commit": COMMIT, "machine": _machine(), "date": _now()}
    fields = list(dict.fromkeys(key for row in rows for key in row)) + list(told)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **told} for row in rows)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


def _command() -> str:
    arguments = ["DIR" if Path(a).is_absolute() else a for a in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def _commit() -> str:
    """The commit at the start, `-dirty` if files had changed since."""
    run = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=RESULTS, check=True)
    return done.stdout.strip()


COMMIT = _commit()


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [li for li in cpuinfo.read_text().splitlines() if li.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
