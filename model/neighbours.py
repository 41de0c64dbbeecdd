"""The neighbours stage: which words people use of images similar to each image.

A decoder trained with `--neighbours K` reads them beside the features. A training image is never
its own neighbor, so that its words are as uncertain in training as those of new images.

data/<dataset>/neighbours/<features>-<K>/
    words.safetensors
        image_ids    (N,) int64        all images with features, in the order of the features
        token_ids    (N, S) int32      words of the captions of the K most similar training images,
                                       highest weight first
        weights      (N, S) float16    at least 0
    manifest.json    see `pipeline/stage/manifest.py`
"""

from pathlib import Path

import torch

from ..features.device import choose_device
from ..features.store import FeatureStore, find_features
from ..pipeline.layout import CAPTIONS_PARQUET, VOCAB_JSON
from ..pipeline.stage.artifacts import reading, require_stage
from ..pipeline.stage.checksums import checksums_of
from ..pipeline.stage.command_line import command_line, command_of
from ..pipeline.stage.console import (
    ProgressLine,
    format_bytes,
    format_seconds,
    print_note,
    print_table,
)
from ..pipeline.stage.errors import MismatchError, MissingArtifactError
from ..pipeline.stage.files import hash_file, hash_json, locked
from ..pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ..pipeline.stage.stopwatch import Stopwatch
from ..pipeline.text.vocab import Vocab
from .decoders.inputs import Words
from .retrieval.config import NeighboursConfig
from .retrieval.search import mean_features
from .retrieval.words import IMAGES_TOGETHER, WordRetriever
from .runs.tensors import read_tensors, write_tensors

VERSION = 1
WORDS_NAME = "words.safetensors"


def find_neighbours(config: NeighboursConfig) -> Manifest:
    """Retrieve the words of every image that has features, unless that is up to date.

    Raises:
        MissingArtifactError: prepare or features has not run, or no training image has features.
        DamagedFileError: a file of theirs is damaged.
    """
    require_stage(config.captions_dir)
    directory = find_features(config.dataset_dir, config.features)
    store = FeatureStore.load(directory)
    vocab = Vocab.read(config.captions_dir / VOCAB_JSON)
    captions_path = config.captions_dir / CAPTIONS_PARQUET
    inputs = inputs_of(vocab, hash_file(captions_path), store)
    options = config.result_options() | {"features": directory.name}
    folder = neighbours_dir(config.dataset_dir, directory.name, config.neighbours)
    with locked(folder):
        manifest = Manifest.read(folder)
        if manifest is not None and manifest.matches(folder, VERSION, options, inputs):
            print_note(f"neighbours: {folder} is up to date.")
            return manifest
        watch = Stopwatch()
        retriever = WordRetriever.load(
            config.captions_dir, store, config.neighbours, vocab, choose_device(config.device)
        )
        words = _retrieve(retriever, store)
        tensors = {"image_ids": store.image_ids, **words._asdict()}
        write_tensors(folder / WORDS_NAME, tensors)
        manifest = Manifest(
            stage="neighbours",
            version=VERSION,
            config=options,
            inputs=inputs,
            outputs={WORDS_NAME: (folder / WORDS_NAME).stat().st_size},
            checksums=checksums_of(folder, [WORDS_NAME]),
            command=command_of("neighbours", config),
            counts={
                "num_images": len(store.image_ids),
                "num_neighbours": min(config.neighbours, len(retriever.search.image_ids)),
                "num_words": words.token_ids.shape[1],
            },
            seconds=round(watch.seconds, 3),
        ).write(folder)
    _show_summary(manifest, folder)
    return manifest


def neighbours_dir(dataset_dir: Path, features: str, num_neighbors: int) -> Path:
    """Return `data/<dataset>/neighbours/<features>-<K>`."""
    return dataset_dir / "neighbours" / f"{features}-{num_neighbors}"


def inputs_of(vocab: Vocab, captions_sha256: str, store: FeatureStore) -> dict[str, str]:
    """Return the fingerprints of everything that the words depend on."""
    return {"vocab": vocab.sha256, "captions.parquet": captions_sha256, "features": store.sha256}


def fingerprint(manifest: Manifest) -> str:
    """Return what the words depend on as one hash; a repeated stage has the same."""
    return hash_json([manifest.version, manifest.config, manifest.inputs])


def read_words(store: FeatureStore, num_neighbors: int, vocab: Vocab) -> tuple[Words, str]:
    """Read the words of all images.

    Args:
        store: features of the dataset's images.
        num_neighbors: K.
        vocab: of the dataset.

    Returns:
        The words, row by row for the images of the store, and their fingerprint.

    Raises:
        MissingArtifactError: the stage has not finished.
        DamagedFileError: a file is damaged.
        MismatchError: the words are of other features or of another vocabulary.
    """
    dataset_dir, features = store.directory.parents[1], store.directory.name
    folder = neighbours_dir(dataset_dir, features, num_neighbors)
    command = command_line(
        dataset_dir.parent, "neighbours", "--dataset", dataset_dir.name,
        "--features", features, "--neighbours", str(num_neighbors),
    )  # fmt: skip
    if not (folder / MANIFEST_NAME).exists():
        raise MissingArtifactError(
            f"--neighbours {num_neighbors} needs {folder}, which is not finished. Run '{command}' "
            "first."
        )
    manifest = require_stage(folder, check_content=False)
    current = {"vocab": vocab.sha256, "features": store.sha256}
    for name, now in current.items():
        if (then := manifest.inputs.get(name)) != now:
            raise MismatchError(
                f"{folder} was computed for other {name} ({str(then)[:12]}, now {now[:12]}). Run "
                f"'{command}' again."
            )
    tensors, _ = read_tensors(folder / WORDS_NAME)
    with reading(folder / WORDS_NAME):
        if not torch.equal(tensors["image_ids"], store.image_ids):
            raise ValueError("its images are not those of the features")
        words = Words(tensors["token_ids"], tensors["weights"])
        if words.token_ids.shape != words.weights.shape or words.token_ids.ndim != 2:
            raise ValueError("its tensors have other shapes")
    return words, fingerprint(manifest)


def _retrieve(retriever: WordRetriever, store: FeatureStore) -> Words:
    """Retrieve the words of all images, part by part."""
    parts, image_ids = [], store.image_ids.numpy()
    with ProgressLine("neighbours", len(image_ids), "img") as progress:
        for start in range(0, len(image_ids), IMAGES_TOGETHER):
            ids = image_ids[start : start + IMAGES_TOGETHER]
            parts.append(retriever.retrieve(mean_features([store], ids, 1), ids))
            progress.advance(len(ids))
    return Words(*map(torch.cat, zip(*parts, strict=True)))


def _show_summary(manifest: Manifest, folder: Path) -> None:
    counts = manifest.counts
    rows = [
        ("images", f"{counts['num_images']:,}"),
        ("neighbours", f"{counts['num_neighbours']:,} of each"),
        ("words", f"{counts['num_words']:,} of each"),
        ("time", format_seconds(manifest.seconds)),
        ("size", format_bytes(sum(manifest.outputs.values()))),
        ("path", str(folder)),
    ]
    print_table("neighbours", rows)
