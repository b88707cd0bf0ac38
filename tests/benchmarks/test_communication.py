"""benchmarks/communication.py: bytes are counted, results checked, and shares come out as they are.

What is sent can be counted where this process may have a network of its own: on Linux, as root.
"""

import json
import os
import socket
import threading

import pytest
import torch


@pytest.fixture
def network():
    """A private network around the test."""
    from private_network import private_network

    with private_network() as obstacle:
        if obstacle is not None:
            pytest.skip(obstacle)
        yield


def test_what_is_sent_is_counted(network):
    from private_network import loopback_bytes

    def receive():
        connection = server.accept()[0]
        while connection.recv(2**16):
            pass
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        before = loopback_bytes()
        receiver = threading.Thread(target=receive)
        receiver.start()
        with socket.create_connection(server.getsockname()) as sender:
            sender.sendall(bytes(10**7))
        receiver.join()
    # Headers: 52 bytes a segment of up to 64 kB, and as many acknowledgements.
    assert 1e7 < loopback_bytes() - before < 1.02e7


def test_the_network_is_put_back():
    from private_network import private_network

    before = os.readlink("/proc/thread-self/ns/net")
    with private_network() as obstacle:
        if obstacle is not None:
            pytest.skip(obstacle)
        assert os.readlink("/proc/thread-self/ns/net") != before
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_without_rights_it_says_so(monkeypatch):
    import private_network

    class Libc:
        def __init__(self, *_, **__):
            pass

        def unshare(self, _):
            private_network.ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(private_network.ctypes, "CDLL", Libc)
    with private_network.private_network() as obstacle:
        assert "Operation not permitted" in obstacle and "unshare -rn python" in obstacle


def test_a_step_sends_a_tenth_and_an_iteration_too(tmp_path, capsys):
    import communication

    file = tmp_path / "rows.json"
    names = ["fully_shard", "density 0.1", "density 0.1, released gradients", "mask on both"]
    options = ["--width", "32", "--image-size", "8", "--rounds", "1", "--steps", "1"]
    status = communication.main(
        ["--processes", "2", "--only", *names, *options, "--json", str(file)]
    )
    assert status == 0
    result = json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    ddp = rows["DistributedDataParallel"]
    assert ddp["match"] and ddp["payload_bytes"] == 4 * ddp["parameters"]
    assert ddp["share_of_ddp"] == 1
    counted = ddp["wire_bytes"] is not None
    if counted:
        assert ddp["wire_of_ring"] == pytest.approx(1, abs=0.02)
    for name in names[1:]:
        assert rows[name]["match"]
        # Headers, acknowledgements and two barriers: they weigh more here than at full size.
        assert 0.098 < rows[name]["share_of_ddp"] < 0.11
    if counted:
        assert rows["fully_shard"]["share_of_ddp"] == pytest.approx(2, abs=0.05)
    assert "10." in capsys.readouterr().out


def outcome(name, match, wire_bytes, what="step"):
    from wire_meter import Outcome

    return Outcome(what, name, None, False, 100, match, 400, wire_bytes, [5.0])


def test_a_wrong_result_has_no_figures(capsys):
    import communication

    rounds = [outcome("DistributedDataParallel", True, 400)]
    rounds += [outcome("no mask", True, 300), outcome("no mask", False, 300)]  # one round was wrong
    ddp, wrong = communication._rows(2, rounds)
    assert (ddp.wire_bytes, ddp.wire_of_ring, ddp.share_of_ddp) == (400, 1, 1)
    assert not wrong.match and wrong.wire_bytes is wrong.p50_ms is wrong.share_of_ddp is None
    communication.print_rows([ddp, wrong])
    assert "its result is wrong" in capsys.readouterr().out


def test_an_iteration_is_compared_with_two_steps():
    import communication

    rounds = [outcome("DistributedDataParallel", True, 400)]
    rounds += [outcome("mask on both", True, 80, "iteration")]
    assert list(communication._rows(2, rounds))[1].share_of_ddp == pytest.approx(0.1)


def test_the_check_sees_one_wrong_entry():
    from exchanges import _Reference

    from pecker_fast.distributed import Ranks
    from pecker_fast.models.ddpm import DDPMUNet

    torch.manual_seed(0)
    model = DDPMUNet(channels=8, norm_num_groups=4)
    reference = _Reference(model, 8, Ranks())
    name, own = next((n, g) for n, g in reference.own.items() if g.abs().min() > 0)
    everything = torch.ones_like(own, dtype=torch.bool)
    assert reference.agrees(name, own, None)
    assert reference.agrees(name, own[everything], everything)
    wrong = own.clone()
    wrong.view(-1)[-1] *= 1 + 2**-20
    assert not reference.agrees(name, wrong, None)
    salient = everything.clone()
    salient.view(-1)[-1] = False
    assert reference.agrees(name, wrong[salient], salient)
