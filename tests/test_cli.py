import csv
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from nnad import Detector
from nnad.operators import NAMES

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))
COOKIES = Path(__file__).parents[1] / "examples" / "cookies"


def nnad(*arguments, cwd=None) -> subprocess.CompletedProcess:
    command = [NNAD, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL
    )


def test_help_and_version():
    done = nnad("--help")
    assert done.returncode == 0
    for command in ("fit", "score", "explain", "evaluate", "preflight", "info", "demo"):
        assert command in done.stdout
        assert nnad(command, "--help").returncode == 0
    told = nnad("--version").stdout
    assert told.startswith("nnad 0.")
    command = [sys.executable, "-m", "nnad", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == told


def test_fit_score_info(good_folder, new_folder, tmp_path, detector):
    model = tmp_path / "m.nnad"
    done = nnad("fit", good_folder, "--model", model)
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar in a pipe
    assert "12 good images; false-alarm budget 0.077 of good images, measured, not" in done.stdout

    done = nnad(
        "score", model, new_folder, "--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json"
    )
    assert done.returncode == 0
    expected = Detector.load(model).score(new_folder)
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "score", "p_value", "is_anomaly", "nearest", "error"]
    for row, result in zip(rows, expected, strict=True):
        assert row["path"] == result.name
        if result.error:
            assert (row["score"], row["is_anomaly"], row["error"]) == ("", "", result.error)
        else:
            assert float(row["score"]) == result.score
            assert float(row["p_value"]) == result.p_value
            assert row["is_anomaly"] == str(int(result.is_anomaly))
            assert row["nearest"] == result.nearest[0].name
    records = json.loads((tmp_path / "r.json").read_text())
    assert [r["score"] for r in records] == [r.score for r in expected]
    assert len(records[-1]["nearest"]) == 5
    ranking = done.stdout.splitlines()
    assert "odd_" in ranking[1]
    assert "ANOMALY" in ranking[1]
    anomalies = sum(bool(r.is_anomaly) for r in expected)
    assert anomalies >= 2
    assert ranking[-1] == (
        f"4 images scored, {anomalies} anomalies at a budget of 0.077; 1 unreadable"
    )
    assert done.stderr.startswith(f"nnad: {new_folder / 'broken.jpg'}: not an image")

    done = nnad("info", model)
    assert done.returncode == 0
    for text in (
        "12, first",
        "efficientnet-lite0",
        "256 x 256, centre 224 x 224",
        "root",
        "local, k=5",
    ):
        assert text in done.stdout


def test_archives_and_lists(good_folder, new_folder, tmp_path):
    archive = shutil.make_archive(
        str(tmp_path / "parts"), "zip", good_folder.parent, good_folder.name
    )
    model, good = tmp_path / "m.nnad", f"{archive}/{good_folder.name}"
    done = nnad("fit", good, "--model", model)
    assert done.returncode == 0, done.stderr
    assert "fitted on 12 good images" in done.stdout

    names = [path.name for path in sorted(new_folder.iterdir())]
    listed = new_folder.parent / f"{new_folder.name}.csv"
    listed.write_text(
        "".join(f"{line}\n" for line in ["path", *(f"{new_folder.name}/{n}" for n in names)])
    )
    done = nnad("score", model, listed, "--csv", "-", "--picture", tmp_path / "p.png")
    assert done.returncode == 0
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [Path(row["path"]).name for row in rows] == names
    assert rows[-1]["nearest"].startswith(f"{good}/good_")
    expected = [result.score for result in Detector.load(model).score(new_folder)]
    assert [float(row["score"]) if row["score"] else None for row in rows] == expected

    done = nnad("score", model, listed, "--csv", listed)
    assert (done.returncode, done.stderr) == (
        2,
        f"nnad: {listed}: is an input; choose another name\n",
    )
    assert listed.read_text().startswith("path\n")


def test_results_on_standard_output(model, new_folder):
    done = nnad("score", model, new_folder, "--csv", "-")
    assert len(list(csv.DictReader(done.stdout.splitlines()))) == 5
    assert "4 images scored" in done.stderr
    done = nnad("score", model, new_folder, "--json", "-")
    assert len(json.loads(done.stdout)) == 5
    assert nnad("score", model, new_folder, "--json", "-", "--csv", "-").returncode == 2


def test_exit_codes(model, new_folder, tmp_path):
    odd, good, broken = (new_folder / n for n in ("odd_0.png", "good_0.png", "broken.jpg"))
    flag = "--fail-on-anomaly"
    assert nnad("score", model, odd, good).returncode == 0
    assert nnad("score", model, odd, good, flag).returncode == 1
    assert nnad("score", model, good, flag, "--false-alarms", 0.0769230).returncode == 2
    assert nnad("score", model, good, broken).returncode == 0
    assert nnad("score", model, good, broken, flag).returncode == 2  # unreadable is not passed
    assert nnad("score", model, odd, broken, flag).returncode == 1
    assert nnad("score", model, broken).returncode == 2
    assert nnad("score", model, tmp_path / "none.png").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "EMPTY", "--model", "new.nnad"], "holds no image files"),
        (["fit", "GOOD", "--model", "MODEL"], "holds a model already"),
        (["fit", "GOOD", "--model", "new.nnad", "--false-alarms", "0.01"], "smallest possible"),
        (["fit", "GOOD", "--model", "new.nnad", "--transform", "cube"], "transform='cube'"),
        (["fit", "GOOD", "--model", "new.nnad", "--backbone", "vgg"], "backbone 'vgg' is unknown"),
        (["fit", "GOOD", "--model", "new.nnad", "--operator", "svm"], "operator='svm'; choose"),
        (["fit", "GOOD", "--model", "new.nnad", "--preset", "dn3"], "preset='dn3'; choose"),
        (["fit", "GOOD", "--model", "new.nnad", "--geometry", "round"], "geometry='round'"),
        (["fit", "GOOD", "--model", "no/where/m"], "does not exist"),
        (["score", "none.nnad", "GOOD"], "no such model"),
        (["score", "MODEL", "*.xyz"], "no file matches"),
        (["score", "MODEL", "GOOD", "--false-alarms", "2"], "fraction between 0 and 1"),
        (["score", "MODEL", "GOOD", "--csv", "no/where.csv"], "not a place where a file can"),
        (["score", "MODEL", "GOOD", "--picture", "a.xyz"], "unknown kind of picture"),
        (["info", "GOOD"], "no model here"),
        (["demo", "EMPTY"], "no train/good and test"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, model, good_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"GOOD": good_folder, "MODEL": model, "EMPTY": tmp_path / "empty"}
    before = sorted(p.name for p in model.iterdir())
    done = nnad(*(places.get(a, a) for a in arguments), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("nnad: ")
    assert message in line
    assert not (tmp_path / "new.nnad").exists()
    assert sorted(p.name for p in model.iterdir()) == before


def test_what_is_printed_can_be_typed_back(model, new_folder):
    told = nnad("info", model).stdout
    budget = re.search(r"false-alarm budget (\S+) of good", told)[1]
    smallest = re.search(r"^smallest budget +(\S+)", told, flags=re.MULTILINE)[1]
    for typed in (budget, smallest):
        assert nnad("score", model, new_folder, "--false-alarms", typed).returncode == 0


def test_names_that_are_not_unicode(model, new_folder, tmp_path):
    shutil.copy(new_folder / "odd_0.png", os.fsencode(tmp_path) + b"/\xff.png")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    for arguments in (["score", model, tmp_path], ["score", model, tmp_path, "--csv", "-"]):
        done = subprocess.run([NNAD, *arguments], capture_output=True, env=environment)
        assert done.returncode == 0
        assert b"\xff.png" in done.stdout


def test_output_that_is_ascii_or_closed(model, new_folder, tmp_path):
    image = tmp_path / "ünï\n\x1b[31m.png"
    shutil.copy(new_folder / "odd_0.png", image)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([NNAD, "score", model, image], capture_output=True, env=environment)
    assert done.returncode == 0
    assert "ünï\\n\\x1b[31m.png" in done.stdout.decode()
    for closed in (">&-", "2>&-"):
        command = f"{NNAD} score {model} {new_folder} --csv {tmp_path}/r.csv {closed}"
        assert subprocess.run(["bash", "-c", command], capture_output=True).returncode == 0


def test_nobody_reads_the_output(model, new_folder):
    shell = f"{NNAD} score {model} {new_folder} --csv - 2>/dev/null | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell])
    assert done.returncode in (0, 141)  # never 1, which would mean anomalies


def test_an_interruption_and_a_fault_are_no_anomalies(model, new_folder, tmp_path):
    many = [str(new_folder)] * 2000
    with subprocess.Popen([NNAD, "score", model, *many], stderr=subprocess.PIPE) as process:
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
    assert process.returncode == 130
    assert message.splitlines()[-1] == b"nnad: interrupted"
    code = (
        "import sys, nnad.cli, nnad.detector\n"
        "nnad.detector.Detector.load = lambda *_, **__: 1 / 0\n"
        "sys.argv = ['nnad', 'score', 'm', 'x', '--fail-on-anomaly']\n"
        "nnad.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "ZeroDivisionError" in done.stderr


def test_wrong_use_is_exit_code_2():
    assert nnad().returncode == 2
    assert nnad("fit").returncode == 2
    assert nnad("polish").returncode == 2


def test_failed_scoring_leaves_an_old_csv(model, new_folder, tmp_path):
    (tmp_path / "r.csv").write_text("precious")
    done = nnad("score", model, new_folder, tmp_path / "*.none", "--csv", tmp_path / "r.csv")
    assert done.returncode == 2
    assert (tmp_path / "r.csv").read_text() == "precious"
    assert not list(tmp_path.glob(".*.tmp"))


def test_overwrite(model, good_folder):
    done = nnad("fit", good_folder, "--model", model, "--overwrite", "--k", 3)
    assert done.returncode == 0
    assert "local, k=3" in nnad("info", model).stdout


def test_presets_and_operators(good_folder, new_folder, tmp_path):
    fit = ("fit", good_folder, "--model")
    assert nnad(*fit, tmp_path / "dn2", "--preset", "dn2").returncode == 0
    told = nnad("info", tmp_path / "dn2").stdout
    assert "knn, k=2, squared=True, reduction=mean, metric=euclidean" in told
    assert "guarantee        proven" in told
    assert "raw" in told
    for both in (("--k", 3), ("--transform", "root"), ("--operator", "auto")):
        assert nnad(*fit, tmp_path / "both", "--preset", "dn2", *both).returncode == 2
    for name in NAMES:
        model = tmp_path / name
        assert nnad(*fit, model, "--operator", name, "--transform", "l2").returncode == 0
        assert f"operator         {name}, " in nnad("info", model).stdout
        assert Detector.load(model).score(new_folder / "odd_0.png")[0].score > 0


def test_warnings_are_one_line(model, tmp_path, good_folder):
    frames = [Image.open(p) for p in sorted(good_folder.iterdir())[:2]]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    done = nnad("score", model, tmp_path / "a.gif")
    assert done.returncode == 0
    warning = "several frames or pages; only the first is used"
    assert done.stderr == f"nnad: {tmp_path / 'a.gif'}: {warning}\n"


def test_a_progress_bar_on_a_terminal(model, new_folder):
    """stderr is a pseudo-terminal: there is a bar with rate; stdout stays clean."""
    terminal, end = pty.openpty()
    command = [NNAD, "score", str(model), str(new_folder), "--csv", "-"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, env=environment) as process:
        os.close(end)
        shown = b""
        while True:
            try:
                part = os.read(terminal, 4096)
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
            shown += part
        out = process.stdout.read()
    os.close(terminal)
    assert process.returncode == 0
    assert b"5/5" in shown
    assert b"images/s" in shown
    assert out.startswith(b"path,score,p_value")


def test_demo(tmp_path):
    done = nnad("demo", COOKIES, "--picture", tmp_path / "demo.png")
    assert done.returncode == 0
    ranking = [line for line in done.stdout.splitlines() if "/test/" in line]
    broken_first = 0
    while "/anomaly/" in ranking[broken_first]:
        broken_first += 1
    assert broken_first >= 7  # of 8
    assert float(re.search(r"AUROC (\S+)", done.stdout)[1]) > 0.95
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 1000


def test_demo_finds_its_pictures_from_anywhere(tmp_path):
    assert nnad("demo", cwd=tmp_path).returncode == 0
    assert (tmp_path / "nnad-demo.png").exists()


def test_the_cookies_are_attributed():
    text = (COOKIES / "README.md").read_text()
    assert "CC BY-SA 4.0" in text
    assert "amazon-lookout-for-vision" in text
    assert sum(p.stat().st_size for p in COOKIES.rglob("*")) < 5_000_000


def test_options_of_the_backbone_reach_the_model(good_folder, new_folder, tmp_path):
    mask = Image.new("L", (4, 4), 255)
    mask.putpixel((0, 0), 0)
    mask.save(tmp_path / "mask.png")
    options = "--size 64 --geometry whole --region 0,0,0.9,1 --flips horizontal --device cpu"
    options += " --stages s16b,head --pooling gem --backbone efficientnet-lite0+efficientnet-lite1"
    model = tmp_path / "m"
    done = nnad(
        "fit", good_folder, "--model", model, *options.split(), "--mask", tmp_path / "mask.png"
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = nnad("info", model).stdout
    for text in (
        "efficientnet-lite0+efficientnet-lite1, 2784 features",
        "efficientnet-lite1, stages s16b head, pooling gem",
        "region 0, 0, 0.9, 1 of the image; mask, 94% of the image seen; whole image resized to 64",
        "mean over 2 flipped views; Pillow, antialiased, bicubic; RGB, mean 127 127 127",
    ):
        assert text in told
    assert nnad("score", model, new_folder, "--device", "cpu").returncode == 0
    for options, message in (
        (["score", model, new_folder, "--device", "cuda"], "pip install 'onnxruntime-gpu"),
        (["score", model, new_folder, "--device", "gpu"], "choose cpu, cuda"),
        (["fit", good_folder, "--model", "n", "--region", "a,b"], "--region: four fractions"),
        (["fit", good_folder, "--model", "n", "--weights", "random"], "weights: goes with"),
        (["fit", good_folder, "--model", "n", "--mode", "both", "--tile", 8], "for '--tile': "),
        (["fit", good_folder, "--model", "n", "--patch-size", 8], "for '--patch-size': "),
        (
            ["fit", good_folder, "--model", "n", "--mode", "patch", "--k", 3, "--flips", "both"],
            "--k, --flips: no meaning with --mode patch",
        ),
    ):
        done = nnad(*options, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
