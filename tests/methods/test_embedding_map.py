"""The plane of a map against a singular value decomposition, and the sample of its points against counts by hand."""

import numpy as np
import pytest

from clapcur.methods.embedding_map import BLOCK, principal_plane, stratified_sample


@pytest.mark.parametrize("count", [2, 50, BLOCK + 7])
def test_the_plane_is_that_of_the_singular_value_decomposition(rng, count):
    """A plane of uncentred rows, or of one block, shows the mean and hides what differs."""
    rows_ND = (rng.standard_normal((count, 5)) * [1, 4, 2, 0.5, 0.1] + 3).astype(np.float32)
    plane = principal_plane(rows_ND)
    centred = rows_ND.astype(np.float64) - rows_ND.mean(axis=0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    assert plane.explained == pytest.approx((singular**2 / (singular**2).sum())[:2], abs=1e-6)
    for index in range(2 if count > 2 else 1):  # two rows leave the second axis open
        assert abs(plane.axes_D2[:, index] @ axes[index]) == pytest.approx(1, abs=1e-5)
        assert plane.axes_D2[np.abs(plane.axes_D2[:, index]).argmax(), index] > 0
    assert np.abs(plane.place(rows_ND).mean(axis=0)).max() < 1e-4
    assert plane.place(rows_ND[:3], rows_ND[0].astype(np.float64))[0] == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.parametrize("rows", [np.ones((1, 4)), np.ones((4, 1)), np.ones((9, 4))])
def test_rows_without_a_plane_are_refused(rows):
    with pytest.raises(ValueError, match="at least two rows|all 9 rows are equal"):
        principal_plane(rows.astype(np.float32))


def test_every_class_has_its_share_of_the_sample_and_at_least_one_row():
    """Of a class with three clips among thousands, a plain draw shows none."""
    class_N = np.array(["rain"] * 600 + ["dog"] * 297 + ["bell"] * 3 + [""] * 1100, object)
    rows = stratified_sample(class_N, 100, seed=1)
    counts = {name: int((class_N[rows] == name).sum()) for name in ("rain", "dog", "bell", "")}
    assert sum(counts.values()) == 100 == len(set(rows)) and (np.diff(rows) > 0).all()
    assert counts["bell"] >= 1
    for name, share in {"rain": 30, "dog": 14.85, "": 55}.items():
        assert abs(counts[name] - share) <= 2
    assert rows.tolist() == stratified_sample(class_N, 100, seed=1).tolist()
    assert rows.tolist() != stratified_sample(class_N, 100, seed=2).tolist()
    assert stratified_sample(class_N, 5000, seed=1).tolist() == list(range(2000))
    assert len(stratified_sample(class_N, 3, seed=1)) == 3  # fewer than classes
