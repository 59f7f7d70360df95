"""nnad: anomaly detection in images by nearest neighbours.

>>> from nnad import Detector
>>> detector = Detector().fit("good_images/")         # doctest: +SKIP
>>> for result in detector.score("new_images/"):      # doctest: +SKIP
...     print(result.name, result.p_value, result.nearest[0].name)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nnad.backbones import Backbone as Backbone
    from nnad.backbones import load_backbone as load_backbone
    from nnad.callable_backbone import CallableBackbone as CallableBackbone
    from nnad.detector import Detector as Detector
    from nnad.ensemble import Ensemble as Ensemble
    from nnad.errors import BackboneError as BackboneError
    from nnad.errors import BudgetError as BudgetError
    from nnad.errors import DatasetError as DatasetError
    from nnad.errors import ImageError as ImageError
    from nnad.errors import ImageWarning as ImageWarning
    from nnad.errors import InputError as InputError
    from nnad.errors import ModelError as ModelError
    from nnad.errors import NnadError as NnadError
    from nnad.groups import GroupDetector as GroupDetector
    from nnad.located import Patches as Patches
    from nnad.located import patch_backbone as patch_backbone
    from nnad.patch_model import PatchModel as PatchModel
    from nnad.results import GroupResult as GroupResult
    from nnad.results import Member as Member
    from nnad.results import Neighbor as Neighbor
    from nnad.results import Result as Result
    from nnad.tiles import Tiles as Tiles

# name -> module; looked up on first use, so that `import nnad` costs nothing (PEP 562)
_HOME = {
    "Backbone": "backbones",
    "load_backbone": "backbones",
    "CallableBackbone": "callable_backbone",
    "Ensemble": "ensemble",
    "Detector": "detector",
    "GroupDetector": "groups",
    "Patches": "located",
    "patch_backbone": "located",
    "PatchModel": "patch_model",
    "Tiles": "tiles",
    "GroupResult": "results",
    "Member": "results",
    "Neighbor": "results",
    "Result": "results",
    "BackboneError": "errors",
    "BudgetError": "errors",
    "DatasetError": "errors",
    "ImageError": "errors",
    "ImageWarning": "errors",
    "InputError": "errors",
    "ModelError": "errors",
    "NnadError": "errors",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nnad' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nnad.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
