"""The page in a real browser: figures are there, the filter works, nothing leaves the page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sync_playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'"
).sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing but the page: no look-ups of the browser's own.
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")


def executable() -> str | None:
    """The browser named by MAMBA3_BENCH_CHROMIUM, or found on the path."""
    named = os.environ.get("MAMBA3_BENCH_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Visit:
    """A page that was opened, with everything it did."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def count(self, selector: str) -> int:
        """How many elements are there and visible."""
        return int(self.page.locator(f"{selector}:visible").count())

    def choose(self, **wanted: str) -> None:
        """Set some selects of the filter, after all others were cleared."""
        self.page.locator("#filter button").click()
        for name, value in wanted.items():
            self.page.locator(f"#filter select[name={name}]").select_option(value)


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, started without a window."""
    with sync_playwright() as tool:
        flags = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        found = tool.chromium.launch(executable_path=executable(), args=flags)
        yield found
        found.close()


def visit(found: Any, path: Path, width: int = 1280) -> Visit:
    """Open a page from disk, with the network cut off."""
    context = found.new_context(offline=True, viewport={"width": width, "height": 800})
    one = Visit(context.new_page())
    one.page.on("request", lambda request: one.requests.append(request.url))
    one.page.on("pageerror", lambda error: one.errors.append(str(error)))
    one.page.on(
        "console",
        lambda said: one.errors.append(said.text) if said.type in ("error", "warning") else None,
    )
    one.page.goto(path.resolve().as_uri())
    return one


pytestmark = pytest.mark.skipif(
    executable() is None,
    reason="needs Chromium on the path, or named by MAMBA3_BENCH_CHROMIUM (Debian: chromium)",
)
ROOT = Path(__file__).parents[2] / "reports" / "published"
PUBLISHED = sorted(path.parents[1].name for path in ROOT.glob("*/report/index.html"))


@pytest.fixture(scope="module")
def chromium():
    """One browser for all pages."""
    with browser() as found:
        yield found


@pytest.fixture(scope="module", params=["", *PUBLISHED], ids=lambda name: name or "made up")
def opened(request, chromium):
    """The page of the made-up rows, and every published one."""
    folder = ROOT / request.param / "report"
    if not request.param:
        folder = request.getfixturevalue("report").folder
    return visit(chromium, folder / "index.html")


def test_page_is_quiet(opened):
    """One request, for the page itself from disk; no error and no warning on the console."""
    assert [url.split(":")[0] for url in opened.requests if not url.startswith("data:")] == ["file"]
    assert opened.errors == []


def test_figures_are_drawn(opened):
    """Every image has decoded to something, and has a text for who cannot see it."""
    sizes = opened.page.eval_on_selector_all("figure img", "all => all.map(i => i.naturalWidth)")
    assert len(sizes) >= 3
    assert min(sizes) > 200
    assert all(opened.page.eval_on_selector_all("figure img", "all => all.map(i => i.alt)"))


def test_nothing_overflows_but_tables(opened):
    """The page scrolls one way; what is wide scrolls in its own box."""
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    assert width <= opened.page.viewport_size["width"]


def test_filter_of_rows(opened):
    """Each choice shows its rows and those that have no such dim; the count says so."""
    total = opened.page.locator("#rows tbody tr").count()
    opened.choose()
    assert opened.count("#rows tbody tr") == total
    for select in opened.page.locator("#filter select").all():
        name = select.get_attribute("name")
        shown = 0
        for value in select.locator("option").evaluate_all("all => all.map(o => o.value)")[1:]:
            opened.choose(**{name: value})
            here = opened.count("#rows tbody tr")
            having = opened.page.locator(f'#rows tbody tr[data-{name}="|{value}|"]').count()
            assert having > 0
            assert (
                here == having + opened.page.locator(f"#rows tbody tr:not([data-{name}])").count()
            )
            assert opened.page.locator("#shown").inner_text() == f"{here} of {total} rows"
            shown += having
        assert shown <= total
    opened.choose()


def test_filter_of_figures(chromium, report):
    """A figure goes when what is asked for is not in it: all are of prefill, one of float32."""
    opened = visit(chromium, report.folder / "index.html")
    everything = opened.count("figure")
    for wanted, left in (
        ({"op": "prefill"}, everything),
        ({"op": "decode"}, 0),
        ({"dtype": "float32"}, 1),
        ({"dtype": "float32", "op": "decode"}, 0),
        ({}, everything),
    ):
        opened.choose(**wanted)
        assert opened.count("figure") == left, wanted


def test_a_phone_sees_all_of_it(chromium, report):
    """At 360 pixels nothing runs out of the page, and text is not smaller than 11 pixels."""
    opened = visit(chromium, report.folder / "index.html", width=360)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    size = "getComputedStyle(document.querySelector('#rows td')).fontSize"
    assert float(opened.page.evaluate(size).removesuffix("px")) >= 11


def test_paper_has_no_filter(chromium, report):
    """What cannot be used on paper is not printed; everything else is."""
    opened = visit(chromium, report.folder / "index.html")
    opened.page.emulate_media(media="print")
    assert opened.count("form") == 0
    assert opened.count("#rows tbody tr") == len(report.rows)
    assert opened.page.pdf()[:4] == b"%PDF"
