"""The page Label in a browser, by keys or with the mouse, with a model and without one."""

import csv
import io
import re
import shutil
import socket
import threading
from pathlib import Path

import pytest
import uvicorn

from urnet.serve.app import create_app
from urnet.serve.cell_images import CellImages
from urnet.serve.database.labels import Labeller
from urnet.serve.database.names import MAX_NAME_LENGTH
from urnet.serve.database.store import Store
from urnet.serve.pages.components.keyboard import assign_keys
from urnet.serve.services import Services
from urnet.serve.settings import Settings


@pytest.fixture(autouse=True)
def all_cells_free(request):
    """Release the cells that browsers of earlier tests have claimed."""
    if "open_page" in request.fixturenames:
        request.getfixturevalue("server_store").labels.release_all()


def begin(open_page, name, **more):
    page = open_page("/label", **more)
    page.get_by_label("Name", exact=True).fill(name)
    page.keyboard.press("Enter")
    page.wait_for_selector(".picture img")
    return page


def at(page) -> str:
    return page.locator("[data-keys]").get_attribute("data-cell")


def press(page, key) -> None:
    before = at(page)
    page.keyboard.press(key)
    page.wait_for_function("before => document.querySelector('[data-keys]').dataset.cell !== before", arg=before)


def exported(page, server_url) -> dict[str, str]:
    table = csv.DictReader(io.StringIO(page.request.get(f"{server_url}/label/cells.csv").text()))
    return {row["path"]: row["label"] for row in table}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280, 2560])
def test_label_is_accessible_at_every_width(open_page, axe, width, scheme):
    page = begin(open_page, "Zoe", width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_by_role("button", name="bar").get_attribute("aria-keyshortcuts") == "1"
    assert axe(page) == []


@pytest.mark.slow
def test_labels_by_keys_undo_and_export(open_page, server_url):
    page = begin(open_page, "Ada")
    message = page.get_by_role("status")
    first = at(page)
    press(page, "2")
    assert message.inner_text() == "Labelled disc. Next cell."
    second = at(page)
    press(page, "s")
    press(page, "n")
    assert message.inner_text() == "Labelled not a cell. Next cell."
    assert list(exported(page, server_url).values()) == ["disc"]
    press(page, "u")
    press(page, "u")
    assert at(page) == second
    press(page, "u")
    assert at(page) == first
    assert exported(page, server_url) == {}
    press(page, "1")
    page.reload()
    page.wait_for_selector(".picture img")
    assert at(page) == second
    page.get_by_role("button", name="ring").click()
    page.wait_for_function("was => document.querySelector('[data-keys]').dataset.cell !== was", arg=second)
    assert sorted(exported(page, server_url).values()) == ["bar", "ring"]
    page.wait_for_function("document.querySelector('.side').innerText.includes('2 by you')")


@pytest.mark.slow
def test_shortcuts_can_be_turned_off(open_page):
    page = begin(open_page, "Eve")
    before = at(page)
    page.get_by_label("Keyboard shortcuts").uncheck()
    page.keyboard.press("1")
    page.wait_for_timeout(400)
    assert at(page) == before
    page.get_by_label("Keyboard shortcuts").check()
    press(page, "1")


@pytest.mark.slow
def test_lost_connection_is_restored_at_the_same_cell(open_page):
    page = begin(open_page, "Flo")
    press(page, "1")
    before = at(page)
    page.evaluate("window.socket.io.engine.close()")
    page.wait_for_function("!window.socket.connected")
    page.wait_for_function("window.socket.connected")
    assert at(page) == before
    press(page, "2")
    press(page, "u")
    assert at(page) == before


@pytest.mark.slow
def test_two_labellers_get_different_cells_and_see_their_agreement(open_page, browser):
    one, two = begin(open_page, "Ida"), begin(open_page, "Ben")
    open_cells = set()
    for key in ("1", "2", "1", "2"):
        assert at(one) != at(two)
        open_cells |= {at(one)}
        press(one, key)
    new = at(two)
    two.get_by_label("Second reader").check()
    two.wait_for_function("was => document.querySelector('[data-keys]').dataset.cell !== was", arg=new)
    while open_cells:  # others may have labelled cells that come before
        open_cells -= {at(two)}
        press(two, "1")
    two.wait_for_function("document.querySelector('.side').innerText.includes('Ben, Ida')")
    row = two.locator(".side tbody tr", has_text="Ben, Ida")
    assert row.count() == 1
    assert re.search(r"\d+%", row.inner_text())


def tab(page, open_page):
    """Open another tab of a browser with a signed-in user."""
    made = open_page("/label", context=page.context)
    made.wait_for_selector(".picture img")
    return made


@pytest.mark.slow
def test_two_browsers_under_one_name_get_different_cells(open_page):
    one, two = begin(open_page, "Gil"), begin(open_page, "Gil")
    for key in ("1", "2", "1"):
        assert at(one) != at(two)
        press(one, key)
        press(two, key)
    before = at(two)
    two.keyboard.press("u")  # what was given in this browser, not in the other
    two.wait_for_function("was => document.querySelector('[data-keys]').dataset.cell !== was", arg=before)
    assert two.get_by_role("status").inner_text() == "Undone: bar. Next cell."


@pytest.mark.slow
def test_replaced_label_is_reported(open_page):
    one = begin(open_page, "Hal")
    two = tab(one, open_page)
    cell = at(one)
    assert at(two) == cell  # tabs of one browser share their cells
    press(one, "1")
    press(two, "2")
    message = two.get_by_role("status").inner_text()
    assert re.fullmatch(r"Labelled disc\. This replaces your label bar of .. ... 20.. ..:.. UTC\. Next cell\.", message)
    press(two, "u")
    assert at(two) == cell


@pytest.mark.slow
def test_full_disk_is_reported_and_the_cell_stays(open_page, server_url, disk_full):
    page = begin(open_page, "Kim")
    press(page, "1")
    cell, before = at(page), exported(page, server_url)
    with disk_full():
        for key, words in (("2", "Not saved: "), ("u", "Not undone: ")):
            page.keyboard.press(key)
            page.wait_for_function("w => document.querySelector('[role=status]').innerText.startsWith(w)", arg=words)
            assert "make room" in page.get_by_role("status").inner_text()
            assert at(page) == cell
            assert page.locator(".picture img").first.is_visible()
        page.get_by_label("Second reader").check()
        page.wait_for_function("document.querySelector('[role=status]').innerText.includes('make room')")
        page.get_by_label("Unlabelled cells").check()
        page.wait_for_timeout(200)
        assert at(page) == cell
    assert exported(page, server_url) == before
    press(page, "2")
    assert page.get_by_role("status").inner_text() == "Labelled disc. Next cell."


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_hostile_names_are_shown_as_text_and_cut(open_page, axe, server_store, shapes, width):
    hostile = "<img src=x onerror=alert(1)>\u202egnp\x1b[31m"
    labelling, queue = server_store.labels, shapes.resolve().as_posix()
    other = Labeller("Mal" + hostile + "x" * 1000, "elsewhere")
    (cell,) = labelling.claim(queue, other)
    labelling.label(cell.id, other, hostile + "x" * 20_000)
    page = open_page("/label", width=width)
    page.wait_for_selector("dialog[open]")
    page.evaluate(
        """(name) => {
        document.querySelector('dialog input').value = name;
        document.querySelector('dialog form').requestSubmit();
    }""",
        hostile + "y" * 500_000,
    )
    page.wait_for_selector(".picture img")
    press(page, "1")
    page.wait_for_function("document.querySelector('.side').innerText.includes('1 by you')")
    assert page.inner_text("button.user").startswith("<img src=x onerror=alert(1)>gnp[31myyy")
    assert len(page.inner_text("button.user")) == MAX_NAME_LENGTH
    page.wait_for_function("document.querySelector('.side').innerText.includes('<img src=x')")
    seen = page.inner_text("body")
    assert "\u202e" not in seen
    assert len(seen) < 20_000
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert axe(page) == []
    labelling.undo(queue, other)


@pytest.mark.slow
def test_unknown_cells_are_refused(open_page, server_url):
    page = open_page("/label")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelector('[role=status]').innerText.startsWith('Sign in')")
    for address in ("/label/cell/x/99999/crop", "/label/cell/x/1/..%2f..%2fetc", "/label/cell/x/a/crop"):
        assert page.request.get(server_url + address).status in (404, 422)


def test_each_class_has_its_own_key():
    keys = assign_keys([f"class {k}" for k in range(15)])
    assert len(keys) == 16
    assert keys["1"] == "class 0"
    assert not set(keys) & set("csu")
    assert keys["n"] == "not a cell"


@pytest.fixture
def url_without_model(shapes, pages, tmp_path):
    """Serve cells to label without a model, in this process."""
    store = Store(tmp_path / "labels.db")
    cells = Path(shutil.copytree(shapes, tmp_path / "cells"))
    images = CellImages.open(cells)
    store.labels.add_cells(images.name, images.queue_rows())
    services = Services(Settings(), store=store, images=images)
    server = uvicorn.Server(uvicorn.Config(create_app(services, pages=pages), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_labels_without_a_model(url_without_model, browser, axe, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(f"{url_without_model}/label")
    page.get_by_label("Name", exact=True).fill("Ada")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Add the classes of your cells")
    for name, key in (("bar", "1"), ("disc", "2")):
        page.get_by_label("New class").fill(name)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"[aria-keyshortcuts='{key}'] >> text={name}")
    page.get_by_label("New class").fill("BAR")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=alert] >> text=given twice")
    page.get_by_label("Keyboard shortcuts").focus()
    press(page, "1")
    press(page, "1")
    assert page.get_by_role("status").inner_text() == "Labelled bar. Next cell."
    page.wait_for_selector("text=2 labels")
    assert page.get_by_role("button", name="Remove class bar").count() == 0
    page.get_by_label("Name of class bar").fill("rod")
    page.keyboard.press("Enter")
    page.wait_for_selector("[aria-keyshortcuts='1'] >> text=rod")
    page.get_by_role("button", name="Remove class disc").click()
    page.wait_for_selector("[aria-keyshortcuts='2']", state="detached")
    assert set(exported(page, url_without_model).values()) == {"rod"}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert axe(page) == []
    for path in ("/", "/review", "/runs", "/about"):
        page.goto(url_without_model + path)
        page.wait_for_selector("text=This page needs a model")
    assert axe(page) == []
    refused = page.request.post(f"{url_without_model}/classify")
    assert (refused.status, refused.json()["code"]) == (503, "server.no_model")
    page.close()


@pytest.mark.slow
def test_changes_of_classes_in_two_browsers_are_all_kept_and_never_change_a_label(url_without_model, browser):
    pages = [browser.new_page(), browser.new_page()]
    for page, name in zip(pages, ("Ada", "Ben"), strict=True):
        page.goto(f"{url_without_model}/label")
        page.get_by_label("Name", exact=True).fill(name)
        page.keyboard.press("Enter")
        page.wait_for_selector(".picture img")
    for page, name in ((pages[0], "bar"), (pages[1], "disc"), (pages[0], "ring")):  # neither waits for the other
        page.get_by_label("New class").fill(name)
        page.keyboard.press("Enter")
    for page in pages:
        page.wait_for_selector("[aria-keyshortcuts='3'] >> text=ring")
        assert page.locator("[aria-keyshortcuts='1']").inner_text().split() == ["1", "bar"]
    one, two = pages
    shown = two.locator("[data-keys]")
    pressed = ["1", shown.get_attribute("data-cell"), shown.get_attribute("data-version")]
    one.get_by_role("button", name="Remove class bar").click()
    two.wait_for_selector("[aria-keyshortcuts='1'] >> text=disc")
    two.evaluate("(pressed) => emitEvent('urnet_key', pressed)", pressed)  # a key that was on its way
    two.wait_for_selector("[role=status] >> text=the classes have changed")
    assert exported(two, url_without_model) == {}
    two.get_by_label("Keyboard shortcuts").focus()
    press(two, "1")
    assert set(exported(two, url_without_model).values()) == {"disc"}
    for page in pages:
        page.close()


@pytest.mark.slow
def test_a_cell_that_cannot_be_read_gets_no_class(url_without_model, browser, tmp_path):
    crops = {path: path.read_bytes() for path in (tmp_path / "cells").rglob("*.png")}
    for path in crops:
        path.write_bytes(b"")
    page = browser.new_page()
    page.goto(f"{url_without_model}/label")
    page.get_by_label("Name", exact=True).fill("Ada")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=alert] >> text=the file is empty")
    page.get_by_label("New class").fill("bar")
    page.keyboard.press("Enter")
    page.wait_for_selector("[aria-keyshortcuts='1'] >> text=bar")
    page.get_by_label("Keyboard shortcuts").focus()
    page.keyboard.press("1")
    page.wait_for_selector("[role=status] >> text=Not saved: this cell cannot be read")
    press(page, "s")
    for path, content in crops.items():  # the drive is connected again
        path.write_bytes(content)
    press(page, "1")
    assert list(exported(page, url_without_model).values()) == ["bar"]
    press(page, "1")
    assert page.get_by_text("cannot be read").count() == 0
    page.close()
