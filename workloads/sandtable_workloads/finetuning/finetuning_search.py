"""All configurations of a fine-tuning run worth considering: devices, sharding, micro-batches, checkpointing.

The model, what is trained of it, the sequence length and the sequences per step stay: another batch would be another
fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.studies.cheapest import Goal, Search
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning
from sandtable_workloads.training import metrics
from sandtable_workloads.training.choices.search import device_counts, divisors


class FinetuningSearch(Search[Finetuning]):
    """Other ways to fine-tune the same weights on the same batches, until a number of tokens."""

    name: ClassVar[str] = "finetuning"
    settings: ClassVar[tuple[str, ...]] = (
        "devices",
        "sharding",
        "micro_batch",
        "grad_accumulation",
        "checkpointing",
    )

    def goal(self, parameters: Finetuning, until: Mapping[str, float]) -> Goal:
        """Return the tokens to train on.

        Raises:
            ConfigError: another goal, or none.
        """
        unknown = ", ".join(name for name in until if name != "tokens")
        if unknown:
            raise ConfigError(f"finetuning trains until tokens, not {unknown}")
        tokens = until.get("tokens", parameters.total_tokens)
        if tokens is None or tokens <= 0:
            raise ConfigError("say how many tokens to train on: --until tokens=50M, or parameters.total_tokens")
        batch = f"{self._batch(parameters)} sequences of {parameters.sequence_tokens} tokens per step"
        on = f"{units.format_count(tokens)} tokens"
        words = f"fine-tune {parameters.shape.name}, adapter {parameters.adapter}, on {on}; {batch}"
        return Goal(words=words, amount=tokens, unit="tokens")

    def cases(self, parameters: Finetuning, machine: Machine, most_devices: int) -> Iterator[dict[str, Any]]:
        """Yield devices, each with the micro-batches, shardings and recomputations that go with them."""
        batch = self._batch(parameters)
        for devices in device_counts(machine, most_devices):
            own, rest = divmod(batch, devices)
            if not rest:
                yield {
                    "devices": devices,
                    "micro_batch": {n: {"micro_batch": n, "grad_accumulation": own // n} for n in divisors(own)},
                    "sharding": ("ddp", "fsdp_full") if devices > 1 else ("ddp",),
                    "checkpointing": ("none", "full"),
                }

    def amount_per_step(self, parameters: Finetuning) -> float:
        """Return the tokens of a step."""
        return parameters.tokens_per_step

    def n_machines(self, parameters: Finetuning, machine: Machine) -> float:
        """Return how many machines the devices of a run take."""
        return metrics.n_machines(parameters.as_training(), machine)

    @staticmethod
    def _batch(parameters: Finetuning) -> int:
        return parameters.micro_batch * parameters.grad_accumulation * parameters.devices
