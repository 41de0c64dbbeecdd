"""The wheel and the source distribution hold everything that runs, and nothing else."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import showtell

ROOT = Path(__file__).parents[1]
PACKAGES = ("bench", "features", "model", "pipeline", "serving")
FOLDERS = (*PACKAGES, ".ci", "docs", "tests")
FILES = (
    *(
        "__init__.py",
        "cli.py",
        "cli_command.py",
        "py.typed",
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
    ),
    *("Makefile", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"),
    *(".gitignore", "data/README.md"),
)


def is_module(name: str) -> bool:
    outside = ("docs", "tests", "setup.py")
    return name.endswith(".py") and name.split("/")[0] not in outside


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def build(kind: str, source: Path, output: Path) -> Path:
    """Build a `wheel` or an `sdist` as pip does, but offline, with the installed setuptools."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    output.mkdir()
    command = [sys.executable, "-c", code, str(output)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def sources() -> set[str]:
    """Every file of the project, relative to its root."""
    return {
        *FILES,
        *(path.name for path in ROOT.glob("__main__.py")),
        *(
            f"{folder}/{name}"
            for folder in FOLDERS
            for name in files_below(ROOT / folder)
            if "__pycache__" not in name
        ),
    }


@pytest.fixture(scope="module")
def sdist(sources: set[str], tmp_path_factory) -> Path:
    """The unpacked source distribution of a checkout with awkward names and generated files."""
    checkout = tmp_path_factory.mktemp("checkout") / "my show-tell 2 é"
    for name in sources:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, checkout / name)
    for name in (".venv/lib/x.py", "data/scenes/raw/x.jpg", "tests/__pycache__/x.pyc", "notes.txt"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", checkout, folder / "dist")) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"showtell-{showtell.__version__}"


def test_sdist_holds_every_source_file_and_nothing_else(sources: set[str], sdist: Path) -> None:
    packed = {name for name in files_below(sdist) if not name.startswith("showtell.egg-info/")}
    assert packed - {"PKG-INFO", "setup.cfg"} == sources


def test_wheel_built_from_the_sdist_holds_every_module_and_nothing_else(
    sources: set[str], sdist: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(build("wheel", sdist, tmp_path / "wheel")) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    # All of serving/ is needed at run time: also templates, the page, and the built-in model.
    modules = {
        f"showtell/{name}"
        for name in sources
        if name == "py.typed" or name.startswith("serving/") or is_module(name)
    }
    assert {name for name in contents if ".dist-info/" not in name} == modules
    info = {
        name.partition("/")[2]: content.decode()
        for name, content in contents.items()
        if ".dist-info/" in name
    }
    assert "showtell = showtell.__main__:main" in info["entry_points.txt"]
    assert f"\nVersion: {showtell.__version__}\n" in info["METADATA"]
    assert "licenses/LICENSE" in info


def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    releases = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert f"\nversion: {showtell.__version__}\n" in citation
    assert releases[0] == showtell.__version__
