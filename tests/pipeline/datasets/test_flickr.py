import zipfile
from pathlib import Path

import pytest

from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.datasets.registry import find_reader, load_dataset
from showtell.pipeline.stage.errors import DatasetError, MissingArtifactError

FLICKR8K = Path(__file__).parents[4] / "shared" / "flickr8k"
NAMES = ["1000268201_693b08cb0e.jpg", "667626_18933d713e.jpg", "99_a.jpg", "55_b.jpg"]
CAPTIONS = {name: [f"A dog , number {n} ." for n in range(2)] for name in NAMES}
LISTS = {
    "Flickr_8k.trainImages.txt": NAMES[:2],
    "Flickr_8k.devImages.txt": NAMES[2:3],
    "Flickr_8k.testImages.txt": NAMES[3:],
}
EXPECTED = [(667626, "train"), (1000268201, "train"), (99, "val"), (55, "test")]


def kaggle_csv(captions):
    rows = [f'{name},"{text}"' for name, texts in captions.items() for text in texts]
    return "\n".join(["image,caption", *rows]) + "\n"


def kaggle_pipes(captions):
    rows = [
        f"{name}| {n}| {text}" for name, texts in captions.items() for n, text in enumerate(texts)
    ]
    return "\n".join(["image_name| comment_number| comment", *rows]) + "\n"


def tokens(captions):
    rows = [
        f"{name}#{n}\t{text}" for name, texts in captions.items() for n, text in enumerate(texts)
    ]
    return "\n".join(rows) + "\n"


def write_flickr(
    root, captions_file="captions.txt", text=None, lists=LISTS, images="Images", names=NAMES
):
    (root / images).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / images / name).write_bytes(b"x")
    path = root / captions_file
    path.parent.mkdir(exist_ok=True)
    path.write_text(kaggle_csv(CAPTIONS) if text is None else text, "utf-8")
    for name, listed in lists.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("\n".join(listed) + "\n")
    return PrepareConfig(dataset="flickr8k", source=root)


def found(records):
    return [(r.image_id, r.split) for r in records]


@pytest.mark.parametrize(
    ("captions_file", "text"),
    [
        ("captions.txt", kaggle_csv(CAPTIONS)),
        ("captions.txt", "\ufeff" + kaggle_csv(CAPTIONS).replace("\n", "\r\n")),
        ("captions.csv", kaggle_csv(CAPTIONS)),
        ("results.csv", kaggle_pipes(CAPTIONS)),
        ("flickr30k_images/results.csv", kaggle_pipes(CAPTIONS)),
        ("Flickr8k.token.txt", tokens(CAPTIONS)),
        ("Flickr8k_text/Flickr8k.token.txt", tokens(CAPTIONS).replace("\n", "\r\n")),
        ("results_20130124.token", tokens(CAPTIONS)),
    ],
)
def test_flickr_reads_every_published_caption_file(tmp_path, captions_file, text):
    records = load_dataset(write_flickr(tmp_path, captions_file, text)).records
    assert found(records) == EXPECTED
    assert all(list(r.captions) == CAPTIONS[r.file_name.split("/")[-1]] for r in records)


@pytest.mark.parametrize(
    "images",
    [
        "Images",
        "images",
        "Flicker8k_Dataset",
        "Flickr8k_Dataset/Flicker8k_Dataset",
        "flickr30k-images",
        "flickr30k_images",
        "flickr30k_images/flickr30k_images",
        ".",
    ],
)
def test_flickr_finds_images_in_every_published_folder(tmp_path, images):
    records = load_dataset(write_flickr(tmp_path, images=images)).records
    assert found(records) == EXPECTED
    assert all((tmp_path / r.file_name).is_file() for r in records)


@pytest.mark.parametrize("archive", ["Images", "Flickr8k_Dataset"])
def test_flickr_finds_images_in_a_zip(tmp_path, archive):
    config = write_flickr(tmp_path, names=[])
    with zipfile.ZipFile(tmp_path / f"{archive}.zip", "w") as file:
        for name in NAMES:
            file.writestr(f"Flicker8k_Dataset/{name}", b"x")
    assert {r.file_name for r in load_dataset(config).records} == {f"{archive}/{n}" for n in NAMES}


def test_flickr30k_split_lists_work_without_suffixes(tmp_path):
    lists = {
        "train.txt": [Path(name).stem for name in NAMES[:2]],
        "val.txt": [Path(NAMES[2]).stem],
        "test.txt": NAMES[3:],
    }
    write_flickr(tmp_path, lists=lists)
    assert (
        found(load_dataset(PrepareConfig(dataset="flickr30k", source=tmp_path)).records) == EXPECTED
    )


def test_flickr_finds_split_lists_in_the_text_folder(tmp_path):
    config = write_flickr(tmp_path, lists={f"Flickr8k_text/{n}": v for n, v in LISTS.items()})
    assert found(load_dataset(config).records) == EXPECTED


def test_flickr_without_a_test_list_leaves_out_its_images(tmp_path):
    lists = {name: listed for name, listed in LISTS.items() if "test" not in name}
    dataset = load_dataset(write_flickr(tmp_path, lists=lists))
    assert found(dataset.records) == EXPECTED[:3]
    assert dataset.left_out == ((f"Images/{NAMES[3]}", "in no split"),)
    assert dataset.warnings == (f"1 image in no split, left out (Images/{NAMES[3]}).",)


@pytest.mark.parametrize(("dataset", "num_val"), [("flickr8k", 12), ("flickr30k", 3)])
def test_flickr_without_lists_uses_the_official_proportions(tmp_path, dataset, num_val):
    names = [f"{i}_x.jpg" for i in range(1, 101)]
    text = kaggle_csv({name: ["A dog ."] for name in names})
    write_flickr(tmp_path, text=text, lists={}, names=names)
    loaded = load_dataset(PrepareConfig(dataset=dataset, source=tmp_path))
    splits = [r.split for r in loaded.records]
    assert (splits.count("val"), splits.count("test")) == (num_val, num_val)
    assert splits.count("train") == 100 - 2 * num_val
    assert "not comparable with published ones" in loaded.warnings[0]
    assert load_dataset(PrepareConfig(dataset=dataset, source=tmp_path)) == loaded
    other = load_dataset(PrepareConfig(dataset=dataset, source=tmp_path, seed=1)).records
    assert found(other) != found(loaded.records)


@pytest.mark.parametrize("root", ["", "Flickr_Data", "Flickr_Data/Flickr_Data"])
def test_flickr_reads_the_layout_with_a_text_data_folder(tmp_path, root):
    texts, folder = "Flickr_TextData", tmp_path / root
    lists = {f"{texts}/{name}": listed for name, listed in LISTS.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_flickr(folder, f"{texts}/Flickr8k.token.txt", tokens(CAPTIONS), lists)
    (folder / texts / "Flickr8k.lemma.token.txt").write_text(tokens({NAMES[0]: ["a dog be"]}))
    records = load_dataset(PrepareConfig(dataset="flickr8k", source=tmp_path)).records
    assert found(records) == EXPECTED
    assert all((tmp_path / r.file_name).is_file() for r in records)


@pytest.mark.parametrize("images", ["Images", "Flicker8k_Dataset"])
def test_flickr_finds_images_with_another_suffix_case(tmp_path, images):
    names = [name.replace(".jpg", ".JPG") for name in NAMES]
    dataset = load_dataset(write_flickr(tmp_path, images=images, names=names))
    assert found(dataset.records) == EXPECTED
    assert {r.file_name for r in dataset.records} == {f"{images}/{name}" for name in names}
    assert "4 images found under a name that differs" in dataset.warnings[-1]


def test_flickr_ids_are_positions_if_numbers_repeat(tmp_path):
    names = ["7_a.jpg", "7_b.jpg", "8_c.jpg"]
    lists = {"train.txt": names[1:], "val.txt": names[:1]}
    text = kaggle_csv({name: ["A dog ."] for name in names})
    config = write_flickr(tmp_path, text=text, lists=lists, names=names)
    assert {r.file_name: r.image_id for r in load_dataset(config).records} == {
        "Images/7_a.jpg": 1,
        "Images/7_b.jpg": 2,
        "Images/8_c.jpg": 3,
    }


def test_flickr_ids_do_not_depend_on_the_lists(tmp_path):
    names = ["a.jpg", "b.jpg", "c.jpg"]
    text = kaggle_csv({name: ["A dog ."] for name in names})
    config = write_flickr(tmp_path, text=text, lists={"train.txt": names[1:]}, names=names)
    assert {r.file_name: r.image_id for r in load_dataset(config).records} == {
        "Images/b.jpg": 2,
        "Images/c.jpg": 3,
    }


def test_flickr_ignores_the_missing_image_of_flickr8k(tmp_path):
    text = tokens({"2258277193_586949ec62.jpg.1": ["A ghost ."], **CAPTIONS})
    assert (
        found(load_dataset(write_flickr(tmp_path, "Flickr8k.token.txt", text)).records) == EXPECTED
    )
    text = tokens({"2258277194_586949ec62.jpg.1": ["A ghost ."], **CAPTIONS})
    with pytest.raises(DatasetError, match=r"1 of 5 images .* were not found .*2258277194"):
        load_dataset(write_flickr(tmp_path, "Flickr8k.token.txt", text))


def test_flickr_accepts_the_missing_separator_in_results_csv(tmp_path):
    text = kaggle_pipes(CAPTIONS).replace("99_a.jpg| 1| A dog", "99_a.jpg| 1   A dog")
    records = load_dataset(write_flickr(tmp_path, "results.csv", text)).records
    assert next(r for r in records if r.image_id == 99).captions == tuple(CAPTIONS["99_a.jpg"])


def test_flickr_ignores_lemmatised_captions(tmp_path):
    config = write_flickr(tmp_path, "Flickr8k.token.txt", tokens(CAPTIONS))
    (tmp_path / "Flickr8k.lemma.token.txt").write_text(tokens({NAMES[0]: ["a dog be"]}))
    assert (tmp_path / "Flickr8k.token.txt") in find_reader(config).inputs
    (tmp_path / "Flickr8k.token.txt").unlink()
    with pytest.raises(MissingArtifactError, match=r"holds no captions: expected .*captions\.txt"):
        load_dataset(config)


def test_flickr_listed_image_without_captions_is_left_out(tmp_path):
    lists = {**LISTS, "Flickr_8k.trainImages.txt": [*NAMES[:2], "1_none.jpg"]}
    dataset = load_dataset(write_flickr(tmp_path, lists=lists))
    assert found(dataset.records) == EXPECTED
    assert dataset.left_out == (("1_none.jpg", "without captions"),)


@pytest.mark.parametrize(
    ("captions_file", "text", "message"),
    [
        ("captions.txt", "image,caption\n", r"captions\.txt holds no captions"),
        ("captions.txt", "", "holds no captions"),
        ("captions.txt", "image,caption\na.jpg,A dog , a cat\n", "line 2: 3 fields, expected 2"),
        ("captions.txt", "image,text\na.jpg,A dog\n", "has no column 'caption' or 'comment'"),
        ("results.csv", "image_name| n| comment\na.jpg A dog\n", "line 2: expected 'name.jpg| 0"),
        ("Flickr8k.token.txt", "a.jpg#0\tA dog\na.jpg#1 A dog\n", "line 2: expected 'name.jpg#0"),
        ("Flickr8k.token.txt", "a.jpg\tA dog\n", "line 1: expected 'name.jpg#0<TAB>caption'"),
    ],
)
def test_flickr_reports_malformed_captions_with_their_line(tmp_path, captions_file, text, message):
    config = write_flickr(tmp_path, captions_file, text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(config)


def test_flickr_reports_invalid_utf8_with_its_line(tmp_path):
    config = write_flickr(tmp_path)
    (tmp_path / "captions.txt").write_bytes(b"image,caption\na.jpg,fine\na.jpg,caf\xe9\n")
    with pytest.raises(DatasetError, match=r"captions\.txt, line 3: byte 0xe9 is not UTF-8"):
        load_dataset(config)


def test_flickr_image_in_two_lists_is_refused(tmp_path):
    lists = {**LISTS, "Flickr_8k.devImages.txt": NAMES[1:3]}
    with pytest.raises(DatasetError, match=f"{NAMES[1]} is in two splits, 'train' and 'val'"):
        load_dataset(write_flickr(tmp_path, lists=lists))


def test_flickr_without_a_train_list_is_refused(tmp_path):
    lists = {name: listed for name, listed in LISTS.items() if "train" not in name}
    with pytest.raises(DatasetError, match="has no train split, only test, val"):
        load_dataset(write_flickr(tmp_path, lists=lists))


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="needs ../shared/flickr8k")
def test_flickr8k_has_its_official_splits():
    dataset = load_dataset(PrepareConfig(dataset="flickr8k", source=FLICKR8K))
    train = set((FLICKR8K / "Flickr_8k.trainImages.txt").read_text().split())
    assert {r.file_name.split("/")[1] for r in dataset.records if r.split == "train"} == train
    assert sum(len(r.captions) for r in dataset.records if r.split == "train") == 30_000
    assert sum(len(r.captions) for r in dataset.records if r.split == "val") == 5_000
    assert all(r.file_name.split("/")[1].startswith(f"{r.image_id}_") for r in dataset.records)
    assert (dataset.left_out, dataset.warnings) == ((), ())
