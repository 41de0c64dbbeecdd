"""Splits and ids of the rows of a table, from a hash and a split code for each row.

Random splits follow the hash of the file name and `--seed`: an image keeps its place in the order
of the hashes whatever else the table holds.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..datasets.checks import VAL_FRACTION
from ..datasets.listing import RandomSplit
from ..datasets.records import SPLITS
from ..stage.errors import DatasetError
from ..stage.ragged import Ints

TRAIN, VAL, TEST = range(len(SPLITS))
NO_SPLIT, LEFT_OUT = -1, -2  # codes of rows
MAX_HELD_OUT = 10_000  # images drawn for val, and for test
RANDOM_SPLIT = RandomSplit(max_images=MAX_HELD_OUT)
REPEATED = "with the name of an earlier one in the same archive"
IN_TWO_SPLITS = "in two splits"

Codes = npt.NDArray[np.int8]
Hashes = npt.NDArray[np.uint64]


@dataclass
class ImageRows:
    """The rows of a table: one for each image, or several if they are not consecutive.

    Attributes:
        codes: (N,) int8, index in `SPLITS`, or `LEFT_OUT`.
        repeats: (r,) int64, sorted rows of images that an earlier row has.
        firsts: (r,) int64, the first row of each of those images.
        left_out: reason → number of rows.
        warnings: about the splits.
    """

    codes: Codes
    repeats: Ints
    firsts: Ints
    left_out: Counter[str]
    warnings: list[str]

    def image_ids(self, rows: Ints) -> Ints:
        """Return the image ids of some rows: 1, 2, … in order of first appearance."""
        first = rows.copy()
        is_repeat = ~self.is_first(rows)
        first[is_repeat] = self.firsts[np.searchsorted(self.repeats, rows[is_repeat])]
        ids: Ints = first - np.searchsorted(self.repeats, first) + 1
        return ids

    def is_first(self, rows: Ints) -> npt.NDArray[np.bool_]:
        """Return whether no earlier row has the same image, for each of some rows."""
        places = np.searchsorted(self.repeats, rows)
        is_first: npt.NDArray[np.bool_] = places == np.searchsorted(self.repeats, rows, "right")
        return is_first


def arrange_rows(
    hashes: Hashes, codes: Codes, in_tar: npt.NDArray[np.bool_], seed: int, name: str
) -> ImageRows:
    """Find repeated images, and assign every image to a split.

    Args:
        hashes: (N,) uint64, of the file names.
        codes: (N,) int8, index in `SPLITS`, or `NO_SPLIT`; is changed.
        in_tar: (N,) whether an image lies in a tar; its name must not be repeated.
        seed: of the random splits.
        name: of the table, for errors.

    Raises:
        DatasetError: there are too few images, only some have a split, or none is in train.
    """
    repeats, firsts = _find_repeats(hashes)
    left_out = Counter[str]()
    for reason, is_bad in (
        (REPEATED, in_tar[repeats]),
        (IN_TWO_SPLITS, ~in_tar[repeats] & (codes[repeats] != codes[firsts])),
    ):
        codes[repeats[is_bad]] = LEFT_OUT
        left_out[reason] += int(is_bad.sum())
    rows = ImageRows(codes, repeats, firsts, +left_out, [])
    is_image = np.ones(len(codes), bool)
    is_image[repeats] = False
    num_without = int((codes[is_image] == NO_SPLIT).sum())
    num_images = int(is_image.sum())
    if 0 < num_without < num_images:
        raise DatasetError(
            f"{name}: {num_without:,} images have no split, but {num_images - num_without:,} do. "
            "Give all rows, or the names of all files, a split (train-*, val-*, test-*), or none."
        )
    if num_without:
        _draw_splits(hashes, codes, is_image, seed, name)
    _hold_out_val(rows, hashes, is_image, seed, name)
    is_used = codes[repeats] != LEFT_OUT
    codes[repeats[is_used]] = codes[firsts[is_used]]
    return rows


def _find_repeats(hashes: Hashes) -> tuple[Ints, Ints]:
    """Return the rows whose hash an earlier row has, sorted, and that first row of each."""
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    rows = np.flatnonzero(np.isin(hashes, repeated))
    _, first, group = np.unique(hashes[rows], return_index=True, return_inverse=True)
    first_rows = rows[first][group]
    is_repeat = rows != first_rows
    return rows[is_repeat], first_rows[is_repeat]


def _draw_splits(
    hashes: Hashes, codes: Codes, is_image: npt.NDArray[np.bool_], seed: int, name: str
) -> None:
    """Assign a random part of the images to val and test, the rest to train."""
    num_images = int(is_image.sum())
    if num_images < 2:
        raise DatasetError(
            f"{name} has {num_images} image with captions, expected at least 2: one for training "
            "and one for validation."
        )
    num_test = RANDOM_SPLIT.num_held_out(num_images)
    order = _mix(hashes, seed)
    codes[codes == NO_SPLIT] = TRAIN
    lowest = np.partition(order[is_image], max(1, num_test) - 1)[max(1, num_test) - 1]
    codes[is_image & (order <= lowest)] = VAL
    if num_test:
        highest = np.partition(order[is_image], num_images - num_test)[num_images - num_test]
        codes[is_image & (order >= highest)] = TEST


def _hold_out_val(
    rows: ImageRows, hashes: Hashes, is_image: npt.NDArray[np.bool_], seed: int, name: str
) -> None:
    """Move some train images to val if there is no val split."""
    is_train = is_image & (rows.codes == TRAIN)
    num_train = int(is_train.sum())
    if not num_train:
        found = sorted({SPLITS[code] for code in np.unique(rows.codes).tolist() if code >= 0})
        raise DatasetError(
            f"{name} has no train split, only {', '.join(found)}. Training and the vocabulary "
            "need it; add the files or the rows that define it."
        )
    if (rows.codes[is_image] == VAL).any() or num_train < 2:
        return
    num_val = min(max(1, int(num_train * VAL_FRACTION)), MAX_HELD_OUT)
    order = _mix(hashes, seed)
    rows.codes[is_train & (order <= np.partition(order[is_train], num_val - 1)[num_val - 1])] = VAL
    rows.warnings.append(
        f"{name} has no val split: {num_val:,} of its {num_train:,} train images are held out as "
        "val, chosen at random with --seed."
    )


def _mix(hashes: Hashes, seed: int) -> Hashes:
    """Return a random number for each hash that depends on the seed; different for each hash.

    Source: the finalizer of SplitMix64, Steele et al. 2014.
    """
    mixed = hashes ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
