import pytest

from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.datasets.registry import load_dataset, source_dir
from showtell.pipeline.stage.errors import DatasetError, MissingArtifactError

TABLE = "file_name,caption,split\na.png,A dog,train\nb.png,A cat,val\n"


def write_folder(root, *tables):
    root.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(b"x")
    for name in tables:
        (root / name).write_text(TABLE)


def test_source_dir_defaults_to_raw_or_the_folder_of_the_table(tmp_path):
    raw = PrepareConfig(data=tmp_path, dataset="flickr8k")
    assert source_dir(raw) == tmp_path / "flickr8k" / "raw"
    table = tmp_path / "mine" / "t.csv"
    assert source_dir(PrepareConfig(dataset="x", table=table)) == tmp_path / "mine"
    given = PrepareConfig(dataset="x", table=table, source=tmp_path)
    assert source_dir(given) == tmp_path


@pytest.mark.parametrize("dataset", ["scenes", "mine"])
def test_registry_finds_the_only_table_of_a_folder(tmp_path, dataset):
    write_folder(tmp_path / dataset / "raw", "captions.csv")
    records = load_dataset(PrepareConfig(data=tmp_path, dataset=dataset)).records
    assert [(r.image_id, r.file_name, r.split) for r in records] == [
        (1, "a.png", "train"),
        (2, "b.png", "val"),
    ]


def test_registry_asks_for_one_of_two_tables(tmp_path):
    write_folder(tmp_path, "captions.csv", "captions.jsonl")
    with pytest.raises(
        DatasetError, match=r"captions\.csv and captions\.jsonl; choose one with --table FILE"
    ):
        load_dataset(PrepareConfig(dataset="mine", source=tmp_path))


def test_unknown_dataset_lists_the_known_ones(tmp_path):
    known = "not one of coco2014, coco2017, flickr8k, flickr30k, scenes"
    with pytest.raises(DatasetError, match=f"dataset 'flikr8k' is {known}"):
        load_dataset(PrepareConfig(data=tmp_path, dataset="flikr8k"))
    with pytest.raises(DatasetError, match=f"dataset 'flikr8k' is {known}"):
        load_dataset(PrepareConfig(dataset="flikr8k", source=tmp_path))


@pytest.mark.parametrize("dataset", ["coco2014", "coco2017", "scenes"])
def test_missing_source_of_a_downloadable_dataset_names_the_download(tmp_path, dataset):
    command = f"showtell download --dataset {dataset} --data {tmp_path}"
    message = f"raw does not exist. Run '{command}', or give --source"
    with pytest.raises(MissingArtifactError, match=message):
        load_dataset(PrepareConfig(data=tmp_path, dataset=dataset))


@pytest.mark.parametrize("dataset", ["flickr8k", "coco2014", "mine"])
def test_missing_source_given_by_the_user_is_named(tmp_path, dataset):
    with pytest.raises(MissingArtifactError, match=r"none does not exist.*--source DIR"):
        load_dataset(PrepareConfig(dataset=dataset, source=tmp_path / "none"))


def test_scenes_without_its_table_names_the_download(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(MissingArtifactError, match=r"no captions\.csv.*download --dataset scenes"):
        load_dataset(PrepareConfig(dataset="scenes", source=tmp_path))


def test_table_option_overrides_the_reader_of_that_name(tmp_path):
    write_folder(tmp_path, "other.csv")
    records = load_dataset(PrepareConfig(dataset="coco2014", table=tmp_path / "other.csv")).records
    assert [r.file_name for r in records] == ["a.png", "b.png"]
