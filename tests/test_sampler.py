"""Sampling: the teacher-forced model's distribution, guidance, streams, and codes that depend on nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generators import tiny
from torch import Tensor
from torch._dynamo.utils import counters

from fqgan.base.errors import UserError
from fqgan.base.schema import from_dict, to_dict
from fqgan.config import SamplingConfig
from fqgan.config.evaluation import GeneratorEvaluation
from fqgan.engine.speed import compile_problem
from fqgan.generator import step
from fqgan.generator.draw import draw, guidance_scales, probabilities, uniforms
from fqgan.generator.model import FAR
from fqgan.generator.sampler import Sampler
from fqgan.lab.studies import measurements
from fqgan.lab.studies.measurements import Measurement

HEADS = ("linear", "mlp", "ar", "masked")
SIZES = (7, 11, 5, 13)
LABELS = [0, 5, 2, 2, 6, 1, 3, 4]


@pytest.fixture(params=["packed", "plain"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to multiply on a CPU."""
    if request.param == "plain":
        monkeypatch.setattr(step, "_can_pack", lambda device, dtype: False)
    elif not step._can_pack(torch.device("cpu"), torch.float32):
        pytest.skip("oneDNN's packed products don't work here")
    yield request.param


def forced_logits(model: FAR, codes: Tensor, labels: list[int], scale: float = 1.0) -> list[Tensor]:
    """Guided logits of the full forward pass, each (b, positions, K)."""
    with torch.no_grad():
        conditional = model(codes, torch.tensor(labels))
        unconditional = model(codes, torch.full((len(labels),), model.null_class))
    return [u + scale * (c - u) for c, u in zip(conditional, unconditional, strict=True)]


def recorded(sampler: Sampler, monkeypatch: pytest.MonkeyPatch, labels: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Codes, and the logits that they were drawn from, each (b, positions, K)."""
    seen: list[Tensor] = []

    def watch(logits: Tensor, *others: object) -> Tensor:
        seen.append(logits)
        return draw(logits, *others)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("fqgan.generator.position.draw", watch)
    codes = sampler(labels, seed=1)
    return codes, [torch.stack(seen[i :: sampler.factors], 1) for i in range(sampler.factors)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_step_by_step_logits_are_those_of_the_full_forward(
    head: str, k: int, scale: float, monkeypatch: pytest.MonkeyPatch, in_float64: None
) -> None:
    model = tiny(head=head, codebook_sizes=SIZES[:k])
    codes, logits = recorded(model.sampler(3, cfg_scale=scale), monkeypatch, LABELS[:3])
    for own, full in zip(logits, forced_logits(model, codes, LABELS[:3], scale), strict=True):
        torch.testing.assert_close(own, full, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_heads": 2},
        {"qk_norm": True},
        {"legacy": True},
        {"kv_heads": 1},
        {"factor_order": (2, 0, 1)},
        {"adaln": True},
        {"target_positions": True},
        {"head": "masked", "factor_order": (2, 0, 1), "head_rounds": 2},
    ],
)
def test_every_kind_of_block_steps_as_it_trains(
    changes: dict, products: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Packed products are float32 alone; the others are compared in float64."""
    close = {"atol": 2e-5, "rtol": 1e-4}
    if products == "plain":
        request.getfixturevalue("in_float64")
        close = {"atol": 1e-10, "rtol": 1e-10}
    model = tiny(**changes)
    for static in (False, True):
        sampler = model.sampler(3, static=static, compiled=False)
        codes, logits = recorded(sampler, monkeypatch, LABELS[:3])
        full = forced_logits(model, codes, LABELS[:3], 2.0)
        for own, factor in zip(logits, model.config.order, strict=True):
            torch.testing.assert_close(own, full[factor], **close)


def test_bf16_stays_close(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny().set_precision("bf16")
    codes, logits = recorded(model.sampler(3), monkeypatch, LABELS[:3])
    for own, full in zip(logits, forced_logits(model, codes, LABELS[:3], 2.0), strict=True):
        assert own.dtype == torch.float32
        # about 0.03; how kernels round differs with the CPU, and a wrong rule is off by several tenths
        assert 1e-4 < (own - full).norm() / full.norm() < 0.06


def test_guidance_1_is_conditional_and_runs_one_half() -> None:
    model = tiny()
    sampler = model.sampler(4, cfg_scale=1.0)
    assert sampler.rule and sampler.rule.guided == 0
    assert len(sampler._input) == 4
    codes = sampler(LABELS[:4], seed=3)
    assert torch.equal(codes, model.sampler(4, cfg_scale=[1.0, 1.0, 1.0], cfg_interval=(0.5, 0.5))(LABELS[:4], 3))
    # guided rows at scale 1: the first position's interval is guided, and the rest equal to the conditional one
    late = model.sampler(4, cfg_scale=3.0, cfg_interval=(0.75, 1.0))(LABELS[:4], 3).flatten(2)
    assert torch.equal(late[:, :, :9], codes.flatten(2)[:, :, :9])
    assert not torch.equal(late, codes.flatten(2))


def test_the_second_half_ends_with_the_guided_positions() -> None:
    """Leaving it out changes nothing."""
    model = tiny()
    sampler = model.sampler(4, cfg_scale=4.0, cfg_interval=(0.0, 0.5))
    assert sampler.rule and sampler.rule.guided == 6
    codes = sampler(LABELS[:4])
    sampler.rule = replace(sampler.rule, guided=12)
    assert torch.equal(sampler(LABELS[:4]), codes)


@pytest.mark.parametrize("head", HEADS[1:])
@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 1.0}, {"temperature": 0}, {"top_k": 4, "top_p": 0.9}])
def test_an_image_depends_on_its_label_seed_and_index_alone(head: str, settings: dict, products: str) -> None:
    model = tiny(head=head, grid=(2, 3))
    whole = model.generate(LABELS, seed=7, **settings)
    assert whole.shape == (8, 3, 2, 3)
    for batch in (1, 3, 8):
        sampler = model.sampler(batch, **settings)
        assert torch.equal(sampler(LABELS, 7), whole)
    order = [5, 0, 7, 1]
    if settings.get("temperature") != 0:
        assert not torch.equal(model.generate(LABELS, seed=8, **settings), whole)
    for i in order:
        assert torch.equal(model.generate(LABELS[i : i + 1], seed=7, first_image=i, **settings)[0], whole[i])
    own = model.generate([LABELS[i] for i in (0, 0, 1)], seed=[7, 9, 7], **settings)
    assert torch.equal(own[0], whole[0])
    assert torch.equal(own[1], model.generate([LABELS[0]], seed=9, **settings)[0])


@pytest.mark.parametrize("head", HEADS[1:])
@pytest.mark.parametrize("grid", [(3, 4), (6, 11)])
def test_static_shapes_give_the_same_codes(head: str, grid: tuple[int, int], products: str) -> None:
    """66 positions: more than one length to read."""
    model = tiny(head=head, grid=grid, depth=1, head_depth=1)
    settings = {"cfg_scale": [2.0, 1.0, 3.0], "cfg_schedule": "linear", "cfg_interval": (0.0, 0.8)}
    expected = model.sampler(4, **settings)(LABELS[:7], 2)
    static = model.sampler(4, static=True, compiled=False, **settings)
    assert torch.equal(static(LABELS[:7], 2), expected)
    assert torch.equal(static(LABELS[:7], 2), expected)  # nothing is left in the caches
    assert len(static._runs) == (2 if grid == (3, 4) else 3)


@pytest.mark.slow
def test_a_block_compiles_in_one_piece_for_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; packed products, which only a CPU has, don't compile."""
    monkeypatch.setattr(step, "_can_pack", lambda device, dtype: False)
    model = tiny()
    settings = {"top_k": [3, 0, 0], "top_p": [1.0, 0.8, 1.0]}
    if problem := compile_problem(torch.device("cpu")):
        pytest.skip(problem)
    torch.compiler.reset()
    counters.clear()
    codes = model.sampler(4, static=True, compiled=True, **settings)(LABELS[:4], 2)
    graphs = counters["stats"]["unique_graphs"]
    # fused kernels round otherwise, so a code may differ, and then its image does
    same = (codes == model.sampler(4, **settings)(LABELS[:4], 2)).flatten(1).all(1)
    assert same.sum() >= 3
    # backbone, and head at each of three factors: nothing is compiled for every block
    assert graphs == 4


def test_what_the_weights_are_now_counts() -> None:
    model = tiny()
    before = model.generate(LABELS)
    with torch.no_grad():
        model.head.outputs[0].weight.mul_(-1)  # pyright: ignore
    assert not torch.equal(model.generate(LABELS), before)


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 20,000 images' streams; 99.9 % of right samplers pass, and the seed is fixed."""
    logits = torch.tensor([[1.0, -1.0, 0.5, 2.0, 0.0, -3.0, 1.5, -0.5]])
    n = 20_000
    u = torch.stack([uniforms(5, i, 1, 2) for i in range(n)])[:, 0]
    for factor, settings in enumerate([(1.0, 0, 1.0), (0.7, 5, 0.9)]):
        codes = draw(logits.expand(n, -1), u[:, factor], *settings)
        p = plain_probabilities(logits[0].double().numpy(), *settings)
        counts = np.bincount(codes, minlength=8)
        assert counts[p == 0].sum() == 0
        kept = p > 0
        chi2 = ((counts - n * p)[kept] ** 2 / (n * p)[kept]).sum()
        assert chi2 < {7: 24.3, 2: 13.8, 3: 16.3, 4: 18.5}[kept.sum() - 1]


def plain_probabilities(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """One row, code by code."""
    order = sorted(range(len(logits)), key=lambda code: -logits[code])[: top_k or None]
    weights = {code: math.exp((logits[code] - logits[order[0]]) / temperature) for code in order}
    total = sum(weights.values())
    kept, reached = [], 0.0
    for code in order:
        if reached >= top_p:
            break
        kept.append(code)
        reached += weights[code] / total
    p = np.zeros(len(logits))
    for code in kept:
        p[code] = weights[code] / sum(weights[c] for c in kept)
    return p


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 10, 50])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 1.0])
def test_top_k_and_top_p_are_the_plain_ones(temperature: float, top_k: int, top_p: float) -> None:
    logits = 2 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    p = probabilities(logits, temperature, top_k, top_p).double()
    for row, own in zip(logits, p / p.sum(1, keepdim=True), strict=True):
        expected = plain_probabilities(row.double().numpy(), temperature, top_k, top_p)
        np.testing.assert_allclose(own.numpy(), expected, atol=1e-6)


def test_the_inverse_cdf_reaches_every_code_and_no_impossible_one() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    u = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-24])
    assert draw(logits.expand(4, -1), u).tolist() == [1, 1, 3, 3]
    assert draw(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([0.99]), temperature=0).tolist() == [1]


def test_streams_are_keyed_by_seed_and_index() -> None:
    u = uniforms(3, 4, 100, 2)
    assert u.shape == (100, 2)
    assert u.dtype == torch.float32
    assert torch.equal(uniforms(3, 4, 50, 2), u[:50])
    assert not torch.equal(uniforms(4, 3, 100, 2), u)
    assert 0 <= u.min() < 0.05 < 0.95 < u.max() < 1
    # pinned: pictures must come back from their seed in years
    assert [round(x, 6) for x in uniforms(0, 0, 2, 2).flatten().tolist()] == [0.011547, 0.241549, 0.111426, 0.564415]
    for seed, index in ((-1, 0), (0, -1), (2**64, 0)):
        with pytest.raises(UserError, match="whole number from 0"):
            uniforms(seed, index, 1, 1)


def test_guidance_schedules() -> None:
    def scales(positions: int = 5, **values: object) -> list[float]:
        return guidance_scales(SamplingConfig.of(cfg_scale=3.0, **values), positions, 1)[:, 0].tolist()

    assert scales() == [3, 3, 3, 3, 3]
    assert scales(cfg_schedule="linear") == [1, 1.5, 2, 2.5, 3]
    expected = [1 + 2 * (1 - math.cos(math.pi * (t / 4) ** 2.0)) / 2 for t in range(5)]
    assert scales(cfg_schedule="power-cosine", cfg_power=2.0) == pytest.approx(expected)
    assert scales(cfg_interval=(0.2, 0.6)) == [1, 3, 3, 1, 1]
    assert scales(cfg_interval=(0.4, 0.4)) == [1] * 5
    assert scales(1, cfg_schedule="linear") == [3]
    both = guidance_scales(SamplingConfig.of(cfg_scale=[2.0, 1.0]), 3, 2)
    assert both.tolist() == [[2, 1]] * 3
    own = guidance_scales(SamplingConfig.of(cfg_scale=[2.0, 3.0], cfg_interval=(0.5, 1.0, 0.0, 0.75)), 4, 2)
    assert own.tolist() == [[1, 3], [1, 3], [2, 3], [2, 1]]
    kinds = {"cfg_schedule": ["linear", "constant", "power-cosine", "power-cosine"], "cfg_power": [1.0, 1.0, 2.0, 1.0]}
    grown = guidance_scales(SamplingConfig.of(cfg_scale=[3.0, 2.0, 3.0, 3.0], **kinds), 5, 4)
    columns = [scales(cfg_schedule="linear"), [2] * 5, expected, scales(cfg_schedule="power-cosine")]
    torch.testing.assert_close(grown, torch.tensor(columns).T)


def test_files_of_one_schedule_for_all_factors_are_read() -> None:
    older = to_dict(SamplingConfig()) | {"cfg_schedule": "power-cosine", "cfg_power": 2.0}
    read = from_dict(SamplingConfig, older)
    assert read == SamplingConfig(cfg_schedule=("power-cosine",), cfg_power=(2.0,))
    assert from_dict(SamplingConfig, to_dict(read)) == read


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 8}, "top_k 8 is impossible: factor 0 has 7 codes"),
        ({"top_k": [1, 2]}, "top_k needs one value, or one for each of the 3 factors, got 2"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": [1.0, 1.0, 1.1]}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"temperature": -1.0}, "temperature must be at least 0 and at most 1,000,000, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0 and at most 1,000,000, got nan"),
        ({"cfg_scale": float("inf")}, "cfg_scale must be at least 0 and at most 1,000,000, got inf"),
        ({"cfg_interval": (0.6, 0.5)}, "cfg_interval must be two fractions"),
        ({"cfg_interval": (0.0, 1.0, 0.5, 1.0)}, "or two for each of the 3 factors, got (0.0, 1.0, 0.5, 1.0)"),
        ({"cfg_interval": (0.0, 1.0, 0.5, 1.0, 0.9, 0.8)}, "cfg_interval must be two fractions 0 <= from <= to <= 1"),
        ({"cfg_schedule": "cosine"}, "cfg_schedule must be constant, linear or power-cosine, got 'cosine'"),
        ({"seed": [1, 2]}, "one seed, or one for each of the 1 images is needed, got 2"),
        ({"labels": [7]}, "labels must be a list of classes from 0 to 6"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        tiny().generate(**{"labels": [0], **settings})
    assert message in str(error.value)


def test_measurements_made_with_one_schedule_for_all_factors_count_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "input_fingerprints", lambda *inputs: {})
    settings = GeneratorEvaluation(checkpoint=Path("model"), data="photos", cfg_schedule=("linear",))
    made, file = Measurement(settings, "cpu"), tmp_path / "eval.json"
    request = made.content()
    for schedule, counts in ((["linear"], True), ("linear", True), ("constant", False)):
        request["settings"] |= {"cfg_schedule": schedule, "cfg_power": 1.0}
        file.write_text(json.dumps({"metrics": {}, "protocol": {}, "request": request}))
        assert made.is_done(file) == counts
    for broken in ({}, {"request": []}, {"request": {"settings": 1}}):
        file.write_text(json.dumps({"metrics": {}, "protocol": {}, **broken}))
        assert not made.is_done(file)
