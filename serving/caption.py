"""The command `showtell caption`: caption image files and folders of images."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..features.device import keep_freed_memory
from ..features.extract import pillow_warnings_ignored
from ..model.generation.options import DecodingOptions
from ..model.runs.find import choose_run, find_model
from ..model.runs.layout import weights_path
from ..pipeline.layout import BUILT_IN
from ..pipeline.stage.artifacts import is_bundle
from ..pipeline.stage.console import (
    ProgressLine,
    format_seconds,
    print_aside,
    print_error,
    print_json,
    print_result,
    print_table,
)
from ..pipeline.stage.files import hash_file
from ..pipeline.stage.signals import advice_if_stopped
from ..pipeline.stage.stopwatch import Stopwatch
from .captioner import Captioner, decoding_options
from .config import CaptionConfig, chosen_decoding
from .images import find_images
from .load import decoding_defaults, load
from .outputs import Outputs
from .rows import valid_text
from .sidecar import Sidecars
from .stream import CaptionedImage, caption_stream

# What to do after Ctrl-C, where the same command would start again.
NOTHING_KEPT = "With --output FILE, captions are kept and the same command continues."
NOT_CONTINUED = "The same command captions all images again; with --output FILE too, it continues."


def caption(config: CaptionConfig) -> int:
    """Caption the images of a config.

    Returns:
        The number of images that could not be read.

    Raises:
        ShowTellError: see `load`, `caption_files` and `caption_to_files`.
    """
    model = config.run or config.model
    folder = find_model(config.data, model)
    if folder.parent == BUILT_IN:
        if model is None:
            print_aside(
                f"Using the built-in model {folder.name}; choose another with --run or --model."
            )
    elif not is_bundle(folder) and model in (None, folder.name):
        choose_run(config.data, model)  # says which, and whether it is finished
    if config.output is not None or config.sidecar is not None:
        return caption_to_files(config, folder)
    captioner = load_captioner(config, folder)
    return caption_files(
        captioner,
        config.images,
        captioner.decoding_options(**chosen_decoding(config, config.given)),
        recursive=config.recursive,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
    )


def load_captioner(config: CaptionConfig, folder: Path) -> Captioner:
    """Load the model in a folder with the options of a config. Raises the errors of `load`."""
    keep_freed_memory()
    return load(
        folder,
        data=config.data,
        weights=config.weights,
        device=config.device,
        precision=config.precision,
        max_pixels=config.max_pixels,
    )


def caption_files(
    captioner: Captioner,
    paths: Iterable[Path],
    options: DecodingOptions,
    *,
    recursive: bool = True,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> int:
    """Caption image files and print the captions, then an error for each unreadable image.

    Each image gives a line `path: caption`. With `n_best` above 1, it gives the path, then a line
    per caption with its log-probability. With `--json`, the output is a list of `{"path": str,
    "captions": [{"caption": str, "log_prob": float, "score": float, "word_probs": [float, ...]},
    ...]}`, best caption first. For an unreadable image, `captions` is empty and "error" holds the
    reason.

    Args:
        captioner: from `load`.
        paths: image files or folders, see `find_images`.
        options: how to decode.
        recursive: whether to search the subfolders of folders.
        batch_size: see `caption_stream`.
        num_workers: see `caption_stream`.

    Returns:
        The number of images that could not be read.

    Raises:
        DatasetError: a folder contains no images.
        ShowTellError: see `caption_stream`.
    """
    images = list(map(str, find_images(paths, recursive=recursive)))
    results, errors = list[dict[str, Any]](), list[str]()
    with pillow_warnings_ignored(), advice_if_stopped(NOTHING_KEPT):
        for batch in caption_stream(
            captioner, images, options, batch_size=batch_size, num_workers=num_workers
        ):
            for image in batch:
                results.append(result_of(image))
                if image.error is None:
                    print_result(describe(image, options.n_best))
                else:
                    errors.append(image.error)
    for error in errors:
        print_error(error)
    print_json(results)
    return len(errors)


def result_of(image: CaptionedImage) -> dict[str, Any]:
    """Return an image and its captions as JSON values."""
    captions = [
        {
            "caption": caption.text,
            "log_prob": caption.log_prob,
            "score": caption.score,
            "word_probs": caption.word_probs,
        }
        for caption in image.captions
    ]
    error = {} if image.error is None else {"error": image.error}
    return {"path": image.path, "captions": captions, **error}


def describe(image: CaptionedImage, n_best: int) -> str:
    """Return the lines to print for one captioned image."""
    if n_best == 1:
        return f"{image.path}: {image.captions[0]}"
    lines = (f"  {caption.log_prob:7.2f}  {caption}" for caption in image.captions)
    return "\n".join([f"{image.path}:", *lines])


def caption_to_files(config: CaptionConfig, folder: Path) -> int:
    """Write the captions of images to a table, to text files beside them, or to both.

    Only images without captions there are captioned. At the end, a summary and an error for each
    unreadable image are printed.

    Args:
        config: the options.
        folder: of the model.

    Returns:
        The number of images that could not be read.

    Raises:
        MismatchError: the table was written with another model or other options.
        DatasetError: the table is another file, two images have the same text file, or a folder
            contains no images.
        StorageError: a file cannot be written.
        ShowTellError: see `load` and `caption_stream`; or another process writes the table.
    """
    options = decoding_options(decoding_defaults(folder), chosen_decoding(config, config.given))
    sidecars = Sidecars(config.sidecar, config.if_exists) if config.sidecar else None
    images = list(map(str, find_images(config.images, recursive=config.recursive)))
    errors: dict[str, str] = {}
    with ExitStack() as stack:
        if config.output is None and config.if_exists != "skip":
            stack.enter_context(advice_if_stopped(NOT_CONTINUED))
        name = model_name(folder), options.decoding_name
        outputs = stack.enter_context(Outputs.open(config.output, sidecars, *name))
        missing = outputs.find_missing(images)
        captioner = load_captioner(config, folder) if missing else None
        watch = Stopwatch()
        if captioner is not None:
            outputs.start()
            stream = caption_stream(
                captioner,
                missing,
                options,
                batch_size=config.batch_size,
                num_workers=config.num_workers,
                watch=watch,
            )
            errors = write_all(stream, outputs, len(missing), watch)
        outputs.finish()
    print_summary(config, outputs.num_images, len(missing), errors, watch)
    return len(errors)


def write_all(
    stream: Iterable[list[CaptionedImage]], outputs: Outputs, num_missing: int, watch: Stopwatch
) -> dict[str, str]:
    """Write captioned images as they come, and show the progress.

    Args:
        stream: from `caption_stream`.
        outputs: where to write.
        num_missing: number of images in the stream.
        watch: of the stream.

    Returns:
        path → sentence about it, for unreadable images.
    """
    errors: dict[str, str] = {}
    total = outputs.num_images
    progress = ProgressLine("caption", total, "img", start=total - num_missing)
    with pillow_warnings_ignored(), progress:
        for batch in stream:
            with watch.part("write"):
                outputs.write(batch)
            errors |= {image.path: image.error for image in batch if image.error}
            progress.advance(len(batch), watch.shares())
    return errors


def model_name(folder: Path) -> str:
    """Return the name of a run or bundle, and the start of the SHA-256 of its weights."""
    return f"{valid_text(folder.resolve().name)}@{hash_file(weights_path(folder))[:8]}"


def print_summary(
    config: CaptionConfig,
    num_images: int,
    num_missing: int,
    errors: dict[str, str],
    watch: Stopwatch,
) -> None:
    """Print what was done, then the unreadable images.

    Args:
        config: the options.
        num_images: all images.
        num_missing: those without captions before this run.
        errors: path → sentence about it, for unreadable images.
        watch: of the captioning.
    """
    num_captioned = num_missing - len(errors)
    speed = num_missing / max(watch.seconds, 1e-9)
    shares = "  ".join(f"{name} {share:.0%}" for name, share in watch.shares().items())
    rows = [
        ("images", f"{num_images:,}"),
        ("captioned now", f"{num_captioned:,}"),
        ("captioned before", f"{num_images - num_missing:,}"),
        ("unreadable", f"{len(errors):,}"),
        ("speed", f"{speed:,.1f} images/s  {shares}"),
        ("time", format_seconds(watch.seconds)),
        *([("captions", str(config.output))] if config.output else []),
        *([("text files", f"*{config.sidecar} beside the images")] if config.sidecar else []),
    ]
    print_table("caption", rows if num_captioned else [*rows[:4], *rows[6:]])
    for error in errors.values():
        print_error(error)
    print_json(
        {
            "num_images": num_images,
            "num_captioned": num_captioned,
            "num_captioned_before": num_images - num_missing,
            "images_per_second": speed if num_captioned else None,
            "output": config.output,
            "sidecar": config.sidecar,
            "unreadable": [{"path": path, "error": error} for path, error in errors.items()],
        }
    )
