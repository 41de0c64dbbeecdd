"""The manifest of a stage: a record of its options, inputs and outputs, written last.

A stage is complete when `manifest.json` exists in its output folder and matches the stage's
options and inputs. The file is a JSON object with the fields of `Manifest`.
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
        stage: name of the command, such as "prepare".
        version: version of the stage's output format.
        config: the options that the output depends on, as JSON values.
        inputs: name of an input → its SHA-256, or another fingerprint of its content.
        outputs: file name, relative to the folder → size in bytes.
        counts: numbers of things produced, such as `num_images`.
        skipped: (image, reason) for each image left out.
        seconds: wall time of the run that completed the stage, without interrupted runs.
        details: other information, such as the image transform; ignored by `matches`.
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
        """Write `manifest.json` atomically and return `self`. A stage calls this last."""
        write_json(directory / MANIFEST_NAME, asdict(self))
        return self

    @classmethod
    def read(cls, directory: Path) -> "Manifest | None":
        """Read the manifest of `directory`; return None if it is missing or invalid."""
        try:
            values = json.loads((directory / MANIFEST_NAME).read_text("utf-8"))
            values["skipped"] = tuple((image, reason) for image, reason in values["skipped"])
            return cls(**values)
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
            return None

    @classmethod
    def require(cls, directory: Path, fix_command: str) -> "Manifest":
        """Return the manifest of a complete stage.

        Args:
            directory: output folder of the stage.
            fix_command: the command that runs the stage.

        Raises:
            MissingArtifactError: the stage is not complete, or an output is missing or has changed.
        """
        manifest = cls.read(directory)
        if manifest is None:
            path = directory / MANIFEST_NAME
            problem = "is not a valid manifest" if path.exists() else "does not exist"
            raise MissingArtifactError(f"{path} {problem}. Run '{fix_command}' first.")
        if missing := manifest.missing_outputs(directory):
            raise MissingArtifactError(
                f"{directory / missing[0]} is missing, or its size is not the "
                f"{manifest.outputs[missing[0]]:,} bytes recorded in {MANIFEST_NAME}. "
                f"Run '{fix_command}' again."
            )
        return manifest

    def missing_outputs(self, directory: Path) -> list[str]:
        """Return the names of the outputs that are missing or have changed in size."""
        return [
            name
            for name, size_bytes in self.outputs.items()
            if file_size(directory / name) != size_bytes
        ]

    def matches(
        self, directory: Path, version: int, config: dict[str, Any], inputs: dict[str, str]
    ) -> bool:
        """Return whether the stage is up to date for this version, config and inputs."""
        return (
            self.version == version
            and self.config == json.loads(json.dumps(config))
            and self.inputs == inputs
            and not self.missing_outputs(directory)
        )
