"""A data folder with a small trained run, and a few images."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from showtell.features.config import FeaturesConfig
from showtell.features.extract import extract
from showtell.model.config import TrainConfig
from showtell.model.train import train
from showtell.serving.captioner import Captioner
from showtell.serving.load import load

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def data(prepared_scenes, amplify_image, random_weights, tmp_path_factory) -> Path:
    """A data folder with a run `r` that writes different captions for different images.

    All in float32, so that the features of an image do not depend on the rest of its batch.
    """
    data = Path(shutil.copytree(prepared_scenes, tmp_path_factory.mktemp("captioner") / "data"))
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
    extract(FeaturesConfig(data=data, dataset="scenes", precision="fp32", **options))
    sizes = {"hidden_size": 32, "embed_size": 32, "batch_size": 32, "epochs": 8}
    train(TrainConfig(data=data, dataset="scenes", run="r", learning_rate=2e-2, dropout=0, **sizes))
    amplify_image(data)
    return data


@pytest.fixture(scope="session")
def captioner(data) -> Captioner:
    return load("r", data=data, device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def image_paths(prepared_scenes) -> list[Path]:
    """The drawn scenes, of all splits."""
    return sorted((prepared_scenes / "scenes/raw/images").iterdir())


@pytest.fixture
def folder(image_paths, tmp_path) -> Path:
    """A folder with images, a subfolder and a text file."""
    folder = tmp_path / "mine"
    (folder / "a").mkdir(parents=True)
    for path, name in zip(image_paths, ("b.png", "a/c.png", "d.PNG", "a.png"), strict=False):
        Image.open(path).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def write_foreign_model() -> Callable[[Path], dict[str, bytes]]:
    """Write a folder as other programs save models; return name → content of its files."""

    def write(folder: Path) -> dict[str, bytes]:
        folder.mkdir()
        config = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8}
        contents = {
            "config.json": json.dumps(config).encode(),
            "model.safetensors": (2).to_bytes(8, "little") + b"{}",
            "vocab.json": b'{"[PAD]": 0}',
            "README.md": b"# My BERT",
            "manifest.json": b'{"name": "my page", "stage": "export"}',
        }
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        return contents

    return write


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright. It runs an event loop, so each module starts its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    # Containers often run as root, where Chromium has no sandbox.
    options = {"executable_path": path, "args": ["--no-sandbox"]}
    with playwright.sync_playwright() as driver, driver.chromium.launch(**options) as chromium:
        yield chromium


@pytest.fixture
def run_dir(data, tmp_path) -> Path:
    """A copy of the run, alone, that a test may write to."""
    return Path(shutil.copytree(data / "runs/r", tmp_path / "carried" / "elsewhere"))
