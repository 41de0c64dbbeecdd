"""The values of a sample: which names of images are used, and which are not."""

import pytest

from showtell.pipeline.datasets.samples import BAD_NAME, BadSampleError, clean_name


@pytest.mark.parametrize("scheme", ["https", "http", "s3", "gs"])
def test_urls_of_the_web_and_of_object_stores_are_names(scheme: str) -> None:
    assert clean_name(f" {scheme}://host/x.jpg ") == f"{scheme}://host/x.jpg"


@pytest.mark.parametrize(
    "name", ["file:///etc/passwd", "abfs://container/x.jpg", "ftp://host/x", "memory://x", "../x"]
)
def test_names_that_lead_elsewhere_cannot_be_used(name: str) -> None:
    with pytest.raises(BadSampleError, match=BAD_NAME):
        clean_name(name)
