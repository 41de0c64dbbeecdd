"""CLIPScore: how well a caption fits its picture in CLIP's eyes; no references are needed.

CLIP is a folder of the user's, as transformers saves it; the paper's is
openai/clip-vit-base-patch32. It is the only scorer that looks at pictures.

Source: Hessel et al. 2021, arXiv:2104.08718.
"""

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ...features.reading.decode import BROKEN_PICTURE, to_rgb, upright
from ...pipeline.captions import read_images
from ...pipeline.datasets.image_files import ImageFiles
from ...pipeline.layout import IMAGES_PARQUET
from ...pipeline.stage.console import ProgressLine
from ...pipeline.stage.errors import DatasetError, MissingArtifactError, ScorerError
from ...pipeline.stage.files import hash_file
from ...pipeline.stage.manifest import Manifest
from .ngrams import Floats

PROMPT = "A photo depicts "
SCALE = 2.5  # w in the paper: the cosines of good captions are about 0.3
BATCH_SIZE = 64
MODEL_NAMES = ("model.safetensors", "pytorch_model.bin")


def find_clip(folder: Path | None) -> dict[str, str]:
    """What CLIPScore depends on, for the manifest; empty where no CLIP is given.

    Raises:
        MissingArtifactError: the folder holds no saved model.
        ScorerError: transformers is not installed.
    """
    if folder is None:
        return {}
    found = [name for name in MODEL_NAMES if (folder / name).is_file()]
    if not found or not (folder / "config.json").is_file():
        raise MissingArtifactError(
            f"--clip {folder} holds no CLIP, expected config.json and one of "
            f"{', '.join(MODEL_NAMES)}. Name a folder such as 'hf download "
            "openai/clip-vit-base-patch32 --local-dir DIR' makes."
        )
    if find_spec("transformers") is None:
        raise ScorerError(
            "CLIPScore needs transformers, which is not installed. Run "
            ".venv/bin/pip install -e '.[clip]', or run without --clip."
        )
    return {"clip": hash_file(folder / found[0])}


def score_clip(folder: Path, captions_dir: Path, hypotheses: Mapping[int, str]) -> Floats:
    """CLIPScore of each caption, (N,) float64, 0 to 2.5.

    Args:
        folder: of the model.
        captions_dir: of the dataset; its manifest knows where the pictures are.
        hypotheses: image_id → caption.

    Raises:
        ScorerError: transformers is not installed, or cannot load the model.
        DatasetError: a picture is gone or broken.
    """
    model, processor = load_clip(folder)
    images = read_images(captions_dir / IMAGES_PARQUET)
    names = dict(zip(images.image_ids.tolist(), images.file_names, strict=True))
    files = ImageFiles(Path(Manifest.require(captions_dir, "showtell prepare").details["source"]))
    options = {"return_tensors": "pt", "padding": True, "truncation": True}
    options["max_length"] = model.config.text_config.max_position_embeddings
    image_ids, scores = list(hypotheses), []
    with ProgressLine("CLIPScore", len(image_ids), "img") as line, torch.inference_mode():
        for start in range(0, len(image_ids), BATCH_SIZE):
            batch = image_ids[start : start + BATCH_SIZE]
            pictures = [open_picture(files, names[image_id]) for image_id in batch]
            texts = [PROMPT + hypotheses[image_id] for image_id in batch]
            found = model(**processor(text=texts, images=pictures, **options))
            scores.append(scaled_cosines(found.image_embeds, found.text_embeds))
            line.advance(len(batch))
    return np.concatenate(scores)


def scaled_cosines(images: Tensor, texts: Tensor) -> Floats:
    """2.5 max(cos, 0) of each pair: (N, E) and (N, E) → (N,) float64."""
    cosines = torch.cosine_similarity(images.double(), texts.double())
    scores: Floats = (SCALE * cosines.clamp(min=0)).numpy()
    return scores


def open_picture(files: ImageFiles, file_name: str) -> Image.Image:
    """Read a picture, upright and RGB.

    Raises:
        DatasetError: it is gone or broken.
    """
    try:
        image = Image.open(io.BytesIO(files.read(file_name)))
        image.load()
        return to_rgb(upright(image))
    except BROKEN_PICTURE as error:
        raise DatasetError(
            f"{files.root / file_name} cannot be read for CLIPScore ({error}). Put it back, or run "
            "without --clip."
        ) from None


def load_clip(folder: Path) -> tuple[Any, Any]:
    """The model, in eval mode, and what prepares its inputs.

    Raises:
        ScorerError: transformers cannot load the model.
    """
    from transformers import CLIPModel, CLIPProcessor  # an extra: most do without

    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True)
        return model.eval(), CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ScorerError(
            f"--clip {folder} cannot be loaded as CLIP ({error}). Get the folder again."
        ) from None
