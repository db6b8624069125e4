#!/usr/bin/env python3
"""Prints what bots report, one line of JSON for each file: WEBHOOK_TOKEN=… receiver.py PORT"""

import hmac
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

EXPECTED = f"Bearer {os.environ['WEBHOOK_TOKEN']}".encode()
MAX_BODY = 65536


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        if not hmac.compare_digest(self.headers.get("Authorization", "").encode(), EXPECTED):
            return self.send_error(401)
        try:
            length = int(self.headers["Content-Length"])
            event = json.loads(self.rfile.read(length)) if 0 < length <= MAX_BODY else None
        except (TypeError, ValueError):
            event = None
        if event is None:
            return self.send_error(400)
        print(json.dumps(event), flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
