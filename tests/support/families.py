"""A checkpoint of every CLIP family, as its users have it, with random weights.

Text towers and open_clip's own image towers are cut to two layers; timm's keep their true architecture where no
`tower` stands. Everything else, the names, the preprocessing, the activation, the context, the pooling, the scoring,
is the family's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from family_checkpoints import chinese_clip, hf_clip, hf_siglip, long_clip, open_clip_directory
from naflex_checkpoint import hf_siglip2

HF_DIRECTORY = "Hugging Face directory"
# One of each kind of tower and attention, and small: what takes long is left to `make test-all` for the others.
QUICK = (
    "CoCa: coca_ViT-B-32",
    "mT5: mt5-base-ViT-B-32",
    "SigLIP: ViT-B-16-SigLIP, Hugging Face directory",
    "EVA-02: EVA02-B-16",
    "CLIPA: ViT-L-14-CLIPA",
    "Chinese-CLIP: Chinese-CLIP-ViT-B-16",
    "SigLIP 2: ViT-B-16-SigLIP2-NaFlex",
)


@dataclass(frozen=True)
class Family:
    """One row of the family table.

    Attributes:
        config: the open_clip config, or the checkpoint's kind where open_clip has none.
        write: fills a directory with the checkpoint.
        scale: "text shrunk" where the image tower has its real size.
        source: how people have the checkpoint.
    """

    name: str
    config: str
    write: Callable[[Path], None]
    scale: str = "shrunk"
    source: str = "open_clip directory"

    @property
    def test_id(self) -> str:
        """For pytest."""
        return f"{self.name}: {self.config}, {self.source}"

    @property
    def is_quick(self) -> bool:
        """Whether it is one of QUICK."""
        return self.test_id.startswith(QUICK)


# Heads are as wide as in the tower itself.
SHRUNK_EVA = {"embed_dim": 176, "depth": 2, "num_heads": 2}
SHRUNK_VIT = {"embed_dim": 192, "depth": 2, "num_heads": 3}
SHRUNK_FASTVIT = {"embed_dims": (16, 32, 64, 128), "layers": (1, 1, 1, 1)}


def _of(config: str, tag: str | None, *args: Any, **options: Any) -> Callable[[Path], Any]:
    return partial(
        open_clip_directory, config=config, tag=tag, **dict(zip(("tokenizer",), args, strict=False)), **options
    )


FAMILIES = (
    Family("OpenAI CLIP", "ViT-L-14-336-quickgelu", _of("ViT-L-14-336-quickgelu", "openai")),
    Family("OpenAI CLIP", "RN50-quickgelu", _of("RN50-quickgelu", "openai"), scale="text shrunk"),
    Family("LAION / DataComp", "ViT-L-14", _of("ViT-L-14", "laion2b_s32b_b82k")),
    Family("LAION ConvNeXt", "convnext_base", _of("convnext_base", "laion400m_s13b_b51k"), scale="text shrunk"),
    Family("CoCa", "coca_ViT-B-32", _of("coca_ViT-B-32", "laion2b_s13b_b90k")),
    Family(
        "LAION RoBERTa", "roberta-ViT-B-32", _of("roberta-ViT-B-32", "laion2b_s12b_b32k", "roberta", hf_text="roberta")
    ),
    Family(
        "LAION XLM-R",
        "xlm-roberta-base-ViT-B-32",
        _of("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k", "xlm", hf_text="xlm-roberta"),
    ),
    Family("mT5", "mt5-base-ViT-B-32", _of("mt5-base-ViT-B-32", None, "mt5", hf_text="mt5")),
    Family("NLLB-CLIP", "nllb-clip-base", _of("nllb-clip-base", "v1", "nllb", hf_text="m2m_100")),
    Family(
        "NLLB-CLIP",
        "nllb-clip-base-siglip",
        _of("nllb-clip-base-siglip", "v1", "nllb", hf_text="m2m_100", tower=SHRUNK_VIT),
    ),
    Family("SigLIP", "ViT-B-16-SigLIP", _of("ViT-B-16-SigLIP", "webli", "t5", tower=SHRUNK_VIT)),
    Family("SigLIP 2", "ViT-B-32-SigLIP2-256", _of("ViT-B-32-SigLIP2-256", "webli", "xlm"), scale="text shrunk"),
    Family("EVA-CLIP", "EVA01-g-14", _of("EVA01-g-14", "laion400m_s11b_b41k", tower=SHRUNK_EVA)),
    Family("EVA-02", "EVA02-B-16", _of("EVA02-B-16", "merged2b_s8b_b131k", tower=SHRUNK_VIT)),
    Family("DFN5B", "ViT-H-14-quickgelu", _of("ViT-H-14-quickgelu", "dfn5b")),
    Family("MetaCLIP 1", "ViT-B-32-quickgelu", _of("ViT-B-32-quickgelu", "metaclip_400m")),
    Family(
        "MetaCLIP 2",
        "ViT-H-14-worldwide-quickgelu",
        _of("ViT-H-14-worldwide-quickgelu", "metaclip2_worldwide", "xlm"),
    ),
    Family("CLIPA", "ViT-L-14-CLIPA", _of("ViT-L-14-CLIPA", "datacomp1b", "bert")),
    Family("MobileCLIP", "MobileCLIP-S1", _of("MobileCLIP-S1", "datacompdr", tower=SHRUNK_FASTVIT)),
    Family("MobileCLIP", "MobileCLIP-B", _of("MobileCLIP-B", "datacompdr", tower={"depth": 2})),
    Family("MobileCLIP", "MobileCLIP2-S0", _of("MobileCLIP2-S0", "dfndr2b"), scale="text shrunk"),
    Family("PE-Core", "PE-Core-T-16-384", _of("PE-Core-T-16-384", "meta"), scale="text shrunk"),
    Family("ViTamin", "ViTamin-S", _of("ViTamin-S", "datacomp1b"), scale="text shrunk"),
    Family("Long-CLIP", "Long-CLIP-B-16", long_clip),
    Family("Chinese-CLIP", "Chinese-CLIP-ViT-B-16", chinese_clip, source=HF_DIRECTORY),
    Family("OpenAI CLIP", "ViT-B-32-quickgelu", hf_clip, source=HF_DIRECTORY),
    Family("SigLIP", "ViT-B-16-SigLIP", hf_siglip, source=HF_DIRECTORY),
    Family("SigLIP 2", "ViT-B-16-SigLIP2-NaFlex", hf_siglip2, source=HF_DIRECTORY),
)
