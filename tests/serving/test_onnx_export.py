"""The graphs compute what torch computes, for every cell and attention."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from showtell.features.encoders.backbone import Backbone, load_backbone
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.decoders.show_tell import ShowTell
from showtell.model.generation.constraints import word_log_probs
from showtell.pipeline.stage.errors import ConfigError

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from showtell.serving import onnx_export  # noqa: E402
from showtell.serving.onnx_export import export_decoder, export_encoder, export_graphs  # noqa: E402

NUM_CELLS, FEATURE_DIM, VOCAB_SIZE = 4, 512, 53
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32 rounds to 6e-8, several times per step

# Each cell, each attention, each way to show the image, tied and untied: an export takes seconds.
DECODERS = [
    ("gru", "none", 1, "first-input", True),
    ("gru", "soft", 2, "initial-state", False),
    ("lstm", "adaptive", 2, "first-input", True),
    ("rnn", "soft", 1, "initial-state", False),
]


def make_decoder(
    cell: str, attention: str, num_layers: int, image_as: str, tie_embeddings: bool
) -> ShowTell:
    """A decoder whose log-probabilities depend on everything that it reads."""
    torch.manual_seed(0)
    decoder: Any = create_decoder(
        DecoderConfig(
            cell=cell,
            feature_dim=FEATURE_DIM,
            vocab_size=VOCAB_SIZE,
            embed_size=12,
            hidden_size=16,
            num_layers=num_layers,
            image_as=image_as,
            tie_embeddings=tie_embeddings,
            attention=attention,
            attention_size=8,
        )
    )
    for parameter in decoder.parameters():  # biases start at 0
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder.eval()


def open_graph(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def check_file(path: Path, model: torch.nn.Module) -> None:
    """The graph is valid, small, made of simple operators, and names no path of this machine."""
    import onnx

    onnx.checker.check_model(str(path))
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operators.isdisjoint({"GRU", "LSTM", "RNN", "If", "Loop", "Scan"})
    content = path.read_bytes()
    assert str(Path(onnx_export.__file__).parent).encode() not in content
    # No weight is stored twice, even if it is used twice.
    assert len(content) < 4 * sum(p.numel() for p in model.parameters()) + 20_000


def as_inputs(names: list[str], state: Any, num_beams: int) -> dict[str, np.ndarray]:
    """The state of torch's decoder, one row per image, as the graph's inputs."""
    hidden = [part.transpose(0, 1)[:, None].expand(-1, num_beams, -1, -1) for part in state.hidden]
    return dict(zip(names, [part.numpy() for part in (*hidden, *state.memory)], strict=True))


@pytest.mark.parametrize("options", DECODERS, ids=lambda o: "-".join(map(str, o)))
@torch.no_grad()
def test_log_probs_equal_torch_step_by_step(tmp_path, options: tuple[Any, ...]) -> None:
    decoder = make_decoder(*options)
    export_decoder(decoder, NUM_CELLS, tmp_path / "decoder.onnx")
    check_file(tmp_path / "decoder.onnx", decoder)
    graph = open_graph(tmp_path / "decoder.onnx")
    names = [entry.name for entry in graph.get_inputs()[1:]]
    outputs = [entry.name for entry in graph.get_outputs()]
    for num_images, num_beams in ((1, 1), (3, 5), (8, 2)):
        grid = (NUM_CELLS,) if decoder.uses_grid else ()
        state = decoder.init_state(torch.randn(num_images, *grid, FEATURE_DIM))
        inputs = as_inputs(names, state, num_beams)
        first = torch.zeros(num_images, num_beams, dtype=torch.int64)
        state = state.select(torch.arange(num_images), first)
        token_ids = torch.ones_like(first)
        for _ in range(8):
            logits, state = decoder.step(token_ids.flatten(), state)
            found = dict(
                zip(
                    outputs,
                    graph.run(outputs, {"token_ids": token_ids.numpy()} | inputs),
                    strict=True,
                )
            )
            expected = word_log_probs(logits).view(num_images, num_beams, -1)
            np.testing.assert_allclose(found["log_probs"], expected, **TOLERANCE)
            if decoder.uses_grid:
                attention = state.attention.view(num_images, num_beams, NUM_CELLS)
                np.testing.assert_allclose(found["attention"], attention, **TOLERANCE)
            inputs |= {name: found.get(f"next_{name}", inputs[name]) for name in names}
            token_ids = torch.randint(4, VOCAB_SIZE, (num_images, num_beams))


@pytest.fixture(scope="module")
def backbones(random_weights) -> tuple[Backbone, Backbone]:
    """A small encoder as it is exported, and as torch computes it."""
    plain, fused = (
        load_backbone("resnet18", str(random_weights), 64, torch.device("cpu"), "fp32", fuse=fuse)
        for fuse in (False, True)
    )
    return plain, fused


@torch.no_grad()
def test_encoder_equals_torch(tmp_path, backbones) -> None:
    decoder, (plain, fused) = make_decoder("lstm", "adaptive", 2, "initial-state", True), backbones
    export_encoder(plain, decoder, tmp_path / "encoder.onnx")
    check_file(tmp_path / "encoder.onnx", torch.nn.ModuleList([plain, decoder]))
    graph = open_graph(tmp_path / "encoder.onnx")
    names = [entry.name for entry in graph.get_outputs()]
    for num_images in (1, 5):
        pixels = torch.randint(0, 256, (num_images, 3, 64, 64), dtype=torch.uint8)
        features = fused.grid(pixels).half()
        found = dict(zip(names, graph.run(names, {"pixels": pixels.numpy()}), strict=True))
        assert found["features"].dtype == np.float16
        np.testing.assert_allclose(found["features"], features, rtol=2e-3, atol=1e-4)
        expected = as_inputs(names[1:], decoder.init_state(features), 1)
        assert names[0] == "features" and len(expected) == len(names) - 1
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-2)


def test_decoder_of_another_kind_is_refused(tmp_path, backbones) -> None:
    sizes = {"feature_dim": 512, "vocab_size": 20, "embed_size": 8, "hidden_size": 8}
    transformer = create_decoder(DecoderConfig(cell="transformer", **sizes))
    own = SimpleNamespace(config=SimpleNamespace(cell="gru", attention="bag-of-words"))
    for decoder, option in ((transformer, "--cell transformer"), (own, "--attention bag-of-words")):
        with pytest.raises(ConfigError, match=f"does not support decoders with {option}, only"):
            export_graphs(backbones[0], decoder, tmp_path)  # type: ignore[arg-type]


def test_encoder_too_large_for_one_file_is_refused(tmp_path, backbones, monkeypatch) -> None:
    monkeypatch.setattr(onnx_export, "MAX_PARAMETERS", 1000)
    with pytest.raises(ConfigError, match=r"11,\d+,\d+ weights do not fit"):
        export_graphs(backbones[0], make_decoder(*DECODERS[0]), tmp_path)


def test_missing_library_is_named(tmp_path, backbones, monkeypatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'showtell\[onnx\]'"):
        export_graphs(backbones[0], make_decoder(*DECODERS[0]), tmp_path)
