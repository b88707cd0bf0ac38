"""What `erase` takes besides folders: ids of the hub, live pipelines; and where the result goes."""

import copy

import pytest
import torch
from diffusers import DDPMPipeline
from hub_server import serving
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file
from tiny_models import tiny_scheduler, tiny_unet
from tiny_pipeline import save_tiny_pipeline

import pecker_fast
from pecker_fast import ModelFolder, PeckerError, apply_patch
from pecker_fast.cli import main
from pecker_fast.evaluate.classifier import SmallClassifier

SMALL = {"batch_size": 2, "iterations": 2, "saliency.batches": 1, "saliency.batch_size": 2}
CLASS = {**SMALL, "generator.lambda_forget": 1, "generator.lr": 1e-3, "mask.density": 0.2}
NAMES = ("circle", "square", "star")
CONCEPT = {
    **SMALL, "micro_batch": None, "generator.lr": 1e-2, "mask.density": 0.2,
    "text.remain": ["a dog", "a cow"], "text.fill": {},
    "text.concepts": [{"prompts": ["a {concept}"]}],
}  # fmt: skip
NETWORK = "unet/diffusion_pytorch_model.safetensors"


class Kept(list):
    """A tracker, as a run of wandb is one."""

    def log(self, values, step):
        self.append((step, values))


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A pipeline of diffusers in bfloat16, and its folder, in float16 as a variant too."""
    folder = tmp_path_factory.mktemp("live") / "pipeline"
    pipeline = save_tiny_pipeline(folder, length=48)
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(folder)
    halves = copy.deepcopy(pipeline.unet).to(torch.float16)
    halves.save_pretrained(folder / "unet", variant="fp16")
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [tiny]\n---\n# Tiny\n")
    return pipeline, folder


@pytest.fixture(scope="module")
def erased(live, tmp_path_factory):
    """(the result, what a tracker was told, the pipeline's weights before)."""
    pipeline, _ = live
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    told, out = Kept(), tmp_path_factory.mktemp("erased") / "run"
    found = pecker_fast.erase(
        pipeline, "cat", "dog", out=out, config="object", teacher_steps=1, trackers=[told],
        settings=CONCEPT,
    )  # fmt: skip
    return found, told, before


def test_a_live_pipeline_stays_and_its_copy_forgets(live, erased):
    pipeline, _ = live
    found, _, before = erased
    assert found.frozen.frozen_changed == 0 < found.frozen.salient_changed
    for name, value in pipeline.unet.state_dict().items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, before[name])
    assert [path.name for path in found.out.parent.iterdir()] == ["run"]  # no copy is left over
    # In the precision that it had, as diffusers loads it, and reached by the patch.
    made = found.pipeline
    changed = {
        n for n, value in made.unet.state_dict().items() if not torch.equal(value, before[n])
    }
    assert made.unet.dtype == made.text_encoder.dtype == torch.bfloat16 and changed
    assert {value.dtype for value in load_file(found.folder / NETWORK).values()} == {torch.bfloat16}
    apply_patch(before, found.patch)
    for name, value in made.unet.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(PeckerError, match="nobody knows what its prompts name"):
        found.attack("judge")


def test_the_tracker_is_told(erased):
    _, told, _ = erased
    assert [step for step, values in told if "notes" in values] == [0]
    losses = {step: values for step, values in told if any("loss/" in name for name in values)}
    assert 2 in losses and all(isinstance(value, float) for value in losses[2].values())
    assert any("report/patch_bytes" in values for _, values in told)


def test_what_is_no_tracker(live, tmp_path):
    with pytest.raises(PeckerError, match=r"a dict has no log\(values, step=\.\.\.\)"):
        pecker_fast.erase(
            live[1], "cat", "dog", out=tmp_path / "run", config="object", trackers=[{}]
        )
    assert not (tmp_path / "run").exists()


def test_the_model_card(erased):
    found, _, _ = erased
    card = ModelCard.load(found.folder / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert "machine-unlearning" in data["tags"] and "base_model" not in data
    assert found.report.headline in card.text and found.frozen.sentence() in card.text
    assert "num_inference_steps=1" in card.text  # the lines to draw by
    assert card.text.count("| ") > 8


@pytest.mark.parametrize(
    ("name", "base"), [("me/tiny", "me/tiny"), ("./me/tiny", None), ("tests/erasure", None)]
)
def test_a_live_pipeline_from_the_hub_is_named_in_the_card(name, base, live, tmp_path):
    pipeline = copy.copy(live[0])
    pipeline.register_to_config(_name_or_path=name)
    found = pecker_fast.erase(
        pipeline, "cat", "dog", out=tmp_path / "run", config="object", previews=False,
        settings={**CONCEPT, "mask.kind": "random", "iterations": 1},
    )  # fmt: skip
    data = ModelCard.load(found.folder / "README.md").data.to_dict()
    assert data.get("base_model") == base


def test_from_the_hub_and_back(live, tmp_path, monkeypatch, capsys):
    _, folder = live
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["me/tiny"] = folder
        words = ["erase", "--pipeline", "me/tiny", "--name", "cat", "--override", "dog"]
        words += ["--recipe", "object", "--out", str(tmp_path / "run"), "--no-previews"]
        words += ["--variant", "fp16"]
        settings = [
            word for name, value in CONCEPT.items() for word in ("--set", f"{name}={value}")
        ]
        settings = [word.replace("None", "null") for word in settings]
        assert main([*words, *settings, "--push", "me/erased"]) == 0
        pushed = hub.pushed["me/erased"]
        assert "me/erased" in capsys.readouterr().err
        assert pushed[NETWORK] == (tmp_path / "run/pipeline" / NETWORK).read_bytes()
        made = load(pushed[NETWORK])
        assert {value.dtype for value in made.values()} == {torch.float16}
        assert pushed["patch.safetensors"] == (tmp_path / "run/patch.safetensors").read_bytes()
        data = ModelCard(pushed["README.md"].decode()).data.to_dict()
        assert (data["base_model"], data["license"]) == ("me/tiny", "mit")
        assert data["tags"] == ["tiny", "machine-unlearning", "pecker-fast"]

        # Without having been asked, nothing goes there.
        hub.pushed.clear()
        assert main([*words, *settings]) == 0 and not hub.pushed


def test_adapters_are_refused_until_they_are_fused(tmp_path):
    peft = pytest.importorskip("peft")
    pipeline = save_tiny_pipeline(tmp_path / "pipeline", length=48)
    before = pipeline.unet.state_dict()["mid_block.attentions.0.proj_in.weight"].clone()
    targets = peft.LoraConfig(
        r=2, target_modules=["proj_in"], init_lora_weights=False, lora_alpha=8
    )
    pipeline.unet.add_adapter(targets)
    asked = {"out": tmp_path / "run", "config": "object", "previews": False, "settings": CONCEPT}
    with pytest.raises(PeckerError, match=r"unet has adapters.*fuse_lora\(\)"):
        pecker_fast.erase(pipeline, "cat", "dog", **asked)
    assert not (tmp_path / "run").exists()
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    fused = pipeline.unet.state_dict()["mid_block.attentions.0.proj_in.weight"]
    assert not torch.equal(fused, before)
    found = pecker_fast.erase(pipeline, "cat", "dog", **asked)
    digests = found.frozen.digests
    assert digests["original"] != digests["erased"] and found.frozen.frozen_changed == 0


@pytest.mark.parametrize("given", [None, 3, torch.nn.Linear(2, 2)])
def test_what_is_no_model(given, tmp_path):
    with pytest.raises(TypeError, match="a pipeline of diffusers, a ModelFolder"):
        pecker_fast.erase(given, "cat", "dog", out=tmp_path / "run", config="object")


def test_a_class_is_attacked_and_tracked(tmp_path):
    """By accelerate's own TensorBoard tracker."""
    tracking = pytest.importorskip("accelerate.tracking")
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    torch.manual_seed(0)
    folder = ModelFolder(tiny_unet(), tiny_scheduler(), NAMES)
    SmallClassifier(3, width=4).save(tmp_path / "judge")
    board = tracking.TensorBoardTracker("it", logging_dir=tmp_path / "board")
    board.start()
    found = pecker_fast.erase(
        folder, "star", "circle", out=tmp_path / "run", classifier=tmp_path / "judge", per_class=4,
        curve_per_class=2, teacher_steps=2, trackers=[board], **CLASS,
    )  # fmt: skip
    board.finish()
    events = loader.EventAccumulator(str(tmp_path / "board" / "it")).Reload()
    names = set(events.Tags()["scalars"])
    assert {"curve/forget_accuracy", "report/keep_accuracy_after"} <= names
    assert any(name.startswith("loss/") for name in names)
    assert [event.step for event in events.Scalars("curve/keep_accuracy")] == [0, 1, 2]

    images = found.pipeline([0, 2], output_type="pt").images
    assert images.shape == (2, 1, 8, 8) and found.patch is None
    assert found.attack(tmp_path / "judge", images=4).forget == "star"
    card = ModelCard.load(found.folder / "README.md")
    (results,) = card.data.to_dict()["model-index"]
    metrics = [metric["type"] for part in results["results"] for metric in part["metrics"]]
    assert metrics.count("accuracy") == 2


def test_a_live_class_model_goes_on_in_many_steps(tmp_path):
    """As diffusers has it, whose pipelines ask no model for a class."""
    live = DDPMPipeline(tiny_unet(), tiny_scheduler())
    found = pecker_fast.erase(
        live, 2, 0, out=tmp_path / "run", keep_steps=True, **{**SMALL, "steps": 2}
    )
    assert found.frozen.frozen_changed == 0 < found.frozen.salient_changed
    assert ModelCard.load(found.folder / "README.md").data.library_name == "diffusers"
    with pytest.raises(PeckerError, match="many steps"):
        found.pipeline  # noqa: B018
