"""Sampling beside others: given codes, rows at positions of their own, other grids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from generators import tiny
from test_sampler import LABELS, forced_logits, products  # noqa: F401
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config import SamplingConfig
from fqgan.generator import cache
from fqgan.generator import position as position_module
from fqgan.generator import rows as rows_module
from fqgan.generator.draw import draw, draw_each, uniforms
from fqgan.generator.model import FAR
from fqgan.generator.rows import spans
from fqgan.generator.sampler import Sampler

SIZES = (7, 11, 5)
MASKS = ("nothing", "all", "prefix", "region", "a factor", "all but a factor", "here and there")


def codes_of(model: FAR, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = model.config.codebook_sizes
    return torch.stack([torch.randint(0, size, (n, *model.config.grid), generator=generator) for size in sizes], 1)


def mask_of(kind: str, shape: torch.Size) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    if kind == "all":
        mask[:] = True
    elif kind == "prefix":
        mask.flatten(2)[:, :, :5] = True
    elif kind == "region":
        mask[:, :, 1:, 1:3] = True
    elif kind == "a factor":
        mask[:, -1] = True
    elif kind == "all but a factor":
        mask[:, 1:] = True
    elif kind == "here and there":
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.4
    return mask


def by_full_passes(model: FAR, labels: list[int], given: Tensor, mask: Tensor, scale: float, seed: int) -> Tensor:
    """Codes by a full forward pass for each code that is drawn."""
    n, k = given.shape[:2]
    codes = torch.where(mask, given, 0).flatten(2)
    numbers = torch.stack([uniforms(seed, i, codes.shape[2], k) for i in range(n)]).double()
    for t in range(codes.shape[2]):
        for i in range(k):
            logits = forced_logits(model, codes.unflatten(2, model.config.grid), labels, scale)[i][:, t]
            drawn = draw(logits.double(), numbers[:, t, i])
            codes[:, i, t] = torch.where(mask.flatten(2)[:, i, t], codes[:, i, t], drawn)
    return codes.unflatten(2, model.config.grid)


@pytest.mark.parametrize("head", ["linear", "mlp", "ar"])
@pytest.mark.parametrize("kind", MASKS)
def test_given_codes_stay_and_the_others_are_those_of_full_passes(head: str, kind: str, in_float64: None) -> None:
    model = tiny(head=head, codebook_sizes=SIZES, depth=1, head_depth=1)
    given = codes_of(model, 3)
    mask = mask_of(kind, given.shape)
    expected = by_full_passes(model, LABELS[:3], given, mask, 2.0, 4)
    for static in (False, True):
        sampler = model.sampler(2, static=static, compiled=False)  # 3 images in batches of 2
        codes = sampler(LABELS[:3], 4, given=given, mask=mask)
        assert torch.equal(codes[mask], given[mask])
        assert torch.equal(codes, expected)
        plain = sampler(LABELS[:3], 4)  # nothing is left of what was given
    assert torch.equal(plain, model.sampler(3)(LABELS[:3], 4))  # pyright: ignore[reportPossiblyUnbound]


def test_masks_may_repeat_and_unmasked_codes_mean_nothing() -> None:
    model = tiny()
    given = codes_of(model, 3)
    mask = torch.tensor([True, False, False]).view(1, 3, 1, 1)
    rubbish = given.masked_fill(~mask, -7)
    kept = model.generate(LABELS[:3], seed=2, given=rubbish, mask=mask)
    assert torch.equal(kept[:, 0], given[:, 0])
    assert torch.equal(kept, model.generate(LABELS[:3], seed=2, given=given, mask=mask.expand(given.shape)))
    one = model.generate(LABELS[:3], seed=2, given=given[:1].numpy(), mask=mask.numpy())
    assert torch.equal(one[:, 0], given[:1, 0].expand(3, -1, -1))


def test_positions_that_are_wholly_given_cost_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return draw(*arguments)

    monkeypatch.setattr(position_module, "draw", counted)
    model = tiny()
    given = codes_of(model, 2)
    mask = mask_of("prefix", given.shape)
    for static in (False, True):
        calls = 0
        model.sampler(2, static=static, compiled=False)(LABELS[:2], given=given, mask=mask)
        assert calls == 7 * 3  # of 12 positions with 3 factors


SETTINGS = [
    SamplingConfig(),
    SamplingConfig(cfg_scale=(1.0,)),
    SamplingConfig(cfg_scale=(3.0, 1.0, 2.0), cfg_interval=(0.0, 0.5), top_k=(4,)),
    SamplingConfig(temperature=(0.0,)),
    SamplingConfig(cfg_schedule=("linear", "constant", "power-cosine"), top_p=(0.8,), temperature=(1.3, 1.0, 0.5)),
]


def run_mixed(model: FAR, batch: int, **switches: Any) -> dict[int, Tensor]:
    """Codes of eight images that join three at a time, as rows become free, each with settings of its own; some have
    given codes, and one leaves and comes again."""
    sampler = Sampler(model, batch, None, **switches)
    given = codes_of(model, len(LABELS))
    mask = mask_of("here and there", given.shape)
    waiting, rows, found = list(range(len(LABELS))), {}, {}
    steps = left = 0
    while waiting or rows:
        if steps % 2 == 0:
            for i in waiting[: min(3, sampler.free)]:
                own: dict[str, Any] = {"given": given[i : i + 1], "mask": mask[i : i + 1]} if i % 3 == 2 else {}
                (row,) = sampler.join(LABELS[i : i + 1], 7, i, SETTINGS[i % len(SETTINGS)], **own)
                rows[row] = i
                waiting.remove(i)
        if steps == 5 and not left:
            left = next(iter(rows))
            sampler.leave([left])
            waiting.append(rows.pop(left))
        done, codes = sampler.step()
        for row, codes_here in zip(done, codes, strict=True):
            found[rows.pop(row)] = codes_here
        for row in rows:
            assert sampler.so_far(row).shape == (3, sampler.slots.at[row])
        steps += 1
    assert sampler.free == batch
    return found


@pytest.mark.parametrize(
    "changes",
    [{"head": "linear"}, {"head": "ar"}, {"head": "masked"}, {"adaln": True, "target_positions": True}],
)
def test_mixed_rows_equal_lone_ones_to_the_bit(changes: dict, products: str) -> None:  # noqa: F811
    model = tiny(**changes)
    given = codes_of(model, len(LABELS))
    mask = mask_of("here and there", given.shape)
    found = {batch: run_mixed(model, batch) for batch in (3, 5)}
    assert [sorted(codes) for codes in found.values()] == [list(range(len(LABELS)))] * 2
    for i, label in enumerate(LABELS):
        own: dict[str, Any] = {"given": given[i : i + 1], "mask": mask[i : i + 1]} if i % 3 == 2 else {}
        (lone,) = Sampler(model, 1, SETTINGS[i % len(SETTINGS)])([label], 7, i, **own)
        for batch, codes in found.items():
            assert torch.equal(codes[i], lone), f"image {i} in a batch of {batch}"


@pytest.mark.parametrize("call", [0, 2**40], ids=["a span for each gap", "gaps computed along"])
@pytest.mark.parametrize("mixes", [True, False])
def test_rows_on_both_sides_of_a_step_of_the_caches_equal_lone_ones_to_the_bit(
    mixes: bool, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """66 positions, of which rows read 64 or all. Where this CPU keeps the bits over more positions they go together;
    where it does not, those of one length do."""
    if mixes and not cache.keeps_bits(2, 2, 8, 66):
        pytest.skip("the bits of attention depend on the length here")
    monkeypatch.setattr(cache, "keeps_bits", lambda *shape: mixes)
    monkeypatch.setattr(rows_module, "_CALL", call)
    model = tiny(grid=(6, 11), depth=1, head_depth=1)
    sampler, lone = Sampler(model, 4, None), Sampler(model, 1, None)
    lengths, rows, found = set[frozenset[int]](), dict[int, int](), dict[int, Tensor]()
    waiting = list(range(6))
    for t in range(210):
        if waiting and t % 20 == 0 and sampler.free:
            i = waiting.pop(0)
            rows[sampler.join(LABELS[:1], 7, i, SETTINGS[0])[0]] = i
        if t == 45:  # a hole, until the next one joins
            left = min(rows)
            sampler.leave([left])
            waiting.append(rows.pop(left))
        done, codes = sampler.step()
        at = sampler.slots.at[sampler.slots.active].tolist()
        lengths.add(frozenset(cache.in_steps(each, 66) for each in at if each))
        found |= {rows.pop(row): own for row, own in zip(done, codes, strict=True)}
    assert frozenset({64, 66}) in lengths and sorted(found) == list(range(6))
    for i, codes in found.items():
        (row,) = lone.join(LABELS[:1], 7, i, SETTINGS[0])
        alone = [lone.step()[1] for _ in range(66)]
        assert row == 0 and torch.equal(codes, alone[-1][0]), f"image {i}"


def test_spans_are_as_few_as_gaps_and_lengths_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = cache.KeyValueCache(2, 2, 8, 12, 200, torch.float32, torch.device("cpu"))

    def found(slots: list[int], positions: list[int]) -> list[tuple[slice, slice, int]]:
        return [(span.rows, span.slots, span.length) for span in spans(slots, positions, caches)]

    monkeypatch.setattr(rows_module, "_CALL", 2 * 16 * 64)  # two slots of 64 positions
    caches.mixes = True
    assert found([0, 1, 2], [5, 5, 5]) == [(slice(0, 3), slice(0, 3), 64)]
    assert found([1, 4, 5], [5, 9, 7]) == [(slice(0, 3), slice(1, 6), 64)]
    assert found([1, 5, 6], [5, 9, 7]) == [(slice(0, 1), slice(1, 2), 64), (slice(1, 3), slice(5, 7), 64)]
    assert found([0, 1, 2], [5, 64, 199]) == [(slice(0, 3), slice(0, 3), 200)]
    caches.mixes = False
    assert found([0, 1, 2], [5, 64, 100]) == [(slice(0, 1), slice(0, 1), 64), (slice(1, 3), slice(1, 3), 128)]


@pytest.mark.parametrize("fused", [False, True])
def test_attention_of_spans_with_holes_is_that_of_each_row(fused: bool) -> None:
    """Against softmax attention row by row; four queries share two keys."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    caches = cache.KeyValueCache(4, 2, 8, 6, 70, torch.float64, torch.device("cpu"), whole=True)
    caches.fused, caches.keys, caches.values = fused, normal(6, 2, 70, 8), normal(6, 2, 70, 8)
    slots, positions = [0, 2, 3, 5], [3, 40, 0, 66]
    q, k, v = normal(4, 4, 8), normal(4, 2, 8), normal(4, 2, 8)
    (span,) = spans(slots, positions, caches)
    got = caches.attend(q, k, v, (span,))
    for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        keys, values = (each[slot, :, : position + 1].repeat_interleave(2, 0) for each in (caches.keys, caches.values))
        assert torch.equal(keys[::2, -1], k[row]) and torch.equal(values[::2, -1], v[row])
        weights = (8**-0.5 * keys @ q[row][:, :, None]).softmax(1)
        torch.testing.assert_close(got[row], (weights * values).sum(1))


def test_speed_chooses_in_bf16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 codes must not depend on which kernel was faster just then."""
    threads = torch.get_num_threads()
    assert cache.fused_is_faster(1, 2, 1, 8, 64) in (False, True) and torch.get_num_threads() == threads
    for faster in (True, False):
        monkeypatch.setattr(cache, "fused_is_faster", lambda *shape, own=faster: own)
        for dtype, expected in ((torch.float32, False), (torch.bfloat16, faster)):
            assert cache.KeyValueCache(2, 1, 8, 1, 64, dtype, torch.device("cpu")).fused == expected


def test_what_is_not_a_number_does_not_reach_the_next_image() -> None:
    """An image whose logits were no numbers leaves keys that are none, behind the next image's mask."""
    model = tiny(grid=(9, 10), depth=1, head_depth=1)
    expected = model.sampler(1)(LABELS[:1], 3)
    for leaves in (False, True):
        sampler = model.sampler(1)
        sampler.join(LABELS[:1], 3)
        sampler._input.fill_(torch.nan)
        while sampler.slots.active:
            done, codes = sampler.step()
            if leaves and sampler.slots.at[0] == 70:
                sampler.leave([0])
            elif done:
                assert (codes >= max(SIZES)).any()
        assert torch.equal(sampler(LABELS[:1], 3), expected)


def test_mixed_rows_of_static_shapes_are_the_same(in_float64: None) -> None:
    """As on a GPU, where each row's settings are numbers of tensors."""
    model = tiny(grid=(7, 10), depth=1, head_depth=1, adaln=True, target_positions=True)
    expected, found = run_mixed(model, 3), run_mixed(model, 3, static=True, compiled=False)
    for i, codes in expected.items():
        assert torch.equal(found[i], codes), i


def test_draws_of_each_row_are_those_of_its_settings() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 30, generator=generator, dtype=torch.float64)
    u = torch.rand(400, generator=generator, dtype=torch.float64)
    settings = [
        (1.0, 0, 1.0),
        (0.5, 5, 1.0),
        (2.0, 0, 0.7),
        (0.0, 0, 1.0),
        (1.0, 29, 0.0),
        (1.0, 99, 0.3),
        (1e-21, 3, 1.0),
    ]
    rows = [settings[i % len(settings)] for i in range(400)]
    temperature, top_k, top_p = torch.tensor(rows, dtype=torch.float64).T
    found = draw_each(logits, u, temperature, top_k, top_p)
    for i, own in enumerate(rows):
        assert found[i] == draw(logits[i : i + 1], u[i : i + 1], *own)[0], own
    logits[3] = torch.nan
    assert draw_each(logits, u, temperature, top_k, top_p)[3] == 30


@pytest.mark.parametrize("grid", [(2, 8), (8, 2), (5, 6)])
def test_other_grids_are_those_of_a_model_of_that_grid(grid: tuple[int, int]) -> None:
    model = tiny(kv_heads=2)
    other = FAR(replace(model.config, grid=grid)).eval()
    other.load_state_dict(model.state_dict())
    codes = model.generate(LABELS[:3], seed=3, grid=grid)
    assert codes.shape == (3, 3, *grid)
    assert torch.equal(codes, other.generate(LABELS[:3], seed=3))


def test_what_cannot_be_is_refused() -> None:
    model = tiny()
    sampler = model.sampler(2)
    given = codes_of(model, 2)
    mask = torch.ones_like(given, dtype=torch.bool)
    impossible: list[tuple[dict[str, Any], str]] = [
        ({"given": given}, "given and mask belong together"),
        ({"mask": mask}, "given and mask belong together"),
        ({"given": given, "mask": mask.int()}, "mask must be true or false"),
        ({"given": given[:, :2], "mask": mask}, "must be codes"),
        ({"given": given + 100, "mask": mask}, "codes of factor 0 must lie in"),
    ]
    for options, words in impossible:
        with pytest.raises(UserError, match=words):
            sampler(LABELS[:2], **options)
    with pytest.raises(UserError, match="legacy"):
        tiny(legacy=True).sampler(2, grid=(2, 2))
    with pytest.raises(UserError, match="a height and a width"):
        model.sampler(2, grid=(2,))
    own = Sampler(model, 2, None)
    with pytest.raises(UserError, match="takes one from whoever joins"):
        own.join([1])
    with pytest.raises(UserError, match="takes none"):
        sampler.join([1], config=SamplingConfig())
    assert len(sampler.join([1, 2])) == 2 and own.free == 2
    with pytest.raises(UserError, match="cannot join: 0 of 2 rows are free"):
        sampler.join([1])
    with pytest.raises(UserError, match="still under way"):
        sampler([1])
    assert sampler.step()[0] == [] and own.step()[0] == []


def test_caches_in_bf16_grow_with_the_furthest_row_and_shrink_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 on a CPU; 90 positions are more than a step of 64. What is seen is what whole caches would show."""
    model = tiny(grid=(9, 10), depth=1, head_depth=1).set_precision("bf16")
    logits: dict[bool, list[Tensor]] = {}
    for grows in (True, False):
        seen = logits.setdefault(grows, [])

        def watch(own: Tensor, *others: Any, seen: list[Tensor] = seen) -> Tensor:
            seen.append(own)
            return others[0].mul(0).long()  # the first code, so that both go the same way

        monkeypatch.setattr(position_module, "draw", watch)
        sampler = model.sampler(2)
        caches = [block.cache for block in sampler._blocks]
        for each in caches:
            assert each.grows and each.keys.shape[2] == 64
            if not grows:
                each._make_room(90)
                each.grows = False
        sampler.join(LABELS[:1])
        rooms = []
        for t in range(120):
            if t == 70:
                sampler.join(LABELS[1:2])
            sampler.step()
            rooms.append(caches[0].keys.shape[2])
        if grows:
            assert rooms == [64] * 64 + [90] * 26 + [64] * 30  # the second row stands at 20 when the first is done
    for own, whole in zip(logits[True], logits[False], strict=True):
        torch.testing.assert_close(own, whole, atol=0.06, rtol=0.06)
