"""What the layers of a vision network demand, forward and backward, as eager PyTorch runs them one by one.

Nothing is fused: a batch norm and an activation each read and write the whole map. What each kind of layer dispatches
is counted in `sandtable_kernels.pytorch.vision_demand`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sandtable.demand.op import Op, Where
from sandtable.hardware import Machine
from sandtable_kernels.pytorch import vision_demand as demand
from sandtable_kernels.pytorch.vision_demand import Maps, Setting
from sandtable_kernels.structured.baselines.structured_demand import structured_op
from sandtable_kernels.structured.butterfly_law import butterfly_op
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.structured.structures import structured
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.networks import Layer, Network

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """How layers are run: how often a step does what a `Network` counts once, the type, where, by how many cores.

    ``n_cores`` 0: all. ``alone``: it is one layer, which inference calls without a module.
    """

    n: int
    dtype: str
    on: Where
    n_cores: int
    alone: bool = False

    @classmethod
    def of(cls, p: ButterflyVision, machine: Machine) -> Runs:
        """Return how these parameters are run on a machine."""
        on: Where = "host" if machine.accelerator is None else "accelerator"
        return cls(n=p.n_images, dtype=p.precision, on=on, n_cores=p.threads or 0, alone=p.is_layer)

    def setting(self, section: str = "") -> Setting:
        """Return how ops of a section are executed."""
        return Setting(
            dtype=self.dtype,
            n_cores=self.n_cores,
            on=self.on,
            training=section == FORWARD,
            backward=section == BACKWARD,
            section=section,
        )


def inference_ops(network: Network, runs: Runs) -> tuple[Op, ...]:
    """Return a forward pass, without a section."""
    return tuple(_passed(network.layers, runs, runs.setting()))


def training_ops(network: Network, runs: Runs) -> tuple[Op, ...]:
    """Return a step: forward with the loss, backward, and SGD."""
    forward, backward = runs.setting(FORWARD), runs.setting(BACKWARD)
    losses = [
        [] if runs.alone else demand.loss("loss", runs.n, network.classes, how) for how in (forward, backward)
    ]
    n_tensors = sum(_n_tensors(layer) for layer in network.layers)
    ops = [
        *_passed(network.layers, runs, forward),
        *_sustained(losses),
        *_passed(tuple(reversed(network.layers)), runs, backward),
        *_sustained([demand.sgd("sgd", network.parameters, n_tensors, runs.setting(OPTIMIZER))]),
    ]
    return tuple(ops)


def _n_tensors(layer: Layer) -> int:
    """Return how many tensors of a layer are trained."""
    return 0 if not layer.parameters else 2 if layer.kind == "norm" or layer.bias else 1


def _passed(layers: tuple[Layer, ...], runs: Runs, setting: Setting) -> Iterator[Op]:
    for layer in layers:
        yield from _sustained([ops_of(layer, runs, setting)])


def _sustained(layers: list[list[Op]]) -> Iterator[Op]:
    for ops in layers:
        yield from (replace(op, sustained=True) for op in ops)


def ops_of(layer: Layer, runs: Runs, setting: Setting) -> list[Op]:
    """Return what one layer dispatches in the pass that ``setting`` names."""
    name, n_in, n_out = layer.kind, layer.n_in, layer.n_out
    maps, elements = Maps(runs.n, layer.side_out, layer.side_out), runs.n * layer.activation_elements
    window = {"kernel": layer.kernel, "stride": layer.stride}
    match layer.kind:
        case "pointwise":
            return _pointwise(layer, maps, runs, setting)
        case "conv":
            return demand.convolution(name, maps, n_in, n_out, setting, **window)
        case "depthwise":
            return demand.depthwise(name, maps, n_out, setting, **window)
        case "linear":
            return demand.linear(name, runs.n, n_in, n_out, setting, operator="image_linear among")
        case "norm":
            return demand.batch_norm(name, maps, n_out, setting)
        case "activation":
            return demand.activation(name, layer.function, elements, setting)
        case "scale":
            return demand.scaled(name, maps, n_out, setting)
        case "add":
            return demand.add(name, elements, setting)
        case "concat":
            return demand.copied(name, elements, setting)
        case "shuffle":
            return demand.shuffled(name, elements, setting)
        case "pool":
            return _pool(layer, maps, runs, setting, window)
        case "slice":
            return demand.view(name, runs.n * layer.input_elements, setting)


def _pool(layer: Layer, maps: Maps, runs: Runs, setting: Setting, window: dict[str, int]) -> list[Op]:
    if layer.function == "mean":
        return demand.mean_pool(layer.kind, Maps(runs.n, layer.side_in, layer.side_in), layer.n_in, setting)
    return demand.max_pool(layer.kind, maps, layer.n_in, setting, **window)


def _pointwise(layer: Layer, maps: Maps, runs: Runs, setting: Setting) -> list[Op]:
    """A dense convolution, the product of a layer alone, or a structured matrix times the rows of a map."""
    name, rows, n_in, n_out = layer.kind, maps.positions, layer.n_in, layer.n_out
    if not layer.is_structured:
        dense = demand.linear(name, rows, n_in, n_out, setting)
        return dense if runs.alone else demand.convolution(name, maps, n_in, n_out, setting)
    among = not runs.alone or bool(setting.section)
    if layer.structure == "butterfly":
        layout = ButterflyLayout(n_in, n_out, layer.base)
        return [butterfly_op(name, layout, rows, setting, among=among)]
    product = structured(layer.structure, n_in, n_out, **dict(layer.options))
    return [structured_op(name, product, rows, setting, among=among)]
