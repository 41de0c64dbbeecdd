"""CLIPScore and RefCLIPScore: similarities of a caption with its image and its references.

They compare embeddings by CLIP, or by another model with embeddings of images and texts such as
SigLIP. CLIPScore needs no references. The user provides a model as transformers saves it; the paper
uses openai/clip-vit-base-patch32. Scores by different models cannot be compared.

Source: Hessel et al. 2021, arXiv:2104.08718.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
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
from ...pipeline.captions import open_images
from ...pipeline.images.image_files import ImageFiles
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
        self._embedded: tuple[CaptionSet, Tensor, Tensor] | None = None

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
                "pip install 'showtell[clip]', or run without --clip."
            )
        return {"clip": hash_file(self.folder / found[0])}

    def score(self, captions: CaptionSet) -> Floats:
        """Return CLIPScore of each caption, (N,) float64.

        Raises:
            MissingArtifactError: transformers cannot load the model.
            DatasetError: an image is missing or corrupt.
        """
        return scaled_cosines(*self.embed(captions))

    def embed(self, captions: CaptionSet) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the images and of their captions, (N, E) each.

        Those of the last captions are kept. Raises the errors of `score`.
        """
        if self._embedded is None or self._embedded[0] is not captions:
            images = captions.images or _find_images(captions)
            found = []
            with ProgressLine(self.name, len(captions.hypotheses), "img") as line:
                for batch in _read_in_batches(list(captions.hypotheses), images):
                    found.append(self.model.embed_images(list(batch.values())))
                    line.advance(len(batch))
            texts = self.model.embed_texts(list(captions.hypotheses.values()))
            self._embedded = captions, torch.cat(found), texts
        return self._embedded[1:]

    @cached_property
    def model(self) -> "ClipModel":
        """The model, loaded on first use."""
        return ClipModel.load(self.folder)


class RefClipScore(Metric):
    """RefCLIPScore of each caption, 0 to 1.43: the harmonic mean of two similarities.

    One is CLIPScore. The other is the largest cosine of the caption and a reference; 0 if all are
    negative.

    Args:
        clip_score: computes CLIPScore; its embeddings are used again.
    """

    name = "RefCLIPScore"

    def __init__(self, clip_score: ClipScore) -> None:
        self.clip_score = clip_score

    def inputs(self) -> dict[str, str]:
        """Return those of CLIPScore, so that evaluations of earlier versions stay up to date."""
        return self.clip_score.inputs()

    def score(self, captions: CaptionSet) -> Floats:
        """Return RefCLIPScore of each caption, (N,) float64. Raises the errors of `ClipScore`."""
        images, texts = self.clip_score.embed(captions)
        counts = torch.tensor([len(captions.references[i]) for i in captions.hypotheses])
        listed = chain.from_iterable(captions.references[i] for i in captions.hypotheses)
        references = self.clip_score.model.embed_texts(list(listed))
        cosines = torch.cosine_similarity(
            texts.double().repeat_interleave(counts, 0), references.double()
        )
        nearest = torch.stack([each.max() for each in cosines.split(counts.tolist())])
        return harmonic_mean(scaled_cosines(images, texts), nearest.clamp(min=0).numpy())


@dataclass(frozen=True)
class ClipModel:
    """A model with embeddings of images and texts in the same space.

    Attributes:
        model: in eval mode.
        processor: turns images and texts into its inputs.
    """

    model: Any
    processor: Any

    @classmethod
    def load(cls, folder: Path) -> "ClipModel":
        """Load a model from a folder.

        Raises:
            MissingArtifactError: transformers cannot load it, or it does not embed both.
        """
        from transformers import AutoModel, AutoProcessor  # an optional dependency
        from transformers.utils import logging

        disable_progress_bar: Any = logging.disable_progress_bar
        disable_progress_bar()
        try:
            model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
            load_processor: Any = AutoProcessor.from_pretrained
            processor = load_processor(folder, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise MissingArtifactError(
                f"--clip {folder} cannot be loaded as a CLIP model ({error}). Download it again."
            ) from None
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise MissingArtifactError(
                f"--clip {folder} holds a {type(model).__name__}, which does not embed both images "
                "and texts. Give the folder of a model such as CLIP or SigLIP."
            )
        return cls(model, processor)

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the embeddings of images, (N, E)."""
        inputs = self.processor.image_processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            return _embeddings(self.model.get_image_features(**inputs))

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """Return the embeddings of captions, each after `PROMPT`, (N, E)."""
        is_siglip = self.model.config.model_type.startswith("siglip")
        options = {
            # SigLIP was trained with padding in its attention, CLIP without.
            "padding": "max_length" if is_siglip else True,
            "truncation": True,
            "max_length": self.model.config.text_config.max_position_embeddings,
            "return_tensors": "pt",
        }
        found = []
        with torch.inference_mode():
            for start in range(0, len(captions), BATCH_SIZE):
                texts = [PROMPT + caption for caption in captions[start : start + BATCH_SIZE]]
                inputs = self.processor.tokenizer(texts, **options)
                found.append(_embeddings(self.model.get_text_features(**inputs)))
        return torch.cat(found)


def _embeddings(output: Any) -> Tensor:
    """Return the embeddings in what a model returned: a tensor before transformers 5."""
    embeddings: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embeddings


def harmonic_mean(first: Floats, second: Floats) -> Floats:
    """Return the harmonic mean of each pair of numbers from 0; 0 if one of them is 0."""
    total = first + second
    means: Floats = 2 * first * second / np.where(total > 0, total, 1)
    return means


def scaled_cosines(images: Tensor, texts: Tensor) -> Floats:
    """Return 2.5 max(cos, 0) of each pair: (N, E) and (N, E) → (N,) float64."""
    cosines = torch.cosine_similarity(images.double(), texts.double())
    scores: Floats = (SCALE * cosines.clamp(min=0)).numpy()
    return scores


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
            f"CLIPScore cannot read {files.locate(file_name)} ({error}). Restore the file, or run "
            "without --clip."
        ) from None


def _find_images(captions: CaptionSet) -> NamedImages:
    """Return the images of the prepared dataset that the captions belong to."""
    assert captions.captions_dir is not None
    ids = [*captions.hypotheses]
    files, names = open_images(captions.captions_dir, ids)
    return NamedImages(files, dict(zip(ids, names, strict=True)))


def _read_in_batches(image_ids: list[int], images: NamedImages) -> Iterator[dict[int, Image.Image]]:
    """Yield image_id → image of up to `BATCH_SIZE` images at a time."""
    for start in range(0, len(image_ids), BATCH_SIZE):
        batch = image_ids[start : start + BATCH_SIZE]
        yield {image_id: read_image(images.files, images.names[image_id]) for image_id in batch}
