"""The console in a real browser, over the running demo."""

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from wattmesh_simulators.demo_fleet import free_ports

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """The demo, live, with two homes; ends with Ctrl-C and leaves nothing behind."""
    (port,) = free_ports(1)
    state = tmp_path_factory.mktemp("live") / "demo"
    command = [str(Path(sys.executable).with_name("wattmesh")), "demo", "--state", str(state), "--http-port", str(port)]
    process = subprocess.Popen(
        [*command, "--homes", "2", "--speed", "120"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    began = time.monotonic()
    url = f"http://127.0.0.1:{port}"
    while True:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() - began < 60, "the console has to be there within a minute"
        try:
            with urllib.request.urlopen(f"{url}/api/v1/sites", timeout=5) as answer:
                rows = json.load(answer)["rows"]
            if len(rows) == 2 and all(row["flows"]["grid_w"] is not None for row in rows):
                break
        except OSError:
            pass
        time.sleep(0.2)
    yield url
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "wattmesh: stopped" in out


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield one
        one.close()


@pytest.mark.parametrize(
    ("path", "text"),
    [("/", "home-1"), ("/site/home-1", "Why this power?"), ("/site/nowhere", "There is no such site")],
)
@pytest.mark.parametrize("size", [(1366, 768), (390, 844)], ids=["desk", "phone"])
def test_every_page_opens_without_errors_and_fits(console, browser, path, text, size):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(console + path)
    page.get_by_text(text).first.wait_for(timeout=15_000)
    assert [text for text in errors if "404" not in text] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    page.close()


def test_live_values_change_by_themselves(console, browser):
    page = browser.new_page()
    page.goto(f"{console}/site/home-1")
    reading = page.locator(".tile", has_text="Newest reading").locator(".value")
    page.wait_for_function("() => /[0-9]:[0-9]/.test(document.querySelector('.tiles').innerText)", timeout=20_000)
    before = reading.inner_text()
    page.wait_for_function(
        "before => !document.querySelector('.tiles').innerText.includes(before)", arg=before, timeout=20_000
    )
    assert reading.inner_text() != before
    page.close()
