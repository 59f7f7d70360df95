import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import draw
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from nnad import Backbone, BackboneError, CallableBackbone, Detector, Ensemble, InputError, int8
from nnad.backbones import Preprocessing
from nnad.cores import int8_overflows
from nnad.int8 import quantized


def images(count, start=0):
    return [Image.fromarray(draw(i)) for i in range(start, start + count)]


def small_network(convolutions: int) -> bytes:
    """Bytes (B, h, w, 3) -> a chain of 3 x 3 convolutions with ReLU -> means (B, 16)."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    constants = []
    for i in range(convolutions):
        channels = 16 if i else 3
        kernel = rng.normal(0, (2 / (9 * channels)) ** 0.5, (16, channels, 3, 3))
        constants.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"y{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"x{convolutions}"], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["features"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", "H", "W", 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", 16])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def small(convolutions: int) -> Backbone:
    return Backbone("small", Preprocessing(32), small_network(convolutions))


@pytest.fixture(scope="module")
def copy(backbone):
    return quantized(backbone, images(12))


@pytest.fixture(scope="module")
def int8_detector(good_folder):
    return Detector(precision="int8").fit(good_folder)


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_features_are_near_the_float_ones_and_the_fingerprint_is_another(backbone, copy):
    for image in images(5, start=50):
        assert 0.98 < cosine(copy.embed(image), backbone.embed(image)) < 1
    assert copy.name == "efficientnet-lite0-int8"
    assert copy.dim == backbone.dim
    assert copy.preprocessing == backbone.preprocessing
    assert copy.fingerprint != backbone.fingerprint
    assert len(copy.onnx) < len(backbone.onnx) / 3


def test_what_is_int8_and_what_is_not(copy):
    graph = onnx.load_from_string(copy.onnx).graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    quantised = [made_by.get(node.input[1]) is not None for node in convolutions]
    assert quantised == [False] * 6 + [True] * 43
    for node in convolutions[6:]:
        weight, scale = (weights[name] for name in made_by[node.input[1]].input[:2])
        assert weight.dtype == np.int8
        assert scale.shape == (len(weight),)  # one scale an output channel
    assert (graph.input[0].type.tensor_type.elem_type) == TensorProto.UINT8
    assert (graph.output[0].type.tensor_type.elem_type) == TensorProto.FLOAT
    pool = next(node for node in graph.node if node.op_type == "GlobalAveragePool")
    assert made_by[pool.input[0]].op_type == "DequantizeLinear"


def test_the_same_images_give_the_same_bytes_and_others_do_not(copy, int8_detector):
    assert int8_detector.backbone.onnx == copy.onnx
    assert quantized(small(8), images(3)).onnx != quantized(small(8), images(12)).onnx


def test_another_network_and_nodes_without_names():
    network = small(8)
    copy = quantized(network, images(4))
    assert cosine(copy.embed(images(1)[0]), network.embed(images(1)[0])) > 0.99
    types = [node.op_type for node in onnx.load_from_string(copy.onnx).graph.node]
    assert types.count("DequantizeLinear") >= 4


def test_what_cannot_be_made_int8(monkeypatch):
    with pytest.raises(BackboneError, match=r"'small' cannot be made int8, .* 6 convolutions, too"):
        quantized(small(6), images(2))
    broken = Backbone("broken", Preprocessing(32), b"no network")
    with pytest.raises(BackboneError, match="'broken' cannot be made int8, use float32"):
        quantized(broken, images(2))
    function = CallableBackbone(lambda batch: batch.mean(axis=(1, 2)), name="function", size=32)
    with pytest.raises(BackboneError, match="is no ONNX network; use float32"):
        quantized(function, images(2))
    with pytest.raises(InputError, match="no readable good image"):
        quantized(small(8), [])
    monkeypatch.setattr(int8, "_AGREEMENT", 1.1)
    with pytest.raises(BackboneError, match=r"too far from the float ones \(median cosine [01]\."):
        quantized(small(8), images(2))


def test_an_ensemble_is_quantised_member_by_member():
    copy = quantized(Ensemble([small(8), small(8)]), iter(images(3)))
    alone = quantized(small(8), images(3))
    assert [member.onnx for member in copy.members] == [alone.onnx] * 2


def test_nothing_is_printed_logged_or_left_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = (list(logging.root.handlers), logging.root.level)
    quantized(small(8), images(2))
    assert capfd.readouterr() == ("", "")
    assert (list(logging.root.handlers), logging.root.level) == before
    assert not list(tmp_path.iterdir())


def test_a_detector_scores_with_int8_and_so_does_its_model(int8_detector, new_folder, tmp_path):
    results = int8_detector.score(new_folder)
    assert int8_detector.backbone.name == "efficientnet-lite0-int8"
    scores = {Path(r.name).stem: r.score for r in results}
    assert min(scores["odd_0"], scores["odd_1"]) > max(scores["good_0"], scores["good_1"])
    int8_detector.save(tmp_path / "m")
    loaded = Detector.load(tmp_path / "m")
    assert loaded.backbone.fingerprint == int8_detector.backbone.fingerprint
    assert loaded.score(new_folder) == results
    assert loaded.score(int8_detector.names[0])[0].nearest[0].distance == 0


def test_float_and_int8_features_never_mix(int8_detector, detector):
    assert int8_detector.names == detector.names
    different = (int8_detector.features != detector.features).any(axis=1)
    assert different.all()  # though the float ones were in the feature cache


def small_detector():
    return Detector(small(8), precision="int8")


def test_fitting_again_starts_from_the_float_network():
    dark, bright = ([draw(i) // part for i in range(8)] for part in (2, 1))
    detector = small_detector().fit(dark)
    first = detector.backbone.fingerprint
    with pytest.raises(InputError, match="no readable good image"):
        detector.fit([b"x"] * 9)
    assert detector.backbone.fingerprint == first  # what failed has changed nothing
    detector.fit(bright)
    expected = small_detector().fit(bright)
    assert detector.backbone.fingerprint == expected.backbone.fingerprint != first
    np.testing.assert_array_equal(detector.features, expected.features)


def test_calibration_passes_over_what_cannot_be_read_and_takes_an_iterator(good_folder):
    listed = [*sorted(good_folder.iterdir()), b"no picture"]
    detector = small_detector().fit(listed)
    assert len(detector.names) == 12
    (skipped,) = detector.skipped
    assert skipped.name == "image[12]"
    buffer = np.empty_like(draw(0))

    def camera():
        for i in range(12):
            buffer[:] = draw(i)
            yield buffer

    from_camera = small_detector().fit(camera())
    np.testing.assert_array_equal(from_camera.features, detector.features)


def test_many_images_are_sampled_evenly():
    from nnad.sources import calibration_sample

    named = [(str(i), b"") for i in range(1001)]
    sample, everything = calibration_sample(named, 1001)
    assert len(sample) == 100
    assert [sample[0][0], sample[-1][0]] == ["0", "1000"]
    assert everything == named
    sample, everything = calibration_sample(iter(named), None)
    assert sample == named[:100]
    assert list(everything) == named


def test_the_command(good_folder, new_folder, tmp_path):
    nnad = shutil.which("nnad", path=str(Path(sys.executable).parent))

    def run(*arguments):
        return subprocess.run([nnad, *map(str, arguments)], capture_output=True, text=True)

    done = run("fit", good_folder, "--model", tmp_path / "m", "--precision", "int8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "efficientnet-lite0-int8, 1280 features" in run("info", tmp_path / "m").stdout
    assert run("score", tmp_path / "m", new_folder).returncode == 0
    done = run("fit", good_folder, "--model", tmp_path / "n", "--precision", "int4")
    assert (done.returncode, done.stderr) == (
        2,
        "nnad: precision='int4'; choose one of float32, int8\n",
    )


def test_where_products_overflow(monkeypatch):
    def told(machine, cpuinfo):
        def read_text(path):
            if cpuinfo is None:
                raise FileNotFoundError(path)
            return cpuinfo

        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr(Path, "read_text", read_text)
        return int8_overflows.__wrapped__()

    assert not told("x86_64", "flags: avx2 avx512_vnni")
    assert not told("x86_64", "flags: avx2 avx_vnni")
    assert told("x86_64", "flags: avx2")
    assert told("AMD64", None)
    assert not told("arm64", None)


def test_the_slower_multiplication_gives_the_same_features(copy, monkeypatch):
    monkeypatch.setattr("nnad.backbones.int8_overflows", lambda: True)
    exact = Backbone(copy.name, copy.preprocessing, copy.onnx)
    for image in images(3):
        np.testing.assert_array_equal(exact.embed(image), copy.embed(image))
