"""The feature store: all shards of a dataset as tensors, with rows found by image_id.

Pooled features are held in memory, or stay in their files; grid features are read from
memory-mapped files.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..pipeline.layout import IMAGES_INPUT
from ..pipeline.stage.artifacts import damaged, read_output, reading, require_stage
from ..pipeline.stage.command_line import command_of, data_option
from ..pipeline.stage.console import print_aside
from ..pipeline.stage.errors import MismatchError, MissingArtifactError
from ..pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ..pipeline.stage.memory import count_local_processes, memory_for_features
from .config import FeaturesConfig
from .grids import GridFiles, grid_name, grid_shape_of, open_grid
from .listed_shards import read_listed_shard, verify_shard
from .pooled_files import PooledFiles, open_shard, pooled_shape_of

HASHED_ROWS = 1024  # read together


@dataclass(frozen=True)
class FeatureStore:
    """The cached features of a dataset.

    Attributes:
        image_ids: (N,) int64, increasing.
        pooled: (N, V, D) float16, a tensor, or the files of a memory-mapped store.
        skipped: image_id → the reason why the image has no features.
        manifest: of the features stage.
        directory: the features folder.
        grids: (N, V, P, G) float16, memory-mapped; None without grid features.
    """

    image_ids: torch.Tensor
    pooled: torch.Tensor | PooledFiles
    skipped: dict[int, str]
    manifest: Manifest
    directory: Path
    grids: GridFiles | None = None

    @classmethod
    def find(
        cls, dataset_dir: str | Path, name: str | None = None, *, is_mapped: bool | None = False
    ) -> "FeatureStore":
        """Load the features of a dataset by name.

        Args:
            dataset_dir: `data/<dataset>`.
            name: `<encoder>-<weights>`; default the newest complete features.
            is_mapped: see `load`.

        Raises:
            MissingArtifactError: there are none, or none with this name.
            DamagedFileError: see `load`.
            MismatchError: see `load`.
        """
        return cls.load(find_features(Path(dataset_dir), name), is_mapped=is_mapped)

    @classmethod
    def load(cls, directory: str | Path, *, is_mapped: bool | None = False) -> "FeatureStore":
        """Read and verify all shards of `data/<dataset>/features/<name>`.

        Args:
            directory: of the features.
            is_mapped: leave the pooled features in their files, which `gather` maps into memory.
                All processes of a machine share them through the page cache. None does so if they
                do not fit into memory, or if torchrun has started several processes.

        Raises:
            MissingArtifactError: the stage has not finished, or a shard is missing.
            DamagedFileError: the manifest, a shard or images.parquet is damaged.
            MismatchError: the dataset has been prepared again with other images.
            StorageError: `is_mapped`, and the copy of a Parquet shard cannot be written.
        """
        directory = Path(directory)
        manifest = require_stage(directory, check_content=False)
        check_dataset(directory, manifest)
        with reading(directory / MANIFEST_NAME, MemoryError):
            shape = pooled_shape_of(manifest.counts)
            if is_mapped is None:
                num_bytes = math.prod(shape) * np.dtype(np.float16).itemsize
                is_mapped = num_bytes > memory_for_features() or count_local_processes() > 1
            grid_shape = grid_shape_of(manifest.counts)
            names = sorted(manifest.details["fingerprints"])
            image_ids = np.empty(shape[0], np.int64)
            views = np.empty((0 if is_mapped else shape[0], *shape[1:]), np.float16)
        files, maps, crcs = [], [], []
        skipped: dict[int, str] = {}
        stop = 0
        for name in names:
            verify_shard(directory / name, manifest)
            shard = read_listed_shard(directory / name, manifest, is_mapped=is_mapped)
            start, stop = stop, stop + len(shard.image_ids)
            if stop > shape[0]:
                break
            image_ids[start:stop] = shard.image_ids
            if not is_mapped:
                views[start:stop, 0] = shard.features
                if shard.views is not None:
                    views[start:stop, 1:] = shard.views
            elif start < stop:
                files.append(open_shard(directory / name, shard))
            if grid_shape is not None:
                maps.append(open_grid(directory / grid_name(name), shard, grid_shape))
                crcs.append(np.asarray(shard.grid_crc32))
            skipped.update(shard.skipped)
        if stop != shape[0] or np.any(image_ids[1:] <= image_ids[:-1]):
            raise damaged(
                directory / MANIFEST_NAME,
                f"the shards do not contain exactly its {shape[0]} images, ordered by id",
            )
        return cls(
            torch.from_numpy(image_ids),
            PooledFiles(tuple(files), shape) if is_mapped else torch.from_numpy(views),
            skipped,
            manifest,
            directory,
            GridFiles(tuple(maps), np.concatenate(crcs)) if maps else None,
        )

    @property
    def feature_dim(self) -> int:
        """D."""
        return int(self.pooled.shape[2])

    @property
    def num_views(self) -> int:
        """V."""
        return int(self.pooled.shape[1])

    @property
    def features(self) -> torch.Tensor:
        """(N, D) float16, of the first view; row i belongs to image_ids[i]."""
        return self.views[:, 0]

    @property
    def views(self) -> torch.Tensor:
        """(N, V, D) float16, the features of all views; a mapped store reads them into memory."""
        return self.read(0, len(self.image_ids))

    def read(self, start: int, stop: int, num_views: int | None = None) -> torch.Tensor:
        """Return the features of consecutive rows in their first views, or all: (n, V, D) float16.

        A mapped store reads them from its files into memory.
        """
        if isinstance(self.pooled, torch.Tensor):
            return self.pooled[start:stop, :num_views]
        return torch.from_numpy(self.pooled.read(start, stop, num_views))

    def gather(self, rows: torch.Tensor, views: torch.Tensor | None = None) -> torch.Tensor:
        """Return the pooled features of some images.

        Args:
            rows: (n,) int64, from `rows`, in any order; may repeat.
            views: (n,) int64, the view of each, 0 to V-1; default the first.

        Returns:
            (n, D) float16, on the CPU.
        """
        views = torch.zeros_like(rows) if views is None else views
        if isinstance(self.pooled, torch.Tensor):
            return self.pooled[rows, views]
        return torch.from_numpy(self.pooled.gather(rows.numpy(), views.numpy()))

    @property
    def grid_shape(self) -> tuple[int, int] | None:
        """(P, G); None without grid features."""
        return self.grids.shape if self.grids else None

    @cached_property
    def sha256(self) -> str:
        """Hash of the ids and features, in hex; equal for all shard formats.

        Grid features enter by their checksums, because reading them would take too long.
        """
        digest = hashlib.sha256(self.image_ids.numpy().data)
        for start in range(0, len(self.image_ids), HASHED_ROWS):
            stop = min(start + HASHED_ROWS, len(self.image_ids))
            digest.update(self.read(start, stop).numpy().data)
        if self.grids is not None:
            digest.update(self.grids.crc32.data)
        return digest.hexdigest()

    @property
    def backbone(self) -> dict[str, Any]:
        """Everything needed to load the same backbone again, as JSON values.

        Inference must use the same values, except for `precision`, which depends on the hardware.
        """
        with reading(self.directory / MANIFEST_NAME):
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
        """Return which of the images (n,) have features: (n,) bool.

        Skipped images and images of other datasets have none.
        """
        return torch.from_numpy(self._find(to_numpy(image_ids))[1])

    def rows(self, image_ids: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
        """Return the rows of `features` that belong to the images.

        Args:
            image_ids: (n,) int64, in any order; may repeat.

        Returns:
            (n,) int64.

        Raises:
            MismatchError: some of the images have no features; see `has`.
        """
        wanted = to_numpy(image_ids)
        rows, found = self._find(wanted)
        if not found.all():
            raise MismatchError(self._describe_absent(np.unique(wanted[~found])))
        return torch.from_numpy(rows)

    def gather_grid(self, rows: torch.Tensor, views: torch.Tensor | None = None) -> torch.Tensor:
        """Read the grid features of some images from the disk.

        Args:
            rows: (n,) int64, from `rows`, in any order; may repeat.
            views: (n,) int64, the view of each, 0 to V-1; default the first.

        Returns:
            (n, P, G) float16, on the CPU.

        Raises:
            MissingArtifactError: there are no grid features.
        """
        if self.grids is None:
            command = extend_command(self, self.num_views, grid=True)
            raise MissingArtifactError(f"{self.directory} has no grid features. Run '{command}'.")
        row_index = rows.cpu().numpy()
        view_index = np.zeros_like(row_index) if views is None else views.cpu().numpy()
        return torch.from_numpy(self.grids.gather(row_index, view_index))

    def _find(
        self, wanted: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return the row of each id, (n,) int64, and whether the id exists, (n,) bool."""
        rows = np.searchsorted(self._ids, wanted)
        found = np.zeros(len(wanted), bool)
        inside = rows < len(self._ids)
        found[inside] = self._ids[rows[inside]] == wanted[inside]
        return rows, found

    def _describe_absent(self, absent: npt.NDArray[np.int64]) -> str:
        num_skipped = sum(int(image_id) in self.skipped for image_id in absent)
        text = f"{self.directory} has no features of {len(absent)} images, e.g. {absent[0]}"
        if num_skipped == len(absent):
            return f"{text}: {self.skipped[int(absent[0])]}. Fix the images, or leave them out."
        return (
            f"{text}, which is not among the skipped images either. The features may belong to "
            f"another dataset. Run '{features_command(self.directory, self.manifest)}'."
        )


def to_numpy(image_ids: npt.ArrayLike | torch.Tensor) -> npt.NDArray[np.int64]:
    """Convert a list, an array, or a tensor on any device to (n,) int64."""
    if isinstance(image_ids, torch.Tensor):
        image_ids = image_ids.cpu().numpy()
    return np.asarray(image_ids, np.int64)


def find_features(dataset_dir: Path, name: str | None = None, *, is_quiet: bool = False) -> Path:
    """Return the folder of the features to train on; print which, if there are several.

    Args:
        dataset_dir: `data/<dataset>`.
        name: `<encoder>-<weights>`; default the newest features.
        is_quiet: print nothing.

    Raises:
        MissingArtifactError: there are none, none with this name, or a file of them is missing.
        DamagedFileError: they are damaged. Others are not taken instead.
    """
    root = dataset_dir / "features"
    manifests = sorted(root.glob(f"*/{MANIFEST_NAME}"), key=lambda path: path.stat().st_mtime_ns)
    names = [path.parent.name for path in manifests]
    if name in names or (name is None and names):
        directory = root / (name or names[-1])
        require_stage(directory, check_content=False)
        if name is None and len(names) > 1 and not is_quiet:
            print_aside(f"Using the newest features, {names[-1]}; choose others with --features.")
        return directory
    fix = f"Run '{features_command(root / (name or 'any'))}' first."
    if name is None:
        raise MissingArtifactError(f"{root} has no finished features. {fix}")
    known = ", ".join(sorted(names)) or "none"
    raise MissingArtifactError(
        f"{root / name} has no finished features. Available features: {known}. {fix}"
    )


def check_dataset(directory: Path, manifest: Manifest) -> None:
    """Check that the features belong to the current image list of the dataset.

    The vocabulary does not matter: preparing the captions with another one keeps the features.

    Raises:
        DamagedFileError: the image list is damaged.
        MismatchError: with the command that updates the features.
    """
    path = directory.parents[1] / IMAGES_INPUT
    if not path.exists():
        return
    with reading(directory / MANIFEST_NAME):
        expected = manifest.inputs[IMAGES_INPUT]
    found = hashlib.sha256(read_output(path)).hexdigest()
    if found != expected:
        raise MismatchError(
            f"{directory} was computed for another image list: {path} has the sha256 "
            f"{found[:12]}…, expected {expected[:12]}…. "
            f"Run '{features_command(directory, manifest)}'."
        )


def require_views(store: FeatureStore, num_views: int, grid: bool = False) -> None:
    """Check that the features have as many views as needed.

    Args:
        store: the cached features.
        num_views: the number of views needed.
        grid: whether grid features are needed as well; they enter the suggested command.

    Raises:
        MissingArtifactError: fewer views are cached.
    """
    if num_views > store.num_views:
        raise MissingArtifactError(
            f"{store.directory} has {store.num_views} views of each image, --views (or the "
            f"--preset) needs {num_views}. Run '{extend_command(store, num_views, grid)}' first, "
            f"or use --views {store.num_views}."
        )


def features_command(directory: Path, manifest: Manifest | None = None, **extras: Any) -> str:
    """Return the command that computes the features in `directory`, as far as it is known.

    Args:
        directory: the features folder.
        manifest: of the features.
        extras: options of `FeaturesConfig` that replace those of the manifest.
    """
    options: dict[str, Any] = {}
    if manifest is not None:
        known = ("encoder", "image_size", "views", "grid", "format", "shard_size")
        options = {name: manifest.config[name] for name in known if name in manifest.config}
        options["weights"] = manifest.details.get("weights", manifest.config.get("weights"))
    data, dataset = directory.absolute().parents[2], directory.parents[1].name
    config = FeaturesConfig(data=data, dataset=dataset, **(options | extras))
    return f"showtell {command_of('features', config)}{data_option(data)}"


def extend_command(store: FeatureStore, num_views: int, grid: bool) -> str:
    """Return the command that adds views or grid features to those that are cached."""
    views = max(num_views, store.num_views)
    has_grid = grid or store.grid_shape is not None
    return features_command(store.directory, store.manifest, views=views, grid=has_grid)
