"""The page in a real browser: the slider moves the pictures, tables sort, nothing overflows, the console is clean."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_runs import write_run

from overopt_bench.report import build_report

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None,
        reason="needs chromium and chromedriver",
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[object]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_page_works(browser, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for seed in range(3):
        for algo in ("ddpo", "tdpo_r"):
            write_run(tmp_path / "results", algo, seed=seed)
    index = build_report([tmp_path / "results"], tmp_path / "report")
    browser.get(index.as_uri())

    def now() -> list[str]:
        return [image.get_attribute("src") for image in browser.find_elements("css selector", ".row .now img")]

    before = now()
    assert len(before) == 2 and "0 queries" in browser.find_element("css selector", ".where").text
    browser.execute_script(
        "const s = document.querySelector('.budget'); s.value = s.max; s.dispatchEvent(new Event('input', {bubbles: true}));"
    )
    assert "400 queries" in browser.find_element("css selector", ".where").text
    assert all(a != b for a, b in zip(before, now(), strict=True))

    table = browser.find_element("css selector", "table.sortable")
    head = table.find_element("css selector", "th:nth-child(2) button")
    head.click(), head.click()
    cells = [c.text for c in table.find_elements("css selector", "tbody td:nth-child(2)")]
    assert cells == sorted(cells, reverse=True)

    for width in (1400, 390):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
