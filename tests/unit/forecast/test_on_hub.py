"""Whether the hub has a model is asked once, and a machine without a network does not wait for the answer."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trainer.forecast.on_hub import in_cache, why_not_on_hub

ANSWERS = {
    "/org/open/": (200, {"ETag": '"1"'}),
    "/org/gated/": (403, {"X-Error-Code": "GatedRepo"}),
    "/org/none/": (404, {"X-Error-Code": "RepoNotFound"}),
    "/org/bare/": (404, {"X-Error-Code": "EntryNotFound"}),
    "/org/old/": (404, {"X-Error-Code": "RevisionNotFound"}),
}


@pytest.fixture
def asked(monkeypatch):
    """Let a stand-in be the hub; return the paths that it is asked for."""
    paths = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            paths.append(self.path)
            found = [answer for begin, answer in ANSWERS.items() if self.path.startswith(begin)]
            status, headers = found[0] if found else (500, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield paths
    server.shutdown()
    server.server_close()


def use(monkeypatch, endpoint):
    why_not_on_hub.cache_clear()
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in (
        ("ENDPOINT", endpoint),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)


def test_what_the_hub_says_becomes_a_reason(asked):
    assert why_not_on_hub("org/open", "config.json") is None
    for name, said in (
        ("org/gated", "accepted its terms"),
        ("org/none", "the hub has no such model"),
        ("org/bare", "the hub has no config.json in it"),
        ("org/broken", "the hub cannot be reached"),
        ("a/b/c", "the hub takes no such name"),
    ):
        assert said in why_not_on_hub(name, "config.json"), name
    assert "no revision 'v2'" in why_not_on_hub("org/old", "config.json", "v2")
    assert why_not_on_hub("org/bare", "tokenizer_config.json", may_lack_it=True) is None


def test_the_hub_is_asked_once(asked):
    assert why_not_on_hub("org/open", "config.json") is why_not_on_hub("org/open", "config.json") is None
    assert asked == ["/org/open/resolve/main/config.json"]


def test_a_hub_that_fails_is_not_asked_again(asked):
    """huggingface_hub's own download tries for half a minute."""
    assert "the hub cannot be reached" in why_not_on_hub("org/broken", "config.json")
    assert asked == ["/org/broken/resolve/main/config.json"]


def test_without_a_network_it_is_a_reason(monkeypatch):
    use(monkeypatch, "http://127.0.0.1:9")
    assert "the hub cannot be reached" in why_not_on_hub("org/open", "config.json")


def test_a_name_that_the_hub_would_not_take_is_not_in_the_cache():
    assert in_cache("a/b/c", "config.json") is None
