"""The page in a real browser: ask, compare, see the user, change the version."""

import shutil
import socket
import threading
import time

import pytest
import uvicorn

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
MOST_SECONDS = 20  # of an answer on a busy machine that compiles


@pytest.fixture
def address(app):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def browser():
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield browser
        browser.close()


def test_a_journey(address, browser, shop, engine, tmp_path):
    items = engine.current.version.catalogue.table["item_id"].to_pylist()
    shop.put_users({"ann": {"city": "Oslo"}})
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(1000 * MOST_SECONDS)
    page.goto(address)
    first = page.locator("form.column").nth(0)
    first.get_by_role("combobox", name="User").fill("ann")
    first.get_by_label("Instruction").fill("something for tea")
    first.get_by_role("spinbutton").fill("4")
    first.get_by_label("Instruction").press("Enter")  # by keyboard alone
    first.locator(".cards li").nth(3).wait_for()
    assert first.locator(".cards li").count() == 4
    assert "4 items, computed" in first.get_by_role("status").inner_text()
    facts = first.locator(".facts").first.inner_text()
    assert "probability" in facts and "cosine" in facts
    first.locator("summary").click()
    first.get_by_text("city: Oslo").wait_for()

    page.get_by_role("button", name="Compare two side by side").click()
    second = page.locator("form.column").nth(1)
    second.get_by_role("combobox", name="User").fill("nobody")
    second.get_by_role("button", name="Read the index").click()
    second.locator(".cards li").first.wait_for()
    assert "popular items" in second.get_by_role("status").inner_text()
    page.screenshot(path=tmp_path / "page.png", full_page=True)

    row = page.locator("#versions tr")
    assert row.count() == 1 and "active" in row.inner_text()
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("no version was active before").wait_for()
    page.get_by_text("the service answers").wait_for()
    assert page.locator("#live dd").count() == 6
    assert not errors and len(items) > 0


def test_a_phone_needs_no_sideways_scrolling(address, browser, tmp_path):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(address)
    page.get_by_role("button", name="Compute now").click()
    page.locator(".cards li").first.wait_for(timeout=1000 * MOST_SECONDS)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    page.screenshot(path=tmp_path / "phone.png")
