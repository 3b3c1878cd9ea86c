"""The tabs of the page of `fqgan serve` in a real browser, before a stand-in for the server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from browsing import Visit, browser, expect, visit
from fake_serve import CLASSES, Wishes, pair, photo, tokenizer
from PIL import Image

__all__ = ["browser", "visit"]  # fixtures


def test_a_packaged_picture_is_reconstructed_and_a_position_shows_its_codes(
    visit: Callable[..., Visit],
) -> None:
    here = visit()
    page = here.go()
    expect(page.locator(".views figure")).to_have_count(6)
    expect(page.locator(".facts")).to_contain_text("PSNR")
    frame = page.locator(".views .frame").nth(3)
    frame.hover(position={"x": 5, "y": 5})
    expect(page.locator(".inspector")).to_contain_text("Row 1, column 1")
    frame.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator(".inspector h2")).to_have_text("Row 6, column 6")
    codes = page.evaluate(
        """async () => (await (await fetch("api/encode", {method: "POST", headers: {"Content-Type": "application/json"},
        body: JSON.stringify({model: "tokenizer", picture: "astronaut"})})).json()).codes"""
    )
    same = [int((np.array(each) == each[5][5]).sum()) - 1 for each in codes]
    rows = page.locator(".code")
    for i in range(2):
        expect(rows.nth(i).locator("b")).to_have_text(str(codes[i][5][5]))
        expect(rows.nth(i)).to_contain_text(f"{same[i]} more" if same[i] else "only here")
    assert "at=5,5" in here.state and "picture=photo:astronaut" in here.state
    page.keyboard.press("Escape")
    expect(page.locator(".inspector h2")).to_have_count(0)


def test_the_marked_places_are_those_with_the_same_code(visit: Callable[..., Visit]) -> None:
    page = visit().go("#reconstruct?picture=photo:cat&at=2,3&factor=0")
    expect(page.locator(".inspector h2")).to_have_text("Row 3, column 4")
    clear = page.evaluate(
        """() => [...document.querySelectorAll(".marks")].map((canvas) => {
        const paint = canvas.getContext("2d"), cell = canvas.width / 8;
        return Array.from({length: 64}, (_, i) =>
          paint.getImageData((i % 8 + 0.5) * cell, (Math.floor(i / 8) + 0.5) * cell, 1, 1).data[3] === 0); })"""
    )
    pixels = photo("cat").reshape(8, 8, 8, 8, 3).mean((1, 3)) // 64 @ np.array([16, 4, 1])
    assert clear == [(pixels == pixels[2, 3]).ravel().tolist()] * 6


def test_a_file_is_reconstructed_and_the_page_says_that_no_link_carries_it(
    visit: Callable[..., Visit], tmp_path: Path
) -> None:
    Image.fromarray(photo("own", 40, 60)).save(tmp_path / "own.png")
    here = visit()
    page = here.go()
    expect(page.locator(".views figure")).to_have_count(6)
    page.locator("#panel-reconstruct input[type=file]").set_input_files(tmp_path / "own.png")
    expect(page.get_by_text("A link cannot carry a picture of your own")).to_be_visible()
    expect(page.get_by_role("button", name="own.png")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#live")).to_contain_text("own.png reconstructed")
    assert "picture=" not in here.state


def test_pictures_grow_as_they_are_drawn_and_are_kept_varied_and_downloaded(visit: Callable[..., Visit]) -> None:
    go_on = threading.Event()
    here = visit(Wishes(pair(), go_on=go_on))
    page = here.go("#generate")
    search = page.get_by_role("combobox", name="Class")
    search.fill("roc")
    expect(page.locator(".options li")).to_have_text(["rocket5"])
    search.press("Enter")
    page.get_by_role("slider", name="Pictures").fill("2")
    page.get_by_role("spinbutton", name="Seed").fill("7")
    here.button("Draw").click()
    expect(page.locator(".status").first).to_contain_text(re.compile(r"Drawing 2 pictures, [1-9]\d? %"))
    grey = page.evaluate("document.querySelector('.card img').src.length")
    go_on.set()
    here.drawn(2)
    assert grey > 100
    asked = here.asked("/api/generate")[0]
    assert asked["classes"] == [5, 5] and asked["seed"] == 7 and asked["cfg_scale"] == 2 and asked["top_k"] == [0, 0]
    page.locator(".card").first.get_by_role("button", name="Keep").click()
    expect(page.locator(".kept figure:visible")).to_have_count(1)
    page.locator(".card summary").first.click()
    here.button("Redraw semantic").click()
    here.drawn(3)
    redrawn = here.asked("/api/edit")[0]
    assert redrawn["keep"] == ["visual"] and redrawn["seed"] == 8 and len(redrawn["codes"]) == 2
    page.locator(".card summary").first.click()
    page.get_by_role("button", name="Next seed").first.click()
    here.drawn(4)
    assert here.asked("/api/generate")[1]["seed"] == 8
    files = []
    page.on("download", lambda file: files.append(file))
    with page.expect_event("download", lambda _: len(files) == 2):
        page.get_by_role("button", name="Download").first.click()
    named = {each.suggested_filename: each for each in files}
    assert set(named) == {"rocket-seed-7.png", "rocket-seed-7.json"}
    facts = json.loads(Path(named["rocket-seed-7.json"].path()).read_text())
    assert facts["seed"] == 7 and facts["class"] == 5 and np.shape(facts["codes"]) == (2, 8, 8)
    with Image.open(named["rocket-seed-7.png"].path()) as image:
        assert image.size == (64, 64)


def test_the_keyboard_alone_draws_a_picture(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.go("#reconstruct")
    page.locator("#tab-reconstruct").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-generate")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.get_by_role("combobox", name="Class")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("combobox", name="Class")).to_have_value(CLASSES[1])
    page.keyboard.press("Enter")
    here.drawn(4)
    assert here.asked("/api/generate")[0]["classes"] == [1] * 4


def test_a_painted_region_is_drawn_again_and_all_else_is_kept(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.go("#edit?picture=photo:cat")
    expect(page.get_by_text("nothing painted yet")).to_be_visible()
    paper = page.locator(".paper")
    expect(here.button("Draw again")).to_be_disabled()
    box = paper.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.19, box["y"] + box["height"] * 0.31)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.44, box["y"] + box["height"] * 0.31)
    page.mouse.up()
    page.keyboard.press("ArrowRight")  # from the middle, (4, 4)
    page.keyboard.press(" ")
    expect(page.get_by_text("4 of 64 positions")).to_be_visible()
    page.get_by_label("Redraw semantic").check()
    page.get_by_label("Redraw visual").uncheck()
    page.get_by_role("slider", name="Pictures").locator("visible=true").fill("2")
    here.button("Draw again").click()
    here.drawn(2)
    asked = here.asked("/api/edit")[0]
    mask = np.array(asked["mask"])
    assert mask[0].all() and {tuple(each) for each in np.argwhere(~mask[1])} == {(2, 1), (2, 2), (2, 3), (4, 5)}
    assert asked["classes"] is None and "cfg_scale" not in asked and asked["num"] == 2
    page = here.go(here.state)
    expect(page.get_by_text("4 of 64 positions")).to_be_visible()
    expect(page.get_by_label("Redraw visual")).not_to_be_checked()


def test_factors_of_two_pictures_are_mixed_up_to_a_position(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.go("#mix?a=photo:astronaut&b=photo:cat")
    expect(page.locator("#panel-mix")).to_contain_text("64 of 64")
    with page.expect_response("**/api/decode"):
        page.get_by_role("slider", name="Positions from B").fill("20")
    with page.expect_response("**/api/decode"):
        page.get_by_role("radiogroup", name="visual from").get_by_text("B").click()
    expect(page.locator(".outcome img")).to_have_attribute("src", re.compile("^data:"))
    a, b, *_, last = [np.array(each["codes"]) for each in here.asked("/api/decode")]
    if not (last[:, 7] == a[:, 7]).all():
        a, b = b, a
    assert (last.reshape(2, -1)[:, :20] == b.reshape(2, -1)[:, :20]).all()
    assert (last.reshape(2, -1)[:, 20:] == a.reshape(2, -1)[:, 20:]).all() and not (a == b).all()
    assert "until=20" in here.state and "fromb=visual,semantic" in here.state
    here.button("Keep").click()
    here.button("Edit").locator("visible=true").click()
    expect(page.locator(".paper")).to_be_visible()
    assert "picture=codes:2x8x8." in here.state
    codes = here.asked("/api/decode")[-1]["codes"]
    page.evaluate("sessionStorage.clear()")
    here.go(here.state)
    expect(page.locator(".paper")).to_be_visible()
    assert here.asked("/api/decode")[-1]["codes"] == codes == last.tolist()


def test_two_tokenizers_are_compared_with_a_divider(visit: Callable[..., Visit]) -> None:
    models = [tokenizer("first"), tokenizer("second", ("only",))]
    here = visit(Wishes(models))
    page = here.go("#compare")
    expect(page.locator(".tag")).to_have_text([re.compile(r"first · \d+\.\d\d dB"), re.compile("second")])
    expect(page.locator(".scores tbody tr").first).to_contain_text("PSNR")
    page.get_by_role("slider", name="Divider").press("ArrowLeft")
    assert "at=49" in here.state and "left=first" in here.state
    assert page.locator(".over").evaluate("each => getComputedStyle(each).clipPath").endswith("49%)")


def test_cards_of_models_stay_text(visit: Callable[..., Visit]) -> None:
    page = visit().go("#about")
    expect(page.locator(".model")).to_have_count(2)
    expect(page.locator(".model").first).to_contain_text("3.6 million")
    page.locator(".cardtext summary").first.click()
    expect(page.get_by_text("<img src=x onerror=alert(1)>")).to_be_visible()
    expect(page.locator(".prose img")).to_have_count(0)
    expect(page.locator(".prose strong").first).to_have_text("8 x 8")


def test_a_shared_address_draws_the_same_pictures_with_the_same_settings(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.go("#generate?model=generator&class=3&num=2&seed=11&guidance=3.5&temperature=0.9,1.1&topk=5,0&draw=1")
    here.drawn(2)
    first, state = here.asked("/api/generate")[0], here.state
    assert first["cfg_scale"] == 3.5 and first["temperature"] == [0.9, 1.1] and first["top_k"] == [5, 0]
    here.go(state)
    here.drawn(2)
    assert here.asked("/api/generate") == [first, first]


def test_going_back_shows_a_tab_as_it_was_and_asks_for_nothing_again(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.go("#generate?num=2&draw=1")
    here.drawn(2)
    page.get_by_role("tab", name="About").click()
    page.go_back()
    here.drawn(2)
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    assert len(here.asked("/api/generate")) == 1
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    assert here.state.startswith("#generate")
