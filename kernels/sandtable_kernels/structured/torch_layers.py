"""Layers of PyTorch with a structured matrix: in place of ``nn.Linear``, and of a convolution of one pixel.

Any structure by its name; the options of a structure are those of `sandtable_kernels.structured.structures`, and a
butterfly takes ``base`` and ``residual`` instead. Imported only where PyTorch is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sandtable.errors import ConfigError, UnknownName
from sandtable_kernels.structured.butterfly import initial_weights
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.structured.torch_butterfly import butterfly
from sandtable_kernels.structured.torch_structures import StructuredModule

BUTTERFLY = "butterfly"
# options by name, or what gives them for a number of inputs and of outputs
Options = Mapping[str, Any] | Callable[[int, int], Mapping[str, Any]] | None


class ButterflyModule(nn.Module):
    """A butterfly transform that learns, without a bias: [..., n_in] to [..., n_out].

    Args:
        n_in: Inputs.
        n_out: Outputs.
        base: Positions that each level mixes.
        residual: Add each square transform's input to its output (section 3.2 of arXiv 1906.02256).

    Raises:
        ConfigError: sizes or a base that no transform has; inputs of another width.
    """

    def __init__(self, n_in: int, n_out: int, *, base: int = 4, residual: bool = True) -> None:
        super().__init__()
        self.layout = ButterflyLayout(n_in, n_out, base)
        # what is computed once is computed before torch.compile traces, which does not know its lock
        assert self.layout.strides
        self.residual = residual
        self.weight = nn.Parameter(torch.empty(self.layout.weights_shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the paper's initial weights, by PyTorch's seed."""
        seed = int(torch.randint(1 << 62, (), device="cpu"))
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(initial_weights(self.layout, np.random.default_rng(seed))))

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last dimension."""
        return butterfly(x, self.weight, self.layout, residual=self.residual)

    def extra_repr(self) -> str:
        """Describe sizes and options in the module's text."""
        layout = self.layout
        return f"n_in={layout.n_in}, n_out={layout.n_out}, base={layout.base}, residual={self.residual}"


def matrix(
    structure: str, n_in: int, n_out: int, *, base: int = 4, residual: bool = True, options: Options = None
) -> nn.Module:
    """Return a structured matrix that learns, without a bias: [..., n_in] to [..., n_out].

    ``base`` and ``residual`` are a butterfly's, ``options`` any other structure's.

    Raises:
        ConfigError: sizes or options that the structure cannot have.
        UnknownName: no such structure.
    """
    chosen = dict(options(n_in, n_out) if callable(options) else options or {})
    if structure != BUTTERFLY:
        return StructuredModule(structure, n_in, n_out, **chosen)
    if chosen:
        raise ConfigError(f"a butterfly has no option {', '.join(sorted(chosen))}: it has base and residual")
    return ButterflyModule(n_in, n_out, base=base, residual=residual)


class _WithBias(nn.Module):
    """A structured matrix and, where wanted, a bias; see `StructuredLinear` for the arguments."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        structure: str = BUTTERFLY,
        *,
        base: int = 4,
        residual: bool = True,
        bias: bool = True,
        options: Options = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.structure = structure
        self.matrix = matrix(structure, n_in, n_out, base=base, residual=residual, options=options)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(_first_bias(n_in, n_out)) if bias else None)
        self.to(device=device, dtype=dtype)

    def rows(self, x: Tensor) -> Tensor:
        """Multiply the last dimension and add the bias."""
        y: Tensor = self.matrix(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Describe what the matrix does not say of itself."""
        return f"bias={self.bias is not None}"


def _first_bias(n_in: int, n_out: int) -> Tensor:
    """Return the bias with which PyTorch's own layers begin."""
    bound = 1 / math.sqrt(n_in)
    return torch.empty(n_out).uniform_(-bound, bound)


class StructuredLinear(_WithBias):
    """In place of ``nn.Linear``: [..., n_in] to [..., n_out] by a structured matrix.

    Args:
        n_in: Inputs.
        n_out: Outputs.
        structure: "butterfly", or one of `structures.STRUCTURES`.
        base: Of a butterfly.
        residual: Of a butterfly.
        bias: Add one.
        options: Of any other structure, such as its rank, or what gives them for ``n_in`` and ``n_out``.
        device: Where its parameters lie.
        dtype: Their element type.

    Raises:
        ConfigError: sizes or options that the structure cannot have; inputs that it does not take.
        UnknownName: no such structure.
    """

    def __init__(self, n_in: int, n_out: int, structure: str = BUTTERFLY, **settings: Any) -> None:
        super().__init__(n_in, n_out, structure, **settings)
        self.in_features, self.out_features = n_in, n_out

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the last dimension."""
        return self.rows(x)


class StructuredPointwise(_WithBias):
    """In place of a convolution of one pixel: maps [batch, n_in, h, w] to [batch, n_out, h / stride, w / stride].

    The result has the memory format of the maps. In channels_last the maps are rows already, and nothing is copied.

    Args:
        n_in: Channels of the input.
        n_out: Channels of the output.
        structure: As of `StructuredLinear`, like all that follow.
        stride: Take every so many rows and columns of pixels.
        **settings: ``base``, ``residual``, ``bias``, ``options``, ``device`` and ``dtype``.

    Raises:
        ConfigError, UnknownName: as `StructuredLinear` does.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        structure: str = BUTTERFLY,
        *,
        stride: int | tuple[int, int] = 1,
        **settings: Any,
    ) -> None:
        super().__init__(n_in, n_out, structure, **settings)
        self.in_channels, self.out_channels = n_in, n_out
        self.stride = (stride, stride) if isinstance(stride, int) else tuple(stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Multiply the channels of every pixel."""
        if maps.dim() not in (3, 4) or maps.shape[-3] != self.in_channels:
            raise ConfigError(
                f"maps of {self.in_channels} channels, [batch, {self.in_channels}, height, width], are taken, not a "
                f"tensor {tuple(maps.shape)}"
            )
        down, right = self.stride
        y = self.rows(maps[..., ::down, ::right].movedim(-3, -1)).movedim(-1, -3)
        return y.contiguous() if _is_plain(maps) else y

    def extra_repr(self) -> str:
        """Describe what the matrix does not say of itself."""
        return super().extra_repr() if self.stride == (1, 1) else f"stride={self.stride}, {super().extra_repr()}"


def _is_plain(maps: Tensor) -> bool:
    """Return whether one channel lies behind the other, and could not as well be said to lie pixel by pixel."""
    return maps.is_contiguous() and not (maps.dim() == 4 and maps.is_contiguous(memory_format=torch.channels_last))


# --- whole networks ----------------------------------------------------------------------------------------


class Replaced(NamedTuple):
    """Names of the convolutions that were replaced, and of those kept one sentence each that says why."""

    names: tuple[str, ...]
    kept: dict[str, str]


def replace_pointwise(
    network: nn.Module,
    structure: str = BUTTERFLY,
    *,
    skip: Collection[str] = (),
    base: int = 4,
    residual: bool = True,
    options: Options = None,
) -> Replaced:
    """Put a structured matrix in the place of every convolution of one pixel within ``network``.

    Biases, strides, devices, element types and the memory format of activations stay; weights begin anew.

    Args:
        network: Changed in place.
        structure: As of `StructuredLinear`, like what follows.
        skip: Names of convolutions to leave as they are.
        base: Of butterflies.
        residual: Of butterflies.
        options: Of other structures, or what gives them for the channels of a convolution.

    Raises:
        ConfigError: options that the structure cannot have at the size of a convolution.
        UnknownName: no such structure, or a name to skip that is none of a convolution of one pixel.
    """
    found = dict(_pointwise(network))
    for name in skip:
        if name not in found:
            raise UnknownName("convolution of one pixel", name, found)
    kept = {name: f"{name} is to be skipped" for name in skip}
    kept |= {name: why for name, one in found.items() if name not in kept and (why := _obstacle(name, one))}
    names = tuple(name for name in found if name not in kept)
    made: dict[nn.Conv2d, nn.Module] = {}  # a module may stand in two places
    for name in names:
        one = found[name]
        if one not in made:
            settings = {"base": base, "residual": residual, "options": options, "bias": one.bias is not None}
            place = {"device": one.weight.device, "dtype": one.weight.dtype}
            stride = (one.stride[0], one.stride[1])
            new = StructuredPointwise(
                one.in_channels, one.out_channels, structure, stride=stride, **settings, **place
            )
            made[one] = new.train(one.training)
        network.set_submodule(name, made[one])
    return Replaced(names, kept)


def _pointwise(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for name, module in network.named_modules(remove_duplicate=False):
        if name and isinstance(module, nn.Conv2d) and tuple(module.kernel_size) == (1, 1):
            yield name, module


def _obstacle(name: str, one: nn.Conv2d) -> str | None:
    """Say why a convolution stays, or return None."""
    if one.groups != 1:
        return f"{name} mixes its channels in {one.groups} groups, of which no structure here is made"
    if one.padding not in (0, (0, 0), "same", "valid"):
        return f"{name} adds {one.padding} pixels of padding, which a matrix per pixel cannot"
    return None


def parameter_groups(
    network: nn.Module, *, weight_decay: float, butterfly_weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return an optimizer's groups: the weights of butterflies, which decay little or not at all, and all others.

    An entry of a butterfly is a product of one weight per level, so that decay of each draws it down as many times
    (section 3.2 of arXiv 1906.02256).
    """
    own = {module.weight for module in network.modules() if isinstance(module, ButterflyModule)}
    others = [parameter for parameter in network.parameters() if parameter not in own]
    transforms = [parameter for parameter in network.parameters() if parameter in own]
    groups = [(others, weight_decay), (transforms, butterfly_weight_decay)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]
