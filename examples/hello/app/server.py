"""A page that counts its visits: run it, or let it visit itself with ``--self-test``."""

import http.server
import os
import pathlib
import sys
import threading
import urllib.request

GREETING = pathlib.Path(__file__).with_name("greeting.txt")
VISITS = pathlib.Path("/var/lib/hello/visits")


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        count = int(VISITS.read_text()) + 1 if VISITS.exists() else 1
        VISITS.write_text(f"{count}\n")
        body = f"{GREETING.read_text().strip()}, visit {count}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    port = int(os.environ.get("PORT", "8000"))
    server = http.server.ThreadingHTTPServer(("0.0.0.0", port), Page)
    if "--self-test" not in sys.argv:
        print(f"listening on port {port}", flush=True)
        server.serve_forever()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for _ in range(2):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            print(answer.read().decode(), end="")
    server.shutdown()


if __name__ == "__main__":
    main()
