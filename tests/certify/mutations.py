"""Mutations that weaken one rule, map, norm or charge of the certifier at a time; some test must fail for each.

    OMP_NUM_THREADS=1 python -m tests.certify.mutations [WORD ...]

applies the mutations whose file or text contains one of the words (by default all; the word `quick` omits the random
programs, so that the test closest to a file must fail) to copies of the repository. It lists
the survivors, and as stale the mutations whose text no longer occurs in its file. A mutation takes about 15 CPU
seconds.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FUZZ = "tests/certify/fuzz/test_programs.py"
EXACT = f"{FUZZ}::test_exact_jacobians_lie_below_the_bounds"
CASES = "test_cases_graph.py"
# The tests to run, by the longest matching prefix of the file's name; the random programs come last.
NEAREST = {
    "graph/": ("test_rules", "test_lipschitz"),
    "graph/rules_activation": ("test_weakened_rules", "test_activation_kinds", "test_rules"),
    "maps/": ("test_weakened_rules", "test_map_laws", "test_linear_map"),
    "maps/piecewise_linear": ("test_activation_kinds",),
    "maps/smooth": (
        "test_weakened_rules",
        "test_activation_kinds",
    ),
    "maps/nonlinear": ("test_weakened_rules", "test_activation_kinds", "test_rules"),
    "maps/sector": (
        "test_weakened_rules",
        "test_sorting",
    ),
    "norms/": ("test_weakened_rules", "test_spectral_norm", "test_map_laws"),
    "norms/whole_gram": ("test_whole_gram",),
    "norms/lanczos": ("test_lanczos",),
    "fourier/": ("test_weakened_rules", "test_matrix_polynomial", "test_spectral_norm"),
    "proof/": ("test_weakened_rules", "test_spectral_norm", "test_elimination"),
    "proof/bound": ("test_extreme_scales", "test_lipschitz"),
    "proof/clopper_pearson": ("test_smoothing",),
    "blocks/": (
        "test_weakened_rules",
        "test_joint",
    ),
    "blocks/reduced": ("test_reduced_block", "test_joint"),
    "blocks/front": ("test_weakened_rules", "test_elimination", "test_first_layer"),
    "blocks/elimination": ("test_elimination",),
    "blocks/increments": ("test_weakened_rules", "test_elimination", "test_torus_network"),
    "bounds/": ("test_lipschitz", "test_linear_residual"),
    "blocks/torus": ("test_torus_network", "test_region_repair", "test_joint"),
    "blocks/first_layer": ("test_first_layer",),
    "blocks/network_forms": ("test_whole_network", "test_torus_network"),
    "bounds/alike": (
        "test_weakened_rules",
        f"{CASES}::test_a_change_that_does_not_affect_ordinary_inputs_is_detected",
        f"{CASES}::test_a_weight_that_does_not_affect_ordinary_inputs_is_compared",
    ),
    "maps/lengths": (
        "test_weakened_rules",
        f"{CASES}::test_normalisation_by_a_samples_own_statistics_is_steepest_at_constant_inputs",
        "test_activation_kinds",
    ),
    "maps/per_coordinate": (
        "test_weakened_rules",
        f"{CASES}::test_the_bound_of_a_nonlinear_idiom_is_at_or_above_the_attained_value[slopes of each channel]",
        "test_activation_kinds",
    ),
    "maps/written": ("test_written_out.py::test_a_jump_is_found_however_narrow_or_small",),
    "graph/rules_shape": (
        "test_weakened_rules",
        f"{CASES}::test_a_linear_idiom_has_the_norm_of_its_matrix",
        "test_rules",
    ),
    "graph/single_function": (
        f"{CASES}::test_samples_that_are_swapped_only_in_batches_of_some_sizes_are_detected",
        f"{CASES}::test_a_function_that_depends_on_how_it_is_called_is_refused",
        f"{CASES}::test_a_model_whose_output_changes_after_many_calls_is_not_a_function",
        "test_own_type.py::test_what_the_copy_in_float64_cannot_repeat_is_refused",
    ),
    "radii/": ("test_weakened_rules", "test_radius", "test_deviation_of_differences"),
    "radii/smoothing": ("test_smoothing", "test_weakened_rules"),
    "audits/": ("test_audit",),
    "maps/scalar_expression": ("test_written_out.py::test_a_jump_is_found_however_narrow_or_small",),
    "graph/operation_rules": (
        f"{CASES}::test_a_cast_to_integers_or_booleans_rounds_and_is_refused",
        f"{CASES}::test_a_linear_idiom_has_the_norm_of_its_matrix",
        "test_rules",
    ),
    "bounds/bounded_network": (
        f"{CASES}::test_a_change_that_does_not_affect_ordinary_inputs_is_detected",
        f"{CASES}::test_a_change_of_a_value_outside_the_model_is_detected",
        f"{CASES}::test_a_change_that_only_the_answers_show_is_detected",
        "test_own_type",
        f"{CASES}::test_certificates_in_several_norms_run_the_network_once",
    ),
    "bounds/unit_domain": ("test_unit_domain",),
    "graph/added": ("test_unit_domain",),
    "graph/rules_radial": ("test_written_out",),
    "graph/written_conditions": ("test_written_out",),
    "graph/counters": ("test_single_function",),
    "graph/own_type": ("test_own_type", "test_default_eps"),
    "maps/interval": ("test_unit_domain", "local/test_charges", "local/test_local_radii"),
    "proof/rounding": ("test_activation_kinds",),
    "bounds/whole_network": ("test_whole_network",),
    "radii/pair_bounds": ("test_whole_network",),
    "lower/witness": ("test_audit",),
    "lower/jacobian": ("test_jacobian",),
    "local/": ("local/test_charges", "local/test_local_radii", "local/test_quadratic", "local/test_no_false_proof"),
    "local/changes": ("local/test_changes",),
    "local/quadratic": ("local/test_quadratic",),
    "local/tangents": ("local/test_tangents",),
    "local/pinned": ("local/test_quadratic_branch",),
    "local/quadratic_branch": ("local/test_quadratic_branch",),
    "local/secants": ("local/test_quadratic", "local/test_tangents"),
    "local/evidence": ("local/test_no_false_proof",),
    "local/planes": ("local/test_products_and_curves",),
    "local/compositions": ("local/test_products_and_curves", "local/test_no_false_proof"),
    "local/forward": ("local/test_forward",),
    "maps/curves": ("local/test_products_and_curves",),
    "local/parts": ("local/test_charges", "local/test_no_false_proof"),
}
QUICK = False


@dataclass(frozen=True)
class Mutation:
    """Replaces `before` by `after` in a file of certify/."""

    file: str
    before: str
    after: str

    @property
    def tests(self) -> tuple[str, ...]:
        """The tests closest to the file, then the random programs."""
        nearest = max((name for name in NEAREST if self.file.startswith(name)), key=len)
        near = tuple(
            f"tests/certify/{name}" if "::" in name else f"tests/certify/{name}.py" for name in NEAREST[nearest]
        )
        return near if QUICK else (*near, EXACT, FUZZ)

    def __str__(self) -> str:
        return f"{self.file}: {self.before!r} -> {self.after!r}"


def _of(file: str, *changes: tuple[str, str]) -> list[Mutation]:
    return [Mutation(file, before, after) for before, after in changes]


MUTATIONS: list[Mutation] = [
    *_of(
        "graph/rules_activation.py",
        ("lambda call: Clamp(0.0, 6.0)", "lambda call: Sigmoid()"),
        ("return _leaky(call, call.per_sample(weight))", "return _leaky(call, 0.0)"),
        ("return Softplus(beta, threshold)", "return Softplus(beta, 40.0)"),
        ("if not threshold >= SOFTPLUS_THRESHOLD:", "if False:"),
        ('!= float(call["value"]):', '!= float(call["threshold"]):'),
        ('if float(call["lambd"]) != 0:', "if False:"),
        ("return Elu(alpha, 1.0, 1 / alpha)", "return Elu(1.0, 1.0, 1.0)"),
    ),
    *_of(
        "graph/rules_arithmetic.py",
        ("call.linear(expanded, Scaled(factors, ", "call.linear(expanded, Scaled(0.9 * factors, "),
        ("        right = -right\n", "        right = 0.0\n"),
        ("[(call.only_input, -1.0)]", "[(call.only_input, -0.9)]"),
        ("Diagonal(per_channel[:, 0].clone(), shape, seen)", "Diagonal(per_channel[:, 0] * 0.9, shape, seen)"),
        ("return Diagonal(factors.clone(), shape, seen)", "return Diagonal(0.9 * factors, shape, seen)"),
        ("return call.plus(total, *scaled)", "return call.same(total)"),
        ("reciprocal(factor) if quotient else factor", "factor"),
        ('(call["self"], 1 - weight)', '(call["self"], 0 * weight)'),
    ),
    *_of(
        "graph/rules_linear.py",
        ('scale = channels("weight", 1.0) / ', 'scale = 0.9 * channels("weight", 1.0) / '),
        ('channels("running_var", 1.0) + eps', 'channels("running_var", 1.0) + 2 * eps'),
        ("bias.reshape(-1, *[1] * rank))", "0 * bias.reshape(-1, *[1] * rank))"),
        ('(product, float(call["alpha"]))', "(product, 1.0)"),
    ),
    *_of(
        "graph/rules_pooling.py",
        ("Scaled(float(count), Identity(call.out_shape))", "Scaled(0.9 * float(count), Identity(call.out_shape))"),
        ('even = call["count_include_pad"] or', "even = True or"),
    ),
    *_of(
        "graph/rules_shape.py",
        ("index = torch.where(whose, own + offset, index)", "index = torch.where(whose, (own + offset) % 2, index)"),
        ("if not bool((index == index[:1]).all()):", "if False:"),
        ("bare = call if factors else replace", "bare = call if True else replace"),
        ("        return put_together(call)", "        pass"),
    ),
    *_of(
        "graph/call.py",
        ("numbers.expand(self.out_shape)", "numbers.expand(self.out_shape).clamp_max(0)"),
        ("if -1 in axes:", "if False:"),
        ("math.sqrt(max(1.0, copies))", "1.0"),
    ),
    *_of(
        "graph/simplify.py",
        ("whole = added(terms)", "whole = terms[0]"),
        ("if len(roots) != 1:", "if False:"),
    ),
    *_of(
        "maps/piecewise_linear.py",
        ("pieces = (0.0, 1.0)\n", "pieces = (0.0, 0.9)\n"),
        ("pieces = (0.0, 1.0, 0.0)", "pieces = (0.0, 0.9, 0.0)"),
        ("pieces = (-1.0, 1.0)", "pieces = (0.0, 1.0)"),
        ("        return (self.left, 1.0)", "        return (0.0, 1.0)"),
        ("pieces = (1.0, 0.0, 1.0)", "pieces = (0.9, 0.0, 0.9)"),
        ("math.nextafter(1 / 6, 1)", "0.16"),
    ),
    *_of(
        "maps/smooth.py",
        ("slopes = (0.0, 0.25)", "slopes = (0.0, 0.24)"),
        ("return GELU if self.approximate", "return (0.0, 1.0) if self.approximate"),
        ("slopes = SILU", "slopes = (0.0, 1.0)"),
        ("slopes = MISH", "slopes = (0.0, 1.0)"),
        ("slopes = (-0.5, 1.5)", "slopes = (0.0, 1.0)"),
        ("slopes = (-1.0, 1.0)", "slopes = (-0.9, 0.9)"),
        ("return min(0.0, self._left, self.scale), max(0.0, self._left, self.scale)", "return 0.0, self.scale"),
        ("return 1.01 * math.exp(-self.threshold) / self.beta", "return 0.0"),
    ),
    *_of(
        "maps/nonlinear.py",
        ('bound = Bound(0.0, 0.5, "closed form")', 'bound = Bound(0.0, 0.4, "closed form")'),
        ("linf = 0.5", "linf = 0.4"),
        ("rounded_up(math.sqrt(self.length), 1) if self.length > 1 else 0.0", "1.0"),
        ("return 2.0 if self.length > 1 else 0.0", "return 1.0"),
        ("overlap = math.prod(int(windows_per_pixel(pixels).max()) for pixels in self.windows)", "overlap = 1"),
    ),
    *_of(
        "maps/lengths.py",
        ("rounded_up(self.scale / math.sqrt(self.eps), 3)", "rounded_up(self.scale, 3)"),
        ("rounded_up(math.sqrt(self.length), 1) if self.order == 1 else 1.0", "1.0"),
        ("self(torch.maximum(lower, -upper).clamp_min(0))", "self(upper)"),
        ("lost=math.sqrt(own.lost)", "lost=own.lost"),
        ("rounded_up(math.sqrt(self.length) * self.bound.upper, 2)", "self.bound.upper"),
        ("most = torch.maximum(low.abs(), high.abs()).expand_as(lower)", "most = low.abs().expand_as(lower)"),
    ),
    *_of(
        "maps/linear_map.py",
        ("return max(self.matrix.shape) + self.seen", "return 0"),
        ("return Composition([part.absolute() for part in self.parts])", "return self"),
        ("return Sum([term.absolute() for term in self.terms])", "return self"),
        ("return sum(part.roundings for part in self.parts)", "return 0"),
        ("return max(term.roundings for term in self.terms) + len(self.terms)", "return 0"),
    ),
    *_of(
        "maps/coordinate_maps.py",
        ("return int(torch.bincount(used).max()) if used.numel() else 0", "return 1"),
        ("return Diagonal(magnitude_of(self.factors, self.seen), self.in_shape)", "return self"),
    ),
    *_of(
        "maps/convolution.py",
        ("Convolution(matrix[:, :, None, None], (width", "Convolution(0.9 * matrix[:, :, None, None], (width"),
        ("return replace(self, weight=magnitude_of(self.weight, self.seen), seen=0)", "return self"),
        ("return math.prod(kernel) * max(rows // self.groups, columns) + pads + self.seen", "return 0"),
        ("return self.map.roundings\n\n    @property\n    def forward", "return 0\n\n    @property\n    def forward"),
    ),
    *_of(
        "maps/folding.py",
        ("seen = inner.seen + outer.seen + left.shape[1] + 1", "seen = 0"),
        ("magnitude = (left @ right) * (1 + gamma(left.shape[1] + 2))", "magnitude = matrix.abs()"),
        (" or bool((selection.index < 0).any()):", ":"),
        (
            "return order if whole and len(torch.unique(order)) == len(order) else None",
            "return order if whole else None",
        ),
        ("return products if bool((accurate | (weights == 0) | (factors == 0)).all()) else None", "return products"),
    ),
    *_of(
        "maps/rounding.py",
        ("return gamma(ALGORITHM_FACTOR * map_.roundings) * absolute_norm(map_) * (1 + gamma(4))", "return 0.0"),
        ("rounded_up(rows * columns, 3)", "0.5 * rows * columns"),
    ),
    *_of(
        "maps/sector.py",
        ("(channels,), -1.0,", "(channels,), -0.9,"),
        ("(channels,), float(low)", "(channels,), 0.9 * low"),
    ),
    *_of(
        "norms/structural_norm.py",
        ("return float(map_.absolute().factors.max())", "return 0.999 * float(map_.absolute().factors.max())"),
        ("rounded_up(math.sqrt(map_.copies), 1)", "1.0"),
        ("product_up([abs(map_.factor), inner])", "0.999 * product_up([abs(map_.factor), inner])"),
        ("gamma(seen) * absolute_norm(map_), 1)", "0.0, 1)"),
    ),
    *_of(
        "norms/linf_norm.py",
        ("bound = largest_sum(whole, of_rows=True)", "bound = 0.999 * largest_sum(whole, of_rows=True)"),
        ("sums + gamma(ALGORITHM_FACTOR * whole.roundings) * bound + UNDERFLOW", "sums"),
        ("return scaled_up(bound, exponent)", "return bound"),
    ),
    *_of(
        "proof/bound.py",
        ("upper = product_up(bound.upper for bound in bounds)", "upper = math.prod(bound.upper for bound in bounds)"),
    ),
    *_of(
        "norms/frequency_norm.py",
        ("rounded_up(math.sqrt(largest + UNDERFLOW), 8)", "rounded_up(0.999 * math.sqrt(largest), 8)"),
    ),
    *_of(
        "norms/whole_gram.py",
        ("torch.kron(axes[0][a] @ axes[0][c].mT", "torch.kron(axes[0][a] @ axes[0][a].mT"),
        ("min(convolution.in_size, convolution.out_size)", "1"),
        ("gram[rows, :, columns] += block", "gram[rows, :, columns] += 0.999 * block"),
        (
            "taps = list(product(range(weight.shape[2]), range(weight.shape[3])))",
            "taps = list(product(range(weight.shape[2]), range(weight.shape[3])))[:8]",
        ),
    ),
    *_of(
        "norms/lanczos.py",
        ("return delta * math.sqrt(math.pi / (2 * size))", "return 1.0"),
        ("threshold = -math.log(_smallest_component(size, delta))", "threshold = -10.0"),
    ),
    *_of(
        "norms/spectral_norm.py",
        ("return product_up(_tightest(part, seconds)[0] for part", "return max(_tightest(part, seconds)[0] for part"),
        (
            "_tightest(term, seconds)[0] for term in map_.terms",
            "_tightest(term, seconds)[0] for term in map_.terms[1:]",
        ),
    ),
    *_of(
        "fourier/matrix_polynomial.py",
        ("self.roundings + other.roundings + inner + len(self.parts) + 1,", "0,"),
        ("return type(self)(parts, magnitude, max(self.roundings, other.roundings) + 1)", "return self"),
    ),
    *_of("fourier/torus.py", ("HALF = Fraction(1, 2)", "HALF = Fraction(1, 3)")),
    *_of(
        "proof/cholesky_proof.py",
        ("return 2 * g / (1 - g)", "return -1e-3"),
        ("(info == 0) & torch.isfinite(pivots).all(-1) & (pivots > 0).all(-1)", "info >= 0"),
    ),
    *_of(
        "proof/clopper_pearson.py",
        ("successes), float(trials - successes + 1)", "successes + 1), float(trials - successes + 1)"),
    ),
    *_of(
        "proof/largest_singular_value.py",
        (
            "return float((values + gamma(40 * hermitian.shape[-1]) * frobenius).max())",
            "return 0.998 * float(values.max())",
        ),
        ("return rounded_up(float(values.max()) + error, 8)", "return 0.999 * float(values.max())"),
        ("tried = (value * (1 + margin) for margin in margins)", "return 0.998 * value"),
        ("dismissed = proved_below(open_, accepted, error)", "dismissed = torch.ones(len(open_), dtype=torch.bool)"),
    ),
    *_of(
        "blocks/front.py",
        ("slack=slack * len(node.inputs)", "slack=0.0"),
        ("weight = t * layer.constant * layer.constant * max(parents.values()) * UP", "weight = t * layer.constant"),
        ("rows = rows + self.rows[node]", "rows = self.rows[node]"),
        ("straight = rows * layer.lower", "straight = 0.9 * rows * layer.lower"),
        ("hidden = (rows * width)[..., free]", "hidden = (rows * width * 0.9)[..., free]"),
        (
            "own[0, torch.arange(len(free)), free] = t + slack * a * d",
            "own[0, torch.arange(len(free)), free] = 0.9 * t",
        ),
        ("self.factor *= (1 + self.repair.loss) * UP", "self.factor *= 1"),
        ("image[start : start + step] = map_", "image[start : start + step] = 0.9 * map_"),
        ("(self.slack[node] + error * error / self.repair.loss) * UP", "self.slack[node]"),
    ),
    *_of(
        "blocks/increments.py",
        ("        lower, upper = lower.clamp_max(0), upper.clamp_min(0)\n", "        pass\n"),
        ("return BoundedLayer(piece.bound.upper, node.shape)", "return BoundedLayer(0.9, node.shape)"),
        ("used[residue::stride].max()", "used[residue::stride].min()"),
        ("(reach > 0)).clamp_min(TINY).sqrt()", "(reach > 0)).clamp_min(TINY).sqrt() * 0.9"),
    ),
    *_of(
        "blocks/first_layer.py",
        ("whole = demand + products / square", "whole = demand + 0.99 * products / square"),
        ("products.mul_(t[:, None]).mul_(t)", "products.mul_(t[:, None]).mul_(0.99 * t)"),
        ("return square * found.factor * (1 + repair.loss)", "return square * 0.999"),
        ("scaled = error / square", "scaled = 0 * error / square"),
        ("(found.slack * d * d + ", "(0 * d * d + "),
        ("hidden = (found.rows * layer.width)[..., free]", "hidden = found.rows[..., free]"),
        ("alone = readers == [[order[1]], [order[2]]]", "alone = True"),
        (" or bool(layer.lower.any()):", ":"),
        ("if Pivot.of(whole, t, hidden", "if True or Pivot.of(whole, t, hidden"),
    ),
    *_of("blocks/residual_block.py", ("Elementwise(Relu(), within=slopes)", "Elementwise(Relu())")),
    *_of("blocks/joint_search.py", ("value = rounded_up(math.sqrt(square), 4)", "value = 0.99 * math.sqrt(square)")),
    *_of(
        "blocks/reduced_block.py",
        ("factor = inverse.factor * value / 2", "factor = inverse.factor * value / 2.2"),
        ("inner_inverse.factor / 2)", "inner_inverse.factor / 2.2)"),
        ("layers.append(found if width == 1 else found.scaled(width))", "layers.append(found)"),
        ("if error < 0.5 else None", ""),
    ),
    *_of(
        "blocks/reduced_proof.py",
        ("proved_below(grams, 1.0, gram.error)", "proved_below(grams, 1.02, gram.error)"),
        ("left = torch.cat(unproved) if unproved else left[:0]", "left = left[:0]"),
    ),
    *_of(
        "radii/forward_rounding.py",
        ("total = (reached[self.analysis.output] + ", "total = (0 * reached[self.analysis.output] + "),
        (" + self._after(self.analysis.output, reached)", ""),
        ("constant * error + introduced)", "constant * error)"),
        ("torch.where(size + error > own.reach, math.inf, ", "torch.where(size < 0, math.inf, "),
        ("return parts.sum(0) if node.piece.kind", "return parts.amax(0) if node.piece.kind"),
        ("return gamma(factor * count, self.dtype) if count else 0.0", "return 0.0"),
        ("size = steep * (sizes[0] + errors[0]) + piece.shift", "size = steep * (sizes[0] + errors[0])"),
    ),
    *_of(
        "radii/margin_radii.py",
        ("shrink = rounded_up(math.sqrt(math.prod(report.input_shape)), 1)", "shrink = 1.0"),
        ("math.sqrt(2) * report.l2_upper", "report.l2_upper"),
        ("2 * report.linf_upper", "report.linf_upper"),
    ),
    *_of(
        "radii/radius.py",
        ("return 2 * math.sqrt(2) * deviation * (1 + 1e-12)", "return 0 * deviation"),
        ("radius=round_radius_down(radius)", "radius=1.001 * radius"),
    ),
    *_of(
        "radii/smoothing.py",
        (
            "rounded_down(sigma * float(ndtri(probability_lower)), _QUANTILE_ROUNDINGS)",
            "1.01 * sigma * float(ndtri(probability_lower))",
        ),
    ),
    *_of(
        "maps/scalar_expression.py",
        ("return torch.tensor(sides or (at and not self.strict))", "return torch.tensor(sides)"),
    ),
    *_of(
        "maps/written.py",
        ("if not float(values.max() - values.min()) <= allowed < math.inf:", "if False:"),
        ("before = (places[k - 1] + place) / 2 if k else place - 1", "before = place - 1"),
        ("GAP = 8 * ", "GAP = 1e6 * "),
    ),
    *_of(
        "graph/operation_rules.py",
        ("(part.is_floating_point() or any(part is one for one in first))", "part.is_floating_point()"),
    ),
    *_of(
        "graph/single_function.py",
        ("counts = {*range(1, len(example))", "counts = {1"),
        ("for size in (*USUAL, many) if", "for size in (many,) if"),
        ("for size in (*USUAL, many) if", "for size in () if"),
        ("(example.clone(), example.clone().requires_grad_().clone())", "(example.clone(),)"),
        ('_require_same(run, example.to(torch.float32), answer, "in', '_require_same(run, answer, answer, "in'),
    ),
    *_of(
        "bounds/bounded_network.py",
        (
            "if not (own == self.captured.own and alike(module, model) and self.surroundings.same_for(model)):",
            "if False:",
        ),
        ("if not (own == self.captured.own and alike", "if not (alike"),
        ("if network_key(captured, (), {}) != network_key(self.captured, (), {}):", "if False:"),
        ("if not close(expected, answer.detach(), AGREEMENT):", "if False:"),
        ("torch.equal(self._measured[0][0], x)", "True"),
    ),
    *_of(
        "bounds/alike.py",
        ("return [] if _same_numbers(one, other) else None", "return []"),
        ("return [(one[key], other[key]) for key in one] if list(one) == list(other) else None", "return []"),
    ),
    *_of(
        "maps/per_coordinate.py",
        ("return min(low), max(high)", "return low[0], high[0]"),
        ("self.which == number", "self.which == 1"),
    ),
    *_of(
        "blocks/network_forms.py",
        ("return proved_bound(self.order", "return 0.99 * proved_bound(self.order"),
        ("return torus_bound(self.torus", "return 0.99 * torus_bound(self.torus"),
    ),
    *_of(
        "blocks/torus_network.py",
        ("            clean &= inside\n", ""),
        ("                plan.masked.add(parent)\n", ""),
        ("cut=node in plan.masked", "cut=False"),
        ("max(side, high + 1, side - low) if read_cut else side", "side"),
        ("matrix[kept % side, kept] = 1", "matrix[kept[:side], kept[:side]] = 1"),
        ("joints.append(self._pooling(bottom))", "joints.append(replace(self._pooling(bottom), constant=0.9))"),
    ),
    *_of(
        "blocks/torus_bound.py",
        ("part.factor * _relative(", "0.9 * part.factor * _relative("),
        ("* (joint.constant * UP)", "* UP"),
        ("joint.counts[:first, :second].sqrt().flatten() * UP", "torch.ones(first * second, dtype=torch.float64)"),
        ("math.sqrt(math.prod(torus.points))", "1.0"),
        ("return [every[place::count] for place in range(count)]", "return [every[:1]]"),
        ("    scaled = rows * root\n", "    scaled = rows\n"),
        ("return 1 / root, root * UP", "return 0.9 / root, root * UP"),
        (
            "least = min(least, region_square(region, layers, multipliers, start, root=root, repair=repair))",
            "least = min(least, square_of(multipliers, repair))",
        ),
    ),
    *_of(
        "graph/counters.py",
        ("for ahead in AHEAD if changed else ():", "for ahead in ():"),
        ("-1 if number < known.get((id(container), key), number) else 1", "1"),
        ("for start in ((vars(part), None), *_inside(type(part)))", "for start in ((vars(part), None),)"),
        ("return [*held, *cells, (around, read), ", "return [*held, (around, read), "),
        ("return [*held, *cells, (around, read), ", "return [*cells, (around, read), "),
        ("return [*held, *cells, (around, read), ", "return [*held, *cells, "),
    ),
    *_of(
        "graph/own_type.py",
        ("return self.own if (dtype := func(*args)) == torch.float64 else dtype", "return func(*args)"),
        ("if NAMED.get(func) in self._wide:", "if False:"),
        ('kwargs["eps"] = torch.finfo(self.own).eps', "pass"),
    ),
    *_of(
        "graph/written_conditions.py",
        ("(end - affine.shift) / affine.factor", "end - affine.shift"),
    ),
    *_of(
        "graph/rules_radial.py",
        ("if _measured(length, values, captured) is not value or not", "if not"),
        ("if _measured(length, values, captured) is not value or not", "if False and"),
        ("for axis in axes), keepdim=", "for axis in axes), 1.0, keepdim="),
        ("Times(Constant(1 / math.sqrt(length.length)), start)", "start"),
    ),
    *_of(
        "proof/largest_singular_value.py",
        ("product[:, stop:, start:stop] = ", "product[:, stop:, start:stop] = 0.9 * "),
    ),
    *_of("graph/added.py", ("return answer.clone(), answer", "return 0 * answer, answer")),
    *_of(
        "maps/interval.py",
        ("radius = radius + 4 * gamma(ALGORITHM_FACTOR * roundings + 8) * size", "pass"),
        ("absolute(high / 2 - low / 2)", "0.95 * absolute(high / 2 - low / 2)"),
    ),
    *_of("proof/rounding.py", ("lost * least(dtype)", "0.0")),
    *_of("bounds/unit_domain.py", ("float(box.largest().max())", "float(box.low.abs().max())")),
    *_of(
        "bounds/whole_network.py",
        ("rows[0, i], rows[0, j] = 1.0, -1.0", "rows[0, i], rows[0, j] = 0.5, -0.5"),
        ("                return known\n", "                return point.value\n"),
    ),
    *_of("radii/pair_bounds.py", ("found = min(self.whole.pair(i, j", "found = 0.5 * min(self.whole.pair(i, j")),
    *_of(
        "lower/witness.py",
        (
            "change = norms(other_answer - answer) * (1 - slack) - allowance",
            "change = 2 * norms(other_answer - answer)",
        ),
    ),
    *_of(
        "lower/jacobian.py",
        ("Steepest(norms(products.forward(direction))", "Steepest(1.1 * norms(products.forward(direction))"),
    ),
    *_of(
        "local/backward.py",
        ("above, below = row.clamp_min(0), row.clamp_max(0)", "below, above = row.clamp_min(0), row.clamp_max(0)"),
        ("weighed(below, upper, owner)\n    if row", "0.9 * weighed(below, upper, owner)\n    if row"),
        ("charge = charge + gamma(4) * weighed(size, sizes.steps[step.source], owner)", "pass"),
        ("charge = charge + gamma(math.prod(step.shape) + 8) * offset_size", "pass"),
        ("gamma(step.charged + math.prod(step.shape) + 8) * weighed(", "0.0 * weighed("),
        ("+ gamma(4 * len(program.steps)) * constant.abs()", ""),
        ("descent - self.charge - rounding", "descent - self.charge"),
        ("descent - self.charge - rounding", "descent - rounding"),
        ("size = size + before.abs()  #", "pass  #"),
    ),
    *_of(
        "local/relaxations.py",
        ("return gaps.amin(0) - room, gaps.amax(0) + room", "return gaps.amin(0), gaps.amax(0) + room"),
        ("return gaps.amin(0) - room, gaps.amax(0) + room", "return gaps.amin(0) - room, gaps.amax(0)"),
        ("low - units * size - lost", "low + units * size - lost"),
        ("free = found.loose & through & (flat <= steep)", "free = found.loose & (flat <= steep)"),
        ("free = found.loose & through & (flat <= steep)", "free = found.loose & through"),
        ("left.minimum(right))", "left.maximum(right))"),
        ("left.maximum(right))", "left.minimum(right))"),
        ("points = [lower, *inside, upper]", "points = [lower, upper]"),
    ),
    *_of(
        "local/sets.py",
        ("weighed(-flat.clamp_max(0), rise, owner)", "weighed(-flat.clamp_max(0), fall, owner)"),
        ("torch.minimum(whole, t * eps.square() / 2 + ", "torch.minimum(whole, t * eps.square() / 4 + "),
        ("return t * eps + torch", "return 0.9 * t * eps + torch"),
        ("return gamma(flat.shape[1] + 64) * size * (1 + 1e-6)", "return 0.0 * size"),
        (
            "way = torch.minimum(way, self.eps.to(way)[:, None])",
            "way = torch.minimum(way, 0.9 * self.eps.to(way)[:, None])",
        ),
    ),
    *_of(
        "local/intermediate.py",
        ("torch.minimum(here, -values)", "torch.minimum(here, values)"),
    ),
    *_of(
        "local/parts.py",
        ("constant=form.constant - shift", "constant=form.constant + shift"),
        ("gamma(terms.shape[1] + 4) * (size", "0.0 * (size"),
        ("(max(low, split.point), high) if above", "(max(low, split.point + 0.1), high) if above"),
        ("interval in intervals.values()], dtype=torch.float64)", "interval in intervals.values()])"),
        ("torch.where(signs[place] < 0, usable.clamp_max(0), usable.clamp_min(0))", "usable"),
    ),
    *_of(
        "local/planes.py",
        ("gaps.amin(0) - room", "gaps.amin(0) * (1 - 1e-6) + room"),
        ("gaps.amax(0) + room", "gaps.amax(0) * (1 - 1e-6)"),
        ("products.amin(0) - slack", "products.amin(0) + 1e-6 * sizes"),
    ),
    *_of(
        "local/compositions.py",
        ("largest = rounded_up(math.sqrt(max(size - piece.centred, 0)), 2)", "largest = 0.5 * math.sqrt(size)"),
        ("steps.known(square, piece.eps, math.inf)", "steps.known(square, 0.1, math.inf)"),
        ("steps.known(found, 0.0, math.inf)", "steps.known(found, 0.5, math.inf)"),
    ),
    *_of(
        "local/forward.py",
        ("added = step.absolute(size(step.source)) + step.constant_size", "added = step.constant_size"),
        ("return gamma(len(step.sources), runs) * added * ROOM", "return 0 * added"),
    ),
    *_of("maps/curves.py", ("return -(lower > 0).to(lower)", "return (lower > 0).to(lower)")),
    *_of("local/evidence.py", ("enumerate(branch.parts):", "enumerate(branch.parts[:1]):")),
    *_of(
        "local/proof.py",
        ("charge = form.charge + gamma(8) * (form.constant.abs() + limits.abs())", "charge = form.charge"),
        ("if change < margin:", "if change < 1.5 * margin:"),
        (
            "float(positive_within(form, question.region).min()))",
            "float(positive_within(form, question.region).max()))",
        ),
        ("if radii[row] < region.eps[0]:\n", "if True:\n                radii[row] = region.eps[0]\n"),
    ),
    *_of(
        "local/changes.py",
        ("root[:end] / -4, out=part)", "root[:end] / -5, out=part)"),
        ("(0.5 / root[:end])", "(0.4 / root[:end])"),
        ("length = math.sqrt(float(matrix.diagonal().sum())", "length = 0 * math.sqrt(float(matrix.diagonal().sum())"),
        ("(targets.inner * (root / 2)[:, None])", "(targets.inner * (root / 3)[:, None])"),
        ("add_(2 * (charge + definiteness_slack(len(active)) * size * size) + TINY)", "add_(TINY)"),
        ("gamma(4 * (self.inputs + 16)) * size * size + (2 * size + off) * off", "0.0"),
        ("if len(self.reach) or read or list(self.values) != [source] or", "if len(self.reach) or read or"),
        ("if len(self.reach) or read or list", "if len(self.reach) or list"),
        ("(error + off + size * off + off * off) * UP", "0.0"),
        ("residual = residual + self._right_error(targets, found, right, straight)", "pass"),
        ("free] = width[free]", "free] = 0.9 * width[free]"),
        ("for side in (1.0, -1.0))", "for side in (-1.0, 1.0))"),
        ("(self.sign * side)[:, None] > 0", "(self.sign * side)[:, None] < 0"),
        ("side * width.sign(), sign)", "side, sign)"),
        ("_norm(error[free])) * UP", "0.0)"),
        ("(straight.square() + solved.square()).sqrt()", "solved.square().sqrt()"),
        (
            "low - fall, -inf), torch.nextafter(high + rise",
            "low - 0.8 * fall, -inf), torch.nextafter(high + rise",
        ),
    ),
    *_of(
        "local/secants.py",
        ("first = torch.where(convex, ends[0] - slack[0], flat)", "first = torch.where(convex, ends[0] + 0.05, flat)"),
        ("last = torch.where(convex, ends[1] + slack[1], steep)", "last = torch.where(convex, ends[1] - 0.05, steep)"),
        ("convex = left <= right", "convex = left <= left"),
        ("slope = torch.where(low >= kink, right, left)", "slope = torch.where(low >= kink, left, right)"),
        ("known = (low >= kink) | (high <= kink)", "known = high == high"),
        ("(right - left).sign()", "(left - right).sign()"),
    ),
    *_of(
        "local/quadratic.py",
        ("rounded_up(bound * float(region.eps[0]), 1)", "rounded_up(0.5 * bound * float(region.eps[0]), 1)"),
    ),
    *_of(
        "local/tangents.py",
        ("(tangent.argument, mine * tangent.slope)", "(tangent.argument, mine)"),
        ("torch.where((mine * tangent.sign > 0) &", "torch.where("),
        ("[(node, -mine), ", "[(node, mine), "),
    ),
    *_of(
        "local/pinned.py",
        ("torch.where(self.above, right, left), torch", "torch.where(self.above, left, left), torch"),
        ("sides[split.place][0 if above else 1]", "sides[split.place][1 if above else 0]"),
        ("torch.maximum(side[at], limit) if above", "torch.maximum(side[at], limit + 0.5) if above"),
        ("split.point != 0 or not pinnable", "not pinnable"),
        ("return not bool(kink.any()) and", "return"),
    ),
    *_of("local/certificate.py", ("if program.dtype != torch.float64 or not", "if not")),
    *_of("audits/audit.py", ("bound.upper <= allowed", "0.9 * bound.upper <= allowed")),
]


def copied(folder: Path) -> None:
    """Copy what the tests need, keeping links as links."""
    for name in ("attacks", "certify", "reports", "robustres", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def outcome_of(mutation: Mutation) -> str:
    """ "killed by ...", "SURVIVED", or "stale" if the text does not occur in the file."""
    file = ROOT / "certify" / mutation.file
    text = file.read_text() if file.exists() else ""
    if mutation.before not in text:
        return "stale"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        (folder / "certify" / mutation.file).write_text(text.replace(mutation.before, mutation.after, 1))
        child = os.fork()  # torch is already loaded
        if not child:
            os._exit(_tested(folder, mutation.tests))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = (folder / "log").read_text().splitlines()
        failed = [line.split(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
        if code == 0:
            return "SURVIVED"
        return f"killed by {failed[0].split(' ', 1)[1].removeprefix('tests/certify/')}" if failed else "NOT TRIED"


def _tested(folder: Path, tests: Sequence[str]) -> int:
    import pytest

    os.chdir(folder)
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "robustres")]:
        del sys.modules[name]
    sink = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests]))


def main(words: Sequence[str]) -> int:
    """Apply the mutations and list the survivors."""
    global QUICK
    QUICK, words = "quick" in words, [word for word in words if word != "quick"]
    import pandas  # noqa: F401
    import scipy.special  # noqa: F401
    import torch
    import torch.export.exported_program

    torch.set_num_threads(1)
    chosen = [m for m in MUTATIONS if not words or any(word in str(m) for word in words)]
    left = 0
    for mutation in chosen:
        start = time.perf_counter()
        found = outcome_of(mutation)
        left += not found.startswith("killed")
        sys.stdout.write(f"{time.perf_counter() - start:4.0f} s  {mutation}\n        {found}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(chosen)} mutations, {left} not killed\n")
    return left


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
