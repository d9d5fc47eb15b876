"""The chapters' figures: what their helpers compute, against hand-worked cases and properties."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from musc import datasets
from musc.results import figures


@pytest.fixture(scope="module")
def product():
    return datasets.load_category("synthetic", name="tile", good=1, defects=2)


def test_masks_and_images_have_the_backbones_size(product):
    masks = figures.masks_at(product.samples, 64)
    assert [p.shape for p in figures.as_seen(product.samples, 64)] == [(64, 64, 3)] * 3
    assert [bool(m.any()) for m in masks] == [bool(s.label) for s in product]


def test_patch_labels_by_hand():
    masks = np.zeros((1, 4, 4), dtype=bool)
    masks[0, :2, :2] = True  # the first patch, whole
    masks[0, 2, 3] = True  # a quarter of the last
    assert figures.patch_labels(masks, (2, 2)).tolist() == [[1, 0, 0, -1]]


def test_pca_rgb_gives_equal_colours_to_equal_tokens_and_ignores_offsets():
    tokens = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    tokens[1, 4] = tokens[0, 2]
    colours = figures.pca_rgb(tokens, (2, 3))
    assert colours.shape == (2, 2, 3, 3)
    assert ((colours >= 0) & (colours <= 1)).all()
    np.testing.assert_allclose(colours[1, 1, 1], colours[0, 0, 2])
    np.testing.assert_allclose(figures.pca_rgb(tokens + 7, (2, 3)), colours, atol=1e-4)


def test_panels_share_one_scale_over_all_maps():
    image, low, high = np.zeros((4, 4, 3)), np.full((4, 4), 0.2), np.full((2, 2), 0.9)
    mask = np.eye(4, dtype=bool)
    figure = figures.panels(
        [[image, mask], [low, high]], titles=[["a", "b"], []], names=["x", "y"], outlines=[mask, None], label="score"
    )
    limits = [ax.images[0].get_clim() for ax in figure.axes[2:4]]
    assert limits == [(0.2, 0.9), (0.2, 0.9)]
    assert [ax.get_title() for ax in figure.axes[:2]] == ["a", "b"]
    figure.draw_without_rendering()


def test_panels_outline_each_row_by_its_own_masks():
    maps = [[np.full((4, 4), 0.5)] * 2] * 2
    corner = np.zeros((4, 4), bool)
    corner[:2, :2] = True
    figure = figures.panels(maps, outlines=[[corner, None], [None, None]])
    assert [len(ax.collections) for ax in figure.axes[:4]] == [1, 0, 0, 0]


def test_histograms_have_area_one_and_share_their_bins():
    ax = Figure().subplots()
    figures.two_histograms(ax, np.array([0.0, 0.1, 0.2]), np.array([1.0]), bins=10)
    assert ax.get_legend_handles_labels()[1] == ["normal", "anomalous"]
    outlines = [outline.get_paths()[0].vertices for outline in ax.collections]
    np.testing.assert_allclose([o[:, 1].max() for o in outlines], [10 / 3, 10])  # a third, and all, in a bin of 0.1
    steps = [np.unique(o[:, 0].round(9)) for o in outlines]
    assert all(np.isin(s, np.linspace(0, 1, 11).round(9)).all() for s in steps)


def test_graph_draws_each_edge_once():
    figure = Figure()
    ax = figure.subplots()
    weights = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0.4, 1]])
    figures.neighbour_graph(ax, np.array([[0.0, 0], [1, 0], [0, 1]]), weights, np.array([0.0, 0.5, 1]), "abc")
    assert sorted(t.get_text() for t in ax.texts if t.get_text()) == ["0.40", "0.90", "a\n0.00", "b\n0.50", "c\n1.00"]
    figure.draw_without_rendering()
