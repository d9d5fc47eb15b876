"""The built pages as a reader sees them: opened from disk in headless Chromium, with nothing to fetch from outside.

Without Chromium these tests are skipped, and fail where CI or MUSC_REQUIRE_BROWSER is set. They build the book if it
is missing or old (about a minute).
"""

from pathlib import Path

import pytest
import torch

from musc import MuSc, MuScConfig, msm, rscin
from musc.engines import memory
from tools import book, gate, interactive

HTML = gate.HTML
PAGES = gate.pages()


@pytest.fixture(scope="session")
def built() -> Path:
    assert book.build(execute=False) == 0, "the book does not build"
    return HTML


@pytest.fixture
def see(built, chromium):
    """`see(page)`: the page in a new tab, which is closed at the end."""
    opened = []

    def open_page(name):
        opened.append(chromium.open((built / f"{name}.html").as_uri()))
        return opened[-1]

    yield open_page
    for page in opened:
        page.close()


@pytest.mark.parametrize("name", PAGES)
def test_page_passes_the_gate(built, tab, name):
    assert [str(fault) for fault in gate.look(tab, built / f"{name}.html", name)] == []


def test_theme_switch_works_by_clicking(see):
    page = see(PAGES[0])
    first = page.evaluate("document.documentElement.dataset.mode")
    page.click(".theme-switch-button")
    page.wait(f"document.documentElement.dataset.mode != '{first}'")
    page.evaluate("localStorage.clear()")


def test_the_calculator_counts_as_the_package_does(see):
    page = see("notebooks/22_scale")
    page.wait("document.querySelectorAll('#scale-calculator dd').length > 5")
    given = {"images": 2000, "rows": 14, "channels": 384, "stages": 1, "memory": 2}
    for name, value in given.items():
        page.evaluate(f"document.querySelector('#scale-calculator [name={name}]').value = {value}")
    page.evaluate("document.querySelector('#scale-calculator form').dispatchEvent(new Event('input'))")
    found = page.evaluate("Array.from(document.querySelectorAll('#scale-calculator dd'), (dd) => dd.textContent)")
    problem = memory.Problem(torch.device("cpu"), torch.float32, 2000, 2000, 1999, (14, 14), 384, (1, 3, 5))
    assert found[0] == "1,999,000 × 1 stages"
    assert found[3] == f"{problem.unit * 2000 * 1999 / 2**30:.3g} GiB"
    again = 100 * (memory.pairs_compared(problem, memory.cut(problem, 2 << 30)) - 1)
    assert abs(int(found[5].split()[0]) - again) < 10
    assert found[6] == "musc run photos/ --max-memory 2GiB"


def test_the_interactive_page_scores_as_the_package_does(see):
    """Its own Eq. 2-5, in JavaScript on distances in 256 steps, against ours on the distances themselves."""
    page = see("book/play")
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


def test_solution_opens_by_clicking(see):
    name = next(n for n in PAGES if n.startswith("notebooks/0"))
    page = see(name)
    assert page.evaluate("document.querySelectorAll('.solution.dropdown').length") >= 3
    height = "document.querySelector('.solution.dropdown').offsetHeight"
    closed = page.evaluate(height)
    page.click(".solution.dropdown .admonition-title")
    page.settle()
    assert page.evaluate(height) > closed + 100


def test_search_works_from_disk(built, chromium):
    page = chromium.open((built / "search.html").as_uri() + "?q=interval")
    page.wait("document.querySelectorAll('#search-results li').length > 0")
    assert page.errors == []


def test_internal_links_resolve(built):
    assert [str(fault) for fault in gate.dead_links(built)] == []


@pytest.mark.parametrize("name", [n for n in PAGES if n.startswith("notebooks/")])
def test_buttons_lead_to_a_known_repository(built, name):
    """Colab and Binder open a notebook only from an address: without one, no page offers them."""
    links = gate.Links((built / f"{name}.html").read_text(encoding="utf-8")).links
    found = [url for url in links if url.startswith(("https://colab", "https://mybinder.org", "https://github.com"))]
    assert bool(found) == bool(gate.book.notebooks.repository())
