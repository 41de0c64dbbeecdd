import json

import pytest

from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.datasets.registry import load_dataset
from showtell.pipeline.stage.errors import DatasetError, MissingArtifactError


def karpathy_json(**changes):
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{cocoid:012d}.jpg",
            "imgid": place,
            "cocoid": cocoid,
            "split": split,
            "sentences": [{"raw": f"Sentence {n} of {cocoid}.", "tokens": []} for n in range(2)],
        }
        for place, (cocoid, split) in enumerate(
            [(77, "restval"), (5, "test"), (6, "val"), (4, "train")]
        )
    ]
    for key, value in changes.items():
        images[0][key] = value
    return {"dataset": "coco", "images": images}


def write_karpathy(root, content, folder="val2014", dataset="mine"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for image in content.get("images", []):
        (root / folder / image.get("filename", "x")).write_bytes(b"x")
    path = root / "dataset_coco.json"
    path.write_text(json.dumps(content))
    return PrepareConfig(dataset=dataset, source=root, karpathy=path)


def test_karpathy_puts_restval_into_train_and_uses_cocoid(tmp_path):
    records = load_dataset(write_karpathy(tmp_path, karpathy_json())).records
    found = [(r.image_id, r.split) for r in records]
    assert found == [(4, "train"), (77, "train"), (6, "val"), (5, "test")]
    assert records[1].file_name == "val2014/COCO_val2014_000000000077.jpg"
    assert records[1].captions == ("Sentence 0 of 77.", "Sentence 1 of 77.")


@pytest.mark.parametrize("folder", ["Images", "Flicker8k_Dataset", "flickr30k-images", "."])
def test_karpathy_without_filepath_finds_the_published_folder(tmp_path, folder):
    content = karpathy_json()
    for image in content["images"]:
        del image["filepath"], image["cocoid"]
    records = load_dataset(write_karpathy(tmp_path, content, folder, "flickr8k")).records
    prefix = "" if folder == "." else f"{folder}/"
    assert records[0].file_name == f"{prefix}COCO_val2014_000000000077.jpg"
    assert [r.image_id for r in records] == [0, 3, 2, 1]  # imgid, train first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"split": "dev"},
            r"images\[0\]: split is 'dev', expected one of train, restval",
        ),
        ({"cocoid": 5}, "image id 5 belongs to both"),
        (
            {"filename": "COCO_val2014_000000000005.jpg"},
            r"images\[1\]: image val2014/.*05.jpg is listed twice",
        ),
        ({"filepath": "../val2014"}, "is outside the source"),
        ({"sentences": [{"tokens": []}]}, "key 'raw' is missing"),
        ({"filepath": "train2014"}, "1 of 4 images with captions were not found"),
    ],
)
def test_karpathy_reports_bad_entries_in_one_line(tmp_path, changes, message):
    config = write_karpathy(tmp_path, karpathy_json(**changes))
    with pytest.raises(DatasetError, match=message):
        load_dataset(config)


def test_karpathy_reports_a_missing_file(tmp_path):
    config = PrepareConfig(dataset="x", source=tmp_path, karpathy=tmp_path / "dataset_coco.json")
    message = r"dataset_coco\.json does not exist\. Give --karpathy"
    with pytest.raises(MissingArtifactError, match=message):
        load_dataset(config)
