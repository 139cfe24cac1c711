"""The page Review in a browser, by keys or with the mouse, and the differential after a review."""

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from urnet.cells.read import read_cells
from urnet.serve.database.models import NOT_A_CELL
from urnet.serve.database.reviews import ReviewedPrediction
from urnet.serve.review_results import count_after_review


@pytest.fixture(scope="module")
def samples(server_store, shapes):
    """Store two samples in the database of the server."""
    store = server_store
    for name, count in (("S1", 7), ("Slide 2 <b>&ü", 70)):
        rows = []
        for k in range(count):
            label = ("bar", "disc", "ring")[k % 3]
            stored = store.reviews.add_image((shapes / label / f"{k % 20:03d}.png").read_bytes(), ".png")
            values = {"p_bar": 0.1, "p_disc": 0.1, "p_ring": 0.1, f"p_{label}": 0.5 + k / 200}
            rejected = "unlike any class" if k == 5 else ""
            rows.append({"path": f"{k:03d}.png", "predicted": label, "image": stored, "rejected": rejected, **values})
        store.reviews.add_predictions(name, rows, model="m" * 32)
    return store


def open_sample(open_page, sample="", **more):
    page = open_page(f"/review?sample={sample}", **more)
    page.wait_for_selector(".tile img")
    return page


def name(page, who) -> None:
    page.get_by_label("Name", exact=True).fill(who)
    page.keyboard.press("Enter")


def check_status(page, words) -> None:
    page.wait_for_function("w => document.querySelector('[role=status]').innerText.startsWith(w)", arg=words)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280, 2560])
def test_review_is_accessible_at_every_width(open_page, axe, samples, width, scheme):
    page = open_sample(open_page, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".tile").count() == 60
    assert axe(page) == []


@pytest.mark.slow
def test_corrections_by_keys(open_page, samples):
    page = open_sample(open_page, "S1")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className").startswith("tile"):
            break
    page.keyboard.press("3")
    name(page, "Ada")
    check_status(page, "Saved: ring")
    assert page.evaluate("document.activeElement.className").startswith("tile")
    page.keyboard.press("c")
    check_status(page, "Saved: disc")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelectorAll('.tile')[3].ariaPressed === 'true'")
    page.keyboard.press("n")
    check_status(page, "Saved: not a cell")
    seen = {row.path: (row.corrected, row.reviewer) for row in samples.reviews.read_reviewed("S1")}
    assert seen["000.png"] == ("ring", "Ada")
    assert seen["001.png"] == ("disc", "Ada")
    assert seen["002.png"] == (None, None)
    assert seen["003.png"] == (NOT_A_CELL, "Ada")
    table = page.locator(".counts table").inner_text().split()
    assert table[table.index("bar") : table.index("bar") + 3] == ["bar", "3", "1"]
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelectorAll('.tile')[3].ariaPressed === 'true'")
    page.keyboard.press("u")
    check_status(page, "Undone. The prediction is bar.")
    assert samples.reviews.read_reviewed("S1")[3].corrected is None


@pytest.mark.slow
def test_corrections_with_the_mouse_and_selection_after_a_reload(open_page, samples):
    page = open_sample(open_page, "S1")
    page.get_by_label(re.compile("^Sample")).select_option("Slide 2 <b>&ü")
    page.wait_for_function("document.querySelectorAll('.tile').length === 60")
    page.get_by_role("button", name="Next").click()
    page.wait_for_function("document.querySelectorAll('.tile').length === 10")
    page.locator(".tile").nth(4).click()
    page.wait_for_function("document.querySelectorAll('.tile')[4].ariaPressed === 'true'")
    page.get_by_role("button", name="bar", exact=True).click()
    name(page, "Ben")
    check_status(page, "Saved: bar")
    page.get_by_label("Show").select_option("Reviewed")
    page.wait_for_function("document.querySelectorAll('.tile').length === 1")
    assert page.locator(".current").inner_text().count("by Ben") == 1
    page.goto(page.url.partition("?")[0])
    page.wait_for_function("document.querySelectorAll('.tile').length === 1")
    assert page.get_by_label(re.compile("^Sample")).input_value() == "Slide 2 <b>&ü"


@pytest.mark.slow
def test_export_of_reviewed_cells(open_page, samples, server_url, tmp_path):
    page = open_sample(open_page, "S1")
    with page.expect_download() as download:
        page.get_by_role("link", name="Crops and cells table").click()
    with zipfile.ZipFile(io.BytesIO(download.value.path().read_bytes())) as archive:
        archive.extractall(tmp_path)
    cells = read_cells(tmp_path)
    assert len(cells) == 7
    assert "ring" in cells.table["label"].tolist()
    assert cells.read(0).shape == (24, 24)
    answer = page.request.get(f"{server_url}/review/cells.zip?sample=..%2F..%2Fetc")
    assert (answer.status, answer.json()["title"]) == (404, "Not Found")


@pytest.mark.slow
def test_pictures_are_found_by_digest_only(open_page, samples, server_url):
    page = open_sample(open_page, "S1")
    digest = samples.reviews.read_reviewed("S1")[0].image
    answer = page.request.get(f"{server_url}/review/image/{digest}")
    assert Image.open(io.BytesIO(answer.body())).size == (24, 24)
    for other in ("0" * 64, "..%2Fbench.db"):
        answer = page.request.get(f"{server_url}/review/image/{other}")
        assert answer.status == 404 or answer.headers["content-type"].startswith("image/svg")


def reviewed(number, predicted, corrected=None, rejected=""):
    values = {"rejected": rejected}
    who = None if corrected is None else "Ada"
    return ReviewedPrediction(number, f"{number}.png", None, predicted, values, "m", "0.1", "2026", corrected, who)


def test_labels_of_reviewers_count_before_predictions():
    rows = [
        reviewed(1, "disc"),
        reviewed(2, "disc", "bar"),
        reviewed(3, "disc", NOT_A_CELL),
        reviewed(4, "bar", rejected="blurred"),
        reviewed(5, "bar", "bar", rejected="blurred"),
        reviewed(6, "bar", "blast"),
    ]
    shares = {one.label: one for one in count_after_review(rows, ("bar", "disc", "ring"))}
    assert {name: (one.counted, one.reviewed) for name, one in shares.items()} == {
        "bar": (1, 2),
        "disc": (3, 1),
        "ring": (0, 0),
        "blast": (0, 1),
    }
    z, n, p = 1.959964, 4, 0.5  # Wilson 1927, eq. 4
    middle, half = (p + z**2 / 2 / n) / (1 + z**2 / n), z * np.sqrt(p / 2 / n + z**2 / 4 / n**2) / (1 + z**2 / n)
    assert shares["bar"].interval == pytest.approx((middle - half, middle + half))
    assert shares["ring"].share == 0
    assert count_after_review([], ("bar",))[0].interval is None


def choose_first(page, number) -> None:
    page.locator(".tile").first.click()
    page.wait_for_function("n => document.querySelector('[data-keys]').dataset.cell === n", arg=str(number))


@pytest.mark.slow
def test_replaced_correction_is_reported(open_page, samples):
    page = open_sample(open_page, "S1")
    at = int(page.locator("[data-keys]").get_attribute("data-cell"))
    samples.reviews.correct(at, "Ben", "ring")  # after the page was read
    page.keyboard.press("1")
    name(page, "Ada")
    check_status(page, "Saved: bar. This replaces the label ring by Ben, ")
    choose_first(page, at)
    page.keyboard.press("2")
    check_status(page, "Saved: disc. This replaces your label bar of ")
    choose_first(page, at)
    samples.reviews.correct(at, "Ben", "ring")
    page.keyboard.press("u")
    check_status(page, "Undone.")
    assert "The label ring was by Ben" in page.get_by_role("status").inner_text()


@pytest.mark.slow
def test_full_disk_is_reported_and_nothing_is_shown_as_saved(open_page, samples, disk_full):
    page = open_sample(open_page, "S1")
    page.keyboard.press("c")
    name(page, "Eve")
    check_status(page, "Saved: ")
    at = page.locator("[data-keys]").get_attribute("data-cell")
    before = samples.reviews.read_reviewed("S1")
    with disk_full():
        for key, words in (("2", "Not saved: "), ("u", "Not undone: ")):
            page.keyboard.press(key)
            check_status(page, words)
            assert "make room" in page.get_by_role("status").inner_text()
            assert page.locator("[data-keys]").get_attribute("data-cell") == at
    assert samples.reviews.read_reviewed("S1") == before
    page.keyboard.press("2")
    check_status(page, "Saved: disc")


HOSTILE = "<img src=x onerror=alert(1)>\u202egnp.\x00\x1b[31m" + "x" * 20_000


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_hostile_names_are_shown_as_text_and_cut(open_page, axe, samples, width):
    rows = [{"path": f"{k}{HOSTILE}", "predicted": HOSTILE, "rejected": HOSTILE, "set": HOSTILE} for k in range(2)]
    samples.reviews.add_predictions(HOSTILE, [{**row, f"p_{HOSTILE}": 1.0} for row in rows], model=HOSTILE)
    page = open_page("/review", width=width)
    page.wait_for_selector(".tile")
    page.locator("select").first.select_option(index=0)
    page.wait_for_function("document.querySelector('.tile').innerText.includes('<img src=x')")
    seen = page.inner_text("body")
    assert "\u202e" not in seen
    assert "\x1b" not in seen
    assert len(seen) < 200_000
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert axe(page) == []
