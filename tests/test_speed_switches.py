"""train.channels_last, train.compile, train.activation_checkpointing and bf16 inference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

import fqgan
from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import TokenizerConfig, TokenizerRunConfig, presets
from fqgan.config.presets import child
from fqgan.engine.checkpoint import load_tensors
from fqgan.engine.optim import align_gradients
from fqgan.engine.run import read_stats
from fqgan.engine.speed import fast_precision
from fqgan.tokenizer import speed
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.task import train_tokenizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def images(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def gradients(model: FactorizedTokenizer) -> dict[str, Tensor]:
    """Of a loss that reaches every weight, with dropout drawn from a fixed seed."""
    model.train().zero_grad()
    torch.manual_seed(1)
    output = model(images(), entropy=True)
    loss = output.reconstruction.square().mean() + sum(q.commitment_loss + q.entropy_loss for q in output.quantized)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(config: TokenizerRunConfig, path: Path) -> dict[str, Tensor]:
    """The weights that two steps of training end with."""
    train_tokenizer(config, path)
    return load_tensors(path / "checkpoints" / "step-00000002" / "tokenizer.safetensors")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients(
    tiny: TokenizerRunConfig, dropout: float, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    model = FactorizedTokenizer(replace(tiny.model, dropout=dropout))
    model = model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    kept: list[int] = []

    def run() -> dict[str, Tensor]:
        storages: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            found = gradients(model)
        kept.append(sum(storages.values()))
        return found

    usual = run()
    for blocks in ("transformer", "all"):
        speed.recompute_activations(model, blocks)
        recomputed = run()
        assert recomputed.keys() == usual.keys()
        for name, gradient in usual.items():
            assert torch.equal(recomputed[name], gradient), name
    assert kept[2] < kept[1] < kept[0]
    other = deepcopy(model)
    torch.manual_seed(2)
    other.encode(images())  # nothing to recompute without gradients


def test_activation_checkpointing_may_change_on_resume(tiny: TokenizerRunConfig, tmp_path: Path) -> None:
    """Weights after two steps are the same bit for bit, also when the second step is done with it."""
    config = child(tiny, model={"dropout": 0.2})
    usual = trained(config, tmp_path / "usual")
    train_tokenizer(child(config, train={"steps": 1}), tmp_path / "resumed")
    resumed = trained(child(config, train={"activation_checkpointing": "all"}), tmp_path / "resumed")
    assert usual.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in usual.items())


@pytest.mark.parametrize("field", [{"channels_last": "on"}, {"precision": "bf16"}])
def test_what_changes_rounding_is_told_on_resume(
    tiny: TokenizerRunConfig, tmp_path: Path, field: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer(child(tiny, train={"steps": 1}), tmp_path / "run")
    train_tokenizer(child(tiny, train=field), tmp_path / "run")
    name = next(iter(field))
    assert f"train.{name}: " in capsys.readouterr().out
    (entry,) = schema.history(tmp_path / "run" / "config.json")
    assert entry["step"] == 1 and f"train.{name}" in entry["changed"]


def test_channels_last_trains_alike(tiny: TokenizerRunConfig, tmp_path: Path, in_float64: None) -> None:
    """The same losses up to rounding; and it is used: the weights differ by rounding."""
    weights = [trained(child(tiny, train={"channels_last": c}), tmp_path / c) for c in ("off", "on")]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    for off, on in zip(read_stats(tmp_path / "off"), read_stats(tmp_path / "on"), strict=True):
        names = [name for name in off if name.endswith(("loss", "gradient_norm"))]
        assert [on[name] for name in names] == pytest.approx([off[name] for name in names], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_channels_last_resumes_to_the_bit(
    tiny: TokenizerRunConfig, tmp_path: Path, kind: Literal["adam", "muon"]
) -> None:
    """Fused Adam takes parameter and moments in the order of their memory: those of a checkpoint have to follow."""
    config = child(tiny, train={"channels_last": "on"}, optimizer={"kind": kind})
    straight = trained(config, tmp_path / "straight")
    train_tokenizer(child(config, train={"steps": 1}), tmp_path / "resumed")
    resumed = trained(config, tmp_path / "resumed")
    assert [name for name, value in straight.items() if not torch.equal(resumed[name], value)] == []


def test_gradients_take_their_parameters_strides() -> None:
    """A 1x1 convolution in channels_last with a gradient in the usual layout: the same memory, other strides."""
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 1), torch.nn.Conv2d(6, 2, 3))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    gradients = [torch.randn(parameter.shape) for parameter in network.parameters()]
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    assert [p.grad.stride() == p.stride() for p in network.parameters() if p.grad is not None].count(False) == 2
    align_gradients(network)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("choice", "device", "preset", "expected"),
    [
        ("auto", CUDA, "photos-dual", True),
        ("auto", CPU, "photos-dual", False),
        ("auto", CPU, "dual-ds16", True),
        ("on", CPU, "photos-dual", True),
        ("off", CUDA, "dual-ds16", False),
    ],
)
def test_layout(choice: str, device: torch.device, preset: str, expected: bool) -> None:
    model: TokenizerConfig = presets.get(preset).model
    assert (speed.memory_format(choice, device, model) is torch.channels_last) == expected


def test_compile_falls_back_with_one_warning(
    tokenizer: FactorizedTokenizer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Callable[[Tensor], Tensor]:
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    assert not speed.compile_tokenizer(tokenizer, CPU)
    assert capsys.readouterr().err == (
        "fqgan: warning: train.compile has no effect here, torch.compile fails: RuntimeError: no compiler\n"
    )
    assert all(module._compiled_call_impl is None for module in tokenizer.modules())
    tokenizer.encode(images())


@pytest.mark.slow
def test_compile_without_a_compiler_trains_on(tiny: TokenizerRunConfig, tmp_path: Path) -> None:
    """The real thing: no C++ compiler is found when the probe compiles, and training ends as without the switch."""
    usual = trained(tiny, tmp_path / "usual")
    code = (
        "import sys; from pathlib import Path; from fqgan.base import schema;"
        "from fqgan.config import TokenizerRunConfig;"
        "from fqgan.config.presets import child; from fqgan.tokenizer.task import train_tokenizer;"
        "config = schema.load(TokenizerRunConfig, Path(sys.argv[1]));"
        "train_tokenizer(child(config, train={'compile': True}), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "usual" / "config.json"), str(tmp_path / "run")]
    environment = {**os.environ, "CXX": "/nonexistent", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.count("fqgan: warning: train.compile has no effect here") == 1
    weights = load_tensors(tmp_path / "run" / "checkpoints" / "step-00000002" / "tokenizer.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in usual.items())


@pytest.mark.slow
def test_compiled_tokenizer(tokenizer: FactorizedTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same gradients up to rounding, same names of weights, no graph breaks; copies are not compiled. The graphs are
    run as they are: making C++ of them takes minutes, and is tested with the generator's blocks."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    z = torch.randn(2, 32, 8, 8)

    def around_the_quantizers() -> dict[str, Tensor]:  # rounding would change their codes
        tokenizer.train().zero_grad()
        loss = tokenizer.branches[1].adapter(tokenizer.encoder(images())).square().mean()
        (loss + tokenizer.decoder(z).square().mean()).backward()
        return {name: p.grad.clone() for name, p in tokenizer.named_parameters() if p.grad is not None}

    usual, names = around_the_quantizers(), list(tokenizer.state_dict())
    counters.clear()
    assert speed.compile_tokenizer(tokenizer, CPU)
    compiled = around_the_quantizers()
    assert counters["stats"]["unique_graphs"] >= 3 and not counters["graph_break"]
    assert list(tokenizer.state_dict()) == names
    assert deepcopy(tokenizer).encoder._compiled_call_impl is None
    for name, gradient in usual.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-3, atol=1e-5)
    gradients(tokenizer)  # the quantizers in between
    assert not counters["graph_break"]


def test_bf16_inference(tokenizer: FactorizedTokenizer) -> None:
    """Close to float32, in float32's types; quantizers do not see bf16; training's forward pass stays as it is."""
    x = images()
    with torch.no_grad():
        codes, features = tokenizer.encode(x), tokenizer.features(x)
        decoded, forward = tokenizer.decode(codes), tokenizer(x).reconstruction
        tokenizer.set_precision("bf16")
        fast = tokenizer.encode(x)
        assert (fast == codes).float().mean() > 0.9
        assert not torch.equal(tokenizer.features(x)[0], features[0])
        for got, wanted in zip(tokenizer.features(x), features, strict=True):
            assert got.dtype == torch.float32 and (got - wanted).norm() < 0.05 * wanted.norm()
        reconstruction = tokenizer.decode(codes)
        assert reconstruction.dtype == torch.float32
        assert 0 < (reconstruction - decoded).norm() < 0.05 * decoded.norm()
        torch.testing.assert_close(tokenizer(x).reconstruction, forward, rtol=1e-3, atol=1e-4)
        tokenizer.set_precision("float32")
        assert torch.equal(tokenizer.decode(codes), decoded)
    with pytest.raises(UserError, match="precision must be float32 or bf16, got 'fp16'"):
        tokenizer.set_precision("fp16")


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_without_hardware_for_it_is_told(
    supported: bool,
    tiny: TokenizerRunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: supported)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert (fast_precision(CPU), fast_precision(CUDA)) == ("bf16" if supported else "float32", "bf16")
    for precision in ("float32", "bf16"):
        train_tokenizer(child(tiny, train={"steps": 1, "precision": precision}), tmp_path / precision)
        told = "--train.precision float32 is up to ten times as fast" in capsys.readouterr().out
        assert told == (precision == "bf16" and not supported)


def test_precision_on_the_command_line(exported: Path, pictures: Path, tmp_path: Path) -> None:
    assert fqgan.load_tokenizer(exported, precision="bf16").precision == "bf16"
    picture, out = str(pictures / "0.png"), tmp_path / "out"
    assert main(["reconstruct", str(exported), picture, "--out", str(out), "--precision", "bf16"]) == 0
    numbers = tmp_path / "eval.json"
    options = ["--workers", "0", "--out", str(numbers)]
    assert main(["evaluate", "tokenizer", str(exported), "--data", str(pictures), "--precision", "bf16", *options]) == 0
    assert '"precision": "bf16"' in numbers.read_text()
