"""HTTP server with limits on connections: time for headers, idle time, unread answers, header size, and number.

uvicorn limits only the idle time after an answer. A client that never completes its headers, or never reads its answer,
would hold its connection for ever.
"""

import asyncio
import math
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from urnet.errors import RunError
from urnet.serve.settings import Settings

PROGRESS_BYTES = 2**16
"""Bytes of an answer that a client has to read in `write_seconds`."""


def connection_options(settings: Settings) -> dict[str, Any]:
    """Return the options of `uvicorn.Config` that limit the connections of one server."""
    return {
        "http": type("Protocol", (LimitedProtocol,), {"settings": settings, "by_age": {}}),
        "timeout_keep_alive": settings.idle_seconds,
        "h11_max_incomplete_event_size": settings.header_bytes,
        "ws_max_size": settings.event_bytes,
    }


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with limits; `connection_options` creates the class for a server.

    A connection waits from its start, or from the end of an answer, until the headers of a request are complete. The
    number of connections includes websockets, whose dead peers uvicorn detects by pings.

    Attributes:
        settings: limits of the server.
        by_age: connections of the server without websockets, in the order of their last change of state.
    """

    settings: Settings
    by_age: dict["LimitedProtocol", None]

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for headers. Above the limit, close the oldest idle connection, else the oldest that still sends."""
        super().connection_made(transport)
        self._wait(self.settings.header_seconds)
        if len(self.connections) > self.settings.max_connections:
            waiting = next(one for one in self.by_age if one.is_waiting)  # this connection if there is no other
            sending = next((one for one in self.by_age if not one.is_waiting and one.cycle.more_body), waiting)
            (sending if waiting is self else waiting).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the list."""
        self._forget()
        _cancel(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read headers or a body."""
        super().data_received(data)
        if self.transport.get_protocol() is not self:  # a websocket now
            self._forget()
        elif not self.is_waiting:
            _cancel(self._header_timer)

    def on_response_complete(self) -> None:
        """Wait for the next request; the rest of the body of this one has to arrive meanwhile."""
        self._wait(self.settings.idle_seconds + self.settings.header_seconds)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Check from now on that the client reads the answer."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Continue after the client has read."""
        _cancel(self._write_timer)
        self._write_timer = None
        super().resume_writing()

    @property
    def is_waiting(self) -> bool:
        """Whether the connection waits for a request."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, seconds: float) -> None:
        self.by_age.pop(self, None)
        self.by_age[self] = None
        _cancel(self._header_timer)
        self._header_timer = self.loop.call_later(seconds, self._stop_waiting, seconds)

    def _stop_waiting(self, seconds: float) -> None:
        if self._write_timer is None:
            self.transport.abort()
        else:  # the client still reads the previous answer
            self._header_timer = self.loop.call_later(seconds, self._stop_waiting, seconds)

    def _watch_writing(self, max_bytes: float = math.inf) -> None:
        left = self.transport.get_write_buffer_size()
        if left > max_bytes:
            self.transport.abort()
        else:
            seconds = self.settings.write_seconds
            self._write_timer = self.loop.call_later(seconds, self._watch_writing, left - PROGRESS_BYTES)

    def _forget(self) -> None:
        _cancel(self._header_timer)
        self.by_age.pop(self, None)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """HTTP server that reports when it accepts connections.

    Args:
        config: configuration of uvicorn.
        on_ready: called when the server accepts connections.
    """

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]):
        super().__init__(config)
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen.

        Raises:
            RunError: another process listens on the port.
        """
        try:
            await super().startup(sockets)
        except OSError as error:
            await self.lifespan.shutdown()
            raise RunError(
                f"the port cannot be used ({error.strerror}); choose another --port", code="serve.port_in_use"
            ) from None
        if self.started:
            self.on_ready()
