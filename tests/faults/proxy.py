"""A small TCP proxy between a node and Redis that can be slow, freeze, lose answers, or cut the line."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536
POLL_S = 0.01


class Proxy:
    """Carries bytes between whoever connects to `port` and a server on this machine; use it in a `with`.

    Args:
        target_port: Where the server listens, at 127.0.0.1.

    Attributes:
        port: Where the proxy listens, at 127.0.0.1.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._delay_s = 0.0
        self._frozen = False
        self._mute = False
        self._refusing = False
        self._closed = False
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._forgotten: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._listener.close()
        self.cut()

    @contextmanager
    def delay(self, delay_s: float) -> Iterator[None]:
        """Every byte, either way, arrives so much later."""
        self._delay_s = delay_s
        try:
            yield
        finally:
            self._delay_s = 0.0

    def freeze(self) -> None:
        """From now on nothing arrives, and nobody is told: a black hole. What is sent waits for `thaw`."""
        self._frozen = True

    def thaw(self) -> None:
        """Deliver what was sent meanwhile, however late: that is what TCP does when a line comes back."""
        self._frozen = False

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """`freeze`, and `thaw` at the end."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    @contextmanager
    def answers_lost(self) -> Iterator[None]:
        """Requests arrive and are obeyed; the answers vanish, and with them, in the end, the connections."""
        self._mute = True
        try:
            yield
        finally:
            self.cut()
            self._mute = False

    def forget(self) -> None:
        """Lose every connection without a word, as a firewall does that is restarted; new ones are welcome."""
        with self._lock:
            self._forgotten |= self._pairs

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """All connections are reset, and new ones as well."""
        self._refusing = True
        self.cut()
        try:
            yield
        finally:
            self._refusing = False

    def cut(self) -> None:
        """Reset every connection; new ones are welcome."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                _reset(end)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            for source, sink, answers in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._carry, args=(source, sink, pair, answers), daemon=True).start()

    def _carry(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket], answers: bool
    ) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                if self._delay_s:
                    time.sleep(self._delay_s)
                while self._frozen and not self._closed:
                    time.sleep(POLL_S)
                if not (answers and self._mute) and pair not in self._forgotten:
                    sink.sendall(data)
            # The end of a stream is news as well: in a black hole nobody hears of it.
            while (self._frozen or pair in self._forgotten) and pair in self._pairs and not self._closed:
                time.sleep(POLL_S)
        except OSError:
            pass
        with self._lock:
            self._pairs.discard(pair)
            self._forgotten.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


def _reset(end: socket.socket) -> None:
    """Close a socket so that the other side sees a reset, and a thread that reads it wakes."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()
