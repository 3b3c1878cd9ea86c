"""Faster ways to the same numbers: values and gradients agree with the plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.tokenizer.backbone import Smooth
from fqgan.tokenizer.blocks import attend


def values_and_gradients(function: nn.Module | object, *inputs: Tensor) -> list[Tensor]:
    """The output and the gradients of a fixed random projection of it."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)  # pyright: ignore[reportCallIssue]
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output, *torch.autograd.grad((output.float() * weights).sum(), leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 2, 16, 8), (1, 1, 600, 4)])
def test_attention(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Against the formula in float64 of the same (rounded) inputs."""
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / shape[-1] ** 0.5
        return torch.einsum("bhij,bhjd->bhid", scores.exp() / scores.exp().sum(-1, keepdim=True), v)

    expected = values_and_gradients(formula, *(x.double() for x in qkv))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, wanted in zip(values_and_gradients(attend, *qkv), expected, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - wanted).norm() < tolerance * wanted.norm()


def test_attention_takes_the_fused_kernel_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    fused: list[torch.Size] = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: fused.append(qkv[0].shape) or kernel(*qkv))
    for n, dtype in ((64, torch.bfloat16), (64, torch.float32), (1024, torch.bfloat16)):
        attend(*torch.zeros(3, 1, 1, n, 4, dtype=dtype))
    assert [shape[2] for shape in fused] == [64, 1024]


def test_smooth_is_a_convolution() -> None:
    torch.manual_seed(0)
    smooth, x = Smooth(8, 3, 3, padding=1), torch.randn(2, 8, 12, 16)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(smooth, {"weight": weight, "bias": bias}, x)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1)

    inputs = (x, smooth.weight, smooth.bias)
    for got, wanted in zip(values_and_gradients(ours, *inputs), values_and_gradients(plain, *inputs), strict=True):  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
    assert smooth(x).is_contiguous()
