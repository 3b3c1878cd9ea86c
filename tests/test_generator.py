"""FAR: against the released model's numbers, transformers' Llama, and what a causal model must do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generators import TINY, tiny
from released import tensors, write
from torch import Tensor

import fqgan
from fqgan.base.errors import UserError
from fqgan.config import GeneratorConfig
from fqgan.engine.sizes import num_parameters
from fqgan.generator.cross_entropy import linear_cross_entropy
from fqgan.generator.model import FAR
from fqgan.generator.transformer import rotary_table, rotate

CPU = torch.device("cpu")


def inputs(config: GeneratorConfig, b: int = 2) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    codes = [torch.randint(size, (b, *config.grid), generator=rng) for size in config.codebook_sizes]
    return torch.stack(codes, 1), torch.randint(config.num_classes + 1, (b,), generator=rng)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> FAR:
    """FAR-Base for two factors, from a file as the released one; half a minute, so once."""
    path = write(tmp_path_factory.mktemp("released") / "far.pt", tensors("far_dual_B"))
    model = fqgan.load_generator(path)
    path.unlink()  # 1.7 GB, which the mapping holds until the model goes
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent / "golden" / "far_dual_B.npz"))


@pytest.mark.slow
def test_the_released_base_model(released: FAR, golden: dict[str, np.ndarray]) -> None:
    codes = torch.from_numpy(golden["codes"]).long().transpose(0, 1).unflatten(-1, (16, 16))
    labels = torch.from_numpy(golden["labels"]).long()
    with torch.no_grad():
        logits = released(codes, labels)
        losses = released.loss(codes, labels).cross_entropy
    for i, own in enumerate(logits):
        expected = torch.from_numpy(golden[f"logits_{i + 1}"])
        torch.testing.assert_close(own[:, golden["positions"], ::64], expected, atol=1e-5, rtol=1e-5)
        assert losses[i].item() == pytest.approx(golden["loss_each"][i], abs=1e-5)


@pytest.mark.slow
def test_the_released_base_model_decodes_greedily_with_guidance(released: FAR, golden: dict[str, np.ndarray]) -> None:
    """The first sixteen positions."""
    sampler = released.sampler(2, cfg_scale=2.0, top_k=1)
    rows = sampler.join(torch.from_numpy(golden["labels"]).long())
    for _ in range(16):
        sampler.step()
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(sampler.so_far(row).numpy(), golden["greedy_cfg2"][:, i])


@pytest.mark.parametrize("head", ["linear", "mlp", "ar", "masked"])
@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2}, {"qk_norm": True}, {"codebook_sizes": (9,)}, {"adaln": True}])
def test_the_loss_is_the_logits_cross_entropy(head: str, changes: dict, in_float64: None) -> None:
    model = tiny(head=head, **changes)
    codes, labels = inputs(model.config)
    result = model.loss(codes, labels)
    for i, logits in enumerate(model(codes, labels)):
        assert logits.shape == (2, 12, model.config.codebook_sizes[i])
        target = codes[:, i].flatten(1)
        torch.testing.assert_close(result.cross_entropy[i], F.cross_entropy(logits.flatten(0, 1), target.flatten()))
        assert result.accuracy[i].item() == pytest.approx((logits.argmax(-1) == target).float().mean().item())


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("linear", {}),
        ("mlp", {}),
        ("ar", {}),
        ("ar", {"factor_order": (2, 0, 1)}),
        ("masked", {"factor_order": (2, 0, 1)}),
        ("masked", {"factor_order": (2, 0, 1), "head_rounds": 2}),
        ("masked", {"head_rounds": 1}),
    ],
)
def test_a_code_sees_what_stands_before_it_and_nothing_else(head: str, changes: dict) -> None:
    """Position by position, and within a position round by round, in the order that the head has."""
    model = tiny(head=head, **changes)
    turn = {factor: r for r, factors in enumerate(model.config.rounds) for factor in factors}
    codes, labels = inputs(model.config, 1)
    before = model(codes, labels)
    for position, factor in ((0, 0), (5, 1), (11, 2), (4, 2)):
        changed = codes.clone()
        flat = changed[0, factor].view(-1)
        flat[position] = (flat[position] + 1) % model.config.codebook_sizes[factor]
        for i, (old, new) in enumerate(zip(before, model(changed, labels), strict=True)):
            differs = ((old - new).abs().amax(-1)[0] > 1e-6).tolist()
            later = turn[i] > turn[factor]
            expected = [t > position or (t == position and later) for t in range(12)]
            assert differs == expected, (position, factor, i)
    assert all((a - b).abs().amax() > 1e-4 for a, b in zip(before, model(codes, (labels + 1) % 7), strict=True))


def test_another_factor_order_is_a_model_of_factors_in_that_order(in_float64: None) -> None:
    """The same weights, factors renamed: every logit is the same."""
    order = (2, 0, 1)
    model = tiny(factor_order=order)
    sizes = model.config.codebook_sizes
    renamed = tiny(codebook_sizes=tuple(sizes[i] for i in order)).double()
    weights = dict(model.state_dict())
    for new, old in enumerate(order):
        for name in ("code_embeddings.{}.weight", "head.outputs.{}.weight"):
            weights[name.format(new)] = model.state_dict()[name.format(old)]
    by_factor = model.aggregate.weight.unflatten(1, (3, -1))
    weights["aggregate.weight"] = by_factor[:, list(order)].flatten(1)
    renamed.load_state_dict(weights)
    codes, labels = inputs(model.config)
    own = model(codes, labels)
    for new, logits in enumerate(renamed(codes[:, list(order)], labels)):
        torch.testing.assert_close(logits, own[order[new]])
    drawn = model.generate([0, 3], seed=1, cfg_scale=1.0, top_k=1)
    torch.testing.assert_close(renamed.generate([0, 3], seed=1, cfg_scale=1.0, top_k=1), drawn[:, list(order)])


def test_adaln_starts_at_nothing_and_is_dits(in_float64: None) -> None:
    """Untrained blocks pass their input on; a trained one is the formula of DiT's adaLN-zero, with our layers."""
    config = replace(TINY, adaln=True)
    fresh = FAR(config).blocks[0]
    x, condition = torch.randn(2, 5, 32), torch.randn(2, 32)
    rotary = FAR(config).rotary(x.device)[:5]
    assert torch.equal(fresh(x, rotary, condition), x)
    model = tiny(adaln=True)
    assert num_parameters(model) - num_parameters(tiny()) == 2 * (6 * 32 * 32 + 6 * 32), "none in the head's blocks"
    block: Any = model.blocks[0]
    numbers = block.modulation.linear(condition * condition.sigmoid()).unflatten(1, (6, 32))
    scaled = [block.attention_norm(x)[i] * (1 + numbers[i, 1]) + numbers[i, 0] for i in range(2)]
    y = x + numbers[:, 2, None] * block.attention(torch.stack(scaled), rotary)
    scaled = [block.mlp_norm(y)[i] * (1 + numbers[i, 4]) + numbers[i, 3] for i in range(2)]
    gate, up = block.gate_up(torch.stack(scaled)).chunk(2, -1)
    y = y + numbers[:, 5, None] * block.down(F.silu(gate) * up)
    torch.testing.assert_close(block(x, rotary, condition), y)


@pytest.mark.parametrize(("positions", "kv_heads"), [(12, 2), (12, 4), (3, 2), (2, 4)])
def test_a_block_is_transformers_llama_layer(positions: int, kv_heads: int) -> None:
    """Given our rotary rows, in its order of channels; values and gradients."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    config = replace(TINY, kv_heads=kv_heads)
    block = tiny(kv_heads=kv_heads).blocks[0]
    theirs = LlamaConfig(
        hidden_size=32,
        intermediate_size=config.mlp_width,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rms_norm_eps=config.norm_eps,
        attn_implementation="eager",
    )
    layer = llama.LlamaDecoderLayer(theirs, 0)
    # transformers turns channel j with j + hd / 2, we turn neighbours
    order = torch.cat([torch.arange(0, 8, 2), torch.arange(1, 8, 2)])

    def reordered(weight: Tensor, heads: int) -> Tensor:
        return weight.unflatten(0, (heads, 8))[:, order].flatten(0, 1)

    q, k, v = block.attention.qkv.weight.split([32, 8 * kv_heads, 8 * kv_heads])
    gate, up = block.gate_up.weight.chunk(2)
    layer.load_state_dict(
        {
            "self_attn.q_proj.weight": reordered(q, 4),
            "self_attn.k_proj.weight": reordered(k, kv_heads),
            "self_attn.v_proj.weight": v,
            "self_attn.o_proj.weight": block.attention.out.weight,
            "mlp.gate_proj.weight": gate,
            "mlp.up_proj.weight": up,
            "mlp.down_proj.weight": block.down.weight,
            "input_layernorm.weight": block.attention_norm.weight,
            "post_attention_layernorm.weight": block.mlp_norm.weight,
        }
    )
    x = torch.randn(2, positions, 32, requires_grad=True)
    table = rotary_table((3, 4), 8, 10_000.0, False, CPU)[:positions]
    cos, sin = (part.repeat(1, 2)[None] for part in table.unbind(-1))
    mask = torch.full((positions, positions), -torch.inf).triu(1)[None, None]
    expected = layer(x, attention_mask=mask, position_embeddings=(cos, sin))
    expected = expected[0] if isinstance(expected, tuple) else expected
    own, upstream = block(x, table), torch.randn(2, positions, 32)
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    gradients = (torch.autograd.grad(y, x, upstream)[0] for y in (own, expected))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("positions", "kv_heads"), [(2, 2), (2, 4), (65, 2), (257, 2)])
def test_attention_is_the_same_in_both_precisions(positions: int, kv_heads: int) -> None:
    """Values and gradients."""
    torch.manual_seed(0)
    attention = tiny(kv_heads=kv_heads).blocks[0].attention
    table = rotary_table((16, 16), 8, 10_000.0, False, CPU)[:positions]
    x, upstream = torch.randn(2, 2, positions, 32)
    outcomes = []
    for dtype in (torch.float32, torch.bfloat16):
        own = x.to(dtype, copy=True).requires_grad_()
        y = attention.to(dtype)(own, table)
        y.backward(upstream.to(dtype))
        outcomes.append((y.float(), own.grad.float()))
    for exact, rounded in zip(*outcomes, strict=True):
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_rotary_positions_see_distances_along_both_axes() -> None:
    """The product of two turned vectors depends on the cells' difference alone, and the class stands on no cell."""
    table = rotary_table((4, 4), 16, 100.0, False, CPU)
    q, k = torch.randn(16), torch.randn(16)
    products = (rotate(q.expand(17, 16), table) @ rotate(k.expand(17, 16), table).T)[1:, 1:].view(4, 4, 4, 4)
    torch.testing.assert_close(products[0, 1, 2, 0], products[1, 3, 3, 2])
    torch.testing.assert_close(products[3, 3, 1, 2], products[2, 1, 0, 0])
    assert not torch.allclose(products[0, 0, 1, 0], products[0, 0, 0, 1])
    assert len({tuple(row) for row in table.flatten(1).tolist()}) == 17
    old = rotary_table((4, 4), 16, 100.0, True, CPU)
    assert not old[0].any() and torch.equal(old[1:], table[1:])


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_cross_entropy_has_the_values_and_gradients_of_the_plain_one(chunk: int) -> None:
    x, weight = torch.randn(50, 8, dtype=torch.float64), torch.randn(13, 8, dtype=torch.float64)
    targets = torch.randint(13, (50,))
    gradients = []
    for compute in (
        lambda a, b: linear_cross_entropy(a, b, targets, chunk)[0],
        lambda a, b: F.cross_entropy(a @ b.T, targets),
    ):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = compute(a, b)
        (3 * loss).backward()
        gradients.append((loss.detach().double(), a.grad, b.grad))
    for own, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(own, plain, atol=1e-6, rtol=1e-6)


def test_a_model_that_was_used_in_inference_mode_first_can_be_trained() -> None:
    """Rotary rows are kept from its first pass."""
    rotary_table.cache_clear()
    model = tiny()
    with torch.inference_mode():
        model(*inputs(model.config))
    torch.stack(model.loss(*inputs(model.config)).loss).sum().backward()


def test_untrained_every_code_is_equally_likely() -> None:
    model = FAR(TINY)
    losses = model.loss(*inputs(TINY)).cross_entropy
    for loss, size in zip(losses, TINY.codebook_sizes, strict=True):
        assert loss.item() == pytest.approx(np.log(size), abs=1e-5)


def test_class_dropout_reaches_the_null_class_in_training_only() -> None:
    model = tiny(class_dropout=0.999999)
    codes, labels = inputs(TINY)
    null = model.loss(codes, torch.full_like(labels, model.null_class)).cross_entropy
    assert not torch.allclose(torch.stack(model.loss(codes, labels).cross_entropy), torch.stack(null))
    model.train()
    torch.testing.assert_close(torch.stack(model.loss(codes, labels).cross_entropy), torch.stack(null))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": (4, 4)}, "codes must be (b, 3, 4, 4)"),
        ({"num_classes": 1}, "labels must be a list of classes from 0 to 1"),
        ({"codebook_sizes": (7, 11, 2)}, "codes of factor 2 must lie in [0, 2)"),
        ({"codebook_sizes": (7, 11)}, "codes must be (b, 2, 3, 4)"),
    ],
)
def test_foreign_codes_are_refused(changes: dict, message: str) -> None:
    codes, _ = inputs(TINY)
    with pytest.raises(UserError) as error:
        tiny(**changes)(codes, torch.tensor([0, 5]))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, "model.width 30 must be model.heads 4 times a multiple of 4"),
        ({"kv_heads": 3}, "model.kv_heads 3 does not divide model.heads 4"),
        ({"grid": (4,)}, "model.grid must be a height and a width"),
        ({"codebook_sizes": (4, 0)}, "model.codebook_sizes must be at least 1, got 0"),
        ({"codebook_sizes": ()}, "must be set: a token store has them"),
        ({"factor_order": (0, 1)}, "model.factor_order must name each of the factors 0 to 2 once, got 0 1"),
        ({"factor_order": (0, 1, 1)}, "model.factor_order must name each of the factors 0 to 2 once, got 0 1 1"),
        ({"factor_order": (2, 0, 1), "head": "mlp"}, "model.factor_order is for model.head ar or masked: head mlp"),
        ({"head_rounds": 2}, "model.head_rounds is for model.head masked, and this is ar: drop one"),
        ({"head_rounds": 4, "head": "masked"}, "model.head_rounds must be at most the number of factors, 3, got 4"),
        ({"target_positions": True, "legacy": True}, "which have no model.target_positions: drop one"),
        ({"adaln": True, "legacy": True}, "the released models do, which have no model.adaln: drop one"),
        ({"factor_order": (2, 0, 1), "legacy": True}, "the released models do, which have no model.factor_order"),
    ],
)
def test_impossible_architectures_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        tiny(**changes)
    assert message in str(error.value)


def test_the_token_store_fills_what_a_preset_leaves_open() -> None:
    open_ = replace(TINY, codebook_sizes=(), grid=(), num_classes=0)
    assert open_.resolved((7, 11, 5), (3, 4), 6) == TINY
    assert replace(open_, num_classes=9).resolved((7,), (1, 2), 6).num_classes == 9
    for other, message in (
        (((7, 11), (3, 4), 6), "model.codebook_sizes is 7 11 5, but the token store has 7 11"),
        (((7, 11, 5), (3, 3), 6), "model.grid is 3 4, but the token store has 3 3"),
        (((7, 11, 5), (3, 4), 7), "model.num_classes is 6, but the token store has 7 classes"),
    ):
        with pytest.raises(UserError) as error:
            TINY.resolved(*other)
        assert message in str(error.value)
