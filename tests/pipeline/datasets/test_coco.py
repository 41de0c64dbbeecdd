import json
import re
import zipfile
from pathlib import Path

import pytest

from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.datasets.registry import find_reader, load_dataset
from showtell.pipeline.stage.errors import DatasetError, MissingArtifactError

COCO_MINI = Path(__file__).parents[4] / "shared" / "coco-mini"


def coco_json(split, year, ids, captions=2):
    return {
        "info": {},
        "images": [{"id": i, "file_name": f"COCO_{split}{year}_{i:012d}.jpg"} for i in ids],
        "annotations": [
            {"id": 10 * i + n, "image_id": i, "caption": f" Caption {n} of {i}.\n"}
            for n in range(captions)
            for i in reversed(ids)
        ],
    }


def write_coco(root, year=2014, zipped=False, **splits):
    for split, content in splits.items():
        path = root / "annotations" / f"captions_{split}{year}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        names = [f"{split}{year}/{image['file_name']}" for image in content["images"]]
        if zipped:
            with zipfile.ZipFile(root / f"{split}{year}.zip", "w") as archive:
                for name in names:
                    archive.writestr(name, b"x")
        else:
            for name in names:
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_bytes(b"x")
    return PrepareConfig(dataset=f"coco{year}", source=root)


@pytest.mark.parametrize("year", [2014, 2017])
@pytest.mark.parametrize("zipped", [False, True])
def test_coco_reads_both_splits_from_folders_and_zips(tmp_path, year, zipped):
    train, val = coco_json("train", year, [30, 9]), coco_json("val", year, [42])
    config = write_coco(tmp_path, year, zipped, train=train, val=val)
    records = load_dataset(config).records
    assert [(r.image_id, r.split) for r in records] == [(9, "train"), (30, "train"), (42, "val")]
    assert records[0].file_name == f"train{year}/COCO_train{year}_000000000009.jpg"
    assert records[0].captions == ("Caption 0 of 9.", "Caption 1 of 9.")


def test_coco_reads_annotations_from_their_zip(tmp_path):
    config = write_coco(
        tmp_path, train=coco_json("train", 2014, [1, 2]), val=coco_json("val", 2014, [3])
    )
    unpacked = load_dataset(config).records
    folder = tmp_path / "annotations"
    with zipfile.ZipFile(tmp_path / "annotations_trainval2014.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"annotations/{path.name}")
            path.unlink()
    folder.rmdir()
    assert load_dataset(config).records == unpacked
    assert find_reader(config).inputs == [tmp_path / "annotations_trainval2014.zip"]


def test_coco_without_val_holds_out_a_tenth_of_train(tmp_path):
    config = write_coco(tmp_path, 2017, train=coco_json("train", 2017, list(range(1, 41))))
    dataset = load_dataset(config)
    assert sum(r.split == "val" for r in dataset.records) == 4
    assert sum(r.split == "train" for r in dataset.records) == 36
    assert "has no val split: 4 of its 40 train images are held out" in dataset.warnings[0]
    again = load_dataset(config).records
    other = load_dataset(PrepareConfig(dataset="coco2017", source=tmp_path, seed=1)).records
    assert again == dataset.records
    assert other != dataset.records


def test_coco_without_train_is_refused(tmp_path):
    config = write_coco(tmp_path, val=coco_json("val", 2014, [3]))
    with pytest.raises(DatasetError, match="has no train split, only val"):
        load_dataset(config)


def test_coco_images_without_captions_are_left_out_and_counted(tmp_path):
    content = coco_json("train", 2014, [1, 2, 3])
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    dataset = load_dataset(write_coco(tmp_path, train=content, val=coco_json("val", 2014, [4])))
    name = "train2014/COCO_train2014_000000000002.jpg"
    assert [r.image_id for r in dataset.records] == [1, 3, 4]
    assert dataset.left_out == ((name, "without captions"),)
    assert dataset.warnings == (f"1 image without captions, left out ({name}).",)


@pytest.mark.parametrize(("listed", "captioned"), [("1", 1), (1, "1"), (1.0, 1), ("01", 1.0)])
def test_coco_ids_match_by_value(tmp_path, listed, captioned):
    train = coco_json("train", 2014, [1, 2])
    train["images"][0]["id"] = listed
    for annotation in train["annotations"]:
        if annotation["image_id"] == 1:
            annotation["image_id"] = captioned
    config = write_coco(tmp_path, train=train, val=coco_json("val", 2014, [3]))
    captions = {record.image_id: record.captions for record in load_dataset(config).records}
    assert captions[1] == ("Caption 0 of 1.", "Caption 1 of 1.")


def test_coco_fractions_are_no_ids(tmp_path):
    train = coco_json("train", 2014, [1, 2])
    train["images"][0]["id"], train["images"][1]["id"] = 0.25, 0.5
    config = write_coco(tmp_path, train=train)
    with pytest.raises(DatasetError, match=r"images\[0\]: id is 0\.25, expected an integer"):
        load_dataset(config)


def test_coco_reads_a_zip_whose_member_is_damaged(tmp_path):
    config = write_coco(tmp_path, train=coco_json("train", 2014, [1, 2]))
    path = tmp_path / "annotations" / "captions_train2014.json"
    archive = tmp_path / "annotations_trainval2014.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(path, "annotations/captions_train2014.json")
    path.unlink()
    whole = load_dataset(config)
    content = archive.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        archive.write_bytes(flipped)
        try:
            assert load_dataset(config) == whole
        except DatasetError as error:
            assert "\n" not in str(error)


def broken(change):
    content = coco_json("train", 2014, [1, 2])
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(c["images"][0]), r"images\[2\]: image 1 .* is listed twice"),
        (lambda c: c["images"].pop(), r"2 captions for images that it does not list \(image_id 2"),
        (
            lambda c: c.pop("annotations"),
            r"train2014\.json: key 'annotations' is missing\. Expected \{\"images\"",
        ),
        (lambda c: c["images"][0].pop("id"), r"images\[0\]: key 'id' is missing"),
        (lambda c: c.update(images=3), "images is 3, expected a list of objects"),
        (
            lambda c: c["annotations"][0].update(caption=7),
            r"s\[0\]: caption is 7, expected",
        ),
        (
            lambda c: c["annotations"][0].update(caption="\ud800"),
            r"the character '\\ud800'",
        ),
        (lambda c: c.update(annotations=[]), "none of the 3 images of .* has a caption"),
        (lambda c: c["images"][0].update(file_name="../../x.jpg"), "is outside the source"),
    ],
)
def test_coco_reports_malformed_annotations_in_one_line(tmp_path, change, message):
    val = coco_json("val", 2014, [4], captions=0 if "has a caption" in message else 1)
    config = write_coco(tmp_path, train=coco_json("train", 2014, [1, 2]), val=val)
    path = tmp_path / "annotations" / "captions_train2014.json"
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset(config)
    assert "\n" not in str(error.value)


def test_coco_reports_truncated_json_with_its_position(tmp_path):
    config = write_coco(tmp_path, train=coco_json("train", 2014, [1]))
    path = tmp_path / "annotations" / "captions_train2014.json"
    path.write_text(path.read_text()[:60])
    with pytest.raises(
        DatasetError, match=r"captions_train2014\.json, line 1, column \d+: invalid JS"
    ):
        load_dataset(config)


def test_coco_reports_a_damaged_annotations_zip(tmp_path):
    (tmp_path / "annotations_trainval2014.zip").write_bytes(b"<html>404</html>")
    with pytest.raises(DatasetError, match=r"annotations_trainval2014\.zip is not a readable zip"):
        load_dataset(PrepareConfig(dataset="coco2014", source=tmp_path))


def test_coco_without_annotations_names_the_download_command(tmp_path):
    with pytest.raises(MissingArtifactError, match="showtell download --dataset coco2014"):
        load_dataset(PrepareConfig(dataset="coco2014", source=tmp_path))


def test_coco_missing_images_are_counted_and_named(tmp_path):
    config = write_coco(
        tmp_path, train=coco_json("train", 2014, [1, 2, 3, 4, 5]), val=coco_json("val", 2014, [6])
    )
    for path in list((tmp_path / "train2014").iterdir()):
        path.unlink()
    names = ", ".join(f"train2014/COCO_train2014_{i:012d}.jpg" for i in (1, 2, 3))
    message = rf"5 of 6 images with captions were not found \({re.escape(names)}, …\)"
    with pytest.raises(DatasetError, match=message + ".*showtell download --dataset coco2014"):
        load_dataset(config)


def test_coco_image_id_in_both_splits_is_refused(tmp_path):
    config = write_coco(
        tmp_path, train=coco_json("train", 2014, [1]), val=coco_json("val", 2014, [1])
    )
    with pytest.raises(DatasetError, match=r"image id 1 belongs to both train2014/.* and val2014/"):
        load_dataset(config)


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="needs ../shared/coco-mini")
def test_coco_mini_has_five_captions_per_image():
    records = load_dataset(PrepareConfig(dataset="coco2017", source=COCO_MINI)).records
    content = json.loads((COCO_MINI / "annotations/captions_train2017.json").read_text())
    expected = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        expected[annotation["image_id"]].append(annotation["caption"].strip())
    assert {r.image_id: list(r.captions) for r in records} == expected
    assert sum(r.split == "val" for r in records) == 8
