"""The `scenes` dataset: drawn images with captions, so that every command runs without a download.

Files, in the layout of a user's own dataset:
    images/000001.jpg …  224 × 224 RGB
    captions.csv         file_name, caption, split; five rows per image

A scene shows one large shape (at the top, in the middle or at the bottom), two to four equal
shapes, or two different shapes of one color (side by side or one above the other), in one of four
landscapes. Average-pooled features of an ImageNet network tell these facts apart after some hundred
examples. They hardly tell which of two shapes has which color or is on the left, so captions do not
mention it.
"""

import csv
import io
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, cycle, permutations, product
from pathlib import Path

from PIL import Image, ImageDraw

from ..stage.errors import DatasetError
from ..stage.files import atomic_path
from .scene_drawing import COLORS, LANDSCAPES, SCALE, SHAPES, draw_landscape, draw_shape

SCENES_VERSION = 1  # raise it with any change to images or captions
CAPTIONS_PER_SCENE = 5
BACKGROUNDS_PER_LANDSCAPE = 6  # drawing one for every scene would take most of the time

# Kinds of scenes, in turn. "above" comes twice because it has the most different scenes.
KIND_CYCLE = ("single", "above", "many", "beside", "above")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
POSITIONS = ("top", "middle", "bottom")
# Arrangement → radius and centres of its shapes, in canvas pixels.
ARRANGEMENTS: dict[str | int, tuple[int, tuple[tuple[int, int], ...]]] = {
    "top": (180, ((448, 224),)),
    "middle": (285, ((448, 460),)),
    "bottom": (180, ((448, 680),)),
    2: (175, ((240, 250), (656, 650))),
    3: (110, ((160, 450), (448, 450), (736, 450))),
    4: (165, ((240, 235), (656, 235), (240, 660), (656, 660))),
    "beside": (172, ((222, 470), (674, 470))),
    "above": (168, ((448, 216), (448, 680))),
}

LANDSCAPE_PHRASES = {
    "meadow": ("in a green meadow", "on the grass", "in a field"),
    "night": ("at night", "in the dark", "under the night sky"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "beach": ("at the beach", "by the sea", "on the sand"),
}
POSITION_PHRASES = {
    "top": ("at the top", "near the top"),
    "middle": ("in the middle", "in the center"),
    "bottom": ("at the bottom", "near the bottom"),
}
# {a} and {b}: a shape with article and color; {n}: a number and the plural of a shape;
# {at}: a position phrase; {in_}: a landscape phrase.
SINGLE_TEMPLATES = (
    "{a} {at} {in_}",
    "{a} {in_} {at}",
    "there is {a} {at} {in_}",
    "a picture of {a} {at} {in_}",
    "{in_} there is {a} {at}",
    "we see {a} {at} {in_}",
)
MANY_TEMPLATES = (
    "{n} {in_}",
    "there are {n} {in_}",
    "a picture of {n} {in_}",
    "{in_} there are {n}",
    "we see {n} {in_}",
    "a group of {n} {in_}",
)
BESIDE_TEMPLATES = (
    "{a} next to {b} {in_}",
    "{in_} {a} next to {b}",
    "there is {a} beside {b} {in_}",
    "{a} and {b} side by side {in_}",
    "a picture of {a} next to {b} {in_}",
    "we see {a} beside {b} {in_}",
)
ABOVE_TEMPLATES = (
    "{a} above {b} {in_}",
    "{in_} {a} above {b}",
    "there is {a} above {b} {in_}",
    "{a} at the top and {b} at the bottom {in_}",
    "{in_} there is {a} above {b}",
    "we see {a} above {b} {in_}",
)


@dataclass(frozen=True)
class Scene:
    """The facts that an image shows and its captions state.

    Attributes:
        landscape: one of `LANDSCAPES`.
        color: of all shapes.
        shapes: from top to bottom if the arrangement is "above", otherwise in no order.
        arrangement: one of `ARRANGEMENTS`.
    """

    landscape: str
    color: str
    shapes: tuple[str, ...]
    arrangement: str | int

    @property
    def facts(self) -> tuple[tuple[str, object], ...]:
        """(name, value) of each fact that should be equally frequent in all splits."""
        ordered = self.arrangement == "above"
        named = {"landscape": self.landscape, "color": self.color, "arrangement": self.arrangement}
        shapes = {(f"shape {i if ordered else ''}", shape) for i, shape in enumerate(self.shapes)}
        return (*named.items(), *shapes)


def all_scenes() -> dict[str, list[Scene]]:
    """Return kind → all possible scenes of that kind."""
    settings = list(product(LANDSCAPES, COLORS))
    contents: dict[str, list[tuple[tuple[str, ...], str | int]]] = {
        "single": [((shape,), position) for shape in SHAPES for position in POSITIONS],
        "many": [((shape,) * n, n) for shape in SHAPES for n in (2, 3, 4)],
        "beside": [(pair, "beside") for pair in combinations(SHAPES, 2)],
        "above": [(pair, "above") for pair in permutations(SHAPES, 2)],
    }
    return {
        kind: [Scene(*setting, *content) for setting in settings for content in of_kind]
        for kind, of_kind in contents.items()
    }


def draw_scenes(
    directory: Path,
    *,
    num_train: int = 900,
    num_val: int = 60,
    num_test: int = 100,
    seed: int = 0,
) -> int:
    """Draw the dataset. A seed gives the same images and captions on every machine.

    All scenes differ, so val and test contain only scenes that train does not.

    Args:
        directory: receives `images/` and, last, `captions.csv`.
        num_train: number of scenes in train.
        num_val: number of scenes in val.
        num_test: number of scenes in test.
        seed: seed of the choice of scenes, of the images and of the captions.

    Returns:
        The number of scenes.

    Raises:
        DatasetError: more scenes are requested than exist.
    """
    # Separate generators: a change to the captions leaves the images as they are, and vice versa.
    scene_rng, image_rng, caption_rng = (
        random.Random(f"{seed} {use}") for use in ("scenes", "pens", "words")
    )
    sizes = {"train": num_train, "val": num_val, "test": num_test}
    backgrounds = {
        name: [draw_landscape(name, image_rng) for _ in range(BACKGROUNDS_PER_LANDSCAPE)]
        for name in LANDSCAPES
    }
    rows = []
    for number, (split, scene) in enumerate(choose_scenes(sizes, scene_rng), start=1):
        file_name = f"images/{number:06}.jpg"
        image = draw_scene(scene, image_rng.choice(backgrounds[scene.landscape]), image_rng)
        # Not durable: the stage draws all images again if one is damaged.
        with atomic_path(directory / file_name, durable=False) as partial:
            image.save(partial, quality=95, subsampling=0)
        rows += [(file_name, caption, split) for caption in write_captions(scene, caption_rng)]
    _write_table(directory / "captions.csv", rows)
    return sum(sizes.values())


def choose_scenes(sizes: dict[str, int], rng: random.Random) -> Iterator[tuple[str, Scene]]:
    """Choose different scenes, with each fact about equally frequent in every split.

    Args:
        sizes: split → number of scenes.
        rng: source of randomness.

    Yields:
        Split and scene, one split after the other.

    Raises:
        DatasetError: more scenes are requested than exist.
    """
    pools = all_scenes()
    requested, available = sum(sizes.values()), len(KIND_CYCLE) * min(map(len, pools.values()))
    if requested > available:
        raise DatasetError(
            f"{requested} scenes were requested, but only {available} different ones exist."
        )
    for split, size in sizes.items():
        fact_counts: Counter[tuple[str, object]] = Counter()
        scenes = []
        for _, pool in zip(range(size), cycle(pools[kind] for kind in KIND_CYCLE), strict=False):
            # Of some random candidates, take the one whose facts are rarest in the split so far.
            candidates = [rng.randrange(len(pool)) for _ in range(12)]
            rarest = min(candidates, key=lambda i: sum(fact_counts[f] for f in pool[i].facts))
            scenes.append(pool.pop(rarest))
            fact_counts.update(scenes[-1].facts)
        rng.shuffle(scenes)  # so that the first few scenes are of every kind
        yield from ((split, scene) for scene in scenes)


def draw_scene(scene: Scene, background: Image.Image, rng: random.Random) -> Image.Image:
    """Draw the shapes of a scene, each slightly moved at random.

    Args:
        scene: the scene to draw.
        background: landscape on a full canvas; is not modified.
        rng: moves and resizes the shapes.

    Returns:
        An RGB image of 224 × 224 pixels.
    """
    canvas = background.copy()
    draw = ImageDraw.Draw(canvas)
    radius, centers = ARRANGEMENTS[scene.arrangement]
    radius += rng.randint(-6, 6)
    for shape, (x, y) in zip(_shuffle_shapes(scene, rng), centers, strict=True):
        x, y = x + rng.randint(-8, 8), y + rng.randint(-10, 10)
        draw_shape(draw, shape, scene.color, x, y, radius)
    return canvas.reduce(SCALE)


def write_captions(scene: Scene, rng: random.Random) -> list[str]:
    """Describe a scene in `CAPTIONS_PER_SCENE` different sentences."""
    plural = f"{NUMBERS[len(scene.shapes)]} {scene.color} {scene.shapes[0]}s"
    captions = []
    for template in rng.sample(_templates(scene), CAPTIONS_PER_SCENE):
        shapes = [f"a {scene.color} {shape}" for shape in _shuffle_shapes(scene, rng)]
        at = rng.choice(POSITION_PHRASES.get(str(scene.arrangement), ("",)))
        in_ = rng.choice(LANDSCAPE_PHRASES[scene.landscape])
        caption = template.format(a=shapes[0], b=shapes[-1], n=plural, at=at, in_=in_)
        captions.append(f"{caption[0].upper()}{caption[1:]}.")
    return captions


def _shuffle_shapes(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Return the shapes in random order, unless their order is a fact of the scene."""
    if scene.arrangement == "above":
        return scene.shapes
    return tuple(rng.sample(scene.shapes, len(scene.shapes)))


def _templates(scene: Scene) -> tuple[str, ...]:
    by_arrangement = {"beside": BESIDE_TEMPLATES, "above": ABOVE_TEMPLATES}
    if isinstance(scene.arrangement, int):
        return MANY_TEMPLATES
    return by_arrangement.get(scene.arrangement, SINGLE_TEMPLATES)


def _write_table(path: Path, rows: list[tuple[str, str, str]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("file_name", "caption", "split"), *rows])
    with atomic_path(path) as partial:
        partial.write_text(table.getvalue(), "utf-8")
