"""The console in a real browser, over the running demo: every page, both themes and sizes, axe, and everything done by clicking.

Screenshots stay in ``WATTMESH_ARTEFACTS`` (``.wattmesh/screenshots`` where it is not set).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from wattmesh_simulators.demo_fleet import free_ports

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOT = Path(__file__).parents[2]
SHOTS = Path(os.environ.get("WATTMESH_ARTEFACTS", ROOT / ".wattmesh" / "screenshots"))
NODE = Path(os.environ.get("WATTMESH_NODE_PEERS", ROOT / ".wattmesh" / "node"))
AXE = NODE / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGES = {
    "/": "home-1", "/site/home-1": "Why this power?", "/frequency": "Response evidence", "/market": "Positions, exposure",
    "/grid": "Dispatch and delivery", "/agents": "Kill switch", "/lab": "A generator of 15 kW trips", "/devices": "sunspec_battery",
    "/reports": "Energy cost", "/system": "Audit log",
}  # fmt: skip
SIZES = {"desk": (1366, 768), "phone": (390, 844)}


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


@pytest.fixture
def opened(console, browser):
    """Open a page; what its console says that is an error fails the test at its end."""
    contexts, errors = [], []

    def open_page(path, size="desk", scheme="light", **options):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(console + path)
        page.wait_for_selector("body[data-ready]", timeout=20_000)
        return page

    open_page.errors = errors
    yield open_page
    for context in contexts:
        context.close()
    assert errors == [], "a page's console has told errors"


def shot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def name_of(path):
    return path.strip("/").replace("/", "-") or "fleet"


@pytest.mark.parametrize("look", ["desk-light", "desk-dark", "phone-light", "phone-dark"])
def test_every_page_opens_without_errors_fits_and_axe_finds_nothing(opened, look):
    """WCAG 2.2 A and AA by axe-core where it is installed; the page's own policy would not let its script in: it is set aside."""
    size, scheme = look.split("-")
    with_axe = AXE.exists() and look in {"desk-light", "phone-dark"}
    found = []
    for path, text in PAGES.items():
        page = opened(path, size, scheme, bypass_csp=with_axe)
        page.get_by_text(text).first.wait_for(timeout=20_000)
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), f"{path} is too wide"
        shot(page, f"{name_of(path)}-{look}")
        if with_axe:
            page.add_script_tag(path=AXE)
            rules = '{runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}'
            for one in page.evaluate(f"axe.run({rules}).then((found) => found.violations)"):
                found += [
                    f"{path}: {one['id']}: {node['html'][:150]} {node['failureSummary'][:200]}" for node in one["nodes"]
                ]
        page.context.close()
    assert found == []


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed (scripts/test installs it by npm)")
def test_axe_is_there():
    assert AXE.stat().st_size > 100_000


def test_an_unknown_site_and_page_say_what_to_do(console, opened):
    page = opened("/site/nowhere")
    page.get_by_text("There is no such site").wait_for()
    assert page.get_by_role("link", name="To the fleet", exact=True).count() == 1
    page = opened("/nowhere")
    page.get_by_text("There is no such page").wait_for()
    assert all("404" in text for text in opened.errors)
    opened.errors.clear()


def test_live_values_change_by_themselves(opened):
    page = opened("/site/home-1")
    reading = page.locator(".tile", has_text="Newest reading").locator(".value")
    page.wait_for_function("() => /[0-9]:[0-9]/.test(document.querySelector('.tiles').innerText)", timeout=20_000)
    before = reading.inner_text()
    page.wait_for_function(
        "before => !document.querySelector('.tiles').innerText.includes(before)", arg=before, timeout=20_000
    )
    assert reading.inner_text() != before


def test_the_frequency_is_live_at_ten_hertz_or_more(opened):
    page = opened("/frequency")
    rate = page.locator(".tile", has_text="Samples a second").locator(".value")
    page.wait_for_function(
        "() => Number([...document.querySelectorAll('.tile')].find((one) => one.innerText.includes('Samples a second'))"
        ".querySelector('.value').innerText) >= 10",
        timeout=30_000,
    )
    assert float(rate.inner_text()) >= 10
    shot(page, "frequency-live")


def test_an_order_is_placed_by_clicking_and_taken_back(opened):
    page = opened("/market")
    page.get_by_role("button", name="Place an order").click()
    page.get_by_label("Limit, ct/kWh").fill("1.11")
    page.get_by_label("Energy, Wh").fill("321")
    page.get_by_role("button", name="Place", exact=True).click()
    page.get_by_text("The order is accepted").wait_for(timeout=10_000)
    row = page.get_by_role("row", name=re.compile("321 Wh"))
    row.wait_for(timeout=10_000)
    shot(page, "order-placed")
    row.get_by_role("button", name="Cancel").click()
    page.get_by_text("The order is taken back").wait_for(timeout=10_000)


def test_a_demand_response_event_is_called_by_clicking(opened):
    page = opened("/grid")
    page.get_by_role("button", name="Call an event").click()
    page.get_by_label("Less import, kW").fill("2")
    page.get_by_label("How long").select_option("900")
    page.get_by_label("Reason").fill("a test by clicking")
    page.get_by_role("dialog").get_by_role("button", name="Call an event").click()
    page.get_by_text(re.compile("event .* is announced")).wait_for(timeout=10_000)
    page.get_by_role("row", name=re.compile("−2.00 kW")).first.wait_for(timeout=10_000)
    shot(page, "event-called")


def test_a_drill_needs_two_steps(opened):
    page = opened("/grid")
    page.get_by_role("button", name="Drill").click()
    page.get_by_label("Reason").fill("a drill by clicking")
    page.get_by_role("button", name="See what it would do").click()
    page.get_by_label("Type DRILL").fill("drill")
    page.get_by_role("button", name="Start the drill").click()
    page.get_by_text("The word was another one; nothing was done").wait_for(timeout=10_000)
    page.get_by_role("button", name="Drill").click()
    page.get_by_label("Reason").fill("a drill by clicking")
    page.get_by_role("button", name="See what it would do").click()
    page.get_by_label("Type DRILL").fill("DRILL")
    shot(page, "drill-second-step")
    page.get_by_role("button", name="Start the drill").click()
    page.get_by_text("The drill runs").wait_for(timeout=10_000)
    page.get_by_role("button", name="Release").click()
    page.get_by_label("Reason").fill("enough")
    page.get_by_role("dialog").get_by_role("button", name="Go on").click()
    page.get_by_text("It is released").wait_for(timeout=10_000)


def test_a_fault_is_injected_by_clicking_and_seen(opened):
    page = opened("/lab")
    page.get_by_text("A generator of 15 kW trips").wait_for(timeout=15_000)
    page.get_by_label("Site", exact=True).select_option("home-1")
    page.get_by_label("Device", exact=True).select_option("meter")
    page.get_by_label("Fault", exact=True).select_option("silent")
    page.get_by_label("Seconds").fill("5")
    page.get_by_role("button", name="Inject the fault").click()
    page.get_by_role("row", name=re.compile("home-1 meter silent")).wait_for(timeout=10_000)
    shot(page, "fault-injected")
    page.get_by_role("row", name=re.compile("home-1 meter healthy")).wait_for(timeout=20_000)


def test_a_generator_trips_and_the_sites_answer(opened):
    page = opened("/lab")
    page.get_by_role("button", name="Start: A generator of 15 kW trips").click()
    page.get_by_text("Started: A generator of 15 kW trips").wait_for(timeout=10_000)
    page = opened("/frequency")
    event = page.get_by_role("row", name=re.compile("home-1 under frequency")).first
    event.wait_for(timeout=45_000)
    event.click()
    page.get_by_text(re.compile("under frequency at home-")).wait_for(timeout=30_000)
    page.wait_for_timeout(500)
    shot(page, "frequency-event-trace")


def test_what_an_agent_prepares_is_approved_by_clicking(opened):
    page = opened("/agents")
    page.get_by_role("button", name="Prepare demand response for tomorrow's peak").click()
    page.get_by_text("It waits for approval").wait_for(timeout=15_000)
    page.get_by_role("button", name="Approve").first.click()
    page.get_by_label("Note").fill("by clicking")
    page.get_by_role("dialog").get_by_role("button", name="Approve").click()
    page.get_by_text("Approved; it takes effect at the agents' next look").wait_for(timeout=10_000)


def test_the_kill_switch_is_pulled_by_clicking_and_needs_two_steps_back(opened):
    page = opened("/agents")
    page.get_by_role("button", name="Switch all models off").click()
    page.get_by_label("Reason").fill("a test of the switch")
    page.get_by_role("dialog").get_by_role("button", name="Switch all models off").click()
    page.get_by_text("models are off", exact=True).wait_for(timeout=10_000)
    shot(page, "kill-switch")
    page.get_by_role("button", name="Switch on again").click()
    page.get_by_label("Reason").fill("a test of the switch")
    page.get_by_role("dialog").get_by_role("button", name="Switch models on").click()
    page.get_by_label("Type ON").fill("ON")
    page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    page.get_by_role("button", name="Switch all models off").wait_for(timeout=10_000)


def test_a_report_is_written_by_clicking(opened):
    page = opened("/reports")
    page.get_by_role("button", name="Write PDF and CSV").click()
    link = page.get_by_role("link", name=re.compile(r"day-.*\.pdf"))
    link.wait_for(timeout=20_000)
    with page.expect_download() as begun:
        link.click()
    assert begun.value.path().read_bytes().startswith(b"%PDF-")


def test_an_expired_session_is_told_in_place(console, opened):
    page = opened("/")
    page.context.clear_cookies()
    page.route("**/api/v1/**", lambda route: route.fulfill(status=401, json={"detail": "log in first"}))
    page.goto(f"{console}/system")
    page.locator("#banner", has_text="Your session is over").wait_for(timeout=15_000)
    assert page.get_by_role("link", name="Log in again").count() == 1
    opened.errors[:] = [text for text in opened.errors if "401" not in text]


def test_the_keyboard_reaches_everything(opened):
    page = opened("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches(':focus-visible')")


def test_a_cloud_that_dies_is_told_and_the_page_recovers_by_itself(console, opened):
    """The last one: the cloud's process is killed; the demo starts it again, and the page that was open goes on."""
    page = opened("/")
    page.get_by_text("live", exact=True).wait_for(timeout=15_000)
    port = console.rpartition(":")[2]
    (cloud,) = [
        one
        for one in psutil.process_iter(["cmdline"])
        if (line := one.info["cmdline"] or []) and "cloud" in line and "run" in line and _serves(line, port)
    ]
    cloud.kill()
    page.get_by_text("The cloud does not answer. What you see may be old").wait_for(timeout=15_000)
    shot(page, "connection-lost")
    page.get_by_text("live", exact=True).wait_for(timeout=45_000)
    page.wait_for_function("() => document.getElementById('banner').hidden", timeout=10_000)
    refused = (
        "ERR_CONNECTION_REFUSED",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_CONNECTION_RESET",
        "ERR_EMPTY_RESPONSE",
    )
    opened.errors[:] = [text for text in opened.errors if not any(one in text for one in refused)]


def _serves(line, port):
    files = [Path(word) for word in line if word.endswith("cloud.yaml")]
    return any(file.exists() and f"port: {port}" in file.read_text() for file in files)
