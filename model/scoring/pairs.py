"""Finds the references of each candidate: by id, by file name, or by line."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice

from ...pipeline.datasets.caption_files import Captions, require_same_kind
from ...pipeline.stage.errors import DatasetError, MismatchError

INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # fits into 64 bits

SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # of image files


@dataclass(frozen=True)
class Pairs:
    """N candidates with their references, sorted by image.

    Attributes:
        ids: integers if all ids are integers, else texts.
        candidates: (N,) one caption for each image.
        references: (N,) at least one caption for each image.
        file_names: (N,) name of each image's file, None if it is unknown.
        num_without_candidate: images with references that are left out.
    """

    ids: tuple[int, ...] | tuple[str, ...]
    candidates: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    file_names: tuple[str | None, ...]
    num_without_candidate: int

    def __len__(self) -> int:
        return len(self.ids)


def pair_captions(candidates: Captions, references: Captions) -> Pairs:
    """Find the references of each candidate. Images without a candidate are left out.

    Raises:
        MismatchError: a candidate has no references, or the numbers of lines differ.
        DatasetError: an image has several candidates, or an empty reference.
    """
    require_same_kind(candidates, references)
    if candidates.has_ids:
        matches = _match_ids(candidates, references)
    else:
        _require_same_lines(candidates, references)
        matches = {key: key for key in candidates.texts}
    name_of = {key: name for name, key in references.file_names.items()}
    found, names = {}, {}
    for key, match in matches.items():
        texts = tuple(references.texts[match])
        if not references.has_ids:  # files of references may have lines of different numbers
            texts = tuple(text for text in texts if text.strip())
        _require_valid(key, candidates, texts, references)
        found[key] = candidates.texts[key][0], texts
        is_name = candidates.has_ids and not INTEGER.fullmatch(key)
        names[key] = name_of.get(match) or (key if is_name else None)
    is_integer = all(map(INTEGER.fullmatch, found))
    keys = sorted(found, key=int if is_integer else None)
    return Pairs(
        ids=tuple(map(int, keys)) if is_integer else tuple(keys),
        candidates=tuple(found[key][0] for key in keys),
        references=tuple(found[key][1] for key in keys),
        file_names=tuple(names[key] for key in keys),
        num_without_candidate=len(references.texts) - len(found),
    )


def _match_ids(candidates: Captions, references: Captions) -> dict[str, str]:
    """Return id of a candidate → id of its references.

    Candidates may also be named by the file names of the images, without their folder and suffix.

    Raises:
        MismatchError: a candidate has no references.
    """
    own, known = ({key: key for key in side.texts} for side in (candidates, references))
    names = references.file_names
    matches: dict[str, str] = {}
    for own_names, known_names in (
        (own, known),
        (own, names),
        (_by_stem(own), _by_stem(names or known)),
    ):
        matches = {key: known_names[name] for name, key in own_names.items() if name in known_names}
        if matches:
            break
    missing = [key for key in own if key not in matches]
    if missing and not matches:
        raise MismatchError(
            f"{candidates.source} and {references.source} have no image in common: their ids are "
            f"such as {_show(own)} and {_show(known)}. Name the same images in both."
        )
    if missing:
        raise MismatchError(
            f"{len(missing):,} of {len(own):,} images in {candidates.source} have no references in "
            f"{references.source}: {_show(missing)}. Remove them, or add their references."
        )
    return matches


def _by_stem(names: Mapping[str, str]) -> dict[str, str]:
    """Return file name without folders and suffix → id, or nothing if two are the same."""
    found = {SUFFIX.sub("", name.rpartition("/")[2]): key for name, key in names.items()}
    return found if len(found) == len(names) else {}


def _require_same_lines(candidates: Captions, references: Captions) -> None:
    """Check that two sources without ids have the same number of lines.

    Raises:
        MismatchError: they have not.
    """
    counts = len(candidates.texts), len(references.texts)
    if counts[0] != counts[1]:
        raise MismatchError(
            f"{candidates.source} has {counts[0]:,} lines and {references.source} has "
            f"{counts[1]:,}. Line i of both must belong to the same image."
        )


def _require_valid(
    key: str, candidates: Captions, texts: Collection[str], references: Captions
) -> None:
    """Check that an image has one candidate, and references with text.

    Raises:
        DatasetError: it has not.
    """
    image = f"image {key}" if candidates.has_ids else f"line {key}"
    found = candidates.texts[key]
    if len(found) != 1:
        problem = f"{len(found)} captions, expected one candidate"
        if not candidates.has_ids:
            problem += " a line; a tab separates captions"
        raise DatasetError(f"{candidates.source}: {image} has {problem}. Keep one.")
    if not texts:
        raise DatasetError(
            f"{references.source}: {image} has no references. Add one, or remove its candidate "
            f"from {candidates.source}."
        )
    if not all(map(str.strip, texts)):
        raise DatasetError(
            f"{references.source}: {image} has an empty reference. Fill it in, or remove it."
        )


def _show(ids: Collection[str]) -> str:
    """Return the first of some ids, for errors."""
    shown = ", ".join(islice(ids, 3))
    return shown if len(ids) <= 3 else f"{shown}, …"
