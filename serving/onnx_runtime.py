"""Caption images with onnxruntime and NumPy; torch is not imported.

The graphs come from `showtell export RUN OUT --onnx`; docs/onnx.md describes them. Letters in
shapes: N images, K beams per image, S side of the image, V vocabulary, P grid cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray

from ..features.reading.limits import MAX_PIXELS
from ..features.reading.transform import Transform
from ..model.generation.options import DecodingKeywords, DecodingOptions
from ..model.runs.find import find_bundle
from ..model.runs.layout import DECODER_ONNX_NAME, ENCODER_ONNX_NAME, VOCAB_NAME
from ..pipeline.stage.artifacts import damaged, repair_command, require_stage
from ..pipeline.stage.errors import ConfigError, MissingArtifactError
from ..pipeline.stage.options import options_of
from ..pipeline.text.vocab import Vocab
from .images import ImageInput, ImageInputs, is_image, read_image
from .numpy_decoding import Floats, Ints, State, beam_search, explain, take
from .results import Caption

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# All that this module needs besides showtell, if it is installed without its dependencies.
ONNX_PACKAGES = ("onnxruntime", "numpy", "pillow", "rich", "filelock", "xxhash")
BATCH_SIZE = 32  # images in memory at once
# Fields of `DecodingOptions`.
SUPPORTED = (
    "beam",
    "n_best",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram",
)


@dataclass
class OnnxCaptioner:
    """A bundle with ONNX graphs. It captions like `Captioner`, with fewer options.

    Example:
        captioner = OnnxCaptioner.load("my-bundle")
        captioner.caption(["dog.jpg", "beach.jpg"])  # ["a dog runs …", "two people …"]

    Attributes:
        encoder: the graph from pixels to the decoder's state.
        decoder: the graph of one decoding step.
        transform: the preprocessing of the encoder's weights.
        vocab: the decoder's vocabulary.
        decoding: decoding options of the bundle, used for those that are not given.
        max_pixels: image files with more pixels are refused.
    """

    encoder: "InferenceSession"
    decoder: "OnnxDecoder"
    transform: Transform
    vocab: Vocab
    decoding: Mapping[str, Any]
    max_pixels: int = MAX_PIXELS

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        max_pixels: int = MAX_PIXELS,
    ) -> "OnnxCaptioner":
        """Load a bundle that was exported with `--onnx`.

        Args:
            bundle: its folder, or `hf:user/name` for one on the Hugging Face Hub.
            threads: number of threads; 0 uses all cores.
            providers: onnxruntime's execution providers, the preferred one first.
            max_pixels: image files with more pixels are refused.

        Raises:
            MissingArtifactError: there is no such bundle, or it has no graphs.
            HubError: there is no such bundle on the Hub, or the Hub cannot be reached.
            DamagedFileError: a file of the bundle is damaged.
            ConfigError: onnxruntime is not installed.
        """
        folder = find_bundle(bundle) or Path(bundle)
        manifest = require_stage(folder)
        names = ENCODER_ONNX_NAME, DECODER_ONNX_NAME
        if not manifest.outputs.keys() >= {*names}:
            command = repair_command(folder / ENCODER_ONNX_NAME)
            raise MissingArtifactError(f"{folder} has no ONNX graphs. Run '{command} --onnx'.")
        encoder, decoder = (open_graph(folder / name, threads, providers) for name in names)
        return cls(
            encoder,
            OnnxDecoder(decoder),
            Transform(**manifest.details["run"]["backbone"]["transform"]),
            Vocab.read(folder / VOCAB_NAME),
            manifest.details["decoding"],
            max_pixels,
        )

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
        self, images: ImageInputs, *, details: bool = False, **options: Unpack[DecodingKeywords]
    ) -> list[str] | list[list[Caption]]:
        """Caption images, as `Captioner.caption` does.

        Args:
            images: one image or a list, of any kind that `Captioner.caption` takes.
            details: whether to return `Caption` objects with probabilities and tokens.
            options: the fields of `DecodingOptions` in `SUPPORTED`.

        Returns:
            One caption per image; with `details`, the `n_best` captions of each, best first.

        Raises:
            DatasetError: a file is missing or is not a readable image.
            ConfigError: an option is invalid or not supported.
        """
        decoding = DecodingOptions(**{**self.decoding, **options})
        several = [images] if is_image(images) else list(cast(Sequence[ImageInput], images))
        captions: list[list[Caption]] = []
        for start in range(0, len(several), BATCH_SIZE):
            pixels = [self.pixels(image) for image in several[start : start + BATCH_SIZE]]
            captions += self.caption_batch(np.stack(pixels), decoding, details=details)
        return captions if details else [found[0].text for found in captions]

    def pixels(self, image: ImageInput) -> NDArray[np.uint8]:
        """Read an image and apply the encoder's transform: (3, S, S) uint8.

        Raises:
            DatasetError: the file is missing or is not a readable image.
        """
        return self.transform(read_image(image, self.transform, self.max_pixels))

    def caption_batch(
        self, pixels: NDArray[np.uint8], options: DecodingOptions, *, details: bool = False
    ) -> list[list[Caption]]:
        """Caption a batch of transformed images.

        Args:
            pixels: (N, 3, S, S), each from `pixels`.
            options: how to decode.
            details: whether to fill in the tokens of each caption.

        Returns:
            For each image its captions, best first: at least one, at most `n_best`.

        Raises:
            ConfigError: an option is not supported.
        """
        require_supported(options)
        if not len(pixels):
            return []
        limited = options.for_unit(self.vocab.unit)
        state = self.encode(pixels)
        found = beam_search(self.decoder, state, len(pixels), limited)
        found = [hypotheses[: options.n_best] for hypotheses in found]
        if not details:
            return [[Caption.of(each, self.vocab) for each in of_image] for of_image in found]
        return [
            [
                Caption.of(hypothesis, self.vocab, *scores)
                for hypothesis, scores in zip(*of_image, strict=True)
            ]
            for of_image in zip(found, explain(self.decoder, state, found), strict=True)
        ]

    def encode(self, pixels: NDArray[np.uint8]) -> State:
        """Return the decoder's state before the first token, for (N, 3, S, S) pixels."""
        names = self.decoder.state_names
        return dict(zip(names, self.encoder.run(names, {"pixels": pixels}), strict=True))


@dataclass
class OnnxDecoder:
    """The graph of one decoding step; see `StepModel`.

    Attributes:
        session: the graph.
    """

    session: "InferenceSession"

    def __post_init__(self) -> None:
        self.state_names = [entry.name for entry in self.session.get_inputs()[1:]]
        self.output_names = [entry.name for entry in self.session.get_outputs()]

    def step(self, token_ids: Ints, state: State) -> tuple[Floats, State, Floats | None]:
        """See `StepModel.step`."""
        results = self.session.run(self.output_names, {"token_ids": token_ids, **state})
        named = dict(zip(self.output_names, results, strict=True))
        after = {name: named.get(f"next_{name}", value) for name, value in state.items()}
        return named["log_probs"], after, named.get("attention")

    def select(self, state: State, images: Ints, parents: Ints) -> State:
        """See `StepModel.select`."""
        return {
            name: take(values[images], parents) if self._has_rows(name) else values[images]
            for name, values in state.items()
        }

    def _has_rows(self, name: str) -> bool:
        """Return whether a tensor of the state has a row for each beam, and not for each image."""
        return f"next_{name}" in self.output_names


def open_graph(path: Path, threads: int, providers: Sequence[str]) -> "InferenceSession":
    """Open an ONNX file.

    Raises:
        ConfigError: onnxruntime is not installed.
        DamagedFileError: it is not an ONNX file that this version of onnxruntime reads.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "Bundles with ONNX graphs need the library onnxruntime. Run "
            "pip install 'showtell[onnx]'."
        ) from None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=list(providers))
    except Exception as error:  # onnxruntime's own classes are private
        raise damaged(path, str(error)) from None


def require_supported(options: DecodingOptions) -> None:
    """Refuse decoding options that need torch.

    Raises:
        ConfigError: an option is set that is not in `SUPPORTED`.
    """
    for declared in options_of(DecodingOptions):
        name = declared.name
        if name not in SUPPORTED and options.is_set(name):
            raise ConfigError(
                f"{name}={getattr(options, name)!r} is not supported with ONNX graphs. Leave it "
                f"out, or load the bundle with showtell.load. Supported: {', '.join(SUPPORTED)}."
            )
