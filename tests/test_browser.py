"""The built pages as a reader sees them: opened from disk in headless Chromium, with nothing to fetch from outside.

Without Chromium these tests are skipped, and fail where CI or MUSC_REQUIRE_BROWSER is set. They build the book if it
is missing or old (about a minute).
"""

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
import torch
from test_book import pages

from musc import MuSc, MuScConfig, msm, rscin
from tools import book, browser, interactive
from tools.notebooks import ROOT

HTML = ROOT / "_build/html"
PAGES = pages()


@pytest.fixture(scope="session")
def built() -> Path:
    assert book.build(execute=False) == 0, "the book does not build"
    return HTML


@pytest.fixture(scope="session")
def chromium(built):
    if browser.find() is None:
        reason = "no Chromium: apt-get install chromium, or set CHROMIUM to its path"
        if os.environ.get("CI") or os.environ.get("MUSC_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with browser.Browser() as running:
        yield running


def see(chromium, page, **look):
    return chromium.open((HTML / f"{page}.html").as_uri(), **look)


@pytest.mark.parametrize("name", PAGES)
def test_page(chromium, name):
    """No error, no request to elsewhere, equations and pictures there; then the same page on a phone in the dark."""
    page = see(chromium, name)
    try:
        assert page.errors == []
        away = [url for url in page.requests if urlparse(url).scheme not in ("file", "data", "blob", "about")]
        assert away == []

        equations = page.evaluate(
            "[...document.querySelectorAll('.math')].map(e => ({shown: e.querySelectorAll('mjx-container').length,"
            " bad: e.querySelectorAll('mjx-merror, [data-mjx-error]').length, raw: e.innerText}))"
        )
        assert [e for e in equations if not e["shown"] or e["bad"]] == []
        unseen = page.evaluate(
            "Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode().catch(() => i.src) }))"
        )
        assert [source for source in unseen if source] == []
        assert page.evaluate("[...document.querySelectorAll('.bd-article img')].filter(i => !i.alt).length") == 0

        page.look(width=390, height=844, dark=True)
        page.wait("document.documentElement.dataset.theme == 'dark'")
        page.settle()
        wide = page.evaluate(
            "document.documentElement.scrollWidth <= 390 ? [] : [...document.querySelectorAll('.bd-main *')]"
            ".filter(e => e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"
        )
        assert wide == []
        assert contrast(page, ".bd-article p, .bd-article h1") > 4.5  # WCAG AA
        # A heat map that is dimmed shows other values.
        filters = "[...document.querySelectorAll('.bd-article img')].map(i => getComputedStyle(i).filter)"
        assert set(page.evaluate(filters)) <= {"none"}
        assert page.errors == []
    finally:
        page.close()


def contrast(page, selector):
    """Contrast of text against its page, 1 to 21."""

    def luminance(colour):
        channels = [float(v) / 255 for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    text = page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).color")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    high, low = sorted((luminance(text), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured():
    class Fixed:
        def evaluate(self, expression):
            return "rgb(255, 255, 255)" if "body" in expression else "rgb(0, 0, 0)"

    assert contrast(Fixed(), "p") == pytest.approx(21)


def test_theme_switch_works_by_clicking(chromium):
    page = see(chromium, PAGES[0])
    first = page.evaluate("document.documentElement.dataset.mode")
    page.click(".theme-switch-button")
    page.wait(f"document.documentElement.dataset.mode != '{first}'")
    page.evaluate("localStorage.clear()")
    page.close()


def test_the_interactive_page_scores_as_the_package_does(chromium):
    """Its own Eq. 2-5, in JavaScript on distances in 256 steps, against ours on the distances themselves."""
    page = see(chromium, "book/play")
    page.wait("document.getElementById('play').dataset.ready === 'yes'")
    features = MuSc(MuScConfig()).features(interactive.chosen().samples)
    tokens = features.class_tokens.double()
    similarity = torch.tensor(page.evaluate("MUSC_DATA.similarity"), dtype=torch.float64)
    torch.testing.assert_close(similarity, tokens @ tokens.T, atol=1e-6, rtol=0)

    def agree(degrees, interval, windows):
        patches = msm.mutual_scores(features.patch_tokens, degrees, interval, grid=features.grids[0])
        scores = patches.amax(dim=1)
        found = torch.tensor(page.evaluate("Array.from(MUSC_PLAY.scores())"))
        torch.testing.assert_close(found, scores, atol=4e-3, rtol=0, check_dtype=False)
        for i in (0, 9):
            found_map = torch.tensor(page.evaluate(f"MUSC_PLAY.map({i})"))
            torch.testing.assert_close(found_map, patches[i], atol=4e-3, rtol=0, check_dtype=False)
        after = torch.tensor(page.evaluate("Array.from(MUSC_PLAY.after())"))
        # Tokens with exactly the page's similarities: two neighbours may differ by less than float32 can tell.
        values, vectors = torch.linalg.eigh(similarity)
        expected = rscin.rescore(found.double(), vectors * values.clamp(min=0).sqrt(), windows)
        torch.testing.assert_close(after.double(), expected, atol=1e-4, rtol=0)

    agree((1, 3, 5), (0, 0.3), (2, 3))
    page.click("#play .play-controls fieldset:nth-of-type(1) label:nth-of-type(1) input")  # r = 1 off
    page.click("#play .play-controls fieldset:nth-of-type(3) label:nth-of-type(5) input")  # k = 6 on
    slide = "e => { e.value = 60; e.dispatchEvent(new Event('input')) }"
    page.evaluate(f"({slide})(document.querySelector('#play input[type=range]'))")
    agree((3, 5), (0, 0.6), (2, 3, 6))
    page.click("#play .play-strip button:nth-of-type(3)")
    assert "Image 3 is normal" in page.evaluate("document.querySelector('.play-said').textContent")
    before = page.evaluate("MUSC_PLAY.state.patch")
    page.click("#play canvas")  # its middle
    (H, W) = features.grids[0]
    y, x = divmod(page.evaluate("MUSC_PLAY.state.patch"), W)
    assert abs(y + 0.5 - H / 2) <= 0.5
    assert abs(x + 0.5 - W / 2) <= 0.5
    assert before != y * W + x
    assert page.evaluate("document.querySelectorAll('.play-near figure').length") == 10
    told = page.evaluate("Array.from(document.querySelectorAll('[data-finding]'), e => e.textContent)")
    assert len(told) == len(page.evaluate("Object.keys(MUSC_DATA.findings)"))
    assert all(any(c.isdigit() for c in text) for text in told)
    assert page.errors == []
    page.close()


def test_solution_opens_by_clicking(chromium):
    name = next(n for n in PAGES if n.startswith("notebooks/0"))
    page = see(chromium, name)
    assert page.evaluate("document.querySelectorAll('.solution.dropdown').length") >= 3
    height = "document.querySelector('.solution.dropdown').offsetHeight"
    closed = page.evaluate(height)
    page.click(".solution.dropdown .admonition-title")
    page.settle()
    assert page.evaluate(height) > closed + 100
    page.close()


def test_search_works_from_disk(chromium):
    page = chromium.open((HTML / "search.html").as_uri() + "?q=interval")
    page.wait("document.querySelectorAll('#search-results li').length > 0")
    assert page.errors == []
    page.close()


class Links(HTMLParser):
    """Every address and every anchor of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        self.links |= {values[key] for key in ("href", "src") if values.get(key)}


def test_internal_links_resolve(built):
    parsed = {
        p.resolve(): Links(p.read_text(encoding="utf-8")) for p in built.rglob("*.html") if "_static" not in p.parts
    }
    assert len(parsed) > len(PAGES)
    broken = []
    for page, found in parsed.items():
        for link in found.links:
            address, anchor = urldefrag(link)
            if urlparse(address).scheme or address.startswith("//"):
                continue
            target = (page.parent / unquote(address).split("?")[0]).resolve() if address else page
            target = target / "index.html" if target.is_dir() else target
            known = parsed.get(target)
            if not target.exists() or (anchor and known and unquote(anchor) not in known.anchors):
                broken.append(f"{page.relative_to(built.resolve())}: {link}")
    assert broken == []


@pytest.mark.parametrize("name", [n for n in PAGES if n.startswith("notebooks/")])
def test_launch_buttons(built, name):
    links = Links((built / f"{name}.html").read_text(encoding="utf-8")).links
    assert any(u.startswith("https://colab.research.google.com/github/") and f"{name}.ipynb" in u for u in links)
    assert any(u.startswith("https://mybinder.org/v2/gh/") and f"{Path(name).name}.ipynb" in u for u in links)
