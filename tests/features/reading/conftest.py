"""Image files to read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def write_images() -> Callable[[Path, int], list[str]]:
    """Write small images of different colors into a folder; returns their names."""

    def write(folder: Path, count: int) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{index:03}.png" for index in range(count)]
        for index, name in enumerate(names):
            Image.new("RGB", (9, 9), (index, 255 - index, 7)).save(folder / name)
        return names

    return write
