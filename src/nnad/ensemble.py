"""Several backbones as one: each feature scaled to length 1, then side by side."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad.backbones import Backbone, Features
from nnad.errors import BackboneError, InputError
from nnad.transforms import l2


class _OfMembers:
    """An attribute of a backbone that an ensemble has only in its members; reading it says so."""

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, ensemble: "Ensemble | None", _owner: type) -> Any:
        if ensemble is None:
            return self
        raise _only_members_have(ensemble, self._name)


class Ensemble(Backbone):
    """Backbones whose features are concatenated, each scaled to length 1 before.

    So each has the same say, whatever the size of its numbers. Every member sees the image through
    its own preprocessing.

    What belongs to one network, `preprocessing`, `onnx`, `details`, `reference` and `features()`,
    is in the `members` only; an ensemble raises a `BackboneError` for it.

    Args:
        members: two or more backbones, none of them an ensemble.
    """

    preprocessing: Any = _OfMembers()
    onnx: Any = _OfMembers()
    details: Any = _OfMembers()
    reference: Any = _OfMembers()

    def __init__(self, members: Sequence[Backbone]) -> None:
        if len(members) < 2 or any(isinstance(member, Ensemble) for member in members):
            raise InputError("an ensemble has two or more backbones, none of them an ensemble")
        self.members = tuple(members)
        self.name = "+".join(member.name for member in members)
        self.device = members[0].device

    def __repr__(self) -> str:
        return f"Ensemble({list(self.members)})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over those of the members, in hex."""
        together = " ".join(member.fingerprint for member in self.members)
        return hashlib.sha256(together.encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """All but the networks, as JSON, for a saved model."""
        return {
            "kind": "ensemble",
            "name": self.name,
            "members": [member.settings() for member in self.members],
            "fingerprint": self.fingerprint,
        }

    @property
    def networks(self) -> list[bytes]:
        """The ONNX files that a saved model needs, in the order of the members."""
        return [network for member in self.members for network in member.networks]

    def check_same(self, settings: dict[str, Any]) -> None:
        """Raise a `BackboneError` unless all members are those of a saved model."""
        told = settings.get("members", [])
        if len(told) != len(self.members):
            raise BackboneError(f"backbone {self.name!r} is not the one the model was made with")
        for member, of_member in zip(self.members, told, strict=True):
            member.check_same(of_member)

    def describe(self) -> list[tuple[str, str]]:
        """The members' lines, one after the other."""
        return [line for member in self.members for line in member.describe()]

    @property
    def gives_maps(self) -> bool:
        """Members' maps are of different places."""
        return False

    @cached_property
    def dim(self) -> int:
        """D, the sum of the members'."""
        return sum(member.dim for member in self.members)

    def features(self, batch: NDArray[np.uint8]) -> Features:  # noqa: ARG002 (see the class)
        """Not of an ensemble: each member has its own preprocessed images."""
        raise _only_members_have(self, "features")

    def embed(self, image: Image.Image) -> Features:
        """Feature (D,) of an RGB image."""
        return _side_by_side([member.embed(image) for member in self.members])

    @property
    def exported(self) -> bool:
        """Whether a member was exported from torch."""
        return any(member.exported for member in self.members)

    def embed_reference(self, image: Image.Image) -> Features:
        """Feature (D,) of an RGB image by the members' torch networks, where they have one."""
        return _side_by_side(
            [(m.embed_reference if m.exported else m.embed)(image) for m in self.members]
        )


def _only_members_have(ensemble: Ensemble, name: str) -> BackboneError:
    return BackboneError(
        f"backbone {ensemble.name!r}: an ensemble has no {name!r} of its own; each of its members "
        f"has, such as .members[0].{name}"
    )


def _side_by_side(features: list[Features]) -> Features:
    return np.concatenate([l2(feature[None])[0] for feature in features])
