"""A service without keys answers this machine alone; ids may hold a "/"."""

import pytest

LINES = {"Content-Type": "application/x-ndjson"}
READ = "/v1/users/ann/recommendations"  # takes the short way


@pytest.mark.parametrize("path", [READ, READ + "?seen=show", "/v1/events", "/healthz", "/"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example:8000"},
        {"Host": "10.0.0.7"},
        {"Host": "[::1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_other_websites_are_refused(client, path, headers):
    answer = client.get(path, headers=headers)
    assert answer.status_code == 403 and answer.json()["where"] == "header"
    assert "a service without keys answers programs" in answer.json()["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LOCALHOST:8000"},
        {"Host": "127.0.0.1:99"},
        {"Host": "127.1.2.3"},
        {"Host": "[::1]:8000"},
        {"Host": "testserver"},  # the host that the service was told to listen to
        {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=str,
)
def test_this_machine_is_answered(client, headers):
    for path in (READ, "/v1/popular", "/docs"):
        assert client.get(path, headers=headers).status_code == 200
    event = {"events": [{"user_id": "ann", "item_id": "i1"}]}
    assert client.post("/v1/events", json=event, headers=headers).status_code == 200


def test_a_link_to_the_page_may_be_followed(client):
    link = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert client.get("/", headers=link).status_code == 200
    assert client.get(READ, headers=link).status_code == 403  # it would count as shown
    assert client.post("/v1/catalogue/rollback", headers=link).status_code == 403
    assert client.get("/", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


def test_a_website_changes_nothing(client, shop):
    """Each call is one that a browser sends without asking the service first."""
    line = '{"user_id": "ann", "item_id": "i1"}'
    site = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {"Content-Type": media_type}
        for path in ("/v1/events/bulk", "/v1/users/bulk"):
            answer = client.post(path, content=line, headers=headers)
            assert answer.status_code == 415
            assert "send JSON lines as application/x-ndjson" in answer.json()["error"]
            assert client.post(path, content=line, headers=headers | site).status_code == 403
    assert client.post("/v1/drain", headers=site).status_code == 403
    assert client.get("/readyz").status_code == 200 and shop.users("", 9) == []


@pytest.mark.parametrize("name", ["x-ndjson", "jsonl", "json", "json; charset=utf-8"])
def test_json_lines_have_several_names(client, name):
    headers = {"Content-Type": f"application/{name}"}
    answer = client.post("/v1/users/bulk", content='{"user_id": "ann"}', headers=headers)
    assert answer.json() == {"stored": 1}


def test_a_service_with_keys_is_called_from_anywhere(keyed):
    headers = {"X-API-Key": "read", "Host": "shop.example", "Origin": "https://shop.example"}
    for path in (READ, "/v1/popular"):
        assert keyed.get(path, headers=headers).status_code == 200
        cross = headers | {"Sec-Fetch-Site": "cross-site"}
        assert keyed.get(path, headers=cross).status_code == 200


def test_ids_may_hold_a_slash(client, shop):
    """A %2F is a part of an id; it never leads to another route."""
    for user in ("a", "a/events", "a/b", "a%2Fb", "//"):
        path = "/v1/users/" + user.replace("%", "%25").replace("/", "%2F")
        body = {"events": [{"user_id": user, "item_id": "i/1", "event_id": "e/1" + user}]}
        assert client.post("/v1/events", json=body).json()["stored"] == 1
        assert client.put(path, json={"profile": {"n": 1}}).json()["user_id"] == user
        assert client.get(path).json()["user_id"] == user
        assert client.get(path + "/events").json()["user_id"] == user
        answer = client.get(path + "/recommendations?count=3")
        assert answer.json()["user_id"] == user and len(answer.json()["items"]) == 3
    assert client.delete("/v1/users/a%2Fevents").status_code == 204
    assert shop.users("", 9) == ["//", "a", "a%2Fb", "a/b"]
    assert len(shop.events("a", 9)[0]) == 1
    one = client.delete("/v1/users/a%2Fb/events/e%2F1a%2Fb")
    assert one.json() == {"deleted": 1} and shop.events("a/b", 9)[0] == []
    assert client.get("/v1/items/i%2F1").json()["error"].startswith("there is no item 'i/1' in")
    assert client.put("/v1/rules/r%2F1", json={"kind": "at_most"}).status_code == 200
    assert list(client.get("/v1/rules").json()) == ["r/1"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/nothing%2Fat",
        "/v1/..%2F..%2Fetc%2Fpasswd",
        "/..%2F..%2Fetc%2Fpasswd",
        "/v1/users/%00%2Fa",
        "/v1/users/%ff%2F",
        "/v1%2Fpopular",
    ],
)
def test_slashes_lead_to_no_file(client, path):
    answer = client.get(path)
    assert 400 <= answer.status_code < 500 and answer.json()["error"]
