"""Read the images and options of a request: a multipart form, or JSON with base64."""

import asyncio
import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from .limits import RequestError

JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
MAX_FIELDS, MAX_FIELD_BYTES = 64, 10_000  # of a form, besides its files
MAX_VALUES = 100_000  # of a JSON document; each takes up to 100 bytes of memory, however short
EXAMPLE = "Example: curl -F images=@photo.jpg URL"


@dataclass(frozen=True)
class RequestBody:
    """What a request asks for.

    Attributes:
        images: files of the images, to be read from the start; large uploads lie on the disk.
        options: the other fields of the request, as given.
    """

    images: list[BinaryIO]
    options: dict[str, Any]


async def read_body(request: Request, max_images: int) -> RequestBody:
    """Read a request. `request.close()` deletes its files.

    Raises:
        RequestError: the body is of another type, malformed, or has no or too many images.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM_TYPE:
        body = read_form(await parse_form(request, max_images))
    elif kind == JSON_TYPE:
        body = await asyncio.to_thread(read_json, await request.body(), max_images)
    else:
        raise RequestError(
            415,
            "content_type_not_supported",
            f"The body must be {FORM_TYPE} with files named 'images', or {JSON_TYPE}; "
            f"got {kind or 'no content type'}. {EXAMPLE}",
        )
    if not body.images:
        raise RequestError(422, "no_images", f"The request has no images. {EXAMPLE}")
    if len(body.images) > max_images:
        raise too_many_images(max_images)
    return body


async def parse_form(request: Request, max_images: int) -> list[tuple[str, UploadFile | str]]:
    """Return the (name, value) of each field of a multipart form.

    Raises:
        RequestError: it is malformed or has too many files.
    """
    try:
        form = await request.form(
            max_files=max_images, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
    except HTTPException as error:
        if "Too many files" in error.detail:
            raise too_many_images(max_images) from None
        raise RequestError(400, "invalid_form", f"The form is malformed: {error.detail}") from None
    return form.multi_items()


def read_form(items: list[tuple[str, UploadFile | str]]) -> RequestBody:
    """Return the files and the options of a form.

    Raises:
        RequestError: a file has another name, or `images` is not a file.
    """
    images: list[BinaryIO] = []
    options: dict[str, Any] = {}
    for name, value in items:
        if isinstance(value, UploadFile) != (name == "images"):
            raise RequestError(
                422,
                "invalid_form",
                f"Files must be in fields named 'images', and 'images' must be files. {EXAMPLE}",
            )
        if isinstance(value, UploadFile):
            images.append(value.file)
        else:
            options[name] = value
    return RequestBody(images, options)


def read_json(content: bytes, max_images: int) -> RequestBody:
    """Return the images and the options of a JSON document.

    Raises:
        RequestError: it is not JSON of the expected form, or has too many images.
    """
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise RequestError(422, "invalid_json", f"The body has more than {MAX_VALUES:,} values.")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "invalid_json", f"The body is not JSON: {error}.") from None
    images = document.get("images") if isinstance(document, Mapping) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RequestError(
            422,
            "invalid_json",
            'The body must be a JSON object with a list of base64 texts: {"images": ["…"]}.',
        )
    if len(images) > max_images:  # before the first one is decoded
        raise too_many_images(max_images)
    options = {name: value for name, value in document.items() if name != "images"}
    files = [decode_base64(text, index) for index, text in enumerate(images)]
    return RequestBody(files, options)


def decode_base64(text: str, index: int) -> BinaryIO:
    """Return image `index` of a request as a file; its base64 may be a data URL.

    Raises:
        RequestError: it is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return io.BytesIO(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise RequestError(
            422, "invalid_base64", f"images[{index}] is not base64: {error}."
        ) from None


def too_many_images(max_images: int) -> RequestError:
    """Return the error of a request with too many images."""
    return RequestError(
        422,
        "too_many_images",
        f"A request may have at most {max_images} images. Send several requests.",
    )
