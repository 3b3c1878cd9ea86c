"""What is compiled on a GPU, rehearsed without one: in one piece, and not once more than the shapes ask for.

torch.compile gives up in silence on a function of which there are too many forms, such as one a layer: that is an error
here.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from rehearsal import BATCH, counted, generator_of, rehearsed, sampler_of, under_way
from torch import Tensor

from fqgan.config import FactorConfig, TokenizerConfig, presets
from fqgan.engine.speed import compile_parts
from fqgan.generator.model import FAR
from fqgan.generator.transformer import Block
from fqgan.tokenizer.branch import FeaturePredictionHead
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.speed import compile_tokenizer, recompute_activations

pytestmark = pytest.mark.slow
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = {"width": 32, "heads": 2, "head_depth": 3, "mlp_multiple": 16, "codebook_sizes": (32, 32), "grid": (12, 12)}


def compiled_blocks(generator: FAR, device: torch.device, recompute: bool = False) -> None:
    """As `GeneratorTask` has it."""
    blocks = [module for module in generator.modules() if isinstance(module, Block)]
    for block in blocks:
        block.recompute = recompute
    assert compile_parts(blocks, device)


def learn(generator: FAR, images: int = 4) -> None:
    """A training step but for the update."""
    codes, labels = torch.zeros(images, 2, *generator.config.grid, dtype=torch.int64), torch.zeros(images).long()
    with torch.autocast("cpu", torch.bfloat16):
        found = generator.train().loss(codes, labels)
    torch.stack(found.loss).mean().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


@torch.no_grad()
def look(generator: FAR, images: int) -> None:
    """A batch of a validation."""
    codes, labels = torch.zeros(images, 2, *generator.config.grid, dtype=torch.int64), torch.zeros(images).long()
    with torch.autocast("cpu", torch.bfloat16):
        generator.eval().loss(codes, labels)


@pytest.mark.parametrize("recompute", [False, True])
def test_all_blocks_of_a_generator_share_what_is_compiled_once(recompute: bool) -> None:
    """Those of the backbone, and those of the head; another time without dropout, and for a last batch of another size,
    of which the first does for all."""
    with counted() as graphs:
        generator = generator_of("far-tiny", 2, depth=24, **{**TINY, "grid": (2, 2)})
        compiled_blocks(generator, CPU, recompute)
        counts = []
        for action in (learn, learn, partial(look, images=4), partial(look, images=3), partial(look, images=2), learn):
            graphs.clear()
            action(generator)
            counts.append(len(graphs))
    assert counts[0] == 2 and counts[1] == counts[4] == counts[5] == 0
    assert counts[2] + counts[3] <= 4


def tokenizer(k: int, **changes: object) -> FactorizedTokenizer:
    """A small one whose k factors have teachers of k widths."""
    factors = tuple(FactorConfig(f"f{i}", 32, 4, 1, teacher=f"timm:{i}", teacher_dim=16 + 8 * i) for i in range(k))
    shape = {"image_size": 32, "stem": 2, "channels": 32, "channel_multipliers": (1, 2), "res_blocks": 1}
    width = {"z_channels": 32, "adapter_head_dim": 32, "feature_head_width": 32, "feature_head_depth": 1}
    return FactorizedTokenizer(TokenizerConfig(**{**shape, **width, "factors": factors, **changes}))  # pyright: ignore


def all_parts(model: FactorizedTokenizer, images: Tensor) -> None:
    """A training step but for the update."""
    with torch.autocast(images.device.type, torch.bfloat16):
        output = model.train()(images, entropy=True)
    found = [output.reconstruction, *(each for each in output.predictions if each is not None)]
    terms = [each.float().square().mean() for each in found] + [each.commitment_loss for each in output.quantized]
    torch.stack(terms).sum().backward()


@pytest.mark.parametrize(("recompute", "layout"), [("none", torch.contiguous_format), ("all", torch.channels_last)])
def test_the_parts_of_a_tokenizer_are_compiled_for_training_evaluation_and_a_last_batch(
    recompute: str, layout: torch.memory_format
) -> None:
    """More heads than torch has forms of a function by itself, with dropout and attention in the backbone."""
    heads = 3
    with counted() as graphs:
        model = tokenizer(heads, dropout=0.2, attention=True).to(memory_format=layout)  # pyright: ignore
        recompute_activations(model, recompute)
        compile_tokenizer(model, CPU)

        def images(n: int) -> Tensor:
            return torch.rand(n, 3, 32, 32).contiguous(memory_format=layout)

        counts = []
        for action, n in (
            (all_parts, 4),
            (all_parts, 4),
            (look_at, 4),
            (look_at, 4),
            (look_at, 3),
            (look_at, 2),
            (all_parts, 4),
        ):
            graphs.clear()
            action(model, images(n))
            counts.append(len(graphs))
    parts = 3 + heads  # encoder, decoder, an adapter for all factors, a head for each
    assert counts == [parts, 0, parts, 0, parts, 0, 0]


@torch.no_grad()
def look_at(model: FactorizedTokenizer, images: Tensor) -> None:
    """A batch of a validation."""
    with torch.autocast(images.device.type, torch.bfloat16):
        model.eval()(images)


@pytest.mark.parametrize("name", ["triple-ds16"])
def test_a_tokenizer_of_the_paper_is_compiled_in_one_piece_on_a_gpu(name: str) -> None:
    config = presets.get(name)
    with counted() as graphs, rehearsed():
        with CUDA:
            model = FactorizedTokenizer(config.model)
            images = torch.zeros(BATCH, 3, config.model.image_size, config.model.image_size)
        compile_tokenizer(model, CUDA)
        graphs.clear()
        for _ in range(2):
            with torch.autocast("cuda", torch.bfloat16):
                output = model(images, entropy=True)
        assert output.reconstruction.device.type == "cuda"
    assert len(graphs) == 5  # encoder, decoder, adapter, two heads


def test_a_generator_of_the_paper_is_compiled_in_one_piece_on_a_gpu() -> None:
    with counted() as graphs, rehearsed():
        with CUDA:
            generator = generator_of("far-large", 2)
            codes, labels = torch.zeros(BATCH, 2, 16, 16, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.int64)
        compiled_blocks(generator, CUDA)
        graphs.clear()
        with torch.autocast("cuda", torch.bfloat16):
            generator.loss(codes, labels)
    assert len(graphs) == 2
    assert all("scaled_dot_product_attention" in graph.code for graph in graphs)


def test_a_sampler_compiles_a_block_once_for_each_length_whatever_the_position_and_the_layer() -> None:
    """Positions 0 to 143 read 64, 128 or 144 places, and the first 72 are guided."""
    with counted() as graphs, rehearsed(), torch.no_grad():
        with CUDA:
            generator = generator_of("far-tiny", 2, depth=24, **TINY).eval().requires_grad_(False).set_precision("bf16")
        sampler = sampler_of(generator, compiled=True)
        found = {}
        for t in (0, 1, 63, 64, 71, 72, 127, 128, 143):
            graphs.clear()
            sampler._static_step(sampler._key(*under_way(sampler, t)))
            found[t] = len(graphs)
    # two of the head's positions, when the number of rows is a new one
    assert found == {0: 3, 1: 0, 63: 0, 64: 1, 71: 0, 72: 3, 127: 0, 128: 1, 143: 0}


def test_more_forms_than_are_allowed_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests are for: with torch's own limit nine heads of one step are an error."""
    heads = [FeaturePredictionHead(4, 16 + 8 * i, 32, 2, 1, 1) for i in range(9)]
    for allowed in (True, False):
        with counted() as graphs, torch._dynamo.config.patch(recompile_limit=8):  # pyright: ignore
            if not allowed:
                monkeypatch.setattr("fqgan.engine.speed.allow_forms", lambda: None)
            compile_parts(heads, CPU)
            graphs.clear()
            with nullcontext() if allowed else pytest.raises(Exception, match="fullgraph=True"):
                for head in heads:
                    head(torch.zeros(2, 4, 2, 2))
        assert len(graphs) == (9 if allowed else 8)
