"""An application that uvicorn serves in a thread, as the command `serve` does."""

import contextlib
import threading
import time

import uvicorn

from sigma_jax.serving.api.wire import TimedProtocol


@contextlib.contextmanager
def served(app):
    """The port of an application that uvicorn serves in a thread."""
    config = uvicorn.Config(app, port=0, http=TimedProtocol, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)
