"""Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") for networks with convolutions.

The update of a weight matrix is its momentum with all singular values set to about one. Convolutions count as
matrices (out, in * height * width). What is no map between hidden features goes on with Adam: embedding tables, and
what modules name in a method `nonhidden_parameters`, such as codebooks and layers that make the pixels or the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)  # takes singular values in (0, 1] to about [0.7, 1.2] in five steps (Jordan)
_STEPS = 5
_SCALE = 10  # learning rate of an orthogonal update over Adam's: with it one rate suits both (LOG.md)
_SMALLEST = 16  # sides of a matrix below which orthogonal rows mean little


class Muon(torch.optim.Optimizer):
    """Muon on the hidden matrices of `module`, Adam on its other parameters, as one optimizer.

    Args:
        module: the network.
        lr: learning rate of both.
        betas: Adam's, for the other parameters.
        momentum: Nesterov momentum of the matrices.
        weight_decay: decoupled, as AdamW has it, of all that `split_decayed` names.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        betas: tuple[float, float],
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        matrices = hidden_matrices(module)
        chosen = {id(p) for p in matrices}
        others = [p for p in module.parameters() if id(p) not in chosen]
        self._adam = torch.optim.Adam(others, lr, betas, fused=True)
        super().__init__([{"params": others}, {"params": matrices}], self._adam.defaults)
        self._momentum, self._weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all parameters that have a gradient. `closure` is not supported."""
        assert closure is None
        others, matrices = self.param_groups
        if self._weight_decay:
            decayed, _ = split_decayed(p for group in self.param_groups for p in group["params"] if p.grad is not None)
            for parameter in decayed:
                parameter.mul_(1 - others["lr"] * self._weight_decay)
        self._adam.state, self._adam.param_groups = self.state, [others]
        self._adam.step()
        self._step_matrices(matrices)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
        for shape, parameters in by_shape.items():  # equal shapes in one batch of matrix products
            updates = orthogonalize(torch.stack([self._momentum_of(p).reshape(shape) for p in parameters]))
            rate = group["lr"] * _SCALE * math.sqrt(max(1, shape[0] / shape[1]))
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.add_(update.view_as(parameter), alpha=-rate)

    def _momentum_of(self, parameter: nn.Parameter) -> Tensor:
        """Take in the gradient; returns the Nesterov momentum."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(gradient, 1 - self._momentum)
        return gradient.lerp(average, self._momentum)


def split_decayed(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(those that weight decay pulls to zero, the others): all of two and more dimensions, embedding tables among them
    as in the released recipe; biases and norms are not."""
    parameters = list(parameters)
    return [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that Muon takes: linear maps and convolutions between hidden features, not too small."""
    others = {id(parameter) for each in module.modules() for parameter in _nonhidden(each)}
    wide = (p for p in module.parameters() if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= _SMALLEST)
    return [p for p in wide if id(p) not in others]


def _nonhidden(module: nn.Module) -> Iterable[nn.Parameter]:
    """What of a module and its parts is no map between hidden features, as far as the module knows."""
    if isinstance(module, nn.Embedding):
        return module.parameters()
    return module.nonhidden_parameters() if hasattr(module, "nonhidden_parameters") else ()  # pyright: ignore[reportCallIssue]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Roughly U V^T of each matrix U S V^T, by Newton and Schulz's iteration: (n, rows, columns) -> the same, float32.

    Singular values come out between about 0.7 and 1.2, whatever their size before.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).float()
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    # every step multiplies x by a polynomial of its Gram matrix: all of them act on the short side alone. In float32,
    # since rounding makes small eigenvalues negative, and those grow twelvefold a step
    a, b, c = _QUINTIC
    gram = x @ x.mT
    product = torch.eye(len(gram[0]), device=x.device).expand_as(gram)
    for step in range(_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor @ product
        if step < _STEPS - 1:
            gram = factor @ factor @ gram
    x = product @ x
    return x.mT if tall else x
