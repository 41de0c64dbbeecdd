"""The runs that an evaluation decodes with: one, or several that form an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...features.store import FeatureStore, require_views
from ...pipeline.stage.errors import MismatchError
from ...pipeline.stage.files import hash_file
from ..decoders.inputs import Words
from ..neighbours import read_words
from ..runs.find import choose_run
from ..runs.layout import BEST_NAME
from ..runs.run import RunConfig, load_run_features, read_vocab


@dataclass(frozen=True)
class Member:
    """A run that takes part in decoding.

    Attributes:
        run_dir: folder of the run.
        run: config of the run.
        store: the features that it was trained on.
        words: of the neighbours of all images in the store, if it uses them.
    """

    run_dir: Path
    run: RunConfig
    store: FeatureStore
    words: Words | None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run_dir.name


def load_members(
    data: Path, names: Sequence[str] | None, dataset: str | None, num_views: int
) -> list[Member]:
    """Find runs and load their features, but not their weights; sort them by name.

    Args:
        data: root of all files.
        names: names of the runs; None selects the newest run.
        dataset: if given, only its runs are considered.
        num_views: views of each image that the features must have.

    Raises:
        MissingArtifactError: a run, its features or some of the views are missing.
        MismatchError: the features are not those of the run, or the runs do not share their
            dataset and vocabulary.
    """
    members = []
    for name in sorted(names) if names else [None]:
        run_dir = choose_run(data, name, dataset)
        run = RunConfig.read(run_dir)
        store = load_run_features(data, run)
        members.append(Member(run_dir, run, store, load_run_words(run_dir, run, store)))
    _check_compatible(members)
    for member in members:
        require_views(member.store, num_views)
    return members


def load_run_words(run_dir: Path, run: RunConfig, store: FeatureStore) -> Words | None:
    """Load the words that a run was trained with; None if it uses none.

    Raises:
        MissingArtifactError: the neighbours stage has not finished.
        MismatchError: the words are of another vocabulary, or were retrieved in another way.
    """
    if not run.decoder.neighbours:
        return None
    words, found = read_words(store, run.decoder.neighbours, read_vocab(run_dir, run))
    if found != run.inputs["neighbours"]:
        raise MismatchError(
            f"The neighbours of {run.dataset} were computed with other options or captions than "
            f"those that run {run_dir.name} was trained with. Run 'showtell neighbours' with the "
            "options used then, or train another run."
        )
    return words


def hash_members(members: Sequence[Member]) -> dict[str, str]:
    """Return the sha256 of the weights and features, for the manifest.

    The keys are `best.safetensors`, `features` and, if the run uses them, `neighbours`; those of an
    ensemble begin with `RUN/`.
    """
    hashes = {}
    for member in members:
        prefix = f"{member.name}/" if len(members) > 1 else ""
        hashes[prefix + BEST_NAME] = hash_file(member.run_dir / BEST_NAME)
        hashes[prefix + "features"] = member.store.sha256
        if member.words is not None:
            hashes[prefix + "neighbours"] = member.run.inputs["neighbours"]
    return hashes


def _check_compatible(members: Sequence[Member]) -> None:
    """Check that the runs share their dataset and vocabulary."""
    first = members[0]
    for other in members[1:]:
        for description, field in (("dataset", "dataset"), ("vocabulary", "vocab_sha256")):
            values = getattr(first.run, field)[:12], getattr(other.run, field)[:12]
            if values[0] != values[1]:
                raise MismatchError(
                    f"Runs {first.name} and {other.name} cannot decode together: their "
                    f"{description} differs ({values[0]} and {values[1]}). Choose runs with the "
                    f"same {description}, or train one of them again."
                )
