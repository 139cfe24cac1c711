"""The page Classify in a browser: uploads, cells, the differential, pictures of a cell, and cancelled jobs."""

import csv
import io
import re

import httpx
import pandas as pd
import pytest

from urnet.bundle.model import Model
from urnet.predict import predict_files

ALL_LOADED = "(images) => [...document.querySelectorAll(images)].every((one) => one.complete && one.naturalWidth)"
DONE = ".status >> text=/images? classified/"


@pytest.fixture
def few(shapes):
    return [shapes / kind / f"00{n}.png" for n in range(3) for kind in ("bar", "disc", "ring")]


@pytest.fixture
def classify_files(open_page, few, tmp_path):
    """Open the page and classify some files, one of which is damaged."""

    def classify_files(sample="Donor 7", **how):
        damaged = tmp_path / "damaged.png"
        damaged.write_bytes(few[0].read_bytes()[:200])
        page = open_page("/", **how)
        page.fill("#sample", sample)
        page.set_input_files("#files", [*few, damaged])
        page.wait_for_selector(DONE)
        page.wait_for_function("document.querySelectorAll('.cells button').length === 10")
        return page

    return classify_files


@pytest.mark.slow
def test_files_are_classified_and_counted(classify_files, few, served_run, tmp_path):
    page = classify_files()
    assert page.inner_text(".status p") == "Donor 7: 9 images classified, 1 unusable"
    first = page.inner_text(".cells li >> nth=0")
    assert re.search(r"(bar|disc|ring)\s*\d+\.\d %", first)
    assert "damaged or incomplete" in page.inner_text(".cells li >> nth=9")
    shares = page.inner_text(".side")
    assert "95 % interval" in shares
    assert "1 image(s) could not be used" in shares
    with page.expect_download() as got:
        page.click("text=Export predictions")
    rows = list(csv.DictReader(io.StringIO(got.value.path().read_text(encoding="utf-8"))))
    predict_files(Model.load(served_run), few, tmp_path / "wanted.csv", engine="onnx")
    wanted = pd.read_csv(tmp_path / "wanted.csv", dtype=str, keep_default_na=False).to_dict("records")
    assert {tuple(row.values())[1:-1] for row in rows if not row["error"]} == {tuple(r.values())[1:-1] for r in wanted}
    with page.expect_download() as got:
        page.click("text=Export report")
    assert "Donor 7" in got.value.path().read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light"), (2560, "light")])
def test_cells_and_their_details_are_accessible(classify_files, axe, width, scheme):
    page = classify_files(width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert axe(page) == []
    page.click(".cells button >> nth=1")
    page.wait_for_selector(".cell-dialog[open] .pictures img")
    page.wait_for_function(
        "[...document.querySelectorAll('.cell-dialog img')].every(i => i.complete && i.naturalWidth)"
    )
    box = page.locator(".cell-dialog").bounding_box()
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


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_class_names_break_between_words_only(classify_files, open_page, width):
    page = classify_files(width=width)
    assert page.evaluate(WHOLE_WORDS, ".side .shares tbody th")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("text=Save for review")
    page.wait_for_selector("text=predictions saved for review")
    page = open_page("/review", context=page.context)
    page.wait_for_selector(".tile span")
    assert page.evaluate(WHOLE_WORDS, ".tile span")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_cell_dialog_by_keyboard(classify_files):
    page = classify_files()
    page.focus(".cells button >> nth=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector(".cell-dialog[open] .pictures img")
    assert page.inner_text("#cell-title") == "000.png"
    guarantee = "The true class is among them for at least 90 % of cells like those of the calibration."
    assert "Prediction set (classes that cannot be ruled out): " in page.inner_text(".cell-dialog")
    assert guarantee in page.inner_text(".cell-dialog")
    assert len(re.findall(r"\d+\.\d %", page.inner_text("#cell-probabilities + table"))) == 3
    page.wait_for_function(
        "[...document.querySelectorAll('.cell-dialog img')].every(i => i.complete && i.naturalWidth)"
    )
    assert page.locator(".cell-dialog img[src$='viridis.png']").count() == 1
    page.focus(".cell-dialog input[type=range]")
    page.keyboard.press("End")
    assert page.evaluate("document.querySelector('.cell-dialog').style.getPropertyValue('--split')") == "100%"
    page.focus(".cell-dialog input[value=viridis]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".cell-dialog img[src$='blue-red.png']")
    page.focus(".cell-dialog button >> nth=1")
    page.keyboard.press("ArrowRight")
    for number in (2, 3, 4):
        page.wait_for_selector(f".cell-dialog img[src$='/{number}/raw.png'] >> nth=0")
        page.keyboard.press("ArrowRight")
    page.wait_for_selector(".cell-dialog img[src$='/5/raw.png'] >> nth=0")
    assert page.inner_text("#cell-title") == "001.png"
    page.keyboard.press("Escape")
    page.wait_for_selector(".cell-dialog", state="hidden")
    assert page.evaluate("document.activeElement.closest('.cells') !== null")


@pytest.mark.slow
def test_cells_are_filtered_and_sorted(classify_files):
    page = classify_files()
    page.select_option(".cell-filters select >> nth=0", "unusable")
    page.wait_for_function("document.querySelectorAll('.cells button').length === 1")
    page.select_option(".cell-filters select >> nth=0", "all")
    page.select_option(".cell-filters select >> nth=1", "certainty")
    page.wait_for_timeout(1000)
    shares = [float(one) for one in re.findall(r"(\d+\.\d) %", page.inner_text(".cells"))]
    assert len(shares) == 9
    assert shares == sorted(shares)


@pytest.mark.slow
def test_reloaded_page_continues_and_other_browsers_see_nothing(classify_files, browser, server_url):
    page = classify_files()
    page.click(".cells button >> nth=4")
    page.wait_for_selector(".cell-dialog[open]")
    title, picture = page.inner_text("#cell-title"), page.get_attribute(".pictures img >> nth=0", "src")
    page.reload()
    page.wait_for_selector(".cell-dialog[open]")
    assert page.inner_text("#cell-title") == title
    assert page.locator(".cells button").count() == 10
    assert httpx.get(server_url + picture).status_code == 404
    other = browser.new_page()
    other.goto(server_url)
    other.wait_for_selector("text=Choose files")
    assert other.locator(".cells button").count() == 0
    other.close()


@pytest.mark.slow
def test_cancelled_job_keeps_its_results(open_page, shapes):
    page = open_page("/")
    page.set_input_files("#files", sorted(shapes.glob("*/*.png")) * 10)
    page.wait_for_selector("button:has-text('Cancel'):visible")
    page.focus("button:has-text('Cancel')")
    page.keyboard.press("Enter")
    page.wait_for_selector(".status >> text=cancelled")
    page.wait_for_timeout(600)
    wanted = page.inner_text(".status p")
    page.wait_for_timeout(600)
    assert page.inner_text(".status p") == wanted
    assert page.locator("progress:visible").count() == 0


@pytest.mark.slow
def test_folder_is_uploaded_without_other_files(open_page, shapes, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, source in enumerate(sorted(shapes.glob("*/*.png"))[::12]):
        (folder / f"{number}.png").write_bytes(source.read_bytes())
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    page = open_page("/")
    page.set_input_files("#folder", folder)
    page.wait_for_selector(".status >> text=5 images classified")
    assert page.inner_text("#upload-text") == "5 files uploaded, 1 other file skipped"


DROP = """async (address) => {
    const transfer = new DataTransfer();
    for (const name of ['a.png', 'b.png']) {
        const content = await (await fetch(address)).blob();
        transfer.items.add(new File([content], name, { type: 'image/png' }));
    }
    document.getElementById('drop').dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true }));
}"""


@pytest.mark.slow
def test_files_can_be_dropped(classify_files):
    page = classify_files()
    page.evaluate(DROP, page.get_attribute(".cells img >> nth=0", "src"))
    page.wait_for_selector(".status >> text=Donor 7: 2 images classified")


@pytest.mark.slow
def test_pictures_of_a_replaced_sample_are_not_requested(open_page, shapes):
    page = open_page("/", height=4000)
    files = sorted(shapes.glob("*/*.png"))
    for _ in range(3):
        page.set_input_files("#files", files)
        page.wait_for_function("document.querySelectorAll('.cells img').length > 30")
    page.wait_for_selector(f".status >> text={len(files)} images classified")
    page.wait_for_function(ALL_LOADED, arg=".cells img")


@pytest.mark.slow
def test_lost_connection_is_restored(classify_files):
    page = classify_files()
    page.evaluate("window.socket.io.engine.close()")
    page.click(".cells button >> nth=2")
    page.wait_for_selector(".cell-dialog[open] .pictures img")


@pytest.mark.slow
def test_unusable_files_are_reported(open_page, tmp_path):
    page = open_page("/")
    page.set_input_files("#files", [])
    (tmp_path / "letter.txt").write_text("no image", encoding="utf-8")
    page.set_input_files("#files", tmp_path / "letter.txt")
    page.wait_for_selector("[role=alert] >> text=None of these files is a PNG, JPEG, BMP or TIFF")
    (tmp_path / "letter.png").write_text("no image", encoding="utf-8")
    page.set_input_files("#files", tmp_path / "letter.png")
    page.wait_for_selector(".status >> text=0 images classified, 1 unusable")


def test_unknown_addresses_are_refused(server_url):
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


@pytest.mark.slow
def test_predictions_are_saved_for_review_with_the_same_estimate(classify_files):
    page = classify_files("Donor 8")
    page.click("text=Save for review")
    page.wait_for_selector("text=9 predictions saved for review")
    estimate = page.locator(".side .shares >> nth=0").locator("td.value").all_inner_texts()
    page.click("nav >> text=Review")
    page.wait_for_selector(".counts th:has-text('Corrected, %')")
    assert [row.locator("td").nth(2).inner_text() for row in page.locator(".counts tbody tr").all()] == estimate


@pytest.mark.slow
def test_upload_after_a_full_disk(browser, server_url, few, tmp_path, disk_full):
    large = tmp_path / "large.png"
    large.write_bytes(few[0].read_bytes() + bytes(2 * 2**20))
    page = browser.new_page()  # its console names the answer 507
    page.goto(server_url)
    with disk_full():
        page.set_input_files("#files", large)
        page.wait_for_selector("#upload-error >> text=the server's disk is full")
    page.set_input_files("#files", large)
    page.wait_for_selector(".status >> text=1 image classified")
    page.close()


@pytest.mark.slow
def test_saving_for_review_after_a_full_disk(classify_files, disk_full):
    page = classify_files()
    with disk_full():
        page.click("text=Save for review")
        page.wait_for_selector(".status >> text=Not saved for review: ")
    page.click("text=Save for review")
    page.wait_for_selector("text=9 predictions saved for review")
    assert page.locator("button:has-text('Save for review')").count() == 0
