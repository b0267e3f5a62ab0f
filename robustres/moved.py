"""Modules that moved into subpackages remain importable under their old names."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Package -> subpackage -> its modules: "name" if only the folder changed, "old=new" if the name changed too. A module
# whose old name is now that of a subpackage is left out, since the subpackage has that name.
MOVED = {
    "certify": {
        "proof": ("bound clopper_pearson definite=cholesky_proof batched_norm=largest_singular_value"),
        "maps": (
            "linear_map selection=coordinate_maps convolution fold=folding sector sorting product_rounding=rounding"
        ),
        "fourier": "torus matrix_polynomial",
        "graph": (
            "network protocol=statements tracing capture rules=operation_rules rules_activation "
            "rules_arithmetic rules_linear rules_pooling rules_shape simplify"
        ),
        "norms": (
            "exact_norm=structural_norm frequency=frequency_norm lanczos power_iteration linf_norm spectral_norm"
        ),
        "lower": "jacobian witness ascent",
        "blocks": ("regions=parallel_paths residual_block reduced_block joint_search joint=joint_bound mask_ascent"),
        "bounds": (
            "block_row whole_network analysis=bounded_network head remembered=bound_cache "
            "rescaled=rescaled_block report lipschitz estimates"
        ),
        "radii": (
            "radius routes=margin_radii deviation=forward_rounding radius_column certificate "
            "network_certificate smoothing"
        ),
        "audits": "audit claims=claimed_constants",
    },
    "attacks": {
        "geometry": "ball hyperplane losses randomness window",
        "base": "attack problem ledger result preflight findings",
        "search": "engine gradient targets minimum_norm orbits=repeated_iterates prospects=success_forecast",
        "methods": (
            "fgsm pgd apgd apgd_targeted fab square square_l2=square_windows ddn fmn deepfool ensemble "
            "torchattacks_backend"
        ),
    },
    "models": {
        "constraints": "operator_norm activations",
        "blocks": (
            "site stated scaled merged ordinary highway convex_potential joint_block euler linear_residual "
            "orthogonal backward_euler orthogonal_convolution transition"
        ),
        "networks": "residual_net presets materialise normalised",
        "sources": (
            "factory aten_graph onnx_model=onnx.load archive exported_program torchscript checkpoint weights_file hub "
            "zoo load_model save_model"
        ),
    },
    "dynamics": {
        "measures": "variation jacobian inverse schemes claim charts dissection scaling early_exit fit",
        "small_networks": "parts stack flow adapter highway_radius",
        "demonstrations": "expansion gradient_flow information correction continuous second_task smoothness",
        "observations": (
            "own_continuous own_correction own_expansion own_gradient_flow own_information own_second_task "
            "own_smoothness"
        ),
    },
}


def _new_names() -> dict[str, str]:
    names = {}
    for package, rooms in MOVED.items():
        for room, modules in rooms.items():
            for module in modules.split():
                old, _, new = module.partition("=")
                names[f"robustres.{package}.{old}"] = f"robustres.{package}.{room}.{new or old}"
    return names


class MovedModules(MetaPathFinder, Loader):
    """Resolves the old name of a module to the same module object under its new name."""

    names = _new_names()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module spec of a moved module; None for all others."""
        return ModuleSpec(fullname, self) if fullname in self.names else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module under its new name."""
        module = import_module(self.names[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute; the module keeps the spec with which it was loaded."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def answer_to_old_names(package: str) -> None:
    """Make the old names of a package's modules importable: those already loaded at once, so that a function keeps its
    name although a module has the same one (`robustres.certify.lipschitz`), and the others on demand.
    """
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
    for old, new in MovedModules.names.items():
        if old.startswith(f"{package}.") and new in sys.modules:
            sys.modules.setdefault(old, sys.modules[new])
