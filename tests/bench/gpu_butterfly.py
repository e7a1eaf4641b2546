"""How the butterfly in Triton compares with a dense layer and a Monarch matrix on this machine's NVIDIA GPU.

``python tests/bench/gpu_butterfly.py --out gpu.json`` first holds the kernels to PyTorch's own operators, then times
square layers, the most telling first, until ``--budget`` seconds are over (four minutes, compiling included). The table
goes to stdout, and with the environment to the file. ``--dry-run`` does all of it in small on the CPU. Leaves with 4
where there is no GPU, with 3 where a kernel is wrong.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sandtable.errors import NoDevice
from sandtable_kernels.cuda import cuda_cases, cuda_pool, cuda_worker
from sandtable_kernels.pytorch import torch_cases
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.structured.torch_butterfly import butterfly, butterfly_levels

SIDES, ROWS = (1024, 4096, 256, 8192, 2048, 512), (16384, 256, 65536, 4096)
DRY_SIDES, DRY_ROWS = (24,), (40,)
DTYPES, PASSES = ("bfloat16", "float32"), ("forward", "backward")
CONTENDERS = ("butterfly", "dense", "monarch")
COPIED_BYTES = 256 << 20
REPEATS, POINT_S = 7, 1.0
# largest error of an element, as a share of the largest element: three products of tf32, and bfloat16 between passes
TOLERANCE_FRAC = {"float32": 1e-5, "bfloat16": 0.03}
CHECKED = ((64, 64, 4), (256, 256, 4), (1024, 1024, 2), (300, 150, 8), (24, 58, 16))


class Point(NamedTuple):
    """One square layer."""

    rows: int
    n: int
    dtype: str
    which: str


def points(sides: Sequence[int], rows: Sequence[int]) -> list[Point]:
    """Return all layers, forward before backward, and within each the most telling first."""
    return [Point(r, n, dtype, which) for which in PASSES for r in rows for n in sides for dtype in DTYPES]


def case_of(contender: str, point: Point) -> tuple[str, dict[str, Any]]:
    """Return which case times a contender, and with which dims."""
    common = {"dtype": point.dtype, "pass": point.which, "processes": 1}
    if contender == "dense":
        return "gemm", {"m": point.rows, "n": point.n, "k": point.n, **common}
    return contender, {"rows": point.rows, "n": point.n, "base": 4, **common}


def seconds_of(case: str, dims: dict[str, Any], *, dry: bool) -> float:
    """Return the median of a few samples."""
    if dry:
        torch_cases.use(torch_cases.Stopwatch())
        call = cuda_worker.prepared(case, dims)
        return cuda_pool.float_median([call() for _ in range(3)])
    return cuda_pool.float_median(cuda_worker.samples(case, dims, REPEATS, POINT_S))


def errors(*, dry: bool) -> Iterator[tuple[str, float, float]]:
    """Yield what was compared with PyTorch's own operators, the largest error, and the largest that is allowed."""
    n_rows, layouts = (40, CHECKED[-1:]) if dry else (1500, CHECKED)
    for n_in, n_out, base in layouts:
        layout = ButterflyLayout(n_in, n_out, base)
        for dtype in DTYPES:
            x = torch.randn(n_rows, n_in).to(torch_cases.DTYPES[dtype]).requires_grad_()
            weights = (torch.rand(layout.weights_shape) - 0.5).to(x.dtype).requires_grad_()
            grad = torch.randn(n_rows, n_out).to(x.dtype)
            wide = [part.detach().double().requires_grad_() for part in (x, weights)]
            found = butterfly(x, weights, layout)
            wanted = butterfly_levels(wide[0], wide[1], layout)
            pairs = zip(
                (found, *torch.autograd.grad(found, (x, weights), grad)),
                (wanted, *torch.autograd.grad(wanted, wide, grad.double())),
                strict=True,
            )
            worst = max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
            yield f"{n_in} to {n_out}, base {base}, {dtype}", worst, TOLERANCE_FRAC[dtype]


def row_of(point: Point, bytes_per_s: float, *, dry: bool) -> dict[str, Any]:
    """Time every contender at one point."""
    seconds: dict[str, float | None] = {}
    for contender in CONTENDERS:
        try:
            seconds[contender] = seconds_of(*case_of(contender, point), dry=dry)
        except torch.OutOfMemoryError:
            seconds[contender] = None
    own = seconds["butterfly"]
    item = torch_cases.DTYPES[point.dtype].itemsize
    weights = ButterflyLayout(point.n, point.n, 4).parameters
    # rows, results and weights once; backward rows, their gradients, those of the results, and of the weights
    passed = item * (
        3 * point.rows * point.n + 2 * weights if point.which == "backward" else 2 * point.rows * point.n + weights
    )
    return {
        **point._asdict(),
        "seconds": seconds,
        "dense_over_butterfly": _ratio(seconds["dense"], own),
        "monarch_over_butterfly": _ratio(seconds["monarch"], own),
        "bandwidth_limit_frac": _ratio(passed / bytes_per_s, own),
    }


def _ratio(other: float | None, own: float | None) -> float | None:
    return None if other is None or own is None else round(other / own, 3)


def line_of(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [f"{row['rows']:>6} {row['n']:>5} {row['dtype']:>9} {row['which']:>9}"]
    cells += [f"{(row['seconds'][name] or math.nan) * 1e6:>11.1f}" for name in CONTENDERS]
    names = ("dense_over_butterfly", "monarch_over_butterfly", "bandwidth_limit_frac")
    return " ".join([*cells, *(f"{row[name] if row[name] is not None else math.nan:>8.2f}" for name in names)])


def environment(*, dry: bool) -> dict[str, Any]:
    """Return what was timed, and when."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    gpus = [] if dry else cuda_cases.properties()
    software = {"torch": torch.__version__} if dry else cuda_cases.software()
    return {"date": dt.date.today().isoformat(), "gpus": gpus[:1], "software": {**software, "triton": triton}}


def start(*, dry: bool) -> None:
    """Use the GPU, or say that there is none.

    Raises:
        NoDevice: no GPU, no CUDA, or no Triton.
    """
    if dry:
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda_pool.check({"version": torch.__version__, "built": torch.version.cuda, "gpus": gpus}, 1)
    try:
        version("triton")
    except PackageNotFoundError:
        raise NoDevice("butterflies on a GPU need Triton: pip install -e '.[triton]'") from None
    torch.cuda.set_device(0)
    torch.set_default_device("cuda:0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write figures and environment as JSON")
    parser.add_argument("--budget", type=float, default=240.0, metavar="SECONDS")
    parser.add_argument("--dry-run", action="store_true", help="small layers on the CPU: does it run?")
    given = parser.parse_args(arguments)
    begin, dry = time.perf_counter(), given.dry_run
    try:
        start(dry=dry)
    except NoDevice as error:
        print(f"gpu_butterfly: {error}", file=sys.stderr)
        return error.exit_code
    compared = list(errors(dry=dry))
    wrong = [f"{what}: off by {error:.1e}, more than {most}" for what, error, most in compared if not error <= most]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 3
    copied = COPIED_BYTES >> 8 if dry else COPIED_BYTES
    bytes_per_s = 2 * copied / seconds_of("copy", {"n_bytes": copied}, dry=dry)
    print("  rows     n     dtype      pass butterfly us    dense us  monarch us  dense/b monarch/b limit")
    wanted, rows = points(DRY_SIDES, DRY_ROWS) if dry else points(SIDES, ROWS), []
    for point in wanted:
        if time.perf_counter() - begin > given.budget:
            break
        rows.append(row_of(point, bytes_per_s, dry=dry))
        print(line_of(rows[-1]), flush=True)
    print(f"{len(rows)} of {len(wanted)} layers in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if given.out is not None:
        found = {
            "schema": 1,
            **environment(dry=dry),
            "copy_bytes_per_s": bytes_per_s,
            "errors_frac": {what: error for what, error, _ in compared},
            "left_out": [point._asdict() for point in wanted[len(rows) :]],
            "points": rows,
        }
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
