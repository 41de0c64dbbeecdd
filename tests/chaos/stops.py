"""Stop every command by SIGINT and SIGTERM at random moments, and count how it ends.

    python tests/chaos/stops.py [NUMBER] [COMMAND…]

A stop is good if the command ends within two seconds with exit status 130 or 143 and one line, and
leaves no process behind. Run it on an idle machine. Exit status 1: a stop was not good.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S = 2.0
START_S = 0.25  # earlier than this, Python itself is still starting
NETWORK = ("--encoder", "resnet18", "--weights", "{root}/random.pth", "--shard-size", "100")
SCENES = ("--dataset", "scenes")

# Name → (command, seconds that it takes at least, folder to delete before).
COMMANDS: dict[str, tuple[tuple[str, ...], float, str]] = {
    "download": (("download", *SCENES), 4.0, "scenes/raw"),
    "prepare": (("prepare", *SCENES, "--min-count", "2"), 0.9, "scenes/captions"),
    "features": (
        ("features", *SCENES, *NETWORK, "--image-size", "256"),
        8.0,
        "scenes/features/resnet18-random-256",
    ),
    "train": (("train", *SCENES, "--run", "t", "--epochs", "999"), 9.0, "runs/t"),
    "train, validation": (
        ("train", *SCENES, "--run", "v", "--epochs", "999", "--batch-size", "999"),
        9.0,
        "runs/v",
    ),
    "eval": (("eval", "--run", "r", "--beam", "4"), 8.0, "runs/r/eval"),
    "caption": (("caption", "{root}/images", "--run", "r"), 5.0, "scenes/none"),
    "bench": (("bench", "scorers", *SCENES, "--seconds", "9"), 12.0, "bench"),
    "status": (("status",), 0.5, "scenes/none"),
}


def showtell(root: Path, *words: str) -> list[str]:
    filled = [word.format(root=root) for word in words]
    return [sys.executable, "-m", "showtell", *filled, "--data", str(root / "data")]


def prepare(root: Path) -> None:
    """Make a data folder with a trained run."""
    import torch
    from torchvision.models import resnet18

    from showtell.pipeline.datasets.scenes import draw_scenes

    torch.save(resnet18().state_dict(), root / "random.pth")
    draw_scenes(root / "data/scenes/raw", num_train=300, num_val=100, num_test=100)
    shutil.copytree(root / "data/scenes/raw/images", root / "images")
    features = ("features", *SCENES, *NETWORK, "--image-size", "64")
    for words in (
        ("prepare", *SCENES, "--min-count", "1"),
        features,
        ("train", *SCENES, "--run", "r", "--epochs", "1"),
    ):
        subprocess.run(showtell(root, *words), check=True, stdout=subprocess.DEVNULL)
    (root / "data").rename(root / "finished")


def session_of(leader: int) -> list[str]:
    """Return the names of the processes that a command has left behind."""
    names = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        if int(fields[3]) == leader and fields[0] != "Z":
            names.append(name)
    return names


def stop(root: Path, name: str) -> str | None:
    """Stop a command at a random moment; return what was wrong, or None."""
    words, longest, folder = COMMANDS[name]
    shutil.rmtree(root / "data", ignore_errors=True)
    shutil.copytree(root / "finished", root / "data")
    shutil.rmtree(root / "data" / folder, ignore_errors=True)
    number = random.choice((signal.SIGINT, signal.SIGTERM))
    send = random.choice((os.kill, os.killpg))
    process = subprocess.Popen(
        showtell(root, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait = random.uniform(START_S, longest)
    try:
        process.wait(wait)
        return None if process.returncode == 0 else process.communicate()[1]
    except subprocess.TimeoutExpired:
        pass
    before = time.monotonic()
    send(process.pid, number)
    _, errors = process.communicate()
    seconds = time.monotonic() - before
    time.sleep(0.3)
    left = session_of(process.pid)
    lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    is_good = process.returncode == 128 + number and len(lines) == 1 and not left
    if is_good and seconds < LIMIT_S:
        return None
    return f"{number.name} at {wait:.2f} s: {seconds:.2f} s, {process.returncode}, {left}, {errors}"


def main() -> None:
    number, *names = sys.argv[1:] or ["100"]
    names = names or list(COMMANDS)
    num_bad = 0
    # A job in the background of a script ignores Ctrl-C, and so would the commands that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for index in range(int(number)):
            name = names[index % len(names)]
            problem = stop(Path(folder), name)
            num_bad += problem is not None
            print(f"{name}: {problem or 'good'}", flush=True)
    print(f"{number} stops, {num_bad} of them not good")
    sys.exit(num_bad > 0)


if __name__ == "__main__":
    main()
