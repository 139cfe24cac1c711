"""Measure the load of a server under attack, and the service to another client. Loopback only.

    python benchmarks/attack_server.py --out attack.json

The script starts a server with a token on 127.0.0.1 and attacks it in turn: small files that are large or slow to
decode, clients that disconnect, bodies without the token, headers and bodies that never end. Each attack has a fixed
number of connections and takes at most `--seconds`.

Printed for each attack: the answers, the processor time of the decoding processes during and after it, and the largest
size of the temporary files. Meanwhile a client with the token sends one crop after the other; its answers and longest
time are printed too.

The network is that of the quick recipe with random weights, as in `benchmarks/inference.py`. `--run` chooses another
one, for instance one that crops fields.
"""

import argparse
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
from inference import make
from machine import describe, load

sys.path.append(str(Path(__file__).parents[1] / "tests" / "serve"))
from hostile_files import slow_and_large

PARALLEL = 8
"""Simultaneous uploads of one hostile file."""

HELD = 600
"""Simultaneous open connections; more than `max_connections`."""

BODY = 64 * 2**20
"""Size of each body without the token, in bytes."""

AFTER_S = 3.0
"""Time for which the decoding processes are measured after the attack, in seconds."""

CRLF = b"\r\n"


def main() -> None:
    """Run all attacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="run folder or bundle to serve")
    parser.add_argument("--crop", type=Path, help="image that the other client sends; needed with --run")
    parser.add_argument("--to", default="/v1/predict", help="path that receives the hostile files")
    parser.add_argument("--seconds", type=float, default=120, help="longest duration of each attack")
    parser.add_argument("--only", default="", help="run only attacks whose names contain this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    about = describe("fastapi", "uvicorn", "h11") | {"load": [load()]}
    with tempfile.TemporaryDirectory() as name:
        folder, token = Path(name), secrets.token_urlsafe(24)
        (folder / "temporary").mkdir()
        run, crop = arguments.run, arguments.crop
        if run is None:
            make("quick", 200, folder)
            run, crop = folder / "bundle", next((folder / "crops").rglob("*.png"))
        command = [sys.executable, "-c", "from urnet.cli import main; main()", "serve", str(run), "--port", "0"]
        command += ["--database", str(folder / "labels.db"), "--allowed-host", "attacked.example"]
        environment = os.environ | {"TMPDIR": str(folder / "temporary"), "URNET_TOKEN": token}
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            server = Server(process, _address(process, folder / "log.txt"), token, folder / "temporary")
            rows = [
                server.measure(title, attack, crop, arguments.seconds)
                for title, attack in attacks(arguments.to)
                if arguments.only in title
            ]
        finally:
            process.kill()
            process.wait()
    about["load"].append(load())
    print("| attack | answers | decoding, s of processor | after the attack | bytes on disk | other client |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        other = f"{row['served']} served, {row['not_served']} not, longest {row['longest_seconds']:.2f} s"
        print(
            f"| {row['attack']} | {row['answers']} | {row['busy_seconds']:.1f} | {row['busy_after_seconds']:.1f} | "
            f"{row['disk_bytes']:,} | {other} |"
        )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(about | {"attacks": rows}, indent=2), encoding="utf-8")


class Server:
    """The attacked server.

    Args:
        process: process of the server.
        address: address of the server.
        token: token of the server.
        temporary: folder for its temporary files.
    """

    def __init__(self, process: subprocess.Popen, address: str, token: str, temporary: Path):
        self.process, self.address, self.token, self.temporary = process, address, token, temporary
        self.port = int(address.rpartition(":")[2])
        self.headers = {"Authorization": f"Bearer {token}"}

    def measure(
        self, title: str, attack: Callable[["Server", float], Counter], crop: Path, seconds: float
    ) -> dict[str, object]:
        """Measure one attack."""
        over, files = threading.Event(), [("files", (crop.name, crop.read_bytes()))]
        served, longest, disk = Counter(), [0.0], [0]

        def send_crops() -> None:
            while not over.is_set():
                began = time.monotonic()
                with suppress(httpx.TransportError):
                    answer = httpx.post(f"{self.address}/v1/predict", files=files, headers=self.headers, timeout=120)
                    served[answer.status_code] += 1
                longest[0] = max(longest[0], time.monotonic() - began)
                served["all"] += 1
                over.wait(0.2)

        def watch() -> None:
            while not over.is_set():
                disk[0] = max(disk[0], self._temporary_bytes())
                busy.measure()
                over.wait(0.1)

        before, busy = self._temporary_bytes(), Busy(self.process.pid)
        with ThreadPoolExecutor(2) as threads:
            running = [threads.submit(send_crops), threads.submit(watch)]
            answers = attack(self, seconds)
            time.sleep(0.5)  # the server notices the disconnect
            during = busy.measure()
            idle = Busy(self.process.pid)
            time.sleep(AFTER_S)
            over.set()
            [one.result() for one in running]
        own = served[200]
        return {
            "attack": title,
            "answers": ", ".join(f"{count} x {answer}" for answer, count in sorted(answers.items(), key=str)),
            "busy_seconds": during,
            "busy_after_seconds": idle.measure(),
            "disk_bytes": max(0, disk[0] - before),
            "served": own,
            "not_served": served["all"] - own,
            "longest_seconds": longest[0],
        }

    def _temporary_bytes(self) -> int:
        """Sum the bytes in the folder, and in open files without a name."""
        total = 0
        for folder, _, names in os.walk(self.temporary):
            for name in names:
                with suppress(OSError):
                    total += (Path(folder) / name).stat().st_size
        for opened in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):
                if str(opened.readlink()).startswith(str(self.temporary)) and opened.stat().st_nlink == 0:
                    total += opened.stat().st_size
        return total


class Busy:
    """Clock of the processor time of a server's decoding processes, in seconds."""

    def __init__(self, pid: int):
        self.pid, self.latest = pid, {}
        self.start = self._now()

    def measure(self) -> float:
        """Return the time so far; a process that has ended counts until its last measurement."""
        self.latest |= self._now()
        return sum(seconds - self.start.get(child, 0.0) for child, seconds in self.latest.items())

    def _now(self) -> dict[str, float]:
        seconds, tick = {}, os.sysconf("SC_CLK_TCK")
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):
                for child in (task / "children").read_text().split():
                    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                    seconds[child] = (int(fields[11]) + int(fields[12])) / tick
        return seconds


def attacks(to: str) -> list[tuple[str, Callable[[Server, float], Counter]]]:
    """List all attacks with their titles."""
    uploads = [(f"{PARALLEL} x {name}", _uploads(name, content, to)) for name, content in slow_and_large().items()]
    slow = slow_and_large()["many_scans.jpg"]
    head = b"GET /v1/model HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    upgrade = head + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    body = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4000\r\n" + CRLF
    return [
        *uploads,
        (f"{PARALLEL} x 25 many_scans.jpg in a request", _uploads("a.jpg", slow, to, 25)),
        (f"{PARALLEL} x many_scans.jpg, the client disconnects after 1 s", _disconnecting("a.jpg", slow, to)),
        ("12 x 64 MB to /login, without token", _bodies("/login", chunked=False)),
        ("12 x 64 MB to /login, chunked, without token", _bodies("/login", chunked=True)),
        ("12 x 64 MB to /v1/predict, chunked, without token", _bodies("/v1/predict", chunked=True)),
        (f"{HELD} x no headers", _held(b"")),
        (f"{HELD} x half headers", _held(head)),
        (f"{HELD} x half handshake of a websocket", _held(upgrade)),
        (f"{HELD} x half body of /login", _held(body)),
    ]


def _uploads(name: str, content: bytes, to: str, times: int = 1) -> Callable[[Server, float], Counter]:
    def attack(server: Server, seconds: float) -> Counter:
        def send(_: int) -> str:
            try:
                files = [("files", (name, content))] * times
                answer = httpx.post(server.address + to, files=files, headers=server.headers, timeout=seconds)
            except httpx.TransportError as error:
                return type(error).__name__
            after = answer.headers.get("Retry-After")
            return f"{answer.status_code}" + (f" (Retry-After {after})" if after else "")

        with ThreadPoolExecutor(PARALLEL) as pool:
            return Counter(pool.map(send, range(PARALLEL)))

    return attack


def _disconnecting(name: str, content: bytes, to: str) -> Callable[[Server, float], Counter]:
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n' % name.encode()
    body = part + content + b"\r\n--x--\r\n"

    def attack(server: Server, seconds: float) -> Counter:
        head = f"POST {to} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.token}\r\n"
        head += f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
        made = [socket.create_connection(("127.0.0.1", server.port), seconds) for _ in range(PARALLEL)]
        for one in made:
            one.sendall(head.encode() + body)
        time.sleep(1)
        for one in made:
            one.close()
        return Counter({"disconnected": PARALLEL})

    return attack


def _bodies(path: str, *, chunked: bool) -> Callable[[Server, float], Counter]:
    part = b'--x\r\nContent-Disposition: form-data; name="token"; filename="a"\r\n\r\n'

    def attack(server: Server, seconds: float) -> Counter:
        def send(_: int) -> str:
            size = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % BODY
            head = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n%s\r\n\r\n"
            sent, block, until = 0, bytes(2**16), time.monotonic() + seconds
            with socket.create_connection(("127.0.0.1", server.port), seconds) as made:
                with suppress(OSError):
                    made.sendall(head % (path.encode(), size))
                    made.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
                    while sent < BODY and time.monotonic() < until:
                        made.sendall(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
                        sent += len(block)
                with suppress(OSError):
                    return (made.recv(100).split() or [b"", b"closed"])[1].decode()
            return "closed"

        with ThreadPoolExecutor(12) as pool:
            return Counter(pool.map(send, range(12)))

    return attack


def _held(content: bytes) -> Callable[[Server, float], Counter]:
    def attack(server: Server, seconds: float) -> Counter:
        made, until = [], time.monotonic() + min(seconds, 30)
        for _ in range(HELD):
            one = socket.create_connection(("127.0.0.1", server.port), seconds)
            with suppress(OSError):
                one.sendall(content)
            made.append(one)
        opened = set(made)
        while opened and time.monotonic() < until:
            for one in list(opened):
                one.setblocking(False)
                try:
                    if not one.recv(1000):
                        opened.discard(one)
                except BlockingIOError:
                    continue
                except OSError:
                    opened.discard(one)
            time.sleep(0.1)
        for one in made:
            one.close()
        took = round(min(seconds, 30) - max(0.0, until - time.monotonic()))
        return Counter({f"closed within {took} s": HELD - len(opened), "still open": len(opened)})

    return attack


def _address(process: subprocess.Popen, log: Path) -> str:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        match = re.search(r"http://\S+:\d+", log.read_text())
        with suppress(httpx.TransportError):
            if match and httpx.get(f"{match[0]}/readyz").status_code == 200:
                return match[0]
        time.sleep(0.1)
    raise SystemExit(f"the server does not start: {log.read_text()}")


if __name__ == "__main__":
    main()
