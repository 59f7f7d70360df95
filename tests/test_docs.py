"""The examples in README and docs run, and the public names are what the package says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nnad

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_examples_run(page, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)
    assert blocks or page.name != "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_command_examples_run(page, tmp_path):
    """Blocks marked `console`: lines that begin with `$ nnad`, in order, in one folder."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    bin_folder = Path(sys.executable).parent
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(tmp_path)}
    commands = re.findall(r"^\$ (nnad .*)$", page.read_text(), flags=re.MULTILINE)
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert commands or page.name != "README.md"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_public_names_can_be_imported():
    for name in nnad.__all__:
        assert getattr(nnad, name) is not None
    assert set(dir(nnad)) == set(nnad.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        nnad.Nothing  # noqa: B018


def test_importing_nnad_and_showing_help_loads_nothing_heavy():
    heavy = "numpy", "onnx", "onnxruntime", "PIL", "sklearn", "torch", "rich"
    code = f"import sys, nnad, nnad.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_option_is_told_in_the_reference():
    reference = (ROOT / "docs" / "command-line.md").read_text()
    command = shutil.which("nnad", path=str(Path(sys.executable).parent))

    def commands(*of):
        listed = subprocess.run([command, *of, "--help"], capture_output=True, text=True).stdout
        told = listed.partition("Commands:")[2]
        return [[*of, name] for name in re.findall(r"^  ([a-z]+) ", told, flags=re.MULTILINE)]

    names = [*commands(), *commands("groups")]
    assert all(name in names for name in (["fit"], ["score"], ["log"], ["groups", "rank"]))
    for name in names:
        done = subprocess.run([command, *name, "--help"], capture_output=True, text=True)
        for option in re.findall(r"(--[a-z-]+)", done.stdout):
            if option != "--help":
                assert option in reference, f"{name} {option}"
