"""FID and its like: torch-fidelity's own figures, figures by their definitions, faults."""

import pytest
import torch
from PIL import Image
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.fidelity import (
    WEIGHTS_NAME,
    WEIGHTS_SHA256,
    Inception,
    InceptionFeatures,
    _distance,
    fidelity_figures,
)
from pecker_fast.evaluate.frechet import FeatureStatistics, frechet_distance

LAYER = "64"  # a Fréchet distance of 2,048 features takes seconds
PUBLISHED_SIDE, SIDE = 299, 107  # to which images are resized; an eighth of the work


@pytest.fixture(scope="module", autouse=True)
def _small_images():
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.MonkeyPatch.context() as patch:
        assert FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE == PUBLISHED_SIDE
        patch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", SIDE)
        yield


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    generated = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=generator)
    real = torch.randint(60, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return generated, real


@pytest.fixture(scope="module")
def measured(weights, images):
    """The network, the features of generated and real images, and the figures."""
    inception = Inception.load(weights, layer=LAYER)
    generated, real = (
        inception.features(part, name)
        for part, name in zip(images, ("generated", "real"), strict=True)
    )
    return inception, generated, real, fidelity_figures(generated, real, inception)


class Stand(nn.Module):
    """In the place of the network where features are written down."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def figures_of(generated, real, logits=None):
    """Figures of features (N, F) that are written down."""
    logits = torch.zeros(len(generated), 3) if logits is None else logits
    return fidelity_figures(
        InceptionFeatures(generated, logits, "generated"),
        InceptionFeatures(real, torch.zeros(len(real), 3), "real"),
        Inception(Stand(), LAYER, "none", "none"),
    )


@pytest.mark.slow
def test_the_figures_are_those_of_torch_fidelity_on_png_folders(
    measured, images, weights, tmp_path
):
    from torch_fidelity import calculate_metrics

    folders = [tmp_path / "generated", tmp_path / "real"]
    for folder, part in zip(folders, images, strict=True):
        folder.mkdir()
        for index, image in enumerate(part):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03}.png")
    expected = calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), cuda=False, isc=True, fid=True, kid=True,
        prc=True, feature_extractor="inception-v3-compat", kid_subset_size=12,
        feature_layer_fid=LAYER, feature_layer_kid=LAYER, feature_layer_prc=LAYER,
        feature_extractor_weights_path=str(weights), cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    figures = measured[3]
    # The same float32 network in batches of the same size: only threads could tell them apart.
    assert figures.fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    assert figures.kid == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert figures.kid_std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-4)
    assert figures.inception_score == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert figures.precision == expected["precision"]
    assert figures.recall == expected["recall"]
    assert (figures.kid_subset_size, figures.inception_score_splits) == (12, 10)
    assert (figures.count, figures.real_count, figures.layer) == (12, 16, LAYER)
    assert figures.weights == WEIGHTS_NAME
    assert figures.weights_sha256 != WEIGHTS_SHA256 and not figures.weights_published


def test_fid_is_the_frechet_distance_of_the_features(measured):
    _, generated, real, figures = measured
    ours = frechet_distance(
        FeatureStatistics.from_features(generated.pooled),
        FeatureStatistics.from_features(real.pooled),
    )
    assert figures.fid > 0.01
    # torch-fidelity averages in float32.
    assert figures.fid == pytest.approx(ours, rel=1e-4)


def test_sfid_is_the_same_distance_where_features_keep_their_place(measured, images):
    """Of the first channels of mixed_6/conv, as the published evaluator takes them."""
    inception, generated, real, figures = measured
    assert generated.spatial.shape == (12, 7 * 5 * 5)
    seen = []
    network = inception.network
    hook = network.Mixed_6c.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        network(images[0])
        hook.remove()
        block = network.Mixed_6d.branch1x1
        expected = torch.relu(block.bn(block.conv(seen[0])))[:, :7].flatten(1)
    torch.testing.assert_close(generated.spatial, expected, rtol=1e-5, atol=1e-5)
    # In a few dimensions there are images enough for covariances.
    few = [part.spatial[:, ::20] for part in (generated, real)]
    plain = frechet_distance(*map(FeatureStatistics.from_features, few))
    wide = [torch.cat([part, torch.zeros(len(part), 30)], 1) for part in few]
    assert _distance(*wide) == pytest.approx(plain, rel=1e-6)
    assert figures.sfid == pytest.approx(_distance(generated.spatial, real.spatial)) and plain > 0


def test_grey_images_are_repeated_and_batches_do_not_matter(measured, images, monkeypatch):
    inception = measured[0]
    monkeypatch.setattr(inception.network, "INPUT_IMAGE_SIZE", PUBLISHED_SIDE)
    grey = images[0][:5, :1]
    once = inception.features(grey, "grey")
    again = inception.features(grey.repeat(1, 3, 1, 1), "grey", batch_size=2)
    torch.testing.assert_close(once.pooled, again.pooled, rtol=1e-5, atol=1e-5)
    assert once.logits.shape == (5, 1008) and once.spatial.shape == (5, 7 * 17 * 17)


def test_precision_and_recall_are_not_exchanged():
    # All generated points lie inside the real ones' manifold; the far half of the real ones
    # is never generated.
    near, far = torch.randn(40, 2), torch.randn(40, 2) + 100
    figures = figures_of(near[:20], torch.cat([near, far]))
    assert figures.precision == 1.0
    assert 0.3 < figures.recall <= 0.5


def test_kid_is_the_unbiased_mmd_of_a_cubic_kernel():
    a, b = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, 6, dtype=torch.float64) + 0.5
    kernels = [(x @ y.T / 6 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = [(k.sum() - k.trace()) / (30 * 29) for k in kernels[:2]]
    expected = float(within[0] + within[1] - 2 * kernels[2].mean())
    figures = figures_of(a, b)
    assert figures.kid == pytest.approx(expected, rel=1e-9)
    assert figures.kid_std == pytest.approx(0, abs=1e-12)  # every subset holds all images
    assert (figures.kid_subsets, figures.kid_subset_size) == (100, 30)


def test_inception_score_of_certain_and_of_equal_images():
    pooled = torch.randn(40, 4)
    # Splits of four images of four classes, all certain: 4 where a split holds each class once.
    certain = torch.eye(4).repeat_interleave(10, 0) * 50
    assert figures_of(pooled, pooled, torch.zeros(40, 4)).inception_score == pytest.approx(1.0)
    score = figures_of(pooled, pooled, certain).inception_score
    assert 2 < score <= 4


def test_few_images_and_broken_features(measured):
    inception = measured[0]
    with pytest.raises(PeckerError, match="drawn: FID and its like need at least 4 images, got 3"):
        inception.features(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), "drawn")
    with pytest.raises(PeckerError, match="real: the Inception features contain NaN"):
        figures_of(torch.zeros(5, 2), torch.full((5, 2), torch.nan))


def test_weights_are_never_fetched(tmp_path):
    with pytest.raises(PeckerError, match=rf"none\.pth: .*{WEIGHTS_NAME}.*{WEIGHTS_SHA256}"):
        Inception.load(tmp_path / "none.pth")
