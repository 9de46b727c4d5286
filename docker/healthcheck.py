"""Exit 0 when the process in this container answers on its port: `python healthcheck.py /health/live`.

Live, not ready: a container whose database is away should wait for it, not be restarted. The port is ADAPTIDE_PORT; for
/metrics, which the updater shows, ADAPTIDE_TRAINER_PORT.
"""

import os
import sys
import urllib.request

path = sys.argv[1]
port = (
    os.environ.get("ADAPTIDE_TRAINER_PORT", "8001") if path == "/metrics" else os.environ.get("ADAPTIDE_PORT", "8000")
)
try:
    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).read()  # http, and our own
except OSError as error:
    sys.exit(f"{path} on port {port}: {error}")
