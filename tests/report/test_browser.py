"""The report page in a real browser: filters, light and dark, a phone, print, and no network."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from real_chromium import Open, chromium_pages

from charactertrain.report import page as report_page
from charactertrain.report.view import ReportView

pytestmark = pytest.mark.slow

PHONE = {"width": 360, "height": 740}


@pytest.fixture(name="chromium", scope="module")
def browser_opener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """What a page complains of, a breach of its own policy among it, fails the test."""
    complaints: list[str] = []
    with chromium_pages(lambda: tmp_path_factory.mktemp("profile"), complaints) as opener:
        yield opener
    # One test asks for what the policy refuses.
    assert [each for each in complaints if "forbidden.png" not in each] == []


@pytest.fixture(name="address", scope="module")
def address_of_a_report(view: ReportView, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the file, as it is opened from a disk."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_page.render(view), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(name="report", scope="module")
def open_report(chromium: Open, address: str) -> Any:
    page = chromium()
    page.goto(address)
    return page


def shown(page: Any) -> list[dict[str, str]]:
    """Trait, kind, pick and rise of the prompts that can be seen, folded or not."""
    found: list[dict[str, str]] = page.evaluate(
        "[...document.querySelectorAll('.sample[data-kind]')]"
        ".filter(s => s.checkVisibility()).map(s => ({...s.dataset}))"
    )
    return found


def field(page: Any, name: str) -> Any:
    """One of the filters."""
    return page.locator(f"#filters [name={name}]")


def reset(page: Any) -> None:
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function(
        "document.querySelector('#filters').elements.namedItem('trait').value === ''"
    )


def count_line(page: Any) -> str:
    return str(page.locator("#filter-count").inner_text())


def test_filters_show_what_fits_all_of_them_and_say_how_much(report: Any, view: ReportView) -> None:
    samples = [(trait.trait_id, s) for trait in view.traits for s in trait.samples]
    total = len(samples)
    assert len(shown(report)) == total
    assert count_line(report) == f"{total} of {total} prompts shown"
    field(report, "trait").select_option("uncertain")
    assert {s["trait"] for s in shown(report)} == {"uncertain"}
    assert len(shown(report)) == sum(trait == "uncertain" for trait, _ in samples)
    # A section without a prompt that fits is no heading either.
    assert report.locator("section.trait:visible").count() == 1
    field(report, "kind").select_option("everyday")
    expected = [s for trait, s in samples if (trait, s.kind) == ("uncertain", "everyday")]
    assert len(shown(report)) == len(expected) >= 1
    assert count_line(report) == f"{len(expected)} of {total} prompts shown"
    reset(report)
    assert len(shown(report)) == total


def test_prompts_are_filtered_by_how_far_the_contrast_changed_either_way(
    report: Any, view: ReportView
) -> None:
    rises = [s.contrast_rise for trait in view.traits for s in trait.samples]
    for least in (0.1, 0.3, 0.9):
        field(report, "least").fill(str(least))
        expected = sum(abs(rise) >= least for rise in rises)
        assert len(shown(report)) == expected
        assert count_line(report).startswith(f"{expected} of ")
    # What is no number filters nothing.
    field(report, "least").fill("")
    assert len(shown(report)) == len(rises)
    field(report, "pick").select_option("loss")
    assert {s["pick"] for s in shown(report)} == {"loss"}
    reset(report)


def test_one_arm_stands_beside_the_base_or_all_do(report: Any) -> None:
    report.get_by_role("button", name="Open or close all").click()
    visible = "[...document.querySelectorAll('.reply')].filter(r => r.checkVisibility())"
    arms = f"[...new Set({visible}.map(r => r.dataset.arm))].sort()"
    assert report.evaluate(arms) == ["base", "policy"]
    field(report, "arm").select_option("prompted")
    assert report.evaluate(arms) == ["base", "prompted"]
    field(report, "arm").select_option("")
    assert report.evaluate(arms) == ["base", "policy", "prompted"]
    reset(report)
    assert report.evaluate(arms) == ["base", "policy"]


def test_filters_are_reached_and_used_by_keyboard(report: Any) -> None:
    field(report, "trait").focus()
    report.keyboard.press("Tab")
    names = [report.evaluate("document.activeElement.name")]
    for _ in range(3):
        report.keyboard.press("Tab")
        names.append(report.evaluate("document.activeElement.name"))
    assert names == ["kind", "pick", "least", "arm"]
    reset(report)


def luminance(page: Any, selector: str, what: str) -> float:
    """Of a colour as the browser computes it, 0 to 1, without gamma."""
    colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
    parts = colour.partition("(")[2].rstrip(")").split(",")[:3]
    return sum(float(part) for part in parts) / 3 / 255


def test_the_page_follows_light_and_dark(report: Any) -> None:
    for scheme, is_dark in (("light", False), ("dark", True)):
        report.emulate_media(color_scheme=scheme)
        paper = luminance(report, "body", "backgroundColor")
        ink = luminance(report, "body", "color")
        assert (paper < 0.2, ink > 0.8) == (is_dark, is_dark)
        # Charts take the page's own colours.
        labels = report.evaluate(
            "[...new Set([...document.querySelectorAll('svg text')]"
            ".map(t => getComputedStyle(t).fill))]"
        )
        for label in labels:
            parts = [float(part) for part in label.partition("(")[2].rstrip(")").split(",")[:3]]
            assert abs(sum(parts) / 3 / 255 - paper) > 0.25, (scheme, label)
    report.emulate_media(color_scheme="light")


def test_a_phone_need_not_scroll_sideways(report: Any) -> None:
    before = report.viewport_size
    report.set_viewport_size(PHONE)
    # With everything open that can be.
    report.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    widest = report.evaluate(
        "[...document.querySelectorAll('main *')]"
        ".filter(e => !e.closest('.scroll, svg') && e.checkVisibility())"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => `${e.tagName} ${e.className}`).slice(0, 5)"
    )
    assert widest == []
    assert report.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    # Wide tables scroll by themselves.
    assert report.evaluate(
        "[...document.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth)"
    )
    report.set_viewport_size(before)


def test_the_page_asks_for_nothing(chromium: Open, address: str) -> None:
    page = chromium()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_role("button", name="Open or close all").click()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_load_state("networkidle")
    assert asked == [address]
    # Nor could it: its policy refuses what a text might slip in.
    blocked = page.evaluate(
        "new Promise(done => { addEventListener('securitypolicyviolation',"
        " e => done(e.violatedDirective), {once: true});"
        " document.body.append(Object.assign(new Image(), {src: 'forbidden.png'})); })"
    )
    assert blocked == "img-src"


def test_print_has_every_prompt_open_whatever_was_filtered(
    chromium: Open, address: str, view: ReportView
) -> None:
    page = chromium()
    page.goto(address)
    field(page, "trait").select_option("uncertain")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    total = sum(len(trait.samples) for trait in view.traits)
    assert len(shown(page)) == total
    assert page.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    assert not page.locator("#filters").is_visible()
    assert not page.locator("nav").is_visible()
    # A whole document comes out, of more than one page.
    document = base64.b64decode(
        page.context.new_cdp_session(page).send("Page.printToPDF", {"printBackground": False})[
            "data"
        ]
    )
    assert document.startswith(b"%PDF")
    assert document.count(b"/Type /Page\n") + document.count(b"/Type /Page ") > 1


def test_hostile_texts_stay_texts(chromium: Open, view: ReportView, tmp_path: Path) -> None:
    hostile = "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>"
    trait = view.traits[0]
    texts = tuple(replace(sample, prompt=hostile) for sample in trait.samples)
    changed = replace(view, traits=(replace(trait, statement=hostile, samples=texts),))
    path = tmp_path / "report.html"
    path.write_text(report_page.render(changed), encoding="utf-8")
    page = chromium()
    page.goto(path.as_uri())
    assert "hacked" not in page.title()
    assert page.locator("main img").count() == 0
    assert page.locator("script").count() == 1
    assert hostile in page.locator("blockquote").first.inner_text()
