"""The README's pictures of a report, light and dark: `python tests/benchmarks/screenshot.py RUN/report/index.html`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[2] / "docs/images"
PICTURES: dict[Literal["light", "dark"], str] = {"light": "report.png", "dark": "report-dark.png"}


def main(report: Path) -> None:
    """Take the top of the page: the verdict."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1120, "height": 616})
        page.goto(report.resolve().as_uri())
        for scheme, name in PICTURES.items():
            page.emulate_media(color_scheme=scheme)
            page.locator("#steps svg").first.wait_for()
            page.screenshot(path=IMAGES / name)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
