"""Muon: orthogonal updates for the hidden matrices, Adam for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from fqgan.config import OptimizerConfig, presets
from fqgan.engine.checkpoint import load_optimizer, optimizer_tensors
from fqgan.engine.muon import Muon, hidden_matrices, orthogonalize
from fqgan.engine.optim import make_optimizer
from fqgan.tokenizer.model import FactorizedTokenizer


class Network(nn.Module):
    """One convolution, one linear map, one matrix too narrow and one table."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(16, 24, 3, padding=1)
        self.linear = nn.Linear(24, 32)
        self.narrow = nn.Linear(32, 4)
        self.table = nn.Parameter(torch.randn(64, 32))

    def nonhidden_parameters(self) -> Iterable[nn.Parameter]:
        return [self.table]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.linear(self.convolution(x).mean((2, 3)))
        return self.narrow(h).square().sum() + (h @ self.table.T).sin().sum()


def with_gradients(seed: int) -> Network:
    torch.manual_seed(seed)
    network = Network()
    network(torch.randn(4, 16, 5, 5)).backward()
    return network


@pytest.mark.parametrize("shape", [(24, 24), (16, 80), (80, 16)])
def test_orthogonalize_flattens_the_spectrum_and_keeps_the_singular_vectors(
    shape: tuple[int, int], in_float64: None
) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ orthogonalize(matrices) @ vh.mT  # diagonal where the singular vectors are kept
    values = inside.diagonal(dim1=1, dim2=2)
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-4
    large = torch.linalg.svdvals(matrices) > 0.05 * torch.linalg.svdvals(matrices)[:, :1]
    assert values[large].min() > 0.5 and values.max() < 1.3


def test_orthogonalize_leaves_no_trace_of_what_a_matrix_lacks() -> None:
    """Rounding in the Gram matrix must not grow into directions that a matrix of low rank does not have."""
    torch.manual_seed(1)
    low = torch.randn(4, 48, 3) @ torch.randn(4, 3, 160)
    values = torch.linalg.svdvals(orthogonalize(low))
    assert values[:, 2].min() > 0.5 and values[:, 0].max() < 1.3 and values[:, 3].max() < 1e-2
    assert not orthogonalize(torch.zeros(1, 16, 32)).any()


def test_two_steps_are_the_formula(in_float64: None) -> None:
    """Momentum, Nesterov, orthogonalisation and scale, written out for the matrices (24, 16 * 9) and (32, 24)."""
    for name, scale in (("convolution", 10), ("linear", 10 * math.sqrt(32 / 24))):
        network = with_gradients(0)
        optimizer = Muon(network, 0.01, (0.9, 0.95), momentum=0.8)
        weight = network.get_submodule(name).get_parameter("weight")
        expected = weight.detach().double().flatten(1)
        average = torch.zeros_like(expected)
        for factor in (1.0, -0.3):
            assert weight.grad is not None
            weight.grad.mul_(factor)
            gradient = weight.grad.double().flatten(1)
            average = 0.8 * average + 0.2 * gradient
            x = 0.2 * gradient + 0.8 * average
            x = (x if len(x) < x.shape[1] else x.T) / x.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            expected = expected - 0.01 * scale * (x if x.shape == expected.shape else x.T)
            optimizer.step()
        assert torch.allclose(weight.double().flatten(1), expected, atol=5e-5)


def test_the_other_parameters_take_adams_steps() -> None:
    network, reference = with_gradients(1), with_gradients(1)
    optimizer = make_optimizer(network, OptimizerConfig(kind="muon", lr=0.01))
    adam = make_optimizer(reference, OptimizerConfig(lr=0.01))
    for _ in range(3):
        optimizer.step()
        adam.step()
    own, others = dict(network.named_parameters()), dict(reference.named_parameters())
    moved = {name for name in own if not torch.equal(own[name], others[name])}
    assert moved == {"convolution.weight", "linear.weight"}


def test_its_state_travels_through_a_checkpoint() -> None:
    network = with_gradients(2)
    optimizer = Muon(network, 0.01, (0.9, 0.95))
    optimizer.step()
    copy = with_gradients(2)
    copy.load_state_dict(network.state_dict())
    resumed = Muon(copy, 0.01, (0.9, 0.95))
    state = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, network).items()}
    load_optimizer(resumed, copy, state, "optimizer")
    optimizer.step()
    resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), copy.parameters(), strict=True))


def test_which_parameters_are_hidden_matrices() -> None:
    with torch.device("meta"):
        model = FactorizedTokenizer(presets.get("photos-dual").model)
    taken = {id(parameter) for parameter in hidden_matrices(model)}
    hidden = {name for name, parameter in model.named_parameters() if id(parameter) in taken}
    assert {"encoder.conv_in.weight", "encoder.middle.0.conv1.weight", "decoder.conv_in.weight"} <= hidden
    assert any("adapter" in name and "qkv" in name for name in hidden)
    for name in ("codebook", "positions", "class_token", "norm", "bias", "decoder.conv_out", "decoder.smooth"):
        assert not [hit for hit in hidden if name in hit]
    assert not any("projection" in name for name in hidden)  # 4 rows
