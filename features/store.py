"""All feature shards of a dataset as one tensor: image_id → row. Grids stay on disk."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..pipeline.layout import IMAGES_INPUT
from ..pipeline.stage.errors import BadShardError, MismatchError, MissingArtifactError
from ..pipeline.stage.files import hash_file
from ..pipeline.stage.manifest import MANIFEST_NAME, Manifest
from .grids import GridFiles, GridMap, grid_name, open_grid
from .shards import MEND, read_shard


@dataclass(frozen=True)
class FeatureStore:
    """The cached features of a dataset, in memory; its grids through memory maps.

    Attributes:
        image_ids: (N,) int64, increasing.
        features: (N, D) float16, of the pictures themselves; row i belongs to image_ids[i].
        skipped: image_id → why the image has no features.
        manifest: of the stage that computed them.
        directory: where they were read from.
        all_views: (N, V, D) float16, `features` the first of them; None where V is 1.
        grids: (N, V, R, D) float16 on disk; None where there are none.
    """

    image_ids: torch.Tensor
    features: torch.Tensor
    skipped: dict[int, str]
    manifest: Manifest
    directory: Path
    all_views: torch.Tensor | None = None
    grids: GridFiles | None = None

    @classmethod
    def load(cls, directory: Path) -> "FeatureStore":
        """Read and verify all shards of `data/<dataset>/features/<name>`.

        Raises:
            MissingArtifactError: the stage is not done, or a shard is gone.
            BadShardError: a shard is damaged, or not the one that the manifest speaks of.
            MismatchError: the dataset has been prepared again, from other images.
        """
        manifest = Manifest.require(directory, mending_command(directory))
        check_dataset(directory, manifest)
        num_images, feature_dim = manifest.counts["num_images"], manifest.counts["feature_dim"]
        num_views = manifest.counts.get("num_views", 1)
        num_places = manifest.counts.get("grid_places")
        image_ids = np.empty(num_images, np.int64)
        views = np.empty((num_images, num_views, feature_dim), np.float16)
        maps: list[GridMap] = []
        crcs: list[npt.NDArray[np.uint32]] = []
        skipped: dict[int, str] = {}
        fingerprints = manifest.details["fingerprints"]
        stop = 0
        for name in sorted(fingerprints):
            shard = read_shard(directory / name, feature_dim)
            start, stop = stop, stop + len(shard.image_ids)
            is_known = shard.fingerprint == fingerprints[name] and shard.num_views == num_views
            if stop > num_images or not is_known:
                raise BadShardError(
                    f"{directory / name}: it is not the shard that {MANIFEST_NAME} speaks of. "
                    f"{MEND}"
                )
            image_ids[start:stop] = shard.image_ids
            views[start:stop, 0] = shard.features
            if shard.views is not None:
                views[start:stop, 1:] = shard.views
            if num_places is not None:
                maps.append(open_grid(directory / grid_name(name), shard, num_places))
                crcs.append(np.asarray(shard.grid_crc32))
            skipped.update(shard.skipped)
        if stop != num_images or np.any(image_ids[1:] <= image_ids[:-1]):
            raise BadShardError(
                f"{directory}: the shards hold {stop} images in some order, expected {num_images} "
                f"in the order of their ids. Delete the folder and run 'showtell features'."
            )
        all_views = torch.from_numpy(views)
        return cls(
            torch.from_numpy(image_ids),
            all_views[:, 0],
            skipped,
            manifest,
            directory,
            all_views if num_views > 1 else None,
            GridFiles(tuple(maps), np.concatenate(crcs)) if maps else None,
        )

    @property
    def feature_dim(self) -> int:
        """D."""
        return int(self.features.shape[1])

    @property
    def views(self) -> torch.Tensor:
        """(N, V, D) float16, of all views of the pictures."""
        return self.features[:, None] if self.all_views is None else self.all_views

    @property
    def num_views(self) -> int:
        """V."""
        return int(self.views.shape[1])

    @property
    def grid_shape(self) -> tuple[int, int] | None:
        """(R, D); None where no grids are cached."""
        return self.grids.shape if self.grids else None

    @cached_property
    def sha256(self) -> str:
        """Of the ids and features themselves, in hex: the same for both shard formats.

        Grids count by their checksums: there may be too many of them to read.
        """
        digest = hashlib.sha256(self.image_ids.numpy().data)
        digest.update(self.views.numpy().data)
        if self.grids is not None:
            digest.update(self.grids.crc32.data)
        return digest.hexdigest()

    @property
    def backbone(self) -> dict[str, Any]:
        """What made them: all that `load_backbone` needs, and what must be equal at inference.

        All but the precision, which may be another where the hardware is.
        """
        return {
            "encoder": self.manifest.config["encoder"],
            "weights": self.manifest.details["weights"],
            "image_size": self.manifest.config["image_size"],
            "weights_sha256": self.manifest.inputs["weights"],
            "transform": self.manifest.details["transform"],
            "precision": self.manifest.config.get("precision"),
        }

    @cached_property
    def _ids(self) -> npt.NDArray[np.int64]:
        ids: npt.NDArray[np.int64] = self.image_ids.cpu().numpy()
        return ids

    def has(self, image_ids: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
        """Which of these images have features.

        Args:
            image_ids: (n,) int64.

        Returns:
            (n,) bool. False for skipped images and for those of other datasets.
        """
        return torch.from_numpy(self._find(to_numpy(image_ids))[1])

    def rows(self, image_ids: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
        """Rows of `features` that belong to these images.

        Args:
            image_ids: (n,) int64, in any order, repeated or not.

        Returns:
            (n,) int64.

        Raises:
            MismatchError: some of the images have no features; `has` tells which.
        """
        wanted = to_numpy(image_ids)
        rows, found = self._find(wanted)
        if not found.all():
            raise MismatchError(self._describe_absent(np.unique(wanted[~found])))
        return torch.from_numpy(rows)

    def gather_grid(self, rows: torch.Tensor, views: torch.Tensor | None = None) -> torch.Tensor:
        """Read the grids of some images from the disk.

        Args:
            rows: (n,) int64, as `rows` gives them, in any order, repeated or not.
            views: (n,) int64, the view of each, below V; default the pictures themselves.

        Returns:
            (n, R, D) float16, on the CPU.

        Raises:
            MissingArtifactError: no grids are cached.
        """
        if self.grids is None:
            command = mending_command(self.directory, self.manifest)
            raise MissingArtifactError(f"{self.directory} has no grids. Run '{command} --grid'.")
        wanted = rows.cpu().numpy()
        seen = np.zeros_like(wanted) if views is None else views.cpu().numpy()
        return torch.from_numpy(self.grids.gather(wanted, seen))

    def _find(
        self, wanted: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Rows (n,) int64 where the ids would be, and whether (n,) bool they are there."""
        rows = np.searchsorted(self._ids, wanted)
        found = np.zeros(len(wanted), bool)
        inside = rows < len(self._ids)
        found[inside] = self._ids[rows[inside]] == wanted[inside]
        return rows, found

    def _describe_absent(self, absent: npt.NDArray[np.int64]) -> str:
        num_skipped = sum(int(image_id) in self.skipped for image_id in absent)
        text = f"{self.directory} has no features of {len(absent)} images, e.g. {absent[0]}"
        if num_skipped == len(absent):
            return f"{text}: {self.skipped[int(absent[0])]}. Mend them, or leave them out."
        return (
            f"{text}, which it has not even skipped: do the features belong to another dataset? "
            f"Run '{mending_command(self.directory, self.manifest)}'."
        )


def to_numpy(image_ids: npt.ArrayLike | torch.Tensor) -> npt.NDArray[np.int64]:
    """(n,) int64 from a list, an array, or a tensor on any device."""
    if isinstance(image_ids, torch.Tensor):
        image_ids = image_ids.cpu().numpy()
    return np.asarray(image_ids, np.int64)


def find_features(dataset_dir: Path, name: str | None = None) -> Path:
    """Folder of the features to train on.

    Args:
        dataset_dir: `data/<dataset>`.
        name: `<encoder>-<weights>`; default the newest that are complete.

    Raises:
        MissingArtifactError: there are none, or none of this name.
    """
    root = dataset_dir / "features"
    times = {
        path.parent.name: path.stat().st_mtime_ns
        for path in root.glob(f"*/{MANIFEST_NAME}")
        if is_complete(path.parent)
    }
    if name is None and times:
        return root / max(times, key=lambda known: (times[known], known))
    if name is not None and name in times:
        return root / name
    mend = f"Run '{mending_command(root / (name or 'any'))}' first."
    if name is None:
        raise MissingArtifactError(f"{root} holds no finished features. {mend}")
    known = ", ".join(sorted(times)) or "none"
    raise MissingArtifactError(
        f"{root / name} holds no finished features; there are: {known}. {mend}"
    )


def is_complete(directory: Path) -> bool:
    """Whether the stage has ended and all of its shards are there."""
    manifest = Manifest.read(directory)
    return manifest is not None and not manifest.missing_outputs(directory)


def check_dataset(directory: Path, manifest: Manifest) -> None:
    """Refuse features of an image list that is not that of the prepared captions.

    The vocabulary does not matter: preparing again with another one keeps the features.

    Raises:
        MismatchError: with the command that brings the features up to date.
    """
    path = directory.parents[1] / IMAGES_INPUT
    expected = manifest.inputs[IMAGES_INPUT]
    if path.exists() and (found := hash_file(path)) != expected:
        raise MismatchError(
            f"{directory} was computed for another image list: {path} has the sha256 "
            f"{found[:12]}…, expected {expected[:12]}…. "
            f"Run '{mending_command(directory, manifest)}'."
        )


def require_views(store: FeatureStore, num_views: int, grid: bool = False) -> None:
    """Refuse features of too few views.

    Args:
        store: what is cached.
        num_views: what is asked for.
        grid: whether grids are too, for the command that brings both.

    Raises:
        MissingArtifactError: fewer views are cached.
    """
    if num_views > store.num_views:
        raise MissingArtifactError(
            f"{store.directory} holds {store.num_views} views of each image, --views (or the "
            f"--preset) asks for {num_views}. Run '{extending_command(store, num_views, grid)}' "
            f"first, or go on with --views {store.num_views}."
        )


def extending_command(store: FeatureStore, num_views: int, grid: bool) -> str:
    """The command that adds to what is cached what it lacks of these."""
    wanted = {
        "views": max(num_views, store.num_views),
        "grid": grid or store.grid_shape is not None,
    }
    manifest = replace(store.manifest, config=store.manifest.config | wanted)
    return mending_command(store.directory, manifest)


def kept_precision(manifest: Manifest) -> str | None:
    """int8, where features are in it: others of the same images would be some per cent off."""
    return "int8" if manifest.config.get("precision") == "int8" else None


def mending_command(directory: Path, manifest: Manifest | None = None) -> str:
    """The command that computes the features in `directory`, as far as it is known."""
    command = f"showtell features --dataset {directory.parents[1].name}"
    if manifest is None:
        return command
    options = {
        "encoder": manifest.config["encoder"],
        "weights": manifest.details["weights"],
        "format": manifest.config["format"],
        "image-size": manifest.config["image_size"],
        "views": manifest.config.get("views"),
        "precision": kept_precision(manifest),
    }
    given = [f" --{name} {value}" for name, value in options.items() if value is not None]
    return command + "".join(given) + (" --grid" if manifest.config.get("grid") else "")
