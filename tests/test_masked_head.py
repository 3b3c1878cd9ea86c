"""The masked head: its formula, the distribution that it draws from, and what it learns."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generators import tiny
from torch import Tensor

import fqgan
from fqgan.base.errors import UserError
from fqgan.engine.muon import hidden_matrices
from fqgan.generator.draw import draw, uniforms
from fqgan.generator.model import FAR, _in_order, save_generator
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.pictures import save_picture

SMALL: dict[str, Any] = {"head": "masked", "codebook_sizes": (2, 3, 2), "depth": 1, "head_depth": 1}


def rms(x: Tensor, norm: Any) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def by_formula(model: FAR, g: Tensor, embeddings: list[Tensor], visible: Tensor) -> list[Tensor]:
    """Logits of all factors, of vectors g (n, d) and the codes that are visible, (n, k)."""
    head: Any = model.head
    slots = [
        e * v[:, None] + u * ~v[:, None] for e, v, u in zip(embeddings, visible.T, head.unknown.weight, strict=True)
    ]
    weights = head.mix.weight.split(g.shape[1], 1)
    x = g + head.mix.bias + sum(slot @ weight.T for slot, weight in zip(slots, weights, strict=True))
    for layer in head.layers:
        inner = rms(x, layer.norm) @ layer.up.weight.T + layer.up.bias
        x = x + inner * 0.5 * (1 + torch.erf(inner / 2**0.5)) @ layer.down.weight.T + layer.down.bias
    return [rms(x, head.norm) @ output.weight.T for output in head.outputs]


def states(model: FAR, codes: Tensor, labels: list[int]) -> tuple[Tensor, list[Tensor]]:
    """What the head takes, of all positions in turn."""
    return model._backbone(_in_order(codes), torch.tensor(labels))


def seen(n: int, k: int, factors: Collection[int]) -> Tensor:
    return torch.tensor([i in factors for i in range(k)]).expand(n, k)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_round_sees_the_codes_of_earlier_rounds(rounds: int, in_float64: None) -> None:
    model = tiny(head="masked", head_rounds=rounds, factor_order=(2, 0, 1))
    assert model.config.rounds == {1: ((2, 0, 1),), 2: ((2,), (0, 1)), 3: ((2,), (0,), (1,))}[rounds]
    codes = torch.randint(5, (2, 3, 3, 4))
    found, state = model(codes, [0, 3]), states(model, codes, [0, 3])
    done: list[int] = []
    for factors in model.config.rounds:
        expected = by_formula(model, *state, seen(24, 3, done))
        for i in factors:
            torch.testing.assert_close(found[i].flatten(0, 1), expected[i])
        done += factors


@pytest.mark.parametrize("rounds", [1, 2, 0])
def test_probabilities_of_all_codes_add_up_to_1_and_draws_follow_them(rounds: int) -> None:
    """Chi-square with 143 degrees of freedom over 6,000 images: 99.9 % of right samplers stay below 199."""
    model, n = tiny(**SMALL, grid=(1, 2), head_rounds=rounds), 6000
    every = torch.tensor([*product(*([range(2), range(3), range(2)] * 2))]).view(-1, 2, 3).transpose(1, 2)[:, :, None]
    p = model.log_likelihood(every, [1] * 144).sum((1, 2, 3)).double().exp2()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = model.generate([1] * n, cfg_scale=1.0, seed=5, batch=n)
    place = (drawn * torch.tensor([72, 12, 2, 36, 4, 1]).view(2, 3).T[None, :, None]).sum((1, 2, 3))
    wrong = (every * torch.tensor([72, 12, 2, 36, 4, 1]).view(2, 3).T[None, :, None]).sum((1, 2, 3))
    counts = torch.stack([(place == each).sum() for each in wrong])
    assert counts.sum() == n
    assert ((counts - n * p).square() / (n * p)).sum() < 199


def test_factors_of_a_round_are_independent_and_those_of_several_are_not() -> None:
    for rounds, independent in ((1, True), (0, False)):
        model = tiny(**SMALL, grid=(1, 1), head_rounds=rounds)
        every = torch.tensor([*product(range(2), range(3), range(2))])[:, :, None, None]
        p = model.log_likelihood(every, [1] * 12).sum((1, 2, 3)).exp2().view(2, 3, 2).numpy()
        apart = np.einsum("i,j,k->ijk", p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1)))
        assert (abs(p - apart).max() < 1e-6) == independent


@pytest.mark.parametrize("rounds", [1, 0])
def test_given_codes_are_seen_by_all_factors_that_are_drawn(rounds: int, in_float64: None) -> None:
    """Also by those of earlier rounds, and with guidance; each code is the formula's draw."""
    model = tiny(head="masked", head_rounds=rounds)
    n, k, labels = 3, 3, [0, 5, 2]
    given = torch.randint(5, (n, k, 3, 4), generator=torch.Generator().manual_seed(1))
    mask = torch.rand(given.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    codes = torch.where(mask, given, 0)
    flat, held = codes.flatten(2), mask.flatten(2)
    numbers = torch.stack([uniforms(4, i, 12, k) for i in range(n)]).double()
    for t in range(12):
        visible = held[:, :, t].clone()
        for factors in model.config.rounds:
            both = [states(model, codes, each) for each in (labels, [6] * n)]
            rows = torch.arange(n) * 12 + t
            c, u = (by_formula(model, g[rows], [e[rows] for e in es], visible) for g, es in both)
            for i in factors:
                drawn = draw(u[i] + 2 * (c[i] - u[i]), numbers[:, t, i])
                flat[:, i, t] = torch.where(held[:, i, t], flat[:, i, t], drawn)
                visible[:, i] = True
    for static in (False, True):
        sampler = model.sampler(2, static=static, compiled=False, cfg_scale=2.0)
        assert torch.equal(sampler(labels, 4, given=given, mask=mask), codes)


def test_training_learns_hidden_codes_of_every_number(in_float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(head="masked", class_dropout=0.0).train()
    codes = torch.randint(5, (300, 3, 3, 4))
    found: list[Any] = []
    before = type(model.head).learned

    def watch(self: Any, *state: Any) -> Any:
        result = before(self, *state)
        found.append(result[1])
        return result

    monkeypatch.setattr(type(model.head), "learned", watch)
    result, (hidden,) = model.loss(codes, [0] * 300), found
    counts = hidden.sum(1).bincount(minlength=4) / len(hidden)
    assert counts[0] == 0 and ((counts[1:] - 1 / 3).abs() < 0.03).all()
    assert ((hidden.double().mean(0) - 2 / 3).abs() < 0.03).all()
    logits = by_formula(model, *states(model, codes, [0] * 300), ~hidden)
    for i, target in enumerate(_in_order(codes).flatten(0, 1).unbind(1)):
        rows = hidden[:, i]
        torch.testing.assert_close(
            result.cross_entropy[i].double(), F.cross_entropy(logits[i][rows], target[rows]), atol=1e-5, rtol=1e-5
        )
        hits = (logits[i].argmax(1) == target)[rows].double().mean()
        torch.testing.assert_close(result.accuracy[i].double(), hits, atol=1e-5, rtol=1e-5)


def test_a_second_round_saves_what_the_first_says_of_it() -> None:
    """Two equal factors of four codes: 2 bits a position in two rounds, 4 in one, from the same weights."""
    model = tiny(head="masked", codebook_sizes=(4, 4), grid=(2, 2), depth=1, head_depth=1).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        codes = torch.randint(4, (32, 1, 2, 2)).expand(-1, 2, -1, -1)
        optimizer.zero_grad()
        torch.stack(model.loss(codes, [0] * 32).loss).mean().backward()
        optimizer.step()
    codes = torch.randint(4, (200, 1, 2, 2)).expand(-1, 2, -1, -1)
    for rounds, bits in ((2, 2.0), (1, 4.0)):
        found = -model.set_head_rounds(rounds).log_likelihood(codes, [0] * 200).sum() / 800
        assert found.item() == pytest.approx(bits, abs=0.15)


def test_generate_takes_other_rounds_and_keeps_them_apart(tokenizer: FactorizedTokenizer, tmp_path: Path) -> None:
    model = tiny(head="masked", codebook_sizes=(32, 16), grid=(8, 8), num_classes=3, head_depth=1)
    model.carry(tokenizer)
    save_generator(model, tmp_path / "model")
    options: dict[str, Any] = {"num": 2, "precision": "float32", "device": "cpu"}
    made = fqgan.generate(tmp_path / "model", out=tmp_path / "out", head_rounds=1, **options)
    assert made.settings.head_rounds == 1
    images = tokenizer.decode(model.set_head_rounds(1).generate([0, 1], batch=2))
    save_picture(images[1], tmp_path / "own.png")
    assert (tmp_path / "out" / "000001.png").read_bytes() == (tmp_path / "own.png").read_bytes()
    with pytest.raises(UserError, match="head_rounds: 1 -> 0"):
        fqgan.generate(tmp_path / "model", out=tmp_path / "out", **options)
    for rounds, message in ((3, "must be at most the number of factors, 2, got 3"), (-1, "must be at least 0, got -1")):
        with pytest.raises(UserError, match=message):
            fqgan.generate(tmp_path / "model", out=tmp_path / "other", head_rounds=rounds, **options)
    with pytest.raises(UserError, match=r"model\.head_rounds is for model.head masked, and this is ar"):
        tiny().set_head_rounds(1)


def test_muon_takes_its_layers_and_not_what_stands_for_codes() -> None:
    model = tiny(head="masked", codebook_sizes=(32,) * 20)
    taken = {id(each) for each in hidden_matrices(model)}
    names = {name for name, each in model.head.named_parameters() if id(each) in taken}
    assert names == {"mix.weight", *(f"layers.{i}.{part}.weight" for i in range(2) for part in ("up", "down"))}
