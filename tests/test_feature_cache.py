import functools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from nnad import (
    CallableBackbone,
    Detector,
    Ensemble,
    ImageError,
    ImageWarning,
    feature_cache,
    images,
    load_backbone,
)
from nnad.backbones import Backbone
from nnad.feature_cache import FeatureCache
from nnad.features import extract
from nnad.files import cache_folder

network = functools.cache(load_backbone)  # else each empty cache folder has it built again


@pytest.fixture
def database(tmp_path, monkeypatch):
    """Where the cache's file will be; nothing is there yet."""
    monkeypatch.setenv("NNAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features-v1.sqlite"


@pytest.fixture
def embedded(monkeypatch):
    """The number of images embedded so far, as the length of a list."""
    calls, embed = [], Backbone.embed

    def counted(backbone, image):
        calls.append(backbone.name)
        return embed(backbone, image)

    monkeypatch.setattr(Backbone, "embed", counted)
    return calls


def features(sources, backbone, **options):
    named = [(str(i), source) for i, source in enumerate(sources)]
    return [feature for _, feature in extract(named, backbone, **options)]


def stored(database):
    with sqlite3.connect(database, timeout=60) as connection:
        rows = connection.execute("SELECT count(*) FROM feature").fetchone()[0]
    connection.close()
    return rows


def test_a_second_fit_embeds_nothing_and_is_equal_bit_for_bit(good_folder, database, embedded):
    plain = Detector().fit(good_folder, cache=False)
    assert not database.exists()
    first = Detector().fit(good_folder)
    assert len(embedded) == 24
    second = Detector(operator="knn").fit(good_folder)
    assert len(embedded) == 24
    for detector in (first, second):
        np.testing.assert_array_equal(detector.features, plain.features)
        assert detector.names == plain.names
    first.score(good_folder)
    assert len(embedded) == 36  # scoring neither reads nor writes it
    assert stored(database) == 12


def test_the_same_content_under_any_name_and_from_memory(good_folder, database, embedded, tmp_path):
    backbone = network()
    path = sorted(good_folder.iterdir())[0]
    shutil.copy(path, tmp_path / "other.jpg")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "in/side.png")
    (first,) = features([path], backbone, cache=True)
    same = [tmp_path / "other.jpg", path.read_bytes(), tmp_path / "a.zip" / "in" / "side.png"]
    again = features(same, backbone, cache=True)
    assert len(embedded) == 1
    np.testing.assert_array_equal(again, [first] * 3)
    again[0][:] = 0  # a feature is its owner's to change

    arrays = [draw(3), draw(3)[:, :, 0], draw(3)[:, :, 0].T, draw(3) > 90, draw(3) / 255]
    new = features(arrays, backbone, cache=True)
    assert len(embedded) == 6
    for source, known in zip(arrays, features(arrays, backbone, cache=True), strict=True):
        np.testing.assert_array_equal(known, backbone.embed(feature_cache.read_image(source)))
    assert len(embedded) == 6 + 5  # these five in the loop
    assert len({feature.tobytes() for feature in new}) == 4  # draw(3) and draw(3) / 255 are one
    Image.fromarray(draw(9)).save(tmp_path / "other.jpg", "PNG")  # other content, same name
    features([tmp_path / "other.jpg"], backbone, cache=True)
    assert len(embedded) == 12


def test_shape_dtype_and_backbone_are_part_of_the_key(database, embedded):
    flat = np.zeros((4, 16), np.uint8)
    same_bytes = [flat, flat.reshape(8, 8), flat.astype(bool), flat.reshape(16, 4)]
    for options in ({}, {"flips": "horizontal"}, {"geometry": "letterbox"}):
        features(same_bytes, network(**options), cache=True)
    assert len(embedded) == 12
    assert stored(database) == 12


def test_functions_are_not_cached(database):
    def function(batch):
        return batch.mean(axis=(1, 2))

    backbone = CallableBackbone(function)
    assert len(features([draw(0)], backbone, cache=True)) == 1
    features([draw(0)], Ensemble([backbone, network()]), cache=True)
    assert not database.exists()
    features([draw(0)], Ensemble([network(), network(flips="both")]), cache=True)
    assert stored(database) == 1


def test_what_a_gpu_computes_is_not_cached(database):
    other = Backbone("other", network().preprocessing, network().onnx)
    assert other.dim == 1280  # its session, of the CPU here, has begun
    other.device = "cuda:1"
    for backbone in (other, Ensemble([network(), other])):
        assert len(features([draw(0)], backbone, cache=True)) == 1
    assert not database.exists()


def test_warnings_come_again_with_the_name_of_the_moment(database, embedded, tmp_path):
    frames = [Image.fromarray(draw(i)) for i in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "a.gif").read_bytes()
    backbone = network()
    for name in ("first", "second", "third"):
        with pytest.warns(ImageWarning, match=f"^{name}: several frames or pages"):
            list(extract([(name, content)], backbone, cache=True))
    assert len(embedded) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cache in (True, False):
            ((_, error),) = extract([("it", content)], backbone, cache=cache)
            assert isinstance(error, ImageError)
            assert str(error) == "it: several frames or pages; only the first is used"


def test_errors_are_as_without_the_cache_and_not_kept(database, tmp_path):
    Image.fromarray(draw(0)).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    shutil.copy(tmp_path / "good.jpg", tmp_path / "photo.dng")
    os.mkfifo(tmp_path / "pipe.png")
    Image.fromarray(draw(0)).save(tmp_path / "cut.tif")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:-2000])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("text.png", "no picture")
    sources = [*sorted(tmp_path.glob("*.*")), tmp_path / "missing.png", "a\0b", b"", b"x"]
    sources += [tmp_path / "a.zip" / name for name in ("text.png", "missing.png")]
    sources += [np.full((4, 4), 2.0), np.zeros((2, 2), object), np.zeros((0, 3)), 7]
    backbone = network()
    plain = features(sources, backbone)
    assert sum(isinstance(f, ImageError) for f in plain) == len(sources) - 1
    for _ in range(2):
        cached = features(sources, backbone, cache=True)
        assert [str(f) for f in cached] == [str(f) for f in plain]
    assert stored(database) == 1


def test_pil_images_masked_arrays_and_large_files_are_read_anew(
    database, embedded, good_folder, monkeypatch
):
    monkeypatch.setattr(images, "_LARGEST_CONTENT", 5_000)
    large = [draw(0), next(good_folder.iterdir())]
    small = draw(0, size=(40, 30))
    sources = [Image.fromarray(small), np.ma.masked_greater(small, 90), *large]
    for _ in range(2):
        features(sources, network(), cache=True)
    assert len(embedded) == 8
    assert stored(database) == 0
    features([small], network(), cache=True)
    assert stored(database) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value[:-4],
        lambda value: b"",
        lambda value: value[:-1] + bytes([value[-1] ^ 1]),
        lambda value: bytes([value[0] ^ 1]) + value[1:],
        lambda value: "text",
        lambda value: None,
        lambda value: 7,
    ],
)
def test_a_damaged_value_is_not_returned_and_mended(damage, database, embedded):
    backbone = network()
    (first,) = features([draw(0)], backbone, cache=True)
    connection = sqlite3.connect(database)
    (value,) = connection.execute("SELECT value FROM feature").fetchone()
    connection.execute("UPDATE feature SET value = ?", [damage(value)])
    connection.commit()
    connection.close()
    for _ in range(2):
        np.testing.assert_array_equal(features([draw(0)], backbone, cache=True), [first])
    assert len(embedded) == 2


def test_a_value_of_another_image_is_not_returned(database, embedded):
    backbone = network()
    expected = features([draw(0), draw(1)], backbone, cache=True)
    connection = sqlite3.connect(database)
    (value,) = connection.execute("SELECT value FROM feature").fetchone()
    connection.execute("UPDATE feature SET value = ?", [value])
    connection.commit()
    connection.close()
    again = features([draw(0), draw(1)], backbone, cache=True)
    np.testing.assert_array_equal(again, expected)
    assert len(embedded) == 3


def check_that_a_fit_works(expected, count=3):
    found = features([draw(i) for i in range(count)], network(), cache=True)
    np.testing.assert_array_equal(found, expected[:count])


@pytest.fixture(scope="module")
def expected():
    return features([draw(i) for i in range(6)], network())


def test_damaged_files_are_replaced(database, expected, embedded):
    check_that_a_fit_works(expected)
    whole = database.read_bytes()
    middle = len(whole) // 2
    ruined = [
        b"this is no database" * 100,
        whole[:5000],
        whole[:100] + b"\xff" * (len(whole) - 100),
        whole[:middle] + bytes(middle),
    ]
    for content in ruined:
        database.write_bytes(content)
        for _ in range(3):  # noticed, removed, filled
            check_that_a_fit_works(expected)
        before = len(embedded)
        check_that_a_fit_works(expected)
        assert len(embedded) == before


def test_another_table_of_that_name(database, expected):
    database.parent.mkdir()
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE feature (other)")
    connection.close()
    check_that_a_fit_works(expected)


def test_a_locked_cache_is_not_waited_for_long(database, expected, monkeypatch):
    monkeypatch.setattr(feature_cache, "_PATIENCE", 0.01)
    check_that_a_fit_works(expected)
    connection = sqlite3.connect(database, isolation_level=None)
    for lock in ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"):
        connection.execute(lock)
        check_that_a_fit_works(expected, 6)
        connection.execute("ROLLBACK")
        assert stored(database) == 3
    connection.close()


def open_with(monkeypatch, setting):
    connect = feature_cache._connect

    def connect_with(path):
        connection = connect(path)
        connection.execute(f"PRAGMA {setting}")
        return connection

    monkeypatch.setattr(feature_cache, "_connect", connect_with)


def test_a_cache_that_cannot_be_written(database, expected, monkeypatch, tmp_path):
    database.mkdir(parents=True)  # a folder in its place
    check_that_a_fit_works(expected)
    database.rmdir()
    check_that_a_fit_works(expected)

    open_with(monkeypatch, "query_only = 1")
    check_that_a_fit_works(expected, 6)
    monkeypatch.undo()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NNAD_CACHE", str(tmp_path / "file"))
    check_that_a_fit_works(expected)


def test_a_full_disk(database, expected, monkeypatch):
    open_with(monkeypatch, "max_page_count = 5")
    check_that_a_fit_works(expected, 6)
    assert stored(database) == 0


def test_without_sqlite(database, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnad.feature_cache", None)
    check_that_a_fit_works(expected)
    assert not database.exists()


def fill(cache, keys):
    for key in keys:
        cache._put(key.to_bytes(32, "big"), np.full(1280, key, np.float32), [])


def kept(cache, keys):
    return [key for key in keys if cache._get(key.to_bytes(32, "big"))]


def test_the_size_is_bounded_and_the_least_recently_used_go(database, monkeypatch):
    monkeypatch.setattr(feature_cache, "_BATCH", 16)
    monkeypatch.setattr(feature_cache, "_EVICTED", 4)
    limit = 60 * 5300
    for start in (0, 20):
        cache = FeatureCache(network(), limit)
        fill(cache, range(start, start + 20))
        cache.close()
    cache = FeatureCache(network(), limit)
    assert kept(cache, range(40)) == list(range(40))
    assert kept(cache, range(10)) == list(range(10))  # used last, though written first
    cache.close()
    cache = FeatureCache(network(), limit)
    fill(cache, range(100, 130))
    cache.close()
    cache = FeatureCache(network(), limit)
    assert kept(cache, range(10)) == list(range(10))
    assert kept(cache, range(100, 130)) == list(range(100, 130))
    gone = sorted(set(range(10, 40)) - set(kept(cache, range(10, 40))))
    assert gone == list(range(10, 10 + len(gone)))
    assert 5 < len(gone) < 30
    for start in range(1000, 2000, 100):
        fill(cache, range(start, start + 100))
        assert database.stat().st_size < limit + 16 * 5500
    cache.close()
    tiny = FeatureCache(network(), 1)
    fill(tiny, range(5))
    tiny.close()
    assert stored(database) == 0


def test_threads_share_one_cache(database):
    cache = FeatureCache(network())
    wrong = []

    def work(seed):
        for key in np.random.default_rng(seed).permutation(300):
            found = cache._get(int(key).to_bytes(32, "big"))
            if found and found[0][0] != key:
                wrong.append(key)
            fill(cache, [int(key)])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()
    assert not wrong
    assert stored(database) == 300
    fill(cache, [1])  # closed: nothing happens
    assert not kept(cache, [1])


WRITER = """
import sys, time, numpy as np
from nnad import feature_cache
from nnad.feature_cache import FeatureCache
class Network: fingerprint, dim, device = "x", 1280, "cpu"
feature_cache._BATCH = 8
feature_cache._PATIENCE = 30
start = int(sys.argv[1])
cache = FeatureCache(Network())
for key in range(start, start + int(sys.argv[2])):
    cache._put(key.to_bytes(32, "big"), np.full(1280, key, np.float32), [])
    time.sleep(0.001)  # as if it embedded
cache.close()
"""


def test_processes_share_it_and_a_kill_leaves_it_whole(database):
    run = [sys.executable, "-c", WRITER]
    both = [subprocess.Popen([*run, str(start), "200"]) for start in (0, 1000)]
    assert [process.wait() for process in both] == [0, 0]
    assert stored(database) == 400

    for start in (10_000, 20_000, 30_000):
        before = stored(database)
        with subprocess.Popen([*run, str(start), "5000"]) as process:
            while process.poll() is None and stored(database) == before:
                time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
        assert before < stored(database) < before + 5000
    cache = FeatureCache(network())
    for key in (5, 1005, 10_000, 20_000, 30_000):
        feature, warned = cache._get(key.to_bytes(32, "big"))
        assert (feature == key).all()
        assert warned == []
    cache.close()


def test_an_interrupted_fit_keeps_what_it_has(database, embedded):
    extracted = extract([(str(i), draw(i)) for i in range(9)], network(), cache=True)
    next(extracted)
    extracted.close()
    assert stored(database) == len(embedded) > 0


def test_the_command(good_folder, database, tmp_path):
    nnad = shutil.which("nnad", path=str(Path(sys.executable).parent))
    fit = [nnad, "fit", str(good_folder), "--model"]
    subprocess.run([*fit, str(tmp_path / "a"), "--no-cache"], check=True, capture_output=True)
    assert not database.exists()
    subprocess.run([*fit, str(tmp_path / "b")], check=True, capture_output=True)
    assert stored(database) == 12
    banks = [next((tmp_path / name).glob("bank-*")).name for name in "ab"]
    assert banks[0] == banks[1]


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NNAD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "nnad"
