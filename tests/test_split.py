"""Large codes as several sub-codes, in an order in which near codes share their first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import LEARNER

import fqgan
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import FactorConfig, TokenizerConfig
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.split import near_order

Refused = Callable[..., str]
CONFIG = TokenizerConfig(
    image_size=8,
    channels=32,
    channel_multipliers=(1, 1),
    res_blocks=1,
    z_channels=32,
    factors=(FactorConfig("only", 64, 4, 0),),
)


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FactorizedTokenizer:
    """A tokenizer of 64 codes, in the working folder under the name of tok."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    fqgan.save_tokenizer(FactorizedTokenizer(CONFIG).eval(), "tok")
    tokenizer = fqgan.load_tokenizer("tok")
    assert isinstance(tokenizer, FactorizedTokenizer)
    return tokenizer


def pictures(count: int = 3, side: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("size", "sizes"), [(8, (8, 8)), (4, (4, 4, 4)), (16, (4, 16)), (64, (64,)), (100, (64,))])
def test_digits_say_the_same_as_the_code(size: int, sizes: tuple[int, ...], plain: FactorizedTokenizer) -> None:
    split = fqgan.load_tokenizer(f"split:{size}:tok")
    assert split.codebook_sizes == sizes == tuple(factor.codebook_size for factor in split.config.factors)
    digits = split.encode(pictures())
    assert digits.shape == (3, len(sizes), 4, 4) and digits.dtype == torch.int64
    codes = plain.encode(pictures())
    torch.testing.assert_close(split.decode(digits), plain.decode(codes), rtol=0, atol=0)
    # every code has digits of its own
    together = digits.flatten(2).permute(0, 2, 1).reshape(-1, len(sizes))
    assert len(together.unique(dim=0)) == len(codes.unique())


def test_each_digits_combination_is_a_code(plain: FactorizedTokenizer) -> None:
    every = torch.cartesian_prod(torch.arange(8), torch.arange(8)).t().reshape(1, 2, 8, 8)
    images = fqgan.load_tokenizer("split:8:tok").decode(every)
    used = torch.from_numpy(near_order(plain.code_vectors()[0].numpy()))
    torch.testing.assert_close(images, plain.decode(used.reshape(1, 1, 8, 8)), rtol=0, atol=0)
    assert used.unique().tolist() == list(range(64))


def test_factors_that_are_small_enough_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    factors = (FactorConfig("visual", 64, 4, 0), FactorConfig("semantic", 8, 4, 0))
    fqgan.save_tokenizer(FactorizedTokenizer(replace(CONFIG, factors=factors)).eval(), "dual")
    split, plain = fqgan.load_tokenizer("split:8:dual"), fqgan.load_tokenizer("dual")
    assert [factor.name for factor in split.config.factors] == ["visual 0", "visual 1", "semantic"]
    digits, codes = split.encode(pictures()), plain.encode(pictures())
    torch.testing.assert_close(split.decode(digits), plain.decode(codes), rtol=0, atol=0)
    assert torch.equal(digits[:, 2], codes[:, 1])


def test_near_order_is_the_order_of_numbers_on_a_line() -> None:
    numbers = np.random.default_rng(0).normal(size=(48, 1))
    assert np.array_equal(near_order(numbers), numbers[:, 0].argsort(kind="stable"))


def test_near_order_of_a_grid_halves_the_longer_axis() -> None:
    """A grid 8 x 4: the first half is that of small x, the first quarter of that also of small y, and so on."""
    x, y = (each.reshape(-1) for each in np.meshgrid(np.arange(8.0), np.arange(4.0), indexing="ij"))
    order = near_order(np.stack([x, y], 1))
    assert sorted(order.tolist()) == list(range(32))
    assert x[order[:16]].max() == 3
    quarter = order[:8]  # of 4 x 4 the axes vary alike: the first is taken
    assert set(x[quarter]) == {0.0, 1.0} and set(y[quarter]) == {0.0, 1.0, 2.0, 3.0}
    assert set(y[order[:4]]) == {0.0, 1.0}


def test_a_first_digit_says_where_a_vector_lies() -> None:
    vectors = np.random.default_rng(0).normal(size=(4096, 4))
    groups = vectors[near_order(vectors)].reshape(64, 64, 4)
    assert groups.var(1).mean() < 0.3, "64 groups in four dimensions; any 64 vectors have 1"


def test_a_fingerprint_knows_the_digits(plain: FactorizedTokenizer) -> None:
    prints = {fqgan.load_tokenizer(path).fingerprint() for path in ("tok", "split:8:tok", "split:4:tok")}
    assert len(prints) == 3
    assert fqgan.load_tokenizer("split:8:tok").fingerprint() in prints


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("split:tok", "split:tok is no address: split:SIZE:TOKENIZER"),
        ("split:1:tok", "with a size of at least 2"),
        ("split:8:", "is no address"),
        ("split:6:tok", "64 codes cannot be split by 6, which does not divide 64"),
        ("split:8:nowhere", "checkpoint nowhere does not exist"),
        ("split:8:py:toys.py:means", "is continuous"),
    ],
)
def test_what_cannot_be_split_is_told_in_one_line(
    address: str, message: str, plain: FactorizedTokenizer, toys: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fqgan.load_tokenizer(address)


def test_codes_of_others_are_split_as_they_are_counted(toys: Path) -> None:
    plain, split = fqgan.load_tokenizer("py:toys.py:grey"), fqgan.load_tokenizer("split:4:py:toys.py:grey")
    codes, digits = plain.encode(pictures(2, 16)), split.encode(pictures(2, 16))
    assert split.codebook_sizes == (2, 4)
    assert torch.equal(codes, digits[:, :1] * 4 + digits[:, 1:])


def test_a_generator_learns_and_draws_sub_codes(toys: Path, refused: Refused) -> None:
    address = "split:4:py:toys.py:grey"
    assert main(["extract", address, "--data", "small", "--out", "store", "--workers", "0"]) == 0
    argv = LEARNER.split()
    assert f"add --tokenizer {address}" in refused(*argv)
    assert main([*argv, "--tokenizer", address]) == 0
    generator = fqgan.load_generator("run", tokenizer=address)
    assert generator.config.codebook_sizes == (2, 4)
    draw = ["generate", "run", "--num", "2", "--out", "drawn", "--tokenizer", address, "--device", "cpu"]
    assert main(draw) == 0 and len(list(Path("drawn").glob("0*.png"))) == 2
