"""Classify, as people use it: files in, cells and counts out, pictures of a cell, and work that is stopped."""

import csv
import io
import re

import httpx
import pandas as pd
import pytest

from urnet.bundle.model import Model
from urnet.predict import predict_files

DONE = "image(s) classified"


@pytest.fixture
def few(shapes):
    return [shapes / kind / f"00{n}.png" for n in range(3) for kind in ("bar", "disc", "ring")]


@pytest.fixture
def sent(open_page, few, tmp_path):
    """Opens the page and has some files classified, one of which is damaged."""

    def sent(**how):
        damaged = tmp_path / "damaged.png"
        damaged.write_bytes(few[0].read_bytes()[:200])
        page = open_page("/", **how)
        page.fill("#sample", "Donor 7")
        page.set_input_files("#files", [*few, damaged])
        page.wait_for_selector(f".status >> text={DONE}")
        page.wait_for_function("document.querySelectorAll('.cells button').length === 10")
        return page

    return sent


def test_files_become_cells_with_classes_and_a_differential(sent, few, served_run, tmp_path):
    page = sent()
    assert page.inner_text(".status p") == "Donor 7: 9 image(s) classified, 1 not usable"
    first = page.inner_text(".cells li >> nth=0")
    assert re.search(r"(bar|disc|ring)\s*\d+\.\d %", first)
    assert "damaged or incomplete" in page.inner_text(".cells li >> nth=9")
    shares = page.inner_text(".side")
    assert "95 % interval" in shares
    assert "1 image(s) could not be used" in shares
    with page.expect_download() as got:
        page.click("text=Download CSV")
    rows = list(csv.DictReader(io.StringIO(got.value.path().read_text(encoding="utf-8"))))
    predict_files(Model.load(served_run), few, tmp_path / "told.csv", engine="onnx")
    told = pd.read_csv(tmp_path / "told.csv", dtype=str, keep_default_na=False).to_dict("records")
    assert {tuple(row.values())[1:-1] for row in rows if not row["error"]} == {tuple(r.values())[1:-1] for r in told}
    with page.expect_download() as got:
        page.click("text=Download the sample report")
    assert "Donor 7" in got.value.path().read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light"), (2560, "light")])
def test_cells_and_their_details_are_accessible(sent, axe, width, scheme):
    page = sent(width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert axe(page) == []
    page.click(".cells button >> nth=1")
    page.wait_for_selector(".cell-view[open] .pictures img")
    page.wait_for_function("[...document.querySelectorAll('.cell-view img')].every(i => i.complete && i.naturalWidth)")
    box = page.locator(".cell-view").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert axe(page) == []


WHOLE_WORDS = """(selector) => [...document.querySelectorAll(selector)].every((one) => {
    one.textContent = 'segmented neutrophilic granulocyte';
    const text = one.firstChild, range = document.createRange();
    return [[0, 9], [10, 22], [23, 34]].every(([from, to]) => {
        range.setStart(text, from);
        range.setEnd(text, to);
        return range.getClientRects().length === 1;
    });
})"""


@pytest.mark.parametrize("width", [400, 1280])
def test_names_of_classes_break_between_words_only(sent, open_page, width):
    page = sent(width=width)
    assert page.evaluate(WHOLE_WORDS, ".side .shares tbody th")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("text=Keep for review")
    page.wait_for_selector("text=predictions kept for review")
    page = open_page("/review", context=page.context)
    page.wait_for_selector(".tile span")
    assert page.evaluate(WHOLE_WORDS, ".tile span")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_cell_is_shown_raw_enhanced_and_under_grad_cam_by_the_keyboard_alone(sent):
    page = sent()
    page.focus(".cells button >> nth=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector(".cell-view[open] .pictures img")
    assert page.inner_text("#cell-title") == "000.png"
    said = "The true class is among them for at least 90 % of cells like those calibrated on."
    assert "Classes that cannot be ruled out (prediction set): " in page.inner_text(".cell-view")
    assert said in page.inner_text(".cell-view")
    assert len(re.findall(r"\d+\.\d %", page.inner_text("#cell-probabilities + table"))) == 3
    page.wait_for_function("[...document.querySelectorAll('.cell-view img')].every(i => i.complete && i.naturalWidth)")
    assert page.locator(".cell-view img[src$='viridis.png']").count() == 1
    page.focus(".cell-view input[type=range]")
    page.keyboard.press("End")
    assert page.evaluate("document.querySelector('.cell-view').style.getPropertyValue('--cut')") == "100%"
    page.focus(".cell-view input[value=viridis]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".cell-view img[src$='blue-red.png']")
    page.focus(".cell-view button >> nth=1")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#cell-title:has-text('000.png')")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("#cell-title:has-text('001.png')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".cell-view", state="hidden")
    assert page.evaluate("document.activeElement.closest('.cells') !== null")


def test_cells_are_chosen_by_class_and_put_in_order(sent):
    page = sent()
    page.select_option(".choice select >> nth=0", "not usable")
    page.wait_for_function("document.querySelectorAll('.cells button').length === 1")
    page.select_option(".choice select >> nth=0", "all")
    page.select_option(".choice select >> nth=1", "least sure first")
    page.wait_for_timeout(1000)
    shares = [float(one) for one in re.findall(r"(\d+\.\d) %", page.inner_text(".cells"))]
    assert len(shares) == 9
    assert shares == sorted(shares)


def test_a_page_that_comes_back_finds_its_work_and_other_browsers_do_not(sent, browser, server_url):
    page = sent()
    page.click(".cells button >> nth=4")
    page.wait_for_selector(".cell-view[open]")
    title, picture = page.inner_text("#cell-title"), page.get_attribute(".pictures img >> nth=0", "src")
    page.reload()
    page.wait_for_selector(".cell-view[open]")
    assert page.inner_text("#cell-title") == title
    assert page.locator(".cells button").count() == 10
    assert httpx.get(server_url + picture).status_code == 404
    other = browser.new_page()
    other.goto(server_url)
    other.wait_for_selector("text=Choose files")
    assert other.locator(".cells button").count() == 0
    other.close()


def test_work_can_be_cancelled_and_what_is_there_stays(open_page, shapes):
    page = open_page("/")
    page.set_input_files("#files", sorted(shapes.glob("*/*.png")) * 10)
    page.wait_for_selector("button:has-text('Cancel'):visible")
    page.focus("button:has-text('Cancel')")
    page.keyboard.press("Enter")
    page.wait_for_selector(".status >> text=cancelled")
    page.wait_for_timeout(600)
    told = page.inner_text(".status p")
    page.wait_for_timeout(600)
    assert page.inner_text(".status p") == told
    assert page.locator("progress:visible").count() == 0


def test_a_folder_is_taken_without_what_is_no_image(open_page, shapes, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, source in enumerate(sorted(shapes.glob("*/*.png"))[::12]):
        (folder / f"{number}.png").write_bytes(source.read_bytes())
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    page = open_page("/")
    page.set_input_files("#folder", folder)
    page.wait_for_selector(f".status >> text=5 {DONE}")
    assert page.inner_text("#sending-text") == "5 files sent; 1 other file left out"


DROP = """async (address) => {
    const transfer = new DataTransfer();
    for (const name of ['a.png', 'b.png']) {
        const content = await (await fetch(address)).blob();
        transfer.items.add(new File([content], name, { type: 'image/png' }));
    }
    document.getElementById('drop').dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true }));
}"""


def test_files_can_be_dropped(sent):
    page = sent()
    page.evaluate(DROP, page.get_attribute(".cells img >> nth=0", "src"))
    page.wait_for_selector(f".status >> text=Donor 7: 2 {DONE}")


def test_pictures_of_a_sample_that_is_replaced_are_no_longer_asked_for(open_page, shapes):
    page = open_page("/", height=4000)
    files = sorted(shapes.glob("*/*.png"))
    for _ in range(3):
        page.set_input_files("#files", files)
        page.wait_for_function("document.querySelectorAll('.cells img').length > 30")
    page.wait_for_selector(f".status >> text={len(files)} {DONE}")
    page.wait_for_function("[...document.querySelectorAll('.cells img')].every(i => i.complete && i.naturalWidth)")


def test_a_connection_that_was_lost_comes_back(sent):
    page = sent()
    page.evaluate("window.socket.io.engine.close()")
    page.click(".cells button >> nth=2")
    page.wait_for_selector(".cell-view[open] .pictures img")


def test_what_cannot_be_classified_is_said(open_page, tmp_path):
    page = open_page("/")
    page.set_input_files("#files", [])
    (tmp_path / "letter.txt").write_text("no image", encoding="utf-8")
    page.set_input_files("#files", tmp_path / "letter.txt")
    page.wait_for_selector("[role=alert] >> text=None of these files is a PNG, JPEG, BMP or TIFF")
    (tmp_path / "letter.png").write_text("no image", encoding="utf-8")
    page.set_input_files("#files", tmp_path / "letter.png")
    page.wait_for_selector(".status >> text=0 image(s) classified, 1 not usable")


def test_addresses_of_what_is_not_there_are_refused(server_url):
    with httpx.Client(base_url=server_url) as client:
        key = client.post("/classify").json()["key"]
        at = f"/classify/{key}"
        assert client.get(f"{at}/0/raw.png").status_code == 404
        assert client.get(f"{at}/field/0.png").status_code == 404
        assert client.get(f"{at}/report.html").status_code == 404
        assert client.post(f"{at}/files").status_code == 422
        assert client.post("/classify/other/files", files=[("files", ("a.png", b"x"))]).status_code == 404
        assert client.get(f"{at}/%2e%2e/raw.png").status_code == 404
        assert client.get(f"{at}/0/../../etc.png").status_code == 404
        assert client.post(f"{at}/files", files=[("files", ("../../a.png", b"x"))]).json() == {"files": 1}
        client.post("/classify")
        assert client.post(f"{at}/start").status_code == 404


def test_predictions_are_kept_for_review(sent):
    page = sent()
    page.click("text=Keep for review")
    page.wait_for_selector("text=9 predictions kept for review")


def test_a_full_disk_while_files_are_sent_is_said_and_they_can_be_sent_again(
    browser, server_url, few, tmp_path, disk_full
):
    large = tmp_path / "large.png"
    large.write_bytes(few[0].read_bytes() + bytes(2 * 2**20))
    page = browser.new_page()  # its console names the answer 507
    page.goto(server_url)
    with disk_full():
        page.set_input_files("#files", large)
        page.wait_for_selector("#sending-error >> text=the server's disk is full")
    page.set_input_files("#files", large)
    page.wait_for_selector(f".status >> text=1 {DONE}")
    page.close()


def test_what_is_not_kept_for_review_is_kept_at_the_second_try(sent, disk_full):
    page = sent()
    with disk_full():
        page.click("text=Keep for review")
        page.wait_for_selector(".status >> text=not kept for review: ")
    page.click("text=Keep for review")
    page.wait_for_selector("text=9 predictions kept for review")
    assert page.locator("button:has-text('Keep for review')").count() == 0
