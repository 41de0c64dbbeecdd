"""Fused layers for faster inference with a frozen network.

In eval mode a batch norm scales and shifts each channel, so it can be folded into the convolution
before it. On a CPU, oneDNN can also add a residual and apply an activation while a convolution
writes its output, instead of in separate passes over memory.
"""

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Activations that oneDNN can fuse: layer or function → oneDNN's name and parameters.
ACTIVATIONS: dict[Any, tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    functional.relu: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
ADDITIONS = (operator.add, operator.iadd, torch.add)
NO_OPS = (nn.Identity, nn.Dropout)  # layers that do nothing in eval mode


class FusedConvolution(nn.Module):
    """A convolution, an optional residual and an activation in one layer.

    Args:
        conv: the convolution, whose parameters are shared.
        activation: oneDNN's name of the activation.
        scalars: the activation's parameters.
    """

    def __init__(self, conv: nn.Conv2d, activation: str, scalars: list[float]) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.activation = (activation, scalars, "")  # the last is oneDNN's algorithm; default

    def forward(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return activation(conv(inputs) + residual).

        Args:
            inputs: (B, C, H, W).
            residual: (B, C', H', W'), like the result.
        """
        convolve = torch.ops.mkldnn._convolution_pointwise
        layer = (self.weight, self.bias, *self.geometry)
        if residual is None:
            result: Tensor = convolve(inputs, *layer, *self.activation)
        else:
            result = convolve.binary(inputs, residual, *layer, "add", 1.0, *self.activation)
        return result


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in place.

    Batch norms that follow another kind of layer remain, and layers that cannot be traced are not
    changed.

    Args:
        network: float32, in eval mode.
    """
    graph = trace(network)
    if graph is None:
        return
    num_calls = count_calls(network, graph)
    for norm in graph.nodes:
        if type(called_layer(network, norm)) is not nn.BatchNorm2d:
            continue
        conv = norm.all_input_nodes[0]
        # A layer that is called twice may have another neighbour each time.
        used_once = num_calls[conv.target] == num_calls[norm.target] == len(conv.users) == 1
        if used_once and type(called_layer(network, conv)) is nn.Conv2d:
            layers: list[Any] = [network.get_submodule(node.target) for node in (conv, norm)]
            network.set_submodule(conv.target, fuse_conv_bn_eval(*layers))
            network.set_submodule(norm.target, nn.Identity())


def fuse_activations(network: nn.Module) -> nn.Module:
    """Fuse convolutions with the additions and activations that follow them, for a CPU.

    The result should be compared with `network` on an example: oneDNN does not support every layer,
    and operations in place between the fused layers are not noticed.

    Args:
        network: in eval mode, with batch norms folded; not changed.

    Returns:
        A network with the same parameters; `network` itself if nothing can be fused.
    """
    graph = trace(network)
    if graph is None:
        return network
    num_calls = count_calls(network, graph)
    fused = fx.GraphModule(network, graph)
    for node in list(fused.graph.nodes):
        if type(called_layer(fused, node)) in NO_OPS:
            node.replace_all_uses_with(node.all_input_nodes[0])
            fused.graph.erase_node(node)
    is_fused = [_fuse_into_convolution(fused, node, num_calls) for node in list(fused.graph.nodes)]
    if not any(is_fused):
        return network
    fused.delete_all_unused_submodules()
    fused.recompile()
    return fused.eval()


class PartialTracer(fx.Tracer):
    """Trace a network; a layer whose calls depend on its input becomes a single node."""

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace through a layer if possible; see `fx.Tracer`."""
        num_nodes, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # tracing runs the layer's own code, which may raise anything
            self.module_stack = stack
            for node in reversed(list(self.graph.nodes)[num_nodes:]):
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def trace(network: nn.Module) -> fx.Graph | None:
    """Return the graph of the network's calls; None if they depend on its input."""
    try:
        return PartialTracer().trace(network)
    except Exception:  # tracing runs the network's own code, which may raise anything
        return None


def count_calls(network: nn.Module, graph: fx.Graph) -> Counter[Any]:
    """Return name of a layer → number of times that it is called.

    A layer inside one that could not be traced counts as called once there.
    """
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    inner = (
        f"{name}.{child}"
        for name in called
        for child, _ in network.get_submodule(name).named_modules()
        if child
    )
    return Counter([*called, *inner])


def called_layer(network: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the layer that a node calls; None if it calls something else."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _fuse_into_convolution(
    fused: fx.GraphModule, activation: fx.Node, num_calls: Counter[Any]
) -> bool:
    """Replace an activation, the addition and the convolution before it by a `FusedConvolution`.

    Args:
        fused: the network, changed in place.
        activation: any node of its graph.
        num_calls: from `count_calls`.

    Returns:
        Whether `activation` is an activation after a convolution.
    """
    layer = called_layer(fused, activation)
    kind = activation.target if layer is None else type(layer)
    if kind not in ACTIVATIONS:
        return False
    source = activation.all_input_nodes[0]
    addition = source if _is_plain_addition(source) else None
    terms = source.all_input_nodes if addition else [source]
    conv = next((term for term in terms if _can_be_fused(fused, term, num_calls)), None)
    if conv is None:
        return False
    name = str(conv.target)
    plain: Any = fused.get_submodule(name)
    fused.set_submodule(name, FusedConvolution(plain, *ACTIVATIONS[kind]))
    inputs = (conv.args[0], *(term for term in terms if term is not conv))
    with fused.graph.inserting_before(activation):
        activation.replace_all_uses_with(fused.graph.call_module(name, inputs))
    for node in (activation, addition, conv):
        if node is not None:
            fused.graph.erase_node(node)
    return True


def _is_plain_addition(node: fx.Node) -> bool:
    """Return whether the node adds two different tensors and has one user."""
    is_sum = node.target in ADDITIONS and len(node.all_input_nodes) == 2 and not node.kwargs
    return is_sum and len(node.users) == 1


def _can_be_fused(network: nn.Module, node: fx.Node, num_calls: Counter[Any]) -> bool:
    """Return whether the node is a convolution that oneDNN can fuse, with one call and one user."""
    conv = called_layer(network, node)
    if not (type(conv) is nn.Conv2d and len(node.args) == 1):
        return False
    has_plain_padding = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return has_plain_padding and num_calls[node.target] == len(node.users) == 1
