"""A recorded endpoint: a server on this machine that answers chats as a test says."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sigma_jax.language_model.ask import EndpointChats
from sigma_jax.language_model.endpoint import Endpoint


class Recorded:
    """A server on this machine that answers chats as `answer` says."""

    def __init__(self):
        self.asked: list[str] = []  # the last message of each request
        self.times: list[float] = []
        self.answer = lambda number, text: good(text)
        recorded = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                recorded.asked.append(text)
                recorded.times.append(time.monotonic())
                status, content = recorded.answer(len(recorded.asked), text)
                payload = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def model(self, name="small", parallel=1, requests_per_minute=0.0):
        return EndpointChats(Endpoint(self.url, name, 50, 0.0), parallel, requests_per_minute)


def chat(text, usage=(100, 20)):
    """A reply of the protocol."""
    prompt, reply = usage
    counted = {
        "prompt_tokens": prompt,
        "completion_tokens": reply,
        "total_tokens": prompt + reply,
    }
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "small",
        "choices": [choice],
        "usage": counted,
    }


def good(text):
    return chat(json.dumps([f"a need {text}", f"a plan {text}"]))
