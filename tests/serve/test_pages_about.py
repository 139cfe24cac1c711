"""The page About, and the parts of all pages: layout, sign-in, errors, access."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

PAGES = ("/", "/about")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280, 2560])
@pytest.mark.parametrize("path", PAGES)
def test_pages_are_legible_at_every_width_in_light_and_dark(open_page, axe, path, width, scheme):
    page = open_page(path, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 80) == (scheme == "dark")
    assert axe(page) == []


@pytest.mark.slow
def test_about_shows_the_model_card(open_page, served_run):
    page = open_page("/about")
    reply = page.inner_text("main")
    assert "not a medical device, not for diagnosis" in reply
    assert "bar, disc, ring" in reply
    assert "was not tested unless the table says so" in reply
    assert page.locator(".card-text table td").count() >= 9
    assert page.locator("nav a[aria-current=page]").inner_text() == "About"


def test_pages_load_nothing_from_elsewhere(server_url):
    html = httpx.get(f"{server_url}/", headers={"accept": "text/html"}).text
    assert not re.findall(r"(?:src|href)=[\"']https?://", html)


@pytest.mark.slow
def test_keyboard_reaches_content_and_navigation(open_page):
    page = open_page("/about")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "MAIN"
    page = open_page("/about")
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Classify"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Choose files")


@pytest.mark.slow
def test_sign_in(open_page, axe):
    page = open_page("/about")
    page.click("header >> text=Sign in")
    page.wait_for_selector("dialog[open]")
    assert page.evaluate("document.activeElement.tagName") == "INPUT"
    assert axe(page) == []
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    page.click("header >> text=Sign in")
    page.wait_for_selector("dialog[open]")
    page.keyboard.type("  Ada <b>Lovelace</b> ")
    page.keyboard.press("Enter")
    page.wait_for_selector("header >> text=Ada <b>Lovelace</b>")
    page.goto(page.url.replace("/about", "/"))
    page.wait_for_selector("header >> text=Ada <b>Lovelace</b>")


@pytest.mark.slow
def test_name_is_suggested_after_a_restart_of_the_server(browser, start_server, served_run, tmp_path):
    page = browser.new_page()
    with start_server(served_run, tmp_path) as address:
        page.goto(f"{address}/about")
        page.click("header >> text=Sign in")
        page.wait_for_selector("dialog[open]")
        assert page.input_value("dialog input") == ""
        page.keyboard.type("Ada Lovelace")
        page.keyboard.press("Enter")
        page.wait_for_selector("header >> text=Ada Lovelace")
    with start_server(served_run, tmp_path, "--port", address.rpartition(":")[2]):
        page.goto(f"{address}/about")
        page.click("header >> text=Sign in")  # nobody is taken for who sat here before
        page.wait_for_selector("dialog[open]")
        page.wait_for_function("document.querySelector('dialog input').value === 'Ada Lovelace'")
        page.keyboard.press("Enter")
        page.wait_for_selector("header >> text=Ada Lovelace")
        page.click("text=Ada Lovelace")
        page.wait_for_selector("dialog[open]")
        page.keyboard.type("Ben")  # in the place of the one that is proposed
        page.keyboard.press("Enter")
        page.wait_for_selector("header >> text='Ben'")
    page.close()


def test_missing_address_answers_html_or_problem_details(server_url):
    page = httpx.get(f"{server_url}/nowhere", headers={"accept": "text/html"})
    assert page.status_code == 404
    assert "Page not found" in page.text
    reply = httpx.get(f"{server_url}/v1/nowhere")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    wrong = httpx.get(f"{server_url}/v1/predict")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert httpx.get(f"{server_url}/openapi.json").json()["info"]["title"] == "urnet"


def test_other_sites_are_refused(server_url):
    port = server_url.rpartition(":")[2]
    assert httpx.get(f"{server_url}/", headers={"host": f"evil.example:{port}"}).status_code == 403
    posted = httpx.post(f"{server_url}/classify", headers={"origin": "http://evil.example"})
    assert posted.status_code == 403
    sockets = f"{server_url}/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert httpx.get(sockets, headers={"origin": "http://evil.example"}).status_code == 403


def test_made_up_session_key_is_not_accepted(server_url):
    (name,) = httpx.get(f"{server_url}/about", headers={"accept": "text/html"}).cookies
    assert re.fullmatch("urnet-browser-[0-9a-f]{8}", name)
    answer = httpx.get(f"{server_url}/about", headers={"accept": "text/html", "cookie": f"{name}=mine"})
    given = answer.cookies[name]
    assert given != "mine"
    assert len(given) > 20
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=strict" in answer.headers["set-cookie"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="no SIGTERM on this system")
def test_token_on_other_hosts_and_stop_with_an_open_page(browser, served_run, tmp_path):
    main = [sys.executable, "-c", "from urnet.cli import main; main()", "serve", served_run, "--host", "0.0.0.0"]
    arguments = ["--port", "0", "--database", tmp_path / "bench.db", "--engine", "onnx"]
    token = "a-token-of-this-test"
    process = subprocess.Popen(
        [*map(str, [*main, *arguments])],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "URNET_TOKEN": token},
    )
    try:
        address = ""
        for line in process.stdout:
            address = address or (re.findall(r"http://\S+", line) or [""])[0]
            if "Ctrl+C" in line:
                break
        page = browser.new_page()
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address.replace("0.0.0.0", "127.0.0.1"), timeout=60_000)
        assert page.url.endswith("/login")
        page.fill("#token", token)
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Choose files")
        page.click("header >> text=Sign in")  # goes through the websocket
        page.wait_for_selector("dialog[open]")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert wrong == []
        page.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
