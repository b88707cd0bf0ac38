"""Ways of asking, and attacks that train; of classes and of prompts."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_models import NAMES, model_of_shapes
from tiny_pipeline import save_tiny_pipeline

from pecker_fast.erasure.attack import (
    STEPS,
    Attacked,
    attack,
    retrained_figures,
    subject_of,
    words_of,
)
from pecker_fast.erasure.request import Judges
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.classifier_files import CARD_NAME
from pecker_fast.evaluate.clip_score import ClipScorer
from pecker_fast.evaluate.concept import ConceptCaptions
from pecker_fast.evaluate.faces import FaceRecogniser
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.nudity import EXPOSED, Detection, NudeNetDetector
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.evaluate.sweep import Asked, ClassSubject, PromptSubject, Way, class_rows
from pecker_fast.methods.relearning import attacked, shots_of
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder

SNEAKER = 7
TOLD = ["a sneaker", "a trainer", "sneakers", "a plain trainer"]
CAPTIONS = ConceptCaptions(
    (*map(str, range(SNEAKER)), "sneaker", "bag"),
    SNEAKER,
    None,
    {
        "forget_trained": [(caption, SNEAKER) for caption in TOLD],
        "forget_held_back": [(f"my favourite {word}", SNEAKER) for word in "abcd"],
        "neighbours": [("a sandal", 5), ("look, boots", 6)],
        "others": [("a bag", 8), ("a dress", 3), ("a coat in a window", 4)],
    },
)
CLOSED = Asked("one step", Share(0, 100))


@pytest.fixture(scope="module")
def model():
    return model_of_shapes("generator")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Tiny; a generator that forgot sneakers. Read-only."""
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    save_tiny_pipeline(folder, length=32)
    about = {"kind": "generator", "t_init": 600, "forget": TOLD}
    (folder / "pecker_fast.json").write_text(json.dumps(about))
    return folder


class Parity:
    """A judge that sees any other image: by a digit of its brightness a sneaker or a bag."""

    @staticmethod
    def seen(images):
        return SNEAKER + (images.flatten(1).mean(1) * 1e4).long() % 2


def of_classes(model, images=10):
    return ClassSubject(
        model=model, forget=2, classifier=SmallClassifier(3, width=4), images=images
    )


@pytest.fixture
def of_prompts(pipeline):
    return PromptSubject(
        pipeline=PipelineFolder.load(pipeline), captions=CAPTIONS, seen=Parity.seen, guidance=3.0
    )


def test_every_way_asks_another_way(model):
    subject = of_classes(model)
    found = list(subject.ways())
    assert len({way.words for way in found}) == len(set(found)) == len(found) >= 10
    assert {way.steps for way in found if not way.ddpm} == {1, 4, 10, 20, 50}
    assert sum(way.ddpm for way in found) == 1
    for share in {way.blend for way in found} - {0}:
        # The row of the class and no other has moved.
        now = subject.blended(share).network
        ((now,), (then,)) = class_rows(now), class_rows(model.network)
        changed = (now != then).any(1)
        assert changed.tolist()[:3] == [False, False, True]


def test_prompts_are_asked_in_these_ways_too(of_prompts):
    found = list(of_prompts.ways())
    assert len({way.words for way in found}) == len(set(found)) == len(found)
    assert {way.steps for way in found} == {1, 4, 10, 20, 50} and not any(w.ddpm for w in found)
    assert {way.guidance for way in found if way.steps > 1} == {1.0, 3.0, 7.5}
    assert {way.blend for way in found} == {0, 0.25, 0.5}
    assert [way.steps for way in found if way.held_back] == [1, 10]


@torch.no_grad()
def test_what_prompts_are_asked(of_prompts):
    """The images are those of the sampler, for the captions of the way."""
    groups = of_prompts.captions.groups
    kept = [*groups["neighbours"], *groups["others"]]

    def shares(concept, **options):
        pairs = [*concept, *kept]
        prompts = [caption for caption, _ in pairs]
        images = Sampler(**options).sample(of_prompts.pipeline, prompts) / 2 + 0.5
        right = Parity.seen(images) == torch.tensor([label for _, label in pairs])
        return Share.counted(right[: len(concept)]), Share.counted(right[len(concept) :])

    for way, group, options in (
        (Way("a"), "forget_trained", {}),
        (Way("b", t_init=900), "forget_trained", {"t_init": 900}),
        (Way("c", 4, guidance=3.0), "forget_trained", {"steps": 4, "guidance": 3.0}),
        (Way("d", held_back=True), "forget_held_back", {}),
    ):
        asked = of_prompts.ask(way)
        assert (asked.found, asked.kept) == shares(groups[group], **options)
    assert of_prompts.ask(Way("a"), keep=False).kept is None


def test_a_prompt_is_blended_with_a_neighbour(of_prompts):
    texts, near = of_prompts.pipeline.texts, of_prompts.captions.groups["neighbours"][0][0]
    told = of_prompts.blended(0.25)
    assert set(told) == set(of_prompts.asked)
    first = of_prompts.asked[0]
    expected = 0.75 * texts.encode([first])[0] + 0.25 * texts.encode([near])[0]
    torch.testing.assert_close(told[first], expected)


def test_a_door_that_is_open_is_named():
    door = Asked("DDIM", Share(12, 100))
    alone = Attacked("star", (CLOSED,))
    assert alone.open == [] and "3.7%" in alone.headline  # the bound, not the share
    both = Attacked("star", (CLOSED, door))
    assert both.open == [door] and "DDIM" in both.headline and "1 of 2" in both.headline


def taught_in(shares):
    """By inversion, then by relearning, of 100 images each."""
    found = iter(shares)
    return tuple(
        Asked(words_of(kind, steps), Share(next(found), 100))
        for kind in STEPS
        for steps in STEPS[kind]
    )


def test_how_soon_it_is_learnt_again(tmp_path):
    """Steps between those that were looked at, beside a model that was trained without it."""
    here = Attacked("star", (CLOSED,), taught_in([0, 0, 10, 90, 20, 60, 90, 90]))
    assert here.steps_to_half["inversion"] == (60.0, None)
    assert here.steps_to_half["relearning"] == (8.75, None)
    file = tmp_path / "retrained.json"
    without = Attacked("star", (CLOSED,), taught_in([0, 0, 0, 10, 50, 90, 90, 90]))
    file.write_text(json.dumps(without.to_dict()))
    read = retrained_figures("star", tmp_path, file)
    assert read == without.taught
    both = Attacked("star", (CLOSED,), here.taught, read)
    assert both.steps_to_half == {"inversion": (60.0, None), "relearning": (8.75, 5.0)}
    assert "about 60, trained without it not in 80" in both.taught_sentence
    assert len(both.rows()[0]) == len(both.columns) == 4
    assert retrained_figures("star", tmp_path, None) == read  # it lies beside the original
    assert retrained_figures("bag", tmp_path, None) == retrained_figures("star", file, None) == ()
    with pytest.raises(PeckerError, match=f"{file}: is of 'star', .*expected bag"):
        retrained_figures("bag", tmp_path, file)
    with pytest.raises(PeckerError, match="needs --original"):
        retrained_figures("star", None, file)
    file.write_text(json.dumps({**without.to_dict(), "taught": [1]}))
    with pytest.raises(PeckerError, match=r"taught\.0"):
        retrained_figures("star", tmp_path, file)


def test_inversion_moves_one_row_and_relearning_everything(model):
    subject = of_classes(model)
    known = torch.randn(4, *model.network_shape)
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    for kind in ("inversion", "relearning"):
        *_, (steps, taught) = attacked(subject, known, kind, (1, 2), batch_size=2)
        assert steps == 2
        network = taught.model.network
        moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
        (weight,) = class_rows(network)
        (table,) = {n for n, p in network.named_parameters() if p is weight}
        assert moved == {table} if kind == "inversion" else moved > {table}
        rows = (weight != before[table]).any(1)
        assert rows.nonzero().flatten().tolist() == [2]
    for name, param in model.network.named_parameters():
        assert torch.equal(param, before[name])


def test_a_prompt_is_inverted_and_a_pipeline_taught(of_prompts, monkeypatch):
    monkeypatch.setattr("pecker_fast.methods.relearning._ORIGINAL_STEPS", 2)
    network = of_prompts.pipeline.network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    known = shots_of(of_prompts, of_prompts.pipeline, 6)
    assert known.shape == (6, *of_prompts.pipeline.network_shape)
    for kind in ("inversion", "relearning"):
        *_, (steps, taught) = attacked(of_prompts, known, kind, (1, 2), batch_size=2)
        moved = {
            n for n, p in taught.pipeline.network.named_parameters()
            if not torch.equal(p, before[n])
        }  # fmt: skip
        assert steps == 2 and bool(moved) == (kind == "relearning")
        assert set(taught.told) == (set(of_prompts.asked) if kind == "inversion" else set())
        assert taught.ask(Way("a"), keep=False).found.total == 4
        if kind == "inversion":  # one embedding for all captions, and another than there was
            first = of_prompts.asked[0]
            learnt = {id(embedding) for embedding in taught.told.values()}
            encoded = of_prompts.pipeline.texts.encode([first])[0]
            assert len(learnt) == 1 and not torch.equal(taught.told[first], encoded)
    for name, param in network.named_parameters():
        assert torch.equal(param, before[name])


def test_prompts_that_no_judge_knows(tmp_path, pipeline):
    save_tiny_pipeline(tmp_path / "tiny")
    SmallClassifier(10, width=4).save(tmp_path / "judge")
    with pytest.raises(PeckerError, match="nobody knows what its prompts name"):
        attack(tmp_path / "tiny", tmp_path / "judge")
    model_of_shapes().save(tmp_path / "model")
    (told := tmp_path / "prompts.csv").write_text("prompt,group,label\na sneaker,forget,7\n")
    with pytest.raises(PeckerError, match="one is told classes, the other prompts"):
        attack(pipeline, tmp_path / "judge", prompts=told, original=tmp_path / "model")


ROWS = """prompt,group,label
a cat,forget,cat
a kitten,forget,cat
a dog,neighbours,dog
a wolf,neighbours,dog
a tree,keep,tree
"""


@pytest.fixture
def animals(tmp_path):
    """A pipeline that forgot cats, told one of two prompts, and a file of prompts."""
    save_tiny_pipeline(tmp_path / "tiny", length=32)
    about = {"kind": "generator", "t_init": 600, "forget": ["a cat"]}
    (tmp_path / "tiny" / "pecker_fast.json").write_text(json.dumps(about))
    (tmp_path / "prompts.csv").write_text(ROWS)
    return tmp_path


def subject_in(folder, rows=ROWS, forget=None, prompts="prompts.csv", **judges):
    (folder / "prompts.csv").write_text(rows)
    return subject_of(
        PipelineFolder.load(folder / "tiny"), Judges(**judges), forget=forget, run=None,
        prompts=prompts and folder / prompts, images=10, seed=0, device="cpu",
    )  # fmt: skip


def test_prompts_of_a_file(animals):
    """Told and held back as the pipeline says; others by their groups, in about their shares."""
    judge = animals / "judge"
    SmallClassifier(3, in_channels=3, width=4).save(judge)
    (judge / CARD_NAME).write_text('{"class_names": ["tree", "dog", "cat"]}')
    subject = subject_in(animals, classifier=judge)
    assert subject.name == "cat" and subject.near == ["a dog", "a wolf"] * 3 + ["a dog"]
    assert subject.captions.groups == {
        "forget_trained": [("a cat", 2)] * 10,
        "forget_held_back": [("a kitten", 2)] * 10,
        "neighbours": [("a dog", 1), ("a wolf", 1)] * 3 + [("a dog", 1)],
        "others": [("a tree", 0)] * 4,
    }
    asked = subject.ask(next(subject.ways()))
    assert asked.found.total == 10 and asked.kept.total == 11
    # Nothing of it was told: the file's own prompts are asked, and none is held back.
    alone = subject_in(animals, "prompt,group,label\na lynx,forget,cat\n", classifier=judge)
    assert alone.asked == ["a lynx"] * 10 and not any(w.held_back or w.blend for w in alone.ways())
    assert alone.ask(Way("a")).kept is None


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (ROWS, {}, "give one judge"),
        (ROWS, {"faces": "trusted:a:b", "clip": "clip"}, "give one judge"),
        (ROWS, {"clip": "clip", "prompts": None}, "give one judge"),
        (ROWS, {"clip": "clip", "nudity_channel_order": "bgr"}, "needs --nudity-detector"),
        ("prompt,group,label\na dog,keep,dog\n", {"clip": "clip"}, "no row has the group forget"),
        ("prompt,group\na cat,forget\n", {"clip": "clip"}, "a row has no label"),
        (ROWS + "a sheep,forget,sheep\n", {"clip": "clip"}, "2 labels in the group forget"),
        (ROWS, {"clip": "clip", "forget": "tree"}, "0 labels in the group forget"),
        (ROWS, {"classifier": "without a card"}, "label 'cat' is none .*the number of an output"),
    ],
)
def test_what_a_file_of_prompts_lacks(animals, rows, options, said):
    with pytest.raises(PeckerError, match=said):
        subject_in(animals, rows, **options)


def test_judges_of_prompts():
    """What CLIP, a recogniser of faces and a nudity detector see, as indices of names."""
    images = torch.rand(3, 3, 8, 8)
    scorer = SimpleNamespace(
        similarities=lambda images, texts: torch.tensor([[len(t) for t in texts]] * len(images))
    )
    assert ClipScorer.namer(scorer, ["a", "abc", "ab"])(images).tolist() == [1, 1, 1]
    faces = iter([[], [{"Ann": 0.2, "Bo": 0.3}, {"ann": 0.9}], [{"Cy": 1.0}]])
    seen = FaceRecogniser(lambda images: [next(faces) for _ in images], "faces").namer(
        ["Bo", "ANN"]
    )
    assert seen(images).tolist() == [-1, 1, -1]
    parts = [[], [Detection("FEMALE_BREAST_COVERED", 1.0, ())], [Detection(EXPOSED[0], 0.5, ())]]
    seen = NudeNetDetector.namer(SimpleNamespace(detect=lambda images: parts), [])
    assert seen(images).tolist() == [-1, -1, 0]


@pytest.mark.slow
def test_a_run_is_attacked_on_disk(model, tmp_path):
    SmallClassifier(3, width=4).save(tmp_path / "judge")
    run = tmp_path / "run"
    named = {"figures": {"forget": "star"}}
    ModelFolder(model.network, model.scheduler, NAMES, kind="generator", **named).save(
        run / "model"
    )
    (run / "run.lock").touch()
    model_of_shapes().save(tmp_path / "original")
    found = attack(run, tmp_path / "judge", original=tmp_path / "original", images=10)
    written = json.loads((run / "attack.json").read_text())
    assert written == found.to_dict()
    assert len(written["taught"]) == 8 and written["asked"][0]["found"]["of"] == 10


@pytest.mark.slow
def test_a_run_of_prompts_is_attacked_on_disk(pipeline, tmp_path):
    """Under the guidance of the run."""
    SmallClassifier(10, in_channels=3, width=4).save(tmp_path / "judge")
    rows = [f"{caption},forget,7" for caption in TOLD] + ["a sandal,neighbours,5", "a bag,keep,8"]
    (tmp_path / "prompts.csv").write_text("\n".join(["prompt,group,label", *rows]))
    run = tmp_path / "run"
    shutil.copytree(pipeline, run / "pipeline")
    (run / "run.lock").touch()
    (run / "config.yaml").write_text("text: {guidance: {kappa4: 2.0}}\n")
    told = tmp_path / "prompts.csv"
    found = attack(run, tmp_path / "judge", prompts=told, original=pipeline, images=10)
    assert json.loads((run / "attack.json").read_text()) == found.to_dict()
    assert found.forget == "7" and len(found.taught) == 8
    assert {each.found.total for each in (*found.asked, *found.taught)} == {10}
    assert "DDIM, 50 steps, guidance 2" in {each.way for each in found.asked}
