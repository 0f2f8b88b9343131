"""Makes the requests of a load test, and has their answers checked."""

from __future__ import annotations

import itertools
import struct
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from tritonclip_bench.errors import BenchError
from tritonclip_bench.server.endpoint import ServerInfo, describe
from tritonclip_bench.traffic import answers
from tritonclip_bench.traffic.captions import describe_texts, read_texts, text_stream
from tritonclip_bench.traffic.classifiers import choose_classifier
from tritonclip_bench.traffic.images import NO_IMAGES, Images, load_images, read_images
from tritonclip_bench.traffic.options import settle_seed
from tritonclip_bench.traffic.scenarios import IMAGE_CALLS, SCENARIOS, traffic


@dataclass(frozen=True)
class Call:
    """One request, ready to send.

    Attributes:
        model: the entry point.
        request: the message.
        images, texts: how many of each it holds.
    """

    model: str
    request: service_pb2.ModelInferRequest
    images: int = 0
    texts: int = 0

    @property
    def items(self) -> int:
        """What the call counts for: its images, or its texts where it has no image."""
        return self.images or self.texts


class Workload:
    """Endless calls, from a pool of images and a stream of texts.

    Args:
        images: sent in turn.
        texts: without end.
        batch_size: images or texts in a call.
        labels: texts in a call of `clip`.
        embedding_dim: values in an embedding of the served model.
        weights: how often each call is made, relative to the others.
        classifier: the model that `classify` calls.
        told: of the texts, for the report.
    """

    def __init__(
        self,
        images: Images,
        texts: Iterator[str],
        *,
        batch_size: int,
        labels: int,
        embedding_dim: int,
        weights: Mapping[str, int] = SCENARIOS["image"].weights,
        classifier: str = "",
        told: Mapping[str, object] | None = None,
    ) -> None:
        self.images = images
        self.weights = weights
        self._classifier = classifier
        self._told = dict(told or {})
        self._images = itertools.cycle([_element(encoded) for encoded in images.encoded])
        self._texts = texts
        self._batch_size = batch_size
        self._labels = labels
        self._dim = embedding_dim
        self._makers = {
            "embed_image": self._embed_image,
            "embed_text": self._embed_text,
            "clip": self._clip,
            "classify": self._classify,
        }

    def call(self, name: str) -> Call:
        """The next call, `name` of `scenarios.CALLS`."""
        return self._makers[name]()

    def describe(self) -> dict[str, object]:
        """What is sent, for the report."""
        return {"images": self.images.describe(), "texts": self._told}

    def check(self, call: Call, response: service_pb2.ModelInferResponse) -> None:
        """Raise WrongAnswerError unless `response` has the promised shapes, and unit-length embeddings."""
        outputs = answers.floats(response)
        if call.model == "clip":
            answers.check_probabilities(outputs, (call.images, call.texts))
            answers.check_embeddings(outputs, "image_features", (call.images, self._dim))
            answers.check_embeddings(outputs, "text_features", (call.texts, self._dim))
        elif call.model == self._classifier:
            answers.check_classes(response, call.images)
            answers.check_probabilities(outputs, outputs["probabilities"].shape)
        else:
            answers.check_embeddings(outputs, "embedding", (call.items, self._dim))

    def _embed_image(self) -> Call:
        images = list(itertools.islice(self._images, self._batch_size))
        return Call("embed_image", _request("embed_image", image=images), images=len(images))

    def _embed_text(self) -> Call:
        texts = self._next_texts(self._batch_size)
        return Call("embed_text", _request("embed_text", text=texts), texts=len(texts))

    def _clip(self) -> Call:
        images = list(itertools.islice(self._images, self._batch_size))
        texts = self._next_texts(self._labels)
        return Call("clip", _request("clip", image=images, text=texts), len(images), len(texts))

    def _classify(self) -> Call:
        images = list(itertools.islice(self._images, self._batch_size))
        return Call(self._classifier, _request(self._classifier, image=images), images=len(images))

    def _next_texts(self, count: int) -> list[bytes]:
        return [_element(text.encode()) for text in itertools.islice(self._texts, count)]


def prepare(options: Namespace, address: str, part: tuple[int, int] = (0, 1)) -> Workload:
    """The workload that `options` (of `add_workload_arguments`) describe, for the server at `address`.

    Args:
        part: this process's number, from 0, and how many there are: each sends texts of its own.

    Raises:
        ServerUnavailableError: nothing ready answers there.
        BenchError: an option that cannot be honored, or a batch that the server would refuse.
    """
    server, classifier = check(options, address)
    texts = read_texts(options.texts) if options.texts else None
    lengths, seed = options.text_lengths or "captions", settle_seed(options.seed)
    stream, same = (
        text_stream(texts, seed=seed, repeat=options.repeat_texts, lengths=lengths) for _ in ("to send", "to describe")
    )
    index, parts = part
    weights = traffic(options).weights
    return Workload(
        load_images(options.images, options.image_set) if IMAGE_CALLS & set(weights) else NO_IMAGES,
        itertools.islice(stream, index, None, parts),
        batch_size=options.batch_size,
        labels=options.labels,
        embedding_dim=server.spec.embedding_dim,
        weights=weights,
        told=describe_texts(same, "lines of a file" if texts else lengths),
        classifier=classifier,
    )


def check(options: Namespace, address: str) -> tuple[ServerInfo, str]:
    """Refuse what cannot work before anything is sent; returns the server, and the model that `classify` calls.

    Raises:
        ServerUnavailableError: nothing ready answers there.
        BenchError: with what is wrong.
    """
    check_files(options)
    server = describe(address)
    check_limits(options, server)
    if "classify" not in traffic(options).weights:
        return server, ""
    model, limit = choose_classifier(address, options.classifier)
    _check_limit("--batch-size", options.batch_size, model, limit)
    return server, model


def check_files(options: Namespace) -> None:
    """Refuse options that exclude each other, and `--images` and `--texts` that cannot be read.

    Raises:
        BenchError: with what is wrong.
    """
    if options.mix is not None and options.scenario not in ("image", "mixed"):
        raise BenchError(f"--mix and --scenario {options.scenario} given; --mix is a scenario of its own: give one")
    if getattr(options, "shape", None) is not None and options.rate is not None:
        raise BenchError("--rate and --shape given; a shape tells the rate: give one")
    if options.images is not None and options.image_set is not None:
        raise BenchError("--images and --image-set given; give the one that shall be sent")
    if options.images is not None:
        read_images(options.images)
    if options.texts is not None and options.text_lengths is not None:
        raise BenchError("--texts and --text-lengths given; give the one that shall be sent")
    if options.texts is not None:
        read_texts(options.texts)


def check_limits(options: Namespace, server: ServerInfo) -> None:
    """Refuse a batch, or a number of labels, that `server` would refuse in `options.scenario`.

    Raises:
        BenchError: with the limit.
    """
    calls = traffic(options).weights
    # `clip` has no batch axis of its own: its images and its labels go through the limits of the towers.
    for name in sorted({"embed_text" if call == "embed_text" else "embed_image" for call in calls}):
        _check_limit("--batch-size", options.batch_size, name, server.max_batch_size[name])
    if "clip" in calls:
        _check_limit("--labels", options.labels, "embed_text", server.max_batch_size["embed_text"])


def _check_limit(option: str, given: int, model: str, limit: int) -> None:
    if given > limit:
        raise BenchError(
            f"{option} {given}; {model} on this server takes 1 to {limit} in a request; give a smaller number"
        )


def _element(item: bytes) -> bytes:
    """An element of a BYTES tensor: its length, four bytes little-endian, then itself."""
    return struct.pack("<I", len(item)) + item


def _request(model: str, **tensors: Sequence[bytes]) -> service_pb2.ModelInferRequest:
    """A request of BYTES tensors [N, 1], whose elements are given as they are sent."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, elements in tensors.items():
        request.inputs.add(name=name, datatype="BYTES", shape=(len(elements), 1))
        request.raw_input_contents.append(b"".join(elements))
    return request
