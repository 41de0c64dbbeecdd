from typing import Any

import pytest

from showtell.model.scoring.pairs import Pairs, pair_captions
from showtell.pipeline.datasets.caption_files import read_captions
from showtell.pipeline.stage.errors import DatasetError, MismatchError


def pair(candidates: Any, references: Any) -> Pairs:
    return pair_captions(
        read_captions(candidates, "candidates"), read_captions(references, "references")
    )


def annotations(names: dict[int, str]) -> dict[str, Any]:
    """COCO's annotations, with a caption that tells the id of the image."""
    return {
        "images": [{"id": i, "file_name": name} for i, name in names.items()],
        "annotations": [{"image_id": i, "caption": f"caption {i}"} for i in names],
    }


def test_images_are_matched_by_id_and_sorted() -> None:
    pairs = pair({"10": "ten", 9: "nine"}, {9: ["a", "b"], 10: "c", 11: "d", 12: []})
    assert pairs == Pairs((9, 10), ("nine", "ten"), (("a", "b"), ("c",)), (None, None), 2)
    assert pair({"b": "x", "7": "y"}, {7: "a", "b": "b"}).ids == ("7", "b")


@pytest.mark.parametrize(
    "names",
    [
        ("COCO_9.jpg", "COCO_10.jpg"),
        ("val2014/COCO_9.jpg", "val2014/COCO_10.jpg"),
        ("/a/COCO_9.jpg", "/b/COCO_10.jpg"),
        ("COCO_9", "COCO_10.PNG"),
    ],
)
def test_images_are_matched_by_file_name(names: tuple[str, str]) -> None:
    candidates = dict.fromkeys(names, "a dog")
    for references in (
        annotations({9: "COCO_9.jpg", 10: "COCO_10.jpg", 11: "COCO_11.jpg"}),
        {"x/COCO_9.jpg": "caption 9", "x/COCO_10.jpg": "caption 10", "x/COCO_11.jpg": "a"},
    ):
        pairs = pair(candidates, references)
        found = dict(zip(pairs.ids, pairs.references, strict=True))
        assert found == {names[0]: ("caption 9",), names[1]: ("caption 10",)}
        assert pairs.num_without_candidate == 1


def test_file_names_are_kept() -> None:
    by_id = pair({9: "a dog", 10: "a cat"}, annotations({10: "x/10.jpg", 9: "x/9.jpg"}))
    assert by_id.file_names == ("x/9.jpg", "x/10.jpg")
    by_name = pair({"b.jpg": "a dog", "7": "a cat"}, {"b.jpg": "b", "7": "a"})
    assert by_name.ids == ("7", "b.jpg") and by_name.file_names == (None, "b.jpg")


def test_equal_names_in_two_folders_are_not_confused() -> None:
    with pytest.raises(MismatchError, match=r"no image in common.*such as 1\.jpg and a/1\.jpg, b/"):
        pair({"1.jpg": "a dog"}, {"a/1.jpg": "x", "b/1.jpg": "y"})
    with pytest.raises(MismatchError, match="no image in common"):
        pair({"a/1.jpg": "a dog", "b/1.jpg": "a cat"}, {"1.jpg": "x"})


def test_lines_are_matched_by_number() -> None:
    pairs = pair(["one", "two"], [["a", ""], ["b", "c"]])
    assert pairs == Pairs((1, 2), ("one", "two"), (("a",), ("b", "c")), (None, None), 0)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], ["b", "c"], "candidates has 1 lines and references has 2."),
        (["a"], {1: "b"}, "references names its images, but candidates has captions without ids"),
        ({1: "a"}, ["b"], "candidates names its images, but references has captions without ids"),
        ({1: "a", 2: "b", 3: "c"}, {1: "d"}, "2 of 3 images in candidates have no references in"),
        ({1: "a", 2: "b", 3: "c"}, {1: "d"}, "references: 2, 3. Remove them"),
        (dict.fromkeys(range(9), "a"), {0: "d"}, "references: 1, 2, 3, …. Remove them"),
    ],
)
def test_images_without_references_are_refused(candidates, references, message: str) -> None:
    with pytest.raises(MismatchError) as error:
        pair(candidates, references)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({7: ["a", "b"]}, {7: "c"}, "candidates: image 7 has 2 captions, expected one candidate."),
        ({7: []}, {7: "c"}, "candidates: image 7 has 0 captions"),
        ([["a", "b"]], ["c"], "candidates: line 1 has 2 captions, expected one candidate a line"),
        ({7: "a"}, {7: []}, "references: image 7 has no references. Add one, or remove its cand"),
        ({7: "a"}, {7: ["b", " "]}, "references: image 7 has an empty reference."),
        (["a", "b"], ["c", ""], "references: line 2 has no references."),
    ],
)
def test_error_names_the_image(candidates, references, message: str) -> None:
    with pytest.raises(DatasetError) as error:
        pair(candidates, references)
    assert message in str(error.value)


def test_empty_candidate_is_allowed() -> None:
    assert pair({7: ""}, {7: "a"}).candidates == ("",)
