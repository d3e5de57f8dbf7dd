"""A web server with moods: `python web.py FOLDER PORT MOODS`.

MOODS is a JSON file, read for every request: {"delay": seconds, "status": code, "for": part of the
names that get it, "times": how often}. Without the file it answers at once, with the files.
"""

import json
import sys
import time
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

failed = Counter()


class Moody(SimpleHTTPRequestHandler):
    """Answers as the file says."""

    def do_GET(self) -> None:
        """Wait, then fail or answer."""
        moods = Path(sys.argv[3])
        mood = json.loads(moods.read_text()) if moods.exists() else {}
        time.sleep(mood.get("delay", 0))
        if "status" in mood and mood.get("for", "") in self.path:
            failed[self.path] += 1
            if failed[self.path] <= mood.get("times", 10**9):
                return self.send_error(mood["status"])
        return super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay quiet."""


if __name__ == "__main__":
    folder, port, _ = sys.argv[1:]
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), partial(Moody, directory=folder))
    print("ready", flush=True)
    server.serve_forever()
