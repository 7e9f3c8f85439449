"""The page in a real browser: the slider moves the pictures, tables sort, nothing overflows, the console is clean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_runs import write_run
from hostile import HOSTILE
from PIL import Image

from overopt_bench import report
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


def test_page_works(browser, tmp_path: Path) -> None:
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


def test_at_a_glance_fits_a_page_with_the_four_algorithms_and_nft(browser, tmp_path: Path) -> None:
    for algo in ("ddpo", "alignprop", "tdpo", "tdpo_r", "nft"):
        for proxy in ("imagereward", "jpeg_incompressibility"):
            for seed in range(2):  # for intervals, the widest of what it shows
                write_run(tmp_path / "results", algo, proxy=proxy, seed=seed)
    browser.set_window_size(1300, 1000)
    browser.get(build_report([tmp_path / "results"], tmp_path / "report").as_uri())
    table = browser.find_element("css selector", ".first .scroll")
    assert "[" in table.text and "fall from its peak" in table.text
    assert table.get_property("scrollWidth") == table.get_property("clientWidth")


def everywhere(out: Path) -> None:
    """Runs with each hostile text as proxy, tag, prompt, gold, reason, session, model and folder name."""
    for k, text in enumerate(HOSTILE):
        others = [HOSTILE[(k + shift) % len(HOSTILE)] for shift in range(4)]
        write_run(
            out, "ddpo", proxy=text, tag=text, prompts=others, folder=out / f"{k}", model=" ".join(HOSTILE),
            others={HOSTILE[0]: (0, 1, 2, 1, 0)}, gold=("human", HOSTILE[0]),
            sessions=[{"weights": {}, "git": text}, {"weights": {}, "git": f"other {text}", "queries": 200}],
        )  # fmt: skip
        write_run(out, "ddpo", state="failed", reason=text, folder=out / text.replace("/", "\u2215"))


def test_text_from_records_is_shown_and_never_run(browser, tmp_path: Path, monkeypatch) -> None:
    dot = tmp_path / "report" / "dot.png"
    dot.parent.mkdir()
    Image.new("RGB", (1, 1)).save(dot)
    monkeypatch.setattr(report, "save", lambda *_: dot)  # drawing such names is another test's matter
    everywhere(tmp_path / "results")
    index = build_report([tmp_path / "results"], tmp_path / "report")
    browser.get(index.as_uri())
    visit = """
        const found = new Set();
        const look = () => { for (const e of document.querySelectorAll("td, option, .who, .order, li, p, figcaption"))
            found.add(e.textContent); };
        look();
        for (const button of document.querySelectorAll("th button")) button.click();
        for (const proxy of document.querySelector(".pick-proxy").options) {
            proxy.selected = true;
            proxy.parentNode.dispatchEvent(new Event("change"));
            look();
        }
        for (const e of document.querySelectorAll("*")) for (const kind of ["mouseover", "focus", "click"])
            if (e.tagName !== "A") e.dispatchEvent(new Event(kind));
        return [...found];
    """
    shown = browser.execute_script(visit)
    settings = next(text for text in shown if text.startswith("Settings shared"))
    assert json.loads(settings.split(": ", 1)[1])["model"] == " ".join(HOSTILE)
    for text in HOSTILE:
        assert text in shown, text  # a proxy's cell and option, a prompt's option, a reason's cell
        assert f"ddpo [{text}]" in shown
        assert f"{text}, then other {text} from query 200" in shown
        assert str(tmp_path / "results" / text.replace("/", "\u2215")) in shown
        assert any(f"proxy {text}, " in line for line in shown)
        assert f"Start, peak and end, trained on {text}" in shown
        assert any(line.startswith(f"ddpo [{text}] on {text} (1 seed): ") for line in shown)
    assert browser.execute_script("return window.ran") is None
    strange = "iframe, a, svg, base, body style, body link, body meta, img:not([src^='data:']):not([src^='figures/']), [onerror], [onload]"
    assert browser.execute_script(f'return document.querySelectorAll("{strange}").length') == 0
    assert browser.execute_script("return document.scripts.length") == 2  # the filmstrip's data and the page's own
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_the_policy_stops_what_escaping_would_have_missed(browser, tmp_path: Path) -> None:
    write_run(tmp_path / "results", "ddpo")
    index = build_report([tmp_path / "results"], tmp_path / "report")
    attack = (
        '<script>window.ran = 1</script><img src="x" onerror="window.ran = 2"><p id="styled" style="color: red">x</p>'
        '<iframe srcdoc="<script>parent.ran = 3</script>"></iframe>'
    )
    page = index.read_text(encoding="utf-8")
    index.write_text(page.replace("<h1>", attack + "<h1>", 1), encoding="utf-8")
    browser.get(index.as_uri())
    assert browser.execute_script("return window.ran") is None
    colour = "return getComputedStyle(document.getElementById('styled')).color"
    assert browser.execute_script(colour) != "rgb(255, 0, 0)"
    assert len(browser.find_elements("css selector", ".row .now img")) == 1  # the page's own script and styles work
    key = "return getComputedStyle(document.querySelector('.key')).backgroundColor"
    assert browser.execute_script(key) == "rgb(0, 114, 178)"


def test_a_long_table_is_filtered_and_linked_figures_load(browser, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(report.page, "LONG", 3)
    monkeypatch.setattr(report.page, "ROOM", 0)
    for seed in range(3):
        for algo in ("ddpo", "tdpo_r"):
            write_run(tmp_path / "results", algo, seed=seed)
    browser.get(build_report([tmp_path / "results"], tmp_path / "report").as_uri())
    shown = """
        const table = document.querySelector("#runs details.table"), field = table.querySelector(".filter");
        field.value = "TDPO_R seed1";
        field.dispatchEvent(new Event("input"));
        return [[...table.querySelector("tbody").rows].filter((row) => !row.hidden).length,
                table.querySelector(".count").textContent, table.open];
    """
    assert browser.execute_script(shown) == [1, "1 of 6", False]
    loaded = """
        const done = arguments[0], image = document.querySelector("figure img[src^='figures/']");
        image.loading = "eager";
        image.decode().then(() => done(image.naturalWidth > 0), () => done(false));
    """
    assert browser.execute_async_script(loaded) is True
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
