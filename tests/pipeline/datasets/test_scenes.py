import csv
import hashlib
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from showtell.pipeline.datasets import scenes as scenes_module
from showtell.pipeline.datasets.scene_drawing import (
    CANVAS,
    COLORS,
    LANDSCAPES,
    SCALE,
    SHAPES,
    draw_landscape,
)
from showtell.pipeline.datasets.scenes import (
    ARRANGEMENTS,
    CAPTIONS_PER_SCENE,
    LANDSCAPE_PHRASES,
    Scene,
    all_scenes,
    choose_scenes,
    draw_scene,
    draw_scenes,
    write_captions,
)
from showtell.pipeline.stage.errors import DatasetError

SIZES = {"train": 900, "val": 60, "test": 100}
NUMBERS = {"two": 2, "three": 3, "four": 4}


def read_rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "captions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content_hashes(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def read_scene(caption: str) -> Scene:
    """Parse the facts that a caption states in English."""
    text = caption.lower().rstrip(".")
    (landscape,) = {
        name for name, phrases in LANDSCAPE_PHRASES.items() if any(p in text for p in phrases)
    }
    named = re.findall(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})(s?)\b", text)
    (color,) = {found for found, _, _ in named}
    shapes = tuple(shape for _, shape, _ in named)
    if len(shapes) == 1 and named[0][2]:
        (count,) = [number for word, number in NUMBERS.items() if re.search(rf"\b{word}\b", text)]
        return Scene(landscape, color, shapes * count, count)
    if len(shapes) == 1:
        at = re.findall(r"\b(?:at|near|in) the (top|bottom|middle|center)\b", text)
        assert len(at) == 1
        return Scene(landscape, color, shapes, at[0].replace("center", "middle"))
    if re.search(r"next to|beside|side by side", text):
        return Scene(landscape, color, tuple(sorted(shapes, key=SHAPES.index)), "beside")
    assert re.search(r" (above|at the top and) ", text)
    return Scene(landscape, color, shapes, "above")


def nearest_color(pixel: tuple[int, int, int]) -> str:
    return min(
        COLORS, key=lambda name: sum(abs(a - b) for a, b in zip(pixel, COLORS[name], strict=True))
    )


def sample_scenes(count: int, seed: int = 3) -> list[Scene]:
    kinds = [random.Random(seed).sample(kind, count) for kind in all_scenes().values()]
    return [scene for kind in kinds for scene in kind]


def test_draw_scenes_writes_images_and_table(tmp_path: Path) -> None:
    assert draw_scenes(tmp_path, num_train=6, num_val=2, num_test=3) == 11
    names = [f"images/{number:06}.jpg" for number in range(1, 12)]
    assert sorted(content_hashes(tmp_path)) == ["captions.csv", *names]
    rows = read_rows(tmp_path)
    assert list(rows[0]) == ["file_name", "caption", "split"]
    assert Counter(row["file_name"] for row in rows) == dict.fromkeys(names, 5)
    splits = {row["file_name"]: row["split"] for row in rows}
    assert [splits[name] for name in names] == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (224, 224))


def test_draw_scenes_depends_only_on_the_seed(tmp_path: Path) -> None:
    sizes = {"num_train": 4, "num_val": 1, "num_test": 1}
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        draw_scenes(tmp_path / name, **sizes, seed=seed)
    first = content_hashes(tmp_path / "first")
    assert first == content_hashes(tmp_path / "second")
    assert first.keys() == content_hashes(tmp_path / "other").keys()
    assert not set(first.values()) & set(content_hashes(tmp_path / "other").values())


def test_draw_scenes_captions_of_this_version_are_fixed(tmp_path: Path) -> None:
    # If this hash changes, the dataset changes: raise SCENES_VERSION.
    draw_scenes(tmp_path, num_train=20, num_val=3, num_test=3)
    assert scenes_module.SCENES_VERSION == 1
    assert content_hashes(tmp_path)["captions.csv"] == (
        "752fbbe09d3327498290a3628e3506d72cae228b0d7178616c78dde4eacea148"
    )


def test_draw_scenes_repeated_restores_the_same_files(tmp_path: Path) -> None:
    draw_scenes(tmp_path, num_train=3, num_val=1, num_test=1)
    before = content_hashes(tmp_path)
    (tmp_path / "images" / "000002.jpg").write_bytes(b"damaged")
    draw_scenes(tmp_path, num_train=3, num_val=1, num_test=1)
    assert content_hashes(tmp_path) == before


def test_draw_scenes_interrupted_leaves_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(scene: Scene, rng: random.Random) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes_module, "write_captions", stop)
    with pytest.raises(KeyboardInterrupt):
        draw_scenes(tmp_path, num_train=1, num_val=1, num_test=1)
    assert list(content_hashes(tmp_path)) == ["images/000001.jpg"]


def test_choose_scenes_never_repeats_a_scene() -> None:
    chosen = list(choose_scenes(SIZES, random.Random(0)))
    assert Counter(split for split, _ in chosen) == SIZES
    assert len({scene for _, scene in chosen}) == len(chosen)


def test_choose_scenes_balances_the_facts_of_every_split() -> None:
    chosen = list(choose_scenes(SIZES, random.Random(0)))
    for split in SIZES:
        scenes = [scene for name, scene in chosen if name == split]
        for facts, tolerance in (
            ([scene.landscape for scene in scenes], 0.25),
            ([scene.color for scene in scenes], 0.25),
            ([scene.shapes[0] for scene in scenes], 0.4),
        ):
            even = len(facts) / len(set(facts))
            counts = Counter(facts)
            assert len(counts) in (len(LANDSCAPES), len(COLORS), len(SHAPES))
            assert all(abs(count - even) <= max(2, tolerance * even) for count in counts.values())
        kinds = Counter(str(scene.arrangement) for scene in scenes)
        assert set(kinds) == {str(arrangement) for arrangement in ARRANGEMENTS}
        assert (kinds["beside"], kinds["above"]) == (len(scenes) // 5, len(scenes) * 2 // 5)


def test_choose_scenes_refuses_more_than_exist() -> None:
    with pytest.raises(DatasetError, match="1500 scenes were requested, but only 1200 different"):
        list(choose_scenes({"train": 1500}, random.Random(0)))
    everything = list(choose_scenes({"train": 1200}, random.Random(0)))
    assert len({scene for _, scene in everything}) == 1200


def test_captions_state_exactly_the_facts_of_each_scene() -> None:
    rng = random.Random(0)
    for kind in all_scenes().values():
        for scene in kind:
            for caption in write_captions(scene, rng):
                assert read_scene(caption) == scene, caption


def test_captions_of_a_scene_are_five_different_sentences() -> None:
    rng = random.Random(1)
    for scene in sample_scenes(100):
        captions = write_captions(scene, rng)
        assert len(set(captions)) == CAPTIONS_PER_SCENE == 5
        # They differ in more than the phrase for the landscape.
        landscape = "|".join(LANDSCAPE_PHRASES[scene.landscape])
        assert len({re.sub(landscape, "", text.lower()) for text in captions}) >= 4


def test_captions_are_grammatical() -> None:
    rng = random.Random(2)
    for scene in sample_scenes(100):
        for caption in write_captions(scene, rng):
            assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+)+\.", caption)
            assert not re.search(r"\ba [aeiou]", caption.lower())
            plural = len(set(scene.shapes)) == 1 < len(scene.shapes)
            assert ("there is" in caption.lower()) <= (not plural)
            assert ("there are" in caption.lower()) <= plural
            assert len(caption.split()) <= 20


def test_images_show_each_shape_at_its_position_in_its_color() -> None:
    rng = random.Random(4)
    backgrounds = {name: draw_landscape(name, rng) for name in LANDSCAPES}
    for scene in sample_scenes(40):
        image = draw_scene(scene, backgrounds[scene.landscape], rng)
        assert image.size == (224, 224)
        _, places = ARRANGEMENTS[scene.arrangement]
        assert len(places) == len(scene.shapes)
        for x, y in places:
            pixel = image.getpixel((x // SCALE, y // SCALE))
            assert max(abs(a - b) for a, b in zip(pixel, COLORS[scene.color], strict=True)) <= 1


def test_images_show_the_right_number_of_shapes() -> None:
    rng = random.Random(5)
    for scene in sample_scenes(15):
        background = Image.new("RGB", (CANVAS, CANVAS), (0, 0, 0))
        image = draw_scene(scene, background, rng)
        assert count_blobs(image, COLORS[scene.color]) == len(scene.shapes)


def count_blobs(image: Image.Image, color: tuple[int, int, int]) -> int:
    """Count connected areas of exactly one color, ignoring areas of a few pixels."""
    pixels = image.load()
    todo = {(x, y) for x in range(224) for y in range(224) if pixels[x, y] == color}
    blobs = 0
    while todo:
        size, border = 0, [todo.pop()]
        while border:
            size += 1
            x, y = border.pop()
            near = {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)} & todo
            todo -= near
            border += near
        blobs += size > 20
    return blobs


def test_images_of_different_shapes_differ_in_outline() -> None:
    black = Image.new("RGB", (CANVAS, CANVAS), (0, 0, 0))
    areas = {}
    for shape in SHAPES:
        scene = Scene("meadow", "red", (shape,), "middle")
        image = draw_scene(scene, black, random.Random(0))
        areas[shape] = [image.getpixel((x, y)) != (0, 0, 0) for x in range(224) for y in range(224)]
    for first in SHAPES:
        for second in SHAPES:
            differing = sum(a != b for a, b in zip(areas[first], areas[second], strict=True))
            assert (differing > 1000) == (first != second)


def test_images_keep_every_shape_inside_the_frame() -> None:
    black = Image.new("RGB", (CANVAS, CANVAS), (0, 0, 0))
    rng = random.Random(6)
    for scene in sample_scenes(60):
        left, top, right, bottom = draw_scene(scene, black, rng).getbbox()
        assert left > 0 and top > 0 and right < 224 and bottom < 224, scene


def test_landscapes_fill_the_whole_canvas() -> None:
    for name in LANDSCAPES:
        image = draw_landscape(name, random.Random(0))
        colors = image.getcolors(maxcolors=CANVAS * CANVAS)
        assert image.size == (CANVAS, CANVAS)
        assert (0, 0, 0) not in {color for _, color in colors}


def test_colors_are_far_apart() -> None:
    for name, color in COLORS.items():
        assert nearest_color(color) == name
    distances = [
        sum(abs(a - b) for a, b in zip(COLORS[first], COLORS[second], strict=True))
        for first in COLORS
        for second in COLORS
        if first < second
    ]
    assert min(distances) >= 120
