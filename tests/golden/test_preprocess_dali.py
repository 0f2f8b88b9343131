"""The DALI pipeline, on a CPU, against the preprocessing that every other repository has.

What this proves: sizes, crops, paddings, turns and filters. What it cannot prove: nvJPEG, which decodes on a GPU.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from dali_pipeline import dali_site, load, on_cpu, reach, write
from sample_images import IMAGES, encode, photo
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.spec_builder import build_spec
from tritonclip_export.towers.towers import served_towers

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

import clip_dali
from clip_preprocess import ImageSettings, preprocess

DEMO = Path(__file__).parents[2] / "export" / "demo"
SETTINGS = ImageSettings(224, 224, "shortest", "bicubic", (0, 0, 0), 89_478_485, 1 << 25)
SIZES = [(1024, 768), (768, 1024), (641, 479), (500, 333), (301, 903), (1201, 300), (225, 224), (224, 451)]
SIZES += [(3000, 2000), (2400, 60), (224, 224), (100, 75), (37, 21), (8, 3), (1, 1)]
TINY = {f"{width}x{height}" for width, height in SIZES if min(width, height) < 224} | {"small grey"}
BATCH = 32
# In levels of 255; at the image's rim Pillow leaves out what lies outside, and DALI repeats the last pixel.
RIM, MEAN, ABOVE_ONE = 12, {"shrunk": 0.02, "grown": 0.1}, {"shrunk": 0.0005, "grown": 0.01}
# 1 - cosine: of any image, and as a share of what lies between two images.
FARTHEST, FARTHEST_OF_BETWEEN = 1e-4, 3e-4
TURNED = {number: Image.Exif() for number in range(1, 9)}
for number, block in TURNED.items():
    block[ExifTags.Base.Orientation] = number


def jpeg(size: tuple[int, int], **options) -> bytes:
    return encode(photo(size, seed=sum(size)), "JPEG", **{"quality": 90} | options)


JPEGS = {f"{size[0]}x{size[1]}": jpeg(size) for size in SIZES}
JPEGS |= {f"subsampling {name}": jpeg((640, 480), subsampling=name) for name in ("4:4:4", "4:2:2", "4:2:0")}
JPEGS |= {"progressive": jpeg((640, 481), progressive=True), "quality 30": jpeg((801, 600), quality=30)}
JPEGS |= {
    "grey": encode(photo((640, 480)).convert("L"), "JPEG"),
    "small grey": encode(photo((50, 81)).convert("L"), "JPEG"),
}
JPEGS |= {"of a stereo camera": encode(photo((640, 481)), "MPO", save_all=True, append_images=[photo((640, 481), 5)])}
JPEGS |= {f"exif {number}": jpeg((421, 317), exif=block.tobytes()) for number, block in TURNED.items()}


def job(encoded: bytes, settings: ImageSettings = SETTINGS) -> clip_dali.Job:
    made = clip_dali.job_for(encoded, settings)
    assert made is not None
    return made


def by_pillow(one: clip_dali.Job, settings: ImageSettings) -> np.ndarray:
    """What the steps ask for, done by Pillow."""
    image = Image.open(io.BytesIO(one.encoded))
    resample = Image.Resampling[settings.interpolation.upper()]
    for height, width, top, left, bottom, right in one.steps[:12].reshape(2, 6).tolist():
        image = image.resize((int(width), int(height)), resample, (left, top, right, bottom))
    top, left = one.steps[12:].astype(int)
    canvas = Image.new("RGB", (settings.width, settings.height), settings.fill_color)
    canvas.paste(image.convert("RGB"), (-left, -top))
    return clip_dali.upright(np.asarray(canvas), one)


def difference(ours: np.ndarray, encoded: bytes, settings: ImageSettings) -> np.ndarray:
    return np.abs(ours.astype(int) - preprocess(encoded, settings))


@pytest.mark.parametrize("exif", ["transpose", "ignore"])
@pytest.mark.parametrize("crop_offset", ["round", "floor"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_the_steps_are_the_resizes_of_the_reference(resize_mode: str, crop_offset: str, exif: str) -> None:
    """Needs no DALI. One level is what the reference itself may be off."""
    settings = dataclasses.replace(
        SETTINGS, resize_mode=resize_mode, crop_offset=crop_offset, exif=exif, fill_color=(9, 80, 200)
    )
    for name, encoded in JPEGS.items():
        one = job(encoded, settings)
        assert difference(by_pillow(one, settings), encoded, settings).max() <= 1, name


@pytest.mark.parametrize("size", [(256, 128), (120, 200)])
def test_towers_that_are_not_square(size: tuple[int, int]) -> None:
    for resize_mode in ("shortest", "longest", "squash"):
        settings = dataclasses.replace(SETTINGS, height=size[0], width=size[1], resize_mode=resize_mode)
        for name, encoded in JPEGS.items():
            one = clip_dali.job_for(encoded, settings)
            assert (one is None) == (name in ("exif 5", "exif 6", "exif 7", "exif 8")), name
            if one is not None:
                assert difference(by_pillow(one, settings), encoded, settings).max() <= 1, name


TAKEN = {"jpeg 4:2:0", "jpeg 4:4:4", "jpeg upright", "jpeg progressive", "jpeg grey", "much taller than wide", "small"}
TAKEN |= {"of the model's size", "one row more", *(f"exif {number}" for number in range(1, 9))}


def test_only_plain_jpegs_are_sent() -> None:
    assert {kind for kind, make in IMAGES.items() if clip_dali.job_for(make(), SETTINGS)} == TAKEN


@pytest.mark.parametrize(
    "encoded",
    [
        *(b"", b"no image", IMAGES["jpeg 4:2:0"]()[:-2], IMAGES["jpeg 4:2:0"]()[:9000]),
        IMAGES["jpeg 4:2:0"]() + b"trailing",
    ],
    ids=["empty", "text", "without its end", "half", "with more behind"],
)
def test_what_may_be_refused_is_left_to_the_cpu(encoded: bytes) -> None:
    assert clip_dali.job_for(encoded, SETTINGS) is None


def test_what_would_fill_a_gpu_is_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = JPEGS["641x479"]
    monkeypatch.setattr(clip_dali, "MAX_PIXELS", 641 * 479)
    assert clip_dali.job_for(encoded, SETTINGS) is not None
    monkeypatch.setattr(clip_dali, "MAX_PIXELS", 641 * 479 - 1)
    assert clip_dali.job_for(encoded, SETTINGS) is None
    monkeypatch.undo()
    monkeypatch.setattr(clip_dali, "MAX_BYTES", len(encoded) - 1)
    assert clip_dali.job_for(encoded, SETTINGS) is None


@pytest.fixture(scope="module")
def site() -> Path:
    folder = dali_site()
    reach(folder)
    return folder


@dataclass(frozen=True)
class Gap:
    """Of many images, in levels of 255."""

    largest: int
    mean: float
    share_above_one: float

    @classmethod
    def of(cls, away: list[np.ndarray]) -> Gap:
        values = np.concatenate([one.ravel() for one in away])
        return cls(int(values.max()), float(values.mean()), float((values > 1).mean()))


@pytest.mark.network
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_dali_makes_the_pixels_of_the_reference(
    site: Path, resize_mode: str, interpolation: str, tmp_path: Path
) -> None:
    del site
    settings = dataclasses.replace(
        SETTINGS, resize_mode=resize_mode, interpolation=interpolation, fill_color=(9, 80, 200)
    )
    made = dict(zip(JPEGS, through_dali(list(JPEGS.values()), settings, tmp_path), strict=True))
    away = {name: difference(made[name], encoded, settings) for name, encoded in JPEGS.items()}
    for what, names in (("shrunk", JPEGS.keys() - TINY), ("grown", TINY)):
        gap = Gap.of([away[name] for name in names])
        print(f"{resize_mode}, {interpolation}, {len(names)} images {what}: {gap}")
        assert gap.largest <= RIM, what
        assert gap.mean <= MEAN[what]
        assert gap.share_above_one <= ABOVE_ONE[what]


def demo_tower() -> tuple[Any, ImageSettings]:
    checkpoint = load_checkpoint(str(DEMO / "checkpoint"))
    spec = build_spec(checkpoint, checkpoint.state_dict).image
    tower, _ = served_towers(checkpoint.build(checkpoint.state_dict), checkpoint.model_cfg, spec.mean, spec.std)
    names = ("height", "width", "resize_mode", "interpolation", "fill_color")
    return tower, dataclasses.replace(SETTINGS, **{name: getattr(spec, name) for name in names})


def random_tower() -> tuple[Any, ImageSettings]:
    """Of ViT-B-32, untrained."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    tower, _ = served_towers(model, open_clip.get_model_config("ViT-B-32"), mean, std)
    return tower, SETTINGS


@pytest.mark.network
@pytest.mark.parametrize("make", [demo_tower, random_tower])
def test_embeddings_are_those_of_the_reference(
    site: Path, make: Callable[[], tuple[Any, ImageSettings]], tmp_path: Path
) -> None:
    del site
    tower, settings = make()
    images = list(JPEGS.values())[::2]
    reference = np.stack([preprocess(encoded, settings) for encoded in images])
    with torch.no_grad():
        ours, theirs = (
            tower(torch.from_numpy(pixels)).double().numpy()
            for pixels in (through_dali(images, settings, tmp_path), reference)
        )
    away = 1 - (ours * theirs).sum(1)
    between = 1 - (theirs @ theirs.T)[np.triu_indices(len(images), 1)].mean()
    print(f"{make.__name__}: cosine >= {1 - away.max():.7f}, mean {1 - away.mean():.7f}; of two {1 - between:.3f}")
    assert away.max() <= FARTHEST
    assert away.max() <= FARTHEST_OF_BETWEEN * between


@pytest.mark.network
def test_the_backend_finds_one_pipeline_to_serialize(site: Path, tmp_path: Path) -> None:
    """By the function that the DALI backend calls; it goes as far as a machine without a GPU lets it."""
    del site
    from nvidia.dali._utils.autoserialize import invoke_autoserialize

    module = load(write(tmp_path, SETTINGS))
    if torch.cuda.is_available():
        invoke_autoserialize(module, str(tmp_path / "model.dali"))
        assert (tmp_path / "model.dali").stat().st_size > 0
    else:
        with pytest.raises(RuntimeError, match="create a GPU DALI pipeline while CUDA is not available"):
            invoke_autoserialize(module, str(tmp_path / "model.dali"))


def through_dali(images: list[bytes], settings: ImageSettings, folder: Path) -> np.ndarray:
    """Pixels uint8 [B, H, W, 3], by batches of what a server takes."""
    run = on_cpu(write(folder, settings))
    made = []
    for first in range(0, len(images), BATCH):
        jobs = [job(encoded, settings) for encoded in images[first : first + BATCH]]
        made += [clip_dali.upright(pixels, one) for one, pixels in zip(jobs, run(*clip_dali.pack(jobs)), strict=True)]
    return np.stack(made)


def test_one_long_file_does_not_make_its_whole_batch_long() -> None:
    sizes = [4096] * 31 + [4 << 20]
    jobs = {(0, index): clip_dali.Job(bytes(size), np.zeros(14, np.float32), None) for index, size in enumerate(sizes)}
    calls = clip_dali.parts(jobs)
    assert sorted(place for call in calls for place in call) == sorted(jobs)
    taken = [clip_dali.pack([jobs[place] for place in call])[0].nbytes for call in calls]
    assert max(taken) <= clip_dali.MAX_CALL_BYTES
    assert sum(taken) < 5 << 20
    assert clip_dali.parts({}) == []
