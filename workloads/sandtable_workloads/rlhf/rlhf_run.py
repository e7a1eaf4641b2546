"""A campaign run for real on one device: fine-tuning, reward model, soup, PPO; every step and section is timed.

Tokens are random, and answers have the lengths that the plan draws: what is timed is the work that the plan counts, by
the code with which `sandtable_workloads.rlhf.aligned` learns. Memory is counted in one iteration more, which is not
timed. Imported only where a run executes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from sandtable.engine.recorder import Recorder
from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.system import atomic_files, limits
from sandtable.workload.seam import Execution, ExecutionContext
from sandtable_kernels.pytorch.torch_pool import keep_memory
from sandtable_workloads.rlhf.aligned.alignment_settings import Fitting, Ppo
from sandtable_workloads.rlhf.aligned.cached_generation import Sampling
from sandtable_workloads.rlhf.aligned.fitted_phases import Preferences, Ranking, Supervised
from sandtable_workloads.rlhf.aligned.policy_model import Answered, Judge, Policy
from sandtable_workloads.rlhf.aligned.ppo_phase import Optimisation, RewardModel, Setting, frozen
from sandtable_workloads.rlhf.aligned.resumable_loop import Stepping
from sandtable_workloads.rlhf.answer_lengths import Drawn, drawn
from sandtable_workloads.rlhf.rlhf_memory import memory_of
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf, Role
from sandtable_workloads.rlhf.rlhf_plan import ITERATION, REWARD, ROLLOUT, SCORING, SFT, SOUP, UPDATE
from sandtable_workloads.rlhf.soups import Soup, soup
from sandtable_workloads.rlhf.soups.checkpoint_files import header_of
from sandtable_workloads.rlhf.soups.soup_demand import soup_ops
from sandtable_workloads.training.executed.device import Device, device_of
from sandtable_workloads.training.executed.run_job import check_device, check_shape

# what is executed of each choice
EXECUTED: Mapping[str, object] = {
    "method": "ppo",
    "devices": 1,
    "sharding": "ddp",
    "attention": "flash",
    "checkpointing": "none",
    "precision": "float32",
    "optimizer": "adamw",
    "offload_optimizer": "none",
    "offload_scoring": False,
    "adapter": "none",
    "packing": False,
    # rows that ended are taken out, logits are made of answers alone, and sequences are padded at their end
    "batching": "shrinking",
    "logits": "answers",
    "padding": "end",
}
SECTIONS = (ROLLOUT, SCORING, UPDATE)


def check_executable(p: Rlhf) -> None:
    """Refuse what is planned but not executed.

    Raises:
        ConfigError: naming the parameter, or what a model has that ours have not.
    """
    for name, wanted in EXECUTED.items():
        if getattr(p, name) != wanted:
            raise ConfigError(
                f"parameters.{name}: {getattr(p, name)} is simulated only; write {str(wanted).lower()} to run it"
            )
    for role in p.roles:
        check_shape(p.shape_of(role))


def prepare(p: Rlhf, machine: Machine, seed: int, context: ExecutionContext) -> None:
    """Check that this machine can do it, and take a step of everything once: the first ones are slower.

    Raises:
        ConfigError: something that is simulated only.
        NoDevice: PyTorch sees no GPU where the machine has one.
    """
    check_executable(p)
    kind = check_device(machine)
    keep_memory()
    once = {"sft_samples": min(p.sft_samples, p.sft_batch), "reward_pairs": min(p.reward_pairs, p.reward_batch)}
    few = p.model_copy(update=once | {"sft_epochs": 1, "reward_epochs": 1, "total_prompts": None})
    with _threads(context.n_threads):
        _Campaign(few, seed, device_of(kind, 0), context.folder).run()


def run_rlhf(p: Rlhf, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
    """Run the campaign, and count memory in one iteration more."""
    before = limits.status_bytes("VmRSS")
    with _threads(context.n_threads):
        campaign = _Campaign(p, seed, device_of(check_device(machine), 0), context.folder)
        campaign.run()
        after, held = limits.status_bytes("VmHWM"), campaign.held()
        peak = campaign.device.peak_bytes(sum(held.values()), lambda: campaign.optimisation.step(p.n_iterations))
    return Execution(
        recorder=campaign.recorder,
        memory_bytes=shared(held, peak, memory_of(p, machine, seed)),
        main_s=campaign.main_s,
        process_bytes=None if before is None or after is None else float(max(0, after - before)),
    )


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shared(held: Mapping[str, float], peak: float, planned: Mapping[str, float]) -> dict[str, float]:
    """Return the bytes at the peak by the kinds of the plan.

    Weights and states are counted where they lie. What else there is cannot be told apart by looking at it: the other
    kinds share it as the plan does, and only their sum is measured.
    """
    counted = {kind: size for kind, size in held.items() if kind in planned}
    others = {kind: size for kind, size in planned.items() if kind not in counted}
    rest, whole = max(0.0, peak - sum(counted.values())), sum(others.values())
    return counted | {kind: rest * size / whole for kind, size in others.items()}


class _Campaign:
    """Everything of a campaign, from random weights on."""

    def __init__(self, p: Rlhf, seed: int, device: Device, folder: Path) -> None:
        self.p, self.seed, self.device, self.folder = p, seed, device, folder
        self.lengths = drawn(p, seed)
        self.recorder = Recorder()
        self.main_s = (0.0, 0.0)
        self.rng = torch.Generator().manual_seed(seed)
        self.reward = self._judge("reward")

    def run(self) -> None:
        """Take all steps, one phase after the other."""
        models = self._fine_tuned()
        self._reward_steps()
        self.policy, self.reference = models[0], self._reference(models)
        begin = time.perf_counter()
        for number in range(self.p.n_iterations):
            found = self.optimisation.step(number)
            sections = {f"{section}_s": found[f"{section}_s"] for section in SECTIONS}
            self._record(ITERATION, sum(sections.values()), **sections)
        self.main_s = begin, time.perf_counter()

    def _record(self, name: str, seconds: float, **more: float) -> None:
        row = {"latency_s": seconds, "compute_s": seconds, "bytes_read": 0.0, "n_requests": 0.0, **more}
        self.recorder.record(name, row, name=name)

    def _steps(self, phase: Stepping, n_steps: int, name: str) -> None:
        for number in range(n_steps):
            begin = self.device.now()
            phase.step(number)
            seconds = self.device.now() - begin
            self._record(name, seconds, **{f"{name}_s": seconds})

    # --- before PPO ------------------------------------------------------------------------------------------------

    def _fine_tuned(self) -> list[Policy]:
        models = [self._policy(number) for number in range(self.p.n_finetunings)]
        for model in models:
            fitting = Fitting(
                steps=self.p.sft_steps,
                batch=self.p.sft_batch,
                learning_rate=self.p.sft_learning_rate,
                micro_batch=self.p.micro_batch,
            )
            tokens = self._random(self.p.sft_batch, self.p.sft_tokens or self.p.sequence_tokens)
            ones = torch.ones(len(tokens), dtype=torch.long, device=tokens.device)
            # all tokens are learned, as the plan has it, but the first, which nothing foretells
            examples = Answered(tokens, ones, ones * (tokens.shape[1] - 1))
            self._steps(Supervised(model, _always(examples), fitting), self.p.sft_steps, SFT)
        return models

    def _reward_steps(self) -> None:
        n, lengths = self.p.reward_batch, self.lengths
        places = torch.arange(2 * n) % self.p.rollout_batch
        pairs = _Pairs((), (), self._answered(lengths, places))
        fitting = Fitting(
            steps=self.p.reward_steps,
            batch=n,
            learning_rate=self.p.sft_learning_rate,
            micro_batch=self.p.micro_batch,
        )
        self._steps(Ranking(self.reward, pairs, fitting, (self.seed,)), self.p.reward_steps, REWARD)
        frozen(self.reward)

    def _reference(self, models: list[Policy]) -> Policy:
        """Return the reference: the policy's weights as they are now, or the average of all models by their files."""
        found = self._policy(0)
        if self.p.reference == "sft":
            found.load_state_dict(models[0].state_dict())
        else:
            with atomic_files.temporary_folder(self.folder, "output") as folder:
                self._soup(models, found, folder)
        frozen(found)
        return found

    def _soup(self, models: list[Policy], into: Policy, folder: Path) -> None:
        paths = [folder / f"sft_{number}.safetensors" for number in range(len(models))]
        for path, model in zip(paths, models, strict=True):
            write_weights(path, model)
        first = self.p.soup_weight
        weights = [first, 1 - first] if len(models) == 2 else None
        made = soup(paths, folder / "soup.safetensors", weights)
        ops = soup_ops(float(self.p.shape.n_params), len(models), in_bytes=4.0, out_bytes=4.0)
        self.recorder.record(SOUP, soup_row(made, sum(op.n_requests for op in ops)), name=SOUP)
        read_weights(folder / "soup.safetensors", into)

    # --- PPO -------------------------------------------------------------------------------------------------------

    @cached_property
    def optimisation(self) -> Optimisation:
        """PPO, about to begin."""
        p, critic = self.p, None
        if p.critic == "own":
            critic = self._judge("critic")
        prompts = [self._random(1, int(n))[0].tolist() for n in self.lengths.prompts]
        lengths = torch.from_numpy(self.lengths.answers)
        setting = Setting(
            reference=self.reference,
            reward=RewardModel(self.reward),
            prompts_of=lambda _: prompts,
            sampling=Sampling(max_tokens=int(lengths.max()), end=-1, temperature=p.temperature, top_p=p.top_p),
            device=self.device,
            seed=(self.seed,),
            lengths_of=lambda _: lengths,
        )
        return Optimisation(self.policy, critic, ppo_of(p), setting)

    # --- models and tokens -----------------------------------------------------------------------------------------

    def _policy(self, number: int) -> Policy:
        model = Policy(self.p.shape, self.p.sequence_tokens)
        model.initialise(self.seed + number)
        model.to(self.device.torch)
        return model

    def _judge(self, role: Role) -> Judge:
        judge = Judge(self.p.shape_of(role), self.p.sequence_tokens)
        judge.trunk.initialise(self.seed)
        judge.to(self.device.torch)
        return judge

    def _random(self, *size: int) -> Tensor:
        return torch.randint(self.p.shape.vocabulary, size, generator=self.rng).to(self.device.torch)

    def _answered(self, lengths: Drawn, places: Tensor) -> Answered:
        prompts, answers = (torch.from_numpy(each)[places] for each in (lengths.prompts, lengths.answers))
        tokens = self._random(len(places), int((prompts + answers).max()))
        return Answered(tokens, prompts.to(tokens.device), answers.to(tokens.device))

    def held(self) -> dict[str, float]:
        """Return the bytes of what stays between iterations, by model and kind."""
        model = self.optimisation.model
        critic = {} if model.critic is None else {"critic": model.critic}
        trained: dict[str, nn.Module] = {"policy": model.policy, **critic}
        kept: dict[str, nn.Module] = trained | {"reference": self.reference, "reward": self.reward}
        states = self.optimisation.optimizer.state
        found = {f"{role} weights": _n_bytes(each.parameters()) for role, each in kept.items()}
        for role, each in trained.items():
            moments = (value for p in each.parameters() for value in states[p].values() if value.dim())
            found[f"{role} optimizer"] = _n_bytes(moments)
        return found


def _always(examples: Answered) -> Callable[[int], Answered]:
    return lambda _: examples


@dataclass(frozen=True)
class _Pairs(Preferences):
    """Pairs of random answers that are made once: whose tokens they are makes no difference to the time."""

    ready: Answered

    def __len__(self) -> int:
        return len(self.ready) // 2

    def batch(self, rows: Sequence[int], device: torch.device) -> Answered:
        """Return as many pairs as are asked for."""
        return self.ready.take(torch.arange(2 * len(rows), device=device))


def ppo_of(p: Rlhf) -> Ppo:
    """Return the hyperparameters of the executed PPO."""
    each = p.rollout_micro_batch or p.rollout_batch
    return Ppo(
        iterations=p.n_iterations + 1,
        batch=p.rollout_batch,
        num_mini_batches=-(-p.rollout_batch // p.train_batch),
        num_ppo_epochs=p.ppo_epochs,
        generation_batch=min(each, p.generation_batch),
        scoring_batch=p.rollout_micro_batch or p.scoring_micro_batch or p.micro_batch,
        micro_batch=p.micro_batch,
        learning_rate=p.learning_rate,
        critic_learning_rate=p.critic_learning_rate,
        reference=p.reference,
        alpha=p.soup_weight,
        kl_coef=p.kl_coefficient,
        target_kl=p.kl_target,
        gamma=p.discount,
        lam=p.gae_lambda,
        cliprange=p.clip_range,
        cliprange_value=p.value_clip_range,
        vf_coef=p.value_coefficient,
        missing_eos_penalty=0.0,
        temperature=p.temperature,
        top_p=p.top_p,
        shared_critic=p.critic == "shared",
    )


def _n_bytes(tensors: Iterator[Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def soup_row(made: Soup, n_requests: float) -> dict[str, float]:
    """Return what is recorded of the averaging; requests are the plan's, as those of mapped files cannot be counted."""
    return {
        "latency_s": made.seconds,
        "io_s": made.seconds,
        "bytes_read": float(made.bytes_read),
        "bytes_written": float(made.bytes_written),
        "n_requests": n_requests,
    }


def write_weights(path: Path, model: nn.Module) -> None:
    """Write a model's float32 weights as a safetensors file, tied ones once."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    header = header_of(((name, "F32", tuple(each.shape)) for name, each in tensors.items()), {"format": "pt"})
    with path.open("wb") as file:
        file.write(header)
        for each in tensors.values():
            file.write(each.numpy().tobytes())


def read_weights(path: Path, model: nn.Module) -> None:
    """Read back what `write_weights` wrote, or a soup of such files."""
    from sandtable_workloads.rlhf.soups.checkpoint_files import open_checkpoint

    found = open_checkpoint(path).tensors
    content = path.read_bytes()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored = found[name]
            data = bytearray(content[stored.offset : stored.offset + stored.n_bytes])
            parameter.copy_(torch.frombuffer(data, dtype=torch.float32).view(stored.shape))
