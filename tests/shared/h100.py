"""An H100 as calibration makes it from our recording, for tests of what follows from that."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from sandtable.contracts import run_command
from sandtable.hardware import Machine, Stack, library

H100 = Path(__file__).parents[1] / "fixtures" / "gpu_h100"


@lru_cache(maxsize=1)
def machine() -> Machine:
    """Return a machine with this GPU, as the command writes it from the recording.

    What PyTorch launches is counted for the model's code of that day, which left more to autograd.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "this_machine.yaml"
        library.save_component(library.load_machine("dgx_h100"), path)
        done = run_command("calibrate", "--only", "gpu", "--replay", str(H100 / "recording.json"), "-o", str(path))
        assert done.code == 0, done.err
        found = library.load_machine(str(path))
    stack, own = library.load_component("stack", str(H100 / "pytorch_cuda.yaml")), found.stack
    assert isinstance(stack, Stack)
    assert own is not None
    datasheet = stack.datasheet.model_copy(update={"host_call_s": own.datasheet.host_call_s})
    return found.model_copy(update={"stack": stack.model_copy(update={"datasheet": datasheet})})
