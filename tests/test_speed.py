"""Faster ways to the same numbers: values and gradients agree with the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.tokenizer.backbone import Normalize, Smooth
from fqgan.tokenizer.blocks import attend
from fqgan.tokenizer.fused import norm_silu_conv, upsample_conv


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


def kept_bytes(function: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once; parameters too."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = function()
    return sum(storages.values()) if output.requires_grad else 0


def layers() -> tuple[Normalize, nn.Conv2d]:
    torch.manual_seed(0)
    norm, conv = Normalize(64), nn.Conv2d(64, 32, 3, padding=1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, conv


def plain(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    return conv(F.silu(F.group_norm(x.contiguous(), 32, norm.weight, norm.bias, norm.eps)))


@pytest.mark.parametrize("shape", [(3, 64, 40, 24), (1, 64, 3, 5)])
@pytest.mark.parametrize("bf16", [False, True])
def test_norm_silu_conv(shape: tuple[int, ...], bf16: bool) -> None:
    """Against GroupNorm, SiLU and convolution: float32 to 1e-5; bf16 no further from float64 than they are."""
    norm, conv = layers()
    x = (torch.randn(shape) + 0.3).contiguous(memory_format=torch.channels_last)
    x = x.bfloat16() if bf16 else x

    def run(function: Callable[..., Tensor], x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> list[Tensor]:
        x = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and x.dtype == torch.bfloat16):
            output = function(x, norm, conv)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
        return [output, *torch.autograd.grad(output, (x, *norm.parameters(), *conv.parameters()), weights)]

    ours, usual = run(norm_silu_conv, x, norm, conv), run(plain, x, norm, conv)
    exact = run(plain, x.double(), deepcopy(norm).double(), deepcopy(conv).double())
    assert type(ours[0].grad_fn).__name__ == "_NormSiluConvBackward"
    for a, b, truth in zip(ours, usual, exact, strict=True):
        assert a.dtype == b.dtype
        error, theirs = ((y.double() - truth).norm() / truth.norm() for y in (a, b))
        assert error < (1.3 * theirs + 1e-3 if bf16 else 1e-5)


def test_norm_silu_conv_keeps_its_input_alone() -> None:
    norm, conv = layers()
    x = torch.randn(2, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    weights = sum(p.numel() * 4 for p in conv.parameters())
    ours = kept_bytes(lambda: norm_silu_conv(x.clone().requires_grad_(), norm, conv))
    usual = kept_bytes(lambda: plain(x.clone().requires_grad_(), norm, conv))
    assert x.nbytes < ours < x.nbytes + weights + 2**12
    assert usual > 2.9 * x.nbytes


def test_the_layout_is_the_switch() -> None:
    """In the usual layout nothing changes, not even by rounding."""
    norm, conv = layers()
    x = torch.randn(2, 64, 32, 32, requires_grad=True)
    assert torch.equal(norm_silu_conv(x, norm, conv), plain(x, norm, conv))
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    assert torch.equal(upsample_conv(x, conv), F.conv2d(doubled, conv.weight, conv.bias, padding=1))


@pytest.mark.parametrize("shape", [(2, 6, 32, 48), (1, 6, 5, 3)])
def test_upsample_conv(shape: tuple[int, ...]) -> None:
    """Against the doubled map and its convolution, borders and gradients included; small maps take just that."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 8, 3, padding=1), torch.randn(shape)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def gathered(x: Tensor, conv: nn.Conv2d) -> Tensor:
        rows, columns = (torch.arange(2 * n) // 2 for n in shape[2:])
        return conv(x[:, :, rows][..., columns])

    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        output = function(x, conv)
        factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        return [output, *torch.autograd.grad((output * factors).sum(), (x, *conv.parameters()))]

    for got, wanted in zip(run(upsample_conv), run(gathered), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
