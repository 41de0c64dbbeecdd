"""The embedded dataset: drawn scenes with captions, so that everything runs with no dataset at all.

On disk, in the layout of any dataset of one's own:
    images/000001.jpg …  224 × 224 RGB
    captions.csv         file_name,caption,split: five rows an image, split train, val or test

A scene shows one large shape (at the top, in the middle or at the bottom), or two to four equal
shapes, or two different shapes of one color (side by side or one above the other), in one of four
landscapes. These are facts that the average-pooled features of an ImageNet network tell apart after
some hundred examples. Which of two shapes has which color, or is the left one, they hardly tell, so
no caption says it.
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

SCENES_VERSION = 1  # of the pictures and captions; to be raised with any change to either
CAPTIONS_PER_SCENE = 5
VARIANTS = 6  # landscapes drawn of each kind; a new one for each scene would take most of the time

# Which kind of scene comes next. Above has two turns, for it has the most different scenes.
TURNS = ("single", "above", "many", "beside", "above")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
POSITIONS = ("top", "middle", "bottom")
# Middles of the shapes in canvas pixels, and their radius, by arrangement.
PLACES: dict[str | int, tuple[int, tuple[tuple[int, int], ...]]] = {
    "top": (180, ((448, 224),)),
    "middle": (285, ((448, 460),)),
    "bottom": (180, ((448, 680),)),
    2: (175, ((240, 250), (656, 650))),
    3: (110, ((160, 450), (448, 450), (736, 450))),
    4: (165, ((240, 235), (656, 235), (240, 660), (656, 660))),
    "beside": (172, ((222, 470), (674, 470))),
    "above": (168, ((448, 216), (448, 680))),
}

WHERE = {
    "meadow": ("in a green meadow", "on the grass", "in a field"),
    "night": ("at night", "in the dark", "under the night sky"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "beach": ("at the beach", "by the sea", "on the sand"),
}
POSITION_WORDS = {
    "top": ("at the top", "near the top"),
    "middle": ("in the middle", "in the center"),
    "bottom": ("at the bottom", "near the bottom"),
}
# {a}, {b}: a shape with its article and color; {n}: a number of them; {at}: position; {in_}: place.
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
    """The facts that the picture shows and the captions tell.

    Attributes:
        landscape: one of `LANDSCAPES`.
        color: of all shapes.
        shapes: from the top down in `above`; in no order elsewhere.
        arrangement: one of `PLACES`.
    """

    landscape: str
    color: str
    shapes: tuple[str, ...]
    arrangement: str | int

    @property
    def facts(self) -> tuple[tuple[str, object], ...]:
        """What is to be told as often in one split as in another."""
        ordered = self.arrangement == "above"
        named = {"landscape": self.landscape, "color": self.color, "arrangement": self.arrangement}
        shapes = {(f"shape {i if ordered else ''}", shape) for i, shape in enumerate(self.shapes)}
        return (*named.items(), *shapes)


def all_scenes() -> dict[str, list[Scene]]:
    """Every scene there can be, by kind."""
    settings = list(product(LANDSCAPES, COLORS))
    shapes: dict[str, list[tuple[tuple[str, ...], str | int]]] = {
        "single": [((shape,), at) for shape in SHAPES for at in POSITIONS],
        "many": [((shape,) * n, n) for shape in SHAPES for n in (2, 3, 4)],
        "beside": [(two, "beside") for two in combinations(SHAPES, 2)],
        "above": [(two, "above") for two in permutations(SHAPES, 2)],
    }
    return {
        kind: [Scene(*setting, *shown) for setting in settings for shown in every]
        for kind, every in shapes.items()
    }


def draw_scenes(
    directory: Path,
    *,
    num_train: int = 900,
    num_val: int = 60,
    num_test: int = 100,
    seed: int = 0,
) -> int:
    """Draw the dataset; the same seed gives the same pictures and captions everywhere.

    No two scenes show the same facts, so that val and test hold only scenes unseen in train.

    Args:
        directory: gets `images/` and, last, `captions.csv`.
        num_train: scenes of the train split.
        num_val: scenes of the val split.
        num_test: scenes of the test split.
        seed: of the choice of scenes, the pictures and the words.

    Returns:
        The number of scenes.

    Raises:
        DatasetError: more scenes than there are different ones.
    """
    # Three streams, so that other words leave the pictures as they are, and the other way round.
    choices, strokes, words = (
        random.Random(f"{seed} {use}") for use in ("scenes", "pens", "words")
    )
    sizes = {"train": num_train, "val": num_val, "test": num_test}
    backgrounds = {
        name: [draw_landscape(name, strokes) for _ in range(VARIANTS)] for name in LANDSCAPES
    }
    rows = []
    for number, (split, scene) in enumerate(choose_scenes(sizes, choices), start=1):
        file_name = f"images/{number:06}.jpg"
        picture = draw_scene(scene, strokes.choice(backgrounds[scene.landscape]), strokes)
        with atomic_path(directory / file_name) as partial:
            picture.save(partial, quality=95, subsampling=0)
        rows += [(file_name, text, split) for text in write_captions(scene, words)]
    _write_table(directory / "captions.csv", rows)
    return sum(sizes.values())


def choose_scenes(sizes: dict[str, int], rng: random.Random) -> Iterator[tuple[str, Scene]]:
    """Choose different scenes, each fact about equally often in every split.

    Args:
        sizes: split → number of scenes.
        rng: makes the choice.

    Yields:
        Split and scene, one split after the other.
    """
    pools = all_scenes()
    total, most = sum(sizes.values()), len(TURNS) * min(map(len, pools.values()))
    if total > most:
        raise DatasetError(f"{total} scenes asked for, but only {most} different ones are drawn.")
    for split, size in sizes.items():
        told: Counter[tuple[str, object]] = Counter()
        scenes = []
        for _, pool in zip(range(size), cycle(pools[kind] for kind in TURNS), strict=False):
            # Of a handful, the scene whose facts the split has told least.
            handful = [rng.randrange(len(pool)) for _ in range(12)]
            chosen = min(handful, key=lambda i: sum(told[fact] for fact in pool[i].facts))
            scenes.append(pool.pop(chosen))
            told.update(scenes[-1].facts)
        rng.shuffle(scenes)  # out of the order of turns: any few of them show every kind
        yield from ((split, scene) for scene in scenes)


def draw_scene(scene: Scene, background: Image.Image, rng: random.Random) -> Image.Image:
    """Draw the shapes of a scene, each a little off its place.

    Args:
        scene: what to draw.
        background: the landscape on a whole canvas; left as it is.
        rng: how far off.

    Returns:
        RGB, 224 × 224.
    """
    canvas = background.copy()
    pen = ImageDraw.Draw(canvas)
    radius, places = PLACES[scene.arrangement]
    radius += rng.randint(-6, 6)
    for shape, (x, y) in zip(_any_order(scene, rng), places, strict=True):
        x, y = x + rng.randint(-8, 8), y + rng.randint(-10, 10)
        draw_shape(pen, shape, scene.color, x, y, radius)
    return canvas.reduce(SCALE)


def write_captions(scene: Scene, rng: random.Random) -> list[str]:
    """Tell the facts of a scene in `CAPTIONS_PER_SCENE` different sentences."""
    many = f"{NUMBERS[len(scene.shapes)]} {scene.color} {scene.shapes[0]}s"
    sentences = []
    for template in rng.sample(_templates(scene), CAPTIONS_PER_SCENE):
        shapes = [f"a {scene.color} {shape}" for shape in _any_order(scene, rng)]
        at = rng.choice(POSITION_WORDS.get(str(scene.arrangement), ("",)))
        sentence = template.format(
            a=shapes[0], b=shapes[-1], n=many, at=at, in_=rng.choice(WHERE[scene.landscape])
        )
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return sentences


def _any_order(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """The shapes, shuffled where their order is no fact."""
    return (
        scene.shapes
        if scene.arrangement == "above"
        else tuple(rng.sample(scene.shapes, len(scene.shapes)))
    )


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
