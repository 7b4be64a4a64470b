"""An object store in front of another, which is slow and now and then too busy to answer.

Run with the other's port; prints its own. Every third request is answered 503, and each waits a
little.
"""

import http.client
import itertools
import sys
import threading
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DELAY_SECONDS = 0.05
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_NOT_PASSED_ON = {"connection", "transfer-encoding", "content-length", "expect", "server"}


def _passed_on(headers: Message) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key.lower() not in _NOT_PASSED_ON}


class FlakyStore(BaseHTTPRequestHandler):
    """Passes requests on, but for those that it refuses."""

    protocol_version = "HTTP/1.1"
    store: int
    """The other's port."""
    requests = itertools.count(1)
    counting = threading.Lock()

    def answer(self) -> None:
        """Any request."""
        body = self.body()
        time.sleep(DELAY_SECONDS)
        with self.counting:
            is_busy = next(self.requests) % 3 == 0
        if is_busy:
            self.reply(503, {"Content-Type": "application/xml"}, _BUSY)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.store)
        connection.request(self.command, self.path, body, _passed_on(self.headers))
        answer = connection.getresponse()
        length = answer.headers.get("Content-Length")
        self.reply(answer.status, _passed_on(answer.headers), answer.read(), length)
        connection.close()

    def body(self) -> bytes:
        """What came with the request, whole."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reply(
        self, status: int, headers: dict[str, str], body: bytes, length: str | None = None
    ) -> None:
        """Of a HEAD, the length is not that of what is sent."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer


if __name__ == "__main__":
    FlakyStore.store = int(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), FlakyStore)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
