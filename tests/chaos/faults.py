"""The faults: a process killed, a full disk, two processes at once, flipped bits.

Each fault yields one `Trial` for every place where it strikes. Outcomes:

    survived    the work went on, or one line named the problem and commands that solved it; in the
                end every file was the same as after an undisturbed run
    lost        no command that was advised brought the work to its end
    silent      a command succeeded, with other results
    traceback   a command ended in a traceback, or hung
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from folders import content_of, differences
from injection import (
    FULL,
    KILL,
    LOG,
    STOP,
    Command,
    Patch,
    Result,
    restore,
    run,
    run_and_follow,
)
from scenario import RESUMED, STAGES, Project

OUTCOMES = SURVIVED, LOST, SILENT, TRACEBACK = "survived", "lost", "silent", "traceback"
MAX_CHANGES = 2000


@dataclass(frozen=True)
class Trial:
    """One fault at one place.

    Attributes:
        fault: its kind.
        where: stage or file.
        place: number of the change, or of the bit.
        outcome: see above.
        detail: how it went: `continued` or `explained`, or the last error and what differs.
    """

    fault: str
    where: str
    place: int
    outcome: str
    detail: str


def kills(
    project: Project, stage: str, every: int = 1, patch: Patch | None = None
) -> Iterator[Trial]:
    """Kill a stage at every change of a file; then run the same command again."""
    for at in range((every + 1) // 2, MAX_CHANGES, every):
        project.start(stage)
        command = project.command(stage)
        killed = run(command, project.data, mode=KILL, at=at, patch=patch)
        if killed.status != -9:
            return
        verified = run(["verify"], project.data)
        outcome, detail = finish(project, stage, patch)
        if verified.has_traceback:
            outcome, detail = TRACEBACK, f"verify: {verified.output[-300:]}"
        yield Trial("killed", stage, at, outcome, detail)


def full_disks(
    project: Project, stage: str, every: int = 1, patch: Patch | None = None
) -> Iterator[Trial]:
    """Fill the disk at every change of a file; then run the same command with free space."""
    for at in range((every + 1) // 2, MAX_CHANGES, every):
        project.start(stage)
        failed = run(project.command(stage), project.data, mode=FULL, at=at, patch=patch)
        is_whole = not differences(content_of(project.data), project.after[stage])
        if failed.has_traceback:
            yield Trial("full disk", stage, at, TRACEBACK, failed.output[-500:])
        elif failed.status == 0:
            if not needs_more(project, stage, at, patch):
                return
            outcome = (SURVIVED, "continued") if is_whole else (SILENT, "succeeded without files")
            yield Trial("full disk", stage, at, *outcome)
        elif not failed.is_one_line:
            yield Trial("full disk", stage, at, TRACEBACK, f"not one line: {failed.output[-300:]}")
        else:
            yield Trial("full disk", stage, at, *finish(project, stage, patch))


def needs_more(project: Project, stage: str, at: int, patch: Patch | None) -> bool:
    """Return whether a stage makes `at` changes at all."""
    project.start(stage)
    return run(project.command(stage), project.data, mode=KILL, at=at, patch=patch).status == -9


def pairs(
    project: Project, stage: str, every: int = 1, patch: Patch | None = None
) -> Iterator[Trial]:
    """Stop a stage at every change of a file, run it in another process, and let it go on."""
    for at in range((every + 1) // 2, MAX_CHANGES, every):
        project.start(stage)
        first = Command(project.command(stage), project.data, mode=STOP, at=at, patch=patch)
        if not first.wait_until_stopped():
            first.wait()
            return
        second = run(project.command(stage), project.data, patch=patch)
        first.resume()
        ended = first.wait()
        yield Trial("two at once", stage, at, *judge_pair(project, stage, ended, second))


def judge_pair(project: Project, stage: str, first: Result, second: Result) -> tuple[str, str]:
    for result in (first, second):
        if result.has_traceback or (result.status and not result.is_one_line):
            return TRACEBACK, result.output[-500:]
    wrong = differences(content_of(project.data), project.after[stage])
    if first.status and second.status:
        return LOST, f"both failed: {first.error} {second.error}"
    if wrong:
        return SILENT, f"differs: {wrong}"
    return SURVIVED, "explained" if first.status or second.status else "continued"


def power_cuts(
    project: Project, stage: str, every: int = 1, patch: Patch | None = None
) -> Iterator[Trial]:
    """Check that each file is synced before it gets its name, and its folder afterwards.

    Otherwise a power cut could lose what the manifest lists. No power is cut.
    """
    project.start(stage)
    log = project.root / "changes"
    log.unlink(missing_ok=True)
    run(project.command(stage), project.data, mode=LOG, log=log, patch=patch)
    dirty, unsynced, renames = set[str](), dict[str, int](), list[str]()
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    for (change, path), (_, new_path) in zip(lines, [*lines[1:], ["", ""]], strict=True):
        if change in ("create", "write", "truncate"):
            dirty.add(path)
        elif change == "fsync":
            dirty.discard(path)
            unsynced = {name: at for name, at in unsynced.items() if str(Path(name).parent) != path}
        elif change == "rename" and "/raw/images/" not in path:  # `download` draws them again
            renames.append(new_path)
            if path in dirty:
                yield Trial("power cut", stage, len(renames), LOST, f"{path} is not synced")
            else:
                unsynced[new_path] = len(renames)
    for name, at in unsynced.items():
        yield Trial("power cut", stage, at, LOST, f"the folder of {name} is not synced")
    for at in range(len(renames) - len(unsynced)):
        yield Trial("power cut", stage, at + 1, SURVIVED, "synced")


def finish(project: Project, stage: str, patch: Patch | None) -> tuple[str, str]:
    """Run a stage to its end after a fault; return the outcome and its detail."""
    result, followed = run_and_follow(project.command(stage), project.data, patch)
    if result.has_traceback or (result.status and not result.is_one_line):
        return TRACEBACK, f"after {followed}: {result.output[-500:]}"
    if result.status:
        return LOST, f"after {followed}: {result.error}"
    if wrong := differences(content_of(project.data), project.after[stage]):
        return SILENT, f"after {followed}, differs: {wrong}"
    if stage == RESUMED and list(project.data.glob("runs/r/earlier-*")):
        return LOST, f"after {followed}: the first epoch was trained again"
    return SURVIVED, f"explained: {followed}" if followed else "continued"


# Artifact → the commands that read it. `{root}` is the folder of the project.
FRESH_TRAIN = (*STAGES["train"][:-1], "fresh")
FRESH_EVAL = ("eval", "--run", "r", "--beam", "2")
CAPTION = ("caption", "{root}/data/scenes/raw/images/000001.jpg", "--run", "r")
ATTENTION = (*FRESH_TRAIN, "--features", "resnet18-random-64", "--attention", "soft")
OF_CAPTIONS = (STAGES["prepare"], STAGES["features, HDF5"], FRESH_TRAIN)
OF_FEATURES = (STAGES["features, HDF5"], FRESH_TRAIN)
OF_GRIDS = (STAGES["features, HDF5 with grid"], ATTENTION)
OF_RUN = (STAGES["train"], FRESH_EVAL, CAPTION)
OF_NEIGHBOURS = (STAGES["neighbours"], (*FRESH_TRAIN, "--neighbours", "5"))
OF_EVAL = (STAGES["eval"], ("compare", "r", "r"))
READERS = {
    "scenes/raw/manifest.json": (STAGES["download"],),
    "scenes/captions/images.parquet": OF_CAPTIONS,
    "scenes/captions/captions.parquet": OF_CAPTIONS,
    "scenes/captions/vocab.json": OF_CAPTIONS,
    "scenes/captions/manifest.json": OF_CAPTIONS,
    "scenes/features/resnet18-random-32/part-00000.h5": OF_FEATURES,
    "scenes/features/resnet18-random-32/manifest.json": OF_FEATURES,
    "scenes/features/resnet18-random-64/part-00001.h5": OF_GRIDS,
    "scenes/features/resnet18-random-64/part-00001.grid.npy": OF_GRIDS,
    "scenes/features/resnet18-random-64/manifest.json": OF_GRIDS,
    "scenes/features/resnet18-random-72/part-00000.parquet": (
        STAGES["features, Parquet with grid"],
        (*FRESH_TRAIN, "--features", "resnet18-random-72", "--views", "2"),
    ),
    "scenes/neighbours/resnet18-random-32-5/words.safetensors": OF_NEIGHBOURS,
    "scenes/neighbours/resnet18-random-32-5/manifest.json": OF_NEIGHBOURS,
    "runs/r/config.json": OF_RUN,
    "runs/r/vocab.json": OF_RUN,
    "runs/r/best.safetensors": OF_RUN,
    "runs/r/manifest.json": OF_RUN,
    "runs/r/eval/test-beam3/metrics.json": OF_EVAL,
    "runs/r/eval/test-beam3/captions.json": OF_EVAL,
    "runs/r/eval/test-beam3/scores.npz": OF_EVAL,
    "runs/r/eval/test-beam3/manifest.json": OF_EVAL,
}
QUICK_READERS = (
    "scenes/captions/captions.parquet",
    "scenes/features/resnet18-random-32/part-00000.h5",
    "runs/r/best.safetensors",
)
# Files of a stopped run that `train --resume` reads.
READERS_OF_STOPPED = tuple(
    f"runs/r/{name}"
    for name in (
        "last.safetensors",
        "metrics.jsonl",
        "best.safetensors",
        "config.json",
        "vocab.json",
    )
)


def flips(
    project: Project, name: str, count: int, *, stopped: bool = False, patch: Patch | None = None
) -> Iterator[Trial]:
    """Damage a file, and run every command that reads it.

    Single bits are flipped, evenly spaced over the file; if there are several, the content is also
    replaced by zeros and by nothing, as after a power cut.
    """
    readers = ((*STAGES["train"], "--resume"),) if stopped else READERS[name]
    snapshot = project.stopped if stopped else project.finished
    where = f"{name} of a stopped run" if stopped else name
    for words in readers if count > 1 else readers[-1:]:
        command = project.fill(words)
        restore(snapshot, project.data)
        original = (project.data / name).read_bytes()
        expected_result, _ = run_and_follow(command, project.data)
        assert expected_result.status == 0, expected_result.output
        expected, last_bit = content_of(project.data), 8 * len(original) - 1
        bits = [index * last_bit // (count - 1) for index in range(count)] if count > 1 else []
        contents = [("flipped bit", bit, flip(original, bit)) for bit in bits or [last_bit // 2]]
        if bits:
            contents += [("zeroed", 0, bytes(len(original))), ("emptied", 0, b"")]
        for fault, place, content in contents:
            restore(snapshot, project.data)
            (project.data / name).write_bytes(content)
            judged = judge_reader(project, name, command, expected, expected_result, patch)
            yield Trial(fault, where, place, *judged)


def flip(content: bytes, bit: int) -> bytes:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def judge_reader(
    project: Project,
    name: str,
    command: list[str],
    expected: dict[str, str],
    expected_result: Result,
    patch: Patch | None,
) -> tuple[str, str]:
    result, followed = run_and_follow(command, project.data, patch)
    short = " ".join(command[:2])
    if result.has_traceback or (result.status and not result.is_one_line):
        return TRACEBACK, f"{short}, after {followed}: {result.output[-500:]}"
    if result.status:
        return LOST, f"{short}, after {followed}: {result.error}"
    wrong = differences(content_of(project.data), expected)
    if not followed:
        wrong = [other for other in wrong if other != name]  # still damaged, but not used
    is_shown = command[0] in ("caption", "compare")
    if wrong or (is_shown and result.output != expected_result.output):
        return SILENT, f"{short}, after {followed}, differs: {wrong}"
    return SURVIVED, f"explained: {followed}" if followed else "harmless"
