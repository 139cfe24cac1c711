"""Labelling as people do it, by keys alone or with the mouse."""

import csv
import io
import re

import pytest

from urnet.serve.database.labels import Labeller
from urnet.serve.database.names import MAX_NAME_LENGTH
from urnet.serve.pages.components.keyboard import class_keys


@pytest.fixture(autouse=True)
def all_cells_free(request):
    """Give back the cells of browsers of earlier tests, which hold theirs for some minutes."""
    if "open_page" in request.fixturenames:
        request.getfixturevalue("server_store").labels.release_all()


def begin(open_page, name, **more):
    page = open_page("/label", **more)
    page.get_by_label("Name", exact=True).fill(name)
    page.keyboard.press("Enter")
    page.wait_for_selector(".picture img")
    return page


def at(page) -> str:
    return page.locator("[data-keys]").get_attribute("data-at")


def press(page, key) -> None:
    before = at(page)
    page.keyboard.press(key)
    page.wait_for_function("before => document.querySelector('[data-keys]').dataset.at !== before", arg=before)


def exported(page, server_url) -> dict[str, str]:
    table = csv.DictReader(io.StringIO(page.request.get(f"{server_url}/label/cells.csv").text()))
    return {row["path"]: row["label"] for row in table}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280, 2560])
def test_it_is_legible_at_every_width(open_page, axe, width, scheme):
    page = begin(open_page, "Zoe", width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_by_role("button", name="bar").get_attribute("aria-keyshortcuts") == "1"
    assert axe(page) == []


def test_labels_are_given_by_keys_taken_back_and_go_into_a_table(open_page, server_url):
    page = begin(open_page, "Ada")
    said = page.get_by_role("status")
    first = at(page)
    press(page, "2")
    assert said.inner_text() == "Labelled disc. Next cell."
    second = at(page)
    press(page, "s")
    press(page, "n")
    assert said.inner_text() == "Labelled not a cell. Next cell."
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
    page.wait_for_function("was => document.querySelector('[data-keys]').dataset.at !== was", arg=second)
    assert sorted(exported(page, server_url).values()) == ["bar", "ring"]
    page.wait_for_function("document.querySelector('.state').innerText.includes('2 by you')")


def test_keys_can_be_turned_off_and_do_nothing_in_fields(open_page):
    page = begin(open_page, "Eve")
    before = at(page)
    page.get_by_label("Keys work").uncheck()
    page.keyboard.press("1")
    page.wait_for_timeout(400)
    assert at(page) == before
    page.get_by_label("Keys work").check()
    press(page, "1")


def test_a_lost_connection_comes_back_where_it_was(open_page):
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


def test_two_never_get_the_same_cell_and_see_how_far_they_agree(open_page, browser):
    one, two = begin(open_page, "Ida"), begin(open_page, "Ben")
    mine = set()
    for key in ("1", "2", "1", "2"):
        assert at(one) != at(two)
        mine |= {at(one)}
        press(one, key)
    new = at(two)
    two.get_by_label("Read by one other").check()
    two.wait_for_function("was => document.querySelector('[data-keys]').dataset.at !== was", arg=new)
    while mine:  # others may have labelled cells that come before
        mine -= {at(two)}
        press(two, "1")
    two.wait_for_function("document.querySelector('.state').innerText.includes('Ben, Ida')")
    row = two.locator(".state tbody tr", has_text="Ben, Ida")
    assert row.count() == 1
    assert re.search(r"\d+%", row.inner_text())


def tab(page, open_page):
    """Another tab of a browser in which somebody has said their name."""
    made = open_page("/label", context=page.context)
    made.wait_for_selector(".picture img")
    return made


def test_two_browsers_under_one_name_get_different_cells(open_page):
    one, two = begin(open_page, "Gil"), begin(open_page, "Gil")
    for key in ("1", "2", "1"):
        assert at(one) != at(two)
        press(one, key)
        press(two, key)
    before = at(two)
    two.keyboard.press("u")  # what was given in this browser, not in the other
    two.wait_for_function("was => document.querySelector('[data-keys]').dataset.at !== was", arg=before)
    assert two.get_by_role("status").inner_text() == "Taken back: bar. Next cell."


def test_a_label_that_replaces_another_is_told(open_page):
    one = begin(open_page, "Hal")
    two = tab(one, open_page)
    cell = at(one)
    assert at(two) == cell  # tabs of one browser share their cells
    press(one, "1")
    press(two, "2")
    said = two.get_by_role("status").inner_text()
    assert re.fullmatch(
        r"Labelled disc\. It replaces your earlier label bar given at .. ... 20.. ..:.. UTC\. Next cell\.", said
    )
    press(two, "u")
    assert at(two) == cell


def test_a_full_disk_is_told_and_the_cell_stays(open_page, server_url, disk_full):
    page = begin(open_page, "Kim")
    press(page, "1")
    cell, before = at(page), exported(page, server_url)
    with disk_full():
        for key, words in (("2", "Not kept: "), ("u", "Not taken back: ")):
            page.keyboard.press(key)
            page.wait_for_function("w => document.querySelector('[role=status]').innerText.startsWith(w)", arg=words)
            assert "make room" in page.get_by_role("status").inner_text()
            assert at(page) == cell
            assert page.locator(".picture img").first.is_visible()
        page.get_by_label("Read by one other").check()
        page.wait_for_function("document.querySelector('[role=status]').innerText.includes('make room')")
        page.get_by_label("New ones").check()
        page.wait_for_timeout(200)
        assert at(page) == cell
    assert exported(page, server_url) == before
    press(page, "2")
    assert page.get_by_role("status").inner_text() == "Labelled disc. Next cell."


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
    page.wait_for_function("document.querySelector('.state').innerText.includes('1 by you')")
    assert page.inner_text("button.person").startswith("<img src=x onerror=alert(1)>gnp[31myyy")
    assert len(page.inner_text("button.person")) == MAX_NAME_LENGTH
    page.wait_for_function("document.querySelector('.state').innerText.includes('<img src=x')")
    seen = page.inner_text("body")
    assert "\u202e" not in seen
    assert len(seen) < 20_000
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert axe(page) == []
    labelling.undo(queue, other)


def test_a_cell_and_a_table_are_asked_for_by_number_only(open_page, server_url):
    page = open_page("/label")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelector('[role=status]').innerText.startsWith('Say your name')")
    for address in ("/label/cell/x/99999/crop", "/label/cell/x/1/..%2f..%2fetc", "/label/cell/x/a/crop"):
        assert page.request.get(server_url + address).status in (404, 422)


def test_each_class_has_a_key_of_its_own():
    keys = class_keys([f"class {k}" for k in range(15)])
    assert len(keys) == 16
    assert keys["1"] == "class 0"
    assert not set(keys) & set("csu")
    assert keys["n"] == "not a cell"
