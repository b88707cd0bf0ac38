"""FID, sFID, KID, inception score, precision and recall, as torch-fidelity computes them.

The Inception network's weights are a file that is given: nothing is downloaded. Images are uint8,
as a PNG holds them; floats would give other figures than the same images read back from disk.

Precision and recall are taken in Inception's features too, as by the evaluator behind the published
tables (OpenAI's guided-diffusion), not in VGG16's, which is torch-fidelity's default for them.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.frechet import FeatureStatistics, frechet_distance, measured_distance
from pecker_fast.evaluate.intervals import Interval
from pecker_fast.progress import Progress

__all__ = ["FidelityFigures", "Inception", "InceptionFeatures", "fidelity_figures"]

WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_SIZE = 95_628_359
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_WANTED = (
    f"the Inception weights {WEIGHTS_NAME} ({WEIGHTS_SIZE:,} bytes, sha256 {WEIGHTS_SHA256}), a "
    "release file (v0.2.0) of github.com/toshas/torch-fidelity, the same as pytorch-fid's "
    "pt_inception-2015-12-05-6726825d.pth"
)

POOLED = "2048"  # the features of the published FID: the last pooled layer
LOGITS = "logits_unbiased"  # of the inception score, as published: without the last bias

SPATIAL_CHANNELS = 7  # of 17 x 17 places each: the 2,023 features of sFID

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
SCORE_SPLITS = 10
NEIGHBOURS = 3  # of precision and recall
SHUFFLE_SEED = 2020  # of the score's splits and KID's subsets: torch-fidelity's default
FEWEST = NEIGHBOURS + 1  # images that a third neighbour takes


@dataclass(frozen=True)
class InceptionFeatures:
    """What the Inception network makes of a set of images."""

    pooled: Tensor  # (N, F) float32 on the CPU, of the layer `Inception.layer`
    logits: Tensor  # (N, 1008) float32 on the CPU, without the last bias
    source: str  # what the images are, in words
    digest: str = ""  # SHA-256 of the images, whatever their order
    # (N, 2023) float32 on the CPU, what sFID compares; None where nobody took them.
    spatial: Tensor | None = None


@dataclass(frozen=True)
class FidelityFigures:
    """How near generated images are, as a set, to real ones."""

    fid: float  # Fréchet inception distance
    kid: float  # kernel inception distance: mean over the subsets, polynomial kernel of degree 3
    kid_std: float  # its standard deviation over the subsets; see `kid_spread`
    inception_score: float  # mean over the splits; of the generated images alone
    inception_score_std: float  # its standard deviation over the splits
    precision: float  # share of generated images inside the manifold of the real ones
    recall: float  # share of real images inside the manifold of the generated ones
    count: int  # generated images
    real_count: int  # real images
    source: str  # what the generated images are, in words
    real_source: str  # what the real images are, in words
    layer: str  # features of the Inception network behind all but the score; 2048 as published
    kid_subsets: int  # subsets of KID
    kid_subset_size: int  # images in each: 1,000, or all of the smaller set
    inception_score_splits: int  # parts of which the score is the mean: 10, or one an image
    neighbours: int  # nearest neighbours that span a manifold
    shuffle_seed: int  # of subsets and splits
    weights: str  # name of the file of the Inception weights
    weights_sha256: str  # of its bytes
    weights_published: bool  # it is the file that published figures rest on
    real_digest: str = ""  # SHA-256 of the real images, whatever their order: which they were
    # The Fréchet distance of features that keep their place in the image; None where there are
    # none.
    sfid: float | None = None
    # 95 % interval of `fid`, see `frechet.measured_distance`; None where there are no more
    # generated images than features.
    fid_interval: Interval | None = None

    @property
    def kid_spread(self) -> str | None:
        """How much KID scatters over its subsets, in words.

        None where a subset holds all images of one side: nearly the same images in each, whose
        scatter says nothing.
        """
        if self.kid_subset_size >= min(self.count, self.real_count):
            return None
        each = f"{self.kid_subsets} of {self.kid_subset_size:,} images"
        return f"standard deviation {self.kid_std:.5f}, {each}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        interval = None if self.fid_interval is None else list(self.fid_interval)
        return {**asdict(self), "fid_interval": interval}


@dataclass(frozen=True)
class Inception:
    """torch-fidelity's Inception network with the weights of a file."""

    # Maps uint8 images (N, 3, H, W) to a tuple of the layer's features and the logits.
    network: nn.Module
    layer: str  # which features: 64, 192, 768 or 2048 of them
    weights: str  # name of the file
    weights_sha256: str  # of its bytes

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        layer: str = POOLED,
    ) -> Inception:
        """Read the weights. They are never fetched.

        Only the layer 2048 gives what the literature calls FID.

        Raises:
            PeckerError: the file is missing, truncated, of another network, or would need to run
                code.
        """
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = Path(path)
        content = _read_weights(path)
        try:
            # torch-fidelity reads with weights_only=False: it gets the very bytes that were just
            # read without, so there is no code in them to run.
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", [layer, LOGITS], feature_extractor_weights_path=content
            )
        except Exception as error:  # it depends on what the file holds instead
            reason = " ".join(str(error).split())[:160]
            raise PeckerError(
                f"{path}: not weights of torch-fidelity's Inception network ({reason} ...); give "
                f"{WEIGHTS_WANTED}"
            ) from error
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        return cls(network.to(device), layer, path.name, digest)

    @property
    def published(self) -> bool:
        """Whether published figures rest on these weights."""
        return self.weights_sha256 == WEIGHTS_SHA256

    @torch.no_grad()
    def features(
        self, images: Tensor, source: str, batch_size: int = 64, progress: str | None = None
    ) -> InceptionFeatures:
        """Run the network over images (N, 3, H, W) uint8, or (N, 1, H, W), repeated.

        Raises:
            PeckerError: too few images.
        """
        if len(images) < FEWEST:
            raise PeckerError(
                f"{source}: FID and its like need at least {FEWEST} images, got {len(images)}; "
                "thousands are needed for figures that mean something"
            )
        device = next(self.network.parameters()).device
        pooled, logits, spatial = [], [], list[Tensor]()
        # The tensor mixed_6/conv of the published evaluator (guided-diffusion), its first channels.
        branch: nn.Module = self.network.get_submodule("Mixed_6d.branch1x1")
        hook = branch.register_forward_hook(
            lambda *seen: spatial.append(seen[2][:, :SPATIAL_CHANNELS].flatten(1).float().cpu())
        )
        try:
            with Progress(progress, len(images)) as bar:
                for part in torch.split(images, batch_size):
                    layer, scores = self.network(part.expand(-1, 3, -1, -1).to(device))
                    pooled.append(layer.cpu())
                    logits.append(scores.cpu())
                    bar.update(len(part))
        finally:
            hook.remove()
        return InceptionFeatures(
            torch.cat(pooled), torch.cat(logits), source, _digest(images), torch.cat(spatial)
        )

    def figures(
        self, images: Tensor, source: str, real: Tensor, real_source: str
    ) -> FidelityFigures:
        """FID and its like of generated images against real ones; see `features`."""
        found, theirs = (
            self.features(each, whose, progress=f"Inception, {title}")
            for each, whose, title in (
                (images, source, "generated"), (real, real_source, "real")
            )
        )  # fmt: skip
        return fidelity_figures(found, theirs, self)


def fidelity_figures(
    generated: InceptionFeatures, real: InceptionFeatures, inception: Inception
) -> FidelityFigures:
    """All figures of generated images against real ones.

    Both sets of features are of that network; distances are computed where it is.

    Raises:
        PeckerError: features that are not finite.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    for features in (generated, real):
        if not (torch.isfinite(features.pooled).all() and torch.isfinite(features.logits).all()):
            raise PeckerError(
                f"{features.source}: the Inception features contain NaN or infinity; "
                f"check the weights {inception.weights}"
            )
    count, real_count = len(generated.pooled), len(real.pooled)
    subset_size = min(KID_SUBSET_SIZE, count, real_count)
    splits = min(SCORE_SPLITS, count)
    device = next(inception.network.parameters()).device
    statistics = [fid_features_to_statistics(part.pooled) for part in (generated, real)]
    found: Mapping[str, float] = {
        **fid_statistics_to_metric(*statistics, verbose=False),
        **isc_features_to_metric(generated.logits, splits=splits, rng_seed=SHUFFLE_SEED),
        **kid_features_to_metric(
            generated.pooled,
            real.pooled,
            kid_subsets=KID_SUBSETS,
            kid_subset_size=subset_size,
            rng_seed=SHUFFLE_SEED,
            verbose=False,
        ),
        **prc_features_to_metric(
            generated.pooled.to(device),
            real.pooled.to(device),
            prc_neighborhood=NEIGHBOURS,
            save_cpu_ram=True,  # else 4 N^2 bytes at once: 10 GB for 50,000 images
            verbose=False,
        ),
    }
    sfid = None
    if generated.spatial is not None and real.spatial is not None:
        sfid = _distance(generated.spatial, real.spatial)
    return FidelityFigures(
        fid=found["frechet_inception_distance"],
        kid=found["kernel_inception_distance_mean"],
        kid_std=found["kernel_inception_distance_std"],
        inception_score=found["inception_score_mean"],
        inception_score_std=found["inception_score_std"],
        precision=found["precision"],
        recall=found["recall"],
        count=count,
        real_count=real_count,
        source=generated.source,
        real_source=real.source,
        layer=inception.layer,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=subset_size,
        inception_score_splits=splits,
        neighbours=NEIGHBOURS,
        shuffle_seed=SHUFFLE_SEED,
        weights=inception.weights,
        weights_sha256=inception.weights_sha256,
        weights_published=inception.published,
        real_digest=real.digest,
        sfid=sfid,
        fid_interval=None
        if count <= generated.pooled.shape[1]
        else measured_distance(generated.pooled, FeatureStatistics.from_features(real.pooled))[1],
    )


def _distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two sets of features (N, F) and (M, F)."""
    if min(len(first), len(second)) >= first.shape[1]:
        return frechet_distance(*map(FeatureStatistics.from_features, (first, second)))
    # tr sqrt(A'A B'B) is the sum of the singular values of A B': no F x F matrix for few images.
    means = [part.double().mean(0) for part in (first, second)]
    parts = [
        (part.double() - mean) / (len(part) - 1) ** 0.5
        for part, mean in zip((first, second), means, strict=True)
    ]
    variances = sum(float(part.square().sum()) for part in parts)
    shared = float(torch.linalg.svdvals(parts[0] @ parts[1].T).sum())
    distance = float((means[0] - means[1]).square().sum()) + variances - 2 * shared
    return max(distance, 0.0)


def _digest(images: Tensor) -> str:
    pixels = images.cpu().contiguous().numpy()
    each = sorted(hashlib.sha256(image.data).digest() for image in pixels)
    return hashlib.sha256(repr(tuple(images.shape)).encode() + b"".join(each)).hexdigest()


def _read_weights(path: Path) -> io.BytesIO:
    """The bytes of a weights file that holds tensors only."""
    if not path.is_file():
        raise PeckerError(f"{path}: no such file; give {WEIGHTS_WANTED}. It is not downloaded here")
    content = io.BytesIO(path.read_bytes())
    try:
        torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged zip or pickle raises is not specified
        size = content.getbuffer().nbytes
        raise PeckerError(
            f"{path}: cannot be read as a file of tensors ({type(error).__name__}, {size:,} "
            f"bytes): truncated, or not a state dict; give {WEIGHTS_WANTED}"
        ) from error
    content.seek(0)
    return content
