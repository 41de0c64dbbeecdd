import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from showtell.model.metrics.caption_scorer import CaptionScorer
from showtell.model.metrics.image_scores import ImageScores
from showtell.model.metrics.meteor import NUM_COUNTS
from showtell.pipeline.stage.errors import MissingArtifactError

REFERENCES = {7: ["a dog runs on grass"], 3: ["a cat sits", "the cat sat"], 5: ["two men ride"]}
HYPOTHESES = {7: "a dog runs", 3: "a cat sits on a mat", 5: "two dogs"}


def score_images() -> ImageScores:
    scores = CaptionScorer(REFERENCES).score_each(HYPOTHESES)
    meteor = np.random.default_rng(0).random((3, NUM_COUNTS))
    means = {"ROUGE_L": scores.rouge_l, "CIDEr": scores.cider}
    return ImageScores(scores.image_ids, scores.bleu, meteor, means)


def test_draws_score_as_sets_with_repeated_images() -> None:
    images, rows = score_images(), np.array([0, 2, 2])
    found = images.of_draws(np.array([[1.0, 0, 2], [1, 1, 1]]))
    drawn = [list(REFERENCES)[row] for row in rows]
    expected, _ = Bleu(4).compute_score(
        {index: REFERENCES[image_id] for index, image_id in enumerate(drawn)},
        {index: [HYPOTHESES[image_id]] for index, image_id in enumerate(drawn)},
        verbose=0,
    )
    assert [found[f"Bleu_{n}"][0] for n in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-9)
    assert found["CIDEr"][0] == pytest.approx(images.means["CIDEr"][rows].mean())
    assert images.select(rows).of_all() == pytest.approx({k: v[0] for k, v in found.items()})
    assert images.of_all() == pytest.approx({k: v[1] for k, v in found.items()})


def test_scores_survive_a_round_trip_through_the_file(tmp_path) -> None:
    images = score_images().with_means({"CLIPScore": np.array([0.1, 0.2, 0.3])})
    images.write(tmp_path / "scores.npz")
    again = ImageScores.read(tmp_path / "scores.npz")
    assert again.image_ids.tolist() == [7, 3, 5]
    assert again.of_all() == images.of_all()
    assert list(again.of_all())[-1] == "CLIPScore"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npz"]


def test_damaged_file_is_an_error_with_the_command(tmp_path) -> None:
    path = tmp_path / "scores.npz"
    for content in (b"", b"no zip", b"PK\3\4 cut short"):
        path.write_bytes(content)
        with pytest.raises(MissingArtifactError, match=r"scores\.npz .* run 'showtell eval' again"):
            ImageScores.read(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(MissingArtifactError, match="image_ids"):
        ImageScores.read(path)
