"""Measure throughput and latency of the server: clients that send one image after the other, on loopback.

    python benchmarks/serve.py --clients 32 --seconds 120 --out serve.json

The network is that of the quick recipe with random weights, as in `benchmarks/inference.py`. The clients run in one
process; each sends a crop, waits for the answer and sends the next. Printed: answers by status, latency (p50, p95, p99)
and its ratio, images per second, and the memory of the server at the beginning and at the end.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from inference import make
from machine import describe, load

WARM_UP_S = 5.0
"""Time before the first measurement of the server's memory, in seconds."""


def main() -> None:
    """Run the clients, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)  # arguments of the process of the clients
    arguments = parser.parse_args()
    if arguments.ask:
        return asyncio.run(
            send_requests(arguments.ask[0], Path(arguments.ask[1]), arguments.clients, arguments.seconds)
        )
    about = describe("onnxruntime", "fastapi", "uvicorn") | {"load": [load()]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make("quick", 200, folder)
        command = "from urnet.cli import main; main()"
        places = [str(folder / "bundle"), "--database", str(folder / "labels.db"), "--port", "0"]
        server = subprocess.Popen([sys.executable, "-c", command, "serve", *places], stdout=subprocess.PIPE, text=True)
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            while not _is_up(address):
                time.sleep(0.1)
            figures = run_clients(arguments, address, folder / "crops", server.pid)
        finally:
            server.terminate()
            server.wait()
    about["load"].append(load())
    for name, value in figures.items():
        print(f"{name:20} {value}")
    if arguments.out is not None:
        whole = about | {"clients": arguments.clients, "seconds": arguments.seconds} | figures
        arguments.out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def run_clients(arguments: argparse.Namespace, address: str, crops: Path, server: int) -> dict:
    """Run the clients in a process, and measure the memory of the server."""
    amount = ["--clients", str(arguments.clients), "--seconds", str(arguments.seconds)]
    process = subprocess.Popen(
        [sys.executable, __file__, *amount, "--ask", address, str(crops)], stdout=subprocess.PIPE, text=True
    )
    time.sleep(min(WARM_UP_S, arguments.seconds / 4))
    first = _memory(server)
    figures = process.communicate()[0]
    return json.loads(figures) | {"memory_mb_first": first, "memory_mb_last": _memory(server)}


async def send_requests(address: str, crops: Path, count: int, seconds: float) -> None:
    """Send requests as all clients do, with little processor time, which the server needs."""
    requests = [_request(address, path) for path in sorted(crops.iterdir())]
    host, _, port = address.removeprefix("http://").rpartition(":")
    until, latencies, statuses = time.perf_counter() + seconds, [], Counter()

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.perf_counter() < until:
            number = (number + 1) % len(requests)
            begun = time.perf_counter()
            writer.write(requests[number])
            statuses[await _read_status(reader)] += 1
            latencies.append(time.perf_counter() - begun)
        writer.close()

    await asyncio.gather(*(one(7 * number) for number in range(count)))
    p50, p95, p99 = (float(np.percentile(latencies, q)) for q in (50, 95, 99))
    figures = {"p50_ms": 1e3 * p50, "p95_ms": 1e3 * p95, "p99_ms": 1e3 * p99, "p95_over_p50": p95 / p50}
    print(json.dumps({"answers": dict(statuses), "images_a_second": len(latencies) / seconds, **figures}))


def _request(address: str, path: Path) -> bytes:
    """Build the bytes of the request for one crop."""
    request = httpx.Request("POST", f"{address}/v1/predict", files={"files": (path.name, path.read_bytes())})
    head = [f"POST {request.url.path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
    return "\r\n".join([*head, "", ""]).encode("ascii") + request.read()


async def _read_status(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end, and return its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    await reader.readexactly(int(re.search(r"(?i)^content-length: *(\d+)", head, re.MULTILINE)[1]))
    return int(head.split(maxsplit=2)[1])


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _memory(process: int) -> float | None:
    """Return the memory of a process and its children, in MB; none on systems other than Linux."""
    place = Path(f"/proc/{process}/task/{process}/children")
    if not place.is_file():
        return None
    processes = [process, *map(int, place.read_text(encoding="ascii").split())]
    pages = sum(int(Path(f"/proc/{one}/statm").read_text(encoding="ascii").split()[1]) for one in processes)
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


if __name__ == "__main__":
    main()
