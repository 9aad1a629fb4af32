"""The built site as a reader meets it, in a browser: ``make check-site``."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup

from cua.scaling import COLUMNS, per_token, shown

SITE = Path(__file__).parents[2] / "book" / "_build" / "html"
CHAPTERS = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("book/*.html"))
PAGES = [*CHAPTERS, "search.html", "genindex.html"]
LAWS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
# What the theme writes and we leave: roles of a list of references.
KNOWN = {"book/bibliography.html": {"aria-deprecated-role", "aria-required-children"}}
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def documents():
    return {page: BeautifulSoup((SITE / page).read_text(), "html.parser") for page in PAGES}


def test_every_chapter_is_there():
    chapters = {path.stem for path in (SITE.parents[1]).glob("[0-9][0-9]_*.ipynb")}
    assert chapters
    assert chapters <= {Path(page).stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_no_link_within_the_site_is_broken(documents, page):
    for element in documents[page].select("a[href], img[src], script[src], link[rel=stylesheet]"):
        target = element.get("href") or element["src"]
        if re.match(r"[a-z]+:|//|#$", target):
            continue
        path, fragment = urldefrag(target)
        file = (SITE / page).parent / unquote(path.partition("?")[0]) if path else SITE / page
        assert file.exists(), target
        if fragment and file.suffix == ".html":
            name = file.resolve().relative_to(SITE.resolve()).as_posix()
            assert name not in documents or documents[name].find(id=unquote(fragment)), target


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("scheme", "size"), [("light", PHONE), ("dark", DESK)], ids=["phone-light", "desk-dark"])
def test_a_page_can_be_read_by_everyone(browser, page, scheme, size):
    """WCAG 2.1 AA, as far as axe can tell; no page wider than its window; nothing fetched from elsewhere."""
    with browser.new_context(color_scheme=scheme, viewport=size) as context:
        tab, fetched = context.new_page(), []
        tab.on("request", lambda request: fetched.append(request.url))
        tab.goto((SITE / page).as_uri(), timeout=120_000)
        tab.evaluate("window.MathJax?.startup?.promise")  # formulas are set; 'networkidle' does not always come
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme
        assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
        found = Axe().run(tab, options={"runOnly": LAWS}).response["violations"]
        found = [rule for rule in found if rule["id"] not in KNOWN.get(page, ())]
        assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []


@pytest.mark.parametrize("service", ["https://colab.research.google.com/github/", "https://mybinder.org/v2/gh/"])
def test_every_launch_button_opens_a_notebook_of_this_repository(documents, service):
    where = {"https://colab.research.google.com/github/": "/blob/main/", "https://mybinder.org/v2/gh/": "lab/tree/"}
    opened = set()
    for page, document in documents.items():
        for element in document.select(f'a[href^="{service}"]'):
            address, path = unquote(element["href"]).removeprefix(service).split(where[service])
            assert re.fullmatch(r"cua-book/cua(/main\?urlpath=)?", address)
            assert (SITE.parents[2] / path).is_file()
            assert Path(path).stem == Path(page).stem
            opened.add(path)
    assert opened == {f"book/{path.name}" for path in SITE.parents[1].glob("[0-9][0-9]_*.ipynb")}


def test_pages_are_small():
    """As they travel, figures within them included; the whole site fits on a phone."""
    sizes = {path: path.stat().st_size for path in SITE.rglob("*") if path.is_file()}
    largest = max((page for page in PAGES), key=lambda page: sizes[SITE / page])
    print(f"largest page {largest}, {sizes[SITE / largest] / 1e6:.2f} MB; the site {sum(sizes.values()) / 1e6:.0f} MB")
    assert sizes[SITE / largest] < 1e6
    assert sum(sizes.values()) < 120e6


def test_a_search_finds_the_chapter(browser):
    tab = browser.new_page()
    tab.goto(f"{(SITE / 'search.html').as_uri()}?q=Procrustes")
    tab.locator("ul.search a", has_text="Baselines").first.wait_for()


def test_a_solution_opens_from_the_keyboard(browser):
    """Tab reaches the summary of every solution; Enter shows it."""
    tab = browser.new_page()
    tab.goto((SITE / "book/01_cayley.html").as_uri())
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent").strip() == "Skip to main content"
    solutions = tab.locator("details", has=tab.locator("summary", has_text="Solution"))
    assert solutions.count() >= 2
    reached = 0
    for _ in range(400):
        tab.keyboard.press("Tab")
        if tab.evaluate(
            "document.activeElement.matches('summary') && /Solution/.test(document.activeElement.innerText)"
        ):
            tab.keyboard.press("Enter")
            reached += 1
            if reached == solutions.count():
                break
    assert solutions.evaluate_all("all => all.every(one => one.open)")


def rows(tab) -> list[list[str]]:
    return [row.split("\t") for row in tab.locator(".cua-scaling tbody tr").all_inner_texts()]


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_chapter_14_shows_what_the_library_computes(browser, scripts):
    """Its default to everyone; another choice to who makes one, which takes JavaScript."""
    with browser.new_context(java_script_enabled=scripts) as context:
        tab = context.new_page()
        tab.goto((SITE / "book/14_scaling.html").as_uri())
        data = json.loads(tab.locator(".cua-scaling script[type='application/json']").text_content())

        def expected(**changed) -> list[list[str]]:
            choice = data["start"] | changed | {"usd_per_s": data["usd_per_s"]}
            numbers = [per_token(model, data["devices"][0], **choice) for model in data["models"]]
            return [
                [model["name"], *(shown(name, found[name]) for name in COLUMNS)]
                for model, found in zip(data["models"], numbers, strict=True)
            ]

        assert rows(tab) == expected()
        assert tab.locator(".cua-scaling select").count() == (6 if scripts else 0)
        assert tab.locator(".cua-scaling circle").count() == (len(data["models"]) if scripts else 0)
        if scripts:
            tab.get_by_label("blocks on").select_option("every v_proj")
            tab.locator("select[name=shots]").select_option("1024")
            assert rows(tab) == expected(placement="every v_proj", shots=1024)
