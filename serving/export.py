"""The command `showtell export`: a run → a bundle, one folder that captions on any machine.

The files of a bundle are listed in `model/runs/layout.py`. Its manifest holds, in `details`:
    run        the fields of `RunConfig`, as in config.json
    decoding   the decoding options of the bundle, for those that a caller does not give
"""

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..features.store import FeatureStore
from ..model.decoders.base import Decoder
from ..model.runs.find import find_run
from ..model.runs.layout import (
    CARD_NAME,
    CONFIG_NAME,
    CONSENSUS_NAME,
    DECODER_ONNX_NAME,
    ENCODER_ONNX_NAME,
    MODEL_NAME,
    VOCAB_NAME,
    VOCAB_TXT_NAME,
    weights_path,
)
from ..model.runs.run import RunConfig, load_run, load_run_features
from ..model.runs.tensors import write_tensors
from ..pipeline.stage.artifacts import require_bundle_folder
from ..pipeline.stage.checksums import checksum_of_file, checksums_of
from ..pipeline.stage.command_line import command_of
from ..pipeline.stage.console import format_bytes, print_note, print_table
from ..pipeline.stage.files import hash_file, hash_json, locked, write_bytes
from ..pipeline.stage.manifest import Manifest
from .config import ExportConfig
from .load import load_encoder
from .model_card import find_scores, model_card
from .neighbors import hash_neighbors, pack_neighbors

VERSION = 1


def export(config: ExportConfig) -> Manifest:
    """Write the bundle of a run.

    Raises:
        MissingArtifactError: there is no such run; or with `--consensus`, or if it uses
            neighbors, its features or captions are missing.
        WeightsError: with `--onnx`, the encoder's weights are not available.
        DamagedFileError: a file of the run is damaged.
        ConfigError: the output folder holds something else; or with `--onnx`, a library is missing
            or the model is not supported.
        StorageError: the bundle cannot be written.
    """
    run_dir, out = find_run(config.data, config.run), config.output
    require_bundle_folder(out, "export", config.run)
    inputs = {
        "weights": hash_file(weights_path(run_dir)),
        "config": hash_file(run_dir / CONFIG_NAME),
        "scores": hash_json([asdict(score) for score in find_scores(run_dir)]),
    }
    if needs_neighbors(config, run := RunConfig.read(run_dir)):
        inputs |= hash_neighbors(*training_data(config, run))
    manifest = Manifest.read(out)
    if manifest is not None and manifest.matches(out, VERSION, config.result_options(), inputs):
        print_note(f"export: {out} is up to date.")
        return manifest
    with locked(out):
        manifest = write_bundle(config, run_dir, inputs)
    rows = [(name, format_bytes(size)) for name, size in manifest.outputs.items()]
    print_table("export", [*rows, ("path", str(out))])
    return manifest


def write_bundle(config: ExportConfig, run_dir: Path, inputs: dict[str, str]) -> Manifest:
    """Write all files of a bundle; the manifest is written last."""
    out = config.output
    run, vocab, decoder = load_run(run_dir, torch.device("cpu"))
    manifest = Manifest(
        stage="export",
        version=VERSION,
        config=config.result_options(),
        inputs=inputs,
        outputs={},
        command=command_for(config),
    )
    manifest.write_copy(out)  # an interrupted export can then continue
    tensors = decoder.state_dict()
    if config.half:
        # Vectors stay in float32: they are small, and the means of features need the precision.
        tensors = {n: t.half() if t.ndim > 1 else t for n, t in tensors.items()}
        decoder.load_state_dict(tensors)
    names = [CONFIG_NAME, VOCAB_NAME, MODEL_NAME, CARD_NAME]
    if config.onnx:
        names += write_graphs(config, run_dir, run, decoder)
        # For other languages: JavaScript reads the keys of vocab.json in another order.
        write_bytes(out / VOCAB_TXT_NAME, "\n".join([*vocab.words, ""]).encode())
        names.append(VOCAB_TXT_NAME)
    else:
        for name in (ENCODER_ONNX_NAME, DECODER_ONNX_NAME, VOCAB_TXT_NAME):
            (out / name).unlink(missing_ok=True)
    vocab.write(out / VOCAB_NAME)
    run = without_paths(replace(run, vocab_checksum=checksum_of_file(out / VOCAB_NAME)))
    run.write(out)
    write_tensors(out / MODEL_NAME, tensors)
    if needs_neighbors(config, run):
        pack_neighbors(out, *training_data(config, run))
        names.append(CONSENSUS_NAME)
    else:
        (out / CONSENSUS_NAME).unlink(missing_ok=True)
    card = model_card(out.resolve().name, run, find_scores(run_dir), config)
    write_bytes(out / CARD_NAME, card.encode())
    return replace(
        manifest,
        outputs={name: (out / name).stat().st_size for name in names},
        checksums=checksums_of(out, names),
        counts={
            "num_parameters": sum(parameter.numel() for parameter in decoder.parameters()),
            "vocab_size": len(vocab),
        },
        details={
            "run": asdict(run),
            "decoding": {"beam": config.beam, "length_penalty": config.length_penalty},
        },
    ).write(out)


def needs_neighbors(config: ExportConfig, run: RunConfig) -> bool:
    """Return whether the bundle needs the training images, for `--consensus` or `--neighbours`."""
    return config.consensus or run.decoder.neighbours > 0


def training_data(config: ExportConfig, run: RunConfig) -> tuple[Path, FeatureStore]:
    """Return the captions folder and the features that a run was trained on.

    Raises:
        MissingArtifactError: the features are missing.
        MismatchError: another network computed them, or another transform.
    """
    return config.data / run.dataset / "captions", load_run_features(config.data, run)


def command_for(config: ExportConfig) -> str:
    """Return the command that writes a bundle, without the folders of this machine."""
    weights = config.weights and Path(config.weights).name
    command = shlex.split(command_of("export", replace(config, weights=weights)))
    return shlex.join([*command[:2], config.output.resolve().name, *command[3:]])


def write_graphs(
    config: ExportConfig, run_dir: Path, run: RunConfig, decoder: Decoder
) -> list[str]:
    """Write the ONNX graphs of a run, and return their file names.

    Raises:
        WeightsError: the encoder's weights are not available.
        MismatchError: the weights or the transform are others than in training.
        ConfigError: a library is missing, or the model is not supported.
    """
    from .onnx_export import export_graphs  # slow to import

    print_note("export: writing the ONNX graphs …")
    cpu = torch.device("cpu")
    backbone = load_encoder(run_dir, run, config.weights, cpu, "fp32", fuse=False)
    return export_graphs(backbone, decoder, config.output)


def without_paths(run: RunConfig) -> RunConfig:
    """Return a config that names files without the folders of this machine."""
    weights = run.backbone["weights"]
    return replace(
        run,
        backbone=run.backbone | {"weights": Path(weights).name},
        train={name: shorten(value) for name, value in run.train.items()},
    )


def shorten(value: Any) -> Any:
    """Return the file name of an absolute path; any other value as it is."""
    is_path = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if is_path else value
