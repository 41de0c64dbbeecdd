"""The manifest of a features folder: what the features were computed from, and what they hold.

`manifest.json` has the fields of `pipeline/stage/manifest.py`; those of this stage are:
    config       encoder, weights, image_size, precision, format, shard_size [, views] [, grid]
    inputs       captions/images.parquet: sha256; images: hash of all file stamps; weights: sha256
    counts       num_images, num_skipped, feature_dim, num_shards [, num_views] [, grid_places]
                 [, grid_dim]
    details      source, weights (file names absolute), backbone, transform, fingerprints by shard;
                 of the last run: device, num_computed, images_per_second, shares
Fields in brackets exist only with more than one view, or with grid features; grid_dim
only if it differs from feature_dim.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..pipeline.layout import IMAGES_INPUT
from ..pipeline.stage.files import hash_file, hash_json
from ..pipeline.stage.manifest import Manifest
from .config import FeaturesConfig
from .encoders.family import is_weights_file
from .encoders.network import NetworkInfo
from .layout import absolute_weights, weights_label
from .plan import RETRY, ImageList, ShardJob, Skipped, is_limited

VERSION = 1


def read_manifest(directory: Path) -> Manifest | None:
    """Read the manifest of a features folder; None if it is missing, damaged or incomplete.

    Manifests of earlier versions have no checksum, so missing entries are detected here.
    """
    manifest = Manifest.read(directory)
    if manifest is None or not isinstance(manifest.details.get("fingerprints"), dict):
        return None
    has_counts = {"num_images", "feature_dim"} <= manifest.counts.keys()
    has_network = {"weights", "transform"} <= manifest.details.keys()
    has_inputs = {IMAGES_INPUT, "images", "weights"} <= manifest.inputs.keys()
    return manifest if has_counts and has_network and has_inputs else None


def is_up_to_date(
    done: Manifest, directory: Path, config: FeaturesConfig, images: ImageList
) -> bool:
    """Whether the features are complete and match; loads no weights and decodes no image."""
    # With `auto`, features that another machine computed in its precision are up to date as well.
    precision = done.config.get("precision") if config.precision == "auto" else config.precision
    inputs = describe_inputs(images, config, weights_sha256=done.inputs.get("weights", ""))
    if not any(images.stamps):
        # All images have been deleted since; the features remain valid.
        inputs["images"] = done.inputs.get("images", "")
    options = describe_options(config) | {"precision": precision}
    if is_limited(done.skipped, config.max_pixels):
        return False
    return done.matches(directory, VERSION, options, inputs)


def describe_network(config: FeaturesConfig, network: NetworkInfo) -> list[Any]:
    """Return the part of a shard's fingerprint that identifies the network, as a JSON value."""
    described = [
        VERSION,
        config.encoder,
        network.weights_sha256,
        network.transform.describe(),
        config.precision,
    ]
    extras = describe_extras(config)
    return [*described, extras] if extras else described


def describe_features(
    config: FeaturesConfig,
    images: ImageList,
    network: NetworkInfo,
    jobs: Sequence[ShardJob],
    skipped: Mapping[str, Skipped],
) -> Manifest:
    """Return the manifest, without `outputs`, `seconds` and the details of this run.

    Args:
        config: the stage's options, with the precision used.
        images: of the dataset.
        network: that computed them.
        jobs: all shards.
        skipped: name of each shard → its skipped images.
    """
    names = dict(zip(images.image_ids.tolist(), images.file_names, strict=True))
    left_out = [(names[image_id], why) for job in jobs for image_id, why in skipped[job.name]]
    fingerprints = {job.name: job.final_fingerprint(skipped[job.name], images) for job in jobs}
    inputs = describe_inputs(images, config, network.weights_sha256)
    if any(fingerprint.startswith(RETRY) for fingerprint in fingerprints.values()):
        inputs["images"] += f" {RETRY}"  # so that the next run is not up to date
    return Manifest(
        stage="features",
        version=VERSION,
        config=describe_options(config),
        inputs=inputs,
        outputs={},
        counts={
            "num_images": len(images) - len(left_out),
            "num_skipped": len(left_out),
            "feature_dim": network.feature_dim,
            "num_shards": len(jobs),
            **({"num_views": config.views} if config.views > 1 else {}),
            **(count_grid(network) if config.grid else {}),
        },
        skipped=tuple(left_out),
        details={
            "source": images.source,
            "weights": absolute_weights(config.weights),
            "backbone": network.name,
            "transform": network.transform.describe(),
            "fingerprints": fingerprints,
        },
    )


def count_grid(network: NetworkInfo) -> dict[str, int]:
    """Return the counts of the grid features, from which `grid_shape_of` returns their shape."""
    width = network.grid_dim
    is_other = width != network.feature_dim
    return {"grid_places": network.num_cells} | ({"grid_dim": width} if is_other else {})


def describe_options(config: FeaturesConfig) -> dict[str, Any]:
    """Return the options that the features depend on."""
    return describe_extras(config) | {
        "encoder": config.encoder,
        "weights": weights_label(config.weights),
        "image_size": config.image_size,
        "precision": config.precision,
        "format": config.format,
        "shard_size": config.shard_size,
    }


def describe_extras(config: FeaturesConfig) -> dict[str, Any]:
    """Return the options for additional views and grid features.

    Options at their default are left out, so that features from before they existed stay valid.
    """
    views = {"views": config.views} if config.views > 1 else {}
    return views | ({"grid": True} if config.grid else {})


def describe_inputs(
    images: ImageList, config: FeaturesConfig, weights_sha256: str
) -> dict[str, str]:
    """Return name → fingerprint of everything that the features are computed from.

    Args:
        images: of the dataset.
        config: if its weights are a file, the file is hashed.
        weights_sha256: the hash of weights that have a name, which never changes.
    """
    is_file = is_weights_file(config.weights)
    return {
        IMAGES_INPUT: images.sha256,
        "images": hash_json(images.stamps),
        "weights": hash_file(Path(config.weights)) if is_file else weights_sha256,
    }
