"""A stand-in for somebody else's HTTP API, used by files.py: it is down now and then, and charges for each document."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class OcrService:
    """Answers 503 to the first `outages` calls, 422 to what it cannot read, and else the text in capital letters."""

    def __init__(self, outages: int) -> None:
        self.outages = outages
        self.calls = 0
        self.refused = 0
        self._keys: set[str | None] = set()
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                status, answer = service.answer(text, self.headers.get("Idempotency-Key"))
                body = json.dumps({"text": answer}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def charged(self) -> int:
        return len(self._keys)

    def answer(self, text: str, key: str | None) -> tuple[int, str]:
        with self._lock:
            self.calls += 1
            if self.refused < self.outages:
                self.refused += 1
                return 503, ""
            self._keys.add(key)
        return (422, "") if "?" in text else (200, text.upper())

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
