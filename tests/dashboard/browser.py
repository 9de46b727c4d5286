"""Debian's chromium, driven by Playwright over a dashboard that is really served; and what a page may never do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.conftest import REQUIRE_SERVICES

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000  # on a machine that is busy with much else
SCREENSHOTS = os.environ.get("ADAPTIDE_TEST_SCREENSHOTS")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; the test is skipped, or fails where services are required, without one."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        path = None
    if path is None:
        reason = "no chromium here, or no Playwright: apt-get install chromium, pip install playwright"
        if REQUIRE_SERVICES:
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def _few_colours(picture: Image.Image) -> Image.Image:
    """A quarter of the size that looks the same: the most frequent colours as they are, the rare ones nearly."""
    frequent = sorted(picture.getcolors(1 << 24) or [], reverse=True)[:160]
    spread = picture.quantize(96, Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for _, colour in frequent for channel in colour] + spread[: 3 * 96])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


class Watched:
    """A page of a browser, and all that it complained about or asked elsewhere."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(viewport=options.pop("viewport", DESKTOP), **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)

    def _heard(self, message: Any) -> None:
        # A refused request is the test's own doing; what the content policy blocks never is.
        if message.type == "error" and "Failed to load resource" not in message.text:
            if "Response Status Error Code" not in message.text:
                self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.elsewhere.append(request.url)

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)

    def log_in(self, token: str) -> None:
        self.open("/dashboard")
        self.page.get_by_label("API key").fill(token)
        self.page.get_by_role("button", name="Log in").click()
        self.page.get_by_role("heading", name="Overview").wait_for()

    def wide(self) -> int:
        """How many pixels the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def shot(self, name: str, **options: Any) -> None:
        """A picture for the documentation, where ADAPTIDE_TEST_SCREENSHOTS names a folder."""
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            path = Path(SCREENSHOTS) / f"{name}.png"
            self.page.screenshot(path=path, **options)
            with Image.open(path) as picture:
                _few_colours(picture.convert("RGB")).save(path, optimize=True)

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []
        assert self.elsewhere == []


FAINT = """() => {
  const channel = (value) => {
    value /= 255;
    return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => {
    const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a === undefined ? 1 : a];
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const found = parse(getComputedStyle(one).backgroundColor);
      if (found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || element.closest("svg, .unseen, .skip")) continue;
    const [text, back] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
    const said = element.textContent.trim().slice(0, 30);
    if (contrast < 4.5) faint.push(`${element.className || element.tagName} ${contrast.toFixed(2)} ${said}`);
  }
  return faint;
}"""
"""Texts whose contrast is below WCAG AA's 4.5 to 1."""
