"""A run directory: one user at a time, whole checkpoints, and only the run that it holds."""

import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from toys import assert_same_bits, toy_objective

from pecker_fast.distill import PeckerTrainer, RunDirectory
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.runs import directory as directory_module
from pecker_fast.runs.directory import run_directory
from pecker_fast.runs.finding import find_model


def train(path, overrides=None, *, stop=None, seed=0, **options):
    """Train into a directory, to the end or until `stop` iterations are done."""
    with RunDirectory(path) as directory:
        trainer = PeckerTrainer(
            toy_objective(overrides, seed=seed), run_directory=directory, **options
        )
        first = trainer.iteration
        for metrics in trainer.run():
            if metrics.iteration == stop:
                break
    return trainer, first


def saved_state(path):
    """The newest checkpoint without the time that it took, which is another every time."""
    with RunDirectory(path) as directory:
        state = directory.load()
    assert state.pop("seconds") > 0
    return state


@contextmanager
def file_size_limit(size):
    """No file may grow beyond `size` bytes: write() fails in the kernel, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(path):
    return sorted(file.name for file in path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask.refresh_every": 2, "mask.apply": "both", "optimizer.beta1": 0.9},
        {"mask.kind": "full", "lr_schedule": "cosine"},
        {"ema.decay": None, "override": "random"},
        {"optimizer.release_grads": True, "micro_batch": 3, "mask.refresh_every": 4},
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, options):
    whole, _ = train(tmp_path / "whole", options)
    assert train(tmp_path / "parts", options, stop=4)[1] == 0
    parts, first = train(tmp_path / "parts", options)
    assert first == 3
    assert whole.iteration == parts.iteration == 6
    assert_same_bits(whole.mask.to_dense(), parts.mask.to_dense())
    assert_same_bits(whole.ema_generator().state_dict(), parts.ema_generator().state_dict())
    whole_state, parts_state = (saved_state(tmp_path / path) for path in ("whole", "parts"))
    assert_same_bits(whole_state, parts_state)
    assert whole_state["iteration"] == 6
    assert ("ema" in whole_state) == ("ema.decay" not in options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "a run of another model"),
        ({"mask": True}, "a run under another mask"),
    ],
)
def test_another_run_is_not_taken_up(tmp_path, change, message):
    trainer, _ = train(tmp_path)
    before = names(tmp_path)
    if "mask" in change:
        change = {"mask": ~trainer.mask}
    with pytest.raises(PeckerError, match=rf"{tmp_path} holds {message}"):
        train(tmp_path, **change)
    assert names(tmp_path) == before


def test_the_same_mask_given_again_resumes(tmp_path):
    trainer, _ = train(tmp_path, stop=4)
    _, first = train(tmp_path, mask=trainer.mask)
    assert first == 3


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    whole, _ = train(tmp_path)
    newest = tmp_path / "checkpoint-00000006.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"checkpoint-00000006\.pt is damaged .* older"):
        again, first = train(tmp_path)
    assert first == 3
    assert_same_bits(whole.generator.state_dict(), again.generator.state_dict())


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_damaged_checkpoint_is_not_counted_as_saved(tmp_path):
    train(tmp_path)
    (tmp_path / "checkpoint-00000006.pt").write_bytes(b"")
    train(tmp_path, {"logging.checkpoint_every": 1}, stop=4)
    with RunDirectory(tmp_path) as directory:
        assert directory.iterations() == [3, 4]
        assert directory.standing() == "the checkpoint of iteration 4 is intact"


@pytest.mark.filterwarnings("ignore:.*is damaged")
@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path, content):
    train(tmp_path)
    for file in tmp_path.glob("*.pt"):
        file.write_bytes(content)
    with pytest.raises(PeckerError, match=rf"every checkpoint in {tmp_path} is damaged; delete"):
        train(tmp_path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(directory_module, "_FORMAT", 9)
        train(tmp_path)
    with pytest.raises(PeckerError, match="has format 9, this version reads 3"):
        train(tmp_path)


def rewritten(path, change):
    """Write a checkpoint again with changed content under the digest that it had."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize("where", ["weight", "moment", "mask", "number", "name", "digest"])
def test_a_changed_bit_is_noticed(tmp_path, where):
    whole, _ = train(tmp_path)

    def change(state):
        if where == "weight":
            weight = state["networks"]["generator"]["conv_in.bias"]
            weight.view(torch.int32)[0] ^= 1
        elif where == "moment":
            state["generator"]["state"][1]["exp_avg_sq"].view(torch.int32)[0] ^= 1
        elif where == "mask":
            state["mask"]["indices"]["conv_out.weight"][-1] += 1
        elif where == "number":
            state["seconds"] += 2**-20
        elif where == "name":
            state["identity"]["modem"] = state["identity"].pop("model")
        else:
            state.pop("digest")

    rewritten(tmp_path / "checkpoint-00000006.pt", change)
    with pytest.warns(UserWarning, match=r"checkpoint-00000006\.pt is damaged .*digest.* older"):
        again, first = train(tmp_path)
    assert first == 3
    assert_same_bits(whole.generator.state_dict(), again.generator.state_dict())


def test_another_number_of_threads_is_said(tmp_path):
    train(tmp_path, stop=4)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        trainer, first = train(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert first == 3
    assert any(f"{threads} threads" in note for note in trainer.notes)
    assert train(tmp_path)[0].moved and not train(tmp_path / "new")[0].moved


def test_half_written_files_are_cleared(tmp_path):
    train(tmp_path, stop=4)
    (tmp_path / ".checkpoint-00000006.123.tmp.pt").write_bytes(b"half")
    (tmp_path / "my-notes.tmp.pt").write_bytes(b"mine")
    RunDirectory(tmp_path).close()
    assert "my-notes.tmp.pt" in names(tmp_path)
    assert not any(name.startswith(".") for name in names(tmp_path))


def test_a_directory_in_use_by_another_process_is_refused(tmp_path):
    hold = (
        "import sys; from pecker_fast.runs.directory import RunDirectory;"
        "run = RunDirectory(sys.argv[1]); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(PeckerError, match=f"is in use by process {other.pid};"):
            RunDirectory(tmp_path)
        other.kill()  # SIGKILL: nobody cleans up, and yet the lock is gone
    RunDirectory(tmp_path).close()


def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path):
    whole, _ = train(tmp_path / "whole")
    run = tmp_path / "run"
    train(run, stop=4)
    size = (run / "checkpoint-00000003.pt").stat().st_size
    before = names(run)
    message = (
        rf"^cannot write the checkpoint of iteration 6 to {run}: File too large; the checkpoint "
        "of iteration 3 is intact; free some space and start the same command again to resume$"
    )
    with file_size_limit(size // 2), pytest.raises(PeckerError, match=message):
        train(run)
    assert names(run) == before
    resumed, first = train(run)
    assert first == 3
    assert_same_bits(whole.generator.state_dict(), resumed.generator.state_dict())


# ---- which directories a run may take, and what a refusal leaves there


def refuse(out, force=False):
    with pytest.raises(PeckerError, match="weights"), run_directory(out, force, Ranks()):
        raise PeckerError("weights of another network")


def test_a_refusal_leaves_nothing(tmp_path):
    refuse(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_refusal_leaves_what_was_there(tmp_path):
    with run_directory(tmp_path, False, Ranks()) as directory:
        directory.save(3, {})
    refuse(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock", "checkpoint-00000003.pt"}


@pytest.mark.parametrize("name", ["tensorboard", "model"])
def test_a_run_from_elsewhere_does_not_write_through_its_links(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").touch()
    (tmp_path / "run" / name).symlink_to(tmp_path)
    with pytest.raises(PeckerError, match=f"{name}: is a link"):
        run_directory(tmp_path / "run", False, Ranks()).__enter__()


def test_a_copy_without_the_lock_is_taken_up(tmp_path):
    with run_directory(tmp_path, False, Ranks()) as directory:
        directory.save(3, {})
        directory.write_config("seed: 0")
    (tmp_path / "run.lock").unlink()
    with run_directory(tmp_path, False, Ranks()) as directory:
        assert directory.load()["iteration"] == 3
    (tmp_path / "run.lock").unlink()
    with pytest.raises(PeckerError, match="not made a model yet"):
        find_model(tmp_path)


@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml", "checkpoint-00000003.pt"])
def test_other_folders_are_not_taken(tmp_path, name):
    (tmp_path / name).touch()
    for force in (False, True):
        with pytest.raises(PeckerError, match=str(tmp_path)):
            run_directory(tmp_path, force, Ranks()).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [name]
