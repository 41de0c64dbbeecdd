"""Caption images with a trained run, using the same encoder, transform and vocabulary."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..features.device import choose_device, keep_freed_memory
from ..features.encoders.backbone import Backbone, load_backbone
from ..features.extract import pillow_warnings_ignored
from ..features.reading.broken_images import UnreadableImageError
from ..features.reading.decode import decode_image, to_upright_rgb
from ..features.reading.limits import MAX_PIXELS
from ..features.reading.views import VIEWS
from ..features.store import require_views
from ..model.decoders.base import Decoder
from ..model.decoders.ensemble import join_decoders
from ..model.decoders.precision import Precision
from ..model.generation.consensus import Consensus
from ..model.generation.generate import CaptionModel, decode
from ..model.generation.hypothesis import Hypothesis
from ..model.generation.options import DecodingOptions
from ..model.presets import DECODING_PRESETS, apply_preset
from ..model.runs.find import find_run, run_names
from ..model.runs.layout import CONFIG_NAME
from ..model.runs.run import RunConfig, load_run, load_run_features
from ..pipeline.stage.console import print_error, print_json, print_result, print_warning
from ..pipeline.stage.errors import DatasetError, MismatchError
from ..pipeline.text.vocab import Vocab

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jp2", ".j2k"),
}
# Folders that operating systems create for thumbnails, metadata and deleted files.
GENERATED_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"}
BATCH_SIZE = 32  # images in memory at once


@dataclass
class Captioner:
    """A trained model with everything it needs to caption images.

    Example:
        captioner = showtell.load("data/runs/flickr8k-gru")
        captioner.caption(["dog.jpg", "beach.jpg"])  # ["a dog runs …", "two people …"]

    Attributes:
        backbone: the frozen encoder and its transform.
        decoder: in eval mode.
        vocab: the decoder's vocabulary.
        precision: arithmetic and device of the decoder.
        run: the config stored with the run.
        data: the data folder, where `consensus` finds features and captions of the training images.
        max_pixels: image files with more pixels are refused.
    """

    backbone: Backbone
    decoder: Decoder
    vocab: Vocab
    precision: Precision
    run: RunConfig
    data: Path
    max_pixels: int = MAX_PIXELS
    _consensus: tuple[tuple[int, int, float], Consensus] | None = field(default=None, repr=False)

    def caption(
        self,
        images: str | Path | Image.Image | Sequence[str | Path | Image.Image],
        **options: Any,
    ) -> list[str]:
        """Caption images.

        Args:
            images: paths, or PIL images in any mode. A single image is allowed too.
            options: fields of `DecodingOptions` (`beam`, `length_penalty`, `max_length`, …), as
                explained by `showtell caption --help`. `preset` fills in those that are not given.

        Returns:
            One caption per image.

        Raises:
            DatasetError: a file is missing or is not a readable image.
            ConfigError: an option is invalid.
        """
        if preset := options.get("preset"):
            options = apply_preset(DECODING_PRESETS, preset, options, tuple(options))
        decoding = DecodingOptions(**options)
        generator = torch.Generator().manual_seed(decoding.seed)
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        captions: list[str] = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            pixels = [self.pixels(image, decoding.views) for image in batch]
            found = self.decode_pixels(pixels, decoding, generator)
            captions += [self.vocab.decode(hypotheses[0].token_ids) for hypotheses in found]
        return captions

    def decode_pixels(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        options: DecodingOptions,
        generator: torch.Generator | None = None,
    ) -> list[list[Hypothesis]]:
        """Caption a batch of transformed images.

        Args:
            pixels: V views of each image, (V, 3, H, W) uint8 each.
            options: how to decode.
            generator: random numbers for sampling; pass one generator to all batches. Default: a
                new one with the options' seed.

        Returns:
            For each image its captions, best first: at least one, at most `n_best`.

        Raises:
            MissingArtifactError: features or captions that `consensus` needs are missing.
        """
        if not pixels:
            return []
        consensus = self.consensus(options)
        batch = torch.from_numpy(np.concatenate(pixels)).to(self.precision.device)  # (N·V, 3, H, W)
        uses_grid = self.decoder.uses_grid
        features = self.backbone.grid(batch) if uses_grid else self.backbone(batch)
        features = features.half()  # like the cached features that the decoder was trained on
        views = features.unflatten(0, (len(pixels), options.views)).unbind(1)
        model: CaptionModel[Any] = join_decoders([self.decoder], options.views)
        inputs = views[0] if options.views == 1 else views
        limited = options.for_unit(self.vocab.unit)
        (found,) = decode(model, [inputs], self.precision, limited, generator)
        if consensus is not None:
            pooled = [view.float().mean(1) if uses_grid else view.float() for view in views]
            found = consensus.rank(torch.stack(pooled).mean(0).cpu(), found, self.vocab)
        return [hypotheses[: options.n_best] for hypotheses in found]

    def consensus(self, options: DecodingOptions) -> Consensus | None:
        """Return the training images that re-rank captions; None without `options.consensus`.

        They are loaded once and reused.

        Raises:
            MissingArtifactError: features or captions of the training images are missing.
        """
        if not options.consensus:
            return None
        wanted = (options.views, options.consensus, options.consensus_precision)
        if self._consensus is None or self._consensus[0] != wanted:
            store = load_run_features(self.data, self.run)
            require_views(store, options.views)
            captions_dir = self.data / self.run.dataset / "captions"
            self._consensus = wanted, Consensus.load(captions_dir, [store], *wanted)
        return self._consensus[1]

    def pixels(self, image: str | Path | Image.Image, num_views: int = 1) -> NDArray[np.uint8]:
        """Read an image and apply the encoder's transform: (V, 3, H, W) uint8.

        Args:
            image: a path or a PIL image.
            num_views: V, the number of views; the first is the whole image.

        Raises:
            DatasetError: the file is missing or is not a readable image.
        """
        transform = self.backbone.transform
        try:
            if isinstance(image, Image.Image):
                decoded = to_upright_rgb(image.copy())
            else:
                content = Path(image).read_bytes()
                decoded = decode_image(content, transform, self.max_pixels)
            return np.stack([transform(decoded, view) for view in VIEWS[:num_views]])
        except OSError as error:
            raise DatasetError(f"{image} cannot be read: {error.strerror or error}.") from None
        except UnreadableImageError as error:
            raise DatasetError(f"{image} is not a readable image: {error}.") from None


def load(
    run: str | Path | None = None,
    *,
    data: str | Path = "data",
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> Captioner:
    """Load a trained run as a `Captioner`.

    Args:
        run: folder of a run, or the name of one under `data/runs`; None takes the newest.
        data: the data folder; used if `run` is not a folder.
        weights: path of the encoder's weights, if the file was moved after training.
        device: cpu, cuda, …; auto uses a GPU if there is one.
        precision: auto, fp32, bf16 or fp16.
        max_pixels: image files with more pixels are refused.

    Raises:
        MissingArtifactError: there is no such run.
        WeightsError: the encoder's weights are not available.
        MismatchError: the run was trained with other weights, or needs grid features that the
            encoder does not have.
    """
    keep_freed_memory()
    if run is not None and Path(run).is_dir() and str(run) not in run_names(Path(data)):
        run_dir = Path(run)
        data = run_dir.absolute().parents[1]  # data/runs/<run>
    else:
        run_dir = find_run(Path(data), None if run is None else str(run))
    decoder_precision = Precision(precision, choose_device(device))
    config, vocab, decoder = load_run(run_dir, decoder_precision.device)
    trained_with = config.backbone
    backbone = load_backbone(
        trained_with["encoder"],
        str(weights or trained_with["weights"]),
        trained_with["image_size"],
        decoder_precision.device,
        precision,
    )
    if backbone.weights_sha256 != trained_with["weights_sha256"]:
        raise MismatchError(
            f"The weights {trained_with['weights']} of {trained_with['encoder']} have SHA-256 "
            f"{backbone.weights_sha256[:12]}, but the run {run_dir} was trained with "
            f"{trained_with['weights_sha256'][:12]}. Give the original file with --weights."
        )
    if backbone.transform.describe() != trained_with["transform"]:
        raise MismatchError(
            f"The transform of {backbone.name} is {backbone.transform.describe()}, but the run "
            f"{run_dir} was trained with {trained_with['transform']}. Restore the original "
            f"{CONFIG_NAME} of the run."
        )
    if decoder.uses_grid and not backbone.has_grid:
        raise MismatchError(
            f"The run {run_dir} needs grid features, which {backbone.name} does not "
            f"have. Restore the original {CONFIG_NAME} of the run."
        )
    return Captioner(backbone, decoder, vocab, decoder_precision, config, Path(data), max_pixels)


def caption_files(captioner: Captioner, paths: Iterable[Path], options: DecodingOptions) -> int:
    """Caption image files and print the captions; print an error for each unreadable image.

    Each image gives a line `path: caption`. With `n_best` above 1, it gives the path, then a line
    per caption with its log-probability. With `--json`, the output is a list of
    `{"path": str, "captions": [{"caption": str, "log_prob": float, "score": float}, ...]}`, best
    caption first. For an unreadable image, `captions` is empty and "error" holds the reason.

    Args:
        captioner: from `load`.
        paths: image files or folders, see `find_images`.
        options: how to decode.

    Returns:
        The number of images that could not be read.

    Raises:
        DatasetError: a folder contains no images.
        MissingArtifactError: features or captions that `consensus` needs are missing.
    """
    results: list[dict[str, Any]] = [{"path": p, "captions": []} for p in find_images(paths)]
    generator = torch.Generator().manual_seed(options.seed)
    for start in range(0, len(results), BATCH_SIZE):
        readable: list[tuple[dict[str, Any], NDArray[np.uint8]]] = []
        for result in results[start : start + BATCH_SIZE]:
            try:
                with pillow_warnings_ignored():
                    readable.append((result, captioner.pixels(result["path"], options.views)))
            except DatasetError as error:
                print_error(str(error))
                result["error"] = str(error)
        found = captioner.decode_pixels([pixels for _, pixels in readable], options, generator)
        for (result, _), hypotheses in zip(readable, found, strict=True):
            result["captions"] = [
                {
                    "caption": captioner.vocab.decode(hypothesis.token_ids),
                    "log_prob": hypothesis.log_prob,
                    "score": hypothesis.score,
                }
                for hypothesis in hypotheses
            ]
            print_result(_describe(result, options.n_best))
    print_json(results)
    return sum("error" in result for result in results)


def _describe(result: dict[str, Any], n_best: int) -> str:
    """Return the lines to print for one captioned image."""
    path, captions = result["path"], result["captions"]
    if n_best == 1:
        return f"{path}: {captions[0]['caption']}"
    lines = (f"  {found['log_prob']:7.2f}  {found['caption']}" for found in captions)
    return "\n".join([f"{path}:", *lines])


def find_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the image files; a folder stands for all images below it, sorted by path.

    Links to folders are followed. Hidden files and folders are skipped, and so are generated
    folders, such as those of thumbnails.

    Raises:
        DatasetError: a folder contains no images.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(walk_images(path))
            if not found:
                raise DatasetError(
                    f"{path} contains no images ({', '.join(sorted(IMAGE_SUFFIXES))})."
                )
            yield from found
        else:
            yield path


def walk_images(root: Path) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, in any order, each folder once.

    Linked folders come last, so that an image found twice gets the path without links.
    """
    waiting, visited = [root], set[Path]()
    while waiting:
        for name, subfolders, files in os.walk(waiting.pop(0), onerror=warn_of_folder):
            folder = Path(name)
            if folder.resolve() in visited:
                subfolders.clear()
                continue
            visited.add(folder.resolve())
            subfolders[:] = sorted(filter(is_shown, subfolders))
            waiting += [folder / name for name in subfolders if (folder / name).is_symlink()]
            yield from (folder / name for name in files if is_image_file(folder / name))


def warn_of_folder(error: OSError) -> None:
    """Warn that a folder cannot be read; the search continues."""
    print_warning(f"{error.filename} cannot be read: {error.strerror}. Its images are skipped.")


def is_shown(folder_name: str) -> bool:
    """Return whether a folder is neither hidden nor in `GENERATED_FOLDERS`."""
    return not folder_name.startswith(".") and folder_name not in GENERATED_FOLDERS


def is_image_file(path: Path) -> bool:
    """Return whether a path is a file with an image suffix, and not hidden."""
    is_hidden = path.name.startswith(".")
    return not is_hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
