"""What an evaluation computes: settings that are checked once and recorded in the run's manifest."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from robustres.certify import Certificate, RandomisedSmoothing
from robustres.certify.blocks.joint_bound import DEFAULT_EFFORT
from robustres.certify.bounds.lipschitz import Domain
from robustres.errors import InputError
from robustres.evaluation.plan import check_certificates, planned_attacks
from robustres.evaluation.plugins import described
from robustres.results import includes_local
from robustres.threat import Norm, ThreatModel, parse_numbers

Dtype = Literal["float64", "float32"]
# The attacks where the caller names none, and those of a first look: a quarter of the time, more samples left.
DEFAULT_ATTACKS, FAST_ATTACKS = ("strong",), ("fgsm", "pgd")
# Default size of a forward pass: the fixed cost of a step is shared by many small images, and large ones fit into the
# memory of a laptop.
IMAGES_AT_ONCE, VALUES_AT_ONCE = 512, 2**25
# The conventional eps at which certified accuracy is evaluated if the caller names none for that norm.
CONVENTIONAL_EPS: Mapping[Norm, tuple[float, ...]] = MappingProxyType(
    {"l2": (36 / 255, 72 / 255, 108 / 255), "linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255)}
)


@dataclass(frozen=True)
class Settings:
    """Threats, attacks and certificates of one evaluation.

    eps: for each norm to attack in, the budgets in pixel units, one or several. Certificates are computed in these
        norms and in l2.
    attacks: names for `robustres.attacks.make_attack`, and your own attacks: an object with `name`, `threat` and
        __call__(model, x, y) that returns images, which has its own eps; or a class, or its import path
        "package.module:name", which is instantiated for each threat. Empty for certificates alone. The default,
        "strong", is an ensemble; ("fgsm", "pgd") is the quick look of the command's --fast.
    certify: whether radii are computed; False for attacks alone.
    certificate: "lipschitz", the product of the pieces' bounds, or "best", for each sample the largest radius of all
        available deterministic bounds on the network, or "local", bounds around each image; or your own: an object
        (`robustres.certify.Certificate`) or its import path "package.module:name"; or several of these. The column that
        a certificate returns says to which function and norm it refers and what it guarantees.
    dtype: "float64", or "float32" for radii of the network as it runs in float32, whose rounding errors are subtracted
        from the margin.
    attack_settings: keyword arguments by the name or import path of an attack, for example {"pgd": {"steps": 50}}.
    smoothing: also certify the classifier smoothed by Gaussian noise, a different function from the network, with a
        probability; None omits it.
    batch_size: samples per forward pass; the results do not depend on it beyond rounding. None takes 512, fewer if that
        many images have more than 2^25 values.
    part_size: samples per part of the run's tables, the unit of resuming and of sharding. None takes two batches of the
        default size, so that an attack can refill its batch as samples are broken.
    seed: of all random numbers; each draw also depends on the sample's index.
    joint: whether blocks are bounded jointly (tighter, slower) or by the textbook bound alone.
    effort: how much each joint bound may cost, in seconds of a nominal core; the same effort gives the same bound.
    whole_effort: how much the bound of all layers at once may cost, in the same unit; None takes four times `effort`.
    domain: "all" inputs, or "unit": the network is bounded for images in [0, 1] only, which also bounds products of
        two values; radii hold for the part of their ball that lies there, where the attacks stay as well.
    seconds_per_image: time limit of the local bounds for each image and norm, in seconds of one core; None takes 5 for
        "local", and omits local bounds from "best".
    aim_at_eps: local bounds only try to prove the evaluated eps, not the largest radius.
    keep_going: report samples with non-finite logits and continue; the default is to stop before anything runs.
    diagnose: number of samples on which PGD is checked for masked gradients at the largest eps; 0 omits the check.
    examples: number of adversarial examples stored for the gallery, per norm.
    save_examples: store all of them, in the table "adversarial" (`RunFolder.adversarial`), for example for `replay`.
    keep_certificates: keep the local certificates, one file for each image and norm, for `recheck`.
    """

    eps: Mapping[Norm, tuple[float, ...]]
    attacks: tuple[Any, ...] = DEFAULT_ATTACKS
    certify: bool = True
    certificate: str | Certificate | tuple[str | Certificate, ...] = "lipschitz"
    dtype: Dtype = "float64"
    attack_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    smoothing: RandomisedSmoothing | None = None
    batch_size: int | None = None
    part_size: int | None = None
    seed: int = 0
    joint: bool = True
    effort: float = DEFAULT_EFFORT
    whole_effort: float | None = None
    domain: Domain = "all"
    seconds_per_image: float | None = None
    aim_at_eps: bool = False
    keep_going: bool = False
    diagnose: int = 0
    examples: int = 24
    save_examples: bool = False
    keep_certificates: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.eps, Mapping):
            raise InputError(f"eps must be given by norm, for example eps={{'linf': (8/255,)}}, got {self.eps!r}")
        object.__setattr__(self, "eps", {norm: _numbers(budgets) for norm, budgets in self.eps.items()})
        if isinstance(self.attacks, str):
            object.__setattr__(self, "attacks", tuple(self.attacks.split(",")))
        if not isinstance(self.attacks, Sequence):
            raise InputError(f"attacks must be a tuple, for example ('fgsm', 'pgd'), got {self.attacks!r}")
        if not self.eps or not all(self.eps.values()):
            raise InputError("give at least one norm with at least one eps, for example eps={'linf': (8/255,)}")
        for norm, budgets in self.eps.items():
            for eps in budgets:
                if not math.isfinite(ThreatModel(norm, eps).eps):
                    raise InputError("eps must be finite; a minimum-norm attack such as fmn needs none")
        for name in ("batch_size", "part_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.dtype not in get_args(Dtype):
            raise InputError(f"dtype must be {' or '.join(get_args(Dtype))}, got {self.dtype!r}")
        for name in ("seed", "diagnose", "examples"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"{name} must be an integer of at least 0, got {value!r}")
        if not isinstance(self.effort, int | float) or not self.effort > 0:
            raise InputError(f"effort must be positive, in seconds per joint bound, got {self.effort!r}")
        if self.whole_effort is not None and not self.whole_effort >= 0:
            raise InputError(f"whole_effort must be at least 0, in seconds, got {self.whole_effort!r}")
        if self.domain not in get_args(Domain):
            raise InputError(f"domain must be {' or '.join(get_args(Domain))}, got {self.domain!r}")
        if self.seconds_per_image is not None and not self.seconds_per_image > 0:
            raise InputError(f"seconds_per_image must be positive, got {self.seconds_per_image:g}")
        check_certificates(self.certificates())
        local = self.certify and includes_local(self.certificates(), self.seconds_per_image)
        if self.keep_certificates and not local:
            raise InputError(
                "keep_certificates keeps local certificates; ask for them with certificate='local', or 'best' with "
                "seconds_per_image"
            )
        planned_attacks(self)

    def certificates(self) -> tuple[str | Certificate, ...]:
        """Every entry of `certificate`."""
        return self.certificate if isinstance(self.certificate, tuple) else (self.certificate,)

    def images_at_once(self, shape: Sequence[int]) -> int:
        """Samples per forward pass, for images of shape (C, H, W)."""
        return self.batch_size or max(1, min(IMAGES_AT_ONCE, VALUES_AT_ONCE // math.prod(shape)))

    def samples_per_part(self, shape: Sequence[int]) -> int:
        """Samples per part of the tables, for images of shape (C, H, W), whatever the batch size."""
        return self.part_size or 2 * max(1, min(IMAGES_AT_ONCE, VALUES_AT_ONCE // math.prod(shape)))

    def threats(self) -> list[ThreatModel]:
        """Every threat model, norm by norm, eps ascending and without duplicates."""
        return [ThreatModel(norm, eps) for norm, budgets in self.eps.items() for eps in sorted(set(budgets))]

    def certified_norms(self) -> tuple[Literal["l2", "linf"], ...]:
        """The norms in which radii are computed: l2, and linf if it is attacked."""
        if not self.certify:
            return ()
        return ("l2", "linf") if "linf" in self.eps else ("l2",)

    def counted_eps(self) -> dict[str, list[float]]:
        """For each certified norm, the eps at which certified accuracy is evaluated."""
        return {
            norm: sorted(set(self.eps.get(norm) or CONVENTIONAL_EPS.get(norm, ()))) for norm in self.certified_norms()
        }

    def reported_eps(self) -> dict[str, list[float]]:
        """`counted_eps`, and the eps of every norm in which a minimum-norm attack runs, which serves them all."""
        free = {attack.threat.norm for attack in planned_attacks(self) if not math.isfinite(attack.threat.eps)}
        attacked = {norm: sorted(set(budgets)) for norm, budgets in self.eps.items() if norm in free}
        return self.counted_eps() | attacked

    def to_json(self) -> dict[str, Any]:
        """The settings as recorded in the manifest."""
        return {
            "eps": {norm: list(budgets) for norm, budgets in self.eps.items()},
            "attacks": [described(entry) for entry in self.attacks],
            "certify": self.certify,
            "certificate": described(self.certificate),
            "dtype": self.dtype,
            "attack_settings": described(self.attack_settings),
            "batch_size": self.batch_size,
            "part_size": self.part_size,
            "seed": self.seed,
            "joint": self.joint,
            "effort": self.effort,
            "whole_effort": self.whole_effort,
            "domain": self.domain,
            "seconds_per_image": self.seconds_per_image,
            "aim_at_eps": self.aim_at_eps,
            "smoothing": None if self.smoothing is None else asdict(self.smoothing),
            "keep_going": self.keep_going,
            "diagnose": self.diagnose,
            "examples": self.examples,
            "save_examples": self.save_examples,
            "keep_certificates": self.keep_certificates,
        }


def _numbers(given: Any) -> tuple[float, ...]:
    """One budget or several, as numbers or as strings such as "8/255"."""
    if isinstance(given, str):
        return parse_numbers(given)
    try:
        return tuple(map(float, given)) if isinstance(given, Iterable) else (float(given),)
    except (TypeError, ValueError) as error:
        raise InputError(f"eps must be a number or several, such as 8/255 or (1/255, 8/255), got {given!r}") from error
