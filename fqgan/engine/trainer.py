"""The training loop that all tasks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fqgan.base import schema
from fqgan.base.errors import UserError, in_one_line
from fqgan.base.printing import say
from fqgan.base.schema import changes
from fqgan.config import OptimizerConfig, TrainConfig
from fqgan.engine import checkpoint, distributed
from fqgan.engine.distributed import World
from fqgan.engine.logs import Log
from fqgan.engine.optim import Ema, align_gradients, learning_rate
from fqgan.engine.run import RunFolder
from fqgan.engine.sharding import gathered, sharded_parts, whole
from fqgan.engine.sizes import micro_batch
from fqgan.engine.stops import StoppedError, handling, in_words, stopping, together
from fqgan.engine.task import Task, Terms


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
        self.left_out, self.left_out_in_a_row = 0, 0
        """Steps without an update, as a loss or gradient was not finite."""
        self.done = self.saved = 0
        """Steps behind the weights, and behind the last checkpoint."""
        self.updating = False
        """Whether an update is under way: weights are of no step then."""
        self.saving = False
        """Whether a checkpoint is under way, or was when an error came."""
        self.signal = 0
        self._buffers: list[tuple[Tensor, Tensor]] = []

    @property
    def model(self) -> nn.Module:
        """The network to use: the moving average where there is one."""
        return self.ema.module if self.ema else self.task.phases[0].module

    def fit(self, resume: Path | None) -> None:
        """Train to the last step. SIGTERM and Ctrl-C save, then raise SystemExit; what else stops the training saves
        the last finished step first, too, and is a `UserError` where it is not a mistake of this program."""
        start = self.done = self.saved = self._restore(resume) if resume else 0
        if resume and self.world.is_main:
            self.run.resumed(start)
        if start >= self.steps and self.world.is_main:
            say(f"{self.run.path} has already done its {self.steps} steps")
        for phase in self.task.phases:
            phase.network = distributed.wrap(phase.network, self.world)
        log = Log(self.run, self.world, start, self.steps, self.config, self.task.shown)
        with closing(log), handling(self._on_signal, stopping()):
            try:
                self._loop(start, log)
            except StoppedError as stop:
                saved = self._rescue()
                if stop.error is None:
                    raise SystemExit(2) from None
                raise self._failed(stop.error, saved) from None
            except Exception as error:
                with distributed.alone():
                    raise self._failed(error, self._rescue(by_itself=True)) from None

    def _loop(self, start: int, log: Log) -> None:
        if start >= self.steps:
            return
        batches = self.task.batches(start)
        try:
            self._steps(start, batches, log)
        finally:  # worker processes end now, not when the last reference goes
            getattr(batches, "close", lambda: None)()

    def _steps(self, start: int, batches: Iterator[Any], log: Log) -> None:
        for step in range(start, self.steps):
            self.optimize(step, batches)
            self.done = done = step + 1
            log.advance()
            stop = distributed.agree(self.signal)
            last = done == self.steps
            values = {}
            if _due(self.config.validate_every, done) or last:
                log.note("validating")
                values = self._validated(done, log)
            if _due(self.config.log_every, done) or values or last:
                statistics = self._statistics(step) | values
                together(partial(log.write, done, statistics))
                together(self.task.check)
            if self.task.watch:
                together(partial(self.task.watch, self.model.eval(), done))
            if _due(self.config.image_every, done) or last:
                path = self.run.path / "images" / f"step-{done:08d}.png"
                together(partial(self.task.picture, self.model.eval(), path))
            if _due(self.config.checkpoint_every, done) or last or stop:
                self._save(done)
            if stop:
                log.note(f"stopped at step {done}; the same command resumes")
                raise SystemExit(128 + stop)
        if stop := distributed.agree(self.signal):  # it came while the last step was saved: what follows isn't to begin
            raise SystemExit(128 + stop)

    def _validated(self, done: int, log: Log) -> dict[str, float]:
        """Validation metrics; where the data stop it, the step's other statistics are written all the same."""
        try:
            return {f"val_{name}": value for name, value in self.task.validate(self.model.eval()).items()}
        except (UserError, StoppedError) as error:
            if isinstance(error, StoppedError) or self.world.size == 1:  # otherwise others are elsewhere
                log.write(done, self._statistics(done - 1))
            raise

    def _rescue(self, by_itself: bool = False) -> str:
        """Save the last finished step, as far as that can be; returns what becomes of the run, for a message.

        `by_itself`: other ranks may be lost. The main rank writes what all of them have, without their statistics since
        the last line.
        """
        why = ""
        if by_itself and self.world.size > 1:
            if not self.world.is_main:
                return ""
            if any(sharded_parts(phase.module) for phase in self.task.phases):
                why = f"step {self.done} could not be saved, as each rank has a part of the weights"
        if self.updating:
            why = f"step {self.done + 1} was in the middle of its update"
        if self.done > self.saved and not why and not self.saving:
            try:
                self._abandon()
                self._save(self.done)
            except Exception as error:
                own = error.error or error if isinstance(error, StoppedError) else error
                why = f"step {self.done} could not be saved ({in_one_line(own)})"
        then = f"the same command resumes from step {self.saved}" if self.saved else "the same command starts again"
        if self.saved == self.steps:
            then = "all steps are done and saved; fqgan evaluate measures what was not validated"
        return f"; {why}; {then}" if why else f"; {then}"

    def _failed(self, error: Exception, saved: str) -> Exception:
        """What to raise: an error in words with what becomes of the run, or a mistake of this program as it is."""
        error = in_words(error)
        if isinstance(error, UserError):
            return UserError(f"{error}{saved}")
        say(f"stopped by an error of the program{saved}")
        return error

    def optimize(self, step: int, batches: Iterator[Any]) -> None:
        """One optimizer step over its micro-batches; its terms are added to `window`."""
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
        self._buffers = [(buffer, buffer.clone()) for phase in phases for buffer in phase.module.buffers()]
        terms: Terms = {}
        for i in range(self.accumulate):
            batch = together(partial(next, batches))
            for phase in phases:
                synchronize = i == self.accumulate - 1
                with nullcontext() if synchronize else distributed.no_sync(phase.network):
                    loss, new = phase.loss(phase.network, batch)
                    (loss / self.accumulate).backward()
                for name, value in new.items():
                    terms[name] = terms[name] + value if name in terms else value
        norms = {phase.name: _gradient_norm(phase.module) for phase in phases}
        if bad := self._not_finite(terms, norms):
            self._leave_out(step, bad)
            return
        self.left_out_in_a_row = 0
        self.updating = True
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
        self.updating, self._buffers = False, []

    def _abandon(self) -> None:
        """Undo what a step has changed before its update."""
        self.task.abandon_step()
        for buffer, before in self._buffers:
            buffer.copy_(before)
        self._buffers = []

    def _not_finite(self, terms: Terms, norms: dict[str, Tensor]) -> str:
        """Names of the losses and gradients that are not finite, on whichever rank; empty if all are.

        The one place of a step that waits for the GPU: no update may be made before this is known.
        """
        named = {**terms, **{f"gradient of the {name}": norm for name, norm in norms.items()}}
        finite = torch.isfinite(torch.stack([value.float() for value in named.values()]))
        bad = distributed.all_reduce_sum((~finite).float())
        if not bad.sum() > 0:
            return ""
        return ", ".join(name for name, count in zip(named, bad.tolist(), strict=True) if count)

    def _leave_out(self, step: int, bad: str) -> None:
        """Go without the update of a step, or stop where there were too many of the kind in a row."""
        self._abandon()
        allowed = self.config.skip_nonfinite
        if self.left_out_in_a_row == allowed:
            self.left_out_in_a_row = 0  # whoever goes on has changed something, and has as many tries again
            many = f", as in the {allowed} step(s) before" if allowed else ""
            error = UserError(
                f"step {step + 1}: not finite: {bad}{many}; stopped before the update. Lower optimizer.lr, or look at "
                "the data of this step; --train.skip-nonfinite N leaves out up to N such steps in a row"
            )
            raise StoppedError(error if self.world.is_main else None)
        self.left_out, self.left_out_in_a_row = self.left_out + 1, self.left_out_in_a_row + 1
        if self.world.is_main:
            say(f"warning: step {step + 1}: not finite: {bad}; left out")

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
        keys = sorted(self.window)  # none where every step since the last line was left out
        sums = distributed.all_reduce_sum(torch.stack([self.window[key] for key in keys])).tolist() if keys else []
        totals = dict(zip(keys, sums, strict=True))
        self.window = {}
        means = {key: totals[key] / totals[f"{key}/count"] for key in keys if not key.endswith("/count")}
        rate = learning_rate(self.optimizer_config, step, self.steps)
        left_out = {"nonfinite_steps": self.left_out} if self.left_out else {}
        return {"images_seen": done * batch, "lr": rate, **means, **left_out, **(self.task.meters() if keys else {})}

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
        state = {
            "config": schema.to_dict(self.run.config),
            "images_seen": step * self.config.batch,
            "data": self.task.data_fingerprint(),
            "nonfinite_steps": [self.left_out, self.left_out_in_a_row],
            **self.task.record(),
        }
        self.saving = True
        together(partial(self._write, step, tensors, state) if self.world.is_main else lambda: None)
        self.saved, self.saving = step, False

    def _write(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """A checkpoint on the disk, unless its weights are spoilt: it would take the place of one that is not."""
        for part in ["ema"] * bool(self.ema) + [phase.name for phase in self.task.phases]:
            numbers = {name: tensor for name, tensor in tensors[part].items() if tensor.is_floating_point()}
            whole = torch.stack([tensor.isfinite().all() for tensor in numbers.values()]).tolist()
            if spoilt := [name for name, fine in zip(numbers, whole, strict=True) if not fine]:
                raise UserError(f"step {step} is not saved: {part} has weights that are not finite, {spoilt[0]} first")
        checkpoint.save(self.run.checkpoints, step, tensors, state, self.config.keep_last)

    def _restore(self, folder: Path) -> int:
        """Load a checkpoint into all phases; returns the number of steps done. `UserError` if the data changed, and for
        files of something else."""
        state, load = checkpoint.load_state(folder), checkpoint.load_tensors
        instead = f"; {self.run.instead}" if self.run.instead else ""
        if changed := changes(state["data"], self.task.data_fingerprint()):
            raise UserError(
                f"the training data of {self.run.path} changed since its last checkpoint ({changed}), and with it the "
                f"order of the pictures: restore the data, or use a new --run{instead}"
            )
        device = self.world.device
        for phase in self.task.phases:
            path, moments = folder / f"{phase.name}.safetensors", folder / f"{phase.name}-optimizer.safetensors"
            checkpoint.load_module(phase.module, load(path, device), str(path))
            checkpoint.load_optimizer(phase.optimizer, phase.module, load(moments), str(moments))
        if self.ema:
            path = folder / "ema.safetensors"
            checkpoint.load_module(self.ema.module, load(path, device), str(path))
        if (path := folder / "extra.safetensors").exists():
            extra = load(path, device)
            checkpoint.check_like(self.task.extra_state(), extra, str(path))
            self.task.load_extra_state(extra)
        path = folder / "statistics.safetensors"
        groups: dict[str, dict[str, Tensor]] = {"meter": {}, "window": {}}
        for key, value in load(path, device).items():
            group, _, name = key.partition("/")
            groups.get(group, {})[name] = value
        meters, own = groups["meter"], self.task.meter_state()
        if "unreadable" in own and len(meters.get("unreadable", ())) < 2:  # version 0.1 had none, or counted less
            own["unreadable"] = meters.setdefault("unreadable", own["unreadable"][:1])
        checkpoint.check_like(own, meters, str(path))
        checkpoint.check_like({name: torch.empty(1) for name in groups["window"]}, groups["window"], str(path))
        if self.world.is_main:  # sums over ranks: one rank carries them on
            self.task.load_meter_state(meters)
        self.window = {name: value[0] * self.world.is_main for name, value in groups["window"].items()}
        self.left_out, self.left_out_in_a_row = state.get("nonfinite_steps", (0, 0))
        if self.world.is_main:
            say(f"resuming {self.run.path} at step {state['step']}")
        return state["step"]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal:  # the second one means it
            raise KeyboardInterrupt
        self.signal = number


def _due(every: int, done: int) -> bool:
    return every > 0 and done % every == 0


def _gradient_norm(module: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return whole(nn.utils.get_total_norm(gradients))
