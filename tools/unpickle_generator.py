"""Make `erase --generator` a folder of a one-step generator that SiD-LSG published as a pickle.

    python tools/unpickle_generator.py batch512_cfg4.54.54.5_t625_8380_v2.pkl one-step

Reading a pickle runs whatever code it names: do it only where you trust the file, in a container
without a network.
"""

import json
import pickle
import sys
from pathlib import Path

T_INIT = 625  # the time step of SiD-LSG's generators, as their names say


def main(file: Path, out: Path) -> None:
    """Write the U-Net at `ema` of the pickled dictionary in `file` to the new folder `out`."""
    with file.open("rb") as opened:
        network = pickle.load(opened)["ema"]
    out.mkdir()
    network.float().save_pretrained(out / "unet")
    about = {"kind": "generator", "t_init": T_INIT, "converted_from": file.name}
    (out / "pecker_fast.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
