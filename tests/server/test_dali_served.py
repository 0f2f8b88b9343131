"""`preprocess` with DALI on a real server: what it sends, what it keeps, and what one bad image does to the others.

The server has no DALI backend, so the model preprocess_dali is a stand-in: the exported pipeline, on the CPU, in the
Python backend. Like the real one it fails a whole batch for one image.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from dali_pipeline import dali_site
from sample_images import IMAGES, encode, photo
from tritonclip_client.main import main
from tritonclip_export.repository.configs import read_config, write_configs
from tritonclip_serve import TritonServer
from tritonclip_serve.verified import NONE

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

from clip_preprocess import ImageError, preprocess, preprocess_batch, settings_from

SUPPORT = Path(__file__).parents[1] / "support"
STAND_IN = f'''
import sys
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils
sys.path.append({str(SUPPORT)!r})
import dali_pipeline
dali_pipeline.reach(Path({{site!r}}))

class TritonPythonModel:
    def initialize(self, args):
        self.file = Path(args["model_repository"]) / args["model_version"] / "dali.py"
        self.run = dali_pipeline.on_cpu(self.file)

    def execute(self, requests):
        """All requests as one ragged batch; an error of one image is everyone's."""
        sent = [[pb_utils.get_input_tensor_by_name(one, name).as_numpy() for name in ("encoded", "steps")]
                for one in requests]
        try:
            files = [file for batch, _ in sent for file in batch]
            pixels = self.run(files, [steps for _, batch in sent for steps in batch])
        except Exception as error:
            self.run = dali_pipeline.on_cpu(self.file)
            # One error object in several answers brings the Python backend of 2.51 down.
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in requests]
        parts = np.split(pixels, np.cumsum([len(steps) for _, steps in sent])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("pixels", part)]) for part in parts]
'''
PLAIN = IMAGES["jpeg 4:2:0"]()
MIXED = [IMAGES[kind]() for kind in ("jpeg 4:2:0", "png", "exif 6", "jpeg cmyk", "jpeg grey", "gif", "exif 3", "webp")]
SENT = 4


def bogus_huffman() -> bytes:
    """Passes every look at the header; every decoder refuses it."""
    where = PLAIN.index(b"\xff\xc4") + 5
    return PLAIN[:where] + b"\xff" * 16 + PLAIN[where + 16 :]


BAD = {
    "cut off": PLAIN[: len(PLAIN) // 2],
    "no image": b"this is no image at all",
    "empty": b"",
    "refused by DALI": bogus_huffman(),
}


@dataclass(frozen=True)
class Served:
    client: grpcclient.InferenceServerClient
    repository: Path
    log: Path

    @property
    def settings(self):
        return settings_from(
            {
                key: value.string_value
                for key, value in read_config(self.repository / "preprocess/config.pbtxt").parameters.items()
            }
        )

    def infer(self, model: str, images: list[bytes], output: str) -> np.ndarray:
        tensor = grpcclient.InferInput("image", [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(images, dtype=object).reshape(-1, 1))
        return self.client.infer(model, [tensor], client_timeout=60).as_numpy(output)

    def pixels(self, *images: bytes) -> np.ndarray:
        return self.infer("preprocess", list(images), "pixels").astype(int)

    def calls(self) -> tuple[int, int]:
        """How many images DALI was sent, and in how many requests."""
        stats = self.client.get_inference_statistics("preprocess_dali").model_stats[0]
        return stats.inference_count, stats.inference_stats.success.count

    def fallbacks(self, model: str) -> int:
        """How often the log says that `model` failed."""
        return self.log.read_text(errors="replace").count(f"{model} failed, and its images are decoded on the CPU")


@pytest.fixture(scope="module")
def served(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    site = dali_site()
    folder = tmp_path_factory.mktemp("dali")
    repository = folder / "repository"
    shutil.copytree(demo_repository, repository)
    assert main(["configure", str(repository), "--preprocess", "dali"]) == 0
    _stand_in(repository / "preprocess_dali", site)
    _without_decoder(repository / "preprocess", repository / "preprocess_alone")
    log = folder / "server.log"
    with (
        TritonServer(repository, grpc_port=0, metrics_port=0, log_path=log, verify=NONE) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        yield Served(client, repository, log)


def _stand_in(model: Path, site: Path) -> None:
    (model / "1" / "model.py").write_text(STAND_IN.format(site=str(site)))
    config = read_config(model / "config.pbtxt")
    config.backend, config.default_model_filename = "python", ""
    config.instance_group[0].kind = config.instance_group[0].KIND_CPU
    write_configs(model.parent, {model.name: config})


def _without_decoder(model: Path, copy: Path) -> None:
    """A second router, whose decoder is not there."""
    shutil.copytree(model, copy)
    config = read_config(copy / "config.pbtxt")
    config.name = copy.name
    write_configs(copy.parent, {copy.name: config})
    router = copy / "1" / config.default_model_filename
    router.write_text(router.read_text().replace('"preprocess_dali"', '"absent"'))


@pytest.mark.network
def test_of_a_mixed_request_dali_decodes_what_it_takes(served: Served) -> None:
    images, requests = served.calls()
    made = served.pixels(*MIXED)
    assert served.calls()[0] == images + SENT
    assert requests < served.calls()[1] <= requests + SENT
    away = np.abs(made - preprocess_batch(MIXED, served.settings))
    assert away.max() <= 12
    assert away.mean() <= 0.05
    by_cpu = [index for index, one in enumerate(MIXED) if one[:2] != b"\xff\xd8"]
    assert away[by_cpu].max() == 0


@pytest.mark.network
def test_what_waits_is_one_call(served: Served) -> None:
    images, requests = served.calls()
    served.pixels(*[PLAIN] * 32)
    assert served.calls()[0] == images + 32
    assert served.calls()[1] <= requests + 8


@pytest.mark.network
def test_dali_really_made_the_pixels(served: Served) -> None:
    """At the rim DALI differs, where the CPU cannot."""
    one = encode(photo((33, 61)), "JPEG")
    assert np.abs(served.pixels(one)[0] - preprocess(one, served.settings)).max() > 0


@pytest.mark.network
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_gets_the_words_that_it_gets_without_dali(served: Served, kind: str) -> None:
    with pytest.raises(ImageError) as without:
        preprocess_batch([PLAIN, BAD[kind], PLAIN], served.settings)
    with pytest.raises(InferenceServerException) as caught:
        served.pixels(PLAIN, BAD[kind], PLAIN)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert str(without.value) in caught.value.message()


@pytest.mark.network
def test_without_the_decoder_the_cpu_serves(served: Served) -> None:
    before = served.fallbacks("absent")
    made = served.infer("preprocess_alone", MIXED, "pixels")
    assert np.array_equal(made, preprocess_batch(MIXED, served.settings))
    assert before < served.fallbacks("absent") <= before + SENT


@pytest.mark.network
def test_bad_images_do_not_disturb_other_callers(served: Served) -> None:
    """Good and bad requests at the same time; they meet in one batch of DALI's, with files of several lengths."""
    good = [PLAIN, IMAGES["jpeg 4:4:4"](), IMAGES["small"]()]
    expected = [preprocess(one, served.settings).astype(int) for one in good]
    bad = list(BAD.values())
    failed = served.fallbacks("preprocess_dali")

    def ask(number: int) -> str:
        which = number % len(good)
        refused = number % 5 == 0
        items = [good[which], bad[number // 5 % len(bad)]] if refused else [good[which]] * (1 + number % 4)
        try:
            made = served.pixels(*items)
        except InferenceServerException as error:
            return "refused" if "image[1]: " in error.message() else f"failed: {error}"
        return "served" if np.abs(made - expected[which]).max() <= 12 else "wrong"

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(150)))
    assert answers == ["served" if number % 5 else "refused" for number in range(150)]
    assert served.fallbacks("preprocess_dali") > failed
    assert "Error in CPU operator `nvidia.dali.fn.decoders.image`" in served.log.read_text(errors="replace")


@pytest.mark.network
def test_the_ensembles_answer_as_without_dali(served: Served, server: TritonServer) -> None:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        reference = Served(client, server.repository, server.log_path).infer("embed_image", MIXED, "embedding")
    made = served.infer("embed_image", MIXED, "embedding")
    assert (made * reference).sum(1).min() >= 0.9999
