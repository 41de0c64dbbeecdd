import json

import pytest

from showtell.serving.server.limits import RequestError
from showtell.serving.server.request_body import MAX_VALUES, read_json


@pytest.mark.parametrize("num_images", [5, 50_000])
def test_images_are_counted_before_the_first_is_decoded(num_images: int) -> None:
    content = json.dumps({"images": ["?"] * num_images}).encode()
    with pytest.raises(RequestError) as caught:
        read_json(content, 4)
    assert (caught.value.status, caught.value.code) == (422, "too_many_images")
    with pytest.raises(RequestError) as caught:
        read_json(content, num_images)
    assert caught.value.code == "invalid_base64"


@pytest.mark.parametrize("item", [b'""', b"[]", b"{}", b"0"])
def test_document_of_very_many_values_is_refused_unread(within_limits, item: bytes) -> None:
    content = b'{"images": [%b]}' % b",".join([item] * 8_000_000)
    with within_limits(), pytest.raises(RequestError) as caught:
        read_json(content, 64)
    assert (caught.value.status, caught.value.code) == (422, "invalid_json")
    assert f"more than {MAX_VALUES:,} values" in caught.value.message
