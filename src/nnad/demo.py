"""What `nnad demo` needs beside the library: its pictures and its measure."""

from collections.abc import Sequence
from pathlib import Path

from nnad.errors import InputError
from nnad.results import Result

_COOKIES = Path("examples") / "cookies"


def find_demo(folder: Path | None) -> Path:
    """The folder given, else `examples/cookies` here or in the checkout nnad is installed from.

    Raises:
        InputError: the folder has no `train/good` and `test`.
    """
    checkout = Path(__file__).resolve().parents[2]
    candidates = [folder] if folder else [_COOKIES, checkout / _COOKIES]
    for candidate in candidates:
        if (candidate / "train" / "good").is_dir() and (candidate / "test").is_dir():
            return candidate
    raise InputError(
        f"{candidates[0]}: no train/good and test folders here; the demo's pictures are in "
        f"nnad's repository: run it there, or name a folder laid out like it"
    )


def area_under_roc(results: Sequence[Result]) -> float:
    """AUROC of the scores, images in a folder named `good` being the good ones."""
    from sklearn.metrics import roc_auc_score

    scored = [r for r in results if r.score is not None]
    anomalous = [Path(r.name).parent.name != "good" for r in scored]
    if len(set(anomalous)) < 2:
        raise InputError("test: AUROC needs a folder `good` and another one beside it")
    return float(roc_auc_score(anomalous, [r.score for r in scored]))
