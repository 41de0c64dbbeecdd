"""Caption images with a trained model, using the same encoder, transform and vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray

from ..features.encoders.backbone import Backbone
from ..features.reading.limits import MAX_PIXELS
from ..features.reading.views import VIEWS
from ..features.store import require_views
from ..model.decoders.base import Decoder
from ..model.decoders.ensemble import join_decoders
from ..model.decoders.inputs import Inputs, Words
from ..model.decoders.precision import Precision
from ..model.generation.consensus import Consensus
from ..model.generation.explain import explain
from ..model.generation.generate import CaptionModel, decode
from ..model.generation.options import DecodingKeywords, DecodingOptions
from ..model.presets import DECODING_PRESETS, apply_preset
from ..model.retrieval.words import WordRetriever
from ..model.runs.run import RunConfig, load_run_features
from ..pipeline.stage.console import print_warning
from ..pipeline.stage.errors import MissingArtifactError
from ..pipeline.text.vocab import Vocab
from .images import ImageInput, ImageInputs, is_image, read_image
from .neighbors import load_neighbors
from .results import Caption

BATCH_SIZE = 32  # images in memory at once


@dataclass
class Captioner:
    """A trained model with everything it needs to caption images.

    Example:
        captioner = showtell.load("data/runs/flickr8k-gru")
        captioner.caption(["dog.jpg", "beach.jpg"])  # ["a dog runs …", "two people …"]
        captioner.caption("dog.jpg", details=True)[0][0].log_prob  # -7.93

    Attributes:
        backbone: the frozen encoder and its transform.
        decoder: in eval mode.
        vocab: the decoder's vocabulary.
        precision: arithmetic and device of the decoder.
        run: the config stored with the model.
        folder: of the run or bundle.
        data: the data folder, where `consensus` and `find_words` find features and captions of the
            training images of a run.
        decoding: decoding options of the model, used for those that are not given.
        max_pixels: image files with more pixels are refused.
    """

    backbone: Backbone
    decoder: Decoder
    vocab: Vocab
    precision: Precision
    run: RunConfig
    folder: Path
    data: Path
    decoding: dict[str, Any] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS
    _consensus: tuple[tuple[int, int, float], Consensus] | None = field(default=None, repr=False)

    @overload
    def caption(
        self,
        images: ImageInputs,
        *,
        details: Literal[False] = False,
        **options: Unpack[DecodingKeywords],
    ) -> list[str]: ...

    @overload
    def caption(
        self, images: ImageInputs, *, details: Literal[True], **options: Unpack[DecodingKeywords]
    ) -> list[list[Caption]]: ...

    def caption(
        self,
        images: ImageInputs,
        *,
        details: bool = False,
        **options: Unpack[DecodingKeywords],
    ) -> list[str] | list[list[Caption]]:
        """Caption images.

        Args:
            images: one image or a list: paths, bytes of image files, Pillow images, NumPy arrays
                (H, W, 3) uint8 or tensors (3, H, W) uint8.
            details: whether to return `Caption` objects with probabilities and tokens.
            options: fields of `DecodingOptions` (`beam`, `n_best`, `length_penalty`, …), as
                explained by `showtell caption --help`. `preset` fills in those that are not given.

        Returns:
            One caption per image; with `details`, the `n_best` captions of each, best first.

        Raises:
            DatasetError: a file is missing or is not a readable image.
            ConfigError: an option is invalid.
        """
        decoding = self.decoding_options(**options)
        generator = torch.Generator().manual_seed(decoding.seed)
        several = [images] if is_image(images) else list(cast(Sequence[ImageInput], images))
        captions: list[list[Caption]] = []
        for start in range(0, len(several), BATCH_SIZE):
            batch = several[start : start + BATCH_SIZE]
            pixels = [self.pixels(image, decoding.views) for image in batch]
            captions += self.caption_pixels(pixels, decoding, generator, details=details)
        return captions if details else [found[0].text for found in captions]

    def decoding_options(self, **options: Any) -> DecodingOptions:
        """Return decoding options: those given, then those of `preset`, then the model's.

        Raises:
            ConfigError: an option is invalid.
        """
        return decoding_options(self.decoding, options)

    def caption_pixels(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        options: DecodingOptions,
        generator: torch.Generator | None = None,
        *,
        details: bool = False,
    ) -> list[list[Caption]]:
        """Caption a list of transformed images, (V, 3, H, W) uint8 each, from `pixels`.

        The other arguments, the result and the errors are those of `caption_batch`.
        """
        if not pixels:
            return []
        batch = torch.from_numpy(np.concatenate(pixels))
        return self.caption_batch(batch, options, generator, details=details)

    def caption_batch(
        self,
        pixels: torch.Tensor,
        options: DecodingOptions,
        generator: torch.Generator | None = None,
        *,
        details: bool = False,
    ) -> list[list[Caption]]:
        """Caption a batch of transformed images.

        Args:
            pixels: (N·V, 3, H, W) uint8, N > 0; the V views of an image are adjacent.
            options: how to decode.
            generator: random numbers for sampling; pass one generator to all batches. Default: a
                new one with the options' seed.
            details: whether to fill in the tokens of each caption.

        Returns:
            For each image its captions, best first: at least one, at most `n_best`.

        Raises:
            MissingArtifactError: features or captions that `consensus` needs are missing.
        """
        consensus = self.consensus(options)
        views, pooled = self.encode(pixels, options.views)
        model: CaptionModel[Any] = join_decoders([self.decoder], options.views)
        words = self.find_words(pooled[:, 0])
        members = [Inputs(view, words) for view in views]
        inputs = members[0] if len(members) == 1 else Inputs.of_members(members)
        limited = options.for_unit(self.vocab.unit)
        (found,) = decode(model, [inputs], self.precision, limited, generator)
        if consensus is not None:
            found = consensus.rank(pooled.float().mean(1).cpu(), found, self.vocab)
        found = [hypotheses[: options.n_best] for hypotheses in found]
        if not details:
            return [[Caption.of(each, self.vocab) for each in of_image] for of_image in found]
        captions = [[hypothesis.token_ids for hypothesis in of_image] for of_image in found]
        with self.precision.autocast(), torch.no_grad():
            scores = explain(model, model.init_state(*inputs), captions)
        return [
            [
                Caption.of(hypothesis, self.vocab, score.log_probs, score.attention)
                for hypothesis, score in zip(*of_image, strict=True)
            ]
            for of_image in zip(found, scores, strict=True)
        ]

    def encode(
        self, pixels: torch.Tensor, num_views: int
    ) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
        """Return the features that the decoder reads, and the pooled features.

        Args:
            pixels: (N·V, 3, H, W) uint8.
            num_views: V.

        Returns:
            views: V tensors (N, D), or (N, P, G) for a decoder with attention, float16.
            pooled: (N, V, D) float16.
        """
        batch = pixels.to(self.precision.device, non_blocking=True)
        if self.decoder.uses_grid:
            pooled, features = self.backbone.pool_and_grid(batch)
        else:
            pooled = features = self.backbone(batch)
        # Half precision, like the cached features that the decoder was trained on.
        pooled, features = (
            each.half().unflatten(0, (-1, num_views)) for each in (pooled, features)
        )
        return features.unbind(1), pooled

    def consensus(self, options: DecodingOptions) -> Consensus | None:
        """Return the training images that re-rank captions; None without `options.consensus`.

        They are loaded once and reused.

        Raises:
            MissingArtifactError: features or captions of the training images are missing.
            MismatchError: a bundle holds them for another number of views.
        """
        if not options.consensus:
            return None
        wanted = (options.views, options.consensus, options.consensus_precision)
        if self._consensus is None or self._consensus[0] != wanted:
            packed = load_neighbors(self.folder)
            if packed is not None:
                found = packed.consensus(*wanted)
            else:
                store = load_run_features(self.data, self.run)
                require_views(store, options.views)
                captions_dir = self.data / self.run.dataset / "captions"
                found = Consensus.load(captions_dir, [store], *wanted)
            self._consensus = wanted, found
        return self._consensus[1]

    def find_words(self, pooled: torch.Tensor) -> Words | None:
        """Return the words of similar training images; None if the decoder gets none.

        Args:
            pooled: (N, D) features of the first view of each image.
        """
        if self.retriever is None:
            return None
        return self.retriever.retrieve(pooled.cpu()).to(self.precision.device)

    @cached_property
    def retriever(self) -> WordRetriever | None:
        """Finds the words of similar training images, which are loaded at the first use.

        None for a decoder without `--neighbours`. Without the features and captions of the training
        images it is None too, with a warning: the decoder has learned to do without the words.
        """
        if not self.run.decoder.neighbours:
            return None
        num_neighbors, packed = self.run.decoder.neighbours, load_neighbors(self.folder)
        if packed is not None:
            return packed.retriever(num_neighbors, self.vocab)
        captions_dir = self.data / self.run.dataset / "captions"
        try:
            store = load_run_features(self.data, self.run)
            return WordRetriever.load(captions_dir, store, num_neighbors, self.vocab)
        except MissingArtifactError as error:
            print_warning(
                f"captions are worse without the words of similar images, which {self.folder} was "
                f"trained with: {error}"
            )
            return None

    def pixels(self, image: ImageInput, num_views: int = 1) -> NDArray[np.uint8]:
        """Read an image and apply the encoder's transform: (V, 3, H, W) uint8.

        Args:
            image: see `caption`.
            num_views: V, the number of views; the first is the whole image.

        Raises:
            DatasetError: the file is missing or is not a readable image.
        """
        transform = self.backbone.transform
        decoded = read_image(image, transform, self.max_pixels)
        return np.stack([transform(decoded, view) for view in VIEWS[:num_views]])


def decoding_options(defaults: Mapping[str, Any], given: dict[str, Any]) -> DecodingOptions:
    """Return decoding options: those given, then those of `preset`, then the defaults.

    Raises:
        ConfigError: an option is invalid.
    """
    if preset := given.get("preset"):
        given = apply_preset(DECODING_PRESETS, preset, given, tuple(given))
    return DecodingOptions(**{**defaults, **given})
