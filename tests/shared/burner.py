"""Keeps every core busy about half of the time, in bursts of some seconds: ``python burner.py SECONDS``."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time

BURST_S = (1.0, 4.0)


def burn(end: float, seed: int) -> None:
    """Run and rest in turns until ``end``; equal seeds do so at the same time."""
    rng = random.Random(seed)
    while (now := time.time()) < end:
        until = min(end, now + rng.uniform(*BURST_S))
        while time.time() < until:
            pass
        time.sleep(max(0.0, min(end - time.time(), rng.uniform(*BURST_S))))


def main(seconds: float) -> None:
    """Burn with one process a core."""
    end = time.time() + seconds
    cores = [multiprocessing.Process(target=burn, args=(end, 0)) for _ in range(os.cpu_count() or 1)]
    for core in cores:
        core.start()
    for core in cores:
        core.join()


if __name__ == "__main__":
    main(float(sys.argv[1]))
