"""Heat maps: what is in which cell, and how it is coloured."""

from __future__ import annotations

import numpy as np
import pytest

from emmental.pictures.heat import (
    color_map,
    compare,
    count_of,
    heat_table,
    overview,
    percent,
    scale_end,
)

DENSITIES = {"bert.encoder.layer.0.attention.self.query": 0.5, "bert.encoder.layer.0.output.dense": 0.1}
SIZES = {"bert.encoder.layer.0.attention.self.query": 100, "bert.encoder.layer.0.output.dense": 300}


def texts(chart: object) -> list[str]:
    found = [artist.get_text() for artist in chart.findobj(lambda a: hasattr(a, "get_text"))]
    return [text for text in found if text]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0"), (1.0, "100"), (0.5, "50.0"), (0.1, "10.0"), (0.09996, "10.0"), (0.0345, "3.45"), (0.00021, "0.02")],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("number", "text"), [(84_934_656, "84.9 M"), (999_600, "1.0 M"), (589_824, "590 k"), (1000, "1 k"), (64, "64")]
)
def test_count_of(number: int, text: str) -> None:
    assert count_of(number) == text


@pytest.mark.parametrize(
    ("share", "end"), [(0.0, 0.001), (0.03, 0.05), (0.05, 0.05), (0.55, 0.6), (0.9, 1.0), (1.0, 1.0)]
)
def test_scale_end(share: float, end: float) -> None:
    assert scale_end(share) == end


def test_sums_are_weighted_by_size() -> None:
    shown = heat_table(DENSITIES, SIZES)
    assert shown.rows == ["layer 0", "all"]
    assert shown.columns == ["query", "FFN\nout", "all"]
    # (0.5 * 100 + 0.1 * 300) / 400 = 0.2
    np.testing.assert_allclose(shown.cells, [[0.5, 0.1, 0.2], [0.5, 0.1, 0.2]])
    assert shown.summary() == "20.0 % of 400 weights remain"
    assert heat_table(DENSITIES).summary() == ""


def test_a_missing_matrix_is_grey_and_dashed() -> None:
    densities = {(0, "a"): 0.5, (1, "b"): 0.25}
    shown = heat_table(densities, {(0, "a"): 10, (1, "b"): 30})
    np.testing.assert_allclose(shown.cells, [[0.5, np.nan, 0.5], [np.nan, 0.25, 0.25], [0.5, 0.25, 0.3125]])
    assert texts(overview(densities, "t")).count("–") == 2
    assert color_map()(np.nan, bytes=True)[:3] == (217, 217, 217)


def test_an_array_with_names() -> None:
    chart = overview(np.array([[0.5, 0.123]]), "title", rows=["first"], columns=["left", "right"])
    shown = texts(chart)
    for text in ("title", "first", "left", "right", "50.0", "12.3", "remaining weights (%)"):
        assert text in shown
    assert {"layer 0", "matrix 1"} <= set(texts(overview([[0.5, 0.5]], "t")))


def test_cells_have_the_colours_of_the_scale() -> None:
    buffer = overview(np.array([[0.0, 1.0]]), "t")._get_buffer()
    # One row of 80 pixels from y = 164 on; two columns of 480 from x = 110 on.
    assert buffer.shape == (164 + 80 + 40, 1200, 3)
    assert buffer[170, 120].tolist() == [68, 1, 84]
    assert buffer[170, 1060].tolist() == [253, 231, 36]


@pytest.mark.parametrize("layers", [1, 2, 6, 12, 24, 48])
def test_every_number_of_layers_has_room(layers: int) -> None:
    height, width, _ = overview(np.full((layers, 6), 0.5), "t")._get_buffer().shape
    assert width == 1200
    assert height == 204 + layers * min(80, max(40, 240 // layers))


def test_nothing_is_written_outside() -> None:
    chart = overview({("a very long name of a layer", f"matrix.number.{i}"): 0.5 for i in range(30)}, "title " * 60)
    buffer = chart._get_buffer()
    # 27 letters of 0.62 * 17 pixels and the indent of 24 make the left margin.
    assert buffer.shape[1] == 308 + 30 * 62 + 130
    assert (buffer[:60, -9:] == 255).all()
    assert (buffer[:, :3] == 255).all()


def test_compare_shares_the_scale() -> None:
    first, second = {(0, "a"): 0.1}, {(0, "a"): 1.0, (1, "a"): 0.1}
    chart = compare(first, second, ("dense", "pruned"), "both", {(0, "a"): 10})
    shown = texts(chart)
    assert "dense\n10.0 % of 10 weights remain" in shown
    assert "pruned" in shown
    buffer = chart._get_buffer()
    colors = {tuple(buffer[y, x]) for y in (170,) for x in range(115, buffer.shape[1] - 140, 10)}
    assert (253, 231, 36) in colors  # 100 % on the right
    assert tuple(color_map()(0.1, bytes=True)[:3]) in colors  # 10 % on the left, on the same scale


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, "t"), "densities: empty"),
        ((np.empty((0, 3)), "t"), "densities: shape"),
        (([0.5], "t"), "densities: shape"),
        (({(0, "a"): 50.0}, "t"), r"densities: from 50 to 50; shares in \[0, 1\] are accepted, not percent"),
        (({(0, "a"): -0.1}, "t"), "densities: from -0.1"),
        (({(0, "a"): 0.5}, "t", {(1, "a"): 5}), "sizes: the keys must be those of densities"),
        (([[0.5]], "t", {(0, "a"): 5}), "sizes: only densities in a dict"),
        (([[0.5]], "t", None, ["a", "b"]), "rows: 2 names for 1 rows"),
        (([[0.5]], "t", None, None, []), "columns: 0 names for 1 columns"),
        (("text", "t"), "densities: expected real numbers"),
    ],
)
def test_mistakes(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        overview(*arguments)


def test_compare_needs_two_names() -> None:
    with pytest.raises(ValueError, match=r"^names: 1 names for two runs"):
        compare({(0, "a"): 0.1}, {(0, "a"): 0.1}, ("one",))
