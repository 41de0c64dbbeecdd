"""SPICE and CLIPScore, which join the scores where what they need is there."""

from pathlib import Path

from ...pipeline.stage.console import print_note, print_warning
from ...pipeline.stage.errors import ScorerError
from .clip_score import find_clip, score_clip
from .official import OfficialScores
from .per_image import ImageScores
from .spice import explain_absence, find_spice, score_spice

NO_CLIP = "no --clip DIR with a saved CLIP is given"


def find_extra_scorers(clip: Path | None) -> dict[str, str]:
    """What the extra scores depend on: name → fingerprint of each scorer that is there.

    Raises:
        MissingArtifactError: `clip` is given and holds no CLIP.
    """
    return find_spice() | find_clip(clip)


def add_extra_scores(
    official: OfficialScores, hypotheses: dict[int, str], captions_dir: Path, clip: Path | None
) -> ImageScores:
    """Add SPICE and CLIPScore to what each image contributes, with a line for what is left out.

    Args:
        official: the scores there are.
        hypotheses: image_id → caption, as decoded.
        captions_dir: of the dataset.
        clip: folder of a CLIP; None leaves CLIPScore out.

    Raises:
        ScorerError: a CLIP is given and cannot be loaded.
        DatasetError: a picture is gone or broken.
    """
    images = official.images
    if absence := explain_absence():
        print_note(f"SPICE is left out: {absence}.")
    else:
        try:
            spice = score_spice(official.references, official.hypotheses)
            images = images.with_means({"SPICE": spice})
        except ScorerError as error:
            print_warning(f"SPICE is left out: {error}")
    if clip is None:
        print_note(f"CLIPScore is left out: {NO_CLIP}.")
        return images
    return images.with_means({"CLIPScore": score_clip(clip, captions_dir, hypotheses)})
