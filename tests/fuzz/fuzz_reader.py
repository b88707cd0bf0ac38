"""Feeds readers with mutated files: `python fuzz_reader.py FOLDER -runs=N`.

libFuzzer ends the process itself, so each reader gets a fork of one that has imported everything;
what it says is in FOLDER/READER.log, and how it ended is printed. Only our modules are
instrumented: the coverage of torch or numpy would cost much and lead elsewhere.
"""

import gzip
import importlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import atheris
import numpy as np
import torch


def reader(module, name):
    """Imports a reader, once the importer instruments."""
    return lambda: getattr(importlib.import_module(f"pecker_fast.{module}"), name)


def description():
    module = importlib.import_module("pecker_fast.models.description")
    checked, read_json = reader("runs.reading", "checked")(), reader("files", "read_json")()
    return lambda path: checked(module.ClassDescription, read_json(path), path)


def idx():
    read_idx = reader("datasets.fashion_mnist", "_read_idx")()

    def read(path):
        path.write_bytes(gzip.compress(path.read_bytes(), compresslevel=0))
        read_idx(path, (28, 28))

    return read


def checkpoint():
    published = importlib.import_module("pecker_fast.models.published")
    errors = importlib.import_module("pecker_fast.errors")

    def read(path):
        found = published.read_checkpoint(path)
        with suppress(errors.PeckerError):  # a whole network would be too large to mutate
            found.network(found.choose())

    return read


# ---- valid files to start from


def text(content):
    return lambda path: path.write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


def write_npz(path):
    images = np.zeros((2, 1, 2, 2), np.uint8)
    with open(path, "wb") as file:
        np.savez(file, images=images, labels=np.arange(2), class_names=np.array(["a", "b"]))


def write_image(path):
    from PIL import Image

    Image.new("RGB", (3, 2), "red").save(path, format="PNG")


def write_idx(path):
    header = b"".join(number.to_bytes(4, "big") for number in (2051, 1, 28, 28))
    path.write_bytes(header + bytes(784))


def a_mask():
    from pecker_fast import SaliencyMask

    return SaliencyMask({"a": torch.tensor([0, 5], dtype=torch.int32)}, {"a": torch.Size([2, 3])})


def write_mask(path):
    a_mask().save(path)


def write_patch(path):
    from pecker_fast import save_patch

    base, erased = {"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 3)}
    erased["a"][0, 0], erased["a"][1, 2] = 1, 2
    save_patch(path, base, erased, a_mask(), name="x")


def write_delta(path):
    from pecker_fast import Delta

    Delta({"a": torch.ones(2, dtype=torch.bfloat16)}, "0" * 64).save(path)


def delta():
    from pecker_fast import Delta

    return Delta.load


def header():
    """Of the files of one network, here one."""
    shapes = reader("models.weights", "_shapes_in")()
    return lambda place: shapes([place])


def write_floats(path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2, 3)}, path)


def write_tensors(path):
    torch.save({"a": torch.ones(2, 3)}, path)


def write_network(path):
    names = ("conv_in.weight", "classes_emb.weight", "down.0.block.0.conv1.weight")
    torch.save([{name: torch.ones(2, 2) for name in names}, None, 3], path)


DESCRIPTION = {"kind": "teacher", "class_names": ["a", "b"], "figures": {"t_init": 440}}
SCHEDULE = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4,
    "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None, "clip_sample": False,
}  # fmt: skip
INDEX = {"_class_name": "X", "unet": ["diffusers", "U"], "vae": [None, None]}
SAMPLES = {"folders": {"a": {"index": 0}}, "class_names": ["a"]}
PROMPTS = 'prompt,group,label,seed,guidance\n"a, b",forget,x,1,2.5\n'
SETTINGS = "base: cifar10_forget\nseed: &n 0x1F\nlogging: {every: *n}\nforget: cat\noverride: dog\n"

READERS = {
    "json": (reader("files", "read_json"), text(DESCRIPTION)),
    "yaml": (reader("runs.reading", "read_yaml"), text(SETTINGS)),
    "settings": (reader("distill.config", "load_config"), text(SETTINGS)),
    # Of what takes a schema one: the entries of others are spoiled one by one in tests/models.
    "model description": (description, text(DESCRIPTION)),
    "schedule": (reader("models.schedules", "read_schedule"), text(SCHEDULE)),
    "index": (reader("models.description", "pipeline_parts"), text(INDEX)),
    "header": (header, write_floats),
    "samples": (reader("datasets.image_files", "_provenance"), text(SAMPLES)),
    "npz": (reader("datasets.image_files", "_load_npz"), write_npz),
    "image": (reader("datasets.pixels", "open_image"), write_image),
    "prompts": (reader("datasets.prompt_files", "read_prompt_file"), text(PROMPTS)),
    "idx": (idx, write_idx),
    "mask": (reader("masks.files", "read_mask"), write_mask),
    "patch": (reader("patches.files", "read_patch"), write_patch),
    "delta": (delta, write_delta),
    "dense mask": (reader("masks.files", "read_dense"), write_tensors),
    "checkpoint": (checkpoint, write_network),
}


INSTRUMENTED = [
    f"pecker_fast.{module}"
    for module in (
        "files", "torch_files", "runs.reading", "runs.settings", "masks.files", "patches.files",
        "optim.delta", "models.description", "models.schedules", "models.weights",
        "models.published", "datasets",
    )
]  # fmt: skip


def feed(read, write, folder, options):
    """Fuzz one reader in the empty folder; ends the process."""
    from pecker_fast.errors import PeckerError

    corpus, place = folder / "corpus", folder / "input"
    corpus.mkdir(parents=True)
    write(corpus / "valid")
    place.write_bytes((corpus / "valid").read_bytes())
    read(place)  # what follows starts from a file that is read

    def once(data):
        place.write_bytes(data)
        try:
            read(place)
        except PeckerError as error:
            assert len(str(error)) < 4000

    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(corpus)], once)
    atheris.Fuzz()


def main(folder, options):
    with atheris.instrument_imports(include=INSTRUMENTED):
        readers = {name: make() for name, (make, _) in READERS.items()}
    for name, read in readers.items():
        child = os.fork()
        if child == 0:
            log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            feed(read, READERS[name][1], folder / name, options)
        _, status = os.waitpid(child, 0)
        print(f"{name}: {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
