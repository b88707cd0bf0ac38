"""benchmarks/scaling.py: the model against counted bytes, and against figures done by hand."""

import functools
import json
import math

import pytest
import torch


@pytest.fixture
def counted():
    """(processes, name) -> row of what was counted on the wire."""
    from measure import RESULTS

    rows = json.loads((RESULTS / "communication-cpu.json").read_text())["rows"]
    return {(row["processes"], row["name"]): row for row in rows}


def buckets(shapes, density):
    from overlap import buckets_of

    return buckets_of(shapes, torch.float32, density, dict.fromkeys(shapes, 0))


@functools.cache
def counted_shapes():
    """Shapes of the network that was counted."""
    from pecker_fast.models.ddpm import DDPMUNet

    with torch.device("meta"):
        network = DDPMUNet()
    return {name: param.shape for name, param in network.named_parameters()}


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(
    ("name", "densities"),
    [
        ("DistributedDataParallel", [None]),
        ("no mask", [None]),
        ("density 0.5", [0.5]),
        ("density 0.1", [0.1]),
        ("density 0.1, released gradients", [0.1]),
        ("no mask, both networks", [None, None]),
        ("mask on the generator, dense pseudo-score", [None, 0.1]),
        ("mask on both", [0.1, 0.1]),
        ("mask on both, released gradients", [0.1, 0.1]),
    ],
)
def test_the_model_gives_the_counted_bytes(counted, processes, name, densities):
    """1 %: headers, acknowledgements and what the trainer sends besides gradients."""
    from overlap import ring_bytes

    of = counted_shapes()
    payload = sum(bucket.size for density in densities for bucket in buckets(of, density))
    row = counted[processes, name]
    assert row["payload_bytes"] == pytest.approx(payload, rel=1e-4)  # rounded for each parameter
    assert row["wire_bytes"] == pytest.approx(ring_bytes(payload, processes), rel=0.01)


@pytest.mark.parametrize("processes", [2, 4])
def test_sharded_weights(counted, processes):
    """Over gloo, where a scattered sum costs a whole all-reduce: two of the model's scatters."""
    from scaling import sharded_bytes

    row = counted[processes, "fully_shard"]
    expected = sharded_bytes(row["parameters"], processes, 2, 2, 4, 4)
    assert row["wire_bytes"] == pytest.approx(expected, rel=0.01)


def test_when_gradients_are_complete():
    """Two products: the second one's weight gradient comes first, an input's before a weight's."""
    from overlap import _count

    network = torch.nn.Sequential(
        torch.nn.Linear(3, 5, bias=False), torch.nn.Linear(5, 7, bias=False)
    )
    found = _count(network, lambda net, x, *_: net(x), 2, (3,))
    first, second = 2 * 2 * 3 * 5, 2 * 2 * 5 * 7  # FLOPs
    assert found.forward == first + second
    assert found.through == first + second
    assert found.backward == first + 2 * second  # the image needs no gradient
    assert found.complete["0.weight"] == found.backward
    assert found.complete["1.weight"] in (second, 2 * second)  # before or after its input's
    assert all(param.grad is None and param.requires_grad for param in network.parameters())


def test_buckets_are_the_reducers():
    """25 MiB: as soon as one is over it, it is closed; those that are full first go first."""
    from overlap import buckets_of

    shapes = {"a": torch.Size([3, 2**20]), "b": torch.Size([5, 2**20]), "c": torch.Size([2, 2**20])}
    complete = {"a": 10, "b": 40, "c": 30}
    dense = buckets_of(shapes, torch.float32, None, complete)
    assert [(one.size / 2**20, one.ready) for one in dense] == [(12, 10), (28, 40)]
    half = buckets_of(shapes, torch.bfloat16, 0.5, complete)  # fp32 whatever the weights are
    assert [(one.size / 2**20, one.ready) for one in half] == [(20, 40)]


def test_sums_arrive():
    """Two GPUs send a payload's bytes each: 8 bytes take 4 s at 2 bytes a second."""
    from overlap import Bucket, sums_arrive

    # Full after 1 s and 2 s: the second waits for the link.
    assert sums_arrive([Bucket(8, 10), Bucket(2, 20)], 2, 2.0, 10.0) == 1 + 4 + 1
    # Full after 1 s and 9 s: the link waits for the second.
    assert sums_arrive([Bucket(8, 10), Bucket(2, 90)], 2, 2.0, 10.0) == 9 + 1
    assert sums_arrive([Bucket(8, 10)], 4, 2.0, 10.0) == 1 + 6  # a ring of 4: 3/2 payloads


def test_ways_of_a_small_network(monkeypatch):
    import scaling
    from networks import Teacher

    monkeypatch.setattr(scaling, "shapes", lambda preset: Teacher(preset).shapes())
    rows = list(scaling.traffic("tiny_text", [8]))
    by = {(row.precision, row.way): row for row in rows}
    numel = rows[0].parameters
    ddp = by["fp32", "DistributedDataParallel"]
    assert ddp.payload_bytes == 8 * numel and ddp.sent_bytes == round(2 * 7 / 8 * 8 * numel)
    assert ddp.share_of_ddp == 1 and by["bf16", ddp.way].sent_bytes == ddp.sent_bytes / 2
    # Density 0.1 of each parameter, one entry at least: more than a tenth of small ones.
    assert by["fp32", "mask on both"].share_of_ddp == pytest.approx(0.1, rel=0.1)
    assert by["bf16", "mask on both"].share_of_ddp == pytest.approx(0.2, rel=0.1)
    assert by["fp32", "mask on the generator"].share_of_ddp == pytest.approx(0.55, rel=0.02)
    # 9 gathers of 2 bytes and 2 scatters of 4 in 7/8 of all, against 2 x 2 x 4 bytes.
    assert by["fp32", "fully_shard, no mask"].share_of_ddp == pytest.approx((18 + 8) / 16)
    assert by["bf16", "fully_shard, no mask"].share_of_ddp == pytest.approx((18 + 4) / 8)
    for row in rows:
        assert row.wire_ms["25 Gb/s"] == pytest.approx(1e3 * row.sent_bytes / 3.125e9, rel=1e-3)
        for name, wait in row.exposed_ms.items():
            assert 0 <= wait <= row.wire_ms[name] * (1 + 1e-6)


def test_memory_of_a_gpu():
    """Of a network of two parameters; sizes of a single GPU as memory.py would give them."""
    import scaling

    of = {
        "down_blocks.0.resnets.0.conv.weight": torch.Size([30]),
        "down_blocks.0.attentions.0.transformer_blocks.1.ff.net.0.weight": torch.Size([40]),
        "down_blocks.0.attentions.0.transformer_blocks.1.ff.net.0.bias": torch.Size([20]),
        "conv_in.weight": torch.Size([10]),
    }
    assert scaling.largest_block(of) == 60
    parts = {
        "weights": 1200,
        "optimizer state": 1600,
        "gradients": 800,
        "bf16 copies of weights": 200,
        "activations and temporaries": 5000,
        "positions of the mask": 100,
    }
    single = [
        {"preset": "sd15", "layout": layout, "density": 0.1, "parts": parts}
        for layout in set(scaling._LAYOUTS.values())
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "shapes", lambda _: of)
        rows = list(scaling.memory("sd15", [8], single))
    peaks = {row.way: row.peak_bytes for row in rows}
    assert peaks["DistributedDataParallel"] == 8900 + 2 * 4 * 100
    assert peaks["mask on the generator"] == 8900 + 4 * (100 + 10)
    assert peaks["mask on both"] == 8900 - 800 + 2 * 4 * 10
    sharded = math.ceil(1200 / 8) + math.ceil(1600 / 8) + math.ceil(800 / 8) + 5000 + 2 * 2 * 60
    assert peaks["fully_shard, no mask"] == sharded
    assert {row.optimizer_bytes for row in rows} == {1600, 200}


def test_every_table_of_the_page_is_made(monkeypatch):
    import tables

    assert tables.render_scaling(tables.SCALING.read_text()) == tables.SCALING.read_text()
    with pytest.raises(SystemExit, match=r"docs/scaling.md: .* 'communication', found 0"):
        tables.render_scaling("")


def test_a_row_that_failed_its_check_stops_the_table():
    from measure import RESULTS
    from scaling_tables import communication

    result = json.loads((RESULTS / "communication-cpu.json").read_text())
    assert "| step: density 0.1 |" in communication(result)
    result["rows"][3]["match"] = False
    with pytest.raises(AssertionError, match="failed its gate"):
        communication(result)
