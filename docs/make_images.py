"""Draw the picture of the README from a finished `make demo`: docs/images/demo.png.

It shows test scenes at regular intervals with the captions that the run generated, and the curves
of its training. Usage: python docs/make_images.py [--data data]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from showtell.pipeline.captions import read_images
from showtell.pipeline.stage.artifacts import require_stage

OUTPUT = Path(__file__).with_name("images") / "demo.png"
COLUMNS, ROWS = 4, 2
TILE, GAP, CAPTION_HEIGHT, CHART_HEIGHT = 380, 24, 84, 400  # pixels; twice the size on the page
INK, MUTED, LIGHT = "#1f2328", "#59636e", "#d1d9e0"
LOSS_COLOR, SCORE_COLOR = "#0969da", "#cf4a22"


def main() -> None:
    """Read the demo run and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("data"))
    data = parser.parse_args().data
    width = COLUMNS * TILE + (COLUMNS + 1) * GAP
    scenes_height = ROWS * (TILE + CAPTION_HEIGHT) + GAP
    canvas = Image.new("RGB", (width, scenes_height + CHART_HEIGHT), "white")
    draw_scenes(canvas, read_examples(data))
    records = read_log(data / "runs/demo/metrics.jsonl")
    chart_width = (width - 3 * GAP) // 2
    for column, (title, key, color, scale) in enumerate(
        [
            ("training loss", "loss", LOSS_COLOR, 1.0),
            ("CIDEr of the validation scenes", "val_CIDEr", SCORE_COLOR, 100.0),
        ]
    ):
        points = [(r["step"], scale * r[key]) for r in records if key in r]
        left = GAP + column * (chart_width + GAP)
        box = (left, scenes_height + GAP, left + chart_width, scenes_height + CHART_HEIGHT - GAP)
        draw_chart(ImageDraw.Draw(canvas), box, title, points, color)
    OUTPUT.parent.mkdir(exist_ok=True)
    canvas.quantize(256, dither=Image.Dither.NONE).save(OUTPUT, optimize=True)
    print(f"{OUTPUT}: {canvas.width}x{canvas.height}, {OUTPUT.stat().st_size / 1000:.0f} kB")


def read_examples(data: Path) -> list[tuple[Image.Image, str]]:
    """Return every n-th test image of the demo with its generated caption."""
    captions_dir = data / "scenes/captions"
    source = Path(require_stage(captions_dir).details["source"])
    table = read_images(captions_dir / "images.parquet")
    names = dict(zip(table.image_ids.tolist(), table.file_names, strict=True))
    results = json.loads((data / "runs/demo/eval/test-beam3/captions.json").read_text("utf-8"))
    every = len(results) // (COLUMNS * ROWS)
    chosen = results[every // 2 :: every][: COLUMNS * ROWS]
    return [(Image.open(source / names[r["image_id"]]), r["caption"]) for r in chosen]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def draw_scenes(canvas: Image.Image, examples: list[tuple[Image.Image, str]]) -> None:
    """Draw images in rows, each with its caption below."""
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(26)
    for place, (image, caption) in enumerate(examples):
        row, column = divmod(place, COLUMNS)
        left, top = GAP + column * (TILE + GAP), GAP + row * (TILE + CAPTION_HEIGHT)
        canvas.paste(image.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
        for number, line in enumerate(wrap(caption, font, TILE)):
            pen.text((left, top + TILE + 8 + 32 * number), line, INK, font)


def wrap(text: str, font: Any, width: int) -> list[str]:
    """Split a text into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def draw_chart(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    title: str,
    points: list[tuple[int, float]],
    color: str,
) -> None:
    """Draw a line chart over training steps, with the first, last and extreme values as ticks."""
    font, small = ImageFont.load_default(28), ImageFont.load_default(24)
    left, top, right, bottom = box[0] + 70, box[1] + 48, box[2] - 10, box[3] - 34
    last_step, values = points[-1][0], [value for _, value in points]
    low, high = 0.0, 1.05 * max(values)

    def to_pixel(step: float, value: float) -> tuple[float, float]:
        x = left + (right - left) * step / last_step
        return x, bottom - (bottom - top) * (value - low) / (high - low)

    pen.text((box[0], box[1]), title, INK, font)
    for value in ticks(high):
        y = to_pixel(0, value)[1]
        pen.line((left, y, right, y), LIGHT, 2)
        pen.text((left - 12, y), f"{value:g}", MUTED, small, anchor="rm")
    for step in ticks(last_step):
        pen.text((to_pixel(step, low)[0], bottom + 8), f"{step:g}", MUTED, small, anchor="mt")
    pen.text((right, box[1] + 14), "optimizer steps", MUTED, small, anchor="rt")
    pen.line([to_pixel(*point) for point in points], color, 5, joint="curve")


def ticks(end: float, most: int = 5) -> list[float]:
    """Return round values from 0 to at most `end`."""
    for power in range(-3, 7):
        for step in (1, 2, 5):
            size = step * 10.0**power
            if end / size <= most:
                return [size * number for number in range(int(end / size) + 1)]
    return [0.0]


if __name__ == "__main__":
    main()
