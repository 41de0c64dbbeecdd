"""The manifest of a stage: a record of its options, inputs and outputs, written last.

A stage is complete when `manifest.json` exists in its output folder and matches the stage's
options and inputs. The file is a JSON object with the fields of `Manifest`, and `checksum` of them.
`.manifest.json` is a copy: if the manifest is damaged, it still names the command of the stage.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from .checksums import checksum_of_file, seal, unseal
from .errors import DamagedFileError, MissingArtifactError
from .files import file_size, json_bytes, write_bytes

MANIFEST_NAME, COPY_NAME = "manifest.json", ".manifest.json"
MISSING = "does not exist"
CHANGED = "its content does not match its checksum"


STAGES_BY_PARENT = {
    "features": "features",
    "neighbours": "neighbours",
    "eval": "eval",
    "runs": "train",
}
STAGES_BY_NAME = {"raw": "download", "captions": "prepare"}


def stage_of(directory: Path) -> str | None:
    """Return the stage that writes to a folder of the data folder; None for any other folder."""
    folder = directory.absolute()
    return STAGES_BY_PARENT.get(folder.parent.name) or STAGES_BY_NAME.get(folder.name)


@dataclass(frozen=True)
class Manifest:
    """The record of one finished stage.

    Attributes:
        stage: name of the command, such as "prepare".
        version: version of the stage's output format.
        config: the options that the output depends on, as JSON values.
        inputs: name of an input → its SHA-256, or another fingerprint of its content.
        outputs: file name, relative to the folder → size in bytes.
        counts: numbers of things produced, such as `num_images`.
        skipped: (image, reason) for each image left out.
        seconds: wall time of the run that completed the stage, without interrupted runs.
        details: other information, such as the image transform; ignored by `matches`.
        checksums: file name → checksum of an output. Archives and grids are not listed: they are
            too large to read each time, and their parts have checksums. Earlier versions list none.
        command: the command that makes the outputs, without `showtell` and `--data`.
        folder: name of the folder it was written to; `write` sets it. Earlier versions lack it.
    """

    stage: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, int]
    counts: dict[str, int] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    command: str = ""
    folder: str = field(default="", compare=False)

    def write(self, directory: Path) -> Self:
        """Write the copy, then `manifest.json`; return `self`. A stage calls this last."""
        self.write_copy(directory)
        write_bytes(directory / MANIFEST_NAME, self._content_in(directory))
        return self

    def write_copy(self, directory: Path) -> None:
        """Write only the copy: an unfinished folder then names the command that continues it."""
        write_bytes(directory / COPY_NAME, self._content_in(directory))

    def _content_in(self, directory: Path) -> bytes:
        return replace(self, folder=directory.absolute().name).to_bytes()

    def to_bytes(self) -> bytes:
        """Return the content of `manifest.json`."""
        return json_bytes(seal(asdict(self)))

    @classmethod
    def read(cls, directory: Path) -> "Manifest | None":
        """Read the manifest of `directory`; return None if it is missing, damaged or unreadable."""
        try:
            return cls.load(directory)
        except (MissingArtifactError, DamagedFileError, OSError):
            return None

    @classmethod
    def load(cls, directory: Path, name: str = MANIFEST_NAME) -> "Manifest":
        """Read the manifest of `directory`.

        Args:
            directory: output folder of a stage.
            name: of the file; `COPY_NAME` reads the copy, which may be of an earlier run.

        Raises:
            MissingArtifactError: it does not exist.
            DamagedFileError: it is not a manifest, has been changed, or is of another stage.
            OSError: the operating system cannot read it.
        """
        path = directory / name
        try:
            values = unseal(json.loads(path.read_bytes().decode()))
            values.pop("command_checksum", None)  # of an earlier version
            values["skipped"] = tuple((image, reason) for image, reason in values["skipped"])
            manifest = cls(**values)
            require_types(values)
            if manifest.stage not in (stage_of(directory) or manifest.stage, "export"):
                raise ValueError(f"it is the manifest of '{manifest.stage}'")
            return manifest
        except (FileNotFoundError, NotADirectoryError):
            raise MissingArtifactError(f"{path} does not exist.") from None
        except IsADirectoryError:
            raise DamagedFileError(f"{path} is damaged: it is a folder.") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DamagedFileError(f"{path} is damaged: {reason}.") from None

    def find_problems(
        self, directory: Path, *, check_content: bool = True
    ) -> list[tuple[str, str]]:
        """Return (name, problem) of each output that is not the file that the stage wrote.

        Args:
            directory: output folder of the stage.
            check_content: whether to verify the checksums of the outputs, not only their sizes.
        """
        problems = {}
        for name in self.outputs:
            path = directory / name
            content = partial(checksum_of_file, path) if check_content else None
            problems[name] = self.find_problem(name, file_size(path), content)
        return [(name, problem) for name, problem in problems.items() if problem]

    def find_problem(
        self, name: str, size_bytes: int | None, content: Callable[[], str] | None
    ) -> str | None:
        """Return how a file differs from the output of that name; None if it does not.

        Args:
            name: of the output. A name that is not listed has no problem.
            size_bytes: size of the file, None if it does not exist.
            content: returns the checksum of its content; None leaves the content unverified.
        """
        expected = self.outputs.get(name, size_bytes)
        if size_bytes is None:
            return MISSING
        if size_bytes != expected:
            return f"it has {size_bytes:,} bytes, expected {expected:,}"
        if content is not None and name in self.checksums and content() != self.checksums[name]:
            return CHANGED
        return None

    def matches(
        self, directory: Path, version: int, config: dict[str, Any], inputs: dict[str, str]
    ) -> bool:
        """Return whether the stage is up to date for this version, config and inputs."""
        return (
            self.version == version
            and self.config == json.loads(json.dumps(config))
            and self.inputs == inputs
            and not self.find_problems(directory)
        )


# Types of the fields of a manifest, and of the values in each object.
FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "stage": str,
    "version": int,
    "seconds": (int, float),
    "command": str,
    "folder": str,
    **dict.fromkeys(("config", "inputs", "outputs", "counts", "details", "checksums"), dict),
}
VALUE_TYPES: dict[str, type] = {"inputs": str, "outputs": int, "counts": int, "checksums": str}
# Stage → entries that other stages read, by field. Every version writes them.
REQUIRED = {"prepare": {"details": ("source",)}, "train": {"config": ("dataset",)}}


def require_types(values: dict[str, Any]) -> None:
    """Check the fields of a manifest. Those of earlier versions have no checksum.

    Raises:
        TypeError: a field, or a value in it, has another type.
        ValueError: an entry that other stages read does not exist.
    """
    for name, expected in FIELD_TYPES.items():
        if name in values and not isinstance(values[name], expected):
            raise TypeError(f"{name!r} has another type than expected")
    for name, expected in VALUE_TYPES.items():
        for key, value in values.get(name, {}).items():
            if type(value) is not expected:
                raise TypeError(f"{key!r} in {name!r} is not {expected.__name__}")
    for pair in values["skipped"]:
        if not all(isinstance(part, str) for part in pair):
            raise TypeError("'skipped' holds other values than text")
    for name, keys in REQUIRED.get(values["stage"], {}).items():
        for key in keys:
            if not isinstance(values[name].get(key), str):
                raise ValueError(f"{key!r} in {name!r} is missing or not text")
