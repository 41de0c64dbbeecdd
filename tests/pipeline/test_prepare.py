import errno
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from showtell.pipeline import download as download_module
from showtell.pipeline import prepare as stage
from showtell.pipeline.captions import read_captions, read_images, read_references
from showtell.pipeline.config import DownloadConfig, PrepareConfig
from showtell.pipeline.datasets.scenes import draw_scenes
from showtell.pipeline.download import download
from showtell.pipeline.prepare import prepare, up_to_date
from showtell.pipeline.stage import files as files_module
from showtell.pipeline.stage import manifest as manifest_module
from showtell.pipeline.stage.artifacts import repair_command
from showtell.pipeline.stage.checksums import checksum_of_file
from showtell.pipeline.stage.errors import (
    ConfigError,
    DamagedFileError,
    DatasetError,
    MissingArtifactError,
    ShowTellError,
    StorageError,
)
from showtell.pipeline.stage.files import hash_file, locked
from showtell.pipeline.stage.manifest import COPY_NAME, Manifest
from showtell.pipeline.status import stage_status
from showtell.pipeline.text.ptb import tokenize
from showtell.pipeline.text.vocab import SPECIALS, UNK, Vocab

SHARED = Path(__file__).parents[3] / "shared"
ROWS = [
    ("a.png", "A dog runs .", "train"),
    ("a.png", "The dog sees a dog.", "train"),
    ("b.png", "A cat sleeps", "train"),
    ("c.png", "A dog sees a zebra", "val"),
    ("d.png", "Zebra zebra zebra cat", "test"),
]
OUTPUTS = ("images.parquet", "captions.parquet", "vocab.json", "manifest.json")


def write_source(root, rows=ROWS):
    root.mkdir(parents=True, exist_ok=True)
    lines = [",".join(row) for row in rows]
    (root / "captions.csv").write_text("\n".join(["file_name,caption,split", *lines]) + "\n")
    for name, _, _ in rows:
        (root / name).write_bytes(b"x")
    return root


def make_config(tmp_path, **options):
    source = tmp_path / "source"
    if not source.exists():
        write_source(source)
    options = {"min_count": 1} | options
    return PrepareConfig(data=tmp_path / "data", dataset="mine", source=source, **options)


def snapshot(config):
    paths = [config.captions_dir / name for name in OUTPUTS]
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes()) for p in paths}


def test_prepare_writes_images_captions_and_vocabulary(tmp_path):
    config = make_config(tmp_path)
    prepare(config)
    directory = tmp_path / "data" / "mine" / "captions"
    images = read_images(directory / "images.parquet")
    assert images.image_ids.tolist() == [1, 2, 3, 4]
    assert list(images.file_names) == ["a.png", "b.png", "c.png", "d.png"]
    assert images.splits.tolist() == ["train", "train", "val", "test"]
    encoded, vocab = (
        read_captions(directory / "captions.parquet"),
        Vocab.read(directory / "vocab.json"),
    )
    assert encoded.image_ids.tolist() == [1, 1, 2, 3, 4]
    words = [vocab.words[i] for i in encoded.tokens[: encoded.offsets[2]]]
    assert words == [*tokenize(ROWS[0][1]), *tokenize(ROWS[1][1])]
    raw = read_references(directory / "captions.parquet", "caption", images.image_ids)
    assert raw[1] == [ROWS[0][1], ROWS[1][1]]


def test_prepare_builds_the_vocabulary_from_train_only(tmp_path):
    config = make_config(tmp_path)
    manifest = prepare(config)
    vocab = Vocab.read(config.captions_dir / "vocab.json")
    expected = Counter(w for _, text, split in ROWS if split == "train" for w in tokenize(text))
    assert dict(zip(vocab.words[4:], vocab.counts[4:], strict=True)) == expected
    assert "zebra" not in vocab.words
    encoded = read_captions(config.captions_dir / "captions.parquet")
    assert encoded.tokens[encoded.offsets[4] :].tolist()[:3] == [UNK] * 3
    assert manifest.details["oov"] == {"train": 0.0, "val": 1 / 5, "test": 3 / 4}


def test_prepare_manifest_records_counts_and_inputs(tmp_path):
    config = make_config(tmp_path)
    manifest = prepare(config)
    assert manifest == Manifest.read(config.captions_dir)
    counts = manifest.counts
    assert (counts["num_images"], counts["num_captions"]) == (4, 5)
    assert [counts[f"num_{s}_images"] for s in ("train", "val", "test")] == [2, 1, 1]
    assert [counts[f"num_{s}_captions"] for s in ("train", "val", "test")] == [3, 1, 1]
    assert counts["vocab_size"] == len(Vocab.read(config.captions_dir / "vocab.json"))
    assert manifest.details["source"] == str((tmp_path / "source").resolve())
    table = tmp_path / "source" / "captions.csv"
    assert manifest.inputs[str(table.resolve())] == hash_file(table)
    assert manifest.find_problems(config.captions_dir) == []


def test_prepare_does_nothing_when_up_to_date(tmp_path, capsys, monkeypatch):
    config = make_config(tmp_path)
    first = prepare(config)
    before = snapshot(config)
    capsys.readouterr()
    monkeypatch.setattr(stage, "load_dataset", None)  # fails if it is called
    assert prepare(config) == first
    assert snapshot(config) == before
    assert "captions is up to date" in capsys.readouterr().out.replace("\n", "")


def test_up_to_date_verifies_each_output_once(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    prepare(config)
    read = Counter()

    def count(path):
        read[path.name] += 1
        return checksum_of_file(path)

    monkeypatch.setattr(manifest_module, "checksum_of_file", count)
    assert up_to_date(config) is not None
    assert read == {name: 1 for name in OUTPUTS if name != "manifest.json"}


def test_prepare_is_deterministic(tmp_path):
    first, second = make_config(tmp_path), make_config(tmp_path, min_count=1)
    prepare(first)
    before = snapshot(first)
    for path in first.captions_dir.iterdir():
        path.unlink()
    prepare(second)
    for name in ("images.parquet", "captions.parquet", "vocab.json"):
        assert snapshot(second)[name][2] == before[name][2]


def test_words_of_a_model_are_kept(tmp_path):
    known = tmp_path / "model/vocab.json"
    known.parent.mkdir()
    Vocab((*SPECIALS, "zebra", "a", "unicorn")).write(known)
    prepare(make_config(tmp_path))
    own = Vocab.read(make_config(tmp_path).captions_dir / "vocab.json")
    config = make_config(tmp_path, known_words=known)
    manifest = prepare(config)
    vocab = Vocab.read(config.captions_dir / "vocab.json")
    assert vocab.words == (*own.words, "zebra", "unicorn")
    assert vocab.counts == (*own.counts, 0, 0)
    assert f"--known-words {known}" in manifest.command
    before = (config.captions_dir / "vocab.json").stat().st_mtime_ns
    prepare(config)
    assert (config.captions_dir / "vocab.json").stat().st_mtime_ns == before
    Vocab((*SPECIALS, "horse")).write(known)
    prepare(config)
    assert "unicorn" not in Vocab.read(config.captions_dir / "vocab.json").ids


def test_known_words_of_a_built_in_model_are_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flickr8k").mkdir()  # such as the photographs of that dataset
    config = make_config(tmp_path, known_words=Path("flickr8k"))
    manifest = prepare(config)
    assert len(Vocab.read(config.captions_dir / "vocab.json")) > 2000
    recorded = shlex.split(manifest.command)
    assert Path(recorded[recorded.index("--known-words") + 1]).is_file()
    (tmp_path / "flickr8k").rmdir()
    (tmp_path / "flickr8k").touch()  # a file of the user's comes first
    assert make_config(tmp_path, known_words=Path("flickr8k")).known_words == Path("flickr8k")


def test_known_words_must_be_a_vocabulary_of_words(tmp_path):
    path = tmp_path / "vocab.json"
    with pytest.raises(MissingArtifactError, match="--known-words"):
        prepare(make_config(tmp_path, known_words=path))
    Vocab((*SPECIALS, " a"), tokenizer="{}").write(path)
    with pytest.raises(ConfigError, match="has subword pieces, expected words"):
        prepare(make_config(tmp_path, known_words=path))
    with pytest.raises(ConfigError, match="--known-words only applies with --vocab words"):
        make_config(tmp_path, known_words=path, vocab="bpe", min_count=None)
    assert not make_config(tmp_path).captions_dir.exists()


@pytest.mark.parametrize("options", [{"min_count": 2}, {"min_count": None, "vocab_size": 3}])
def test_prepare_runs_again_with_another_option(tmp_path, options):
    prepare(make_config(tmp_path))
    config = make_config(tmp_path, **options)
    assert up_to_date(config) is None
    prepare(config)
    vocab = Vocab.read(config.captions_dir / "vocab.json")
    assert "sleeps" not in vocab.words
    assert up_to_date(config) is not None


def test_prepare_min_count_defaults_to_five(tmp_path):
    write_source(tmp_path / "source", ROWS * 5)
    prepare(make_config(tmp_path, min_count=None))
    assert up_to_date(make_config(tmp_path, min_count=5)) is not None


def test_prepare_runs_again_with_changed_captions(tmp_path):
    config = make_config(tmp_path)
    before = prepare(config)
    write_source(tmp_path / "source", [*ROWS, ("e.png", "A horse", "train")])
    after = prepare(config)
    assert after.inputs != before.inputs
    assert after.counts["num_images"] == 5
    assert "horse" in Vocab.read(config.captions_dir / "vocab.json").words


def test_prepare_runs_again_with_a_new_split_list(tmp_path):
    source = tmp_path / "flickr"
    source.mkdir()
    names = [f"{i}_x.jpg" for i in range(1, 4)]
    for name in names:
        (source / name).write_bytes(b"x")
    rows = "".join(f"{name},A dog\n" for name in names)
    (source / "captions.txt").write_text(f"image,caption\n{rows}")
    (source / "train.txt").write_text(names[0])
    (source / "val.txt").write_text(names[1])
    config = PrepareConfig(data=tmp_path, dataset="flickr8k", source=source, min_count=1)
    assert prepare(config).skipped == ((names[2], "in no split"),)
    (source / "test.txt").write_text(names[2])
    manifest = prepare(config)
    assert (manifest.counts["num_test_images"], manifest.skipped) == (1, ())


def flip_bits(path: Path, stride: int) -> Iterator[int]:
    """Flip one bit after the other in a file, and restore the file in the end."""
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), stride):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        yield bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["images.parquet", "captions.parquet", "vocab.json"])
def test_prepare_restores_missing_and_damaged_outputs(tmp_path, name):
    config = make_config(tmp_path)
    prepare(config)
    path = config.captions_dir / name
    good = path.read_bytes()
    for bit in flip_bits(path, 203):
        assert up_to_date(config) is None
        assert stage_status("prepare", path.parent).state == f"damaged: {name}"
        if bit % 20 == 0:
            prepare(config)
            assert path.read_bytes() == good
    for damaged in (b"", good[:-1], good + b"x", bytes(len(good))):
        path.write_bytes(damaged)
        prepare(config)
        assert path.read_bytes() == good
    path.unlink()
    prepare(config)
    assert path.read_bytes() == good


def test_prepare_rewrites_a_damaged_manifest(tmp_path):
    config = make_config(tmp_path)
    good = prepare(config)
    path = config.captions_dir / "manifest.json"
    value = json.loads(path.read_bytes())
    for bit in flip_bits(path, 307):
        if up_to_date(config):
            assert json.loads(path.read_bytes()) == value  # white space
            continue
        assert stage_status("prepare", path.parent).state == "damaged: manifest.json"
        if bit % 20 == 0:
            again = prepare(config)
            assert (again.outputs, again.checksums) == (good.outputs, good.checksums)
            assert up_to_date(config) == again


def test_command_in_errors_about_damaged_outputs_repairs_them(tmp_path, showtell):
    config = make_config(tmp_path)
    prepare(config)
    for name in OUTPUTS:
        path = config.captions_dir / name
        good = path.read_bytes()
        path.write_bytes(good[:200] + bytes([good[200] ^ 1]) + good[201:])
        command = shlex.split(repair_command(path))
        status, output = showtell(*command[1:])
        assert (command[0], status) == ("showtell", 0), output
        assert name == "manifest.json" or path.read_bytes() == good
        assert up_to_date(config) is not None


def test_prepare_refuses_a_downloaded_file_that_has_changed(tmp_path, monkeypatch):
    sizes = {"num_train": 3, "num_val": 1, "num_test": 1}
    monkeypatch.setattr(download_module, "draw_scenes", lambda raw: draw_scenes(raw, **sizes))
    data = {"data": tmp_path, "dataset": "scenes"}
    download(DownloadConfig(**data))
    config = PrepareConfig(**data, min_count=1)
    prepare(config)
    table = tmp_path / "scenes" / "raw" / "captions.csv"
    for _ in flip_bits(table, 499):
        with pytest.raises(DamagedFileError, match=r"captions\.csv is damaged.*showtell download"):
            prepare(config)
    assert up_to_date(config) is not None


def test_edited_copy_of_a_download_is_another_source(tmp_path, monkeypatch):
    sizes = {"num_train": 3, "num_val": 1, "num_test": 1}
    monkeypatch.setattr(download_module, "draw_scenes", lambda raw: draw_scenes(raw, **sizes))
    data = {"data": tmp_path, "dataset": "scenes"}
    download(DownloadConfig(**data))
    raw = tmp_path / "scenes" / "raw"
    table = raw / "captions.csv"
    table.write_text(table.read_text() + "images/000001.jpg,an edited caption,train\n")
    advice = f"copy {raw} without manifest.json, and give the copy to --source."
    with pytest.raises(DamagedFileError) as caught:
        prepare(PrepareConfig(**data, min_count=1))
    assert str(caught.value).endswith(advice)
    copy = shutil.copytree(raw, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    prepare(PrepareConfig(**data, min_count=1, source=copy))
    assert "edited" in Vocab.read(tmp_path / "scenes" / "captions" / "vocab.json").ids


def test_prepare_keeps_old_outputs_when_an_image_is_missing(tmp_path):
    config = make_config(tmp_path)
    prepare(config)
    before = snapshot(config)
    (tmp_path / "source" / "b.png").unlink()
    with pytest.raises(
        DatasetError, match=r"1 of 4 images with captions were not found \(b\.png\)"
    ):
        prepare(config)
    assert snapshot(config) == before


def test_prepare_keeps_old_outputs_when_writing_fails(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    prepare(config)
    before = snapshot(config)

    def fail(path, content):
        if "vocab" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return path.open("wb").write(content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    expected = f"{config.captions_dir / 'vocab.json'} could not be written: No space left on device"
    with pytest.raises(StorageError, match=expected):
        prepare(make_config(tmp_path, min_count=2))
    assert snapshot(config) == before
    names = sorted(path.name for path in config.captions_dir.iterdir())
    assert names == sorted([*OUTPUTS, COPY_NAME, ".lock"])
    assert up_to_date(config) is not None


def test_prepare_syncs_and_renames_each_output_once(tmp_path, monkeypatch):
    synced, renamed = [], []
    real_sync, real_replace = files_module.sync, Path.replace

    def sync(path):
        synced.append(path.name)
        real_sync(path)

    def replace(path, target):
        renamed.append(target.name)
        return real_replace(path, target)

    monkeypatch.setattr(files_module, "sync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    prepare(make_config(tmp_path))
    assert sorted(renamed) == sorted([*OUTPUTS, COPY_NAME])
    assert len([name for name in synced if ".partial" in name]) == len(renamed)


def test_prepare_interrupted_before_the_manifest_is_incomplete(tmp_path, monkeypatch):
    prepare(make_config(tmp_path))
    config = make_config(tmp_path, min_count=2)

    def stop(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    # The old manifest must be gone, because it would match the new files by name.
    assert Manifest.read(config.captions_dir) is None
    assert prepare(config).config["min_count"] == 2


def test_prepare_leaves_out_captions_without_words(tmp_path, capsys):
    rows = [*ROWS, ("a.png", "...", "train"), ("e.png", "!", "train")]
    write_source(tmp_path / "source", rows)
    config = make_config(tmp_path)
    manifest = prepare(config)
    assert manifest.skipped == (("e.png", "no word in any caption"),)
    assert (manifest.counts["num_images"], manifest.counts["num_captions"]) == (4, 5)
    assert read_captions(config.captions_dir / "captions.parquet").lengths.min() >= 3
    assert "Left out 2 captions that contain no words" in capsys.readouterr().err
    assert up_to_date(config) is not None


def test_prepare_prints_the_counts_of_each_split(tmp_path, capsys):
    prepare(make_config(tmp_path))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "2", "3", "11", "0.00%"] in lines
    assert ["test", "1", "1", "4", "75.00%"] in lines
    assert any(line[:2] == ["vocabulary", "7"] for line in lines)


def test_prepare_warns_about_a_small_vocabulary(tmp_path, capsys):
    prepare(make_config(tmp_path, min_count=None, vocab_size=1))
    assert "words in train are not in the vocabulary" in capsys.readouterr().err
    with pytest.raises(DatasetError, match=r"occurs at least 5 times\. Give a lower --min-count"):
        prepare(make_config(tmp_path, min_count=None))


def test_prepare_warns_about_captions_without_spaces(tmp_path, capsys):
    rows = [("a.png", "一只狗在草地上奔跑。", "train"), ("b.png", "两个男人在打排球。", "val")]
    write_source(tmp_path / "source", rows)
    config = make_config(tmp_path, min_count=None)
    with pytest.raises(DatasetError, match="occurs at least 5 times"):
        prepare(config)  # most sentences occur once
    assert "Add --tokenizer characters" in capsys.readouterr().err.replace("\n", " ")
    (warning,) = prepare(make_config(tmp_path, min_count=1)).details["warnings"]
    assert "'一只狗在草地上奔跑' counts as one word" in warning

    config = make_config(tmp_path, tokenizer="characters")
    manifest = prepare(config)
    assert manifest.details["warnings"] == [] and manifest.config["tokenizer"] == "characters"
    assert "--tokenizer characters" in manifest.command
    (texts,) = read_references(config.captions_dir / "captions.parquet", "words", [1]).values()
    assert texts == ["一 只 狗 在 草 地 上 奔 跑"]
    vocab = Vocab.read(config.captions_dir / "vocab.json")
    assert (vocab.word_tokenizer, len(vocab.ids)) == ("characters", 9)
    assert up_to_date(config) == manifest
    assert "9 characters" in capsys.readouterr().out


def test_the_default_tokenizer_is_not_recorded(tmp_path):
    """Datasets prepared before the option existed stay up to date."""
    assert "tokenizer" not in prepare(make_config(tmp_path)).config


def test_known_words_must_be_of_the_same_tokenizer(tmp_path):
    path = tmp_path / "vocab.json"
    Vocab((*SPECIALS, "a")).write(path)
    with pytest.raises(ConfigError, match="made with --tokenizer ptb, but this is --tokenizer uni"):
        prepare(make_config(tmp_path, known_words=path, tokenizer="unicode"))


def test_prepare_fails_while_another_process_writes(tmp_path):
    config = make_config(tmp_path)
    with (
        locked(config.captions_dir),
        pytest.raises(ShowTellError, match="written by another showtell process"),
    ):
        prepare(config)


def test_prepare_of_an_unknown_dataset_leaves_no_folder(tmp_path):
    with pytest.raises(DatasetError, match="dataset 'flikr8k' is not one of"):
        prepare(PrepareConfig(data=tmp_path / "data", dataset="flikr8k"))
    with pytest.raises(MissingArtifactError, match="showtell download --dataset coco2014"):
        prepare(PrepareConfig(data=tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_prepare_config_round_trips_through_the_manifest(tmp_path):
    config = make_config(tmp_path)
    values = json.loads(json.dumps(prepare(config).config))
    values["source"] = Path(values["source"])
    assert up_to_date(PrepareConfig(data=config.data, **values)) is not None


@pytest.mark.skipif(not (SHARED / "flickr8k").is_dir(), reason="needs ../shared/flickr8k")
def test_prepare_flickr8k_matches_known_counts(tmp_path):
    config = PrepareConfig(data=tmp_path, dataset="flickr8k", source=SHARED / "flickr8k")
    manifest = prepare(config)
    counts = manifest.counts
    assert (counts["num_train_images"], counts["num_train_captions"]) == (6000, 30000)
    assert (counts["num_val_images"], counts["num_val_captions"]) == (1000, 5000)
    assert counts["num_test_images"] == 0
    # The number of words that occur at least 5 times in train with the tokenizer in Java.
    assert counts["vocab_size"] == 2539 + len(SPECIALS)
    assert 0.02 < manifest.details["oov"]["train"] < manifest.details["oov"]["val"] < 0.05
    encoded = read_captions(config.captions_dir / "captions.parquet")
    assert len(encoded) == 35000
    assert encoded.tokens.min() == UNK and encoded.tokens.max() == counts["vocab_size"] - 1
    assert encoded.lengths.min() >= 1


@pytest.mark.skipif(not (SHARED / "coco-mini").is_dir(), reason="needs ../shared/coco-mini")
def test_prepare_coco_mini_holds_out_val(tmp_path, capsys):
    source = SHARED / "coco-mini"
    manifest = prepare(PrepareConfig(data=tmp_path, dataset="coco2017", source=source, min_count=2))
    assert (manifest.counts["num_train_images"], manifest.counts["num_val_images"]) == (72, 8)
    assert manifest.counts["num_captions"] == 400
    assert "has no val split: 8 of its 80 train images are held out" in capsys.readouterr().err


def test_prepare_recognizes_coco_under_another_name(tmp_path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_train2017.json").touch()
    with pytest.raises(
        DatasetError, match=r"the layout of COCO. Give --dataset coco2017 .*--source"
    ):
        prepare(PrepareConfig(data=tmp_path / "data", dataset="mini", source=tmp_path))
