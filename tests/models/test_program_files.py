"""Networks as torch.export programs and TorchScript: the same function, certified where possible, no code executed."""

import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import lipschitz
from robustres.errors import ModelError
from robustres.models import load_model

SHAPE = (1, 8, 8)


class Residual(nn.Module):
    """A residual network with operations that have several exported forms: views, chunks, normalisation, dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.branch(h)
        first, second = h.chunk(2, dim=1)
        h = torch.cat([torch.max(first, second), torch.min(first, second)], dim=1)
        h = nn.functional.adaptive_avg_pool2d(h, 4)
        logits: Tensor = self.head(h.view(h.size(0), -1))
        return logits


class Branching(nn.Module):
    """A network with control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 1):
            x = x * 2
        return x.flatten(1)


def require_plain_programs() -> None:
    if torch.__version__ < "2.9":
        pytest.skip("torch before 2.9 pickles the weights of a program")


def save_program(model: nn.Module, file: Path) -> None:
    require_plain_programs()
    program = torch.export.export(model, (torch.rand(2, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, file)


def save_traced(model: nn.Module, file: Path) -> None:
    torch.jit.trace(model, torch.rand(2, *SHAPE)).save(file)  # type: ignore[no-untyped-call]


def save_scripted(model: nn.Module, file: Path) -> None:
    torch.jit.script(model).save(file)


WRITERS: dict[str, Callable[[nn.Module, Path], None]] = {
    "net.pt2": save_program,
    "traced.pt": save_traced,
    "scripted.pt": save_scripted,
}


def quietly(write: Callable[[nn.Module, Path], None], model: nn.Module, file: Path) -> Path:
    """Ignore torch's warning that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(model, file)
    return file


@pytest.mark.parametrize(
    "name", ["net.pt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("traced.pt", "scripted.pt"))]
)
def test_a_program_file_is_the_same_network_and_gets_the_same_bound(name: str, tmp_path: Path) -> None:
    model = Residual().eval()
    file = quietly(WRITERS[name], model, tmp_path / name)
    loaded = load_model(str(file), input_shape=SHAPE)
    for batch in (1, 5):
        x = torch.rand(batch, *SHAPE)
        with torch.no_grad():
            assert torch.allclose(loaded.module(x), model(x), atol=1e-6)
    assert loaded.parameters >= sum(p.numel() for p in model.parameters())
    assert load_model(str(file), input_shape=SHAPE).sha256 == loaded.sha256
    bound = lipschitz(loaded.module, SHAPE, joint=False)
    assert bound.upper == pytest.approx(lipschitz(model, SHAPE, joint=False).upper)


def test_a_script_with_branches_can_be_attacked_and_the_refusal_says_why_it_is_not_certified(tmp_path: Path) -> None:
    file = quietly(save_scripted, Branching(), tmp_path / "net.pt")
    module = load_model(str(file), input_shape=SHAPE).module
    assert torch.equal(module(torch.ones(2, *SHAPE)), torch.full((2, 64), 2.0))
    (refusal,) = lipschitz(module, SHAPE, refuse="record").refused
    assert "TorchScript" in str(refusal)


def test_a_script_that_picks_channels_by_a_list(tmp_path: Path) -> None:
    class Picking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x[:, [-1, 0, -1]].flatten(1))  # type: ignore[no-any-return]

    model, x = Picking().eval(), torch.rand(3, 2, 2, 2)
    torch.jit.save(torch.jit.trace(model, x), tmp_path / "picking.pt")  # type: ignore[no-untyped-call]
    loaded = load_model(str(tmp_path / "picking.pt"), input_shape=(2, 2, 2)).module
    torch.testing.assert_close(loaded(x), model(x))
    assert lipschitz(loaded, (2, 2, 2)).upper == pytest.approx(lipschitz(model, (2, 2, 2)).upper)


def test_a_network_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    file = quietly(save_program, Residual().train(), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=r"training mode|updated buffers"):
        load_model(str(file))


def test_a_program_for_a_fixed_number_of_images_is_refused_with_advice(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, -1)

    require_plain_programs()
    torch.export.save(torch.export.export(Fixed(), (torch.rand(2, *SHAPE),)), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=r"exactly 2 images.*dynamic_shapes"):
        load_model(str(tmp_path / "net.pt2"))


class Bomb:
    """Create a folder if unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def rewritten(file: Path, change: Callable[[str, bytes], bytes | None], *, compress: bool = False) -> None:
    """Rewrite the archive with each member changed; None drops a member."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            changed = change(name, content)
            if changed is not None:
                archive.writestr(name, changed)


def in_json(change: Callable[[dict[str, Any]], None], end: str) -> Callable[[str, bytes], bytes]:
    """Change one of the JSON members."""

    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith(end):
            return content
        values = json.loads(content)
        change(values)
        return json.dumps(values).encode()

    return edit


def call_the_shell(trace: Path) -> Callable[[str, bytes], bytes]:
    def change(program: dict[str, Any]) -> None:
        node = program["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.os.mkdir"
        node["inputs"] = [{"name": "path", "arg": {"as_string": str(trace)}, "kind": 1}]

    return in_json(change, "models/model.json")


def guard_as_python(trace: Path) -> Callable[[str, bytes], bytes]:
    code = f"__import__('os').mkdir({str(trace)!r})"
    return in_json(lambda program: program["guards_code"].append(code), "models/model.json")


def pickled_weight(trace: Path) -> Callable[[str, bytes], bytes]:
    change = in_json(
        lambda values: values["config"]["stem.weight"].update(use_pickle=True), "weights/model_weights_config.json"
    )
    return lambda name, content: (
        pickle.dumps(Bomb(trace)) if name.endswith("weights/weight_0") else change(name, content)
    )


def pickled_inputs(trace: Path) -> Callable[[str, bytes], bytes]:
    return lambda name, content: pickle.dumps((Bomb(trace),)) if "sample_inputs" in name else content


def test_a_program_of_torch_2_8_is_refused_with_advice(tmp_path: Path) -> None:
    file = tmp_path / "net.pt2"
    save_program(Residual().eval(), file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if "/data/weights/" not in name}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {**members, "net/data/weights/model.pt": b"pickled"}.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match=r"save it with torch 2\.9 or later"):
        load_model(str(file), input_shape=SHAPE)


HARMLESS = {guard_as_python, pickled_inputs}  # never read, so the network can still be loaded


@pytest.mark.parametrize(
    "plant", [call_the_shell, pytest.param(guard_as_python, marks=pytest.mark.slow), pickled_weight, pickled_inputs]
)
def test_nothing_planted_in_an_exported_program_is_executed(
    plant: Callable[[Path], Callable[[str, bytes], bytes]], tmp_path: Path
) -> None:
    file, trace = tmp_path / "net.pt2", tmp_path / "exploded"
    save_program(Residual().eval(), file)
    rewritten(file, plant(trace))
    if plant in HARMLESS:
        load_model(str(file), input_shape=SHAPE)
    else:
        with pytest.raises(ModelError, match="cannot read"):
            load_model(str(file), input_shape=SHAPE)
    assert not trace.exists()


def larger(values: dict[str, Any]) -> None:
    values["config"]["stem.weight"]["tensor_meta"]["sizes"][0]["as_int"] = 10**12


def repeated(values: dict[str, Any]) -> None:
    """A shape whose entries are all the same number in the file."""
    meta = values["config"]["stem.weight"]["tensor_meta"]
    meta["sizes"], meta["strides"] = [{"as_int": 10**10}], [{"as_int": 0}]


def negative(values: dict[str, Any]) -> None:
    values["config"]["stem.weight"]["tensor_meta"]["storage_offset"]["as_int"] = 10**6


@pytest.mark.parametrize(
    "change",
    [
        in_json(larger, "weights_config.json"),
        in_json(repeated, "weights_config.json"),
        in_json(negative, "weights_config.json"),
        in_json(lambda values: values["config"].pop("head.bias"), "weights_config.json"),
        in_json(lambda values: values.clear(), "models/model.json"),
        lambda name, content: b"{" if name.endswith("model.json") else content,
        lambda name, content: None if name.endswith("weight_0") else content,
    ],
)
def test_wrong_shapes_missing_weights_and_broken_descriptions_are_one_sentence(
    change: Callable[[str, bytes], bytes | None], tmp_path: Path
) -> None:
    file = tmp_path / "net.pt2"
    save_program(Residual().eval(), file)
    rewritten(file, change)
    with pytest.raises(ModelError, match="cannot read") as refusal:
        load_model(str(file))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_and_inflated_archives_are_refused(name: str, tmp_path: Path) -> None:
    file = quietly(WRITERS[name], Residual().eval(), tmp_path / name)
    whole = file.read_bytes()
    for share in (0, 10, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:share])
        with pytest.raises(ModelError):
            load_model(str(file))
    file.write_bytes(whole)
    rewritten(
        file,
        lambda name, content: bytes(2**26 + 1) if name.endswith(("weight_0", "version")) else content,
        compress=True,
    )
    assert file.stat().st_size < 2**20
    with pytest.raises(ModelError, match=r"unpack to|not TorchScript"):
        load_model(str(file))


class Saving(nn.Module):
    """Write a file when called."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.file)
        return x.flatten(1)


def test_a_script_that_would_write_files_is_refused_before_it_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    file = quietly(save_scripted, nn.Sequential(Saving(str(trace))), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"uses save"):
        load_model(str(file), input_shape=SHAPE)
    assert not trace.exists()


@pytest.mark.slow
def test_a_script_that_hides_the_operation_is_refused_by_its_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    trace = tmp_path / "trace"
    file = quietly(save_scripted, Saving(str(trace)), tmp_path / "net.pt")
    monkeypatch.setattr("robustres.models.sources.torchscript.HOSTILE_CODE", re.compile("nothing at all"))
    with pytest.raises(ModelError, match=r"aten::save"):
        load_model(str(file), input_shape=SHAPE)
    assert not trace.exists()


def test_pickles_in_torchscript_are_not_read_by_pythons_unpickler(tmp_path: Path) -> None:
    file = quietly(save_scripted, Residual().eval(), tmp_path / "net.pt")
    trace = tmp_path / "exploded"
    rewritten(file, lambda name, content: pickle.dumps(Bomb(trace)) if name.endswith("data.pkl") else content)
    with pytest.raises(ModelError, match="cannot read"):
        load_model(str(file), input_shape=SHAPE)
    assert not trace.exists()


def test_a_pickled_module_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(Residual(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"pickled module.*package\.module:factory@"):
        load_model(str(tmp_path / "net.pt"))


LIMITED = """
import resource, sys
from robustres.errors import ModelError
from robustres.models import load_model
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    load_model(sys.argv[1])
except ModelError as refusal:
    print(refusal)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_a_script_is_one_module_with_and_without_a_shape(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    file = quietly(save_scripted, model, tmp_path / "net.pt")
    x = torch.rand(3, 2, 6, 6)
    for shape in (None, (2, 6, 6)):
        loaded = load_model(str(file), input_shape=shape).module
        x = x.detach().requires_grad_()
        loaded(x).sum().backward()
        assert torch.allclose(loaded(x), model(x), atol=1e-6)
        assert x.grad is not None
        assert lipschitz(loaded, (2, 6, 6)).upper == pytest.approx(lipschitz(model, (2, 6, 6)).upper, rel=1e-5)


class Backward(nn.Module):
    """Write at an index of its own; the operation does not check that it is within bounds."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.full([1, 1, 2, 2], 1 << 40, dtype=torch.int64)
        ones, big = torch.ones([1, 1, 2, 2]), torch.ones([1, 1, 4, 4])
        back = torch.ops.aten.max_pool2d_with_indices_backward(ones, big, [2, 2], [2, 2], [0, 0], [1, 1], False, place)
        return x.flatten(1) + back.sum()


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.rand(1)


class Printing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("seen")  # noqa: T201
        return x.flatten(1)


class Endless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while bool(x.sum() > -1):
            x = x + 1
        return x.flatten(1)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        pytest.param(Backward(), "max_pool2d_with_indices_backward, which is not among", marks=pytest.mark.slow),
        pytest.param(Random(), "aten::rand, which is not among", marks=pytest.mark.slow),
        (Printing(), "prim::Print, which does more than compute"),
        pytest.param(Endless(), "computes for more than", marks=pytest.mark.slow),
    ],
)
def test_programs_that_are_not_classifiers_are_refused_in_one_sentence(
    model: nn.Module, sentence: str, tmp_path: Path
) -> None:
    file = quietly(save_scripted, model, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=sentence):
        load_model(str(file), input_shape=SHAPE)


@pytest.mark.slow
def test_a_network_traced_in_training_mode_is_named_as_such(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.rand(2, *SHAPE), check_trace=False).save(tmp_path / "net.pt")  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match=r"batch_norm is in training mode; call model.eval\(\)"):
        load_model(str(tmp_path / "net.pt"), input_shape=SHAPE)


def test_a_program_of_enormous_values_is_refused_before_it_runs(tmp_path: Path) -> None:
    class Enormous(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).repeat(1, 1 << 28).sum(1, keepdim=True).repeat(1, 3)

    file = quietly(save_program, Enormous().eval(), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match="as no classifier does"):
        load_model(str(file))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x


class Switched(nn.Module):
    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        return x.flatten(1) * 2 if double else x.flatten(1)


@pytest.mark.slow
def test_scripts_of_other_types_and_of_other_inputs_are_used_or_named(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.float64):
        model = Residual().eval().to(dtype)
        file = quietly(save_scripted, model, tmp_path / "net.pt")
        x = torch.rand(3, *SHAPE).to(dtype)
        assert torch.equal(load_model(str(file), input_shape=SHAPE).module(x), model(x))
    file = quietly(save_scripted, Switched().eval(), tmp_path / "net.pt")
    assert load_model(str(file), input_shape=SHAPE).module(torch.ones(2, *SHAPE)).shape == (2, 64)
    file = quietly(save_scripted, Pair().eval(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match="must return logits of shape"):
        load_model(str(file), input_shape=SHAPE)
    file = quietly(save_scripted, Residual().eval(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match="to have 1 channels, but got 3 channels"):
        load_model(str(file), input_shape=(3, 8, 8))


class Hungry(nn.Module):
    """Keep eight values of half a gibibyte, each of which is plausible in a classifier."""

    def forward(self, x: Tensor) -> Tensor:
        kept = [x.flatten(1).repeat(1, 1 << 20) + number for number in range(8)]
        return torch.stack([value.sum(1) for value in kept], 1)


class Slow(nn.Module):
    """Minutes of successive multiplications in little memory."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.repeat(1, 2048, 4, 4).flatten(2)
        for _ in range(200):
            y = torch.tanh(y @ y.transpose(1, 2) @ y)
        return y.sum(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sentence"), [(Hungry(), "memory|needs more than 2 GiB"), (Slow(), "computes for more than 30 seconds")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does")
def test_a_program_that_exceeds_the_limits_dies_in_a_separate_process(
    model: nn.Module, sentence: str, tmp_path: Path
) -> None:
    file = quietly(save_program, model.eval(), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=sentence):
        load_model(str(file))


def test_a_script_with_damaged_weights_is_refused_where_torch_would_read_other_weights(tmp_path: Path) -> None:
    file = quietly(save_scripted, Residual().eval(), tmp_path / "net.pt")
    weight = Residual().head.weight.detach().numpy().tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(weight) + 7] ^= 64
    file.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged: its checksum is another"):
        load_model(str(file))


def test_a_tensor_expanded_to_forty_gigabytes_is_refused_within_half_a_gibibyte(tmp_path: Path) -> None:
    file = tmp_path / "net.pt2"
    save_program(Residual().eval(), file)
    rewritten(file, in_json(repeated, "weights_config.json"))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", LIMITED, str(file)]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert "fewer numbers than its shape [10000000000] says" in said


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float16, marks=pytest.mark.slow),
        torch.bfloat16,
        pytest.param(torch.float64, marks=pytest.mark.slow),
    ],
)
def test_an_exported_program_of_another_type_is_loaded_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval().to(dtype)
    x, any_batch = torch.rand(3, 3, 2, 2).to(dtype), ({0: torch.export.Dim("n")},)
    path = tmp_path / "network.pt2"
    require_plain_programs()
    torch.export.save(torch.export.export(network, (x,), dynamic_shapes=any_batch), path)
    loaded = load_model(str(path), input_shape=(3, 2, 2))
    assert torch.equal(loaded.module(x), network(x))
