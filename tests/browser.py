"""A real headless Chromium, driven by ChromeDriver (Debian: chromium and chromium-driver), and what it is asked here."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # CI runs as root
    # Two processes less; and reaping by zygotes held up a busy machine for ten seconds and more (all in the kernel's d_walk, of
    # /proc, Linux 6.18).
    "--no-zygote",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--no-proxy-server",
    "--force-color-profile=srgb",
)

DESKTOP = (1280, 900)
PHONE = (360, 740)


def missing() -> str | None:
    """Why there is no browser here."""
    lacking = [name for name, path in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if path is None]
    if not lacking:
        return None
    return f"no {' and no '.join(lacking)} here: apt-get install chromium chromium-driver"


def require() -> None:
    """Skip without a browser; fail in CI, where one is installed."""
    why = missing()
    if why is not None:
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


@cache
def axe_source() -> str:
    import axe_core_python

    return (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()


class Browser:
    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._dark = False
        self._size = DESKTOP

    def look(self, *, dark: bool = False, size: tuple[int, int] = DESKTOP, still: bool = False) -> None:
        """How the pages are shown from now on."""
        width, height = size
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str) -> None:
        self.driver.get(url)

    def leave(self) -> None:
        """Watch nothing any more, and drop what the console holds."""
        self.driver.get("about:blank")
        self.console()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """What the page shows there; empty while there is nothing."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector))

    def until(self, satisfied: Callable[[], object], *, within: float = 20) -> None:
        end = monotonic() + within
        while not satisfied():
            assert monotonic() < end, f"not within {within} s; the page shows: {self.text('body')[:2000]}"
            sleep(0.05)

    def shows(self, selector: str, text: str, *, within: float = 20) -> None:
        """Wait until the text stands there."""
        self.until(lambda: text in self.text(selector), within=within)

    def press(self, *keys: str) -> None:
        """Keys, by their names in `selenium.webdriver.Keys` or as they are, to whatever has the focus."""
        from selenium.webdriver import ActionChains, Keys

        actions = ActionChains(self.driver)
        for key in keys:
            if key.startswith("SHIFT+"):
                held = getattr(Keys, key.removeprefix("SHIFT+"))
                actions.key_down(Keys.SHIFT).send_keys(held).key_up(Keys.SHIFT)
            else:
                actions.send_keys(getattr(Keys, key, key))
        actions.perform()

    def focused(self) -> str:
        """The id of what has the focus, or its text."""
        return str(self.run("const e = document.activeElement; return e.id || e.innerText || e.tagName"))

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def fill(self, selector: str, text: str) -> None:
        from selenium.webdriver.common.by import By

        field = self.driver.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)

    def console(self) -> list[str]:
        """Errors and warnings of the console since the last look: faults of the script, and what the policy forbade."""
        return [
            f"{line['level']} {line['message']}"
            for line in self.driver.get_log("browser")
            if line["level"] in ("SEVERE", "WARNING")
        ]

    def accessibility(self) -> list[str]:
        """What axe-core finds against WCAG 2.1 A and AA and good practice."""
        self.run(f"if (!window.axe) {{ {axe_source()} }}")
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run(document, {runOnly: {type: 'tag', values: arguments[0]}, resultTypes: ['violations']})"
            ".then(found => done(found.violations), error => done([{id: String(error), nodes: []}]))",
            rules,
        )
        return [
            f"{one['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
            for one in found
            for node in one["nodes"] or [{"html": ""}]
        ]

    def overflow(self) -> list[str]:
        """What reaches beyond the window sideways."""
        return list(
            self.run(
                "const width = document.documentElement.clientWidth;"
                "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.skip') &&"
                " e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML.slice(0, 120))"
            )
        )


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile of its own. Leaves no process behind."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(str(DRIVER))
    try:
        driver = webdriver.Chrome(options=options, service=service)
        try:
            driver.set_page_load_timeout(60)
            driver.set_script_timeout(60)
            yield Browser(driver)
        finally:
            driver.quit()
    finally:
        with suppress(Exception):
            service.stop()
