"""CLIP score: does an image show what its prompt asks for."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pecker_fast.datasets.pixels import to_pil
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.detection import Images, Provenance, in_batches, pixels_of

__all__ = ["ClipFigures", "ClipScorer"]


@dataclass(frozen=True)
class ClipFigures:
    """CLIP score of images and their prompts."""

    image_count: int  # pairs of image and prompt
    score: float  # mean cosine of image and prompt, times 100; negative cosines are not cut off
    standard_error: float | None  # of the mean; None for a single pair
    truncated_prompts: int  # prompts of which CLIP saw the beginning only, for their length
    provenance: Provenance  # the CLIP model

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """The score; higher is closer to the prompt."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        return [("CLIP score", f"{self.score:.2f}{error}")]


class ClipScorer:
    """A CLIP model that compares images with texts.

    Args:
        folder: written by `save_pretrained` of transformers' `CLIPModel` and `CLIPProcessor`.
        device: where it computes, in float32.

    Raises:
        PeckerError: the folder is missing, or holds another model or a part of one.
    """

    def __init__(self, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        import transformers

        self.folder = str(folder)
        self.device = torch.device(device)
        expected = "expected what save_pretrained of CLIPModel and CLIPProcessor writes"
        if not Path(folder).is_dir():
            raise PeckerError(f"CLIP folder {folder}: no such folder; {expected}")
        try:
            loaded: Any = transformers.CLIPModel.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
            model, found = loaded
            self._processor: Any = transformers.CLIPProcessor.from_pretrained(
                folder, local_files_only=True
            )
        except Exception as error:  # transformers raises many kinds for damaged folders
            raise PeckerError(
                f"CLIP folder {folder}: cannot be read ({' '.join(str(error).split())[:200]}); "
                f"{expected}"
            ) from error
        # transformers only warns about weights that are not there, and draws them at random.
        absent = [str(key) for key in (*found["missing_keys"], *found["mismatched_keys"])]
        if absent:
            raise PeckerError(
                f"CLIP folder {folder}: {len(absent)} of its weights are missing or of another "
                f"shape, {min(absent)} among them; name a whole CLIPModel, not a text encoder"
            )
        self._model: Any = model.float().requires_grad_(False).to(self.device)
        self._digest = _digest_of_weights(self._model)
        self._version = transformers.__version__
        self.max_length = int(model.config.text_config.max_position_embeddings)
        try:  # images are judged at the end of a run
            self.cosines(torch.zeros(1, 3, 8, 8), ["a"])
        except Exception as error:
            raise PeckerError(
                f"CLIP folder {folder}: its parts do not fit each other "
                f"({' '.join(str(error).split())[:200]}); {expected}"
            ) from error

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of each image (N, 3, H, W) in [0, 1], as 8 bits, with its own prompt.

        Returns:
            (N,) float64 on the CPU, in [-1, 1].

        Raises:
            PeckerError: other images, or a cosine that is not finite.
        """
        image, text = self._embedded(images, prompts)
        return self._finite(nn.functional.cosine_similarity(image, text))

    def similarities(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine of each of N images, as of `cosines`, with each of K texts.

        Returns:
            (N, K) float64 on the CPU, in [-1, 1].

        Raises:
            PeckerError: as `cosines`.
        """
        image, text = (
            nn.functional.normalize(each, dim=1) for each in self._embedded(images, texts)
        )
        return self._finite(image @ text.T)

    @torch.no_grad()
    def _embedded(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D) of images and (K, D) of texts, float64."""
        inputs = self._processor(
            text=list(texts),
            images=[to_pil(pixels) for pixels in pixels_of(images)],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.max_length,
        )
        outputs = self._model(**inputs.to(self.device))
        return outputs.image_embeds.double(), outputs.text_embeds.double()

    def _finite(self, cosines: Tensor) -> Tensor:
        if not torch.isfinite(cosines).all():
            raise PeckerError(
                f"CLIP score: NaN or infinite; the weights in {self.folder} are damaged"
            )
        return cosines.cpu()

    def truncated(self, prompts: Sequence[str]) -> int:
        """How many of the prompts are longer than CLIP's limit."""
        tokens = self._processor.tokenizer(list(prompts), verbose=False)["input_ids"]
        return sum(len(ids) > self.max_length for ids in tokens)

    def measure(
        self, images: Images, prompts: Sequence[str], labels: Sequence[str | None] = ()
    ) -> ClipFigures:
        """Mean cosine of images (N, 3, H, W) in [0, 1] and their N prompts, times 100.

        Raises:
            PeckerError: as `cosines`.
        """
        found, count = list[Tensor](), 0
        for part in in_batches(images):
            found.append(self.cosines(part, prompts[count : count + len(part)]))
            count += len(part)
        cosines = torch.cat(found)
        return ClipFigures(
            image_count=count,
            score=100 * float(cosines.mean()),
            standard_error=100 * float(cosines.std()) / math.sqrt(count) if count > 1 else None,
            truncated_prompts=self.truncated(prompts),
            provenance=self.provenance(),
        )

    def namer(self, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """The name that is nearest, each as "a photo of NAME" (CLIP, arXiv 2103.00020, 3.1.4)."""
        texts = [f"a photo of {name}" for name in names]
        return lambda images: self.similarities(images, texts).argmax(1)

    def provenance(self) -> Provenance:
        """Folder, digest of the weights, what prepares images, version of transformers."""
        return Provenance(
            name="CLIP",
            file=self.folder,
            digest=self._digest,
            settings={
                "max_length": self.max_length,
                "image_processor": type(self._processor.image_processor).__name__,
            },
            versions={"transformers": self._version, "torch": torch.__version__},
        )


def _digest_of_weights(model: nn.Module) -> str:
    """SHA-256 (hex) over names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, list(value.shape)]).encode())
        digest.update(value.float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
