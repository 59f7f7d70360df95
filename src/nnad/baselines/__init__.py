"""The systems that DN2 and k-NNN were compared with, under one contract.

| name        | system                                     | what is trained                       |
|-------------|--------------------------------------------|---------------------------------------|
| `ocsvm`     | one-class SVM on pixels or features        | a kernel machine                      |
| `deep-svdd` | Ruff et al., ICML 2018                     | a small network towards one point     |
| `geom`      | Golan and El-Yaniv, NeurIPS 2018           | which of 72 transforms was applied    |
| `goad`      | Bergman and Hoshen, ICLR 2020              | the same, by distances to 72 centres  |
| `mhrot`     | Hendrycks et al., NeurIPS 2019             | rotation and shifts, by three heads   |

    baseline = make_baseline("geom", "small", seed=1).fit(good)
    scores = baseline.score(new)    # (N,), higher is more anomalous
    baseline.save("geom.safetensors")
    load_baseline("geom.safetensors").score(new)

Images are arrays (N, H, W, C) of uint8, of one size; `read_images` makes them of a folder. All but
`ocsvm` need torch: pip install 'nnad[torch]'.
"""

import importlib
from pathlib import Path
from typing import Any

from nnad.baselines.contract import Baseline, read_header, read_images
from nnad.errors import InputError

__all__ = ["NAMES", "Baseline", "load_baseline", "make_baseline", "read_images"]

# name -> module and class, imported when it is asked for
_HOME = {
    "ocsvm": ("ocsvm", "OCSVM"),
    "deep-svdd": ("deep_svdd", "DeepSVDD"),
    "geom": ("geom", "GEOM"),
    "goad": ("goad", "GOAD"),
    "mhrot": ("mhrot", "MHRot"),
}
NAMES = tuple(_HOME)


def make_baseline(
    name: str, preset: str = "paper", *, seed: int = 0, device: str = "cpu", **changes: Any
) -> Baseline:
    """A system by name, see `Baseline`.

    Raises:
        InputError: no such system, preset or setting, or torch is not installed.
    """
    if name not in _HOME:
        raise InputError(f"baseline={name!r}; choose one of {', '.join(NAMES)}")
    module, class_name = _HOME[name]
    try:
        kind = getattr(importlib.import_module(f"nnad.baselines.{module}"), class_name)
    except ImportError as error:
        raise InputError(
            f"baseline {name!r} needs {error.name}: pip install 'nnad[torch]'"
        ) from error
    made: Baseline = kind(preset, seed=seed, device=device, **changes)
    return made


def load_baseline(path: str | Path, *, device: str = "cpu") -> Baseline:
    """Open what `Baseline.save` wrote.

    Raises:
        BackboneError: OC-SVM's features were another backbone's.
        ModelError: the file is missing, damaged or of another kind.
        InputError: torch is not installed.
    """
    told = read_header(Path(path))
    empty = make_baseline(
        told["name"], told["preset"], seed=told["seed"], device=device, **told["settings"]
    )
    return empty.restored(Path(path))
