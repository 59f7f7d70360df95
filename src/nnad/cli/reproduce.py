"""`nnad reproduce`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from nnad.cli.telling import visible
from nnad.errors import InputError

if TYPE_CHECKING:
    from nnad.reproduce.settings import Run
    from nnad.reproduce.tables import Table


def reproduce(
    paper: Annotated[str, typer.Argument(help="dn2 or knnn.")],
    table: Annotated[
        Optional[str],  # noqa: UP045 (typer wants it)
        typer.Option(help="The table's number; without one of the three, all are listed."),
    ] = None,
    figure: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The figure's number."),
    ] = None,
    section: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A section that has numbers in its text alone."),
    ] = None,
    data: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="The folder of all data sets, or NAME=PATH of one; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of results, to go on from.")] = Path(
        "reproduced"
    ),
    backbone: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Instead of the paper's network; repeated for a table of networks."),
    ] = None,
    weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of torchvision and timm networks: a file, a name, or random."),
    ] = None,
    transform: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of the features, instead of the paper's raw ones."),
    ] = None,
    also: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="An operator or preset as a further column, such as auto; repeatable."),
    ] = None,
    system: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="What is computed: features (default), panda, geom, ..., or all."),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Of systems that learn: paper, or small, to try.")
    ] = "paper",
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Processes; one for each core by default."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Of networks: cpu, or cuda or cuda:1 with a GPU.")
    ] = "cpu",
) -> None:
    """Run a table or figure of DN2 or k-NNN on your data, beside the paper's numbers."""
    from nnad.files import replacing
    from nnad.reproduce.run import run
    from nnad.reproduce.settings import Settings
    from nnad.reproduce.tables import all_tables, find_table
    from nnad.reproduce.told import closing, markdown

    kinds = {"table": table, "figure": figure, "section": section}
    asked = {kind: number for kind, number in kinds.items() if number is not None}
    if not asked:
        known = [t for t in all_tables() if t.paper == paper]
        if not known:
            find_table(paper, "table", "1")  # says which papers there are
        for each in known:
            print(f"--{each.kind} {each.number:<4} {each.caption}")
        return
    if len(asked) > 1:
        raise InputError(f"--{' and --'.join(asked)}: give one of them")
    declared = find_table(paper, *asked.popitem())
    root, given = _places(data or [])
    systems = system or ["features"]
    settings = Settings(
        out=out,
        root=root,
        given=given,
        backbones=backbone or (),
        weights=weights,
        transform=transform,
        also=also or (),
        systems=_every(declared) if "all" in systems else systems,
        preset=preset,
        workers=workers,
        device=device,
        progress=True,
    )
    result = run(declared, settings, lambda line: print(line, file=sys.stderr))
    try:
        picture = _draw(result, out / f"{declared.name}.png")
    except InputError as error:  # no matplotlib; the numbers are there
        picture, result.problems["picture"] = False, str(error)
    page, text = out / f"{declared.name}.md", markdown(result, _command(), picture=picture)
    print(text, end="")
    if any(result.scored) or picture:
        with replacing(page) as file:
            file.write(text.encode())
    for what, why in result.problems.items():
        print(f"nnad: {visible(what)}: {visible(why)}", file=sys.stderr)
    print(f"{closing(result)}: {visible(str(page))}", file=sys.stderr)
    if not any(result.scored) and not picture:
        raise typer.Exit(2)


def _every(table: "Table") -> list[str]:
    """The systems that a table has."""
    return list(dict.fromkeys(entry.system.name for entry in table.entries))


def _places(data: list[str]) -> tuple[Path | None, dict[str, Path]]:
    from nnad.reproduce.data import DATA

    root, given = None, {}
    for text in data:
        name, equals, path = text.partition("=")
        if equals and name in DATA:
            given[name] = Path(path)
        elif equals and not Path(text).exists():
            raise InputError(f"--data {text}: no data set {name!r}; there are {', '.join(DATA)}")
        elif root is not None:
            raise InputError(f"--data {text}: a second folder; name single sets as NAME=PATH")
        else:
            root = Path(text)
            if not root.is_dir():
                raise InputError(f"--data {text}: no such folder")
    return root, given


def _draw(result: "Run", path: Path) -> bool:
    """The picture of a figure, if it has one; whether there is one."""
    if result.table.kind != "figure":
        return False
    from nnad.reproduce.figures import PANELS, curves, embedding, heat_maps

    table = result.table
    if table.paper == "knnn":
        heat_maps(path, PANELS[table.number])
        return True
    if table.shows_features:
        if result.labels is None:
            return False
        classes = [(e.row, e.classes) for e in table.entries]
        normal = {row: of[0] for row, of in classes if isinstance(of, tuple)}
        embedding(result.shown, result.labels, normal, path)
        return True
    return curves(result, path)


def _command() -> str:
    """What was typed, without the paths of this machine."""
    told, option = [], ""
    for text in sys.argv[1:]:
        given, equals, value = text.partition("=")
        if option == "--data" or (given == "--data" and equals):
            name, named, _ = (value if given == "--data" else text).rpartition("=")
            told.append("--data=" * (given == "--data") + f"{name}{named}DIR")
        elif option == "--out" or (given == "--out" and equals):
            told.append("--out=" * bool(equals) + "DIR")
        else:
            told.append(Path(text).name if Path(text).is_absolute() else text)
        option = text
    return shlex.join(["nnad", *told])
