"""`fqgan doctor`: the facts of an installation, and whether a device agrees with the CPU."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import fqgan
from fqgan.cli import main
from fqgan.config.doctor import DoctorSettings
from fqgan.lab import agreement, facts
from fqgan.lab.doctor import examine
from fqgan.tokenizer.model import FactorizedTokenizer

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying torch.compile takes seconds, and tests/test_speed.py does it."""
    monkeypatch.setattr(facts, "compile_problem", lambda device: "BackendCompilerFailed: no compiler")


def test_the_facts_are_those_of_this_machine() -> None:
    found = facts.look()
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["fqgan"] == fqgan.__version__
    assert found["versions"]["numpy"] == metadata.version("numpy")
    assert found["devices"]["cpu"].endswith("torch.compile fails: BackendCompilerFailed: no compiler")
    assert found["extras"]["offline"] == "whole"
    assert Path(found["weights"]["efficientnet-lite0"]).expanduser().is_file()
    assert {"inception", "lpips-vgg", "clip:openai/clip-vit-large-patch14"} <= found["weights"].keys()


def test_an_extra_lacks_what_is_not_there_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    known = metadata.version

    def version(name: str) -> str:
        if name == "simplejpeg":
            raise metadata.PackageNotFoundError
        return "0.9" if name == "timm" else known(name)

    monkeypatch.setattr(metadata, "version", version)
    extras = facts.look()["extras"]
    assert extras["fast"] == "no simplejpeg"
    assert extras["teachers"] == "timm 0.9, not >=1.0.9"
    assert "no simplejpeg" in extras["all"] and "timm 0.9" in extras["all"]
    assert extras["report"] == "whole"


def test_the_home_folder_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FQGAN_INCEPTION", str(tmp_path / "own.pth"))
    text = json.dumps(facts.look())
    assert str(tmp_path) not in text and '"~/own.pth"' in text


def test_the_facts_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    assert facts.look()["weights"]


def test_the_cpu_agrees_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "doctor.json"
    assert main(["doctor", "--device", "cpu", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(file) and any("cpu in float32: codes agree" in line for line in lines)
    content = json.loads(file.read_text())
    exact = {each["what"]: each["found"] for each in content["comparisons"] if each["precision"] == "float32"}
    zeros = {"pixels": 0, "tokenizer losses": 0, "generator losses": 0}
    assert exact == {"codes": 1, "samples": 1, **zeros}
    assert content["facts"]["versions"]["torch"] == torch.__version__
    assert all(each["agrees"] for each in content["comparisons"])


def after_the_reference(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, instead: Any) -> None:
    """`instead(known)` in the place of a method, from its second call in `Trial.result` on."""
    known, result, asked = getattr(owner, name), agreement.Trial.result, []

    def other(self: Any, device: torch.device, precision: str, what: str) -> Any:
        asked.append(what)
        with monkeypatch.context() as patch:
            if asked.count(what) > 1 or precision == "bf16":
                patch.setattr(owner, name, instead(known))
            return result(self, device, precision, what)

    monkeypatch.setattr(agreement.Trial, "result", other)


def test_pixels_that_differ_are_found_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def brighter(known: Any) -> Any:
        return lambda self, codes, **options: known(self, codes, **options) + 0.2

    after_the_reference(monkeypatch, FactorizedTokenizer, "decode", brighter)
    assert main(["doctor", "--device", "cpu"]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "DISAGREE" in line]
    assert wrong[0] == ("cpu in float32: pixels DISAGREE with the CPU's, largest difference 2.0e-01 (at most 0.001)")
    assert all("pixels" in line for line in wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        ("fqgan.tokenizer.quantizers.vector.VectorQuantizer", "normalize", {"codes", "tokenizer losses"}),
        ("fqgan.generator.step.Norm", "__call__", {"samples", "first samples"}),
        ("fqgan.generator.transformer.Attention", "forward", {"generator losses"}),
    ],
)
def test_what_differs_is_told_apart(owner: str, name: str, wrong: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong layer shows in the results that depend on it, and in no others."""
    module, _, kind = owner.rpartition(".")

    def spoilt(known: Any) -> Any:
        return lambda self, *inputs: known(self, *inputs).roll(1, 1)

    after_the_reference(monkeypatch, getattr(sys.modules[module], kind), name, spoilt)
    found = examine(DoctorSettings(device=("cpu",)))
    assert {each.what for each in found.disagreements} <= wrong
    assert {each.what for each in found.disagreements if each.precision == "float32"} == wrong - {"first samples"}


def test_a_device_that_lacks_an_operator_fails_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(known: Any) -> Any:
        def raises(self: Any, *inputs: Any, **options: Any) -> None:
            raise NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device.")

        return raises

    after_the_reference(monkeypatch, FactorizedTokenizer, "encode", missing)
    found = examine(DoctorSettings(device=("cpu",), json=tmp_path / "doctor.json"))
    first = found.disagreements[0]
    assert str(first).startswith(
        "cpu in float32: codes failed: torch has no operator aten::x on the device mps: set PYT"
    )
    assert json.loads((tmp_path / "doctor.json").read_text())["comparisons"][0]["found"] is None


def test_results_that_are_not_finite_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    after_the_reference(
        monkeypatch, FactorizedTokenizer, "decode", lambda known: lambda self, *a, **k: known(self, *a, **k) * torch.nan
    )
    found = examine(DoctorSettings(device=("cpu",)))
    assert "pixels failed: the results are not finite" in str(found.disagreements[0])


def test_devices_and_files_that_cannot_be_are_refused(refused: Refused, tmp_path: Path) -> None:
    assert "device must be auto, cpu, cuda, mps" in refused("doctor", "--device", "cpu", "quantum")
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    assert "holds something else" in refused("doctor", "--json", tmp_path / "mine.json")
