"""Draws the images of the `scenes` dataset: four landscapes with flat shapes on top.

All coordinates are integers on a canvas of `CANVAS` × `CANVAS` pixels. `scenes.py` reduces it by
`SCALE`, which smooths the edges and gives the same pixels on every platform.
"""

import random

from PIL import Image, ImageDraw

IMAGE_SIZE = 224  # pixels, the input size of ImageNet networks
SCALE = 4
CANVAS = IMAGE_SIZE * SCALE

Color = tuple[int, int, int]
Draw = ImageDraw.ImageDraw

COLORS: dict[str, Color] = {
    "red": (216, 38, 38),
    "yellow": (253, 212, 36),
    "green": (28, 152, 72),
    "blue": (26, 98, 228),
    "purple": (128, 46, 176),
    "pink": (255, 122, 182),
}
# Corners relative to the centre of the shape, in hundredths of its radius.
POLYGONS: dict[str, tuple[tuple[int, int], ...]] = {
    "heart": ((-87, 5), (0, -34), (87, 5), (0, 100)),  # the part below its two discs
    "square": ((-86, -86), (86, -86), (86, 86), (-86, 86)),
    "triangle": ((0, -100), (106, 82), (-106, 82)),
    "star": (
        *((0, -106), (29, -34), (107, -29), (48, 21), (66, 97)),
        *((0, 56), (-66, 97), (-48, 21), (-107, -29), (-29, -34)),
    ),
}
SHAPES = ("circle", *POLYGONS)
BORDER = 10
WHITE: Color = (255, 255, 255)


def draw_shape(draw: Draw, shape: str, color: str, x: int, y: int, radius: int) -> None:
    """Draw one shape with a white border.

    Args:
        draw: draws on the canvas.
        shape: one of `SHAPES`.
        color: one of `COLORS`.
        x: centre, in canvas pixels from the left.
        y: centre, in canvas pixels from the top.
        radius: about half the width of the shape, in canvas pixels.
    """
    _fill_shape(draw, shape, WHITE, x, y, radius + BORDER)
    _fill_shape(draw, shape, COLORS[color], x, y, radius)


def _fill_shape(draw: Draw, shape: str, fill: Color, x: int, y: int, radius: int) -> None:
    if shape == "circle":
        _draw_disc(draw, x, y, radius, fill)
        return
    if shape == "heart":
        for side in (-49, 49):
            center = x + side * radius // 100, y - 30 * radius // 100
            _draw_disc(draw, *center, 52 * radius // 100, fill)
    corners = POLYGONS[shape]
    draw.polygon([(x + u * radius // 100, y + v * radius // 100) for u, v in corners], fill)


def draw_landscape(name: str, rng: random.Random) -> Image.Image:
    """Draw one of `LANDSCAPES` on a new canvas.

    Args:
        name: one of `LANDSCAPES`.
        rng: places grass, stars, snowflakes and pebbles.

    Returns:
        An RGB image of `CANVAS` × `CANVAS` pixels.
    """
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    LANDSCAPES[name](ImageDraw.Draw(canvas), rng)
    return canvas


def _draw_meadow(draw: Draw, rng: random.Random) -> None:
    _draw_gradient(draw, 0, 640, (112, 186, 245), (218, 240, 252))
    _draw_disc(draw, 770, 110, 66, (255, 222, 92))
    for x, y in ((330, 100), (560, 60)):
        for dx, dy, radius in ((-52, 12, 32), (0, -8, 46), (52, 12, 34)):
            _draw_disc(draw, x + dx, y + dy, radius, WHITE)
    _draw_hill(draw, 700, 520, 700, (150, 206, 96))
    _draw_hill(draw, 150, 560, 760, (122, 188, 78))
    draw.rectangle((96, 260, 136, 620), (116, 78, 50))
    for x, y, radius in ((60, 250, 84), (176, 240, 90), (116, 150, 100)):
        _draw_disc(draw, x, y, radius, (46, 122, 62))
    _draw_hill(draw, 520, 650, 1300, (104, 172, 66))
    for _ in range(60):
        x, y = rng.randrange(CANVAS), rng.randrange(690, CANVAS)
        for lean in (-8, 0, 8):
            draw.line((x, y, x + lean, y - 24), (78, 144, 50), 5)


def _draw_night(draw: Draw, rng: random.Random) -> None:
    _draw_gradient(draw, 0, CANVAS, (10, 14, 50), (66, 58, 120))
    for _ in range(90):
        _draw_disc(
            draw,
            rng.randrange(CANVAS),
            rng.randrange(700),
            rng.choice((2, 3, 4, 5)),
            (250, 246, 214),
        )
    _draw_disc(draw, 770, 120, 78, (252, 242, 204))
    for x, y, radius in ((745, 100, 16), (795, 140, 20), (785, 80, 10)):
        _draw_disc(draw, x, y, radius, (232, 218, 172))
    for x, top in ((40, 330), (190, 480), (330, 620)):
        draw.polygon(((x, top), (x - 300, CANVAS), (x + 300, CANVAS)), (24, 26, 62))
        draw.polygon(
            ((x, top), (x - 36, top + 60), (x, top + 44), (x + 36, top + 60)), (206, 210, 236)
        )
    _draw_hill(draw, 700, 790, 900, (14, 16, 42))


def _draw_snow(draw: Draw, rng: random.Random) -> None:
    _draw_gradient(draw, 0, 760, (164, 190, 216), (230, 238, 247))
    _draw_disc(draw, 780, 110, 60, (255, 246, 214))
    _draw_hill(draw, 720, 560, 700, (248, 251, 255))
    for x, top in ((200, 350), (70, 150)):
        draw.rectangle((x - 16, 600, x + 16, 680), (104, 76, 60))
        for layer in range(4):
            y, half = top + layer * (500 - top) // 4, 52 + 22 * layer
            draw.polygon(((x, y), (x - half, y + 190), (x + half, y + 190)), (44, 96, 84))
            draw.polygon(((x, y), (x - 22, y + 50), (x + 22, y + 50)), WHITE)
    _draw_hill(draw, 160, 640, 900, (222, 233, 246))
    _draw_hill(draw, 760, 720, 900, (208, 223, 241))
    for _ in range(120):
        _draw_disc(draw, rng.randrange(CANVAS), rng.randrange(CANVAS), rng.choice((4, 6, 8)), WHITE)


def _draw_beach(draw: Draw, rng: random.Random) -> None:
    _draw_gradient(draw, 0, 430, (118, 200, 240), (212, 240, 250))
    _draw_disc(draw, 770, 120, 70, (255, 214, 84))
    _draw_gradient(draw, 430, 660, (16, 122, 176), (92, 198, 208))
    for row in range(4):
        for x in range(-40 + 37 * row, CANVAS, 120):
            y = 470 + 46 * row
            draw.arc((x, y, x + 80, y + 26), 200, 340, (204, 238, 246), 5)
    _draw_hill(draw, 400, 650, 2600, (248, 230, 188))
    _draw_hill(draw, 400, 672, 2600, (238, 212, 156))
    for _ in range(70):
        _draw_disc(draw, rng.randrange(CANVAS), rng.randrange(710, CANVAS), 4, (212, 182, 122))
    draw.polygon(((70, 720), (106, 720), (150, 220), (130, 220)), (132, 90, 56))
    for tip_x, tip_y in ((-60, 170), (-20, 330), (60, 60), (230, 60), (320, 190), (270, 340)):
        middle_x, middle_y = (140 + tip_x) // 2, (220 + tip_y) // 2 - 46
        leaf = ((140, 220), (middle_x, middle_y), (tip_x, tip_y), (middle_x, middle_y + 44))
        draw.polygon(leaf, (36, 132, 76))


# Tall objects are on the left, the sun or moon on the right: a network can tell the sides apart.
LANDSCAPES = {
    "meadow": _draw_meadow,
    "night": _draw_night,
    "snow": _draw_snow,
    "beach": _draw_beach,
}


def _draw_disc(draw: Draw, x: int, y: int, radius: int, fill: Color) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill)


def _draw_hill(draw: Draw, x: int, top: int, half_width: int, fill: Color) -> None:
    """Draw a hill with its top at (x, top): the upper half of an ellipse."""
    draw.ellipse((x - half_width, top, x + half_width, 2 * CANVAS - top), fill)


def _draw_gradient(draw: Draw, top: int, bottom: int, first: Color, last: Color) -> None:
    height = bottom - top
    for y in range(height):
        fill = tuple((a * (height - y) + b * y) // height for a, b in zip(first, last, strict=True))
        draw.line((0, top + y, CANVAS, top + y), fill)
