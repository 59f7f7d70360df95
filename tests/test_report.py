import os
import threading

import numpy as np
import pytest
from PIL import Image

from nnad import InputError
from nnad.demo import area_under_roc
from nnad.report import check_outputs, contact_sheet, csv_writer, json_writer
from nnad.results import Neighbor, Result


def test_contact_sheet_shows_each_image_beside_its_nearest(tmp_path):
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    for name, colour in colours.items():
        Image.new("RGB", (90, 90), colour).save(tmp_path / f"{name}.png")
    result = Result(
        str(tmp_path / "red.png"), 1.0, 0.1, True, (Neighbor(str(tmp_path / "blue.png"), 1.0),)
    )
    contact_sheet([result], str(tmp_path / "sheet.png"))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    red = np.argwhere((sheet == colours["red"]).all(axis=2))
    blue = np.argwhere((sheet == colours["blue"]).all(axis=2))
    assert len(red) >= 8000
    assert len(blue) >= 8000
    assert red[:, 1].max() < blue[:, 1].min()


def test_contact_sheet_of_pictures_that_are_gone_or_were_in_memory(tmp_path):
    result = Result("image[0]", 1.0, 0.1, False, (Neighbor("gone.png", 1.0),))
    contact_sheet([result] * 30, str(tmp_path / "sheet.jpg"), most=5)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"


def test_contact_sheet_refuses(tmp_path):
    result = Result("a", 1.0, 0.1, False, (Neighbor("b", 1.0),))
    with pytest.raises(InputError, match="no scored image"):
        contact_sheet([Result("a", error="a: gone")], str(tmp_path / "sheet.png"))
    with pytest.raises(InputError, match="unknown kind of picture"):
        contact_sheet([result], str(tmp_path / "sheet"))
    with pytest.raises(InputError, match="not a place"):
        contact_sheet([result], str(tmp_path / "none" / "sheet.png"))


@pytest.mark.parametrize("writer", [csv_writer, json_writer])
def test_files_appear_only_when_complete(writer, tmp_path):
    path = tmp_path / "out"

    def write_and_fail():
        with writer(str(path)) as add:
            add(Result("a", 1.0, 0.1, False, (Neighbor("b", 1.0),)))
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert not list(tmp_path.iterdir())


def test_pipes_are_written_into_and_links_are_followed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    with csv_writer(str(tmp_path / "pipe")):
        pass
    reader.join()
    assert read[0].startswith("path,score")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with json_writer(str(tmp_path / "link")):
        pass
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "[]\n"


def test_outputs_that_would_destroy_something(tmp_path):
    model, other = tmp_path / "m", str(tmp_path / "a.csv")
    check_outputs([other, str(tmp_path / "b")], model)
    for paths, message in (
        ([other, f"{tmp_path}/./a.csv"], "same place"),
        ([str(model / "manifest.json")], "model's own folder"),
        (["-", "-"], "same place"),
        ([""], "empty name"),
    ):
        with pytest.raises(InputError, match=message):
            check_outputs(paths, model)
    with pytest.raises(InputError, match=r"a\.csv: is an input; choose another name"):
        check_outputs([other], model, [str(tmp_path / "b"), f"{tmp_path}/./a.csv"])
    for writer in (csv_writer, json_writer):
        with pytest.raises(InputError, match="name of a picture"), writer("photo.jpg"):
            pass
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    result = Result(str(tmp_path / "a.png"), 1.0, 0.1, True, (Neighbor("b", 1.0),))
    with pytest.raises(InputError, match="one of the scored pictures"):
        contact_sheet([result], str(tmp_path / "a.png"))


def test_no_results_are_still_a_file(tmp_path):
    with json_writer(str(tmp_path / "a.json")), csv_writer(str(tmp_path / "a.csv")):
        pass
    assert (tmp_path / "a.json").read_text() == "[]\n"
    assert (tmp_path / "a.csv").read_text() == "path,score,p_value,is_anomaly,nearest,error\n"


def test_names_that_need_quoting_or_are_not_unicode(tmp_path):
    name = b'a,"b"\n\xff.png'.decode("utf-8", "surrogateescape")
    with csv_writer(str(tmp_path / "a.csv")) as add, json_writer(str(tmp_path / "a.json")) as add2:
        add(Result(name, error="no"))
        add2(Result(name, error="no"))
    assert b'"a,""b""\n\xff.png"' in (tmp_path / "a.csv").read_bytes()
    assert b"\\udcff" in (tmp_path / "a.json").read_bytes()


def test_area_under_roc_by_hand():
    scores = {"good/1": 1.0, "good/2": 3.0, "odd/1": 2.0, "odd/2": 4.0}
    results = [Result(name, score) for name, score in scores.items()]
    assert area_under_roc(results) == 0.75
    with pytest.raises(InputError, match="another one beside it"):
        area_under_roc(results[:2])
