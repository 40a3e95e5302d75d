"""Downloads from a server on the loopback interface, which answers in every way a server can."""

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from hashlib import md5, sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pooch
import pytest
import torch
from conftest import ROOT, files_below, main, refuses, small_config
from safetensors.torch import load_file
from test_distributed import free_port
from test_weights import pipeline

from configs import load_config
from functions.weights import diffusers, diffusers_config, load_checkpoint, pretrained
from runners.diffusion import build_unet


class Server:
    """`answers[path]`: what it answers to the requests for a path, one after the other, the last for ever."""

    def __init__(self):
        self.answers, self.requests, self.lock = {}, Counter(), threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.partition("?")[0]
                with server.lock:
                    k = server.requests[self.command, path]
                    server.requests[self.command, path] += 1
                answers = server.answers.get(path, [status(404)])
                answers[min(k, len(answers) - 1)](self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def gets(self, path):
        return self.requests["GET", path]

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


def body(
    content: bytes, *, sent: int | None = None, pieces: int = 1, pause: float = 0, stall: float = 0, **headers
):
    """A 200 with `content`, of which only `sent` bytes follow, in pieces with pauses; `stall` seconds before it ends."""

    def answer(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command == "HEAD":
            return
        part = content[:sent]
        size = -(-len(part) // pieces)
        for k in range(pieces):
            request.wfile.write(part[k * size : (k + 1) * size])
            threading.Event().wait(pause)
        threading.Event().wait(stall)

    return answer


def status(code: int, text: bytes = b"", **headers):
    def answer(request):
        request.send_response(code)
        request.send_header("Content-Length", str(len(text)))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(text)

    return answer


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A config for CIFAR10, and weights that fit it: (config, bytes of the file)."""
    folder = tmp_path_factory.mktemp("small")
    config = small_config(folder / "c.yml", data__dataset="CIFAR10", data__image_size=32)
    torch.save(build_unet(load_config(str(config))).state_dict(), folder / "w.ckpt")
    return config, (folder / "w.ckpt").read_bytes()


@pytest.fixture
def published(server, small, tmp_path, monkeypatch):
    """ema_cifar10 served by the loopback server at /w, hashed as the small weights are; no waiting between attempts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)
    weights = replace(
        pretrained.PUBLISHED["ema_cifar10"], url=f"{server.url}/w", md5=md5(small[1]).hexdigest()
    )
    monkeypatch.setitem(pretrained.PUBLISHED, "ema_cifar10", weights)
    return weights


@pytest.fixture
def celeba(server, tmp_path, monkeypatch):
    """celeba served by the loopback server at /drive; it has no hash."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)
    weights = replace(pretrained.PUBLISHED["celeba"], url=f"{server.url}/drive")
    monkeypatch.setitem(pretrained.PUBLISHED, "celeba", weights)
    return weights


CORRUPT = b"<html>try again</html>"


@pytest.mark.parametrize(
    "answers, requests",
    [
        (lambda whole: [body(whole)], 1),
        (lambda whole: [body(whole, sent=len(whole) // 2), body(whole)], 2),
        (lambda whole: [body(whole, pieces=20, pause=0.01)], 1),
        (lambda whole: [body(whole, sent=1000, stall=2), body(whole)], 2),
        (lambda whole: [body(CORRUPT), body(whole)], 2),
        (lambda whole: [status(404), body(whole)], 2),
        (lambda whole: [status(503), status(503), body(whole)], 3),
        (lambda whole: [status(302, Location="/w?again")] + [body(whole)], 2),
    ],
    ids=["whole", "truncated", "slow", "stalled", "corrupt", "404 then fine", "503 then fine", "redirected"],
)
def test_the_file_arrives_whole(server, published, small, monkeypatch, answers, requests):
    """Its name appears with its content at last; the second use asks nothing of the server."""
    monkeypatch.setattr(pooch.downloaders, "DEFAULT_TIMEOUT", 0.5)
    server.answers["/w"] = answers(small[1])
    for _ in range(2):
        path = pretrained.locate("ema_cifar10")
        assert path == published.path and path.read_bytes() == small[1]
    assert server.gets("/w") == requests
    assert [file.name for file in path.parent.iterdir()] == ["model-790000.ckpt"]


@pytest.mark.parametrize(
    "answer, why",
    [
        (lambda whole: body(whole, sent=len(whole) // 2), "IncompleteRead"),
        (lambda whole: body(CORRUPT), "does not match"),
        (lambda whole: status(404), "404"),
        (lambda whole: status(503), "503"),
        (lambda whole: status(302, Location="/w"), "TooManyRedirects"),
    ],
    ids=["truncated", "corrupt", "404", "503", "redirected in a circle"],
)
def test_what_never_arrives_is_told_in_a_sentence(server, published, small, tmp_path, answer, why):
    """With address, hash and place; nothing that is not whole is left, under any name."""
    server.answers["/w"] = [answer(small[1])]
    command = ("--config", small[0], "--exp", tmp_path, "--use_pretrained", "--sample", "--fid")
    says = ("ema_cifar10 could not be downloaded", why, published.url, published.md5, str(published.path))
    published.path.parent.mkdir(parents=True)
    refuses(*command, says=says, tree=tmp_path)
    if why != "TooManyRedirects":
        assert server.gets("/w") == 4


def test_without_a_network_it_says_what_to_fetch_by_hand(tmp_path, monkeypatch):
    """With the real address and a proxy that is not there."""
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)
    env = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    command = ("--config", "cifar10.yml", "--exp", tmp_path, "--use_pretrained", "--sample", "--fid")
    place = f"{tmp_path}/cache/diffusion_models_converted/ema_diffusion_cifar10_model/model-790000.ckpt"
    said = (
        "ProxyError",
        "heibox.uni-heidelberg.de/f/2e4f01e2d9ee49bab1d5",
        "1fa350b952534ae442b1d5235cce5cd3",
        place,
    )
    refuses(*command, says=said, env=env, tree=tmp_path / "image_samples")


def test_a_proxy_is_used(server, published, small, monkeypatch):
    monkeypatch.setitem(
        pretrained.PUBLISHED, "ema_cifar10", replace(published, url="http://weights.invalid/w")
    )
    monkeypatch.setenv("http_proxy", server.url)
    server.answers["http://weights.invalid/w"] = [body(small[1])]
    assert pretrained.locate("ema_cifar10").read_bytes() == small[1]


def test_a_corrupt_file_of_the_cache_is_moved_aside_and_fetched_again(
    server, published, small, tmp_path, caplog
):
    server.answers["/w"] = [body(small[1])]
    published.path.parent.mkdir(parents=True)
    published.path.write_bytes(small[1][:-1])
    command = (
        "--config",
        small[0],
        "--exp",
        tmp_path,
        "--use_pretrained",
        "--sample",
        "--fid",
        "--num_samples",
        1,
    )
    said = main(*command, "--timesteps", 2).stderr
    aside = published.path.with_name("model-790000.ckpt.1")
    assert f"does not have the published md5 and was moved to {aside}" in said and "(bare)" in said
    assert aside.read_bytes() == small[1][:-1] and published.path.read_bytes() == small[1]
    assert (tmp_path / "image_samples" / "images" / "0.png").exists()


def test_the_file_of_an_earlier_tool_is_used_by_its_name(server, published, small, tmp_path):
    published.path.parent.mkdir(parents=True)
    published.path.write_bytes(small[1])
    sample = ("--sample", "--fid", "--num_samples", 1, "--timesteps", 2, "--exp", tmp_path)
    main("--config", small[0], "--ckpt", "ema_cifar10", *sample)
    assert "0 images to make" in main("--config", small[0], "--use_pretrained", *sample).stderr
    assert not server.requests


def test_a_disk_that_fails_is_no_mistake_of_the_users(server, published, small, tmp_path):
    server.answers["/w"] = [body(small[1])]
    (tmp_path / "cache").touch()
    command = ("--config", small[0], "--exp", tmp_path, "--use_pretrained", "--sample", "--fid")
    refuses(*command, says=["cache"], code=1, tree=tmp_path)


def upstreams_list(small) -> list:
    weights = {
        f"module.{name}": value for name, value in build_unet(load_config(str(small[0]))).state_dict().items()
    }
    return [weights, {}, 0, 0, {name.removeprefix("module."): value for name, value in weights.items()}]


def test_celeba_comes_without_a_hash_and_must_load(server, celeba, small, tmp_path):
    """A page about viruses is not taken for the file, nor half of it; the file that loads is said to be not verified."""
    torch.save(upstreams_list(small), tmp_path / "list.pth")
    whole = (tmp_path / "list.pth").read_bytes()
    server.answers["/drive"] = [
        body(b"<html>Google Drive can't scan this file for viruses</html>", Content_Type="text/html"),
        status(503),
        body(whole[: len(whole) // 2]),
        body(whole, Content_Disposition='attachment; filename="ckpt.pth"'),
    ]
    said = main("--inspect", "celeba").stderr
    assert "is not verified, for no hash was published" in said and server.gets("/drive") == 4
    assert celeba.path.read_bytes() == whole and [file.name for file in celeba.path.parent.iterdir()] == [
        "ckpt.pth"
    ]
    assert "not verified" in main("--inspect", "celeba").stderr and server.gets("/drive") == 4
    celeba.path.write_bytes(whole[:-100])
    assert "is damaged and was moved to" in main("--inspect", "celeba").stderr


def test_celeba_that_never_comes(server, celeba, tmp_path):
    server.answers["/drive"] = [body(b"<html>Quota exceeded</html>", Content_Type="text/html")]
    celeba.path.parent.mkdir(parents=True)
    says = ("celeba could not be downloaded", celeba.url, str(celeba.path), "no hash was published")
    refuses("--inspect", "celeba", says=says, tree=tmp_path)


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from functions.weights import pretrained
weights = replace(pretrained.PUBLISHED["ema_cifar10"], url=sys.argv[2], md5=sys.argv[3])
pretrained.PUBLISHED["ema_cifar10"] = weights
import main
sys.exit(main.main(sys.argv[4:]))
"""


def test_two_processes_download_once(server, small, tmp_path, monkeypatch):
    """And where there is nothing to download, both end with the sentence."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.answers["/w"] = [body(small[1], pieces=10, pause=0.02)]
    (tmp_path / "driver.py").write_text(DRIVER)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    driver = [str(tmp_path / "driver.py"), str(ROOT), f"{server.url}/w", md5(small[1]).hexdigest()]
    command = ["--config", str(small[0]), "--exp", str(tmp_path), "--use_pretrained", "--sample", "--fid"]
    process = subprocess.run(
        [*launch, *driver, *command, "--num_samples", "8", "--timesteps", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert server.gets("/w") == 1
    assert len(list((tmp_path / "image_samples" / "images").glob("*.png"))) == 8


REPOSITORY, COMMIT = "google/ddpm-small", "0123456789abcdef0123456789abcdef01234567"


def serve_repository(server, folder):
    """The part of the Hugging Face Hub's interface that downloads use."""
    entries = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        entry = {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
        etag = entry["oid"]
        if path.suffix in (".safetensors", ".bin"):
            etag = sha256(content).hexdigest()
            entry["lfs"] = {"oid": etag, "size": len(content), "pointerSize": 134}
        entries.append(entry)
        answer = body(content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
        server.answers[f"/{REPOSITORY}/resolve/{COMMIT}/{name}"] = [answer]
    siblings = [{"rfilename": entry["path"]} for entry in entries]
    info = {
        "id": REPOSITORY,
        "modelId": REPOSITORY,
        "sha": COMMIT,
        "siblings": siblings,
        "tags": [],
        "private": False,
    }
    as_json = dict(Content_Type="application/json")
    server.answers[f"/api/models/{REPOSITORY}"] = [body(json.dumps(info).encode(), **as_json)]
    server.answers[f"/api/models/{REPOSITORY}/revision/main"] = [body(json.dumps(info).encode(), **as_json)]
    server.answers[f"/api/models/{REPOSITORY}/tree/{COMMIT}"] = [
        body(json.dumps(entries).encode(), **as_json)
    ]


def hub_weights(folder):
    return load_file(folder / "unet" / diffusers.SAFETENSORS)


def test_a_repository_of_the_hub_is_read_and_kept(server, tmp_path):
    """In fresh processes, with HF_ENDPOINT: only what is read is fetched, once; then it serves without a network."""
    folder = pipeline(tmp_path / "source")
    (folder / "README.md").write_text("not fetched")
    serve_repository(server, folder)
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    sample = ("--sample", "--fid", "--num_samples", 2, "--timesteps", 2, "--exp", tmp_path)
    main("--ckpt", f"hf://{REPOSITORY}", *sample, fresh=True, env=env)
    fetched = {
        path.rpartition(f"{COMMIT}/")[2]
        for method, path in server.requests
        if method == "GET" and "resolve" in path
    }
    weights = f"unet/{diffusers.SAFETENSORS}"
    assert fetched == {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json", weights}
    assert server.gets(f"/{REPOSITORY}/resolve/{COMMIT}/{weights}") == 1
    server.stop()
    assert "0 images to make" in main("--ckpt", f"hf://{REPOSITORY}", *sample, fresh=True, env=env).stderr
    assert "0 images to make" in main("--ckpt", folder, *sample).stderr


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return server


def test_a_repository_with_a_pickle_is_read_too(hub, tmp_path):
    folder = pipeline(tmp_path / "source")
    torch.save(hub_weights(folder), folder / "unet" / diffusers.BIN)
    (folder / "unet" / diffusers.SAFETENSORS).unlink()
    serve_repository(hub, folder)
    path = pretrained.locate(f"hf://{REPOSITORY}")
    assert load_checkpoint(path).model.keys() == load_checkpoint(folder).model.keys()
    assert pretrained.own_config(f"hf://{REPOSITORY}") == diffusers_config.read(folder)


def test_a_corrupt_file_of_the_hubs_cache_is_fetched_again(hub, tmp_path):
    """The Hub names a large file by its SHA-256."""
    folder = pipeline(tmp_path / "source")
    serve_repository(hub, folder)
    path = pretrained.locate(f"hf://{REPOSITORY}") / "unet" / diffusers.SAFETENSORS
    good = path.read_bytes()
    path.resolve().write_bytes(good[:-4] + b"\x00\x00\x80\x7f")
    again = pretrained.locate(f"hf://{REPOSITORY}") / "unet" / diffusers.SAFETENSORS
    assert again.read_bytes() == good


def test_a_repository_that_is_not_there(hub, tmp_path):
    sample = ("--sample", "--fid", "--exp", tmp_path)
    refuses(
        "--ckpt",
        f"hf://{REPOSITORY}",
        *sample,
        says=[f"hf://{REPOSITORY} could not be downloaded"],
        tree=tmp_path,
    )
    refuses(
        "--ckpt", "hf://ddpm", *sample, says=["hf://ddpm names no repository", "hf://google/"], tree=tmp_path
    )
    hub.stop()
    refuses(
        "--ckpt",
        f"hf://{REPOSITORY}",
        *sample,
        says=["could not be downloaded", "a local copy"],
        tree=tmp_path,
    )
    assert not [name for name in files_below(tmp_path) if name.endswith(".json")]
