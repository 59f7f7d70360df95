"""The embedded backbones against the torch model they come from."""

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from nnad import load_backbone
from nnad.efficientnet import VARIANTS, _weights_path
from nnad.weights import read_state_dict


@pytest.mark.parametrize("name", VARIANTS)
def test_state_dict_equals_what_torch_reads(name):
    path = _weights_path(name)
    ours = read_state_dict(path, VARIANTS[name].sha256)
    theirs = torch.load(path, weights_only=True)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value.numpy())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shape", ["square", "wide"])
def test_features_equal_the_torch_model(name, shape):
    size = VARIANTS[name].image_size
    height, width = (size, size) if shape == "square" else (97, 333)
    model = EfficientNet.from_name(name, image_size=(height, width))
    model.load_state_dict(torch.load(_weights_path(name), weights_only=True))
    model.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    inputs = torch.tensor((pixels.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.extract_features(inputs).mean(dim=(2, 3)).numpy()
    ours = load_backbone(name)._session.run(["features"], {"image": pixels})[0]
    error = np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() <= 1e-5
