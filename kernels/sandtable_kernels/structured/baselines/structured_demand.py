"""What rows times a structured matrix ask of a machine, as `torch_structures` executes them, all rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

from sandtable.demand.op import Op
from sandtable_kernels.pytorch.vision_demand import DIRECT, Setting
from sandtable_kernels.structured.baselines.block_shuffle import BlockShuffle
from sandtable_kernels.structured.baselines.circulant import CyclicProduct
from sandtable_kernels.structured.baselines.low_rank import LowRank
from sandtable_kernels.structured.baselines.monarch import Monarch
from sandtable_kernels.structured.baselines.structured_law import CODES, StructuredShape
from sandtable_kernels.structured.baselines.structured_product import StructuredProduct

# a backward pass multiplies twice: by the weights, and by the rows that it kept
BACKWARD_PRODUCTS = 2
# kernels that look up the column of a circulant matrix, transform it and rows, multiply, and transform back
TRANSFORM_KERNELS = 6


@dataclass(frozen=True, slots=True)
class Executed:
    """Numbers that all kernels read and write together, of each row and of the weights; and calls of a library."""

    row_items: int
    n_calls: int
    weight_items: int


def executed(product: StructuredProduct) -> Executed:
    """Return what eager PyTorch does for a product forward."""
    n_in, n_out = product.n_in, product.n_out
    if isinstance(product, LowRank):
        return Executed(n_in + 2 * product.rank + n_out, 2, product.parameters)
    if isinstance(product, CyclicProduct):
        length, spectrum = product.length, product.length + 2
        padding = n_in + length if length > n_in else 0
        # rows to spectra, spectra times the column's, spectra to rows
        row_items = padding + (length + spectrum) + 2 * spectrum + (spectrum + length)
        return Executed(row_items, TRANSFORM_KERNELS, product.parameters + 3 * length)
    if isinstance(product, Monarch):
        b, hidden = product.n_blocks, product.n_blocks**2 * product.share
        turned = 2 * hidden if product.share > 1 else 0
        outputs = b * product.width_out
        row_items = _padded(n_in, b * product.width_in) + 2 * hidden + turned + 3 * outputs
        # both products, the numbers between them turned, and the order of outputs
        n_calls = 3 + (n_in < b * product.width_in) + (product.share > 1)
        return Executed(row_items, n_calls, product.parameters)
    if isinstance(product, BlockShuffle):
        width_in, width_out = product.n_groups * product.width_in, product.n_groups * product.width_out
        return Executed(_padded(n_in, width_in) + 3 * width_out, 2 + (n_in < width_in), product.parameters)
    return Executed(n_in + n_out, 1, product.parameters)


def _padded(n_in: int, width: int) -> int:
    """Return the numbers moved to read rows, with zeros put behind them first where they are shorter."""
    return n_in if width == n_in else n_in + 2 * width


def structured_op(
    name: str, product: StructuredProduct, rows: int, setting: Setting = DIRECT, *, among: bool = False
) -> Op:
    """Return the demand of rows (pixels) times a matrix of any structure but a butterfly, or of both gradients.

    ``among``: it is a module of PyTorch, called between other layers.
    """
    times, done = (BACKWARD_PRODUCTS if setting.backward else 1), executed(product)
    flops = 2 * times * (rows * product.multiplications + product.weights_multiplications)
    n_bytes = times * setting.item_bytes * (rows * done.row_items + done.weight_items)
    return Op(
        name=name,
        operator="structured_product",
        account="compute",
        dtype=setting.dtype,
        flops=flops,
        bytes_read=n_bytes,
        n_items=rows,
        shape=StructuredShape(
            CODES.index(product.structure),
            flops,
            times * rows * product.sums,
            n_bytes,
            times * done.n_calls,
            setting.n_cores,
            float(setting.training),
            float(among),
        ),
        on=setting.on,
        section=setting.section,
    )


def typical_options(structure: str, n_in: int, n_out: int) -> dict[str, int]:
    """Return the options with which a structure is timed: such that it takes far fewer multiplications than dense."""
    small = min(n_in, n_out)
    if structure == "low_rank":
        return {"rank": max(1, small // 32)}
    return {"n_groups": min(small, 8)} if structure == "block_shuffle" else {}
