"""Tables of codes that share rows through the codes' vectors: the same as plain tables with these rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generators import TINY, tiny
from stores import make_store
from torch import nn

import fqgan
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.engine.muon import hidden_matrices
from fqgan.generator.model import FAR
from fqgan.generator.tables import SharedRows, standardised
from fqgan.tokenizer.model import FactorizedTokenizer

Refused = Callable[..., str]
DIMS = (4, 3, 2)


def shared(**changes: object) -> FAR:
    """A small generator whose codes share rows."""
    model = tiny(code_vectors=True, code_dims=DIMS, **changes)
    model.set_code_vectors([torch.randn(size, dim) for size, dim in zip(TINY.codebook_sizes, DIMS, strict=True)])
    return model


def folded(model: FAR) -> FAR:
    """The same function with plain tables."""
    plain = FAR(replace(model.config, code_vectors=False, code_dims=())).eval()
    parts = ("own", "shared", "vectors")
    state = {name: each for name, each in model.state_dict().items() if name.rpartition(".")[2] not in parts}
    for name, module in model.named_modules():
        if isinstance(module, SharedRows):
            state[f"{name}.weight"] = module.own + module.vectors @ module.shared
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("changes", [{}, {"head": "masked", "head_rounds": 2}, {"head": "mlp"}, {"head": "linear"}])
def test_it_computes_as_plain_tables_do(changes: dict[str, object]) -> None:
    model = shared(**changes)
    plain, labels = folded(model), [0, 4]
    codes = torch.randint(5, (2, 3, 3, 4))
    for own, other in zip(model(codes, labels), plain(codes, labels), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    for own, other in zip(
        model.loss(codes, labels).cross_entropy, plain.loss(codes, labels).cross_entropy, strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        model.log_likelihood(codes, labels), plain.log_likelihood(codes, labels), rtol=1e-4, atol=1e-4
    )
    # the samplers' weights are prepared once: rounding may turn a draw, so the likeliest code is taken
    drawn = [each.generate(labels, temperature=1e-30, cfg_scale=1.0) for each in (model, plain)]
    assert torch.equal(*drawn)


def test_what_is_learned_of_a_code_holds_for_one_with_the_same_vector() -> None:
    """Codes 0 and 1 of a factor have one vector: a step on code 0 alone makes both likelier, others not."""
    torch.manual_seed(0)
    model = FAR(replace(TINY, codebook_sizes=(8,), code_vectors=True, code_dims=(8,)))
    vectors = torch.eye(8)
    vectors[1] = vectors[0]
    model.set_code_vectors([vectors])
    codes = torch.zeros(4, 1, 3, 4, dtype=torch.int64)
    before = model.eval()(codes, [0] * 4)[0].softmax(-1).mean((0, 1))
    assert torch.allclose(before, torch.full((8,), 1 / 8)), "untrained: all codes alike"
    optimizer = torch.optim.SGD(model.head.outputs.parameters(), 1e-3)
    torch.stack(model.loss(codes, [0] * 4).loss).mean().backward()
    optimizer.step()
    after = model(codes, [0] * 4)[0].softmax(-1).mean((0, 1))
    assert after[0] > after[1] > 1 / 8 and after[2:].max() < 1 / 8


def test_muon_leaves_the_tables_to_adam() -> None:
    model = shared()
    of_tables = {
        id(each) for module in model.modules() if isinstance(module, SharedRows) for each in module.parameters()
    }
    assert len(of_tables) == 2 * 2 * 3
    assert not of_tables & {id(each) for each in hidden_matrices(model)}


def test_standardised_vectors_have_variance_1_and_constant_dimensions_are_0() -> None:
    vectors = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 10.0, 0.0]) + 7
    found = standardised(vectors)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.var(0, unbiased=False), torch.tensor([1.0, 1.0, 0.0]), atol=1e-2, rtol=0)


def test_a_run_takes_the_vectors_of_its_stores_tokenizer(
    tokenizer: FactorizedTokenizer, tmp_path: Path, refused: Refused
) -> None:
    make_store(tmp_path / "store", tokenizer)
    argv = (
        f"train-generator far-tiny --data {tmp_path / 'store'} --run {tmp_path / 'run'} --train.steps 2 --train.batch 4"
    )
    argv += " --model.width 32 --model.depth 1 --model.heads 2 --model.code-vectors --train.device cpu"
    assert main(argv.split()) == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["model"]["code_dims"] == [factor.code_dim for factor in tokenizer.config.factors]
    assert main([*argv.split(), "--train.steps", "4"]) == 0, "and goes on"
    straight = argv.replace("/run ", "/straight ").replace("--train.steps 2", "--train.steps 4")
    assert main(straight.split()) == 0
    generators = [fqgan.load_generator(tmp_path / name) for name in ("run", "straight")]
    for a, b in zip(*(each.state_dict().values() for each in generators), strict=True):
        assert torch.equal(a, b), "exactly as without the stop"
    for table, vectors in zip(generators[0].code_embeddings, tokenizer.code_vectors(), strict=True):
        assert isinstance(table, SharedRows) and torch.equal(table.vectors, standardised(vectors))
    assert all(isinstance(each, nn.Linear) is False for each in generators[0].head.outputs)
    codes = generators[0].generate([0, 1])
    fqgan.save_generator(generators[0], tmp_path / "exported")
    assert torch.equal(fqgan.load_generator(tmp_path / "exported").generate([0, 1]), codes)
    assert "which have no model.code_vectors" in refused(*argv.split(), "--run", str(tmp_path / "x"), "--model.legacy")


def test_codes_without_known_vectors_are_refused(toys: Path, refused: Refused) -> None:
    assert main(["extract", "py:toys.py:two", "--data", "small", "--out", "store", "--workers", "0"]) == 0
    argv = ["train-generator", "far-tiny", "--data", "store", "--tokenizer", "py:toys.py:two", "--run", "run"]
    argv.append("--model.code-vectors")
    assert "which a tokenizer by address lacks: add --model.no-code-vectors" in refused(*argv)
    assert not Path("run").exists()
    with pytest.raises(UserError, match=r"model\.code_vectors needs"):
        replace(TINY, code_vectors=True).resolved(TINY.codebook_sizes, (3, 4), 6)
