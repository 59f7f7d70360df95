"""`nnad demo`."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from nnad.cli.telling import at_budget, promise, tell_ranking
from nnad.errors import counted


def demo(
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A folder with train/good and test/*; the cookies by default."),
    ] = None,
    picture: Annotated[str, typer.Option(help="Where to draw.")] = "nnad-demo.png",
) -> None:
    """Fit and score the example cookies: which are broken, why, and how sure that is."""
    from nnad.backbones import load_backbone
    from nnad.demo import area_under_roc, find_demo
    from nnad.detector import Detector
    from nnad.report import check_picture, contact_sheet

    check_picture(picture)
    folder = find_demo(data)
    # Cookies lie any way up, and broken ones reach to the edge. One good training picture is unlike
    # all others, so the budget leaves room for two of 32 (docs/decisions.md has the reasons).
    network = load_backbone(geometry="letterbox", flips="both")
    detector = Detector(network, false_alarms=None if data else 2 / 32).fit(
        folder / "train" / "good", progress=True
    )
    results = detector.score(folder / "test", progress=True)
    tell_ranking(results, at_budget(detector.false_alarms), sys.stdout)
    print(f"fitted on {counted(len(detector.names), 'good image')}; {promise(detector)}")
    print(f"AUROC {area_under_roc(results):.3f} (1 is a perfect ranking, 0.5 a coin)")
    contact_sheet([r for r in results if r.is_anomaly] or results, picture)
    print(f"{picture}: each anomaly beside its nearest good image")
