"""The mutations of `python -m tests.certify.mutations` apply to the current files."""

from tests.certify.mutations import MUTATIONS, ROOT


def test_no_mutation_is_stale() -> None:
    stale = [str(m) for m in MUTATIONS if m.before not in (ROOT / "certify" / m.file).read_text()]
    assert not stale
