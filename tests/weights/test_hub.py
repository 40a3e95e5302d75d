"""A repository of the Hugging Face Hub is read, kept, and fetched again when its copy is corrupt."""

import json
from hashlib import sha1, sha256

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.pipelines import pipeline
from support.program import files_below, main, refuses
from support.server import body

from functions.weights import diffusers_config, diffusers_files, load_checkpoint, pretrained

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
    info = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}
    info |= {"tags": [], "private": False}
    as_json = dict(Content_Type="application/json")
    server.answers[f"/api/models/{REPOSITORY}"] = [body(json.dumps(info).encode(), **as_json)]
    server.answers[f"/api/models/{REPOSITORY}/revision/main"] = [body(json.dumps(info).encode(), **as_json)]
    server.answers[f"/api/models/{REPOSITORY}/tree/{COMMIT}"] = [
        body(json.dumps(entries).encode(), **as_json)
    ]


def hub_weights(folder):
    return load_file(folder / "unet" / diffusers_files.SAFETENSORS)


def test_a_repository_of_the_hub_is_read_and_kept(server, tmp_path):
    """In fresh processes, with HF_ENDPOINT: only what is read is fetched, once. Then no network is needed."""
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
    weights = f"unet/{diffusers_files.SAFETENSORS}"
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
    torch.save(hub_weights(folder), folder / "unet" / diffusers_files.BIN)
    (folder / "unet" / diffusers_files.SAFETENSORS).unlink()
    serve_repository(hub, folder)
    path = pretrained.locate(f"hf://{REPOSITORY}")
    assert load_checkpoint(path).model.keys() == load_checkpoint(folder).model.keys()
    assert pretrained.own_config(f"hf://{REPOSITORY}") == diffusers_config.read(folder)


@pytest.mark.parametrize("kind", ["half precision", "shards"])
def test_a_repository_without_the_usual_file_is_read_too(hub, tmp_path, kind):
    folder = pipeline(tmp_path / "source")
    weights, unet = hub_weights(folder), folder / "unet"
    (unet / diffusers_files.SAFETENSORS).unlink()
    if kind == "shards":
        names, places = list(weights), {}
        for k, part in enumerate((names[:5], names[5:])):
            shard = f"{diffusers_files.STEM}-0000{k + 1}-of-00002.safetensors"
            save_file({name: weights[name] for name in part}, unet / shard)
            places |= dict.fromkeys(part, shard)
        index = unet / f"{diffusers_files.SAFETENSORS}.index.json"
        index.write_text(json.dumps({"weight_map": places}))
    else:
        half = {name: value.half() for name, value in weights.items()}
        save_file(half, unet / f"{diffusers_files.STEM}.fp16.safetensors")
    serve_repository(hub, folder)
    fetched = load_checkpoint(pretrained.locate(f"hf://{REPOSITORY}")).model
    expected = load_checkpoint(folder).model
    assert fetched.keys() == expected.keys()
    assert all(torch.equal(fetched[name], expected[name]) for name in expected)


def test_a_corrupt_file_of_the_hubs_cache_is_fetched_again(hub, tmp_path):
    """The Hub names a large file by its SHA-256."""
    folder = pipeline(tmp_path / "source")
    serve_repository(hub, folder)
    path = pretrained.locate(f"hf://{REPOSITORY}") / "unet" / diffusers_files.SAFETENSORS
    good = path.read_bytes()
    path.resolve().write_bytes(good[:-4] + b"\x00\x00\x80\x7f")
    again = pretrained.locate(f"hf://{REPOSITORY}") / "unet" / diffusers_files.SAFETENSORS
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
