"""Networks of torchvision and timm, exported with both exporters of torch, load and agree with onnxruntime."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from robustres.models import load_model

TORCHVISION = (
    *("resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "densenet121"),
    *("mnasnet0_5", "efficientnet_b0", "regnet_y_400mf", "alexnet", "vgg11_bn", "resnext50_32x4d", "googlenet"),
    *("swin_t", "convnext_tiny", "resnet50"),
)
TIMM = (
    *("vit_tiny_patch16_224", "mixer_s32_224", "ghostnet_100", "levit_128s", "mobilevit_xxs", "edgenext_xx_small"),
    *("poolformer_s12", "pit_ti_224", "repvgg_a0", "dla34", "hrnet_w18_small", "res2net50_26w_4s", "lcnet_050"),
    *("rexnet_100", "resmlp_12_224", "resnetv2_50"),
)


def published(name: str) -> tuple[nn.Module, int]:
    """The network with random weights and non-default batch statistics, and the size of its images."""
    torch.manual_seed(0)
    if name in TORCHVISION:
        torchvision = pytest.importorskip("torchvision")
        settings = {"init_weights": False} if name == "googlenet" else {}
        network, side = getattr(torchvision.models, name)(num_classes=10, **settings), 224
    else:
        timm = pytest.importorskip("timm")
        network = timm.create_model(name, num_classes=10, exportable=True)
        side = network.default_cfg["input_size"][-1]
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval(), side


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["legacy", "dynamo"])
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_an_exported_network_loads_and_agrees_with_onnxruntime(name: str, mode: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    network, side = published(name)
    x, file = torch.rand(2, 3, side, side), str(tmp_path / f"{name}.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if mode == "legacy":
            torch.onnx.export(
                network, (x,), file, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes={"x": {0: "n"}}
            )
        else:
            torch.onnx.export(network, (x,), file, dynamic_shapes=({0: torch.export.Dim("n")},), external_data=False)
    loaded = load_model(file, input_shape=(3, side, side))  # compares with onnxruntime, and refuses if they differ
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), network(x), rtol=1e-3, atol=1e-3)
