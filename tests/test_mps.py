"""Apple's GPU (`mps`), rehearsed on Linux: the whole way on a device that has no float64, refuses tensors of the CPU
and may lack operators (tests/metal.py), with the CPU's numbers as the oracle. The rest only a Mac can show.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from sets import write_pictures

from fqgan.base.errors import UserError, missing_operator
from fqgan.config import presets
from fqgan.data.tokens import TokenStore
from fqgan.engine.devices import exact_device, pick_device, upload
from fqgan.engine.distributed import start
from fqgan.engine.run import read_stats
from fqgan.engine.sizes import check_memory, memory_of
from fqgan.engine.stops import in_words
from fqgan.tokenizer.speed import memory_format

MPS = torch.device("mps")
BEGIN = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch
import metal
from fqgan import cli
import fqgan.evaluation.generated, fqgan.evaluation.reconstructions, fqgan.generator.generate, fqgan.generator.task
import fqgan.lab.doctor, fqgan.tokenizer.extraction, fqgan.tokenizer.reconstruction, fqgan.tokenizer.task
metal.as_mps()
"""


def rehearse(code: str, status: int = 0) -> str:
    """What a process prints that runs `code` where `mps` is the device of tests/metal.py."""
    process = processes.start([], BEGIN + code)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Apple's GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_auto_finds_it_after_cuda(there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("auto") == pick_device("mps") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"


def test_one_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no MPS device \(Apple's GPU\) is available"):
        pick_device("mps")


@pytest.mark.parametrize("name", ["mps", "auto"])
def test_ranks_cannot_share_it(name: str, there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for variable, value in place.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match="2 ranks cannot share the device mps: start one, or choose the device cpu"):
        start(name)


def test_its_memory_is_what_torch_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8_000_000_000)
    assert memory_of(MPS) == 8_000_000_000
    with pytest.raises(UserError, match=r"need at least 9.0 GB, and the GPU has 8.0 GB"):
        check_memory(9_000_000_000, "weights", MPS)


def test_it_keeps_the_usual_layout() -> None:
    model = presets.get("dual-ds16").model
    assert memory_format("auto", MPS, model) == torch.contiguous_format
    assert memory_format("on", MPS, model) == torch.channels_last


def test_copies_wait_for_it() -> None:
    """torch reads what a copy to MPS is made of even after it is freed, if nobody waits (pytorch#189690)."""

    class Asked:
        def to(self, device: torch.device, **options: Any) -> tuple[str, dict[str, Any]]:
            return device.type, options

    asked: Any = Asked()
    assert upload(asked, MPS) == ("mps", {"non_blocking": False})
    assert upload(asked, torch.device("cuda")) == ("cuda", {"non_blocking": True})


def test_float64_is_kept_on_the_cpu_for_it() -> None:
    assert exact_device("mps") == exact_device(torch.device("mps:0")) == torch.device("cpu")
    assert exact_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    "text",
    [
        "The operator 'aten::sort' is not currently implemented for the MPS device. If you want this op to be added",
        "The operator 'aten::sort' is not current implemented for the MPS device.",
        "Could not run 'aten::sort' with arguments from the 'MPS' backend. This could be because",
    ],
)
def test_a_missing_operator_is_named(text: str) -> None:
    error = in_words(NotImplementedError(text))
    assert isinstance(error, UserError) and str(error) == missing_operator(NotImplementedError(text))
    assert str(error).startswith(
        "torch has no operator aten::sort on the device mps: set PYTORCH_ENABLE_MPS_FALLBACK=1"
    )
    assert not missing_operator(NotImplementedError("no such head")) and not missing_operator(RuntimeError(text))


@pytest.mark.slow
def test_the_rehearsal_sees_what_a_mac_would_refuse() -> None:
    rehearse("""
import pytest
from fqgan.engine.speed import fast_precision
device = torch.device("metal", 0)
x = torch.ones(2, 2, device=device)
for wrong in (x.double, lambda: x.sum(dtype=torch.float64), lambda: x.to("cpu", torch.float64),
              lambda: torch.zeros(2, dtype=torch.float64, device=device), lambda: x.new_tensor(1.0).double()):
    with pytest.raises(TypeError, match="float64"):
        wrong()
with pytest.raises(RuntimeError, match="same device"):
    x + torch.ones(2, 2)
assert x.cpu().tolist() == [[1, 1], [1, 1]] and (x @ x).sum().item() == 8
assert fast_precision(device) == "bf16"
metal.MISSING.add("aten::mm")
assert fast_precision(device) == "float32"
with pytest.raises(NotImplementedError, match="'aten::mm' is not currently"):
    x @ x
""")


def test_meters_and_metrics_are_those_of_the_cpu() -> None:
    rehearse("""
from fqgan.config.evaluation import Measuring
from fqgan.evaluation.collect import FeatureCollector
from fqgan.metrics.class_means import NearestClassMean
from fqgan.metrics.frechet import FeatureStatistics, frechet_distance
from fqgan.metrics.inception_score import InceptionScore
from fqgan.metrics.kernel import kernel_distance
from fqgan.metrics.neighbours import precision_recall
from fqgan.metrics.psnr import PSNR, psnr
from fqgan.metrics.ssim import SSIM, ssim
from fqgan.metrics.usage import CodeUsage
from fqgan.nets.measuring import FeatureNetwork, Features
from fqgan.tokenizer.validation import Mean, Scores

torch.manual_seed(0)
images, others = torch.rand(2, 6, 3, 16, 16) * 2 - 1
codes, labels, features = torch.randint(0, 8, (6, 4)), torch.arange(6) % 2, torch.randn(6, 5)

def read(seen):
    pooled = seen.float().mean((2, 3))
    return Features(pooled, pooled[:, :2], pooled)

network = FeatureNetwork("pixels", 3, 2, 3, weights="", resize="", genuine=False, module=torch.nn.Identity(), read=read)

def measured(device):
    a, b, f, y = (each.to(device) for each in (images, others, features, labels))
    found = [psnr(a, b).tolist(), ssim(a, b).tolist(), kernel_distance(f, f.flip(1)), precision_recall(f, f.flip(1))]
    for meter in (PSNR(device), SSIM(device)):
        meter.update(a, b)
        found.append(meter.compute())
    usage, score, mean, means = CodeUsage(8, device), InceptionScore(6, 5, device=device), Mean(device), None
    usage.update(codes.to(device))
    score.update(f, torch.arange(6, device=device))
    mean.update(f[:, 0])
    means = NearestClassMean(2, 5, device)
    means.fit(f, y)
    found += [usage.compute(), score.compute(), mean.compute(), means.predict(f).tolist()]
    sums = [FeatureStatistics(5, device) for _ in range(2)]
    for each, rows in zip(sums, (f, f.flip(1))):
        each.update(rows)
    found.append(frechet_distance(*(each.compute() for each in sums)))
    collector = FeatureCollector(network, range(6), Measuring().kept, device)
    collector.update(((a + 1) * 127).to(torch.uint8), torch.arange(6))
    whole = collector.compute()
    found += [whole.pooled.covariance.tolist(), whole.features.tolist(), whole.half.mean.tolist(), whole.score]
    scores = Scores(device, lambda x, y: (x - y).abs().mean((1, 2, 3)), ["a", "b"])
    scores.update(a, b, y)
    return [*found, scores.compute()]

assert measured(torch.device("metal", 0)) == measured(torch.device("cpu"))
""")


@pytest.mark.slow
def test_the_doctor_finds_that_it_agrees_and_what_does_not(tmp_path: Path) -> None:
    """Encoding, decoding, sampling and training go the whole way there; a convolution that is off shows by name."""
    file = tmp_path / "doctor.json"
    text = rehearse(f"""
import fqgan.lab.facts
fqgan.lab.facts.compile_problem = lambda device: ""
run = lambda: cli.main(["doctor", "--device", "mps", "--json", {str(file)!r}])
assert run() == 0
metal.SPOILT["aten::convolution"] = 1.01
fqgan.lab.agreement.has_bf16 = lambda device: False  # float32 alone shows it, in half of the time
assert run() == 1
""")
    assert "metal:0 in float32: samples agree" in text and "metal:0 in bf16: pixels agree" in text
    compared = json.loads(file.read_text())["comparisons"]
    wrong = {each["what"] for each in compared if each["precision"] == "float32" and not each["agrees"]}
    assert wrong == {"pixels", "tokenizer losses"} or wrong == {"codes", "pixels", "tokenizer losses"}


@pytest.mark.slow
def test_all_commands_give_what_the_cpu_gives(tmp_path: Path) -> None:
    """A tokenizer with a GAN and a teacher, its codes, a generator, pictures, scores: on the CPU, then on the device,
    which goes on from the CPU's models."""
    write_pictures(tmp_path / "set", 8, seed=0, size=40)
    small = "--model.channels 32 --model.z-channels 32 --model.adapter-head-dim 32 --model.feature-head-width 64 "
    small += "--model.factors.0.codebook-size 256 --model.factors.1.codebook-size 256"
    rehearse(f"""
import os
os.chdir({str(tmp_path)!r})
measure = "--workers 0 --features efficientnet-lite0:stage3@32"
for device in ("cpu", "mps"):
    train = f"--train.device {{device}} --train.precision float32 --train.batch 4 --train.steps 2 --train.log-every 1"
    for line in (
        f"train-tokenizer photos-dual --data.source set --data.validation set --run {{device}}-tokenizer {{train}} "
        "--model.image-size 32 --data.workers 0 --discriminator.weight 0.1 --discriminator.start 0 "
        "--discriminator.channels 16 --quantizer.restart-after 2 {small}",
        f"extract cpu-tokenizer --data set --out {{device}}-store --device {{device}} --workers 0",
        f"train-generator far-tiny --data cpu-store --validation cpu-store --run {{device}}-far {{train}} "
        "--model.width 64 --model.depth 2 --model.dropout 0 --model.class-dropout 0",
        f"generate cpu-far --num 4 --batch 2 --cfg-scale 2 --out {{device}}-samples --device {{device}}",
        f"evaluate tokenizer cpu-tokenizer --data set --out {{device}}.json --device {{device}} {{measure}}",
        f"evaluate generator cpu-far --data set --num 8 --samples {{device}}-set --out {{device}}-far.json "
        f"--device {{device}} {{measure}}",
        f"reconstruct cpu-tokenizer set/class0/000.png --out {{device}}-out --device {{device}}",
    ):
        assert cli.main(line.split()) == 0, line
""")
    cpu, mps = (TokenStore.open(str(tmp_path / f"{device}-store")) for device in ("cpu", "mps"))
    assert np.array_equal(cpu.take(range(8), [0] * 8)[0], mps.take(range(8), [0] * 8)[0])
    pictures = [sorted((tmp_path / f"{device}-samples").glob("0*.png")) for device in ("cpu", "mps")]
    assert len(pictures[0]) == 4 and [each.read_bytes() for each in pictures[0]] == [
        e.read_bytes() for e in pictures[1]
    ]
    for name in ("", "-far"):
        scores = [json.loads((tmp_path / f"{device}{name}.json").read_text())["metrics"] for device in ("cpu", "mps")]
        numbers = [{k: v for k, v in each.items() if isinstance(v, float)} for each in scores]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-4, abs=1e-6)
    for name in ("tokenizer", "far"):
        losses = [
            [{k: v for k, v in row.items() if "loss" in k} for row in read_stats(tmp_path / f"{device}-{name}")]
            for device in ("cpu", "mps")
        ]
        assert len(losses[0]) == len(losses[1]) == 2 and len(losses[0][1]) >= 4
        for one, other in zip(*losses, strict=True):
            assert other == pytest.approx(one, rel=0.02, abs=1e-3)


def test_an_operator_that_it_lacks_ends_training_after_the_last_step_is_saved(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", 8, seed=0, size=40)
    command = f"train-tokenizer photos-dual --data.source {tmp_path}/set --loss.perceptual none --run {tmp_path}/run "
    command += "--model.factors.1.teacher= --train.steps 4 --train.device mps --train.precision float32 "
    command += "--train.batch 4 --model.image-size 32 --data.workers 0"
    text = rehearse(
        f"""
from fqgan.tokenizer.task import TokenizerTask
known = TokenizerTask.after_step
def after_step(task):
    known(task)
    metal.MISSING.update(["aten::native_group_norm"] if task.step == 1 else [])
TokenizerTask.after_step = after_step
sys.exit(cli.main({command.split()!r}))
""",
        status=2,
    )
    assert "torch has no operator aten::native_group_norm on the device mps: set PYTORCH_ENABLE_MPS_FALLBACK=1" in text
    assert text.splitlines()[-1].endswith("; the same command resumes from step 2")
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json").exists()


def test_an_operator_that_it_lacks_ends_any_command_with_its_name(exported: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    command = ["reconstruct", str(exported), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--device", "mps"]
    text = rehearse(f'metal.MISSING.update(["aten::conv2d"])\nsys.exit(cli.main({command!r}))', status=2)
    last = text.splitlines()[-1]
    assert last.startswith("fqgan: error: torch has no operator aten::conv2d on the device mps: set PYTORCH_ENABLE_MPS")
    assert "Traceback" not in text
