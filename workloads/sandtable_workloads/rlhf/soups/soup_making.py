"""Soups of checkpoints: uniform, weighted, or greedy by a score (Wortsman et al., "Model soups", arXiv 2203.05482)."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sandtable.errors import ConfigError
from sandtable.system import atomic_files, limits
from sandtable.system.atomic_files import write_atomically
from sandtable_kernels.files import container
from sandtable_workloads.rlhf.soups import soup_checks, soup_pass
from sandtable_workloads.rlhf.soups.checkpoint_files import INDEX, Checkpoint, open_checkpoint
from sandtable_workloads.rlhf.soups.soup_arithmetic import NAMES
from sandtable_workloads.rlhf.soups.soup_layout import SoupFile, laid_out
from sandtable_workloads.rlhf.soups.soup_pass import Averaging, PassStats, Progress

Say = Callable[[str], None]
Score = Callable[[Path], float]
# buffers of a pass, unless less memory is given; more of it would not be faster
MEMORY_BYTES: Final = 1e9
RECORD: Final = "soup.json"
# what goes with the weights, of the first model
_COPIED: Final = (
    *soup_checks.TOKENIZERS,
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_TYPES: Final = {name: kind for kind, name in NAMES.items() if kind != "F64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Soup:
    """What was averaged, and what that took.

    Attributes:
        path: The new checkpoint.
        weights: By path of a model, those that had none left out.
        n_params: Elements that were averaged, of one model.
        dtypes: Types of these in the soup.
        bytes_read, bytes_written: Traffic of all passes.
        seconds: Time of the passes, until all was on the disk.
        buffer_bytes: Memory of blocks on their way.
        resident_bytes: Most that this process has ever held, by the system's account; None where it does not tell.
        notes: What was odd.
        scores: Of a greedy soup: of each model alone, by path.
        score: Of a greedy soup.
    """

    path: Path
    weights: Mapping[str, float]
    n_params: int
    dtypes: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    seconds: float
    buffer_bytes: int
    resident_bytes: int | None = None
    notes: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None
    score: float | None = None

    @property
    def read_bytes_per_s(self) -> float:
        """Bytes of checkpoints that were read in a second of the passes."""
        return self.bytes_read / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SoupOptions:
    """How soups are made, whatever their weights.

    Attributes:
        dtype: float32, float16 or bfloat16 for the result; None for that of the models.
        memory_bytes: What buffers may take.
        ignore_tokenizer: Average models whose tokenizers differ.
        allow_nonfinite: Average infinities and NaNs, with a note, instead of refusing them.
        say: Told what is odd.
        progress: Told bytes written and to be written.
    """

    dtype: str | None = None
    memory_bytes: float = MEMORY_BYTES
    ignore_tokenizer: bool = False
    allow_nonfinite: bool = False
    say: Say = lambda _: None
    progress: Progress = lambda _, __: None


def soup(
    models: Sequence[str | Path],
    output: str | Path,
    weights: Sequence[float] | None = None,
    *,
    normalize: bool = False,
    options: SoupOptions | None = None,
) -> Soup:
    """Average checkpoints in weight space, and write the result as one that loads like them.

    Args:
        models: Folders as Hugging Face writes them, or safetensors files; at least one.
        output: A folder, or a file, that does not exist yet; it appears when it is whole.
        weights: One for each, with a sum of one; negative ones extrapolate. Equal ones for None.
        normalize: Divide them by their sum.
        options: The rest.

    Raises:
        ConfigError: models that do not fit together, weights, values that are not finite, an output that exists.
        DoesNotFit: the disk is too small, or became full.
    """
    options = options or SoupOptions()
    chosen = soup_checks.normalized(weights, len(models), normalize=normalize)
    checkpoints = _checked(models, Path(output), options)
    files = laid_out(checkpoints, _type_named(options.dtype))
    container.check_free(Path(output), sum(file.n_bytes for file in files))
    with _appearing(Path(output), folder=checkpoints[0].is_folder) as target:
        found = _written(checkpoints, chosen, files, target, options)
    return replace(found, path=Path(output), resident_bytes=limits.status_bytes("VmHWM"))


def greedy_soup(
    models: Sequence[str | Path],
    output: str | Path,
    score: Score,
    *,
    options: SoupOptions | None = None,
) -> Soup:
    """Average the checkpoints that make the average better, by a score of validation, and write it.

    Models are tried from the best alone to the worst; one stays if the score of the uniform soup with it is not less
    than without (recipe 1 of arXiv 2203.05482). Two soups lie on the disk at a time.

    Args:
        models: As `soup` has it.
        output: As `soup` has it.
        score: Gives the score of the checkpoint at a path; higher is better.
        options: The rest.

    Raises:
        ConfigError, DoesNotFit: as `soup`; also a score that is not finite.
    """
    options = options or SoupOptions()
    target = Path(output)
    checkpoints = _checked(models, target, options)
    files = laid_out(checkpoints, _type_named(options.dtype))
    container.check_free(target, 2 * sum(file.n_bytes for file in files))
    with _appearing(target, folder=checkpoints[0].is_folder, room=True) as best:
        return _greedy(checkpoints, best, score, options, target)


def _greedy(models: Sequence[Checkpoint], best: Path, score: Score, options: SoupOptions, output: Path) -> Soup:
    alone = {str(model.path): _finite(score(model.path), model.path) for model in models}
    options.say(f"  alone: {', '.join(f'{path} {value:.6g}' for path, value in alone.items())}")
    order = sorted(models, key=lambda model: -alone[str(model.path)])
    members, value = order[:1], alone[str(order[0].path)]
    passes: list[Soup] = []
    for model in order[1:]:
        candidate = best.with_name("candidate" + best.suffix)
        passes.append(_uniform([*members, model], candidate, options))
        found = _finite(score(candidate), candidate)
        stays = found >= value
        options.say(f"  with {model.path}: {found:.6g}, {'stays' if stays else 'left out'}")
        if stays:
            members, value = [*members, model], found
            _remove(best)
            candidate.replace(best)
        else:
            _remove(candidate)
    if len(members) == 1:
        passes.append(_uniform(members, best, options))
    used = _by_path(members, (1 / len(members),) * len(members))
    _record(best, used, passes[-1].dtypes, {"scores": alone, "score": value})
    return replace(
        passes[-1],
        path=output,
        weights=used,
        bytes_read=sum(each.bytes_read for each in passes),
        bytes_written=sum(each.bytes_written for each in passes),
        seconds=sum(each.seconds for each in passes),
        notes=tuple(dict.fromkeys(note for each in passes for note in each.notes)),
        resident_bytes=limits.status_bytes("VmHWM"),
        scores=alone,
        score=value,
    )


def _by_path(models: Sequence[Checkpoint], weights: Sequence[float]) -> dict[str, float]:
    """Return weights by path; those of a model that is named twice add up."""
    found: dict[str, float] = {}
    for model, weight in zip(models, weights, strict=True):
        found[str(model.path)] = found.get(str(model.path), 0.0) + weight
    return found


def _finite(value: float, path: Path) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"its score is {value}, and scores are finite numbers", file=str(path))
    return value


def _uniform(models: Sequence[Checkpoint], target: Path, options: SoupOptions) -> Soup:
    if models[0].is_folder:
        target.mkdir()
    files = laid_out(models, _type_named(options.dtype))
    return _written(models, (1 / len(models),) * len(models), files, target, options)


def _type_named(dtype: str | None) -> str | None:
    if dtype is not None and dtype not in _TYPES:
        raise ConfigError(f"--dtype is {', '.join(_TYPES)}, not {dtype!r}")
    return None if dtype is None else _TYPES[dtype]


def _checked(models: Sequence[str | Path], output: Path, options: SoupOptions) -> list[Checkpoint]:
    if not models:
        raise ConfigError("name the checkpoints to average")
    for model in map(Path, models):
        if output.exists() and model.exists() and output.samefile(model):
            raise ConfigError("is one of the checkpoints: choose another name for their soup", file=str(output))
    if output.exists() or output.is_symlink():
        raise ConfigError("exists already: choose another name, or delete it", file=str(output))
    if not output.absolute().parent.is_dir():
        raise ConfigError("its folder does not exist: make it first", file=str(output))
    found = [open_checkpoint(Path(model)) for model in models]
    soup_checks.check_same(found, ignore_tokenizer=options.ignore_tokenizer, say=options.say)
    if not found[0].is_folder and output.suffix != ".safetensors":
        raise ConfigError(
            "the soup of files is a file: give it a name that ends with .safetensors", file=str(output)
        )
    if found[0].is_folder and output.suffix == ".safetensors":
        raise ConfigError("the soup of folders is a folder, with their configuration: name one", file=str(output))
    return found


@contextmanager
def _appearing(output: Path, *, folder: bool, room: bool = False) -> Iterator[Path]:
    """Give a path to write that takes the name of ``output`` at the end, and goes if anything is raised.

    It lies in a folder of its own beside ``output``. A folder is made, unless ``room`` says that others are to lie
    beside it first.
    """
    with ExitStack() as stack:
        with _explained(output):
            beside = stack.enter_context(atomic_files.temporary_folder(output.absolute().parent, "output"))
            target = beside / f"soup{output.suffix if not folder else ''}"
            if folder and not room:
                target.mkdir()
        yield target
        if output.exists():
            raise ConfigError("was made by another process meanwhile", file=str(output))
        with _explained(output):
            target.replace(output)


@contextmanager
def _explained(output: Path, n_bytes: int = 0) -> Iterator[None]:
    """Raise what the system says of writing as a sentence."""
    try:
        yield
    except PermissionError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=str(output)) from error
    except OSError as error:
        raise container.explained(output, n_bytes, error) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _written(
    models: Sequence[Checkpoint],
    weights: Sequence[float],
    files: Sequence[SoupFile],
    target: Path,
    options: SoupOptions,
) -> Soup:
    """Average checkpoints into a file, or a folder that is there."""
    stats, total, done = PassStats(), sum(file.data_bytes for file in files), 0

    def told(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        options.progress(done, total)

    averaging = Averaging(weights=tuple(weights), allow_nonfinite=options.allow_nonfinite)
    slots = soup_pass.Slots(files, len(models), options.memory_bytes)
    soup_pass.warm_up(files)
    begin = time.perf_counter()
    for file in files:
        path = target / file.name if models[0].is_folder else target
        soup_pass.write_file(path, file, averaging, slots, stats, told)
    seconds = time.perf_counter() - begin
    notes = [f"{told} ({count:,} values)" for told, count in stats.notes.items()]
    for note in notes:
        options.say(f"  ! {note}")
    used = _by_path(models, weights)
    dtypes = tuple(
        sorted({NAMES[placed.dtype] for file in files for placed in file.tensors if placed.dtype in NAMES})
    )
    if models[0].is_folder:
        with _explained(target, total):
            _write_rest(models[0].path, target, files, options.dtype)
            _record(target, used, dtypes, {})
    return Soup(
        path=target,
        weights=used,
        n_params=models[0].n_params,
        dtypes=dtypes,
        bytes_read=stats.bytes_read,
        bytes_written=stats.bytes_written,
        seconds=seconds,
        buffer_bytes=slots.n_bytes,
        notes=tuple(notes),
    )


def _write_rest(first: Path, target: Path, files: Sequence[SoupFile], dtype: str | None) -> None:
    """Write what goes with the weights: the index of several files, configuration and tokenizer of the first model."""
    if (first / INDEX).is_file():
        names = {placed.sources[0].name: file.name for file in files for placed in file.tensors}
        size = sum(placed.end - placed.at for file in files for placed in file.tensors)
        index = {"metadata": {"total_size": size}, "weight_map": names}
        write_atomically(target / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    code_and_licences = (path.name for pattern in ("*.py", "LICENSE*") for path in first.glob(pattern))
    for name in (*_COPIED, *code_and_licences):
        if (first / name).is_file():
            shutil.copyfile(first / name, target / name)
    if dtype is not None and (target / "config.json").is_file():
        _state_type(target / "config.json", dtype)


def _state_type(config: Path, dtype: str) -> None:
    stated = json.loads(config.read_text(encoding="utf-8"))
    keys = [key for key in ("torch_dtype", "dtype") if key in stated] or ["torch_dtype"]
    stated |= dict.fromkeys(keys, dtype)
    write_atomically(config, json.dumps(stated, indent=2) + "\n")


def _record(target: Path, weights: Mapping[str, float], dtypes: Sequence[str], more: Mapping[str, Any]) -> None:
    """Write beside the weights of what the soup was made."""
    if target.is_dir():
        found = {"kind": "soup", "weights": dict(weights), "dtypes": list(dtypes)} | dict(more)
        write_atomically(target / RECORD, json.dumps(found, indent=2) + "\n")
