"""The report and the comparison of real runs, written by the commands and opened in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from spin_components.data.shards import Pair, PairReward, read_rows
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_pipeline.cli import main
from support.playing import begin, play
from support.small import small_settings

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>\u2028 & <b>bold</b>"
SCREENSHOTS = os.environ.get("SPIN_SCREENSHOTS", "")
FLAGS = [
    "--no-sandbox",  # needed when running as root, as in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def settings_of(uri: Path, model: Path, questions: Path, **training: Any) -> Settings:
    """Two iterations of two epochs; 20 questions, 8 more held out."""
    return small_settings(
        uri,
        model,
        questions,
        run={"name": uri.name.split()[0]},
        data={"max_length": 256, "max_prompt_length": 160, "max_train_records": 24},
        spin={"max_iterations": 2, "max_epochs": 2},
        generation={"max_new_tokens": 12},
        training=training,
    )


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, question_file: Path) -> Path:
    """The shared questions, and as many again with markup in both prompt and answer."""
    path = tmp_path_factory.mktemp("hostile") / "questions.jsonl"
    lines = question_file.read_text("utf-8").splitlines()[:20]
    lines += [json.dumps({"prompt": f"Question {i} {HOSTILE}", "response": f"Answer {i} {HOSTILE}"}) for i in range(12)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, questions: Path) -> LocalRun:
    """A run with markup in its data and its address; read-only."""
    return play(settings_of(tmp_path_factory.mktemp("runs") / "tiny <b>run", tiny_llama, questions))


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, questions: Path) -> LocalRun:
    """A run with a lower learning rate and one iteration."""
    settings = settings_of(tmp_path_factory.mktemp("runs") / "slower", tiny_llama, questions, lr=1e-4)
    return play(settings.model_copy(update={"spin": settings.spin.model_copy(update={"max_iterations": 1})}))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The installed Chromium, closed at the end of this module because its event loop blocks the thread."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((executable for name in names if (executable := shutil.which(name))), None)
    if path is None:
        message = f"no browser: none of {', '.join(names)} is installed; on Debian, apt-get install chromium"
        if os.environ.get("SPIN_NEEDS_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """An open page, with its console messages and requests.

    Attributes:
        messages: console messages and errors.
        requested: the address of every request.
    """

    def __init__(self, context: BrowserContext, file: Path) -> None:
        self.page: Page = context.new_page()
        self.messages: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(file.as_uri())

    def faults(self, **options: Any) -> list[str]:
        """Serious and critical findings of axe-core."""
        violations = Axe().run(self.page, options=options or None).response["violations"]
        return [
            f"{fault['impact']}: {fault['id']}: {[node['html'] for node in fault['nodes']]}"
            for fault in violations
            if fault["impact"] in ("serious", "critical")
        ]

    def keep_screenshot(self, name: str) -> None:
        """Save a screenshot if SPIN_SCREENSHOTS is set."""
        if SCREENSHOTS:
            self.page.screenshot(path=f"{SCREENSHOTS}/{name}.png", full_page=True)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    """Opens a file in a new browser context; keyword arguments are those of the context."""
    contexts: list[BrowserContext] = []

    def visit(file: Path, **options: Any) -> Visit:
        contexts.append(browser.new_context(**{"viewport": DESKTOP, **options}))
        return Visit(contexts[-1], file)

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def report(hostile: LocalRun) -> Path:
    return hostile.path(layout.REPORT)


def steps_of(run: LocalRun) -> list[dict[str, Any]]:
    keys = [f"{layout.epoch(t, e)}/metrics.json" for t in (0, 1) for e in (0, 1)]
    return [row for key in keys for row in json.loads(run.path(key).read_text("utf-8"))["steps"]]


def figure(page: Page, title: str) -> Any:
    return page.locator("figure.chart", has=page.locator("figcaption", has_text=title))


def test_the_report_opens_without_console_messages_or_requests(open_page: Any, report: Path) -> None:
    visit = open_page(report)
    assert visit.messages == []
    assert visit.requested == [report.as_uri()]
    page = visit.page
    expect(page.locator("h1")).to_contain_text("base model.")
    # forest, validation, six by step, three of answers; each with marks inside its own bounds
    expect(page.locator("figure.chart svg")).to_have_count(11)
    for chart in page.locator("figure.chart").all():
        marks = chart.locator("path.line, circle[class^=fill], rect, line.whisker")
        assert marks.count() > 0
        box = chart.locator("svg").bounding_box()
        mark = marks.first.bounding_box()
        assert box is not None
        assert mark is not None
        assert box["x"] <= mark["x"] <= box["x"] + box["width"]
        assert "NaN" not in chart.inner_html()
    visit.keep_screenshot("report-desktop-light")


def test_plots_have_a_point_for_every_step_and_keyboard_navigation(
    open_page: Any, report: Path, hostile: LocalRun
) -> None:
    page, rows = open_page(report).page, steps_of(hostile)
    loss = figure(page, "Loss, nats per pair")
    line = loss.locator("path.line").get_attribute("d")
    assert len(re.findall("[ML]", line)) == len(rows) == 18
    assert line.count("M") == 2  # one line for each iteration
    loss.locator("svg").focus()
    page.keyboard.press("End")
    expect(loss.locator("output")).to_have_text(f"step 18 · {rows[-1]['loss']:.3f}")
    page.keyboard.press("ArrowLeft")
    expect(loss.locator("output")).to_have_text(f"step 17 · {rows[-2]['loss']:.3f}")
    page.keyboard.press("Home")
    expect(loss.locator("output")).to_have_text("step 1 · 0.693")
    rewards = figure(page, "Rewards")
    rewards.locator("svg").hover(position={"x": 48, "y": 90})
    expect(rewards.locator("output")).to_contain_text("step 1 · human 0")


def test_samples_are_sorted_filtered_and_opened(open_page: Any, report: Path, hostile: LocalRun) -> None:
    page = open_page(report).page
    rewards = read_rows(hostile.path(layout.rewards(1, 1)), PairReward)
    pairs = {pair.index: pair for pair in read_rows(hostile.path(layout.generations(1, 0)), Pair)}
    margins = {row.index: row.reward_actual - row.reward_generated for row in rewards if row.origin == 1}
    rows, numbers = page.locator(".samples tbody tr"), page.locator(".open-row")
    expect(page.locator(".shown")).to_have_text("1 to 20 of 24 · all 24 pairs")
    head = page.get_by_role("button", name="Margin")
    head.click()
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Margin")
    lowest = sorted(margins, key=lambda index: round(margins[index], 4))
    assert [int(text) for text in numbers.all_text_contents()][:3] == lowest[:3]
    head.click()
    expect(page.locator("th[aria-sort=descending]")).to_have_text("Margin")
    assert [int(text) for text in numbers.all_text_contents()][:3] == lowest[::-1][:3]

    page.get_by_label("Show").select_option("Margin below 0")
    assert rows.count() == sum(margin < 0 for margin in margins.values())
    page.get_by_label("Show").select_option("Truncated")
    expect(page.locator(".shown")).to_contain_text(f"of {sum(p.finish_reason == 'length' for p in pairs.values())} ·")
    page.get_by_label("Show").select_option("All")
    page.get_by_label("Find").fill("question broken")
    num_marked = rows.count()
    assert 0 < num_marked < 20
    page.get_by_label("Find").fill("no such words anywhere")
    expect(page.locator(".shown")).to_contain_text("No matches")
    page.get_by_label("Find").fill("")

    page.get_by_role("button", name="Next").click()
    expect(page.locator(".shown")).to_contain_text("21 to 24 of 24")
    numbers.first.press("Enter")
    expect(numbers.first).to_have_attribute("aria-expanded", "true")
    expect(page.locator("tr.detail h3")).to_contain_text(["Prompt", "Human", "Iteration 0", "Iteration 1"])
    numbers.first.press("Enter")
    expect(page.locator("tr.detail")).to_have_count(0)


def test_markup_in_prompts_answers_and_addresses_is_escaped(open_page: Any, report: Path) -> None:
    visit = open_page(report)
    page = visit.page
    page.get_by_label("Find").fill("question window.broken")
    page.locator(".open-row").first.click()
    # the text is decoded from token ids, including markup and line separator
    expect(page.locator("tr.detail .by-human .text")).to_contain_text(HOSTILE)
    expect(page.locator("tr.detail .prompt-text .text")).to_contain_text(HOSTILE)
    assert "<b>run" in page.locator("#lineage").inner_text()
    assert page.evaluate("window.broken") is None
    assert page.locator("img, main b").count() == 0
    assert visit.messages == []
    assert visit.requested == [report.as_uri()]


def test_the_theme_follows_the_system_until_one_is_chosen(open_page: Any, report: Path) -> None:
    page = open_page(report, color_scheme="dark").page
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert light != dark
    page.get_by_label("Dark").check(force=True)
    assert page.evaluate(background) == dark
    page.reload()
    assert page.evaluate(background) == dark
    page.get_by_label("Auto").check(force=True)
    assert page.evaluate(background) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_width_of_a_phone(open_page: Any, report: Path, scheme: str) -> None:
    visit = open_page(report, viewport=PHONE, color_scheme=scheme)
    page = visit.page
    page.locator(".open-row").first.click()
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    for chart in page.locator("figure.chart svg").all():
        box = chart.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    visit.keep_screenshot(f"report-phone-{scheme}")


def test_axe_finds_no_serious_accessibility_issue(open_page: Any, report: Path) -> None:
    visit = open_page(report)
    visit.page.get_by_label("Find").fill("question broken")  # fewer rows: axe is slow on each
    visit.page.locator(".open-row").first.click()
    visit.page.locator("summary").click()
    assert visit.faults() == []
    visit.page.emulate_media(color_scheme="dark")
    assert visit.faults(runOnly=["color-contrast"]) == []
    visit.keep_screenshot("report-desktop-dark")


def test_runs_are_compared_in_the_terminal_and_as_a_page(
    open_page: Any, hostile: LocalRun, slower: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", hostile.uri, slower.uri, "-o", str(tmp_path / "compare.html")]) == 0
    printed = capsys.readouterr().out
    for setting, values in (("training.lr", "0.001 0.0001"), ("spin.max_iterations", "2 1")):
        assert re.search(rf"{re.escape(setting)} +{values.replace(' ', ' +')}", printed)
    assert "run.uri" not in printed
    assert "Other" not in printed
    best = [run.read_json(layout.BEST)["val_loss"] for run in (hostile, slower)]
    assert re.search(rf"best val_loss +{best[0]:.4f} +{best[1]:.4f}", printed)
    visit = open_page(tmp_path / "compare.html")
    assert visit.messages == []
    assert visit.requested == [(tmp_path / "compare.html").as_uri()]
    expect(visit.page.locator(".lead")).to_contain_text("the same base model, training data and held-out answers")
    expect(visit.page.locator("figure.chart svg")).to_have_count(2)
    expect(figure(visit.page, "Validation loss").locator("circle[class^=fill]:not([visibility])")).to_have_count(5)
    assert visit.faults() == []
    visit.keep_screenshot("compare")


def test_runs_on_other_data_are_compared_with_a_warning(
    hostile: LocalRun, tiny_llama: Path, question_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path / "other", tiny_llama, question_file)
    begin(settings)
    assert main(["compare", hostile.uri, settings.run.uri]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Other training data than tiny: other" in printed
    assert "Other validation data than tiny: other; val_loss was measured on different answers" in printed
    assert "Other base model" not in printed
    assert "No iteration finished yet: other." in printed
    # the report of the unfinished run
    assert main(["report", settings.run.uri]) == 0
    assert "No iteration is finished yet." in (tmp_path / "other" / layout.REPORT).read_text("utf-8")
