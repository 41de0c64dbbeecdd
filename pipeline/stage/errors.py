"""The errors showtell raises for what a user can mend; the command line prints each as one line.

Every message says what is wrong, where, what was found, what was expected, and the command or
change that mends it.
"""


class ShowTellError(Exception):
    """Base of every error that is about the user's files, options or machine, not about a bug.

    Attributes:
        exit_status: what the command line ends with.
    """

    exit_status = 1


class ConfigError(ShowTellError):
    """An option, or a combination of options, that cannot be."""


class DatasetError(ShowTellError):
    """Captions or images that are missing, malformed or do not belong together."""


class DownloadError(ShowTellError):
    """An archive that could not be fetched, or is not what its recipe says."""


class MissingArtifactError(ShowTellError):
    """A file or folder that an earlier stage should have written is not there."""


class WeightsError(ShowTellError):
    """Pretrained weights that cannot be fetched, verified or fitted to the network."""


class HubUnreachableError(WeightsError):
    """Weights that torchvision's hub should bring; other `--weights` need no hub."""

    exit_status = 3


class StoppedError(ShowTellError):
    """A stage that was stopped by Ctrl-C or SIGTERM, and can go on."""

    exit_status = 130


class BadShardError(ShowTellError):
    """A feature shard that is damaged, or is not of the shape its manifest says."""


class MismatchError(ShowTellError):
    """Two artifacts that were not made for each other: run and vocabulary, run and features, …."""


class ScorerError(ShowTellError):
    """A scorer outside Python (Java: METEOR, the PTB tokenizer) that cannot run."""
