"""Moto's S3 server, with conditional writes that are atomic, as S3's are.

    python -m tests.system.atomic_moto PORT

Moto looks whether the object is there and then stores it: two requests at once can both win.
"""

import functools
import sys
import threading

from moto.s3.responses import S3Response
from moto.server import main

if __name__ == "__main__":
    put_object = S3Response.put_object
    lock = threading.Lock()

    @functools.wraps(put_object)
    def one_at_a_time(self):
        with lock:
            return put_object(self)

    S3Response.put_object = one_at_a_time
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
