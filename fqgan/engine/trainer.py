"""The training loop that tokenizers and generators share."""

from __future__ import annotations

import copy
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fqgan import schema
from fqgan.config import OptimizerConfig, TrainConfig
from fqgan.data.fingerprint import changes
from fqgan.engine import checkpoint, distributed
from fqgan.engine.batches import micro_batch
from fqgan.engine.distributed import World
from fqgan.engine.logs import Log
from fqgan.engine.optim import Ema, align_gradients, learning_rate
from fqgan.engine.run import RunFolder
from fqgan.engine.sharding import gathered, whole
from fqgan.errors import UserError
from fqgan.files import UnwritableError

Terms = dict[str, Tensor]


@dataclass
class Phase:
    """A network with its optimizer and loss; a step runs all phases in turn.

    `loss(network, batch)` returns (what to differentiate, detached terms to log). `network` is the module, or what
    `face` makes of it (for a loss that is not the module's own forward pass), wrapped for several ranks. Phases before
    their `start` step are left out.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Any], tuple[Tensor, Terms]]
    start: int = 0
    face: Callable[[nn.Module], nn.Module] = lambda module: module
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = self.face(self.module)


class Task(ABC):
    """What is trained: phases, batches, and what to report."""

    phases: list[Phase]
    step: int = 0
    """The optimizer step under way, from 0."""

    @abstractmethod
    def batches(self, start_step: int) -> Iterator[Any]:
        """This rank's micro-batches from a step on, on its device."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the order of the training data depends on, as `fqgan.data.fingerprint` gives it."""

    def start(self, run: RunFolder, fresh: bool) -> None:  # noqa: B027
        """Get ready in an open run folder; `fresh`: before the first step, not after a resume. Called by all ranks."""

    def average(self) -> nn.Module:
        """A copy of the first phase's module, for its moving average."""
        return copy.deepcopy(self.phases[0].module)

    def meters(self) -> dict[str, float]:
        """Statistics since the last call, over all ranks; called by all ranks at log steps."""
        return {}

    def meter_state(self) -> dict[str, Tensor]:
        """This rank's state of the meters: tensors that add up over ranks."""
        return {}

    def load_meter_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore `meter_state`."""

    def record(self) -> dict[str, Any]:
        """What else of the task a checkpoint's state.json says, JSON-ready."""
        return {}

    def after_step(self) -> None:  # noqa: B027
        """What else changes with optimizer step `step`, after its update; called by all ranks."""

    def extra_state(self) -> dict[str, Tensor]:
        """State beside phases and meters, the same on all ranks; called by all of them."""
        return {}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore `extra_state`."""

    def check(self) -> None:  # noqa: B027
        """Raise `UserError`, on all ranks alike, where training should not go on; called after `meters`."""

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Validation metrics of the first phase's network (its average, where there is one); called by all ranks."""

    @abstractmethod
    def picture(self, model: nn.Module, path: Path) -> None:
        """Save a picture of what the network does, on the main rank; called by all ranks."""


class Trainer:
    """Runs a task for `steps` optimizer steps, from its last checkpoint if there is one."""

    def __init__(
        self, task: Task, run: RunFolder, world: World, steps: int, train: TrainConfig, optimizer: OptimizerConfig
    ):
        self.task, self.run, self.world, self.steps = task, run, world, steps
        self.config, self.optimizer_config = train, optimizer
        self.accumulate = train.batch // (micro_batch(train, world.size) * world.size)
        self.ema = Ema(task.average(), train.ema_decay) if train.ema_decay else None
        self.window: dict[str, Tensor] = {}
        self.saved = 0
        """Steps behind the last checkpoint."""
        self.signal = 0

    @property
    def model(self) -> nn.Module:
        """The network to use: the moving average where there is one."""
        return self.ema.module if self.ema else self.task.phases[0].module

    def fit(self, resume: Path | None) -> None:
        """Train to the last step. SIGTERM and Ctrl-C save, then raise SystemExit; `UserError` on a full disk."""
        start = self.saved = self._restore(resume) if resume else 0
        if start >= self.steps and self.world.is_main:
            print(f"{self.run.path} has already done its {self.steps} steps", flush=True)
        for phase in self.task.phases:
            phase.network = distributed.wrap(phase.network, self.world)
        log = Log(self.run, self.world, start, self.steps, self.config)
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._loop(start, log)
        except UnwritableError as error:
            then = f"resumes from step {self.saved}" if self.saved else "starts again"
            raise UserError(f"{error}; the same command {then}") from None
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            log.close()

    def _loop(self, start: int, log: Log) -> None:
        if start >= self.steps:
            return
        batches = self.task.batches(start)
        for step in range(start, self.steps):
            done = step + 1
            self._optimize(step, batches)
            log.advance()
            stop = self._agreed_signal()
            last = done == self.steps
            values = {}
            if _due(self.config.validate_every, done) or last:
                log.note("validating")
                values = self._validated(done, log)
            if _due(self.config.log_every, done) or values or last:
                log.write(done, self._statistics(step) | values)
                self._check(done)
            if _due(self.config.image_every, done) or last:
                self.task.picture(self.model.eval(), self.run.path / "images" / f"step-{done:08d}.png")
            if _due(self.config.checkpoint_every, done) or last or stop:
                self._save(done)
            if stop:
                log.note(f"stopped at step {done}; the same command resumes")
                raise SystemExit(128 + stop)
        if stop := self._agreed_signal():  # it came while the last step was saved: what follows is not to begin
            raise SystemExit(128 + stop)

    def _check(self, done: int) -> None:
        """Ask the task whether to go on. If not, save first: no step is lost."""
        try:
            self.task.check()
        except UserError:
            self._save(done)
            raise

    def _validated(self, done: int, log: Log) -> dict[str, float]:
        """Validation metrics. A bad picture there must not cost the training since the last checkpoint."""
        try:
            return {f"val_{name}": value for name, value in self.task.validate(self.model.eval()).items()}
        except UserError:
            if self.world.size == 1:  # more ranks cannot agree on a checkpoint once one of them has failed
                log.write(done, self._statistics(done - 1))
                self._save(done)
            raise

    def _optimize(self, step: int, batches: Iterator[Any]) -> None:
        """One optimizer step over its micro-batches."""
        self.task.step = step
        phases = [phase for phase in self.task.phases if step >= phase.start]
        # dropout and the like depend on the step only, not on the steps that this process has seen
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.world.rank, step]).generate_state(1)[0]))
        rate = learning_rate(self.optimizer_config, step, self.steps)
        for phase in phases:
            phase.module.train()
            phase.optimizer.zero_grad(set_to_none=True)
            for group in phase.optimizer.param_groups:
                group["lr"] = rate
        terms: Terms = {}
        for i in range(self.accumulate):
            batch = next(batches)
            for phase in phases:
                synchronize = i == self.accumulate - 1
                with nullcontext() if synchronize else distributed.no_sync(phase.network):
                    loss, new = phase.loss(phase.network, batch)
                    (loss / self.accumulate).backward()
                for name, value in new.items():
                    terms[name] = terms[name] + value if name in terms else value
        norms = {phase.name: _gradient_norm(phase.module) for phase in phases}
        self._check_finite(step, terms, norms)
        for phase in phases:
            if self.optimizer_config.clip:
                parameters = phase.module.parameters()
                nn.utils.clip_grads_with_norm_(parameters, self.optimizer_config.clip, norms[phase.name])
            align_gradients(phase.module)
            phase.optimizer.step()
        self.task.after_step()
        if self.ema:
            self.ema.update(self.task.phases[0].module, step)
        self._count(terms, norms)

    def _check_finite(self, step: int, terms: Terms, norms: dict[str, Tensor]) -> None:
        """Stop before the update when a loss or a gradient is not finite, on whichever rank."""
        named = {**terms, **{f"gradient of the {name}": norm for name, norm in norms.items()}}
        finite = torch.isfinite(torch.stack([value.float() for value in named.values()]))
        bad = distributed.all_reduce_sum((~finite).float())
        if bad.sum() > 0:
            names = ", ".join(name for name, count in zip(named, bad.tolist(), strict=True) if count)
            raise UserError(
                f"step {step + 1}: not finite: {names}; stopped before the update. Lower optimizer.lr, or look at the "
                f"data of this step; the last checkpoint in {self.run.checkpoints} is untouched"
            )

    def _count(self, terms: Terms, norms: dict[str, Tensor]) -> None:
        """Add one step to the sums behind the next line of statistics."""
        values = {name: value / self.accumulate for name, value in terms.items()}
        values |= {f"{name}_gradient_norm": norm for name, norm in norms.items()}
        for name, value in values.items():
            for key, amount in ((name, value.detach().float()), (f"{name}/count", torch.ones_like(value.float()))):
                self.window[key] = self.window[key] + amount if key in self.window else amount

    def _statistics(self, step: int) -> dict[str, float]:
        """Means over the steps and ranks since the last line."""
        done, batch = step + 1, self.config.batch
        keys = sorted(self.window)
        sums = distributed.all_reduce_sum(torch.stack([self.window[key] for key in keys])).tolist()
        totals = dict(zip(keys, sums, strict=True))
        self.window = {}
        means = {key: totals[key] / totals[f"{key}/count"] for key in keys if not key.endswith("/count")}
        rate = learning_rate(self.optimizer_config, step, self.steps)
        return {"images_seen": done * batch, "lr": rate, **means, **self.task.meters()}

    def _save(self, step: int) -> None:
        """Write a checkpoint; every rank takes part, the main rank writes."""
        meters = {f"meter/{name}": value for name, value in self.task.meter_state().items()}
        window = {f"window/{name}": value.reshape(1) for name, value in self.window.items()}
        sums = {name: distributed.all_reduce_sum(value.clone()) for name, value in sorted({**meters, **window}.items())}
        extra = self.task.extra_state()
        tensors: dict[str, Any] = {"statistics": sums} | ({"extra": extra} if extra else {})
        for phase in self.task.phases:
            tensors[phase.name] = gathered(phase.module.state_dict())
            moments = checkpoint.optimizer_tensors(phase.optimizer, phase.module)
            tensors[f"{phase.name}-optimizer"] = gathered(moments)
        if self.ema:
            tensors["ema"] = gathered(self.ema.module.state_dict())
        if self.world.is_main:
            state = {
                "config": schema.to_dict(self.run.config),
                "images_seen": step * self.config.batch,
                "data": self.task.fingerprint(),
                **self.task.record(),
            }
            checkpoint.save(self.run.checkpoints, step, tensors, state, self.config.keep_last)
            self.saved = step
        distributed.barrier()

    def _restore(self, folder: Path) -> int:
        """Load a checkpoint into all phases; returns the number of steps done. `UserError` if the data changed."""
        state = schema.load_json(folder / "state.json")
        if changed := changes(state.get("data", {}), self.task.fingerprint()):
            raise UserError(
                f"the training data of {self.run.path} changed since its last checkpoint ({changed}), and with it the "
                "order of the pictures: restore the data or use a new --run"
            )
        for phase in self.task.phases:
            tensors = checkpoint.load_tensors(folder / f"{phase.name}.safetensors", self.world.device)
            checkpoint.load_module(phase.module, tensors, str(folder / f"{phase.name}.safetensors"))
            tensors = checkpoint.load_tensors(folder / f"{phase.name}-optimizer.safetensors")
            checkpoint.load_optimizer(phase.optimizer, phase.module, tensors)
        if self.ema:
            path = folder / "ema.safetensors"
            checkpoint.load_module(self.ema.module, checkpoint.load_tensors(path, self.world.device), str(path))
        if (path := folder / "extra.safetensors").exists():
            self.task.load_extra_state(checkpoint.load_tensors(path, self.world.device))
        if self.world.is_main:  # sums over ranks: one rank carries them on
            sums = checkpoint.load_tensors(folder / "statistics.safetensors", self.world.device)
            groups: dict[str, dict[str, Tensor]] = {"meter": {}, "window": {}}
            for key, value in sums.items():
                group, _, name = key.partition("/")
                groups[group][name] = value
            self.task.load_meter_state(groups["meter"])
            self.window = {name: value[0] for name, value in groups["window"].items()}
        step = state["step"]
        if self.world.is_main:
            print(f"resuming {self.run.path} at step {step}", flush=True)
        return step

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal:  # the second one means it
            raise KeyboardInterrupt
        self.signal = number

    def _agreed_signal(self) -> int:
        """The signal that any rank has received, known to all at the same step."""
        if not distributed.is_distributed():
            return self.signal
        flag = torch.tensor([float(self.signal)], device=self.world.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag.item())


def _due(every: int, done: int) -> bool:
    return every > 0 and done % every == 0


def _gradient_norm(module: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return whole(nn.utils.get_total_norm(gradients))
