"""Published weights arrive whole or not at all, whatever the server answers."""

from dataclasses import replace
from hashlib import md5

import pooch
import pytest
import torch
from support.program import ROOT, main, refuses, small_config, two_ranks
from support.server import body, status

from configs import load_config
from functions.weights import pretrained
from runners.diffusion import build_unet


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A config for CIFAR10, and weights that fit it: (config, bytes of the file)."""
    folder = tmp_path_factory.mktemp("small")
    config = small_config(folder / "c.yml", data__dataset="CIFAR10", data__image_size=32)
    torch.save(build_unet(load_config(str(config))).state_dict(), folder / "w.ckpt")
    return config, (folder / "w.ckpt").read_bytes()


@pytest.fixture
def published(server, small, tmp_path, monkeypatch):
    """ema_cifar10 at /w of the server, with the small weights' hash, and no wait between attempts."""
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
    command = ("--config", small[0], "--exp", tmp_path, "--use_pretrained --sample --fid --num_samples 1")
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
    """A page about viruses is not taken for the file, nor half of it. What loads is called not verified."""
    torch.save(upstreams_list(small), tmp_path / "list.pth")
    whole = (tmp_path / "list.pth").read_bytes()
    server.answers["/drive"] = [
        body(b"<html>Google Drive can't scan this file for viruses</html>", Content_Type="text/html"),
        status(503),
        body(whole[: len(whole) // 2]),
        body(whole, Content_Disposition='attachment; filename="ckpt.pth"'),
    ]
    said = main("--inspect", "celeba").stderr
    assert "is not verified, because no hash was published" in said and server.gets("/drive") == 4
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
    driver = (ROOT, f"{server.url}/w", md5(small[1]).hexdigest())
    command = ("--config", small[0], "--exp", tmp_path, "--use_pretrained --sample --fid")
    two_ranks(*driver, *command, "--num_samples 8 --timesteps 2", script=tmp_path / "driver.py")
    assert server.gets("/w") == 1
    assert len(list((tmp_path / "image_samples" / "images").glob("*.png"))) == 8
