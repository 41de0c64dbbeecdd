"""Plan an evaluation: find its runs, images and metrics, and the folder of its results."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...pipeline.captions import read_images
from ...pipeline.layout import IMAGES_PARQUET, VOCAB_JSON
from ...pipeline.stage.artifacts import require_stage
from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.console import print_warning
from ...pipeline.stage.errors import MismatchError, MissingArtifactError
from ...pipeline.stage.files import hash_file
from ...pipeline.stage.manifest import Manifest
from ...pipeline.text.vocab import Vocab
from ..config import EvalConfig
from ..metrics.metric import Metric
from ..metrics.registry import choose_metrics
from ..runs.layout import run_folder
from .members import Member, hash_members, load_members

VERSION = 3  # format of the results; a change makes finished evaluations out of date

ImageIds = NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class Evaluation:
    """The runs, images and metrics of an evaluation.

    Attributes:
        config: options of `showtell eval`.
        members: the runs that decode together.
        captions_dir: output folder of `showtell prepare`.
        split: name of the split to caption.
        image_ids: (N,) int64, all images of the split.
        metrics: the optional metrics to compute.
        folder: where the results are written.
        inputs: name → fingerprint of the captions, weights and features.
        metric_inputs: name of a metric → the fingerprints of its own inputs.
        tokenizer: name of the tokenizer of the captions, see `pipeline/text/tokenizer.py`.
    """

    config: EvalConfig
    members: list[Member]
    captions_dir: Path
    split: str
    image_ids: ImageIds
    metrics: list[Metric]
    folder: Path
    inputs: dict[str, str]
    metric_inputs: dict[str, dict[str, str]]
    tokenizer: str

    @property
    def options(self) -> dict[str, Any]:
        """The options that determine the results, for the manifest."""
        run = self.folder.parents[1].name
        return self.config.result_options() | {"run": run, "split": self.split}

    def inputs_with(self, metrics: Iterable[str]) -> dict[str, str]:
        """Return all inputs of an evaluation that computes these optional metrics."""
        return self.inputs | dict(
            chain.from_iterable(self.metric_inputs[name].items() for name in metrics)
        )

    def is_finished(self, manifest: Manifest) -> bool:
        """Return whether a manifest shows that this evaluation is finished and up to date."""
        inputs = self.inputs_with(self.metric_inputs)
        return manifest.matches(self.folder, VERSION, self.options, inputs)


def plan_evaluation(config: EvalConfig) -> Evaluation:
    """Find everything that an evaluation needs; the weights are not read yet.

    Raises:
        MissingArtifactError: the run, the split or the features are missing.
        MismatchError: captions, vocabulary or features differ from those of the run, or between
            the runs.
    """
    members = load_members(config.data, config.run, config.dataset, config.views)
    dataset = members[0].run.dataset
    captions_dir = config.data / dataset / "captions"
    prepared = require_stage(captions_dir)
    vocab = _read_vocab(captions_dir, members[0])
    split, image_ids = _choose_images(captions_dir, config.split)
    metrics = choose_metrics(vocab.word_tokenizer, spice=config.spice, clip=config.clip)
    run_dir = run_folder(config.data, [member.name for member in members])
    hashes = {name: hash_file(captions_dir / name) for name in prepared.outputs}
    return Evaluation(
        config,
        members,
        captions_dir,
        split,
        image_ids,
        metrics,
        folder=run_dir / "eval" / f"{split}-{config.decoding_name}",
        inputs=hashes | hash_members(members),
        metric_inputs={metric.name: metric.inputs() for metric in metrics},
        tokenizer=vocab.word_tokenizer,
    )


def _read_vocab(captions_dir: Path, member: Member) -> Vocab:
    """Read the dataset's vocabulary; check that the run was trained with it."""
    vocab, run = Vocab.read(captions_dir / VOCAB_JSON), member.run
    if vocab.sha256 != run.vocab_sha256:
        command = command_line(captions_dir.parents[1], "prepare", "--dataset", run.dataset)
        raise MismatchError(
            f"{captions_dir / VOCAB_JSON} has {len(vocab):,} words and hash {vocab.sha256[:12]}, "
            f"but the run {member.name} was trained with {run.decoder.vocab_size:,} and "
            f"{run.vocab_sha256[:12]}. Run '{command}' again with the options used before the "
            "training, or train a new run."
        )
    return vocab


def _choose_images(captions_dir: Path, split: str | None) -> tuple[str, ImageIds]:
    """Return the split to caption and its image ids; the default is test if it exists, else val."""
    images = read_images(captions_dir / IMAGES_PARQUET)
    split = split or ("test" if "test" in images.splits else "val")
    image_ids = images.select(split)
    if not len(image_ids):
        raise MissingArtifactError(
            f"{captions_dir} has no {split} images. Set --split to one of "
            f"{', '.join(sorted(set(images.splits)))}."
        )
    return split, image_ids


def select_images(evaluation: Evaluation) -> ImageIds:
    """Return the images for which every run has features, and print a warning about the others.

    Raises:
        MissingArtifactError: no image of the split has features.
    """
    image_ids, stores = evaluation.image_ids, [member.store for member in evaluation.members]
    has_features = torch.stack([store.has(image_ids) for store in stores]).all(0).numpy()
    if not has_features.any():
        raise MissingArtifactError(
            f"{stores[0].directory} has no features of any {evaluation.split} image, so there is "
            "nothing to caption. Restore the images, then run 'showtell features' again."
        )
    if num_without := int((~has_features).sum()):
        print_warning(
            f"{num_without} of {len(image_ids)} images have no features because they could not be "
            "read (see 'showtell status'). They are neither captioned nor scored."
        )
    selected: ImageIds = image_ids[has_features]
    return selected
