"""What the training loop trains: networks with their losses, batches, and what to report."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fqgan.engine.run import RunFolder

Terms = dict[str, Tensor]
Watch = Callable[[nn.Module, int], None]
"""Called by all ranks after each step and its line of stats.jsonl, with the network to use (the moving average, where
there is one) in eval mode and the number of steps done. It may compute with the network, and must not change it."""


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
    shown: Sequence[str] = ("loss", "val_loss")
    """Which of a step's statistics the terminal shows, in this order, as far as it has them."""
    watch: Watch | None = None
    """Who looks on."""

    @abstractmethod
    def batches(self, start_step: int) -> Iterator[Any]:
        """This rank's micro-batches from a step on, on its device."""

    @abstractmethod
    def data_fingerprint(self) -> dict[str, Any]:
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
        """What else changes with optimizer step `step`, after its update; called by all ranks. Nothing but modules'
        buffers may change before."""

    def abandon_step(self) -> None:  # noqa: B027
        """Forget what step `step` has gathered for `after_step`: it is left out, or ends the training."""

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
