"""The page of `fqgan serve` where it is refused, asked for a token, given other models, or narrow; and its files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browsing import NARROW, PHONE, WIDE, Visit, browser, expect, visit
from fake_serve import STATIC, Wishes, generator, pair, tokenizer
from servers import served, settings

__all__ = ["browser", "visit"]  # fixtures


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((500, {"error": "the device failed"}, {}), "the device failed."),
        ((429, {"error": "full"}, {"Retry-After": "7"}), "Try again in 7 seconds."),
        ((500, {}, {}), "status 500"),
    ],
)
def test_what_the_server_refuses_is_one_sentence_and_can_be_tried_again(
    visit: Callable[..., Visit], answer: tuple[int, dict, dict[str, str]], says: str
) -> None:
    here = visit(Wishes(pair(), fail={"/api/reconstruct": answer}), faults=True)
    page = here.go()
    expect(page.locator(".notice")).to_contain_text(says)
    here.button("Try again").click()
    expect(page.locator(".views figure")).to_have_count(6)
    expect(page.locator(".notice")).to_have_count(0)


def test_what_would_be_refused_again_is_not_offered_again(visit: Callable[..., Visit]) -> None:
    refusal = (400, {"error": "top_k 99 is impossible: factor 0 has 64 codes"}, {})
    here = visit(Wishes(pair(), fail={"/api/generate": refusal}), faults=True)
    page = here.go("#generate")
    here.button("Draw").click()
    expect(page.locator(".notice")).to_have_text("top_k 99 is impossible: factor 0 has 64 codes.")
    expect(here.button("Try again")).to_have_count(0)
    here.button("Draw").click()
    here.drawn(4)
    expect(page.locator(".notice")).to_have_count(0)


def test_a_server_that_is_gone_is_said_to_be(visit: Callable[..., Visit]) -> None:
    here = visit(faults=True)
    page = here.go("#generate")
    page.route("**/api/generate", lambda route: route.abort())
    here.button("Draw").click()
    expect(page.locator(".notice")).to_contain_text("The server does not answer")
    expect(page.locator(".placeholder")).to_have_count(4)


def test_the_token_is_asked_for_kept_and_not_left_in_the_address(visit: Callable[..., Visit]) -> None:
    here = visit(Wishes(pair(), token="secret"), faults=True)
    page = here.go()
    expect(page.locator(".notice")).to_contain_text("This server asks for a token.")
    page.get_by_label("Token").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator(".views figure")).to_have_count(6)
    page.evaluate("sessionStorage.clear()")
    here.go("?token=secret#generate?class=2&draw=1")
    here.drawn(4)
    assert "secret" not in page.url and "class=2" in page.url
    here.go("#mix")
    expect(page.locator(".thumb img").first).to_have_attribute("src", re.compile("^blob:"))


def test_one_kind_of_model_is_enough_and_the_other_tabs_say_what_they_need(visit: Callable[..., Visit]) -> None:
    dual, far = pair()
    page = visit(Wishes([dual])).go("#generate")
    expect(page.locator("#panel-generate")).to_contain_text("This tab needs a generator")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#panel-compare")).to_contain_text("This server has one tokenizer")
    expect(page.locator(".tag").first).to_have_text("Original")
    here = visit(Wishes([far | {"tokenizer": None}], pictures=()))
    page = here.go()
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    here.button("Draw").click()
    here.drawn(4)
    page.locator(".card").first.get_by_role("button", name="Keep").click()
    here.button("Mix").click()
    expect(page.locator(".mixside .frame img[src^=data]")).to_have_count(1)
    page.get_by_role("tab", name="Reconstruct").click()
    expect(page.get_by_text("Choose a picture, and its codes appear here.")).to_be_visible()


@pytest.mark.parametrize("factors", [("visual",), ("visual", "semantic", "depth")])
def test_any_number_of_factors_other_grids_and_missing_classes_work(
    visit: Callable[..., Visit], factors: tuple[str, ...]
) -> None:
    base = tokenizer("wide", factors, (4, 7))
    here = visit(Wishes([base, generator("free", base, (), 0), generator("numbered", base, (), 1000)]))
    page = here.go()
    expect(page.locator(".views figure")).to_have_count(3 if len(factors) == 1 else 2 + 2 * len(factors))
    here.go("#generate?model=free")
    expect(page.get_by_text("This generator learned without classes.")).to_be_visible()
    expect(page.get_by_role("combobox", name="Class")).to_be_hidden()
    here.button("Draw").click()
    here.drawn(4)
    assert here.asked("/api/generate")[0]["classes"] is None and "cfg_scale" not in here.asked("/api/generate")[0]
    page.get_by_role("combobox", name="Generator").select_option("numbered")
    page.get_by_role("combobox", name="Class").fill("417")
    page.keyboard.press("Enter")
    here.button("Draw").click()
    expect(page.locator(".card figcaption span").first).to_have_text("417")
    here.go("#edit?model=numbered")
    here.button("All").click()
    expect(page.get_by_text("28 of 28 positions")).to_be_visible()
    here.go("#mix")
    expect(page.locator("#panel-mix")).to_contain_text("28 of 28")


@pytest.mark.parametrize(("width", "scheme"), [(PHONE, "dark"), (NARROW, "light"), (WIDE, "dark")])
def test_no_tab_is_wider_than_its_screen(visit: Callable[..., Visit], width: int, scheme: str) -> None:
    here = visit(width=width, color_scheme=scheme, has_touch=width < WIDE)
    page = here.go("#generate?draw=1&num=3")
    here.drawn(3)
    page.locator(".fine summary").locator("visible=true").click()
    here.button("Keep").first.click()
    for tab in ("Generate", "Reconstruct", "Edit", "Mix", "Compare", "About"):
        page.get_by_role("tab", name=tab).click()
        expect(page.locator(f"#panel-{tab.lower()} > *")).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), tab
        assert not page.evaluate(UNNAMED), tab
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 23, 26)" if scheme == "dark" else "rgb(247, 246, 243)"
    )


UNNAMED = """() => [...document.querySelectorAll("button, input, select, [role=application]")].filter((each) =>
  each.checkVisibility() && !each.ariaLabel && !each.textContent.trim() && ![...(each.labels ?? [])].length)
  .map((each) => each.outerHTML)"""


def test_a_finger_paints(visit: Callable[..., Visit]) -> None:
    here = visit(width=NARROW, has_touch=True)
    page = here.go("#edit?picture=photo:cat")
    expect(page.get_by_text("nothing painted yet")).to_be_visible()
    page.locator(".paper").tap(position={"x": 30, "y": 30})
    expect(page.get_by_text("1 of 64 positions")).to_be_visible()


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_interface_is_described_with_nothing_from_outside(browser: Any, models: Path, width: int) -> None:
    with served(settings(models, token="t")) as (address, _):
        context = browser.new_context(viewport={"width": width, "height": 800})
        here = Visit(context.new_page(), SimpleNamespace(url=address + "/"), False)  # pyright: ignore
        page = here.go("docs?token=t")
        expect(page.get_by_role("heading", name="POST /api/edit")).to_be_visible()
        edit = page.locator(".model", has=page.get_by_role("heading", name="POST /api/edit"))
        expect(edit.get_by_role("row", name="best_of")).to_contain_text("integer")
        expect(edit.get_by_role("row", name="cfg_scale")).to_contain_text("number or list of number")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert "token" not in page.url
        context.close()
    assert not here.foreign and not here.faults


def test_the_files_are_short_and_name_nothing_outside() -> None:
    files = [path for path in STATIC.iterdir() if path.is_file()]
    assert len(files) > 15
    for path in files:
        text = path.read_text()
        assert len(text.splitlines()) < 350, path.name
        outside = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
        assert not outside and "innerHTML" not in text, path.name
