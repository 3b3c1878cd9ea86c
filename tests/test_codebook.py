"""EMA codes, restarts and the k-means start against plain formulas; a run with all of them resumes to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import fqgan
from fqgan.config import TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.engine.run import read_stats
from fqgan.tokenizer.quantizers import keeper as codebook
from fqgan.tokenizer.quantizers.base import as_rows
from fqgan.tokenizer.quantizers.keeper import CodebookKeeper, kmeans
from fqgan.tokenizer.quantizers.nearest import nearest_codes
from fqgan.tokenizer.quantizers.vector import VectorQuantizer
from fqgan.tokenizer.task import train_tokenizer

ALL = {"gradient": "rotation", "ema_decay": 0.8, "restart_after": 2, "kmeans_iterations": 3}
BY_GRADIENT = {"restart_after": 2}


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Random unit vectors over dimension 1."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def keeper_of(quantizer: VectorQuantizer, **options: Any) -> tuple[CodebookKeeper, torch.optim.Optimizer]:
    adam = torch.optim.Adam(quantizer.parameters(), 0.01)
    return CodebookKeeper(quantizer.codebook, adam, **options), adam


def test_ema_codes_equal_the_plain_formula(in_float64: None) -> None:
    """Two micro-batches a step; a code without features keeps its direction."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(12, 4)
    keeper, _ = keeper_of(quantizer, ema_decay=0.9)
    sums = [row.clone() for row in quantizer.codebook.detach().double()]
    for step in range(5):
        new = [torch.zeros(4, dtype=torch.float64) for _ in sums]
        for z in torch.randn(2, 2, 4, 2, 2):
            out = quantizer(z + torch.tensor([2.0, 0, 0, 0])[:, None, None])
            keeper.observe(out, step)
            for code, feature in zip(out.codes.flatten().tolist(), as_rows(out.features).double(), strict=True):
                new[code] += feature
        keeper.after_step(step)
        sums = [0.9 * old + 0.1 * add for old, add in zip(sums, new, strict=True)]
        expected = torch.stack([m / m.norm() for m in sums])
        torch.testing.assert_close(quantizer.codebook.detach().double(), expected, rtol=0, atol=1e-6)


def test_ema_codes_take_no_gradient_and_adam_leaves_them_alone() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(12, 4)
    keeper, adam = keeper_of(quantizer, ema_decay=0.9)
    before = quantizer.codebook.detach().clone()
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = quantizer(z, entropy=True)
    (out.commitment_loss + out.entropy_loss + out.vectors.sum()).backward()
    adam.step()
    assert z.grad is not None and z.grad.any()
    assert quantizer.codebook.grad is None and not adam.state
    assert torch.equal(quantizer.codebook, before)
    keeper.observe(out, 0)
    keeper.after_step(0)
    assert not torch.equal(quantizer.codebook, before)


def test_an_ema_code_without_features_never_fades_away() -> None:
    """0.5^1000 is no float32 number: the sum must stop shrinking, or the code would become 0 and then not-a-number."""
    quantizer = VectorQuantizer(2, 2)
    quantizer.codebook.data = torch.eye(2)
    keeper, _ = keeper_of(quantizer, ema_decay=0.5)
    first, second = (torch.tensor(vector).view(1, 2, 1, 1) for vector in ([1.0, 0.1], [0.9, 1.0]))
    for step in range(1000):
        keeper.observe(quantizer(first), step)
        keeper.after_step(step)
    torch.testing.assert_close(quantizer.codebook[1].detach(), torch.tensor([0.0, 1.0]))
    keeper.observe(quantizer(second), 1000)
    keeper.after_step(1000)
    torch.testing.assert_close(quantizer.codebook[1].detach(), F.normalize(second.flatten(), dim=0), rtol=0, atol=1e-4)


def collapsed(codes: int = 64) -> VectorQuantizer:
    """A codebook whose first code faces all features of `around`, with the others behind it."""
    quantizer = VectorQuantizer(codes, 4)
    quantizer.codebook.data = F.normalize(torch.tensor([-1.0, 0, 0, 0]) + 0.1 * unit(codes, 4), dim=1)
    quantizer.codebook.data[0] = torch.tensor([1.0, 0, 0, 0])
    return quantizer


def around(seed: int, positions: int = 16) -> Tensor:
    return torch.tensor([1.0, 0, 0, 0])[:, None, None] + 0.5 * unit(2, 4, positions, positions, seed=seed)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_restarts_revive_a_collapsed_codebook(ema_decay: float) -> None:
    used = {}
    for restart_after in (0, 3):
        quantizer = collapsed()
        keeper, adam = keeper_of(quantizer, ema_decay=ema_decay, restart_after=restart_after)
        for step in range(6):
            out = quantizer(around(step))
            if not ema_decay:
                out.codebook_loss.backward()
            keeper.observe(out, step)
            adam.step()
            adam.zero_grad()
            keeper.after_step(step)
        used[restart_after] = quantizer.encode(around(99)).unique().numel()
    assert used[0] == 1 and used[3] > 48, used


def test_a_dead_code_becomes_a_feature_of_the_step_and_forgets_its_moments() -> None:
    quantizer = collapsed()
    keeper, adam = keeper_of(quantizer, restart_after=3, seed=(5, 0))
    quantizer.codebook.grad = torch.ones_like(quantizer.codebook)
    adam.step()
    before = quantizer.codebook.detach().clone()
    for step in range(3):
        assert torch.equal(quantizer.codebook, before), "restarted too early"
        parts = [quantizer(around(10 * step + part)) for part in range(2)]
        for part in parts:
            keeper.observe(part, step)
        keeper.after_step(step)
    features = torch.cat([as_rows(part.features) for part in parts])
    after = quantizer.codebook.detach()
    assert torch.equal(after[0], before[0])
    chosen = [int((features == row).all(1).nonzero()[0]) for row in after[1:]]
    assert len(set(chosen)) == 63, "a feature was given to two codes"
    assert min(chosen) < 512 <= max(chosen), "only one of the micro-batches was drawn from"
    moments = [adam.state[quantizer.codebook][name] for name in ("exp_avg", "exp_avg_sq")]
    assert all(moment[0].all() and not moment[1:].any() for moment in moments)
    assert keeper.restarted() == {"restarted": 63} and keeper.restarted() == {"restarted": 0}


def test_more_dead_codes_than_features_wait_for_the_next_step() -> None:
    quantizer = collapsed()
    keeper, _ = keeper_of(quantizer, restart_after=1)
    for step, expected in enumerate([8, 8]):
        before = quantizer.codebook.detach().clone()
        keeper.observe(quantizer(around(step, positions=2)), step)
        keeper.after_step(step)
        assert (quantizer.codebook != before).any(1).sum() == keeper.restarted()["restarted"] == expected


def test_the_choice_depends_on_seed_and_step_alone() -> None:
    def restarted(seed: int, first: int) -> Tensor:
        quantizer = collapsed()
        keeper, _ = keeper_of(quantizer, restart_after=1, seed=(seed, 0))
        torch.randn(first + 1)
        keeper.observe(quantizer(around(0)), first)
        keeper.after_step(first)
        return quantizer.codebook.detach()

    same = restarted(3, 7)
    assert torch.equal(restarted(3, 7), same)
    assert not torch.equal(restarted(4, 7), same) and not torch.equal(restarted(3, 8), same)


def test_dead_codes_are_looked_for_ten_times_within_their_wait() -> None:
    quantizer = collapsed()
    keeper, _ = keeper_of(quantizer, restart_after=20)
    restarts = []
    for step in range(24):
        keeper.observe(quantizer(around(0)), step)
        keeper.after_step(step)
        restarts.append(keeper.restarted()["restarted"])
    assert [step + 1 for step, count in enumerate(restarts) if count] == [20]


def test_kmeans_ends_where_every_centre_is_the_direction_of_its_rows() -> None:
    rows, count = F.normalize(unit(2000, 3).double(), dim=1), 16
    similarity = []
    for iterations in (0, 1, 3, 100):
        centres = kmeans(rows, count, iterations, torch.Generator().manual_seed(0))
        torch.testing.assert_close(centres.norm(dim=1), torch.ones(count, dtype=torch.float64))
        similarity.append((rows @ centres.T).amax(1).mean().item())
    assert similarity == sorted(similarity) and similarity[-1] > similarity[0] + 0.01
    codes = nearest_codes(rows, centres)
    means = torch.stack([F.normalize(rows[codes == k].sum(0), dim=0) for k in range(count)])
    torch.testing.assert_close(centres, means, rtol=0, atol=1e-6)


def test_a_centre_without_rows_stays() -> None:
    rows = torch.eye(3).repeat(4, 1)
    centres = kmeans(rows, 12, 2, torch.Generator().manual_seed(0))
    assert torch.isfinite(centres).all() and torch.equal(centres.amax(1), torch.ones(12))


def test_rows_of_all_ranks_come_in_the_order_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with three micro-batches of two images of three rows: a rank holds images 0-1, 4-5, 8-9 or 2-3, 6-7,
    10-11; with several lanes 0 and 2, 4 and 6, 8 and 10, or those after them."""
    rows = torch.arange(72.0).view(36, 2)
    for interleaved in (False, True):
        batches = rows.view(3, 2, 2, 3, 2).transpose(1, 2) if interleaved else rows.view(3, 2, 2, 3, 2)
        first, second = batches.unbind(1)
        monkeypatch.setattr(codebook, "gather_rows", lambda own, other=second: torch.cat([own, other]))
        assert torch.equal(codebook.in_order(list(first), interleaved), rows)


def trained(config: TokenizerRunConfig, run: Path, steps: int, **quantizer: Any) -> Path:
    """A run of `tiny` with larger codebooks, so that some codes die, and with two micro-batches a step."""
    factors = tuple(replace(factor, codebook_size=4 * factor.codebook_size) for factor in config.model.factors)
    train = {"steps": steps, "batch": 4, "micro_batch": 2, "ema_decay": 0.9}
    train_tokenizer(child(config, model={"factors": factors}, quantizer=quantizer, train=train), run)
    return run


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {f"{f.stem}/{name}": t for f in folder.glob("*.safetensors") for name, t in load_file(f).items()}


def test_kmeans_lowers_the_first_quantization_error(tiny: TokenizerRunConfig, tmp_path: Path) -> None:
    errors = [
        read_stats(trained(tiny, tmp_path / str(iterations), 1, kmeans_iterations=iterations))[0]["commitment_loss"]
        for iterations in (0, 5)
    ]
    assert errors[1] < 0.5 * errors[0], errors


@pytest.mark.parametrize("options", [ALL, BY_GRADIENT], ids=["all", "restarts"])
def test_a_run_resumes_to_the_bit(tiny: TokenizerRunConfig, tmp_path: Path, options: dict[str, Any]) -> None:
    straight = trained(tiny, tmp_path / "straight", 6, **options)
    trained(tiny, tmp_path / "resumed", 3, **options)
    resumed = trained(tiny, tmp_path / "resumed", 6, **options)
    a, b = tensors(straight, 6), tensors(resumed, 6)
    assert a.keys() == b.keys() and "extra/1/ages" in a
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    lines = [
        [{name: value for name, value in line.items() if name != "images_per_second"} for line in read_stats(run)]
        for run in (straight, resumed)
    ]
    assert lines[0] == lines[1]
    assert sum(line["visual_restarted"] for line in lines[0]) > 0


def test_nothing_of_it_is_in_the_tokenizer(tiny: TokenizerRunConfig, tmp_path: Path) -> None:
    plain, run = trained(tiny, tmp_path / "plain", 2), trained(tiny, tmp_path / "all", 2, **ALL)
    a, b = tensors(plain, 2), tensors(run, 2)
    for file in ("tokenizer", "ema"):
        names = {name for name in a if name.startswith(f"{file}/")}
        assert names == {name for name in b if name.startswith(f"{file}/")}
        assert f"{file}/branches.0.quantizer.codebook" in names
    assert not any(name.startswith("extra/") for name in a)
    assert not any(name.startswith("tokenizer-optimizer/branches.0.quantizer") for name in b)
    codebook, averages = b["tokenizer/branches.0.quantizer.codebook"], b["extra/0/averages"]
    torch.testing.assert_close(codebook, F.normalize(averages, dim=1), rtol=0, atol=1e-6)
    assert "codebook_loss" in read_stats(plain)[0] and "codebook_loss" not in read_stats(run)[0]
    tokenizer = fqgan.load_tokenizer(run)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    again = fqgan.load_tokenizer(fqgan.save_tokenizer(tokenizer, tmp_path / "exported"))
    assert torch.equal(again.encode(images), tokenizer.encode(images))
