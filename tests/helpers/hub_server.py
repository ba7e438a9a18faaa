"""A stand-in of the Hugging Face hub on 127.0.0.1: what its client asks when a folder is pushed or data are read.

Paths and answers are those of huggingface_hub 2.4: whoami, create, auth-check, branches, preupload, LFS, commit, tree,
and info, tree and resolve of datasets. All is kept in memory.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

TOKEN = "hf_token-of-the-tests"
WRITABLE = ("my-org", "me")


class HubRepository:
    def __init__(self, is_private):
        self.is_private = is_private
        self.branches = {"main": {".gitattributes": b"*.safetensors filter=lfs\n"}}
        self.commits = []


class HubServer:
    """What the hub holds; `lfs` is by SHA-256."""

    def __init__(self):
        self.repositories = {}
        self.lfs = {}
        self.uploads = []
        self.uploads_left = None
        """Large files that are still taken before the disk of the hub is full; None takes all."""
        self.spoil = b""
        """What is put behind every large file that arrives."""
        self.datasets = {}
        """Files by path, by name of the dataset."""
        self.reads = []
        """Path and first byte of every piece of a dataset's file that was read."""

    def files(self, name, branch="main"):
        return self.repositories[name].branches[branch]


def blob_of(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    @property
    def hub(self):
        return self.server.hub

    def answer(self, status, plain=None, error=None):
        body = b"" if plain is None else json.dumps(plain).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error is not None:
            self.send_header("X-Error-Message", error)
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/lfs/"):
            return self.take_upload(path.removeprefix("/lfs/"), body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials"}, "Invalid credentials")
        for method, pattern, act in self.ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                return act(self, body, *found.groups())
        return self.answer(404, {"error": f"no such page: {self.command} {path}"})

    do_GET = do_POST = do_PUT = handle_any

    def do_HEAD(self):
        self.answer(404)

    def whoami(self, body):
        self.answer(200, {"type": "user", "name": "me", "orgs": [{"name": "my-org"}]})

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in WRITABLE:
            return self.answer(403, {"error": "You don't have the rights"}, "You don't have the rights")
        is_new = name not in self.hub.repositories
        if is_new:
            is_private = asked.get("private", asked.get("visibility") == "private")
            self.hub.repositories[name] = HubRepository(bool(is_private))
        return self.answer(200 if is_new else 409, {"url": f"{self.server.url}/{name}", "name": name})

    def repository(self, name):
        found = self.hub.repositories.get(name)
        if found is None:
            self.answer(404, {"error": "Repository not found"}, "Repository not found")
        return found

    def check_write(self, body, name):
        if self.repository(name) is not None:
            is_ours = name.split("/")[0] in WRITABLE
            self.answer(200 if is_ours else 403, {}, None if is_ours else "no write access")

    def info(self, body, name):
        found = self.repository(name)
        if found is not None:
            self.answer(200, {"id": name, "private": found.is_private, "siblings": [], "tags": []})

    def branch(self, body, name, branch):
        found = self.repository(name)
        if found is not None:
            is_new = branch not in found.branches
            found.branches.setdefault(branch, dict(found.branches["main"]))
            self.answer(200 if is_new else 409, {})

    def tree(self, body, name, branch):
        found = self.repository(name)
        if found is not None:
            self.answer(200, [self.entry(path, held) for path, held in found.branches[branch].items()])

    def log(self, body, name, branch):
        found = self.repository(name)
        if found is not None:
            one = {"id": "0" * 40, "authors": [], "date": "2026-01-01T00:00:00.000Z", "message": ""}
            self.answer(200, [one | {"title": title} for title in [*found.commits[::-1], "initial commit"]])

    def entry(self, path, held):
        if isinstance(held, str):  # a large file: its digest
            lfs = {"oid": held, "size": len(self.hub.lfs[held]), "pointerSize": 130}
            return {"type": "file", "path": path, "oid": "0" * 40, "size": lfs["size"], "lfs": lfs}
        return {"type": "file", "path": path, "oid": blob_of(held), "size": len(held)}

    def preupload(self, body, name, branch):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": self.known_oid(name, branch, file["path"]),
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def known_oid(self, name, branch, path):
        held = self.hub.files(name, branch).get(path)
        return held if held is None or isinstance(held, str) else blob_of(held)

    def lfs_batch(self, body, name):
        objects = []
        for asked in json.loads(body)["objects"]:
            one = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.lfs:
                one["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}
            objects.append(one)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def take_upload(self, oid, body):
        if self.hub.uploads_left == 0:
            return self.answer(507, {"error": "full"}, "Insufficient storage")
        if self.hub.uploads_left is not None:
            self.hub.uploads_left -= 1
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.lfs[oid] = body
        self.hub.uploads.append(oid)
        return self.answer(200)

    def commit(self, body, name, branch):
        files = self.hub.files(name, branch)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    self.hub.repositories[name].commits.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"]) + self.hub.spoil
                case "lfsFile":
                    assert value["oid"] in self.hub.lfs
                    files[value["path"]] = value["oid"]
                case "deletedFile":
                    del files[value["path"]]
        oid = hashlib.sha1(body).hexdigest()
        url = f"{self.server.url}/{name}/commit/{oid}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": oid})

    def dataset(self, name):
        found = self.hub.datasets.get(name)
        if found is None:
            self.answer(404, {"error": "Repository not found"}, "Repository not found")
        return found

    def dataset_info(self, body, name):
        if self.dataset(name) is not None:
            self.answer(200, {"id": name, "sha": "0" * 40, "siblings": [], "tags": []})

    def dataset_tree(self, body, name, folder):
        files = self.dataset(name)
        if files is None:
            return
        is_deep = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
        start = f"{folder}/" if folder else ""
        entries = {}
        for path, content in sorted(files.items()):
            if not path.startswith(start):
                continue
            parts = path.removeprefix(start).split("/")
            for depth in range(1, len(parts) if is_deep else min(len(parts), 2)):
                above = start + "/".join(parts[:depth])
                entries[above] = {"type": "directory", "path": above, "oid": "0" * 40, "size": 0}
            if is_deep or len(parts) == 1:
                entries[path] = {
                    "type": "file",
                    "path": path,
                    "oid": blob_of(content),
                    "size": len(content),
                }
        self.answer(200, list(entries.values()))

    def read_dataset(self, body, name, path):
        content = (self.dataset(name) or {}).get(path)
        if content is None:
            return self.answer(404, {"error": "Entry not found"}, "Entry not found")
        # A file that is read as a whole is asked for without a range.
        wanted = self.headers.get("Range", f"bytes=0-{len(content) - 1}")
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        self.hub.reads.append((path, first))
        part = content[first : last + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return self.wfile.write(part)

    def validate(self, body):
        self.answer(200, {"warnings": [], "errors": []})

    NAME, BRANCH = r"([\w.-]+/[\w.-]+)", r"([\w./-]+)"
    ROUTES = (
        ("GET", r"/api/whoami-v2", whoami),
        ("POST", r"/api/repos/create", create),
        ("POST", r"/api/validate-yaml", validate),
        ("GET", rf"/api/models/{NAME}/auth-check/write", check_write),
        ("GET", rf"/api/models/{NAME}/tree/{BRANCH}", tree),
        ("GET", rf"/api/models/{NAME}/commits/{BRANCH}", log),
        ("GET", rf"/api/models/{NAME}(?:/revision/main)?", info),
        ("POST", rf"/api/models/{NAME}/branch/{BRANCH}", branch),
        ("POST", rf"/api/models/{NAME}/preupload/{BRANCH}", preupload),
        ("POST", rf"/api/models/{NAME}/commit/{BRANCH}", commit),
        ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", lfs_batch),
        ("GET", rf"/api/datasets/{NAME}", dataset_info),
        ("GET", rf"/api/datasets/{NAME}/tree/main(?:/(.+))?", dataset_tree),
        ("GET", rf"/datasets/{NAME}/resolve/main/(.+)", read_dataset),
    )


@contextlib.contextmanager
def connected_hub(monkeypatch):
    """Yield an empty hub that the client of this process talks to, with a token that may write."""
    with hub_server() as (hub, url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        # Made of the address when it is imported; files would be asked for at the hub itself, again and again.
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # The client of Xet's own protocol is compiled and speaks to Xet's servers alone.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@contextlib.contextmanager
def hub_server():
    """Serve an empty hub; yield it and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub, server.url = HubServer(), f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub, server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
