"""Baselines choose settings on validation requests, and are refitted as SIGMA is."""

import dataclasses

import numpy as np
from small_baselines import ITEMS, VECTORS, make_data, make_histories, make_requests, valid_requests

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import unit_rows
from sigma_jax.baselines.registry import (
    NEIGHBOURS,
    feature_tables,
    fit_baselines,
    from_grid,
    specs,
    validation_ndcg,
)
from sigma_jax.reranking.history.relations import RELATIONS
from sigma_jax.reranking.reranker import FeatureTables


@dataclasses.dataclass(frozen=True)
class Always:
    """Recommends one item first, then all others."""

    item: int

    def recommend(self, data, requests, k, exclude_seen, allowed):
        others = np.setdiff1d(np.arange(ITEMS), self.item)
        return np.tile(np.append(self.item, others)[:k], (len(requests), 1)).astype(np.int32)


def test_the_settings_with_the_highest_ndcg_are_chosen():
    data = make_data(make_histories(False))
    valid = valid_requests(data)
    counts = np.bincount(valid.target, minlength=ITEMS)
    grid = tuple(int(item) for item in np.argsort(counts)[-10:])
    spec = from_grid(lambda counts, popularity, item: Always(item), grid)
    chosen = spec.choose(None, Popularity.fit(data, 0), data, valid)
    quality = [validation_ndcg(Always(item), data, valid) for item in grid]
    assert chosen == grid[int(np.argmax(quality))] == grid[-1]
    assert spec.choose(None, Popularity.fit(data, 0), data, valid.take(np.arange(0))) == grid[0]


def test_a_refit_counts_validation_rows_and_no_test_row():
    """Items that occur in validation alone, or in test alone, are known after the refit, or not."""
    histories = make_histories(False)
    item = histories.item.copy()
    item[item >= ITEMS - 2] = 0
    item[histories.valid_start] = ITEMS - 2
    item[histories.test_start] = ITEMS - 1
    data = make_data(dataclasses.replace(histories, item=item))
    found = specs(data, {"text": VECTORS}, 0)
    fitted = fit_baselines(found, data, valid_requests(data), 0, is_refitted=True)
    assert set(fitted) == {*found, *(f"{name} before refit" for name in found)}
    first = {
        name: baseline.recommend(data, make_requests(data.histories), ITEMS, False, None)
        for name, baseline in fitted.items()
    }
    place = {name: np.argmax(lists == ITEMS - 2, axis=1)[:-1] for name, lists in first.items()}
    for name in ("Popularity", "Co-visitation", "Transition graph"):
        assert place[name].mean() < place[f"{name} before refit"].mean() / 2
    last = np.argmax(first["Popularity"] == ITEMS - 1, axis=1)
    counts = fitted["Co-visitation"].covisits.toarray()
    assert counts[:, ITEMS - 2].any() and not counts[:, ITEMS - 1].any()
    assert not fitted["Co-visitation before refit"].covisits.toarray()[:, ITEMS - 2].any()
    assert last.min() > place["Popularity"].max()
    alone = fit_baselines(found, data, valid_requests(data), 0, is_refitted=False)
    assert set(alone) == set(found)
    np.testing.assert_array_equal(
        alone["Popularity"].order, fitted["Popularity before refit"].order
    )


def test_counts_of_a_reranker_are_not_counted_again():
    """They get the neighbours of the baseline's vectors in place of the network's."""
    data = make_data(make_histories(True))
    others = unit_rows(np.random.default_rng(5).normal(size=VECTORS.shape))
    made = FeatureTables.make(data, others, NEIGHBOURS)
    again, fresh = (feature_tables(data, unit_rows(VECTORS), tables) for tables in (made, None))
    for name in RELATIONS:
        of_both = [getattr(tables.relations, name).toarray() for tables in (again, fresh)]
        np.testing.assert_array_equal(*of_both)
    assert (made.relations.embedding_neighbours != again.relations.embedding_neighbours).nnz
