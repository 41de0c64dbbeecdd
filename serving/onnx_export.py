"""Write a model as two ONNX graphs: image to decoder state, and one decoding step.

docs/onnx.md shows how to use them. Letters in shapes: N images, K rows (beams) per image, S side of
the image in pixels, L layers, H hidden, D feature width, P grid cells, V vocabulary.

encoder.onnx
    pixels          (N, 3, S, S) uint8, RGB, from the transform of the encoder's weights
    → features      (N, D) float16; (N, P, D) for a decoder with attention
    → hidden        (N, 1, L, H) float32
    → cell_state    (N, 1, L, H) float32, of an LSTM only
    → memory_0 …    (N, …) float32, what attention reads; none without attention

decoder.onnx
    token_ids       (N, K) int64, the previous tokens; BOS at first
    hidden, cell_state, memory_0 …   as above, the first two with K rows per image
    → log_probs     (N, K, V) float32; −inf for PAD, BOS and UNK
    → next_hidden, next_cell_state   (N, K, L, H) float32
    → attention     (N, K, P) float32, the weights of the grid cells; none without attention
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from ..features.encoders.backbone import Backbone
from ..model.decoders.base import Decoder
from ..model.decoders.registry import decoder_option
from ..model.decoders.show_tell import ShowTell
from ..model.decoders.state import DecoderState
from ..model.generation.constraints import NEVER_WRITTEN
from ..model.kernels.recurrence import Hidden
from ..model.runs.layout import DECODER_ONNX_NAME, ENCODER_ONNX_NAME
from ..pipeline.stage.errors import ConfigError
from ..pipeline.stage.files import atomic_path
from ..pipeline.text.vocab import BOS

OPSET = 18  # the one that the exporter writes; later ones would be converted
MAX_PARAMETERS = 2**29 - 2**22  # a protobuf file is limited to 2 GiB
HIDDEN_NAMES = ("hidden", "cell_state")

# Examples with several images and beams: the exporter would fix a size of 1.
NUM_IMAGES, NUM_BEAMS = 2, 3
IMAGES, BEAMS = Dim("images"), Dim("beams")

# An input of a graph: example value, and dimension → its name if it is dynamic.
Example = tuple[Tensor, dict[int, Dim]]


def export_graphs(backbone: Backbone, decoder: Decoder, folder: Path) -> list[str]:
    """Write `encoder.onnx` and `decoder.onnx`.

    Args:
        backbone: float32 on the CPU, loaded with `fuse=False`.
        decoder: on the CPU; not changed.
        folder: where to write.

    Returns:
        The names of the files.

    Raises:
        ConfigError: the model cannot be exported, or a library is missing.
        StorageError: a file cannot be written.
    """
    check_exportable(backbone, decoder)
    assert isinstance(decoder, ShowTell)
    export_encoder(backbone, decoder, folder / ENCODER_ONNX_NAME)
    export_decoder(decoder, backbone.num_cells, folder / DECODER_ONNX_NAME)
    return [ENCODER_ONNX_NAME, DECODER_ONNX_NAME]


def export_encoder(backbone: Backbone, decoder: ShowTell, path: Path) -> None:
    """Write the graph from pixels to the decoder's state; see `export_graphs`."""
    size = backbone.transform.crop_size
    pixels = torch.zeros(NUM_IMAGES, 3, size, size, dtype=torch.uint8)
    graph = EncoderGraph(backbone, prepare_decoder(decoder))
    state_names = [name for name, _ in example_state(decoder, backbone.num_cells)]
    write_graph(path, graph, {"pixels": (pixels, {0: IMAGES})}, ["features", *state_names])


def export_decoder(decoder: ShowTell, num_cells: int, path: Path) -> None:
    """Write the graph of one decoding step; see `export_graphs`.

    Args:
        decoder: on the CPU.
        num_cells: P, number of grid cells.
        path: of the file.
    """
    inputs: dict[str, Example] = {
        "token_ids": (torch.full((NUM_IMAGES, NUM_BEAMS), BOS), {0: IMAGES, 1: BEAMS})
    }
    outputs = ["log_probs"]
    for name, value in example_state(decoder, num_cells):
        if name in HIDDEN_NAMES:
            value = value.expand(-1, NUM_BEAMS, -1, -1).contiguous()
            inputs[name] = value, {0: IMAGES, 1: BEAMS}
            outputs.append(f"next_{name}")
        else:
            inputs[name] = value, {0: IMAGES}
    outputs += ["attention"] * decoder.uses_grid
    write_graph(path, DecoderGraph(prepare_decoder(decoder)), inputs, outputs)


def example_state(decoder: ShowTell, num_cells: int) -> list[tuple[str, Tensor]]:
    """Return the names of a decoder's state tensors in the graphs, with values for zero features.

    The shapes are those of the encoder's outputs.
    """
    grid = (num_cells,) if decoder.uses_grid else ()
    with torch.no_grad():
        state = decoder.init_state(torch.zeros(NUM_IMAGES, *grid, decoder.config.feature_dim))
    hidden = [part.transpose(0, 1)[:, None] for part in state.hidden]
    memory = [(f"memory_{i}", part) for i, part in enumerate(state.memory)]
    return [*zip(HIDDEN_NAMES, hidden, strict=False), *memory]


def check_exportable(backbone: Backbone, decoder: Decoder) -> None:
    """Check that a model can be exported.

    Raises:
        ConfigError: it cannot, or a library is missing.
    """
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        raise ConfigError(
            "--onnx needs the libraries onnx and onnxscript. Run pip install 'showtell[onnx]'."
        )
    if not isinstance(decoder, ShowTell):
        raise ConfigError(
            f"--onnx does not support decoders with {decoder_option(decoder.config)}, only those "
            "that are based on ShowTell. Leave out --onnx."
        )
    if decoder.config.neighbours:
        raise ConfigError(
            "--onnx does not support decoders with --neighbours, which need the training images. "
            "Leave out --onnx."
        )
    if decoder.uses_grid:
        backbone.require_grid()
    num_parameters = sum(parameter.numel() for parameter in backbone.parameters())
    if num_parameters > MAX_PARAMETERS:
        raise ConfigError(
            f"--onnx does not support {backbone.name}: its {num_parameters:,} weights do not fit "
            "into an ONNX file of at most 2 GiB. Leave out --onnx."
        )


def prepare_decoder(decoder: ShowTell) -> ShowTell:
    """Return a copy of a decoder that can be exported and that never writes special tokens."""
    prepared = copy.deepcopy(decoder).eval().requires_grad_(False)
    prepared.output_bias[list(NEVER_WRITTEN)] = -torch.inf
    prepared.cell = GateCell(decoder.cell)  # type: ignore[assignment]
    return prepared


def write_graph(
    path: Path, graph: nn.Module, inputs: Mapping[str, Example], outputs: Sequence[str]
) -> None:
    """Export a module as an ONNX file.

    Args:
        path: of the file, written atomically.
        graph: the module.
        inputs: name → example and dynamic dimensions, in the order of the module's arguments.
        outputs: names of the results, in order.
    """
    examples = tuple(example for example, _ in inputs.values())
    first, *rest = (dynamic for _, dynamic in inputs.values())
    shapes: Any = (first, tuple(rest)) if rest else (first,)  # like the arguments of `forward`
    # Exported with gradients, so that the model takes none of its faster paths for the CPU. This
    # step by itself, because torch.onnx.export would fix a dimension that cannot be dynamic.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph.eval(), examples, dynamic_shapes=shapes, strict=False)
        onnx_program: Any = torch.onnx.export(
            program,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    for node in onnx_program.model.graph:
        node.metadata_props.clear()  # lines of source code, with the paths of this machine
    with atomic_path(path) as partial:
        onnx_program.save(partial, external_data=False)


class EncoderGraph(nn.Module):
    """Pixels → features and the decoder's state before the first token."""

    def __init__(self, backbone: Backbone, decoder: ShowTell) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return features, hidden tensors and memory tensors of (N, 3, S, S) uint8 pixels."""
        uses_grid = self.decoder.uses_grid
        features = self.backbone.grid(pixels) if uses_grid else self.backbone(pixels)
        features = features.half()  # like the cached features that the decoder was trained on
        state = self.decoder.init_state(features)
        return features, *(part.transpose(0, 1)[:, None] for part in state.hidden), *state.memory


class DecoderGraph(nn.Module):
    """Tokens and state → log-probabilities and the next state."""

    def __init__(self, decoder: ShowTell) -> None:
        super().__init__()
        self.decoder = decoder
        self.num_hidden = 2 if decoder.config.cell == "lstm" else 1

    def forward(self, token_ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Advance by one token.

        Args:
            token_ids: (N, K).
            state: the hidden tensors, (N, K, L, H) each, then the memory tensors, (N, …) each.

        Returns:
            (N, K, V) log-probabilities, the next hidden tensors, and (N, K, P) attention weights
            if there are any.
        """
        hidden = tuple(part.flatten(0, 1).transpose(0, 1) for part in state[: self.num_hidden])
        before = DecoderState(hidden, state[self.num_hidden :], token_ids.shape[1])
        logits, after = self.decoder.step(token_ids.flatten(), before)
        results = [logits.log_softmax(1), *(part.transpose(0, 1) for part in after.hidden)]
        if after.attention is not None:
            results.append(after.attention)
        return tuple(rows.unflatten(0, token_ids.shape) for rows in results)


class GateCell(nn.Module):
    """A recurrent cell written as matrix products, sigmoids and tanhs; reads one token.

    The exporter has translated whole GRUs wrongly: torch applies the reset gate after the matrix
    product, ONNX by default before it.

    Args:
        cell: nn.GRU, nn.LSTM or nn.RNN; its weights are shared.
    """

    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.cell, self.mode = cell, cell.mode

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """See `nn.RNNBase`."""
        return self.cell.all_weights

    def forward(self, inputs: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        """Return the results of `cell(inputs, hidden)`, for inputs of one token, (R, 1, E)."""
        inputs = inputs[:, 0]
        if hidden is None:
            zeros = inputs.new_zeros(self.cell.num_layers, inputs.shape[0], self.cell.hidden_size)
            hidden = (zeros, zeros) if self.mode == "LSTM" else zeros
        parts = hidden if self.mode == "LSTM" else (hidden,)
        layers: list[Hidden] = []
        for i, (input_weight, hidden_weight, input_bias, hidden_bias) in enumerate(
            self.all_weights
        ):
            before = tuple(part[i] for part in parts)
            input_gates = F.linear(inputs, input_weight, input_bias)
            hidden_gates = F.linear(before[0], hidden_weight, hidden_bias)
            layers.append(CELL_STEPS[self.mode](input_gates, hidden_gates, *before))
            inputs = layers[-1][0]
        after = tuple(torch.stack(parts) for parts in zip(*layers, strict=True))
        return inputs[:, None], after if self.mode == "LSTM" else after[0]


def gru_step(input_gates: Tensor, hidden_gates: Tensor, hidden: Tensor) -> Hidden:
    """Return the next hidden state of a GRU, from both matrix products, (R, 3 · H) each."""
    input_reset, input_update, input_candidate = input_gates.chunk(3, 1)
    hidden_reset, hidden_update, hidden_candidate = hidden_gates.chunk(3, 1)
    reset = torch.sigmoid(input_reset + hidden_reset)
    update = torch.sigmoid(input_update + hidden_update)
    candidate = torch.tanh(input_candidate + reset * hidden_candidate)
    return (candidate + update * (hidden - candidate),)


def lstm_step(
    input_gates: Tensor, hidden_gates: Tensor, hidden: Tensor, cell_state: Tensor
) -> Hidden:
    """Return the next state of an LSTM, from both matrix products, (R, 4 · H) each."""
    enter, forget, candidate, output = (input_gates + hidden_gates).chunk(4, 1)
    kept = torch.sigmoid(forget) * cell_state
    cell_state = kept + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(output) * torch.tanh(cell_state), cell_state


def rnn_step(input_gates: Tensor, hidden_gates: Tensor, hidden: Tensor) -> Hidden:
    """Return the next hidden state of an RNN, from both matrix products, (R, H) each."""
    return (torch.tanh(input_gates + hidden_gates),)


CELL_STEPS: dict[str, Any] = {"GRU": gru_step, "LSTM": lstm_step, "RNN_TANH": rnn_step}
