"""The gate before publishing: each fault, planted on a small page, is found, and a page without any is let through."""

import pytest

from tools import gate

PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>x</title><style>
body {{ background: #fff; color: #000; margin: 0; font: 16px sans-serif }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #eee }} .dim {{ color: #444 }}
  .night {{ filter: brightness(0.8) }} }}
.box {{ width: 100px; height: 40px; overflow: hidden }} .scroll {{ width: 300px; overflow: auto }}
pre {{ font: 12px monospace; margin: 0; overflow: auto }}
</style></head><body><nav class="bd-sidebar-primary"><a class="current" href="#">{entry}</a></nav>
<article class="bd-article"><h1>{heading}</h1>{body}</article></body></html>"""
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
LONG = "\n".join(f"x = {i}" for i in range(31))
TABLE = f"<table><tr>{'<td>a wide cell</td>' * 12}</tr></table>"
CLEAN = f"""<p>An index x_i, <code>MUSC_REPOSITORY</code>, $5, and 7 TODOs that were done.</p>
<img src="{PIXEL}" alt="a dot"><p><sup style="font-size: 9px">1</sup></p>
<div class="highlight"><pre>{"y" * 90}</pre></div>
<details><div class="cell_input"><div class="highlight"><pre>{LONG}</pre></div></div></details>
<figcaption><span class="caption-number">Fig. 9.1 </span>Distances.</figcaption>
<div class="scroll" style="width: auto">short</div>
<div class="math"><mjx-container>a = b<mjx-labels>(3)</mjx-labels></mjx-container></div>
<p id="equation-3"><a href="#equation-3" style="color: inherit">Eq. 3</a>, and <code>Eq. 4</code></p>
<p style="width: 60px">msm.<wbr>interval_<wbr>average</p>"""
CELL = '<div class="cell_input"><div class="highlight"><pre>{}</pre></div></div>'
# Kind, look in which it shows (or any), and the faulty piece of a page.
PLANTED = [
    ("placeholder", "desktop", "<p>The gains: GAIN_TABLE</p>"),
    ("placeholder", "desktop", "<p>TODO: measure</p>"),
    ("placeholder", "desktop", "<pre># TODO: measure</pre>"),
    ("placeholder", "desktop", "<p>{{ version }}</p>"),
    ("placeholder", "desktop", "<p>see {numref}`fig-maps`</p>"),
    ("placeholder", "desktop", '<a href="https://github.com/OWNER/musc" style="color: inherit">source</a>'),
    ("raw formula", "desktop", "<table><tr><td>$a_i^m(I_j)$</td></tr></table>"),
    ("raw formula", "desktop", r'<span class="math">\(a_i\)</span>'),
    ("no equation number", "desktop", '<div class="math"><mjx-container>a = b</mjx-container></div>'),
    ("dead equation", "desktop", "<p>By Eq. 3 the scores are means.</p>"),
    ("two numbers", "desktop", '<figcaption><span class="caption-number">Fig. 49 </span>Figure 4: dots</figcaption>'),
    ("long cell", "desktop", CELL.format(LONG)),
    ("wide code", "desktop", CELL.format("z" * 91)),
    ("wide code", "desktop", CELL.format("z" * 80).replace("<pre>", '<pre style="width: 300px; overflow: auto">')),
    ("no alt text", "desktop", f'<img src="{PIXEL}">'),
    ("no alt text", "desktop", '<img src="_images/8f3a.png" alt="_images/8f3a.png">'),
    ("missing picture", "desktop", '<img src="absent.png" alt="a dot">'),
    ("dimmed picture", "dark", f'<img class="night" src="{PIXEL}" alt="a dot">'),
    ("page scrolls sideways", "phone", f"<div>{TABLE}</div>"),
    ("clipped", "desktop", f'<div class="box">{TABLE}</div>'),
    ("clipped", "desktop", f'<div class="scroll">{TABLE}</div>'),
    ("clipped", "phone", '<div class="box">A sentence that is longer than the box that it stands in, by far.</div>'),
    ("clipped", "desktop", '<div class="box"><mjx-c style="position: relative; top: -5px">~</mjx-c></div>'),
    ("clipped", "phone", '<div class="box"><mjx-c style="position: relative; left: -5px">a</mjx-c></div>'),
    ("split word", "desktop", '<p style="width: 60px; overflow-wrap: anywhere">interval_average</p>'),
    ("split word", "phone", f'<table style="table-layout: fixed; width: 60px; word-break: break-all">{TABLE[7:]}'),
    ("split word", "desktop", '<p style="width: 60px"><code>--max-memory</code></p>'),
    ("small text", "desktop", '<figcaption style="font-size: 7px">a label</figcaption>'),
    ("thin text", "desktop", '<figcaption style="font-weight: 300">a caption</figcaption>'),
    ("weak contrast", "dark", '<figcaption class="dim">a caption</figcaption>'),
    ("weak contrast", "desktop", '<p style="color: #999">grey</p>'),
    ("console", "any", "<script>console.error('broken')</script>"),
    ("console", "any", "<script>undefined_name()</script>"),
    ("network", "any", '<img src="http://127.0.0.1:9/a.png" alt="a dot">'),
]


def write(folder, body, name="book/page", heading="A page", entry="A page"):
    file = folder / f"{name}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PAGE.format(body=body, heading=heading, entry=entry), encoding="utf-8")
    return file


def test_a_tab_behind_another_one_is_looked_at_too(chromium, tmp_path):
    """It would wait for a frame that is never drawn."""
    first, second = (chromium.open(write(tmp_path, "<p>text</p>", name).as_uri()) for name in ("a", "b"))
    for page in (first, second, first):
        page.look(390, 800)
        assert page.evaluate("document.querySelector('p').textContent") == "text"
    second.close()
    first.go(write(tmp_path, "<p>more</p>", "c").as_uri())
    assert first.evaluate("document.querySelector('p').textContent") == "more"
    first.close()


def test_a_click_that_did_not_arrive_is_made_again_and_one_that_cannot_is_named(tab, tmp_path):
    swallowed = """<button id="b" onclick="this.textContent = 'clicked'">b</button><p id="no" hidden>no</p><script>
        addEventListener('click', e => e.stopImmediatePropagation(), {capture: true, once: true})</script>"""
    tab.go(write(tmp_path, swallowed).as_uri())
    tab.click("#b", patience=0.5)
    assert tab.evaluate("document.querySelector('#b').textContent") == "clicked"
    with pytest.raises(TimeoutError, match="no click reached #no"):
        tab.click("#no", patience=0.1)


@pytest.mark.parametrize("turn", [1, 2])
def test_the_tab_is_as_new_in_every_test(tab, turn):
    assert tab.evaluate("[innerWidth, innerHeight]") == [1280, 900]
    tab.look(390, 800, dark=True)


def test_a_page_without_faults_passes(tab, tmp_path):
    assert gate.look(tab, write(tmp_path, CLEAN), "book/page") == []
    number = {"heading": "9. Few images", "entry": "9. Few images"}
    chapter = write(tmp_path, CLEAN, "notebooks/09_few", **number)
    assert gate.look(tab, chapter, "notebooks/09_few") == []


@pytest.mark.parametrize(("kind", "look", "piece"), PLANTED)
def test_planted_fault_is_found(tab, tmp_path, kind, look, piece):
    found = gate.look(tab, write(tmp_path, CLEAN + piece), "book/page")
    assert (kind, look) in {(fault.kind, fault.look) for fault in found}
    assert str(found[0]).startswith("book/page: ")
    # Nothing else is blamed, but for what a missing file and a refused connection bring along.
    allowed = {"missing picture": {"console", "no alt text"}, "no alt text": {"console", "missing picture"}}
    allowed["network"] = {"console", "missing picture"}
    assert {fault.kind for fault in found} <= {kind} | allowed.get(kind, set())


@pytest.mark.parametrize("where", ["heading", "entry"])
def test_chapter_without_its_number(tab, tmp_path, where):
    texts = {"heading": "9. Few images", "entry": "9. Few images", where: "Few images"}
    found = gate.look(tab, write(tmp_path, CLEAN, "notebooks/09_few", **texts), "notebooks/09_few")
    assert {fault.kind for fault in found} == {"unnumbered chapter"}


def test_every_kind_is_planted():
    assert {kind for kind, _, _ in PLANTED} | {"unnumbered chapter", "dead link"} == set(gate.FAULTS)


def test_dead_links(tmp_path):
    write(
        tmp_path,
        '<p id="here"></p><a href="other.html#there"></a><a href="#here"></a><a href="https://example.org"></a>',
    )
    write(tmp_path, '<p id="there"></p>', "book/other")
    assert gate.dead_links(tmp_path) == []
    write(tmp_path, '<a href="page.html#gone"></a><a href="../gone.html"></a>', "book/third")
    found = gate.dead_links(tmp_path)
    assert [str(fault) for fault in found] == [
        "book/third: dead link (any): ../gone.html",
        "book/third: dead link (any): page.html#gone",
    ]


def test_the_command_names_page_and_fault_and_fails(chromium, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gate, "HTML", tmp_path)
    monkeypatch.setattr(gate, "pages", lambda: ["book/page", "book/other"])
    monkeypatch.setattr(gate.book, "build", lambda execute: 0)
    write(tmp_path, CLEAN)
    write(tmp_path, CLEAN + "<p>SIM_TABLE</p>", "book/other")
    assert gate.main([]) == 1
    assert capsys.readouterr().out == "book/other: placeholder (desktop): SIM_TABLE\n2 pages, 1 faults\n"
    assert gate.main(["page"]) == 0
    assert capsys.readouterr().out == "1 pages, 0 faults\n"
