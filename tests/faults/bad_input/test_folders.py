"""Folders of images: `folder:PATH`."""

import io
import os
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from faults.bad_input import nasty
from faults.bad_input.endings import cases, ends_well, fingerprint, folder
from jdcl_jax.data.datasets import load

MODES = ("L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr", "LAB", "HSV", "PA")
KINDS = ("png", "jpg", "webp", "bmp", "jpeg", "gif", "tiff")


def encoded(mode: str, kind: str, size: tuple[int, int], *, frames: int = 1, **options: Any) -> bytes:
    """An image file; as RGB where the format has no such mode."""
    rows = np.resize(np.arange(256, dtype=np.uint8), (size[1], size[0], 3))
    stream = io.BytesIO()
    plain = Image.fromarray(rows)
    try:
        pictures = [(plain.convert("RGB").convert("L") if mode == "I;16" else plain).convert(mode)] * frames
        more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
        pictures[0].save(stream, "JPEG" if kind == "jpg" else kind.upper(), **more, **options)
    except (OSError, ValueError, KeyError):
        stream = io.BytesIO()
        plain.save(stream, "PNG")
    return stream.getvalue()


sizes = st.one_of(st.just((6, 6)), st.sampled_from(((1, 1), (7, 6), (6, 7), (1, 40), (300, 2))))


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    how = draw(st.integers(0, 9))
    options: dict[str, Any] = {}
    kind, mode = draw(st.sampled_from(KINDS)), draw(st.sampled_from(MODES))
    if how == 0 and kind == "png":
        options["transparency"] = draw(st.sampled_from((0, b"\0\xff", b"\0" * 256)))
    data = encoded(mode, kind, draw(sizes), frames=draw(st.sampled_from((1, 1, 1, 3))), **options)
    return draw(nasty.damaged(data)) if how == 1 else data


PLAIN = encoded("L", "png", (6, 6))
FILE_NAMES = st.one_of(
    st.sampled_from(
        (
            "a.png",
            "B.PNG",
            "c.jpg",
            "d.webp",
            "e.bmp",
            ".hidden.png",
            "no_ending",
            "f.txt",
            "g.gif",
            "h.png.tmp",
            "i.tiff",
        )
    ),
    nasty.names.filter(lambda text: "/" not in text and 0 < len(text) < 60 and text not in (".", "..")).map(
        lambda text: text + ".png"
    ),
)
CLASS_NAMES = st.one_of(
    st.sampled_from(
        ("cat", "dog", "train", "test", ".hidden", "__pycache__", "10", "2", "a b", nasty.TAG.replace("/", ""))
    ),
    nasty.names.filter(lambda text: "/" not in text and 0 < len(text) < 60 and text not in (".", "..")),
)


def write_class(draw: Any, place: Path) -> None:
    """Six plain images, and now and then something else between them."""
    place.mkdir(parents=True, exist_ok=True)
    for number in range(draw(st.sampled_from((6, 6, 6, 6, 1, 0)))):
        (place / f"{number}.png").write_bytes(PLAIN)
    for name in draw(st.lists(FILE_NAMES, max_size=2)):
        put(draw, place / name)


def put(draw: Any, path: Path) -> None:
    if path.exists() or path.is_symlink():
        return
    what = draw(st.sampled_from(("picture",) * 6 + ("empty", "folder", "loop", "dangling", "link", "pipe", "root")))
    if what == "picture":
        path.write_bytes(draw(pictures()))
    elif what == "empty":
        path.touch()
    elif what == "folder":
        (path / "deep" / "er").mkdir(parents=True)
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path, "dangling": "absent", "link": "0.png", "root": "/"}[what])


@cases(80, 400)
@hypothesis.given(data=st.data())
def test_a_folder_of_images_is_read_or_refused(data: st.DataObject) -> None:
    with folder() as place:
        root = place / "images"
        root.mkdir()
        parts = data.draw(st.sampled_from(((".",),) * 5 + (("train", "test"), ("train",), ("test",))), label="parts")
        classes = data.draw(st.lists(CLASS_NAMES, max_size=3, unique=True), label="classes")
        for part in parts:
            for name in classes:
                write_class(data.draw, root / part / name)
        if data.draw(st.integers(0, 5), label="stray") == 0:
            put(data.draw, root / data.draw(FILE_NAMES))
        size = data.draw(st.sampled_from((0, 0, 4, 8)), label="size")
        fit = data.draw(st.sampled_from(("resize", "resize", "pad")), label="fit")
        before = fingerprint(place)
        ends_well("folders of images", lambda: loaded(root, size, fit), "images")
        assert fingerprint(place) == before


def loaded(root: Path, size: int, fit: str) -> None:
    dataset = load(f"folder:{root}", image_size=size, fit=fit)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:]


@cases(60, 300)
@hypothesis.given(
    picture=pictures(), size=st.sampled_from((0, 4)), ending=st.sampled_from(("png", "jpg", "webp", "bmp"))
)
def test_one_odd_image_among_plain_ones_is_read_or_refused(picture: bytes, size: int, ending: str) -> None:
    with folder() as place:
        root = place / "images"
        for name in ("cat", "dog"):
            (root / name).mkdir(parents=True)
            for number in range(5):
                (root / name / f"{number}.png").write_bytes(PLAIN)
        (root / "dog" / f"odd.{ending}").write_bytes(picture)
        ends_well("one odd image", lambda: loaded(root, size, "resize"), f"odd.{ending}")
