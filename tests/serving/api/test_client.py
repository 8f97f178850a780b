"""The client in one file: every route of the real service, and what it does after failures."""

import http.server
import json
import re
import subprocess
import sys
import threading
import time
from typing import NotRequired, get_origin, get_type_hints, is_typeddict

import pytest

from sigma_jax.serving import client as client_file
from sigma_jax.serving.client import Client, ServiceError


@pytest.fixture
def address(port):
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def service_client(address, monkeypatch):
    """A client that notes the method and the path of each call in `calls`."""
    client = Client(address, timeout=60)
    client.calls = []
    begin = client._begin

    def noting(connection, method, path, *content):
        client.calls.append((method, path.partition("?")[0]))
        return begin(connection, method, path, *content)

    monkeypatch.setattr(client, "_begin", noting)
    yield client
    client.close()


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def use_every_method(client, items, worker):
    """Calls each method once and checks what it returns."""
    client.put_user("a b?é", {"city": "Łódź"})
    assert client.user("a b?é") == {"city": "Łódź"}
    assert client.put_users({"bob": {}, "cy": {"n": 1}}) == 2
    assert client.users("a b?é", 1) == ["bob"]
    event = {"user_id": "a b?é", "item_id": items[0], "event_id": "e1"}
    unknown = {"user_id": "a b?é", "item_id": "nope", "event_id": "e 2"}
    assert client.add_events([event, unknown]) == {"stored": 2, "unknown_items": 1}
    assert client.add_events([event]) == {"stored": 0, "unknown_items": 0}
    more = [event, {"user_id": "a b?é", "item_id": items[1]}]
    assert client.add_many_events(more) == {"stored": 1, "unknown_items": 0}
    assert client.add_many_events([]) == {"stored": 0, "unknown_items": 0}
    assert client.delete_events("a b?é", "e 2") == 1
    assert [one["item_id"] for one in client.events("a b?é")] == items[:2]
    [first, second] = client.stored_events(since=1)
    assert first["event_id"] == "e1" and second["user_id"] == "a b?é"
    assert list(client.stored_events(after="z")) == []
    time.sleep(0.02)
    worker.run_once()
    listed = client.recommendations("a b?é", count=5, seen="hide", exclude=items[2:4], explain=True)
    assert listed["source"] == "index" and not set(items[:4]) & set(ids(listed))
    assert listed["items"][0]["details"]
    category = client.categories()[0]
    some = client.recommendations("a b?é", categories=[category["name"]], count=3)
    assert [client.item(one)["category"] for one in ids(some)] == [category["name"]] * 3
    assert [one["item_id"] for one in client.items(items[0], 2)] == items[1:3]
    assert client.ask("a b?é", "soap", count=3, deadline_ms=60_000)["source"] == ("computed")
    assert len(client.similar(items[0], 4)["items"]) == 4
    assert client.popular(2)["source"] == "popular"
    assert client.trending(12, count=2)["source"] == "trending"
    [answer] = client.wait(client.submit([{"instruction": "tea", "count": 2}])["job_id"])
    assert len(answer["items"]) == 2
    client.put_item_state(items[0], hidden=True)
    assert client.item_state(items[0])["hidden"]
    states = [{"item_id": items[1], "stock": 0}, {"item_id": "nope"}]
    assert client.put_item_states(states) == {"stored": 1, "unknown_items": 1}
    assert client.put_item_states([]) == {"stored": 0, "unknown_items": 0}
    assert set(client.item_states()) == set(items[:2])
    client.put_rule("p", "pin", items=[items[5]])
    assert set(client.rules()) == {"p"}
    client.delete_rule("p")
    client.delete_user("cy")
    assert client.delete_events("a b?é") == 2
    arms = [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5, "lists": {"home": "tea"}}]
    assert client.start_experiment("x", arms)["stopped"] is None
    assert set(client.experiments()) == {"x"}
    assert client.experiment_report("x", 1, kinds=["buy"])["kinds"] == ["buy"]
    client.stop_experiment("x")
    client.delete_experiment("x")
    assert not client.clock()["is_replay"]
    assert client.is_healthy() and client.is_ready() and not client.is_ready(is_warmed_up=True)
    assert "sigma_queue_size" in client.metrics()
    assert [version["name"] for version in client.versions()] == ["0001"]
    with pytest.raises(ServiceError, match="404: there is no version"):
        client.activate("0009")
    with pytest.raises(ServiceError, match=r"400: .*no version was active before"):
        client.roll_back()
    with pytest.raises(ServiceError, match="404: there is no item"):
        client.delete_item("none")
    with pytest.raises(ServiceError, match="404: there is no item"):
        client.restore_item("none")
    with pytest.raises(ServiceError, match=r"422: .*body\.items"):
        client.add_items([])
    assert client.tree()["prefixes"] and "Query" in client.tasks()
    [model] = client.models()
    assert model["is_active"] and client.activate_model(model["name"]) == model
    with pytest.raises(ServiceError, match=r"400: .*no model was active before"):
        client.roll_back_model()
    assert len(client.preview("0001", instruction="tea", count=2)["items"]) == 2
    client.drain()
    assert not client.is_ready()


def test_the_client_has_every_route(service_client, app, engine, worker):
    items = engine.current.version.catalogue.table["item_id"].to_pylist()
    use_every_method(service_client, items, worker)
    called = set()
    described = app.openapi()["paths"]
    routes = {(method.upper(), path) for path, found in described.items() for method in found}
    for method, path in service_client.calls:
        for name, template in routes:
            if name == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
                called.add((name, template))
    # Fixed paths also fit a template: GET /v1/users/bulk does not exist.
    assert called == routes


def typed_dicts():
    """The types of the client's answers and rows, by name."""
    found = vars(client_file).items()
    return {name: one for name, one in found if isinstance(one, type) and is_typeddict(one)}


@pytest.mark.parametrize("name", sorted(typed_dicts()))
def test_types_are_those_of_the_description(app, name):
    described = app.openapi()
    schemas = described["components"]["schemas"]
    for path, method in (("/v1/events/bulk", "post"), ("/v1/items/states", "put")):
        body = described["paths"][path][method]["requestBody"]["content"]
        row = body["application/x-ndjson"]["schema"]
        schemas = {row["title"]: row, **schemas}
    of_service = {"Event": "EventIn"}
    schema = schemas[of_service.get(name, name)]
    one = typed_dicts()[name]
    assert set(one.__annotations__) == set(schema["properties"])
    if name in ("Event", "StateRow"):  # rows that callers send
        hints = get_type_hints(one, include_extras=True).items()
        needed = {field for field, hint in hints if get_origin(hint) is not NotRequired}
        assert needed == set(schema["required"])


def test_long_calls_have_time_and_are_not_repeated(scripted, monkeypatch):
    seconds = []
    begin = scripted.client._begin

    def noting(connection, *call):
        seconds.append(connection.timeout)
        assert connection.sock is None or connection.sock.gettimeout() == connection.timeout
        return begin(connection, *call)

    monkeypatch.setattr(scripted.client, "_begin", noting)
    client = scripted.client
    for call in (
        lambda: client.users(),
        lambda: client.ask(),
        lambda: client.ask(deadline_ms=30_000),
        lambda: client.add_items([{}]),
        lambda: client.delete_item("i"),
        lambda: client.activate("v"),
        lambda: client.activate_model("m"),
        lambda: client.preview(),
        lambda: client.users(),
    ):
        call()
    assert seconds == [10, 10, 35, 600, 600, 600, 600, 600, 10]

    def late(*_):
        scripted.calls.append("late")
        raise TimeoutError("timed out")

    monkeypatch.setattr(client, "_begin", late)
    for call, times in ((client.ask, 1), (lambda: client.activate("v"), 1), (client.users, 4)):
        scripted.calls.clear()
        with pytest.raises(ServiceError, match="timed out"):
            call()
        assert len(scripted.calls) == times


def test_errors_say_status_message_and_place(service_client):
    with pytest.raises(ServiceError) as caught:
        service_client.ask(count=0)
    assert (caught.value.status, caught.value.where) == (422, "body.count")
    assert str(caught.value).startswith("422: ") and "(body.count)" in str(caught.value)
    with pytest.raises(ServiceError, match=r"no answer: 127\.0\.0\.1: .*refused"):
        Client("http://127.0.0.1:1", retries=0).users()
    with pytest.raises(ValueError, match="use http://HOST:PORT"):
        Client("127.0.0.1:8000")


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with the statuses of a script; 0 ends the connection without an answer."""

    protocol_version = "HTTP/1.1"

    def handle_one(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        server = self.server
        server.calls.append((self.command, self.path, self.headers.get("authorization")))
        status = server.script.pop(0) if server.script else 200
        if not status:
            self.close_connection = True
            return
        body = b"" if status == 204 else server.body
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status in (429, 503):
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = handle_one

    def log_message(self, *_):
        pass


@pytest.fixture
def scripted(monkeypatch):
    """A server that answers by its `script`, and the pauses that the client makes."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.script, server.calls, server.pauses = [], [], []
    server.body = json.dumps({"user_ids": [], "stored": 1, "job_id": "j"}).encode()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(client_file.time, "sleep", server.pauses.append)
    server.client = Client(f"http://127.0.0.1:{server.server_port}/shop/", key="secret", retries=3)
    yield server
    server.client.close()
    server.shutdown()
    server.server_close()


def test_harmless_calls_are_repeated(scripted):
    scripted.script = [503, 0, 429]
    assert scripted.client.users() == []
    assert [call[:2] for call in scripted.calls] == [("GET", "/shop/v1/users?after=&count=100")] * 4
    assert scripted.calls[0][2] == "Bearer secret"
    first, lost, last = scripted.pauses
    assert 0.5 <= first <= 1 and 0.1 <= lost <= 0.2 and 0.5 <= last <= 1  # Retry-After: 1
    scripted.script = [503] * 9
    with pytest.raises(ServiceError) as caught:
        scripted.client.users()
    assert caught.value.status == 503 and len(scripted.calls) == 8


def test_pauses_grow(scripted):
    scripted.script = [0, 0, 0]
    scripted.client.users()
    pairs = zip(scripted.pauses, (0.1, 0.2, 0.4), strict=True)
    assert all(most / 2 <= pause <= most for pause, most in pairs)


@pytest.mark.parametrize("status", [0, 503])
def test_calls_that_would_count_twice_are_not_repeated(scripted, status):
    event = {"user_id": "ann", "item_id": "tea"}
    for call in (
        lambda client: client.add_events([event]),
        lambda client: client.add_many_events([event]),
        lambda client: client.submit([{}]),
        lambda client: client.add_items([{}]),
        lambda client: client.roll_back(),
    ):
        scripted.script, scripted.calls[:] = [status], []
        with pytest.raises(ServiceError):
            call(scripted.client)
        assert len(scripted.calls) == 1
    scripted.script, scripted.calls[:] = [status], []
    assert scripted.client.add_events([{**event, "event_id": "e1"}])["stored"] == 1
    assert len(scripted.calls) == 2


def test_wrong_calls_are_not_repeated(scripted):
    scripted.script, scripted.body = [404], b"<html>"
    with pytest.raises(ServiceError, match="404: <html>"):
        scripted.client.users()
    assert len(scripted.calls) == 1


def test_the_client_needs_no_other_package():
    code = (
        "import sys; import sigma_jax.serving.client; "
        "print({'jax', 'numpy', 'fastapi', 'httpx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
