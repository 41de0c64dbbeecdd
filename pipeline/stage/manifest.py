"""What a stage has done: the `Manifest` it writes last, atomic writes, hashes and locks.

A manifest that is present and matches means that the stage is done; anything else means that it is
not. On disk it is `manifest.json` in the stage's output directory, with the fields of `Manifest`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from .errors import MissingArtifactError
from .files import file_size, write_json

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """The record of one finished stage.

    Attributes:
        stage: name of the stage, as typed on the command line.
        version: of the stage's output format; another version is not up to date.
        config: what the output depends on, as JSON values.
        inputs: name of each input → its sha256, or another fingerprint of its content.
        outputs: file name, relative to the directory → size in bytes.
        counts: what was made: `num_images`, `num_captions`, ….
        skipped: (image, reason) of each image left out.
        seconds: wall time the stage took, earlier interrupted runs not counted.
        details: anything else worth reading, e.g. the transform; not compared.
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

    def write(self, directory: Path) -> Self:
        """Write `manifest.json` atomically, as the last act of a stage."""
        write_json(directory / MANIFEST_NAME, asdict(self))
        return self

    @classmethod
    def read(cls, directory: Path) -> "Manifest | None":
        """Read the manifest of `directory`; None where there is none or it cannot be understood."""
        try:
            values = json.loads((directory / MANIFEST_NAME).read_text("utf-8"))
            values["skipped"] = tuple((image, reason) for image, reason in values["skipped"])
            return cls(**values)
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
            return None

    @classmethod
    def require(cls, directory: Path, fix_command: str) -> "Manifest":
        """Read the manifest of a stage that must be done.

        Args:
            directory: output directory of the stage.
            fix_command: the command that runs the stage.

        Raises:
            MissingArtifactError: the stage is not done, or one of its files is gone.
        """
        manifest = cls.read(directory)
        if manifest is None:
            path = directory / MANIFEST_NAME
            raise MissingArtifactError(f"{path} does not exist. Run '{fix_command}' first.")
        if missing := manifest.missing_outputs(directory):
            raise MissingArtifactError(
                f"{directory / missing[0]} is missing or not of the size that {MANIFEST_NAME} "
                f"records ({manifest.outputs[missing[0]]} bytes). Run '{fix_command}' again."
            )
        return manifest

    def missing_outputs(self, directory: Path) -> list[str]:
        """Names of the outputs that are absent or changed in size."""
        return [
            name
            for name, size_bytes in self.outputs.items()
            if file_size(directory / name) != size_bytes
        ]

    def matches(
        self, directory: Path, version: int, config: dict[str, Any], inputs: dict[str, str]
    ) -> bool:
        """Whether the stage has nothing left to do for this config and these inputs."""
        return (
            self.version == version
            and self.config == json.loads(json.dumps(config))
            and self.inputs == inputs
            and not self.missing_outputs(directory)
        )
