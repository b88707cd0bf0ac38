"""A process that fails ends all of its run with a clear line each, and nothing that was saved goes.

Every run here is the command line itself on two processes, with a model of a few hundred weights
and a checkpoint at every second iteration. The one that fails does so in iteration 3 or in the
checkpoint of iteration 4, unless a test says otherwise.
"""

import time

import pytest
from fault_processes import run_commands
from fault_run import build, erase, same_training, state

LIMIT = 3  # seconds that a step waits for the others, where a test is about that


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model folder; read-only."""
    return build(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """The last checkpoint of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    first, second = run_commands(folder, erase(model, folder / "run"), [None, None])
    assert (first.code, second.code, first.errors, second.lines) == (0, 0, [], []), first.lines
    return state(folder / "run")


# What happens; to which of the two; how that one ends and what it says, if it can; what the other
# says.
KILLED, BAD_INPUT, INTERNAL = -9, 2, 1
GONE = "was killed or stopped, or has crashed: no sign of life for"
CRASHED = "rank 0 has ended, was killed or has crashed; "
NO_SPACE = (
    "cannot write the checkpoint of iteration 4 to {run}: File too large; the checkpoint of "
    "iteration 2 is intact; free some space and start the same command again to resume"
)
NO_MEMORY = "internal error: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
CASES = {
    "a rank in a step": ("killed in a step", 1, KILLED, None, f"rank 1 {GONE}"),
    "the first in a step": (
        "killed in a step",
        0,
        KILLED,
        None,
        CRASHED,
    ),
    "a rank that hangs": ("stopped in a step", 1, KILLED, None, f"rank 1 {GONE}"),
    "the first hangs": ("stopped in a step", 0, KILLED, None, f"rank 0 {GONE}"),
    "out of memory": ("out of memory", 1, INTERNAL, NO_MEMORY, f"rank 1 has stopped: {NO_MEMORY}"),
    "the writer in a checkpoint": ("killed in a checkpoint", 0, KILLED, None, CRASHED),
    "the writer hangs in a checkpoint": (
        "stopped in a checkpoint",
        0,
        KILLED,
        None,
        f"rank 0 {GONE}",
    ),
    "a full disk": ("disk full", 0, BAD_INPUT, NO_SPACE, NO_SPACE),
}


@pytest.mark.parametrize(
    ("fault", "rank", "code", "own", "others"), CASES.values(), ids=CASES.keys()
)
def test_one_fails_the_other_says_so_and_the_run_goes_on(
    tmp_path, model, undisturbed, fault, rank, code, own, others
):
    arguments = erase(model, tmp_path / "run")
    faults = [fault if rank == this else None for this in range(2)]
    started = time.monotonic()
    ended = run_commands(tmp_path, arguments, faults, PECKER_FAST_TIMEOUT=str(LIMIT))
    assert time.monotonic() - started < 60
    failed, other = ended[rank], ended[1 - rank]
    assert failed.code == code, failed.lines
    says = "pecker-fast (rank {}): {}"
    said = [says.format(rank, own.format(run=tmp_path / "run"))] if own else []
    assert [line.split("; set PECKER")[0] for line in failed.errors] == said
    assert other.code == BAD_INPUT
    (line,) = other.errors
    assert line.startswith(says.format(1 - rank, others.format(run=tmp_path / "run")))
    assert "start the same command again" in line
    assert state(tmp_path / "run")["iteration"] == 2

    resumed = run_commands(tmp_path, arguments, [None, None])
    assert [one.code for one in resumed] == [0, 0]
    assert "resuming at iteration 2 of 6" in resumed[0].lines
    same_training(state(tmp_path / "run"), undisturbed)
    assert not list((tmp_path / "run").glob(".*"))


def test_of_four_all_name_the_one_that_was_killed(tmp_path, model):
    arguments = erase(model, tmp_path / "run", "--set", "batch_size=4")
    ended = run_commands(tmp_path, arguments, [None, None, "killed in a step", None])
    assert [one.code for one in ended] == [2, 2, -9, 2]
    for rank in (0, 1, 3):
        (line,) = ended[rank].errors
        assert line.startswith(f"pecker-fast (rank {rank}): rank 2 {GONE}")


def test_ctrl_c_on_one_of_them_saves_and_ends_both(tmp_path, model, undisturbed):
    arguments = erase(model, tmp_path / "run")
    ended = run_commands(tmp_path, arguments, [None, "interrupted in a step"])
    for rank, one in enumerate(ended):
        assert one.code == 130
        (line,) = one.errors
        assert line == (
            f"pecker-fast (rank {rank}): interrupted; iteration 3 is saved; start the same command "
            "again to go on from there"
        )
    assert state(tmp_path / "run")["iteration"] == 3
    resumed = run_commands(tmp_path, arguments, [None, None])
    assert [one.code for one in resumed] == [0, 0]
    same_training(state(tmp_path / "run"), undisturbed)


DISAGREE = "the processes of this run do not agree: rank 1 has another"
SAME = "start all of them with the same command and the same files"


def test_processes_with_different_settings_are_refused(tmp_path, model):
    ours = erase(model, tmp_path / "run")
    ended = run_commands(tmp_path, [ours, [*ours, "--set", "generator.lr=0.5"]], [None, None])
    for rank, one in enumerate(ended):
        assert one.code == 2
        (line,) = one.errors
        assert line == (
            f"pecker-fast (rank {rank}): {DISAGREE} configuration than rank 0 "
            f"(generator: lr: 0.5, there lr: 0.001); {SAME}"
        )
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_processes_with_different_models_are_refused(tmp_path, model):
    other = build(tmp_path / "other", seed=1)
    both = [erase(path, tmp_path / "run") for path in (model, other)]
    for rank, one in enumerate(run_commands(tmp_path, both, [None, None])):
        assert one.code == 2
        assert one.errors == [f"pecker-fast (rank {rank}): {DISAGREE} model than rank 0; {SAME}"]
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_a_file_that_only_one_lacks_ends_both(tmp_path, model):
    both = [erase(path, tmp_path / "run") for path in (model, tmp_path / "nothing")]
    first, second = run_commands(tmp_path, both, [None, None])
    assert (first.code, second.code) == (2, 2)
    missing = f"model folder {tmp_path / 'nothing'}: "
    assert second.errors[0].startswith(f"pecker-fast (rank 1): {missing}")
    assert first.errors[0].startswith(f"pecker-fast (rank 0): rank 1 has stopped: {missing}")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_fails_before_the_run_begins_is_not_waited_for(tmp_path, model, rank):
    fails = [this == rank for this in range(3)]
    each = [erase(model, tmp_path / "run", *(["--device", "cuda:7"] * fail)) for fail in fails]
    started = time.monotonic()
    ended = run_commands(tmp_path, each, [None] * 3)
    assert time.monotonic() - started < 30
    (own,) = ended[rank].errors
    assert own.startswith(f"pecker-fast (rank {rank}): ") and "cuda:7" in own
    said = own.removeprefix(f"pecker-fast (rank {rank}): ")
    for other in {0, 1, 2} - {rank}:
        assert ended[other].code == 2
        (line,) = ended[other].lines
        assert line == (
            f"pecker-fast (rank {other}): rank {rank} has stopped before the run began: {said}; "
            "when that is corrected, start all of them again"
        )


def test_a_mistyped_option_of_one_ends_both(tmp_path, model):
    ours = erase(model, tmp_path / "run")
    first, second = run_commands(tmp_path, [ours, [*ours, "--densty", "1"]], [None, None])
    assert (first.code, second.code) == (2, 2)
    assert second.lines[0].startswith("pecker-fast (rank 1): No such option")
    assert first.lines[0].startswith("pecker-fast (rank 0): rank 1 has stopped before the run")


def test_one_that_fails_where_nobody_waits_ends_soon(tmp_path, model):
    started = time.monotonic()
    alone = erase(model, tmp_path / "run", "--device", "cuda:7")
    both = run_commands(tmp_path, alone, [None, None])  # each fails by itself
    assert time.monotonic() - started < 20
    assert [len(one.lines) for one in both] == [1, 1]
