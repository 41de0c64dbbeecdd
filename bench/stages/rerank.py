"""Benchmark of consensus re-ranking: images/s of `--preset consensus` without its beam search."""

import time

import torch

from ...features.device import keep_freed_memory
from ...features.store import FeatureStore, find_features
from ...model.decoders.precision import Precision
from ...model.generation.consensus import Consensus
from ...model.generation.generate import choose_batch_size, decode, iterate_features
from ...model.generation.options import DecodingOptions
from ...model.presets import DECODING_PRESETS
from ...model.retrieval.search import NeighborSearch, mean_features
from ...model.runs.run import load_run
from ...pipeline.captions import read_images
from ...pipeline.layout import IMAGES_PARQUET
from ..config import BenchConfig
from ..limits import time_products
from ..measurement import Measurement
from .decode import find_plain_run

SOLVER_STEPS = 40  # products of the kernel and a vector for each image, on Flickr8k


def measure(config: BenchConfig) -> Measurement:
    """Re-rank the candidates of one batch of val images with the newest run, repeatedly.

    Raises:
        MissingArtifactError: there is no run without attention, or no train image has features.
    """
    keep_freed_memory()
    options = DecodingOptions(**DECODING_PRESETS["consensus"])
    precision = Precision("auto", torch.device("cpu"))
    run, vocab, decoder = load_run(find_plain_run(config), precision.device)
    store = FeatureStore.load(find_features(config.dataset_dir, run.features))
    num_views = min(options.views, store.num_views)
    image_ids = read_images(config.captions_dir / IMAGES_PARQUET).select("val")
    image_ids = image_ids[store.has(image_ids).numpy()][: choose_batch_size(options)]
    batches = iterate_features(decoder, store, store.rows(image_ids))
    (candidates,) = decode(decoder, batches, precision, options)
    consensus = Consensus.load(config.captions_dir, [store], num_views, options.consensus)
    features = mean_features([store], image_ids, num_views)
    captions = [[vocab.decode(h.token_ids) for h in of_image] for of_image in candidates]

    for _ in range(2):  # warm-up; the second pass computes the kernel of all training images
        rows, weights = consensus.search.find(features, image_ids)
    seconds = {"all": 0.0, "neighbors": 0.0, "scores": 0.0}
    num_images = 0
    while not num_images or seconds["all"] < config.seconds:
        started = time.perf_counter()
        consensus.rank(features, candidates, vocab, image_ids)
        ranked = time.perf_counter()
        consensus.search.find(features, image_ids)
        found = time.perf_counter()
        consensus.scorer.weighted_cider_d(captions, consensus.scorer_rows[rows], weights)
        seconds["all"] += ranked - started
        seconds["neighbors"] += found - ranked
        seconds["scores"] += time.perf_counter() - found
        num_images += len(image_ids)
    rates = {name: num_images / value for name, value in seconds.items()}

    # Parts are repeated apart from the whole, so a busy machine may take longer for them.
    total = max(seconds["all"], seconds["neighbors"] + seconds["scores"])
    shares = {name: seconds[name] / total for name in ("neighbors", "scores")}
    return Measurement(
        throughput=rates["all"],
        unit="images/s",
        limit=products_rate(consensus.search, len(image_ids)),
        limited_by="its matrix products alone",
        shares=shares | {"rest": 1 - sum(shares.values())},
        details={
            "images_per_second_of_neighbors": rates["neighbors"],
            "images_per_second_of_scores": rates["scores"],
            "num_neighbors": consensus.search.num_neighbors,
            "candidates_per_image": sum(map(len, candidates)) / len(candidates),
        },
    )


def products_rate(search: NeighborSearch, batch_size: int) -> float:
    """Return the images/s of the matrix products alone: cosines, and the steps of the solver."""
    num_train, feature_dim = search.directions.shape
    cosines, step = (
        time_products([shape], search.directions.device, torch.float32, seconds=0.5)
        for shape in (
            (batch_size, feature_dim, num_train),
            (1, search.num_neighbors, search.num_neighbors),
        )
    )
    return 1 / (cosines / batch_size + SOLVER_STEPS * step)
