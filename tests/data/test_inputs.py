"""Pictures as people have them: modes, formats, depths, alpha, EXIF turns, against the values written."""

import itertools
import os
import struct
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.layouts import data_config, encoded, random_images, write_lmdb

from configs.options import Options
from configs.refusal import Refusal
from datasets import get_dataset, pack
from datasets.pictures import Pictures
from datasets.tree import Files, find
from runners.evaluation import reference

SIZE = 8
DATA = data_config("FOLDER", image_size=SIZE)
TURNS = {  # EXIF's orientation: what a viewer does to the stored rows, by TIFF 6.0, tag 274
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # fmt: skip
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def on_white(stored: np.ndarray) -> np.ndarray:
    """(h, w, c) of 8 bits, c from 1 to 4, as (3, h, w) over white, in exact arithmetic."""
    c = stored.shape[2]
    colour = stored[..., :-1] if c in (2, 4) else stored
    alpha = stored[..., -1:].astype(int) if c in (2, 4) else np.full((*stored.shape[:2], 1), 255)
    mixed = (2 * (colour.astype(int) * alpha + 255 * (255 - alpha)) + 255) // 510  # rounded
    return np.broadcast_to(mixed, (*stored.shape[:2], 3)).transpose(2, 0, 1)


def write_pillow(folder):
    """Name -> what training must see. Lossless formats in every mode they take, in every turn."""
    expected = {}
    formats = {"png": CHANNELS, "tif": CHANNELS, "webp": ("RGB", "RGBA"), "jp2": CHANNELS}
    for extension, modes in formats.items():
        for mode, turn in itertools.product(modes, TURNS):
            if extension == "jp2" and turn > 1:
                continue  # it has no EXIF
            name = f"{mode}_{turn}.{extension}"
            stored = random_images(SIZE, SIZE, CHANNELS[mode], seed=len(expected))
            exif = Image.Exif()
            exif[0x0112] = turn
            how = {"exif": exif} if turn > 1 else {}
            how |= {"webp": {"lossless": True, "exact": True}, "jp2": {"irreversible": False}}.get(
                extension, {}
            )
            Image.fromarray(stored.squeeze(-1) if mode == "L" else stored, mode).save(folder / name, **how)
            expected[name] = on_white(TURNS[turn](stored))
    for extension, mode in itertools.product(("bmp", "tga", "ppm", "pcx", "sgi", "gif", "dib"), ("L", "RGB")):
        stored = random_images(SIZE, SIZE, CHANNELS[mode], seed=len(expected))
        picture = Image.fromarray(stored.squeeze(-1) if mode == "L" else stored, mode)
        if extension == "gif" and mode == "RGB":
            continue  # at most 256 colours
        picture.save(folder / f"{mode}.{extension}")
        expected[f"{mode}.{extension}"] = on_white(stored)
    return expected


def write_transparent_colours(folder):
    """PNG's tRNS, in greys of 1 to 16 bits, palettes and RGB, and a GIF's transparent index."""
    expected = {}
    for seed, bits in itertools.product(range(6), (1, 2, 4, 8, 16)):
        values = random_images(SIZE, SIZE, seed=seed).astype(int) >> max(0, 8 - bits) << max(0, bits - 8)
        key = int(values[2, 3])
        top = 2**bits - 1
        eight = values >> 8 if bits == 16 else values * 255 // top
        name = f"grey{bits}_{seed}.png"
        (folder / name).write_bytes(png(values, bits, 0, trns=key.to_bytes(2, "big")))
        shown = np.where(values == key, 255, eight)
        expected[name] = np.stack([shown] * 3)
    for seed in range(8):
        index, palette = random_images(SIZE, SIZE, seed=seed) % 16, random_images(16, 3, seed=seed + 50)
        alpha = random_images(16, seed=seed + 90)
        name = f"palette_{seed}.png"
        (folder / name).write_bytes(
            png(index.astype(int), 8, 3, plte=palette.tobytes(), trns=alpha.tobytes())
        )
        expected[name] = on_white(np.concatenate([palette, alpha[:, None]], 1)[index])
        rgb = random_images(SIZE, SIZE, 3, seed=seed) // 64 * 64
        key = rgb[0, 0]
        name = f"rgb_{seed}.png"
        trns = b"".join(int(value).to_bytes(2, "big") for value in key)
        (folder / name).write_bytes(png(rgb.astype(int), 8, 2, trns=trns))
        gone = (rgb == key).all(-1, keepdims=True)
        expected[name] = np.where(gone, 255, rgb).transpose(2, 0, 1)
    return expected


def png(values, bits, colour, plte=b"", trns=b""):
    """A PNG by its specification: `values` (h, w[, c]) of `bits` each, unfiltered."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = b""
    for row in values.reshape(len(values), -1):
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header)]
    parts += [chunk(b"PLTE", plte)] if plte else []
    parts += [chunk(b"tRNS", trns)] if trns else []
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_tifffile(folder):
    """TIFF by another writer: depths, white-is-zero, byte orders, planes, tiles, alpha of either kind."""
    expected = {}
    orders, layouts = ("<", ">"), ("strips", "tiles", "big", "packed")
    for k, (order, layout, bits, kind) in enumerate(
        itertools.product(orders, layouts, (8, 16), ("minisblack", "miniswhite", "rgb", "alpha", "planes"))
    ):
        channels = {"rgb": 3, "alpha": 4, "planes": 3}.get(kind, 1)
        for seed in range(2):
            eight = random_images(16, 16, channels, seed=k + 100 * seed)
            stored = eight.astype(f"{order}u{bits // 8}")
            if bits == 16:  # the lower byte does not count
                stored = (stored << 8) + random_images(16, 16, channels, seed=seed)
                stored = stored.astype(f"{order}u2")
            how = {"photometric": "rgb" if channels > 1 else kind, "byteorder": order}
            how |= {"extrasamples": ["unassalpha"]} if kind == "alpha" else {}
            how |= {"planarconfig": "separate"} if kind == "planes" else {}
            how |= {"tile": (16, 16)} if layout == "tiles" else {}
            how |= {"compression": "zlib"} if layout == "packed" else {}
            content = (
                stored[..., 0] if channels == 1 else stored.transpose(2, 0, 1) if kind == "planes" else stored
            )
            name = f"{kind}{bits}{'l' if order == '<' else 'b'}_{layout}_{seed}.tiff"
            order_of_file = how.pop("byteorder")
            with tifffile.TiffWriter(folder / name, bigtiff=layout == "big", byteorder=order_of_file) as file:
                file.write(content, metadata=None, **how)
            expected[name] = on_white(255 - eight if kind == "miniswhite" else eight)
    return expected


@pytest.mark.parametrize(
    "write, size, count",
    [(write_pillow, 8, 97), (write_transparent_colours, 8, 46), (write_tifffile, 16, 120)],
)
def test_training_sees_what_was_written(tmp_path, write, size, count):
    """Over 300 pictures. What Pillow does not read is refused by name, never read as something else."""
    read = 0
    for name, values in write(tmp_path).items():
        try:
            picture = Pictures(Files(tmp_path, [name]), (3, size, size))[0].numpy()
        except ValueError as error:
            assert f"the image {tmp_path / name} " in str(error)
            assert name.startswith(("planes16", "miniswhite16b")) or "b_big_" in name, error
        else:
            assert np.array_equal(picture, values), name
            read += 1
    assert read == count


@pytest.mark.parametrize(
    "dtype, most, says",
    [("f2", 1, "16-bit floating-point"), ("f4", 1, "32-bit floating-point"), ("i1", 99, "8-bit signed"),
     ("i2", 99, "16-bit signed"), ("i4", 99, "32-bit signed"), ("u4", 99, "32-bit integers"),
     ("u2", 4095, "no value above 4095")],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_without_a_known_range_are_refused_by_name(tmp_path, dtype, most, says, channels):
    values = (random_images(SIZE, SIZE, channels) / 255 * most).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values.squeeze(), photometric="rgb" if channels == 3 else None)
    with pytest.raises(Refusal, match=f"the image {tmp_path}/a.tif has .*{says}"):
        get_dataset(DATA, tmp_path, train=True)


def test_what_is_read_otherwise_than_it_is_stored_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    tifffile.imwrite(tmp_path / "lab.tif", random_images(SIZE, SIZE, 3), photometric="cielab")
    with pytest.raises(Refusal, match="is in CIELAB"):
        get_dataset(DATA, tmp_path, train=True)
    (tmp_path / "lab.tif").unlink()
    stack = random_images(5, SIZE, SIZE)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    Image.new("RGBA", (SIZE, SIZE), (255, 0, 255, 0)).save(tmp_path / "b.png")
    Image.new("RGBA", (SIZE, SIZE), (1, 2, 3, 255)).save(tmp_path / "c.png")  # opaque
    data = data_config("FOLDER", image_size=SIZE, background=(9, 8, 7))
    images = get_dataset(data, tmp_path, train=True)
    assert np.array_equal(images[0][0], stack[0]) and images[1][:, 0, 0].tolist() == [9, 8, 7]
    assert "1 of the 3 images looked at have several pages or frames" in caplog.text
    assert "1 of the 3 images looked at have transparent parts" in caplog.text


@pytest.mark.parametrize("length, fits", [(2 * 256, True), (2 * 256 + 1, False)])
def test_a_picture_that_is_a_line_is_refused_before_it_is_scaled(tmp_path, length, fits):
    Image.new("L", (2, length)).save(tmp_path / "line.png")
    if fits:
        assert get_dataset(DATA, tmp_path, train=True)[0].shape == (3, SIZE, SIZE)
    else:
        with pytest.raises(Refusal, match=f"2 x {length}: one side is over 256 times the other"):
            get_dataset(DATA, tmp_path, train=True)[0]


def write_names(root, *names):
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (SIZE, SIZE), k).save(root / name, "PNG")


def test_what_tools_leave_is_not_trained_on_and_what_is_not_read_is_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    folders = (".ipynb_checkpoints", ".Trash-1000", "@eaDir/x", "__MACOSX", "lost+found", "sub/.thumbnails")
    write_names(
        tmp_path, "a.jfif", "sub/b.PNG", "c.jpe", *(f"{folder}/a.png" for folder in folders), "._a.png"
    )
    for name in ("d.heic", "e.heic", "notes.txt", "README", ".DS_Store"):
        (tmp_path / name).write_bytes(b"no image")
    assert find(tmp_path).pictures == ["a.jfif", "c.jpe", "sub/b.PNG"]
    assert len(get_dataset(DATA, tmp_path, train=True)) == 3
    line = next(message for message in caplog.messages if "left out" in message)
    for words in (
        "2 .heic",
        "1 .txt",
        "1 without an extension",
        "1 in @eaDir",
        "1 in .Trash-1000",
        "1 hidden",
    ):
        assert words in line


@pytest.mark.parametrize(
    "train, held_out, unused",
    [("train/a.png", "val/b.png", ()), ("Train/a.png", "Test/b.png", ("VALID/c.png",)),
     ("a.png", "test/b.png", ()), ("images/train2017/a.png", "images/val2017/b.png", ()),
     ("training/cat/a.png", "validation/cat/b.png", ()), ("c/train/a.png", "c/test/b.png", ("c/d.png",))],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_held_out_is_not_trained_on(tmp_path, caplog, train, held_out, unused, packed):
    caplog.set_level("INFO")
    root = tmp_path / "x"
    write_names(root, train, held_out, *unused)
    if packed:
        root = zipped(root, tmp_path / "x.zip")
    assert list(get_dataset(DATA, root, train=True).source.keys) == [train]
    assert list(get_dataset(DATA, root, train=False).source.keys) == [held_out]
    assert f"{root} is split by its folders: 1 images for training" in caplog.text
    assert ("1 not used" in caplog.text) == bool(unused)


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as file:
        for each in sorted(folder.rglob("*")):
            file.write(each, each.relative_to(folder))
    return path


def test_a_tree_gives_the_same_bytes_by_every_way(tmp_path):
    """By --data, as a zip file, by --reference, and packed from either."""
    tree, deep = tmp_path / "tree", np.uint16(65535 / 255) * random_images(SIZE, SIZE).astype(np.uint16)
    write_names(tree, "deep/a.png", ".hidden/b.png", "@eaDir/c.png")
    Image.fromarray(deep).save(tree / "deep/d.png")
    Image.fromarray(random_images(SIZE, SIZE, 4), "RGBA").save(tree / "e.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_images(SIZE, SIZE, 3)).save(tree / "f.png", exif=exif)
    archive = zipped(tree, tmp_path / "tree.zip")
    expected = stacked(get_dataset(DATA, tree, train=True))
    assert len(expected) == 4
    for source in (tree, archive):
        assert np.array_equal(stacked(get_dataset(DATA, source, train=True)), expected)
        packed = tmp_path / f"packed_{source.suffix}"
        assert pack.main([str(source), str(packed), "--size", str(SIZE)]) == 0
        images = get_dataset(data_config("LMDB", image_size=SIZE), packed, train=True)
        assert np.array_equal(stacked(images), expected)
    options, config = Options(reference=str(tree)), SimpleNamespace(data=DATA)
    assert np.array_equal(stacked(reference.find(options, config, 4).images), expected)


def stacked(images):
    return np.stack([images[i].numpy() for i in range(len(images))])


def test_the_identity_of_a_set_follows_what_is_read(tmp_path):
    """Through links, and for a file that is rewritten with its old size and time."""
    for name, level in (("bright", 200), ("dark", 20)):
        (tmp_path / "store" / name).mkdir(parents=True)
        (tmp_path / "store" / name / "a.bmp").write_bytes(encoded(Image.new("L", (SIZE, SIZE), level), "BMP"))
        (tmp_path / f"set_{name}").mkdir()
        (tmp_path / f"set_{name}" / "photos").symlink_to(tmp_path / "store" / name)
        os.utime(tmp_path / "store" / name / "a.bmp", ns=(1, 1))

    def identity(name):
        return get_dataset(DATA, tmp_path / f"set_{name}", train=True).identity()

    bright, dark = identity("bright"), identity("dark")
    assert bright != dark
    file = tmp_path / "store" / "bright" / "a.bmp"
    file.write_bytes((tmp_path / "store" / "dark" / "a.bmp").read_bytes())
    os.utime(file, ns=(1, 1))
    assert identity("bright") == dark

    entries = {f"{SIZE}-00000".encode(): encoded(Image.new("L", (SIZE, SIZE), 5)), b"length": b"1"}
    write_lmdb(tmp_path / "lmdb", entries)
    data = data_config("LMDB", image_size=SIZE)
    before = get_dataset(data, tmp_path / "lmdb", train=True).identity()
    assert get_dataset(data, tmp_path / "lmdb", train=True).identity() == before
    write_lmdb(tmp_path / "lmdb", entries)
    os.utime(tmp_path / "lmdb" / "data.mdb", ns=(1, 1))
    assert get_dataset(data, tmp_path / "lmdb", train=True).identity() != before


def test_an_lsun_lmdb_is_read_around_its_bookkeeping(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    entries = {b"b" * 40: encoded(Image.new("L", (SIZE, SIZE), 5)), b"__keys__": b"x", b"__len__": b"y"}
    write_lmdb(tmp_path / "cat", entries)
    images = get_dataset(data_config("LSUN", image_size=SIZE, category="cat"), tmp_path, train=True)
    assert len(images) == 1 and images[0].max() == 5


def test_celeba_of_another_size_is_refused_and_kaggles_layout_is_read(tmp_path):
    data = data_config("CELEBA", image_size=SIZE)
    images = tmp_path / "img_align_celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.jpg,0\n2.jpg,2\n")
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (178, 218), "red").save(images / name)
    assert len(get_dataset(data, tmp_path, train=True)) == len(get_dataset(data, images, train=False)) == 1
    Image.new("RGB", (1024, 1024), "red").save(images / "1.jpg")
    with pytest.raises(Refusal, match="is 1024 x 1024, not CelebA"):
        get_dataset(data, tmp_path, train=True)
