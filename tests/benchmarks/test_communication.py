"""benchmarks/communication.py: bytes are counted, results checked, formulae held to the counts.

What is sent can be counted where this process may have a network of its own: on Linux, as root.
"""

import json
import math
import os
import socket
import threading

import pytest
import torch


@pytest.fixture
def counted():
    """(processes, name) -> row of what was counted on the wire."""
    from rows import RESULTS

    rows = json.loads((RESULTS / "communication-cpu.json").read_text())["rows"]
    return {(row["processes"], row["name"]): row for row in rows}


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("DistributedDataParallel", [1]),
        ("no mask", [1]),
        ("density 0.5", [0.5]),
        ("density 0.1", [0.1]),
        ("density 0.1, released gradients", [0.1]),
        ("no mask, both networks", [1, 1]),
        ("mask on the generator, dense pseudo-score", [1, 0.1]),
        ("mask on both", [0.1, 0.1]),
        ("mask on both, released gradients", [0.1, 0.1]),
    ],
)
def test_the_formula_gives_the_counted_bytes(counted, processes, name, shares):
    """1 %: headers, acknowledgements and what the trainer sends besides gradients."""
    from communication import ring_bytes

    row = counted[processes, name]
    payload = 4 * sum(shares) * row["parameters"]
    assert row["payload_bytes"] == pytest.approx(payload, rel=1e-4)  # rounded for each parameter
    assert row["wire_bytes"] == pytest.approx(ring_bytes(payload, processes), rel=0.01)


def test_the_page_has_the_formulas_figures():
    from communication import ring_bytes
    from presets import shapes
    from tables import ROOT

    page = (ROOT / "docs" / "many-gpus.md").read_text()
    sizes = [sum(map(math.prod, shapes(preset).values())) for preset in ("sd15", "sdxl")]
    names = {"DistributedDataParallel": 8, "mask on the generator": 4 * 1.1, "mask on both": 0.8}
    for name, factor in names.items():
        figures = [f"{ring_bytes(factor * size, 8) / 1e9:.1f}" for size in sizes]
        assert f"| {' | '.join([name, *figures])} |" in page


def test_what_is_sent_is_counted_in_a_private_network():
    from communication import _loopback_bytes, private_network

    def receive():
        connection = server.accept()[0]
        while connection.recv(2**16):
            pass
        connection.close()

    outside = os.readlink("/proc/thread-self/ns/net")
    with private_network() as obstacle:
        if obstacle is not None:
            pytest.skip(obstacle)
        assert os.readlink("/proc/thread-self/ns/net") != outside
        with socket.create_server(("127.0.0.1", 0)) as server:
            before = _loopback_bytes()
            receiver = threading.Thread(target=receive)
            receiver.start()
            with socket.create_connection(server.getsockname()) as sender:
                sender.sendall(bytes(10**7))
            receiver.join()
        # Headers: 52 bytes a segment of up to 64 kB, and as many acknowledgements.
        assert 1e7 < _loopback_bytes() - before < 1.02e7
    assert os.readlink("/proc/thread-self/ns/net") == outside


def test_without_rights_it_says_so(monkeypatch):
    import communication

    class Libc:
        def __init__(self, *_, **__):
            pass

        def unshare(self, _):
            communication.ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(communication.ctypes, "CDLL", Libc)
    with communication.private_network() as obstacle:
        assert "Operation not permitted" in obstacle


@pytest.mark.slow
def test_rows_are_checked_and_counted(tmp_path):
    import communication

    file = tmp_path / "rows.json"
    names = ["fully_shard", "density 0.1", "density 0.1, released gradients", "mask on both"]
    options = ["--processes", "2", "--preset", "tiny_ddpm", "--only", *names]
    assert communication.main([*options, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    ddp = rows["DistributedDataParallel"]
    assert ddp["match"] and ddp["payload_bytes"] == 4 * ddp["parameters"]
    assert ddp["share_of_ddp"] == 1
    for name in names[1:]:
        # Headers, acknowledgements and two barriers: they weigh more here than at full size.
        assert rows[name]["match"] and 0.09 < rows[name]["share_of_ddp"] < 0.13
    if ddp["wire_bytes"] is not None:
        assert ddp["wire_of_ring"] == pytest.approx(1, abs=0.02)
        assert rows["fully_shard"]["share_of_ddp"] == pytest.approx(2, abs=0.05)


def test_the_check_sees_one_wrong_entry():
    from communication import sums_agree

    torch.manual_seed(0)
    own = torch.randn(4, 5)
    wrong = own.clone()
    wrong[-1, -1] *= 1 + 2**-20
    exact, sizes = own.double(), own.double().abs()
    everything = torch.ones(4, 5, dtype=torch.bool)
    assert sums_agree(own, exact, sizes, 2, None)
    assert sums_agree(own[everything], exact, sizes, 2, everything)
    assert not sums_agree(wrong, exact, sizes, 2, None)
    everything[-1, -1] = False
    assert sums_agree(wrong[everything], exact, sizes, 2, everything)
