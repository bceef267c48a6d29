"""A page that stands alone: in a browser at two widths, by keyboard, and as the text that it is."""

import json
import re
import shutil

import pytest
from page_examples import HARMFUL, example_page

from sim.schedule import LaneKind, MemoryPart, Op, Tier, registered
from traces.page import PageColumn, SortableTable, colours, colours_of, merged, render_page

NAMESPACE = "http://www.w3.org/2000/svg"


def content_of(text):
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)[1])


class TestText:
    def test_what_users_name_stays_text(self):
        text = example_page()
        assert HARMFUL not in text
        content = content_of(text)
        assert content["title"] == f"Model {HARMFUL}"
        assert content["sections"][0]["rows"][1][0] == HARMFUL
        assert text.count("</script>") == 2

    def test_placeholders_in_what_is_put_in_are_not_filled(self):
        text = render_page("{{js}} {{content}}", ("{{css}}",), [])
        assert content_of(text)["summary"] == ["{{css}}"]
        assert "<title>{{js}} {{content}}</title>" in text

    def test_nothing_is_asked_of_a_network(self):
        text = example_page("a title")
        assert set(re.findall(r"https?://[^\"' ]+", text)) == {NAMESPACE}
        assert "default-src 'none'" in text

    def test_numbers_are_as_exact_as_they_are_shown(self):
        table = SortableTable("t", (PageColumn("n", 2),), ((1234.56789,), (1 / 3,), (None,)))
        assert content_of(render_page("t", (), [table]))["sections"][0]["rows"] == [[1234.57], [0.333333], [None]]

    def test_what_is_no_number_in_json_is_no_page(self):
        with pytest.raises(ValueError, match="JSON"):
            render_page("t", (), [SortableTable("t", (PageColumn("n", 2),), ((float("nan"),),))])


class TestBars:
    def test_of_one_op_side_by_side_are_one(self):
        bars = [("Attn", 0.0, 1.0), ("Attn", 1.0, 1.0), ("Experts", 2.0, 1.0), ("Attn", 3.0, 1.0)]
        assert merged(bars, 4.0) == [("Attn", 0.0, 2.0), ("Experts", 2.0, 1.0), ("Attn", 3.0, 1.0)]

    def test_a_gap_that_is_seen_stays(self):
        assert len(merged([("Attn", 0.0, 1.0), ("Attn", 1.01, 1.0)], 4.0)) == 2

    def test_no_time_is_lost_by_bars_within_others(self):
        assert merged([("Attn", 0.0, 3.0), ("Attn", 1.0, 1.0)], 4.0) == [("Attn", 0.0, 3.0)]


class TestColours:
    @pytest.mark.parametrize(
        ("kind", "things"),
        [("ops", Op), ("lanes", LaneKind), ("memories", Tier), ("parts", MemoryPart), ("schedules", registered())],
    )
    def test_everything_of_a_kind_has_one(self, kind, things):
        assert {str(one) for one in things} <= set(colours(kind))

    @pytest.mark.parametrize("kind", ["lanes", "memories", "parts", "schedules"])
    def test_no_two_have_the_same(self, kind):
        assert len(set(colours(kind).values())) == len(colours(kind))

    def test_are_the_same_whatever_stands_beside(self):
        alone, together = colours_of("schedules", ["zero"]), colours_of("schedules", ["mine", "zero", "cgopipe"])
        assert alone["zero"] == together["zero"] == colours("schedules")["zero"]
        assert len(set(together.values())) == 3


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open the page, and fail if its script complained or anything was asked for."""
    file = tmp_path / "page.html"
    file.write_text(example_page(), encoding="utf-8")
    complaints, asked, pages = [], [], []

    def open_page(width=1400, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []
    assert {url for url in asked if not url.startswith(("file:", "data:"))} == set()


class TestInABrowser:
    @pytest.mark.parametrize("width", [400, 1400])
    def test_nothing_is_wider_than_the_window_and_no_name_is_run(self, opened, width):
        page = opened(width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title() == f"Model {HARMFUL}"
        assert page.locator("main img").count() == 0
        assert page.locator("main h2").all_inner_texts() == ["Schedules", "Memory", "A layer", "What if", "Command"]

    def test_all_of_it_by_keyboard(self, opened):
        page = opened()

        def press_until(wanted, key="Tab"):
            for _ in range(60):
                page.keyboard.press(key)
                if page.evaluate(wanted):
                    return
            raise AssertionError(f"{wanted} is not reached")

        press_until("document.activeElement.textContent === 'tokens/s'")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Enter")
        cells = page.locator("tbody tr td:nth-child(2)")
        assert cells.all_inner_texts() == ["10.00", "9.00", "2.50"]
        page.keyboard.press("Space")
        assert cells.all_inner_texts() == ["2.50", "9.00", "10.00"]
        assert page.locator("th[aria-sort='ascending']").inner_text().startswith("tokens/s")
        press_until("document.activeElement.type === 'checkbox'")
        before = page.locator(".axis").nth(1).inner_text()
        page.keyboard.press("Space")
        assert (before.split()[-2:], page.locator(".axis").nth(1).inner_text().split()[-2:]) == (
            ["5", "ms"],
            ["1", "ms"],
        )
        press_until("document.activeElement.type === 'range'")
        assert page.locator(".answer .value").all_inner_texts() == ["2.0 tokens/s", "b"]
        page.keyboard.press("End")
        assert page.locator(".answer .value").all_inner_texts() == ["4.0 tokens/s", "b"]
        press_until("document.activeElement.textContent === 'Back to the plan'")
        page.keyboard.press("Enter")
        assert page.locator(".answer .value").first.inner_text() == "2.0 tokens/s"

    def test_between_points_it_interpolates_and_says_so(self, opened):
        page = opened()
        slider = page.locator("input[type=range]").first
        assert "was simulated" in page.locator(".note", has_text="simulated").last.inner_text()
        slider.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.locator(".answer .value").first.inner_text() == "3.0 tokens/s"
        assert slider.get_attribute("aria-valuetext") == "30 GB/s"
        assert page.locator("text=Interpolated between 2 simulated points").count() == 1

    def test_beside_a_point_without_an_answer_there_is_none(self, opened):
        page = opened()
        link, requests = (page.locator("input[type=range]").nth(at) for at in (0, 1))
        link.focus()
        page.keyboard.press("Home")
        requests.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator(".answer").inner_text() == "Nothing fits."

    def test_light_dark_and_print(self, opened):
        page = opened(color_scheme="dark")
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(ground)
        page.locator("#theme").click()
        light = page.evaluate(ground)
        assert (dark, light) == ("rgb(20, 24, 31)", "rgb(255, 255, 255)")
        page.locator("#theme").click()
        page.emulate_media(media="print")
        assert page.evaluate(ground) == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible()
