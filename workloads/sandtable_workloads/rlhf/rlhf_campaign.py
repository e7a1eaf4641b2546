"""What a whole campaign takes and costs, from the time of its steps: predicted or measured alike.

SFT once or several times, the reward model, the soup, and PPO's iterations, one after another. What a soup adds beside
plain PPO is that it needs one more SFT model for each but the first, and one pass that averages them: an iteration
computes with the same shapes, whichever model is the reference. Evaluation, loading, saving and failed trials are left
out.
"""

from __future__ import annotations

from collections.abc import Mapping

from sandtable import units
from sandtable.hardware import Machine
from sandtable.results import Metric, point
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf
from sandtable_workloads.rlhf.rlhf_plan import ITERATION, REWARD, SECTIONS, SFT, SOUP
from sandtable_workloads.training.layout import devices_per_machine

SECONDS_PER_HOUR = 3600.0
CAMPAIGN_S, CAMPAIGN_USD = "campaign_s", "campaign_usd"
# phases in words, in the order in which they are named when they take as long
WORDS = {SFT: "SFT", REWARD: "reward model", SOUP: "soup", "weight_sync": "weight sync"}
# a phase with less of the time is not named
LEAST_FRAC, MOST_OTHERS = 0.005, 2
SOUP_ADDS_S, SOUP_ADDS_USD = "soup_adds_s", "soup_adds_usd"


def mean_of(known: Mapping[str, Metric], name: str) -> Metric | None:
    """Return a metric's mean, or its only value; None where it was not reported."""
    return known.get(f"{name}.mean") or known.get(name)


def phase_times(p: Rlhf, known: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return what each phase of the campaign takes in all, those that it has."""
    counts = {SFT: p.n_finetunings * p.sft_steps, REWARD: p.reward_steps, SOUP: 1, ITERATION: p.n_iterations}
    found = {name: mean_of(known, f"{name}_s") for name in counts}
    return {name: _times(each, counts[name]) for name, each in found.items() if each is not None and counts[name]}


def soup_adds(p: Rlhf, known: Mapping[str, Metric]) -> Metric | None:
    """Return what a soup takes beside plain PPO: every fine-tuning but the first, and the averaging pass."""
    soup, each = mean_of(known, f"{SOUP}_s"), mean_of(known, f"{SFT}_s")
    if soup is None:
        return None
    more = (p.n_finetunings - 1) * p.sft_steps
    return soup if each is None or not more else _sum([soup, _times(each, more)])


def derived(p: Rlhf, machine: Machine, known: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return time and money of the campaign, of what its soup adds, and of an iteration; tokens that are generated."""
    phases = phase_times(p, known)
    found = {CAMPAIGN_S: _sum([*phases.values()])}
    adds = soup_adds(p, known)
    if adds is not None:
        found[SOUP_ADDS_S] = adds
    iteration = mean_of(known, f"{ITERATION}_s")
    if iteration is not None:
        work = p.rollout_batch if p.method == "ppo" else p.train_batch
        found["samples_per_s"] = Metric(
            value=work / iteration.value, low=work / iteration.high, high=work / iteration.low, unit="samples/s"
        )
    if machine.price is None:
        return found
    usd_per_h = machine.price.usd_per_h * n_machines(p, machine)
    found["usd_per_h"] = point(usd_per_h, units.unit_of("usd_per_h"))
    priced = {CAMPAIGN_USD: found[CAMPAIGN_S]} | ({} if adds is None else {SOUP_ADDS_USD: adds})
    priced |= {} if iteration is None else {"iteration_usd": iteration}
    return found | {name: _times(time, usd_per_h / SECONDS_PER_HOUR, "USD") for name, time in priced.items()}


def n_machines(p: Rlhf, machine: Machine) -> float:
    """Return the machines that a campaign takes; a part of one is paid for as that part."""
    return p.devices / devices_per_machine(machine, p.devices)


def bound(p: Rlhf, known: Mapping[str, Metric]) -> str:
    """Return which phase bounds the campaign, and which others there are, an iteration's parts each for itself.

    Of a campaign with a soup, what that adds stands in place of the smallest of those that are named.
    """
    phases = {name: metric.value for name, metric in phase_times(p, known).items()}
    whole = sum(phases.values())
    iterations = phases.pop(ITERATION, 0.0)
    parts = {name: found.value for name in SECTIONS if (found := mean_of(known, f"{name}_s")) is not None}
    total = sum(parts.values())
    phases |= {name: iterations * part / total for name, part in parts.items() if total}
    if not whole or not phases:
        return ""
    ordered = sorted(phases.items(), key=lambda item: -item[1])
    shares = [(WORDS.get(name, name), part / whole) for name, part in ordered if part > whole * LEAST_FRAC]
    adds = known.get(SOUP_ADDS_USD) or known.get(SOUP_ADDS_S)
    n_others = MOST_OTHERS - (adds is not None)
    others = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares[1 : 1 + n_others])
    return (
        f"Bound by {shares[0][0]}, {100 * shares[0][1]:.0f} % of the campaign"
        + (f" ({others})." if others else ".")
        + (f" The soup adds {units.format_quantity(float(f'{adds.value:.3g}'), adds.unit)}." if adds else "")
    )


def _times(metric: Metric, factor: float, unit: str | None = None) -> Metric:
    value, low, high = (end * factor for end in (metric.value, metric.low, metric.high))
    return Metric(value=value, low=low, high=high, unit=unit or metric.unit)


def _sum(parts: list[Metric]) -> Metric:
    """Return a sum of times whose errors go together: the same operators take up all of them."""
    value, low, high = (sum(getattr(part, end) for part in parts) for end in ("value", "low", "high"))
    return Metric(value=value, low=low, high=high, unit="s")
