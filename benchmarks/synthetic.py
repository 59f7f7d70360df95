"""The k-NNN paper's synthetic benchmarks: Figures 3 and 8, and Table 5.

Moons, circles and swiss roll in the plane, see `nnad.protocols.plane_task`. The paper names 100 to
500 training points and 5,000 test points and leaves noise and numbers of neighbours open. Our
protocol: 100, 200 and 500 training points, no noise and noise 0.05 (of unit circles; 0.5 for the
roll), 5,000 anomalies, five seeds; every operator with k = 3, p = 1, a ridge of 1e-3 vbar, 25
neighbours of neighbours for k-NNN (one set of both features) and 25 for Local. The settings are the
paper's where it names them and were not tuned. `nnad reproduce knnn --table 5` has the same, cell
by cell.

    python benchmarks/synthetic.py
"""

from pathlib import Path
from typing import Any

import numpy as np
from provenance import write_rows
from sklearn.metrics import roc_auc_score

from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.protocols import SHAPES, plane_task
from nnad.reproduce.figures import PANELS, heat_maps
from nnad.reproduce.knnn import IN_PLANE

DOCS = Path(__file__).parents[1] / "docs"


def table() -> list[dict[str, Any]]:
    rows = []
    for shape in SHAPES:
        for noise in (0.0, 0.05):
            values: dict[str, list[float]] = {name: [] for name in IN_PLANE}
            for count in (100, 200, 500):
                for seed in range(5):
                    task = plane_task(shape, count, noise, seed)
                    for title, (name, arguments) in IN_PLANE.items():
                        fitted = make_operator(name, **arguments).fit(Bank(task.train))
                        scores = fitted.score(task.test)
                        values[title].append(float(roc_auc_score(task.is_anomaly, scores)))
            means = {name: f"{np.mean(v):.4f}" for name, v in values.items()}
            rows.append({"data": shape.capitalize(), "noise": noise, "settings": 15, **means})
    return rows


def main() -> None:
    for number, panels in PANELS.items():
        heat_maps(DOCS / f"knnn-figure-{number}.png", panels)
    write_rows("synthetic", table())


if __name__ == "__main__":
    main()
