"""Studies of rows: what a row declares, how orderings are judged, which settings are the paper's, how tables look."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sets import write_pictures

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.commands.study import command_of
from fqgan.config import TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.engine.sizes import num_parameters
from fqgan.lab.studies.measurements import input_fingerprints
from fqgan.lab.studies.plan import Line, Ordering, Row, Study, change, load_rows, settings_of, undeclared
from fqgan.lab.studies.quantizers import QUANTIZERS_PRESETS, levels, quantizers
from fqgan.lab.studies.recipe import GENERATOR_LEVERS, GENERATOR_PRESETS, TOKENIZER_LEVERS, TOKENIZER_PRESETS, recipe
from fqgan.lab.studies.registry import STUDIES
from fqgan.lab.studies.results import judge, mean_and_error, spread
from fqgan.lab.studies.tables import latex, markdown
from fqgan.lab.studies.tokenizers import ABLATION_PRESETS, SCALING_PRESETS, ablation, scaling
from fqgan.tokenizer.compositions import COMPOSITIONS
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.quantizers import QUANTIZERS

# --- judgement


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.3, 0.4, 0.5), "holds"),  # mean 0.4, error 0.1 / sqrt(3) = 0.0577
        ((-0.3, -0.4, -0.5), "fails"),
        ((0.3, 0.4, -0.01), "open"),  # one seed disagrees
        ((0.01, 0.02, 0.9), "open"),  # all agree, but mean 0.31 and error 0.295
        ((-0.01, -0.02, -0.9), "open"),
        ((0.4,), "open"),  # one seed has no error
        ((0.2, 0.2), "holds"),
        ((0.0, 0.0), "open"),
        ((math.nan, 0.2), "open"),
    ],
)
def test_orderings_are_judged_by_sign_and_twice_the_standard_error(
    differences: tuple[float, ...], verdict: str
) -> None:
    assert judge(differences).verdict == verdict


def test_the_error_of_a_mean() -> None:
    assert mean_and_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, math.sqrt(14 / 3) / 2))
    assert spread([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt(14 / 3))
    assert math.isnan(mean_and_error([1.0])[1])
    with pytest.raises(ValueError, match="at least one"):
        judge([])


# --- rows


def small_study(*rows: Row) -> Study:
    return Study("small", "Small", "tokenizer", rows, tuple(Line(row.name, row.name, row.name) for row in rows))


def test_a_row_differs_in_what_it_declares(base: TokenizerRunConfig) -> None:
    study = small_study(
        Row("a"),
        Row("c", "b", {"loss.disentangle_weight": 0.5}),
        Row("b", "a", {"model.factors.1.codebook_size": 8, "train.batch": 2}),
    )
    settings = settings_of(study, base)
    assert settings["a"] == base
    assert schema.diff(base, settings["c"]) == {
        "model.factors.1.codebook_size": (16, 8),
        "train.batch": (4, 2),
        "loss.disentangle_weight": (0.1, 0.5),
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((Row("a", "", {"train.seed": 3}),), "row a cannot declare train.seed"),
        ((Row("a", "", {"train": {}}),), "row a cannot declare train.seed"),
        ((Row("a", "", {"los.entropy_weight": 3}),), "row a: there is no setting los.entropy_weight; did you mean"),
        ((Row("a", "", {"model.factors.7.name": "x"}),), "there is no setting model.factors.7.name"),
        ((Row("a", "", {"train.batch": "x"}),), "row a: config: key train.batch must be int"),
        ((Row("a", "", {"train.batch": 0}),), "row a: train.batch must be at least 1"),
        ((Row("a", "b"), Row("b", "a")), "round in a circle"),
        ((Row("long"), Row("b", "lon")), "row b: unknown parent 'lon'; did you mean 'long'?"),
    ],
)
def test_rows_that_make_no_sense_are_refused(base: TokenizerRunConfig, rows: tuple[Row, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_of(small_study(*rows), base)
    assert message in str(caught.value)


def test_a_config_that_differs_in_more_than_it_declares_is_refused(base: TokenizerRunConfig, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    schema.save(child(base, loss={"entropy_weight": 0.5}, train={"batch": 2, "log_every": 7, "seed": 9}), file)
    row = Row("own", "", {"loss.entropy_weight": 0.5}, config=str(file))
    with pytest.raises(UserError, match=r"row own: .*own.json differs .* not declared \(train.batch: 2, not 4\)"):
        settings_of(small_study(row), base)
    row = replace(row, changes={"loss": 0, "train.batch": 0})
    own = settings_of(small_study(row), base)["own"]
    assert (own.loss.entropy_weight, own.train.batch, own.train.seed) == (0.5, 2, base.train.seed)
    with pytest.raises(UserError, match=r"row own: there is no setting loss\.entropy_wieght"):
        settings_of(small_study(replace(row, changes={**row.changes, "loss.entropy_wieght": 0})), base)
    # a key that only the parent has, as of a factor that the row lacks
    schema.save(child(base, model={"factors": base.model.factors[:1]}), file)
    row = replace(row, changes={"model.factors": 0, "model.factors.1.name": 0})
    assert len(settings_of(small_study(row), base)["own"].model.factors) == 1


def test_what_is_watched_or_left_open_may_differ(base: TokenizerRunConfig) -> None:
    filled = change(base, {"model.factors.1.teacher_dim": 1280, "train.log_every": 9, "data.workers": 3})
    assert undeclared(base, filled) == ""
    assert undeclared(filled, base) == "model.factors.1.teacher_dim: 0, not 1280"
    assert undeclared(base, change(base, {"data.flip": False, "train.seed": 1})) == (
        "data.flip: False, not True, train.seed: 1, not 0"
    )


def test_rows_of_a_file(tmp_path: Path, base: TokenizerRunConfig) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"rows": [{"name": "mine", "parent": "both", "changes": {"loss.entropy_weight": 0}}]}))
    study = ablation(base).extended(load_rows(file))
    assert settings_of(study, base)["mine"] == child(base, loss={"entropy_weight": 0.0})
    assert study.orderings[-1] == Ordering("mine over + both", "mine", "both")
    with pytest.raises(UserError, match="row 'both' is there already"):
        study.extended([Row("both")])
    # each is claimed to be better than its parent, whichever comes first in the file
    study = ablation(base).extended([Row("b", "a"), Row("a", "both")])
    assert study.orderings[-2:] == (Ordering("a over + both", "a", "both"), Ordering("b over a", "b", "a"))
    heads = Study("s", "S", "generator", (Row("ar"),), tuple(Line(f"ar-{k}", "ar", "ar", f"top-{k}") for k in (4, 8)))
    with pytest.raises(UserError, match="rows 'wide-8' and 'wide' would have a line of one name"):
        heads.extended([Row("wide-8"), Row("wide", "ar")])
    # sampled as the parent is, but for what is declared; a length of its own has no label of the parent's
    hot = heads.extended([Row("hot", "ar", {"sampling.cfg_scale": [9.0]}), Row("hotter", "hot")])
    assert [line.sampling for line in hot.lines] == [{}] * 2 + [{"cfg_scale": (9.0,)}] * 4
    lines = tuple(replace(line, sampling={"top_k": (k,)}) for line, k in zip(heads.lines, (4, 8), strict=True))
    for row in (Row("x", "ar", {"sampling.top_k": [2]}), Row("x", "ar", {"sampling": {}})):
        with pytest.raises(UserError, match="row x cannot declare sampling"):
            replace(heads, lines=lines).extended([row])
    longer = scaling(base).extended([Row("long", "k3", {"train.epochs": 80.0})])
    assert [line.label for line in longer.lines[-3:]] == [f"long, {f} of its length" for f in ("0.25", "0.5", "1")]
    for content, message in (
        ([{"nam": "x"}], "must be a list of objects with a name"),
        ([{"name": "x", "change": {}}], "unknown key 'change'; did you mean 'changes'?"),
        ([{"name": "../x"}], "a row's name is a folder's"),
        ([{"name": ".."}], "a row's name is a folder's"),
        (5, "must be a list of objects with a name"),
        ([{"name": "x", "changes": []}], "changes must be an object"),
        ([{"name": "x", "parent": 3}], "must be texts"),
        ([], "must be a list of objects with a name"),
    ):
        file.write_text(json.dumps({"rows": content}))
        with pytest.raises(UserError) as caught:
            load_rows(file)
        assert message in str(caught.value)


@pytest.mark.parametrize("name", ABLATION_PRESETS)
def test_the_ablations_rows(name: str) -> None:
    base = ABLATION_PRESETS[name]
    settings = settings_of(ablation(base), base)
    codes, depth = base.model.factors[0].codebook_size, base.model.factors[0].adapter_depth
    assert settings["both"] == base
    assert {
        row: (
            [(factor.codebook_size, factor.adapter_depth) for factor in config.model.factors],
            bool(config.loss.disentangle_weight),
            any(factor.teacher for factor in config.model.factors),
        )
        for row, config in settings.items()
    } == {
        "both": ([(codes, depth)] * 2, True, True),
        "represented": ([(codes, depth)] * 2, False, True),
        "disentangled": ([(codes, depth)] * 2, True, False),
        "factorized": ([(codes, depth)] * 2, False, False),
        "vqgan-2k": ([(2 * codes, 0)], False, False),
        "vqgan": ([(codes, 0)], False, False),
        "vqgan-adapter": ([(2 * codes, 2 * depth)], False, False),
    }
    for config in settings.values():  # nothing else, whatever the rows say
        others = (config.data, config.optimizer, config.quantizer, config.discriminator, config.train)
        assert others == (base.data, base.optimizer, base.quantizer, base.discriminator, base.train)


def test_the_papers_settings_are_pinned() -> None:
    paper = ABLATION_PRESETS["imagenet"]
    assert (paper.train.epochs, paper.train.batch, paper.optimizer.lr) == (10, 256, 2e-4)
    assert [factor.codebook_size for factor in paper.model.factors] == [16384, 16384]
    lines = {line.name: line.paper.get("rfid") for line in ablation(paper).lines}
    names = ["vqgan", "vqgan-2k", "factorized", "disentangled", "represented", "both", "vqgan-adapter"]
    assert lines == dict(zip(names, [3.71, 3.60, 2.00, 1.84, 1.73, 1.66, None], strict=True))
    paper = SCALING_PRESETS["imagenet"]
    assert (paper.train.epochs, paper.optimizer.schedule) == (40, "constant")
    study = scaling(paper)
    assert [line.label for line in study.lines[:3]] == ["k = 2, 10 epochs", "k = 2, 20 epochs", "k = 2, 40 epochs"]
    assert [line.paper.get("rfid") for line in study.lines] == [1.66, 1.25, 0.94, 1.30, 0.92, 0.76, None, None, None]
    triple = settings_of(study, paper)["k3"].model.factors
    assert [factor.teacher for factor in triple] == [
        *("", "dinov2:facebook/dinov2-small", "clip:openai/clip-vit-base-patch16")
    ]


def test_an_ablation_needs_what_it_takes_away(base: TokenizerRunConfig) -> None:
    for changes in ({"model": {"factors": base.model.factors[:1]}}, {"loss": {"disentangle_weight": 0.0}}):
        with pytest.raises(UserError, match="an ablation starts from at least two factors"):
            ablation(child(base, **changes))
    with pytest.raises(UserError, match="scaling starts from two factors"):
        scaling(child(base, model={"factors": base.model.factors[:1]}))


@pytest.mark.parametrize("name", QUANTIZERS_PRESETS)
def test_quantizers_have_equal_bits_and_networks_of_one_size(name: str) -> None:
    """Parameters but for tables within 5 %, and one number of codes a position, however many factors share it."""
    base = QUANTIZERS_PRESETS[name]
    networks, kinds = {}, set()
    for row, config in settings_of(quantizers(base), base).items():
        with torch.device("meta"):
            model = FactorizedTokenizer(config.model)
        tables = sum(each.numel() for quantizer in set(model.quantizers) for each in quantizer.parameters())
        networks[row] = sum(each.numel() for each in model.parameters()) - tables
        assert math.prod(each.codebook_size for each in model.quantizers) == {"imagenet": 2**18}.get(name, 2**16), row
        assert not any(factor.teacher for factor in config.model.factors)
        kinds |= {(config.model.composition, factor.quantizer) for factor in config.model.factors}
    assert max(networks.values()) < 1.05 * min(networks.values()), networks
    assert {kind for _, kind in kinds} == set(QUANTIZERS) and {each for each, _ in kinds} == set(COMPOSITIONS)
    assert levels(20) == (16,) * 5 and levels(9) == (8, 8, 8) and levels(18) == (16, 16, 16, 8, 8)


def test_quantizers_are_compared_from_two_equal_plain_factors(base: TokenizerRunConfig) -> None:
    plain = QUANTIZERS_PRESETS["cifar10"]
    uneven = child(
        plain, model={"factors": (plain.model.factors[0], replace(plain.model.factors[1], codebook_size=512))}
    )
    for wrong in (uneven, child(plain, model={"factors": plain.model.factors[:1]})):
        with pytest.raises(UserError, match="starts from two equal factors of vq with a power of two of codes"):
            quantizers(wrong)
    with pytest.raises(UserError, match=r"set loss\.disentangle_weight to 0 and take no teacher"):
        quantizers(child(plain, loss={"disentangle_weight": 0.1}))


@pytest.mark.parametrize("name", [name for name, entry in STUDIES.items() if entry.rows])
def test_every_preset_parses_through_the_command_line(name: str) -> None:
    rows = STUDIES[name].rows
    command = command_of(name, STUDIES[name])
    assert rows is not None
    for preset, config in command.presets.items():
        more = ["--triple", "y"] if name == "curves" else []
        base, arguments = command.parse_all([preset, "--out", "x", "--measure.limit", "5", *more])
        assert base == config and arguments.measure.limit == 5
        settings_of(rows(base, preset, arguments), base)


# --- tables


def test_tables_are_escaped() -> None:
    assert markdown(["a|b"], [["1"]]) == "| a\\|b |\n|---|\n| 1 |"
    text = latex(["x_1", "PSNR ↑"], [["50 % & more", "1.0 ± 0.1"]], "Title")
    assert r"x\_1 & PSNR $\uparrow$ \\" in text and r"50 \% \& more & 1.0 $\pm$ 0.1 \\" in text


def test_other_images_of_the_same_names_are_another_input(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", 3, seed=0)
    network = "efficientnet-lite0:stage3@32"
    before = input_fingerprints(network, str(tmp_path / "set"), "train")
    write_pictures(tmp_path / "set", 3, seed=1)
    input_fingerprints.cache_clear()
    after = input_fingerprints(network, str(tmp_path / "set"), "train")
    assert before["features"] == after["features"] and before["data"] != after["data"]


# --- the recipe


@pytest.mark.parametrize("name", TOKENIZER_PRESETS)
def test_the_recipes_levers_cost_no_parameters_and_no_images(name: str) -> None:
    base = TOKENIZER_PRESETS[name]
    study = recipe(base, TOKENIZER_LEVERS)
    settings = settings_of(study, base)
    sizes = {row: num_parameters(FactorizedTokenizer(each.model)) for row, each in settings.items()}
    assert max(sizes.values()) <= 1.05 * min(sizes.values()), sizes
    assert {each.train.epochs for each in settings.values()} == {base.train.epochs}
    # alone each differs from the paper's recipe in its own settings, together in all of them
    changed = [schema.diff(base, settings[lever.name]) for lever in TOKENIZER_LEVERS]
    assert all(changed) and settings["paper"] == base
    kept = [each for each, lever in zip(changed, TOKENIZER_LEVERS, strict=True) if lever.kept]
    assert schema.diff(base, settings["next"]) == {key: value for each in kept for key, value in each.items()}
    others = [lever.name for lever in TOKENIZER_LEVERS if not lever.kept]
    names = [*(lever.name for lever in TOKENIZER_LEVERS), "next", *(f"next-{name}" for name in others)]
    assert [o.better for o in study.orderings] == names
    assert {o.worse for o in study.orderings} == {"paper", "next"}
    for name in others:  # a lever that lost alone is tried on top of those that did not
        lever = next(each for each in TOKENIZER_LEVERS if each.name == name)
        assert set(schema.diff(settings["next"], settings[f"next-{name}"])) <= set(lever.changes)


def test_a_lever_that_the_base_has_is_left_out_and_generators_are_drawn_from_twice() -> None:
    base = GENERATOR_PRESETS["cifar10-cpu"]
    has = change(base, {"optimizer.schedule": "cosine"})
    names = [row.name for row in recipe(has, GENERATOR_LEVERS).rows]
    rows = [row.name for row in recipe(base, GENERATOR_LEVERS).rows]
    assert names == [name for name in rows if "cosine" not in name] and "next-masked" in names
    lines = {line.name: line.sampling["cfg_scale"] for line in recipe(base, GENERATOR_LEVERS).lines}
    assert lines["muon-unguided"] == (1.0,) and lines["muon-guided"] == base.sampling.cfg_scale
