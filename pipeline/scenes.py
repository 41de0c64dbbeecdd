"""The embedded dataset: drawn scenes with captions, so that everything runs with no dataset at all.

On disk, in the layout of any dataset of one's own:
    images/000001.jpg …  224 × 224 RGB
    captions.csv         file_name,caption,split: five rows an image, split train, val or test

A scene shows one large shape (on the left, in the middle or on the right), or two to four equal
shapes, or two different shapes of one color (side by side or one above the other), in one of four
landscapes. These are facts that average-pooled features of an ImageNet network can tell apart;
they cannot tell which of two shapes has which color, so no scene asks for that.
"""

import csv
import io
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

from PIL import Image, ImageDraw

from .drawing import COLORS, LANDSCAPES, SCALE, SHAPES, draw_landscape, draw_shape
from .errors import DatasetError
from .manifest import atomic_path

SCENES_VERSION = 1  # of the pictures and captions; to be raised with any change to either
CAPTIONS_PER_SCENE = 5
VARIANTS = 6  # landscapes drawn of each kind; a new one for each scene would take most of the time

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
POSITIONS = ("left", "middle", "right")
# Middles of the shapes in canvas pixels, and their radius, by arrangement.
PLACES: dict[str | int, tuple[int, tuple[tuple[int, int], ...]]] = {
    "left": (220, ((256, 470),)),
    "middle": (220, ((448, 470),)),
    "right": (220, ((640, 470),)),
    2: (175, ((240, 250), (656, 650))),
    3: (118, ((156, 450), (448, 450), (740, 450))),
    4: (150, ((240, 235), (656, 235), (240, 660), (656, 660))),
    "beside": (180, ((230, 470), (666, 470))),
    "above": (185, ((448, 225), (448, 670))),
}

WHERE = {
    "meadow": ("in a green meadow", "on the grass", "in a field"),
    "night": ("at night", "in the dark", "under the night sky"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "beach": ("at the beach", "by the sea", "on the sand"),
}
POSITION_WORDS = {
    "left": ("on the left", "on the left side"),
    "middle": ("in the middle", "in the center"),
    "right": ("on the right", "on the right side"),
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
    "{a} to the left of {b} {in_}",
    "{b} to the right of {a} {in_}",
    "there is {a} to the left of {b} {in_}",
    "{a} on the left and {b} on the right {in_}",
    "{in_} there is {a} to the left of {b}",
    "we see {a} to the left of {b} {in_}",
)
ABOVE_TEMPLATES = (
    "{a} above {b} {in_}",
    "{b} below {a} {in_}",
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
        shapes: of the shapes in the order of `PLACES`.
        arrangement: one of `PLACES`.
    """

    landscape: str
    color: str
    shapes: tuple[str, ...]
    arrangement: str | int

    @property
    def facts(self) -> tuple[tuple[str, object], ...]:
        """What is to be told as often in one split as in another."""
        shapes = tuple(enumerate(self.shapes)) if len(set(self.shapes)) > 1 else self.shapes[:1]
        named = {"landscape": self.landscape, "color": self.color, "arrangement": self.arrangement}
        return (*named.items(), *(("shape", shape) for shape in shapes))


def all_scenes() -> tuple[list[Scene], list[Scene], list[Scene]]:
    """Every scene there can be: of one shape, of several equal ones, of two different ones."""
    settings = list(product(LANDSCAPES, COLORS))
    single = [Scene(*s, (shape,), at) for s in settings for shape in SHAPES for at in POSITIONS]
    many = [Scene(*s, (shape,) * n, n) for s in settings for shape in SHAPES for n in (2, 3, 4)]
    pairs = [
        Scene(*s, two, at)
        for s in settings
        for two in permutations(SHAPES, 2)
        for at in ("beside", "above")
    ]
    return single, many, pairs


def draw_scenes(
    directory: Path,
    *,
    num_train: int = 600,
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
    rng = random.Random(seed)
    sizes = {"train": num_train, "val": num_val, "test": num_test}
    backgrounds = {
        name: [draw_landscape(name, rng) for _ in range(VARIANTS)] for name in LANDSCAPES
    }
    rows = []
    for number, (split, scene) in enumerate(choose_scenes(sizes, rng), start=1):
        file_name = f"images/{number:06}.jpg"
        picture = draw_scene(scene, rng.choice(backgrounds[scene.landscape]), rng)
        with atomic_path(directory / file_name) as partial:
            picture.save(partial, quality=95, subsampling=0)
        rows += [(file_name, text, split) for text in write_captions(scene, rng)]
    _write_table(directory / "captions.csv", rows)
    return sum(sizes.values())


def choose_scenes(sizes: dict[str, int], rng: random.Random) -> Iterator[tuple[str, Scene]]:
    """Choose different scenes, half of them pairs, each fact about equally often in every split.

    Args:
        sizes: split → number of scenes.
        rng: makes the choice.

    Yields:
        Split and scene, one split after the other.
    """
    single, many, pairs = all_scenes()
    pools = [single, pairs, many, pairs]
    total, most = sum(sizes.values()), 4 * min(len(single), len(many), len(pairs) // 2)
    if total > most:
        raise DatasetError(
            f"{total} scenes asked for, but only {most} different ones can be drawn."
        )
    for split, size in sizes.items():
        told: Counter[tuple[str, object]] = Counter()
        for index in range(size):
            pool = pools[index % len(pools)]
            # Of a handful, the scene whose facts the split has told least.
            handful = [rng.randrange(len(pool)) for _ in range(12)]
            chosen = min(handful, key=lambda i: sum(told[fact] for fact in pool[i].facts))
            scene = pool.pop(chosen)
            told.update(scene.facts)
            yield split, scene


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
    radius += rng.randint(-8, 8)
    for shape, (x, y) in zip(scene.shapes, places, strict=True):
        draw_shape(
            pen, shape, scene.color, x + rng.randint(-12, 12), y + rng.randint(-16, 16), radius
        )
    return canvas.reduce(SCALE)


def write_captions(scene: Scene, rng: random.Random) -> list[str]:
    """Tell the facts of a scene in `CAPTIONS_PER_SCENE` different sentences."""
    templates = _templates(scene)
    words = {"a": f"a {scene.color} {scene.shapes[0]}", "b": f"a {scene.color} {scene.shapes[-1]}"}
    words["n"] = f"{NUMBERS[len(scene.shapes)]} {scene.color} {scene.shapes[0]}s"
    sentences = []
    for template in rng.sample(templates, CAPTIONS_PER_SCENE):
        at = rng.choice(POSITION_WORDS.get(str(scene.arrangement), ("",)))
        sentence = template.format(**words, at=at, in_=rng.choice(WHERE[scene.landscape]))
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return sentences


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
