"""Two servers in one browser, and a server below a path, through nginx as the documentation sets it up."""

import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

TOKEN = "a-token-of-this-test"
ALL_LOADED = "(images) => [...document.querySelectorAll(images)].every((one) => one.complete && one.naturalWidth)"
DONE = ".status >> text=/images? classified/"
DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "run-behind-a-proxy.md"


@pytest.fixture
def context(browser):
    context = browser.new_context(ignore_https_errors=True)
    yield context
    context.close()


def sign_in(page, address, token) -> None:
    page.goto(address)
    page.wait_for_url("**/login")
    page.fill("#token", token)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Choose files")


def classify(page, files) -> None:
    page.set_input_files("#files", files)
    page.wait_for_selector(DONE)
    page.wait_for_function("n => document.querySelectorAll('.cells button').length === n", arg=len(files))


@pytest.mark.slow
def test_two_servers_in_one_browser(context, start_server, served_run, shapes, tmp_path):
    files = [shapes / "disc" / f"00{k}.png" for k in range(3)]
    tokens = [f"{TOKEN}-{k}" for k in range(2)]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    elsewhere = ("--host", "0.0.0.0")
    with (
        start_server(served_run, tmp_path / "one", *elsewhere, URNET_TOKEN=tokens[0]) as one,
        start_server(served_run, tmp_path / "two", *elsewhere, URNET_TOKEN=tokens[1]) as two,
    ):
        page = context.new_page()
        one, two = (address.replace("0.0.0.0", "127.0.0.1") for address in (one, two))
        sign_in(page, one, tokens[0])
        classify(page, files)
        other = context.new_page()
        sign_in(other, two, tokens[1])
        classify(other, files[:1])
        for at, number in ((one, 3), (two, 1), (one, 3)):
            page.goto(at)
            page.wait_for_selector(DONE)
            assert page.locator(".cells button").count() == number
        cookies = context.cookies()
    kinds = sorted(cookie["name"].rpartition("-")[0] for cookie in cookies)
    assert kinds == [*["urnet-browser"] * 2, *["urnet-session"] * 2]
    assert len({cookie["name"] for cookie in cookies}) == 4
    for cookie in cookies:
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"], cookie["secure"]) == (
            True,
            "Strict",
            "/",
            False,
        )


def use_all_pages(context, address, shapes) -> list[str]:
    """Use every page; return requests outside `address`, errors, and links that leave it."""
    wrong = []
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = (address, "data:", "blob:", address.replace("http", "ws", 1))
    page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    page.on("response", lambda got: wrong.append(f"{got.status} {got.url}") if got.status >= 400 else None)
    page.on("websocket", lambda socket: None if socket.url.startswith(own) else wrong.append(socket.url))

    def open_page():
        links = page.evaluate("""[...document.querySelectorAll('[href], [src], [action]')].map(
            (one) => one.getAttribute('href') ?? one.getAttribute('src') ?? one.getAttribute('action'))""")
        root = "/" + address.split("/", 3)[3]
        wrong.extend(link for link in links if link.startswith("/") and not link.startswith(f"{root}/"))

    sign_in(page, f"{address}/", TOKEN)
    classify(page, [shapes / "ring" / f"00{k}.png" for k in range(3)])
    page.click(".cells button >> nth=0")
    page.wait_for_selector(".cell-dialog[open] .pictures img")
    page.wait_for_function(ALL_LOADED, arg=".cell-dialog img")
    open_page()
    page.keyboard.press("Escape")
    with page.expect_download() as got:
        page.click("text=Export predictions")
    assert got.value.path().read_text(encoding="utf-8").count("\n") == 4
    page.click("text=Save for review")
    page.wait_for_selector("text=predictions saved for review")
    page.click("nav >> text=Review")
    page.wait_for_selector(".tile img")
    page.wait_for_function(ALL_LOADED, arg=".tile img")
    open_page()
    with page.expect_download() as got:
        page.click("text=Crops and cells table")
    assert got.value.path().stat().st_size
    page.click("nav >> text=Label")
    page.get_by_label("Name", exact=True).fill("Ada")
    page.keyboard.press("Enter")
    page.wait_for_selector(".picture img")
    page.keyboard.press("1")
    page.wait_for_selector("text=Labelled bar")
    page.wait_for_function(ALL_LOADED, arg=".picture img")
    open_page()
    with page.expect_download() as got:
        page.click("text=Cells table with labels")
    assert "bar" in got.value.path().read_text(encoding="utf-8")
    for name in ("Runs", "About", "Classify"):
        page.click(f"nav >> text={name}")
        page.wait_for_selector(f"nav a[aria-current=page] >> text={name}")
        open_page()
    page.close()
    return wrong


@pytest.mark.slow
def test_all_pages_work_below_a_root_path(context, start_server, served_run, shapes, tmp_path):
    options = ("--root-path", "/lab/urnet", "--cells", shapes)
    with start_server(served_run, tmp_path, *options, URNET_TOKEN=TOKEN) as address:
        assert address.endswith("/lab/urnet")
        assert use_all_pages(context, address, shapes) == []
        assert {cookie["path"] for cookie in context.cookies()} == {"/lab/urnet"}


@contextmanager
def nginx(folder, port, to):
    """nginx with the configuration of the documentation, on another port."""
    (block,) = re.findall(r"```nginx\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("server_name cells.lab.example", "server_name localhost"),
        ("/etc/ssl/", f"{folder}/"),
        ("http://127.0.0.1:8000", to),
    ):
        assert old in block
        block = block.replace(old, new)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{places}{block}}}\n",
        encoding="utf-8",
    )
    key = ["-nodes", "-newkey", "rsa:2048", "-keyout", folder / "cells.key", "-out", folder / "cells.crt"]
    made = ["openssl", "req", "-x509", "-days", "1", "-subj", "/CN=localhost", *map(str, key)]
    subprocess.run(made, check=True, capture_output=True)
    process = subprocess.Popen([program("nginx"), "-c", str(conf), "-p", str(folder), "-e", str(folder / "error.log")])
    try:
        until = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, (folder / "error.log").read_text(encoding="utf-8")
            assert time.monotonic() < until
            time.sleep(0.05)
        yield f"https://localhost:{port}/urnet"
    finally:
        process.terminate()
        process.wait()


def program(name):
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


@pytest.mark.slow
@pytest.mark.skipif(not (program("nginx") and program("openssl")), reason="no nginx or openssl on this machine")
def test_all_pages_work_behind_nginx_as_documented(context, start_server, served_run, shapes, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("--root-path", "/urnet", "--trusted-proxy", "127.0.0.1", "--allowed-host", "cells.lab.example")
    with (
        start_server(served_run, tmp_path, *options, "--cells", shapes, URNET_TOKEN=TOKEN) as address,
        nginx(tmp_path, port, address.removesuffix("/urnet")) as outside,
    ):
        assert use_all_pages(context, outside, shapes) == []
        cookies = context.cookies()
        assert {(cookie["path"], cookie["secure"]) for cookie in cookies} == {("/urnet", True)}
        answer = context.request.get(f"{outside}/healthz", headers={"Host": "evil.example"})
        assert answer.status == 403
