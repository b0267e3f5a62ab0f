"""Damaged files of every format are refused in one sentence: no crash, no hang, at most a few gibibytes of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

# Runs in a separate process with limits: FORMAT, number of mutations, a folder to write to.
DRIVER = """
import io, random, resource, signal, sys, warnings
from pathlib import Path
import numpy as np, torch
from PIL import Image
from torch import nn
warnings.simplefilter("ignore")
torch.set_num_threads(1)
kind, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
from robustres.data import load_data
from robustres.errors import RobustresError
from robustres.models import build, load_model, PRESETS, save_checkpoint
from robustres.models.sources.weights_file import load_weights

net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype("u1")
labels, extra = np.arange(4), None
if kind in ("safetensors", "json"):
    file = save_checkpoint(build(PRESETS["plain-tiny"]), folder / "model")
    target = file if kind == "safetensors" else file.with_suffix(".json")
    use = lambda: load_model(str(file), input_shape=(1, 8, 8))
elif kind == "pt2":
    target = folder / "net.pt2"
    program = torch.export.export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, target)
    use = lambda: load_model(str(target), input_shape=(1, 8, 8))
elif kind == "torchscript":
    target = folder / "net.pt"
    torch.jit.script(net).save(str(target))
    use = lambda: load_model(str(target), input_shape=(1, 8, 8))
elif kind == "weights":
    target = folder / "net.pth"
    torch.save({"net": net.state_dict(), "epoch": 1}, target)
    use = lambda: load_weights(net, target)
elif kind in ("npy images", "npy labels"):
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    target = folder / (kind.split()[1] + ".npy")
    use = lambda: load_data(f"npy:{folder}")
elif kind in ("npz", "compressed npz"):
    target = folder / "set.npz"
    (np.savez if kind == "npz" else np.savez_compressed)(target, images=images, labels=labels)
    use = lambda: load_data(f"npz:{target}")
else:
    target = folder / "images" / "cat" / f"0.{kind}"
    target.parent.mkdir(parents=True)
    Image.fromarray(np.repeat(images[0], 3, axis=2)).save(target)
    use = lambda: load_data(f"folder:{folder / 'images'}").images

use()
original, random = target.read_bytes(), random.Random(0)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
signal.signal(signal.SIGALRM, signal.SIG_DFL)
refused = 0
for number in range(count):
    content = bytearray(original)
    way = random.randrange(4)
    if way == 0:
        del content[random.randrange(len(content)):]
    elif way == 1:
        for _ in range(random.choice((1, 1, 4, 32))):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    elif way == 2:
        place = random.randrange(len(content))
        content[place:place + random.choice((1, 4, 8))] = random.randbytes(random.choice((1, 4, 8)))
    else:  # sizes that grow: digits and bytes that count
        places = [i for i, byte in enumerate(content[:4096]) if 48 <= byte <= 57] or [0]
        place = random.choice(places)
        content[place:place + 1] = random.choice((b"9" * 12, b"-1", b"9999999", b"1e9"))
    target.write_bytes(bytes(content))
    signal.alarm(60 if kind not in ("torchscript", "pt2") else 300)  # a trial apart has limits of its own
    try:
        use()
    except RobustresError:
        refused += 1
    except BaseException as error:
        raise SystemExit(f"mutation {number}: {type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
print("refused", refused, "of", count)
"""
FORMATS = (
    *("safetensors", "json", "pt2", "torchscript", "weights", "npy images", "npy labels", "npz", "compressed npz"),
    *("png", "jpg", "gif", "tif", "bmp", "webp"),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_five_hundred_damaged_files_are_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, kind, "500", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-500:]}"
    assert "of 500" in done.stdout
