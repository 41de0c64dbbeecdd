"""Errors that the user can fix. The command line prints each as one line.

Each message names the problem, the place, the expected value, and the command or change that helps.
"""

import errno
from signal import SIGINT

# Errors of the disk, and of exhausted resources. Without a path, only errno tells them from a bug.
DISK_ERRORS = (
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ENODEV,
)


class ShowTellError(Exception):
    """Base class of errors caused by the user's files, options or machine, not by a bug.

    Attributes:
        exit_status: exit status of the command line.
    """

    exit_status = 1


class ConfigError(ShowTellError):
    """An option, or a combination of options, is invalid."""


class DatasetError(ShowTellError):
    """Captions or images are missing, malformed or contradictory."""


class DownloadError(ShowTellError):
    """An archive could not be downloaded, or is not the published file."""


class MissingArtifactError(ShowTellError):
    """A file or folder that a stage reads does not exist."""


class DamagedFileError(ShowTellError):
    """A file that showtell wrote has changed since, or cannot be read."""


class StorageError(ShowTellError):
    """A file cannot be read or written, for example because the disk is full."""


class WeightsError(ShowTellError):
    """Pretrained weights cannot be fetched, verified or loaded into the network."""


class HubUnreachableError(WeightsError):
    """The server of pretrained weights cannot be reached; `--weights FILE` avoids it."""

    exit_status = 3


class HubError(ShowTellError):
    """The Hugging Face Hub refuses a request, has no such model, or cannot be reached."""


class StoppedError(ShowTellError):
    """A stage was stopped by Ctrl-C or SIGTERM, and can be resumed.

    Args:
        message: the text of the error.
        signal: the signal that stopped it; the exit status is 130 or 143.
    """

    def __init__(self, message: str, signal: int = SIGINT) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal


class BadShardError(DamagedFileError):
    """A feature shard is damaged, or differs from its manifest."""


class MismatchError(ShowTellError):
    """Two artifacts do not belong together, such as a run and a vocabulary."""


class ScorerError(ShowTellError):
    """A scorer cannot run, or `--official` found a difference."""
