"""A headless Chromium for tests of the page, where one is installed; nothing is fetched to get one."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

FLAGS = """
--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars
""".split()
SCREENSHOTS = "SKILLNEURONS_SCREENSHOTS"
"""Names a folder to keep screenshots in; CI prints it."""


def missing():
    """What is missing for a browser to start, or nothing."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    found = {name: _path(name) for name in ("chromium", "chromedriver")}
    lacking = [name for name, path in found.items() if path is None]
    return f"no {' and no '.join(lacking)} is installed" if lacking else ""


def _path(name):
    names = {"chromium": ("chromium", "chromium-browser", "google-chrome")}.get(name, (name,))
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def opened(profile):
    """A browser with a fresh profile in the folder ``profile``."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _path("chromium")
    for flag in [*FLAGS, f"--user-data-dir={profile}", "--window-size=1200,1600"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_path("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def look(driver, *, dark=False, width=1200, height=1600):
    """Set what the page is told of the screen."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def keep_screenshot(driver, name, folder):
    """Write what is seen, into the folder that the environment names or into ``folder``; its path."""
    where = Path(os.environ.get(SCREENSHOTS) or folder)
    where.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(where / f"{name}.png"))
    return where / f"{name}.png"
