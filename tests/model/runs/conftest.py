"""Fixtures shared by the tests of runs and checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-10],
    "truncated header": lambda content: content[:40],
    "empty": lambda content: b"",
    "overwritten": lambda content: b"\xff" * 4096,
}


@pytest.fixture(params=DAMAGES)
def damage(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Damage a file in one of several ways."""

    def apply(path: Path) -> None:
        path.write_bytes(DAMAGES[request.param](path.read_bytes()))

    return apply
