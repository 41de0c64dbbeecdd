"""The eval stage: decode a split with a run, or several together, score it by the official scorers.

data/runs/<run>/eval/<split>-<decoding>/            of one run
data/ensembles/<run>+<run>+…/eval/<split>-<decoding>/  of several, in the order of their names
  metrics.json   scores as fractions under pycocoevalcap's names, their 95 % intervals, num_images,
                 images_per_second
  scores.npz     what each image contributes, for `compare`
  captions.json  COCO's result format: [{"image_id": int, "caption": str}, …]
  nbest.json     with --n-best N, best first:
                 [{"image_id": int, "captions": [{"caption": str, "log_prob": float,
                 "score": float}, …]}, …], in the order of `score`

<decoding> is `beam<K>` or `sample`, and each option that is not as by default: `beam5-ngram2`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..features.device import choose_device, keep_freed_memory
from ..features.store import FeatureStore, require_views
from ..pipeline.captions import read_images, read_references
from ..pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET, VOCAB_JSON
from ..pipeline.stage.console import (
    ProgressLine,
    format_seconds,
    print_note,
    print_table,
    print_warning,
)
from ..pipeline.stage.errors import MismatchError, MissingArtifactError
from ..pipeline.stage.files import hash_file, locked, write_json
from ..pipeline.stage.manifest import Manifest
from ..pipeline.stage.stopwatch import Stopwatch
from ..pipeline.text.vocab import Vocab
from .config import EvalConfig
from .decoders.base import Decoder
from .decoders.ensemble import join_decoders
from .decoders.precision import Precision
from .generation.consensus import Consensus, mean_features
from .generation.generate import CaptionModel, Features, choose_batch_size, decode, iterate_members
from .generation.hypothesis import Hypothesis, rank_hypotheses
from .metrics.bootstrap import intervals
from .metrics.image_scores import SCORES_NAME
from .metrics.metric import CaptionSet, Metric
from .metrics.official import OfficialScorer
from .metrics.registry import choose_metrics, score_metrics
from .runs.layout import BEST_NAME
from .runs.run import RunConfig, choose_run, load_run, load_run_features

VERSION = 3
METRICS_NAME, CAPTIONS_NAME, NBEST_NAME = "metrics.json", "captions.json", "nbest.json"


def evaluate(config: EvalConfig) -> Manifest:
    """Caption every image of a split, and score the captions against its references.

    Raises:
        MissingArtifactError: no such run, split or features.
        MismatchError: captions, vocabulary or features are not those of the run, or the runs do
            not share them.
        ScorerError: Java cannot run the tokenizer or METEOR.
    """
    runs = sorted(config.run) if config.run else [None]
    members = [Member.load(config.data, run, config.dataset) for run in runs]
    check_members(members)
    for member in members:
        require_views(member.store, config.views)
    whole_dir, run = _results_dir(config.data, members), members[0].run
    captions_dir = config.data / run.dataset / "captions"
    prepared = Manifest.require(captions_dir, f"showtell prepare --dataset {run.dataset}")
    _check_vocab(captions_dir, run, members[0].run_dir)
    split, image_ids = _choose_images(captions_dir, config.split)
    eval_dir = whole_dir / "eval" / f"{split}-{config.decoding_name}"
    stage_config = config.result_options() | {"run": whole_dir.name, "split": split}
    inputs = {name: hash_file(captions_dir / name) for name in prepared.outputs}
    for member in members:
        prefix = f"{member.run_dir.name}/" if len(members) > 1 else ""
        inputs[prefix + BEST_NAME] = hash_file(member.run_dir / BEST_NAME)
        inputs[prefix + "features"] = member.store.sha256
    metrics = choose_metrics(spice=config.spice, clip=config.clip)
    inputs |= {key: value for metric in metrics for key, value in metric.inputs().items()}
    names = [METRICS_NAME, CAPTIONS_NAME, SCORES_NAME] + [NBEST_NAME] * (config.n_best > 1)
    with locked(eval_dir):
        manifest = Manifest.read(eval_dir)
        if manifest and manifest.matches(eval_dir, VERSION, stage_config, inputs):
            print_note(f"eval: {eval_dir} is up to date.")
        else:
            decoded = _decode_and_score(config, members, image_ids, captions_dir, eval_dir, metrics)
            for metric in metrics:
                if metric.name not in decoded.scores:  # it failed: the next eval tries again
                    inputs = {key: inputs[key] for key in inputs if key not in metric.inputs()}
            manifest = Manifest(
                stage="eval",
                version=VERSION,
                config=stage_config,
                inputs=inputs,
                outputs={name: (eval_dir / name).stat().st_size for name in names},
                counts={"num_images": decoded.num_images},
                seconds=round(decoded.seconds, 3),
                details={"dataset": run.dataset},
            ).write(eval_dir)
    _show(eval_dir, captions_dir, config.num_samples)
    return manifest


@dataclass(frozen=True)
class Member:
    """A run that takes part in the decoding, alone or with others.

    Attributes:
        run_dir: its folder.
        run: what it is.
        store: the features that it was trained on.
    """

    run_dir: Path
    run: RunConfig
    store: FeatureStore

    @classmethod
    def load(cls, data: Path, name: str | None, dataset: str | None = None) -> "Member":
        """Find a run by name, None the newest, and its features; the weights are not read yet."""
        run_dir = choose_run(data, name, dataset)
        run = RunConfig.read(run_dir)
        return cls(run_dir, run, load_run_features(data, run))


def check_members(members: Sequence[Member]) -> None:
    """Refuse runs that cannot write a caption together.

    Raises:
        MismatchError: another dataset or another vocabulary; both runs are named.
    """
    first = members[0]
    for other in members[1:]:
        for what, name in (("dataset", "dataset"), ("vocabulary", "vocab_sha256")):
            one, two = getattr(first.run, name), getattr(other.run, name)
            if one != two:
                raise MismatchError(
                    f"runs {first.run_dir.name} and {other.run_dir.name} cannot be averaged: their "
                    f"{what} is {one[:12]} and {two[:12]}. Give runs that share it, or train one "
                    f"of them again."
                )


def _results_dir(data: Path, members: Sequence[Member]) -> Path:
    """The run's own folder, or that of the ensemble."""
    if len(members) == 1:
        return members[0].run_dir
    return data / "ensembles" / "+".join(member.run_dir.name for member in members)


def _check_vocab(captions_dir: Path, run: RunConfig, run_dir: Path) -> None:
    vocab = Vocab.read(captions_dir / VOCAB_JSON)
    if vocab.sha256 != run.vocab_sha256:
        raise MismatchError(
            f"{captions_dir / VOCAB_JSON} has {len(vocab):,} words and hash {vocab.sha256[:12]}, "
            f"the run {run_dir.name} was trained with {run.decoder.vocab_size:,} and "
            f"{run.vocab_sha256[:12]}. Run 'showtell prepare --dataset {run.dataset}' with the "
            f"options of the run again, or train another run."
        )


def _choose_images(captions_dir: Path, split: str | None) -> tuple[str, NDArray[np.int64]]:
    """The split to evaluate and its image ids, (N,) int64."""
    images = read_images(captions_dir / IMAGES_PARQUET)
    split = split or ("test" if "test" in images.splits else "val")
    image_ids = images.select(split)
    if not len(image_ids):
        raise MissingArtifactError(
            f"{captions_dir} has no {split} images. Choose among "
            f"{', '.join(sorted(set(images.splits)))} with --split."
        )
    return split, image_ids


@dataclass(frozen=True)
class _Decoded:
    num_images: int
    seconds: float
    scores: frozenset[str]


def _decode_and_score(
    config: EvalConfig,
    members: Sequence[Member],
    image_ids: NDArray[np.int64],
    captions_dir: Path,
    eval_dir: Path,
    metrics: Sequence[Metric],
) -> _Decoded:
    """Write `captions.json`, `nbest.json` where asked for, `scores.npz` and `metrics.json`."""
    watch = Stopwatch()
    keep_freed_memory()
    precision = Precision(config.precision, choose_device(config.device))
    has_features = torch.stack([member.store.has(image_ids) for member in members]).all(0).numpy()
    num_without = int((~has_features).sum())
    if num_without:
        print_warning(
            f"{num_without} of {len(image_ids)} images have no features (unreadable, see "
            f"'showtell status'): they are neither captioned nor scored."
        )
        image_ids = image_ids[has_features]
    if not len(image_ids):
        raise MissingArtifactError(
            f"{members[0].store.directory} has features of no image of this split: there is "
            f"nothing to caption. Mend the images, then run 'showtell features' again."
        )
    references = read_references(captions_dir / CAPTIONS_PARQUET, "caption", image_ids)
    with ExitStack() as stack:
        scorer, on_cpu = OfficialScorer(references), precision.device.type == "cpu"
        if not on_cpu:
            # Its JVMs start while the GPU decodes; on a CPU they would take the decoder's cores.
            stack.enter_context(scorer)
        with watch.part("decode"):
            vocab, found = _decode(config, members, image_ids, captions_dir, precision)
        hypotheses = {i: vocab.decode(best[0].token_ids) for i, best in found.items()}
        # Written before scoring: what was decoded is not lost if Java fails.
        results = [{"image_id": i, "caption": caption} for i, caption in hypotheses.items()]
        write_json(eval_dir / CAPTIONS_NAME, results)
        if config.n_best > 1:
            write_json(eval_dir / NBEST_NAME, _describe_nbest(found, vocab))
        if on_cpu:
            stack.enter_context(scorer)
        with watch.part("score"):
            official = scorer.score(hypotheses)
            captions = CaptionSet(
                hypotheses, official.hypotheses, official.references, captions_dir
            )
            images = official.images.with_means(score_metrics(metrics, captions))
            images.write(eval_dir / SCORES_NAME)
    values = {
        **(images.of_all() | official.scores),
        "intervals": intervals(images),
        "num_images": len(image_ids),
        "num_images_without_features": num_without,
        "images_per_second": round(len(image_ids) / watch.parts["decode"], 2),
        "decode_seconds": round(watch.parts["decode"], 3),
        "score_seconds": round(watch.parts["score"], 3),
    }
    write_json(eval_dir / METRICS_NAME, values)
    return _Decoded(len(image_ids), watch.seconds, frozenset(values))


def _decode(
    config: EvalConfig,
    members: Sequence[Member],
    image_ids: NDArray[np.int64],
    captions_dir: Path,
    precision: Precision,
) -> tuple[Vocab, dict[int, list[Hypothesis]]]:
    """Caption (N,) images that have features, with progress: the vocabulary, image_id → found."""
    loaded = [load_run(member.run_dir, precision.device) for member in members]
    pairs = [(decoder, m.store) for (_, _, decoder), m in zip(loaded, members, strict=True)]
    vocab, stores = loaded[0][1], [member.store for member in members]
    together = [[pair] for pair in pairs] if config.pool else [pairs]
    searches = [_search(config, some, image_ids, precision, vocab) for some in together]
    consensus = None
    if config.consensus:
        consensus = Consensus.load(
            captions_dir, stores, config.views, config.consensus, config.consensus_precision
        )
    found: list[list[Hypothesis]] = []
    with ProgressLine("decode", len(image_ids), "img") as line:
        for batches in zip(*searches, strict=True):
            batch = batches[0] if len(batches) == 1 else [*map(_pool, *batches)]
            if consensus is not None:
                ids = image_ids[len(found) : len(found) + len(batch)]
                seen = mean_features(stores, ids, config.views)
                batch = consensus.rank(seen, batch, vocab, ids)
            found += [hypotheses[: config.n_best] for hypotheses in batch]
            line.advance(len(batch))
    return vocab, dict(zip(image_ids.tolist(), found, strict=True))


def _search(
    config: EvalConfig,
    pairs: Sequence[tuple[Decoder, FeatureStore]],
    image_ids: NDArray[np.int64],
    precision: Precision,
    vocab: Vocab,
) -> Iterator[list[list[Hypothesis]]]:
    """Yield what decoders, with their features, find together for (N,) images, batch by batch."""
    decoders, stores = zip(*pairs, strict=True)
    rows = [store.rows(image_ids) for store in stores]
    model: CaptionModel[Any] = join_decoders(decoders, config.views)
    batch_size = config.batch_size or choose_batch_size(config)
    batches: Iterable[Features] = iterate_members(decoders, stores, rows, batch_size, config.views)
    if isinstance(model, Decoder):
        batches = (features for (features,) in batches)
    return decode(model, batches, precision, config.for_unit(vocab.unit))


def _pool(*found: list[Hypothesis]) -> list[Hypothesis]:
    """The captions that several searches found of an image, each as the one surest of it did."""
    ascending = sorted(chain.from_iterable(found), key=lambda hypothesis: hypothesis.score)
    return rank_hypotheses(ascending)  # of equal ones the last


def _describe_nbest(found: dict[int, list[Hypothesis]], vocab: Vocab) -> list[dict[str, Any]]:
    """The entries of `nbest.json`."""
    return [
        {
            "image_id": image_id,
            "captions": [
                {"caption": vocab.decode(h.token_ids), "log_prob": h.log_prob, "score": h.score}
                for h in hypotheses
            ],
        }
        for image_id, hypotheses in found.items()
    ]


def _show(eval_dir: Path, captions_dir: Path, num_samples: int) -> None:
    """Print the scores and a few captions beside their references."""
    metrics: dict[str, Any] = json.loads((eval_dir / METRICS_NAME).read_text("utf-8"))
    # pycocoevalcap's names begin with a capital, ours do not.
    rows = [
        (name, f"{100 * value:.1f}  {_describe_interval(*metrics['intervals'][name])}")
        for name, value in metrics.items()
        if name[0].isupper()
    ]
    rows += [
        ("images", f"{metrics['num_images']:,}"),
        ("decoding", f"{metrics['images_per_second']:,.0f} images/s"),
        ("scoring", format_seconds(metrics["score_seconds"])),
        ("path", str(eval_dir)),
    ]
    print_table(f"eval {eval_dir.parent.parent.name} {eval_dir.name}", rows)
    if eval_dir.name.startswith("val-"):
        print_note("These images chose the best epoch too; report scores on a test split.")
    captions: list[dict[str, Any]] = json.loads((eval_dir / CAPTIONS_NAME).read_text("utf-8"))
    samples = captions[:: max(len(captions) // max(num_samples, 1), 1)][:num_samples]
    sample_ids = np.array([sample["image_id"] for sample in samples], dtype=np.int64)
    references = read_references(captions_dir / CAPTIONS_PARQUET, "caption", sample_ids)
    images = read_images(captions_dir / IMAGES_PARQUET)
    names = dict(zip(images.image_ids.tolist(), images.file_names, strict=True))
    for sample in samples:
        image_id = sample["image_id"]
        print_note(
            f"{names[image_id]}\n  {sample['caption']}\n  (one of {len(references[image_id])}"
            f" references: {references[image_id][0].strip()})"
        )


def _describe_interval(low: float, high: float) -> str:
    return f"({100 * low:.1f} to {100 * high:.1f})"
