"""The same function in fewer passes over memory: layers of a frozen network joined into one.

Batch normalisation in eval mode is a product and a sum for each channel, so it goes into the
convolution before it. On a CPU the activation, and the shortcut's addition before it, are done by
the convolution as it writes its result: each would otherwise read and write all of it once more.
"""

import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Activations that oneDNN can apply to a result: type → its name for them, and their scalars.
ACTIVATIONS: dict[Any, tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    functional.relu: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
ADDITIONS = (operator.add, operator.iadd, torch.add)
NOTHING = (nn.Identity, nn.Dropout)  # in eval mode
# Layers whose result is a tensor of its own, not a view of another.
OWNERS = (nn.Conv2d, nn.MaxPool2d, *(kind for kind in ACTIVATIONS if isinstance(kind, type)))


class FusedConvolution(nn.Module):
    """A convolution that also applies an activation, and before it adds a tensor if there is one.

    The sum is written over the added tensor, which is in the cache already.

    Args:
        conv: its weights and geometry are taken over.
        activation: oneDNN's name of it.
        scalars: parameters of the activation.
    """

    def __init__(self, conv: nn.Conv2d, activation: str, scalars: list[float]) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = geometry_of(conv)
        self.activation, self.scalars = activation, scalars

    def forward(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and perhaps (B, C', H', W') to add → (B, C', H', W')."""
        ops, layer = torch.ops.mkldnn, (self.weight, self.bias, *self.geometry)
        after = (self.activation, self.scalars, "")
        if other is None:
            result: Tensor = ops._convolution_pointwise(inputs, *layer, *after)
        else:
            result = ops._convolution_pointwise_.binary(other, inputs, *layer, "add", 1.0, *after)
        return result


def fold_batch_norms(network: nn.Module) -> int:
    """Fold each batch normalisation into the convolution before it, in place.

    A network that cannot be traced, or a normalisation that follows something else, stays as it is.

    Args:
        network: in eval mode, float32.

    Returns:
        Number of batch normalisations folded.
    """
    graph = trace(network)
    if graph is None:
        return 0
    modules = dict(network.named_modules())
    pairs = [
        (str(before.target), str(node.target))
        for node in graph.nodes
        if is_call(node, modules, nn.BatchNorm2d)
        and is_call(before := node.args[0], modules, nn.Conv2d)
        and len(before.users) == 1
    ]
    # A layer that is called twice may be followed by another normalisation each time.
    num_calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    pairs = [pair for pair in pairs if num_calls[pair[0]] == num_calls[pair[1]] == 1]
    for conv, norm in pairs:
        network.set_submodule(conv, fuse_conv_bn_eval(modules[conv], modules[norm]))
        network.set_submodule(norm, nn.Identity())
    return len(pairs)


def fuse_activations(network: nn.Module) -> tuple[nn.Module, int]:
    """Join convolutions with the additions and activations that follow them, for a CPU.

    Args:
        network: in eval mode, batch normalisations already folded; stays as it is.

    Returns:
        A network that computes the same with the same parameters, and its number of joined
        convolutions; `network` itself where there is nothing to join.
    """
    graph = trace(network)
    if graph is None:
        return network, 0
    modules = dict(network.named_modules())
    for node in list(graph.nodes):
        if is_call(node, modules, *NOTHING):
            replace_node(graph, node, node.args[0])
    fused = fx.GraphModule(network, graph)
    num_joined = sum(_join(fused, modules, node) for node in list(fused.graph.nodes))
    if num_joined == 0:
        return network, 0
    fused.delete_all_unused_submodules()
    fused.recompile()
    return fused.eval(), num_joined


def trace(network: nn.Module) -> fx.Graph | None:
    """The calls that the network makes; None where they depend on its input."""
    try:
        return fx.Tracer().trace(network)
    except Exception:  # tracing runs the network's own code on stand-ins: anything may come
        return None


def is_call(node: Any, modules: dict[str, nn.Module], *kinds: type[nn.Module]) -> bool:
    """Whether the node calls a module of exactly one of these types."""
    is_module = isinstance(node, fx.Node) and node.op == "call_module"
    return is_module and type(modules[str(node.target)]) in kinds


def replace_node(graph: fx.Graph, node: fx.Node, by: Any) -> None:
    """Let `by` take the place of `node`."""
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def _join(fused: fx.GraphModule, modules: dict[str, nn.Module], node: fx.Node) -> bool:
    """Join what ends in `node`, where that is an activation after a convolution.

    Returns:
        Whether it was joined.
    """
    kind = type(modules[str(node.target)]) if node.op == "call_module" else node.target
    activation = ACTIVATIONS.get(kind)
    if activation is None:
        return False
    before: Any = node.args[0]
    addition = before if before.target in ADDITIONS and len(before.users) == 1 else None
    terms = [before] if addition is None else list(addition.args)
    free = (t for t in terms if is_plain_convolution(t, modules) and len(t.users) == 1)
    conv = next(free, None)
    others = [term for term in terms if term is not conv]
    if conv is None or not all(_may_be_overwritten(o, addition, modules) for o in others):
        return False
    name, layer = str(conv.target), modules[str(conv.target)]
    assert isinstance(layer, nn.Conv2d)
    fused.set_submodule(name, FusedConvolution(layer, *activation))
    with fused.graph.inserting_before(node):
        joined = fused.graph.call_module(name, (conv.args[0], *others))
    replace_node(fused.graph, node, joined)
    for done in (addition, conv):
        if done is not None:
            fused.graph.erase_node(done)
    return True


def is_plain_convolution(node: Any, modules: dict[str, nn.Module]) -> bool:
    """Whether the node is a convolution, called once, that fills up with zeros by numbers."""
    if not is_call(node, modules, nn.Conv2d) or len(node.args) != 1:
        return False
    conv: Any = modules[str(node.target)]
    calls = [n for n in node.graph.nodes if n.op == "call_module" and n.target == node.target]
    return len(calls) == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def geometry_of(conv: nn.Conv2d) -> tuple[Any, ...]:
    """Padding, stride, dilation and groups, as oneDNN's layers take them."""
    return conv.padding, conv.stride, conv.dilation, conv.groups


def _may_be_overwritten(other: Any, addition: Any, modules: dict[str, nn.Module]) -> bool:
    """Whether the addition is the last to read `other`, and nothing else lies in its memory."""
    if not is_call(other, modules, *OWNERS):
        return False
    nodes = list(addition.graph.nodes)
    return all(nodes.index(user) <= nodes.index(addition) for user in other.users)
