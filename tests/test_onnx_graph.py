"""Pooling, stages and ONNX files, on networks small enough to compute by hand."""

import json

import numpy as np
import onnx
import pytest
from conftest import draw
from onnx import TensorProto, helper
from PIL import Image

from nnad import BackboneError, Detector, InputError, load_backbone
from nnad.backbones import start_session
from nnad.efficientnet import STAGES
from nnad.onnx_graph import Graph, assemble, pool_map
from nnad.preprocessing import Preprocessing

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]


def write_network(path, *, layout="nchw", batch="N", side=None, opset=17, dtype="FLOAT"):
    """`plain`, the input itself; `signed`, half of it minus 0.5; `tokens`, (B, 64 + 0, 3)."""
    graph = Graph()
    graph.add("Identity", ["x"], output="plain")
    kind = np.float16 if dtype == "FLOAT16" else np.float32
    half = graph.add("Mul", ["x", graph.constant("half", kind(0.5))])
    graph.add("Sub", [half, "half"], output="signed")
    rows = graph.add("Reshape", ["x", graph.constant("rows", np.array([0, 3, -1]))])
    graph.add("Transpose", [rows], perm=[0, 2, 1], output="tokens")
    graph.add("ReduceMax", ["x"], axes=[2, 3], keepdims=0, output="vector")
    shape = [batch, 3, side or "H", side or "W"]
    shape = shape if layout == "nchw" else [batch, side or "H", side or "W", 3]
    value = getattr(TensorProto, dtype)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "small",
            [helper.make_tensor_value_info("x", value, shape)],
            [helper.make_tensor_value_info("plain", value, shape)],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    onnx.save(model, path)
    return path


def write_sidecar(path, **changes):
    told = {"mean": MEAN, "std": STD, "scale": 1, "size": 64, "geometry": "whole", **changes}
    told = {key: value for key, value in told.items() if value is not None}
    path.with_name(f"{path.name}.json").write_text(json.dumps(told))


def normalised(picture, size=64):
    pixels = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
    return (pixels / 255.0 - MEAN) / STD  # (h, w, 3)


@pytest.fixture
def network(tmp_path):
    path = write_network(tmp_path / "net.onnx")
    write_sidecar(path)
    return path


def embed(path, picture, **options):
    return load_backbone(f"onnx:{path}", **options).embed(Image.fromarray(picture))


def test_pooling_by_hand():
    values = np.array([[[[1, 2], [3, 0]], [[-1, -2], [-3, -4]]]], np.float32)  # (1, 2, 2, 2)
    expected = {
        "mean": [1.5, -2.5],
        "max": [3, -1],
        "gem": [9 ** (1 / 3), 1e-6],  # (1 + 8 + 27 + 0) / 4 = 9
    }
    for pooling, numbers in expected.items():
        graph = Graph()
        pool_map(graph, "x", pooling)
        model = helper.make_model(
            helper.make_graph(
                graph.nodes,
                "pool",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 2, 2])],
                [helper.make_tensor_value_info(graph.nodes[-1].output[0], TensorProto.FLOAT, None)],
                graph.constants,
            ),
            opset_imports=[helper.make_opsetid("", 13)],
            ir_version=8,
        )
        (found,) = start_session(model.SerializeToString(), "pool").run(None, {"x": values})
        np.testing.assert_allclose(found, [numbers], rtol=1e-5)


def test_a_file_is_normalised_as_its_sidecar_says(network):
    picture = draw(0)
    expected = normalised(picture).mean(axis=(0, 1))
    np.testing.assert_allclose(embed(network, picture), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        load_backbone(network).embed(Image.fromarray(picture)), embed(network, picture)
    )
    write_sidecar(network, scale=255, mean=[255 * v for v in MEAN], std=[255 * v for v in STD])
    np.testing.assert_allclose(embed(network, picture), expected, rtol=1e-4, atol=1e-6)
    write_sidecar(network, colours="bgr")
    np.testing.assert_allclose(embed(network, picture), expected[::-1], rtol=1e-4, atol=1e-6)
    declared = {"mean": MEAN, "std": STD, "scale": 1, "size": 64, "geometry": "whole"}
    found = embed(network, picture, declared=declared)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_stages_are_scaled_to_length_one_and_put_side_by_side(network):
    pixels = normalised(draw(0))
    maxima, signed = pixels.max(axis=(0, 1)), (pixels / 2 - 0.5).max(axis=(0, 1))
    found = embed(network, draw(0), stages=("signed", "plain"), pooling="max")
    parts = [part / np.linalg.norm(part) for part in (signed, maxima)]
    np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-4)


def test_tokens(network):
    tokens = normalised(draw(0)).reshape(-1, 3)  # (T, C)
    for pooling, expected in {
        None: tokens[0],
        "cls": tokens[0],
        "mean": tokens[1:].mean(axis=0),
        "max": tokens[1:].max(axis=0),
    }.items():
        found = embed(network, draw(0), stages=("tokens",), pooling=pooling)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    write_sidecar(network, outputs=["tokens"], prefix_tokens=0)
    found = embed(network, draw(0))
    np.testing.assert_allclose(found, tokens.mean(axis=0), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="'tokens' has no class token"):
        embed(network, draw(0), pooling="cls")


def test_maps_are_not_pooled(network):
    pixels = normalised(draw(0))
    write_sidecar(network, prefix_tokens=0)
    backbone = load_backbone(network, stages=("signed", "plain", "tokens"), pooling="map")
    signed, plain, tokens = backbone.maps(Image.fromarray(draw(0)))
    np.testing.assert_allclose(signed, pixels / 2 - 0.5, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(plain, pixels, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(tokens, plain)  # 4096 tokens, back in their square
    with pytest.raises(BackboneError, match="gives maps"):
        backbone.embed(Image.fromarray(draw(0)))
    with pytest.raises(BackboneError, match="gives maps"):
        Detector(backbone).fit([draw(i) for i in range(5)])
    with pytest.raises(BackboneError, match="pooling='map'"):
        load_backbone(network).maps(Image.fromarray(draw(0)))
    flipped = load_backbone(network, pooling="map", flips="horizontal")
    with pytest.raises(InputError, match="flips"):
        flipped.maps(Image.fromarray(draw(0)))


def test_only_squares_can_be_maps(network):
    for stage in ("vector", "tokens"):  # with a class token, 4095 places are left
        with pytest.raises(InputError, match="no square"):
            load_backbone(network, stages=(stage,), pooling="map")


@pytest.mark.parametrize(
    "shape", [{"layout": "nhwc"}, {"batch": 1, "side": 64}, {"dtype": "FLOAT16"}, {"opset": 13}]
)
def test_other_layouts_types_and_fixed_shapes(tmp_path, shape):
    path = write_network(tmp_path / "net.onnx", **shape)
    write_sidecar(path, size=None if "side" in shape else 64)
    found = embed(path, draw(0), flips="both")
    rtol = 1e-2 if "dtype" in shape else 1e-4
    np.testing.assert_allclose(found, normalised(draw(0)).mean(axis=(0, 1)), rtol=rtol, atol=1e-3)


def test_a_detector_keeps_the_file_and_its_preprocessing(network, good_folder, tmp_path):
    detector = Detector(load_backbone(network, stages=("signed",), flips="both")).fit(good_folder)
    detector.save(tmp_path / "m")
    network.unlink()
    loaded = Detector.load(tmp_path / "m")
    assert loaded.backbone.preprocessing == detector.backbone.preprocessing
    assert loaded.backbone.name == "onnx:net.onnx"
    assert loaded.score(draw(100)) == detector.score(draw(100))


def test_what_is_not_needed_is_not_kept(network):
    kept = onnx.load_from_string(load_backbone(network).onnx)
    assert {"half", "rows"}.isdisjoint(tensor.name for tensor in kept.graph.initializer)


def test_a_file_without_a_sidecar(network):
    network.with_name("net.onnx.json").unlink()
    with pytest.raises(BackboneError, match=r"write .*net\.onnx\.json.* \{\"size\": 224") as raised:
        load_backbone(network)
    shown = str(raised.value)
    network.with_name("net.onnx.json").write_text(shown[shown.index("{") :])
    assert load_backbone(network).preprocessing.size == 224


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None}, "lacks mean"),
        ({"scale": 2}, r"net\.onnx\.json: scale=2; expected 1 or 255"),
        ({"scale": [1]}, r"net\.onnx\.json: scale=\[1\]; expected 1 or 255"),
        ({"scale": True}, r"net\.onnx\.json: scale=True; expected 1 or 255"),
        ({"sise": 3}, "'sise' has no meaning; there are: colours, crop_fraction"),
        ({"std": "abc"}, r"net\.onnx\.json: std='abc'; expected three numbers"),
        ({"std": [1, True, 1]}, r"std=\[1, True, 1\]; expected three numbers"),
        ({"mean": [1, 2]}, r"mean=\[1, 2\]; expected three numbers"),
        ({"mean": [0, 0, float("nan")]}, "its sidecar is wrong: mean="),
        ({"std": [1, 1, 0]}, "its sidecar is wrong: std="),
        ({"size": None}, "takes images of any size; say in the sidecar"),
        ({"size": "big"}, r"net\.onnx\.json: size='big'; expected a number of pixels"),
        ({"size": True}, "size=True; expected a number of pixels"),
        ({"size": 8}, "its sidecar is wrong: size=8; expected 32 to 4096"),
        ({"geometry": ["crop"]}, r"geometry=\['crop'\]; expected a name"),
        ({"geometry": "round"}, "its sidecar is wrong: geometry='round'"),
        ({"crop_fraction": "1"}, "crop_fraction='1'; expected a number"),
        ({"layout": 1}, "layout=1; expected nchw or nhwc"),
        ({"layout": "chwn"}, "layout='chwn'; say nchw or nhwc"),
        ({"layout": "nhwc"}, "its input is nchw, and the sidecar says nhwc"),
        ({"outputs": ["nothing"]}, "has no 'nothing'; there are: plain"),
        ({"outputs": []}, r"outputs=\[\]; expected a list of names of tensors"),
        ({"outputs": 5}, r"net\.onnx\.json: outputs=5; expected a list of names of tensors"),
        ({"outputs": "plain"}, "outputs='plain'; expected a list of names of tensors"),
        ({"outputs": [["plain"]]}, r"outputs=\[\['plain'\]\]; expected a list of names"),
        ({"outputs": ["plain", "plain"]}, "expected different names"),
        ({"prefix_tokens": "a"}, "prefix_tokens='a'; expected a whole number, 0 or more"),
        ({"prefix_tokens": -1}, "prefix_tokens=-1; expected a whole number, 0 or more"),
        ({"prefix_tokens": True}, "prefix_tokens=True; expected a whole number, 0 or more"),
    ],
)
def test_a_sidecar_that_is_wrong(network, changes, message):
    write_sidecar(network, **changes)
    with pytest.raises((BackboneError, InputError), match=message):
        load_backbone(network)


def test_a_key_without_a_value(network):
    for key in ("scale", "outputs", "size", "prefix_tokens"):
        declared = {"mean": MEAN, "std": STD, "scale": 1, "size": 64, key: None}
        with pytest.raises(BackboneError, match=f"declared: {key}=None; expected"):
            load_backbone(network, declared=declared)
        network.with_name("net.onnx.json").write_text(json.dumps(declared))
        with pytest.raises(BackboneError, match=rf"net\.onnx\.json: {key}=None; expected"):
            load_backbone(network)


def test_files_that_are_no_networks(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(BackboneError, match="cannot read the network: No such file"):
        load_backbone(path)
    for content in (b"no network", b""):
        path.write_bytes(content)
        with pytest.raises(BackboneError, match=r"net\.onnx: "):
            load_backbone(path)
    write_network(path, batch=8)
    write_sidecar(path)
    with pytest.raises(BackboneError, match="takes 8 images at a time"):
        load_backbone(path)
    write_network(path, dtype="INT64")
    with pytest.raises(BackboneError, match="not a batch of images of floats"):
        load_backbone(path)
    write_network(path, side=64)
    with pytest.raises(InputError, match=r"size=96: .* takes 64 pixels"):
        load_backbone(path, size=96)
    path.with_name("net.onnx.json").write_text("[")
    with pytest.raises(BackboneError, match=r"net\.onnx\.json: cannot be read as JSON"):
        load_backbone(path)


def test_an_old_opset_is_refused(network):
    model = onnx.load(network)
    model.opset_import[0].version = 9
    with pytest.raises(BackboneError, match="opset 9; export it with opset 11"):
        assemble(model, Preprocessing(64), {"plain": (1, 3, 64, 64)})


def write_clashing_network(path):
    """Input `image`; `features` = 2 x, pooled to `nnad/cast_0`; and `chosen`, `image` or an outer
    constant by an If, whose inner graph has names of ours too."""

    shape = ["N", 3, "H", "W"]

    def branch(source):
        add = helper.make_node("Add", [source, "nnad/mean"], [f"nnad/{source}"])
        output = helper.make_tensor_value_info(f"nnad/{source}", TensorProto.FLOAT, shape)
        return helper.make_graph([add], source, [], [output])

    graph = Graph()
    graph.constant("nnad/mean", np.float32(3))  # read in the inner graphs only
    graph.constant("yes", np.array(True))
    graph.add("Add", ["image", "image"], output="features")
    graph.add("GlobalMaxPool", ["features"], output="network/features")
    graph.add("Flatten", ["network/features"], output="nnad/cast_0")
    branches = {"then_branch": branch("image"), "else_branch": branch("features")}
    graph.add("If", ["yes"], output="chosen", **branches)
    shapes = {"features": shape, "nnad/cast_0": ["N", 3], "chosen": shape}
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "clashing",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, path)


def test_a_networks_own_names_may_be_those_around_it(tmp_path):
    path = tmp_path / "net.onnx"
    write_clashing_network(path)
    pixels = normalised(draw(0))
    mean, largest = pixels.mean(axis=(0, 1)), pixels.max(axis=(0, 1))
    expected = {"features": 2 * mean, "nnad/cast_0": 2 * largest, "chosen": mean + 3}
    for stage, values in expected.items():
        write_sidecar(path, outputs=[stage])
        np.testing.assert_allclose(embed(path, draw(0)), values, rtol=1e-4, atol=1e-6)
    parts = [values / np.linalg.norm(values) for values in expected.values()]
    found = embed(path, draw(0), stages=tuple(expected))
    np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="stage 'nnad/cast_0' is one vector"):
        embed(path, draw(0), stages=("nnad/cast_0",), pooling="max")


def test_names_that_do_not_clash_stay(network):
    kept = onnx.load_from_string(load_backbone(network, stages=("signed",)).onnx)
    names = [name for node in kept.graph.node for name in node.output]
    assert "signed" in names
    assert not any(name.startswith("network/") for name in names)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
def test_every_stage_of_the_embedded_networks(name):
    alone = []
    for stage in STAGES:
        backbone = load_backbone(name, stages=(stage,), pooling="max", size=64)
        alone.append(backbone.embed(Image.fromarray(draw(0))))
    channels = {"efficientnet-lite0": [24, 40, 80, 112, 192, 320, 1280]}
    channels["efficientnet-lite2"] = [24, 48, 88, 120, 208, 352, 1280]
    assert [len(feature) for feature in alone] == channels[name]
    together = load_backbone(name, stages=STAGES, pooling="max", size=64)
    found = together.embed(Image.fromarray(draw(0)))
    expected = np.concatenate([feature / np.linalg.norm(feature) for feature in alone])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_papers_feature_is_the_head_averaged(backbone):
    named = load_backbone(stages=("head",), pooling="mean")
    assert named.embed(Image.fromarray(draw(0))) == pytest.approx(
        backbone.embed(Image.fromarray(draw(0)))
    )
    several = load_backbone(stages=("s16b", "s32a", "head"), pooling="gem")
    parts = np.split(several.embed(Image.fromarray(draw(0))), [112, 304])
    assert [len(part) for part in parts] == [112, 192, 1280]
    np.testing.assert_allclose([np.linalg.norm(part) for part in parts], 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("s64",)}, "has no 's64'; there are: s4, s8, s16a, s16b, s32a, s32b, head"),
        ({"stages": "head"}, "expected different names of stages, in a tuple"),
        ({"stages": ("head", "head")}, "expected different names"),
        ({"stages": ()}, "expected different names"),
        ({"pooling": "median"}, "pooling='median'; choose one of mean, max, gem, cls"),
        ({"pooling": "cls"}, "stage 'head' has no class token"),
    ],
)
def test_wrong_stages_and_poolings(options, message):
    with pytest.raises(InputError, match=message):
        load_backbone(**options)
