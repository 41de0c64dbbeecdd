"""CLIPScore: the similarity of a caption and its image in CLIP's embedding space.

It is the only metric that reads the images, and it needs no references. The user provides a CLIP
model as transformers saves it; the paper uses openai/clip-vit-base-patch32.

Source: Hessel et al. 2021, arXiv:2104.08718.
"""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ...features.reading.broken_images import UnreadableImageError
from ...features.reading.decode import decode_image
from ...features.reading.transform import Transform
from ...pipeline.captions import read_images
from ...pipeline.datasets.image_files import ImageFiles
from ...pipeline.layout import IMAGES_PARQUET
from ...pipeline.stage.artifacts import require_stage
from ...pipeline.stage.console import ProgressLine
from ...pipeline.stage.errors import DatasetError, MissingArtifactError, ScorerError
from ...pipeline.stage.files import hash_file
from .metric import CaptionSet, Floats, Metric, NamedImages

PROMPT = "A photo depicts "
SCALE = 2.5  # w in the paper: it spreads the cosines of good captions, about 0.3, over 0 to 1
BATCH_SIZE = 64
# JPEGs are decoded at no less than this size, far above CLIP's input.
LARGE = Transform(2048, 2048, "bicubic", (0.5,) * 3, (0.5,) * 3)
MODEL_NAMES = ("model.safetensors", "pytorch_model.bin")


class ClipScore(Metric):
    """CLIPScore of each caption, 0 to 2.5.

    Args:
        folder: where the model is saved.
    """

    name = "CLIPScore"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def inputs(self) -> dict[str, str]:
        """Return the sha256 of the model's weights.

        Raises:
            MissingArtifactError: the folder holds no saved model.
            ScorerError: transformers is not installed.
        """
        found = [name for name in MODEL_NAMES if (self.folder / name).is_file()]
        if not found or not (self.folder / "config.json").is_file():
            raise MissingArtifactError(
                f"--clip {self.folder} holds no CLIP model; expected config.json and one of "
                f"{', '.join(MODEL_NAMES)}. Download one with 'hf download "
                "openai/clip-vit-base-patch32 --local-dir DIR'."
            )
        if find_spec("transformers") is None:
            raise ScorerError(
                "CLIPScore needs transformers, which is not installed. Run "
                ".venv/bin/pip install -e '.[clip]', or run without --clip."
            )
        return {"clip": hash_file(self.folder / found[0])}

    def score(self, captions: CaptionSet) -> Floats:
        """Return CLIPScore of each caption, (N,) float64.

        Raises:
            MissingArtifactError: transformers cannot load the model.
            DatasetError: an image is missing or corrupt.
        """
        model, processor = load_clip(self.folder)
        options = {
            "return_tensors": "pt",
            "padding": True,
            "truncation": True,
            "max_length": model.config.text_config.max_position_embeddings,
        }
        images = captions.images or _find_images(captions)
        image_ids, scores = list(captions.hypotheses), []
        with ProgressLine("CLIPScore", len(image_ids), "img") as line, torch.inference_mode():
            for batch in _read_in_batches(image_ids, images):
                texts = [PROMPT + captions.hypotheses[image_id] for image_id in batch]
                found = model(**processor(text=texts, images=list(batch.values()), **options))
                scores.append(scaled_cosines(found.image_embeds, found.text_embeds))
                line.advance(len(batch))
        return np.concatenate(scores)


def scaled_cosines(images: Tensor, texts: Tensor) -> Floats:
    """Return 2.5 max(cos, 0) of each pair: (N, E) and (N, E) → (N,) float64."""
    cosines = torch.cosine_similarity(images.double(), texts.double())
    scores: Floats = (SCALE * cosines.clamp(min=0)).numpy()
    return scores


def load_clip(folder: Path) -> tuple[Any, Any]:
    """Load a CLIP model in eval mode, and the processor of its inputs.

    Raises:
        MissingArtifactError: transformers cannot load the model.
    """
    from transformers import CLIPModel, CLIPProcessor  # an optional dependency

    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True)
        return model.eval(), CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise MissingArtifactError(
            f"--clip {folder} cannot be loaded as a CLIP model ({error}). Download it again."
        ) from None


def read_image(files: ImageFiles, file_name: str) -> Image.Image:
    """Read an image, upright and in RGB; large JPEGs at a reduced size.

    `features` has read the image within the user's `--max-pixels`, so there is no limit here.

    Raises:
        DatasetError: it is missing or corrupt.
    """
    try:
        return decode_image(files.read(file_name), LARGE, max_pixels=sys.maxsize)
    except (UnreadableImageError, OSError) as error:
        raise DatasetError(
            f"CLIPScore cannot read {files.root / file_name} ({error}). Restore the file, or run "
            "without --clip."
        ) from None


def _find_images(captions: CaptionSet) -> NamedImages:
    """Return the images of the prepared dataset that the captions belong to."""
    assert captions.captions_dir is not None
    images = read_images(captions.captions_dir / IMAGES_PARQUET)
    names = dict(zip(images.image_ids.tolist(), images.file_names, strict=True))
    source = Path(require_stage(captions.captions_dir).details["source"])
    return NamedImages(ImageFiles(source), names)


def _read_in_batches(image_ids: list[int], images: NamedImages) -> Iterator[dict[int, Image.Image]]:
    """Yield image_id → image of up to `BATCH_SIZE` images at a time."""
    for start in range(0, len(image_ids), BATCH_SIZE):
        batch = image_ids[start : start + BATCH_SIZE]
        yield {image_id: read_image(images.files, images.names[image_id]) for image_id in batch}
