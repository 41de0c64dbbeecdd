from dataclasses import replace

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from showtell.model.metrics.caption_scorer import CaptionScorer
from showtell.model.metrics.image_scores import ImageScores
from showtell.model.metrics.meteor.counts import NUM_COUNTS
from showtell.pipeline.stage.checksums import checksums_of
from showtell.pipeline.stage.errors import DamagedFileError, MissingArtifactError
from showtell.pipeline.stage.manifest import Manifest

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


def test_scores_of_each_image_are_those_of_a_set_of_one() -> None:
    for images in (score_images(), replace(score_images(), meteor=None)):
        for row in range(3):
            each = {name: values[row] for name, values in images.of_each().items()}
            assert each == pytest.approx(images.select(np.array([row])).of_all())


def test_scores_survive_a_round_trip_through_the_file(tmp_path) -> None:
    images = score_images().with_means({"CLIPScore": np.array([0.1, 0.2, 0.3])})
    images.write(tmp_path / "scores.npz")
    again = ImageScores.read(tmp_path / "scores.npz")
    assert again.image_ids.tolist() == [7, 3, 5]
    assert again.of_all() == images.of_all()
    assert list(again.of_all())[-1] == "CLIPScore"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npz"]


def test_meteor_may_be_absent(tmp_path) -> None:
    images = replace(score_images(), meteor=None)
    images.write(tmp_path / "scores.npz")
    again = ImageScores.read(tmp_path / "scores.npz").select(np.array([2, 0]))
    assert again.meteor is None and "METEOR" not in again.of_all()
    assert images.of_all() == {k: v for k, v in score_images().of_all().items() if k != "METEOR"}


def test_every_damage_is_an_error_with_the_command(tmp_path) -> None:
    path = tmp_path / "runs/r/eval/test-beam3/scores.npz"
    score_images().write(path)
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", other=np.zeros(3))
    np.savez(tmp_path / "short.npz", **(dict(np.load(path)) | {"CIDEr": np.zeros(2)}))
    others = [(tmp_path / name).read_bytes() for name in ("other.npz", "short.npz")]
    cut = [whole[:size] for size in range(0, len(whole), 97)]
    fix = f"Run 'showtell eval --run r --data {tmp_path}'"
    for content in (b"no zip", b"PK\3\4 cut short", bytes(len(whole)), *cut, *others):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=rf"scores\.npz is damaged: .*\. {fix}"):
            ImageScores.read(path)
    path.unlink()
    with pytest.raises(MissingArtifactError, match=rf"scores\.npz does not exist\. {fix}"):
        ImageScores.read(path)


@pytest.mark.parametrize("is_old", [False, True], ids=["now", "old"])
def test_flipped_bits_are_damage(tmp_path, is_old: bool) -> None:
    path, images = tmp_path / "scores.npz", score_images()
    images.write(path)
    whole, num_damaged = path.read_bytes(), 0
    Manifest(
        stage="eval",
        version=1,
        config={},
        inputs={},
        outputs={path.name: len(whole)},
        checksums={} if is_old else checksums_of(tmp_path, [path.name]),
    ).write(tmp_path)
    bits = range(0, 8 * len(whole), 29)
    for bit in bits:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            ImageScores.read(path)
        except DamagedFileError:
            num_damaged += 1
    # The CRCs of a zip do not cover its dates, comments and list of members.
    assert num_damaged == len(bits) if not is_old else num_damaged > len(bits) / 2
