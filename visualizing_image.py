"""Draw boxes and labels on an image, and pictures of what pruning left of a model.

On the command line, `--model_name_or_path OUT --output overview.png` shows a finished model, and
`--image photo.jpg --boxes boxes.json --output drawn.jpg` draws boxes on any photograph; `--help` lists every flag.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

READS_FLAGS_FIRST = True  # `import emmental` reads this and does not load PyTorch before a model is read

import numpy as np

from emmental.atomic import refuse_losing
from emmental.errors import UserError
from emmental.pictures import canvas, fonts, inputs, palette, placement
from emmental.pictures import densities as mask_arrays
from emmental.pictures.box_file import FORM, read_box_file
from emmental.pictures.curves import curves, has_curves
from emmental.pictures.heat import compare, overview, percent
from emmental.pictures.structure import heads_and_neurons
from emmental.pictures.tiles import block_boxes, tiles_ground, write_heading

__all__ = [
    "SingleImageViz",
    "compare",
    "curves",
    "heads_and_neurons",
    "main",
    "mask_picture",
    "overview",
    "pictures_of",
    "save_overview",
]


_SMALLEST_FONT = 10.0  # pixels of the drawn picture
_PICTURES = ("overview", "structure", "curves", "mask", "all")
_LOG_FILE = "train_log.jsonl"
_ALIGNMENT = {"left": 0.0, "center": 0.5, "right": 1.0}


class SingleImageViz:
    """Draw boxes with labels over one image, and save or show the result.

    Boxes are x0, y0, x1, y1 in pixels of the image, y downward. The drawing is made at `scale` times the image's size;
    fonts and lines follow the size of the drawn picture. Nothing here uses Matplotlib's global state, and the same
    calls give the same bytes in every run.

    Args:
        img: a (H, W), (H, W, C) or (C, H, W) array or tensor with C = 1 (grey), 3 or 4 (with alpha) of uint8, other
            integers in 0..255, or floats in [0, 1] or [0, 255]; a PIL image; or the path of an image file.
        scale: size of the drawn picture relative to the image.
        edgecolor: colour of a box drawn by `add_box` without one; any colour that Matplotlib knows.
        alpha: opacity of the lines, in [0, 1]. The plates under labels are half as transparent.
        linestyle: of the boxes, as in Matplotlib.
        saveas: file that `save` writes by default.
        rgb: False when an array or tensor is in OpenCV's BGR order. Files and PIL images know their own order.
        pynb: accepted for notebooks written for earlier scripts, and without effect.
        id2obj: names of objects, list (id -> name) or dict; None shows the ids themselves.
        id2attr: names of attributes, likewise.
        pad: margin between a label's text and the edge of its plate, in line widths.

    Attributes:
        img: the image as (H, W, 3) uint8 RGB.
        font_size: of labels, in pixels of the drawn picture; may be changed before drawing.
        line_width: of boxes, likewise.
        label_boxes: (x0, y0, x1, y1) of each label drawn so far, in pixels of the drawn picture.

    Raises:
        UserError: an argument is not as described above. The message names it.
    """

    def __init__(
        self,
        img: object,
        scale: float = 1.2,
        edgecolor: object = "g",
        alpha: float = 0.5,
        linestyle: str = "-",
        saveas: str | Path = "test_out.jpg",
        rgb: bool = True,
        pynb: bool = False,
        id2obj: Sequence[str] | Mapping[int, str] | None = None,
        id2attr: Sequence[str] | Mapping[int, str] | None = None,
        pad: float = 0.7,
    ) -> None:
        self.scale = inputs.to_number(scale, "scale", above=0.0)
        self.alpha = inputs.to_number(alpha, "alpha", least=0.0, most=1.0)
        self.pad = inputs.to_number(pad, "pad", least=0.0)
        self.edgecolor = inputs.to_color(edgecolor, "edgecolor")
        self.linestyle = inputs.to_linestyle(linestyle)
        self.saveas, self.rgb, self.pynb = saveas, rgb, pynb
        self.id2obj, self.id2attr = id2obj, id2attr
        self.img = inputs.to_rgb_image(img, rgb)
        self.height, self.width = self.img.shape[:2]
        self._size = canvas.output_size(self.width, self.height, self.scale)
        # Text below ten pixels is hard to read. Large pictures are shown reduced, so their font grows.
        self.font_size = max(_SMALLEST_FONT, 0.75 * min(self._size) ** 0.5)
        self.line_width = max(1.5, self.font_size / 7.0)
        self.label_boxes: list[placement.Rectangle] = []
        self._new_figure()

    def _new_figure(self) -> None:
        self.fig = canvas.Chart(*self._size)
        self.fig.patch.set_visible(False)
        self.canvas = self.fig.canvas
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.ax.set_xlim(0.0, self.width)
        self.ax.set_ylim(self.height, 0.0)

    def add_box(self, box: object, color: object = None) -> None:
        """Draw one box; its border is centred on its edges. Parts outside the picture are cut off.

        Args:
            box: 4 numbers, x0 y0 x1 y1, with x0 <= x1 and y0 <= y1.
            color: None means `edgecolor`.
        """
        # Coordinates far outside would overflow the renderer. One picture's size beyond the edge is never visible.
        size = np.array([self.width, self.height] * 2, dtype=float)
        x0, y0, x1, y1 = np.clip(inputs.to_box(box), -size, 2 * size)
        if x0 == x1 and y0 == y1:
            x1 += self.width / self._size[0]  # a box without area has no border: draw a dot as high as a line
        color = self.edgecolor if color is None else inputs.to_color(color, "color")
        self.ax.add_patch(canvas.outline((x0, y0, x1, y1), color, self.line_width, self.alpha, self.linestyle))

    def draw_boxes(
        self,
        boxes: object,
        obj_ids: object = None,
        obj_scores: object = None,
        attr_ids: object = None,
        attr_scores: object = None,
    ) -> None:
        """Draw boxes, largest first, each in its own colour, with labels such as "dog 0.90 brown 0.50".

        A box has the same colour in every run and for any order of the boxes.

        Args:
            boxes: (n, 4), (4,), or (1, n, 4): lists, array or tensor.
            obj_ids: n whole numbers that `id2obj` names, or n names; None for no names.
            obj_scores: n finite numbers, shown with two decimals.
            attr_ids: n attributes, as `obj_ids` with `id2attr`.
            attr_scores: as `obj_scores`.

        Raises:
            UserError: another shape or length, a NaN, an id without a name; the message names the argument. Then
                nothing is drawn.
        """
        array = inputs.to_boxes(boxes)
        count = len(array)
        parts = (
            inputs.to_names(obj_ids, self.id2obj, count, "obj_ids", "id2obj"),
            inputs.to_scores(obj_scores, count, "obj_scores"),
            inputs.to_names(attr_ids, self.id2attr, count, "attr_ids", "id2attr"),
            inputs.to_scores(attr_scores, count, "attr_scores"),
        )
        labels = [" ".join(part for part in own if part) for own in zip(*parts, strict=True)]
        colors = palette.box_colors(array, labels)
        areas = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
        order = sorted(range(count), key=lambda i: (-areas[i], *array[i], labels[i]))
        with canvas.picture_style():
            for i in order:
                self.add_box(array[i], colors[i])
            for i in order:
                self.draw_labels(labels[i], array[i], colors[i])

    def draw_labels(self, label: str, box: object, color: object = None) -> None:
        """Draw a box's label: in its upper left corner, or beside a small box, and not over earlier labels.

        A box counts as small when its area in the image is below 1000 * `scale` or its height below 40 * `scale`
        pixels, or when the label would hide more than 40 % of its height. A box wholly outside the picture gets no
        label.
        """
        x0, y0, x1, y1 = inputs.to_box(box)
        if x0 > self.width or y0 > self.height or x1 < 0 or y1 < 0:
            return
        fitted = placement.fit_text(label, self.font_size, self._size, self._plate_size)
        if fitted is None:
            return
        text, font_size, size = fitted
        ratio = self._ratio()
        outside = (
            (x1 - x0) * (y1 - y0) < 1000 * self.scale
            or y1 - y0 < 40 * self.scale
            or (y1 - y0) * ratio[1] < 2.5 * size[1]
        )
        drawn = (x0 * ratio[0], y0 * ratio[1], x1 * ratio[0], y1 * ratio[1])
        place = placement.place_label(size, drawn, self._size, self.label_boxes, outside)
        self._put_text(text, place, font_size, self.edgecolor if color is None else inputs.to_color(color, "color"))

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        color: object = "g",
        ha: str = "left",
        font_size: float | None = None,
    ) -> None:
        """Write text on a dark plate. It is moved, and if necessary shrunk and cut, to stay inside the picture.

        Args:
            text: one or more lines.
            position: (x, y) in pixels of the image: the plate's upper edge and its left end, centre or right end.
            color: mixed with white until it can be read on the plate.
            ha: "left", "center" or "right".
            font_size: in pixels of the drawn picture; None means the attribute `font_size`.
        """
        where = inputs.to_array(position, "position")
        if where.shape != (2,) or not np.isfinite(where).all():
            raise UserError("position: expected two finite numbers, x and y")
        if ha not in _ALIGNMENT:
            raise UserError(f"ha: {ha!r} is not one of {', '.join(_ALIGNMENT)}")
        wanted = self.font_size if font_size is None else inputs.to_number(font_size, "font_size", above=0.0)
        color = inputs.to_color(color, "color")
        fitted = placement.fit_text(text, wanted, self._size, self._plate_size)
        if fitted is None:
            return
        text, font_size, size = fitted
        corner = where * self._ratio() - (_ALIGNMENT[ha] * size[0], 0.0)
        x, y = np.clip(corner, 0.0, np.subtract(self._size, size))
        self._put_text(text, (float(x), float(y), float(x + size[0]), float(y + size[1])), font_size, color)

    def save(self, saveas: str | Path | None = None) -> Path:
        """Write the picture, whole or not at all, and return its path. A missing folder is made.

        `.png .jpg .jpeg .webp` are written by OpenCV from `_get_buffer`; `.pdf .svg .svgz .eps .ps .tif .tiff .gif
        .avif .raw .rgba` by Matplotlib, with the drawing as vectors over the image where the format has them.

        Raises:
            UserError: the ending is not a picture format, or the file cannot be written.
        """
        path = Path(self.saveas if saveas is None else saveas)
        suffix = canvas.picture_suffix(path)
        if suffix in canvas.OPENCV_SUFFIXES:
            return canvas.write_picture(path, canvas.encode_array(self._get_buffer(), suffix))
        under = self.ax.imshow(
            inputs.resized(self.img, self._size),
            extent=(0, self.width, self.height, 0),
            aspect="auto",
            interpolation="none",
            zorder=-1,
        )
        try:
            data = canvas.encode_figure(self.fig, suffix)
        finally:
            under.remove()
        return canvas.write_picture(path, data)

    def _get_buffer(self) -> np.ndarray:
        """The picture as (H * scale, W * scale, 3) uint8 RGB: the image, resized bilinearly, under the drawing."""
        return canvas.blend(inputs.resized(self.img, self._size), canvas.render_rgba(self.fig))

    def _repr_png_(self) -> bytes:
        """The picture as PNG: notebooks show it."""
        return canvas.encode_array(self._get_buffer(), ".png")

    def _ratio(self) -> tuple[float, float]:  # drawn pixels per image pixel
        return self._size[0] / self.width, self._size[1] / self.height

    def _plate_size(self, text: str, font_size: float) -> tuple[float, float]:
        with canvas.picture_style():
            artist = fonts.text_artist(text, font_size, figure=self.fig)
            extent = artist.get_window_extent(self.canvas.get_renderer())
        margin = 2 * self.pad * self.line_width
        return extent.width + margin, extent.height + margin

    def _put_text(self, text: str, place: placement.Rectangle, font_size: float, color: object) -> None:
        margin = self.pad * self.line_width
        plate = {"facecolor": "black", "alpha": 0.5 + self.alpha / 2, "edgecolor": "none", "pad": margin}
        options = {"color": palette.on_dark(color), "va": "top", "ha": "left", "zorder": 10}
        artist = fonts.text_artist(text, font_size, bbox=plate, figure=self.fig, **options)
        artist.set_transform(self.fig.dpi_scale_trans)  # inches from the lower left corner
        artist.set_position(((place[0] + margin) / canvas.DPI, (self._size[1] - place[1] - margin) / canvas.DPI))
        self.fig.add_artist(artist)
        self.label_boxes.append(place)


def mask_picture(mask: object, heads: int | None = None, name: str = "", head_axis: int = 0) -> SingleImageViz:
    """Picture of one matrix' mask: tiles coloured by density; a box with number and density for each attention head.

    Args:
        mask: (out, in) bool, True where the weight stays.
        heads: number of attention heads; None, for a matrix without heads, splits the rows into up to 8 equal blocks.
        name: heading of the picture.
        head_axis: 0 when heads are blocks of rows (query, key, value), 1 when of columns (attention output).

    Returns:
        The picture; `save` writes it, `_get_buffer` is (height, width, 3) uint8 RGB.

    Raises:
        UserError: no mask, or heads that do not divide its rows or columns.
    """
    kept = mask_arrays.to_mask(mask)
    if head_axis not in (0, 1):
        raise UserError(f"head_axis: {head_axis!r} is neither 0 (rows) nor 1 (columns)")
    if heads is None:
        blocks, axis = mask_arrays.blocks(kept, mask_arrays.even_count(kept.shape[0]), 0), 0
        labels = [f"rows {b.start}–{b.stop - 1}: {percent(b.density)} %" for b in blocks]
    else:
        if isinstance(heads, bool) or not isinstance(heads, int | np.integer):
            raise UserError(f"heads: {heads!r} is not a number of attention heads")
        blocks, axis = mask_arrays.blocks(kept, int(heads), head_axis), head_axis
        form = "head {}: {} %" if axis == 0 else "head {}\n{} %"  # blocks of columns are narrow
        labels = [form.format(i, percent(b.density)) for i, b in enumerate(blocks)]
    with canvas.picture_style():
        viz = SingleImageViz(tiles_ground(kept, len(blocks), axis), scale=1.0, alpha=0.9, id2obj=labels)
        viz.font_size, viz.line_width = 14.0, 2.5
        write_heading(viz.fig, name, kept)
        viz.draw_boxes(block_boxes(blocks, kept.shape, axis), obj_ids=range(len(blocks)))
    return viz


def save_overview(path: str | Path, densities: object, title: str, sizes: Mapping[object, int] | None = None) -> Path:
    """Write `overview` to `path` and return the path. The trainer calls it at each checkpoint."""
    return overview(densities, title, sizes).save(path)


def save_structure(
    folder: str | Path, kept: Sequence[tuple[int, int]], before: Sequence[tuple[int, int]], title: str
) -> Path:
    """Write `structure.png`, the picture of `heads_and_neurons`, and return its path.

    Args:
        folder: gets the picture.
        kept: (heads, neurons) of each layer that stay.
        before: the same before the cut.
        title: heading.
    """
    heads, neurons = (list(part) for part in zip(*kept, strict=True))
    of_heads, of_neurons = (list(part) for part in zip(*before, strict=True))
    chart = heads_and_neurons((heads, max(of_heads)), neurons, of_neurons, title)
    return chart.save(Path(folder) / "structure.png")


def pictures_of(
    masks: Mapping[str, object], history: Sequence[Mapping[str, object]], num_heads: int, title: str
) -> Iterator[tuple[str, SingleImageViz | canvas.Chart]]:
    """(file name, picture) of every picture of a run, drawn one at a time; `picture.save` writes it.

    They are `overview.png`, `curves.png` (when the history has something to draw) and, in `masks/`, a
    `SingleImageViz` of each matrix.

    Args:
        masks: module name, such as `bert.encoder.layer.0.attention.self.query` -> (out, in) bool.
        history: rows of the training log, see `curves`.
        num_heads: attention heads of the model.
        title: heading of the overview and the curves.

    Raises:
        UserError: no mask, or one that is not a mask.
    """
    unusable = [name for name in masks if not name or "/" in name]
    if unusable:
        raise UserError(f"masks: {unusable[0]!r} cannot be the name of a file")
    masks = mask_arrays.separated(masks)
    yield "overview.png", overview(mask_arrays.densities_of(masks), title, mask_arrays.sizes_of(masks))
    if has_curves(history):
        yield "curves.png", curves(history, title)
    for name, mask in masks.items():
        yield f"masks/{name}.png", _picture_of(name, mask, num_heads)


def _picture_of(name: str, mask: object, num_heads: int) -> SingleImageViz:
    """`mask_picture` of a matrix; its name says where its heads lie."""
    axis = mask_arrays.head_axis(mask_arrays.matrix_key(name)[1])
    return mask_picture(mask, None if axis is None else num_heads, name, axis or 0)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line names; a mistake is one line on stderr and exit status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        _check_arguments(args)
        written = _draw_boxes_of_file(args) if args.image else _draw_model(args)
    except UserError as error:
        parser.error(str(error))
    print(written)


def _parser() -> argparse.ArgumentParser:
    from emmental.command_line import OneLineParser

    parser = OneLineParser(f"Pictures of a pruned model, or of boxes on an image. {FORM}")
    model = parser.add_argument_group("a pruned model")
    model.add_argument(
        "--model_name_or_path",
        "--model_dir",
        dest="model_name_or_path",
        help="folder of a finished model, masked or bertarized",
    )
    model.add_argument("--compare", help="folder of a second model, drawn beside the first")
    model.add_argument(
        "--picture",
        choices=_PICTURES,
        help="default: overview, or mask with --matrix; structure: heads and neurons of a small model; "
        "all: every picture, into folder --output",
    )
    model.add_argument(
        "--matrix",
        help="the matrix for --picture mask: its name, or an ending that only this name has",
    )
    boxes = parser.add_argument_group("boxes on an image")
    boxes.add_argument("--image", help="photograph or other image file")
    boxes.add_argument("--boxes", help="JSON file of boxes, see above")
    boxes.add_argument("--scale", type=float, default=1.0, help="size of the picture relative to the image")
    boxes.add_argument("--alpha", type=float, default=0.8, help="opacity of the boxes, 0 to 1")
    boxes.add_argument("--linestyle", default="solid", help="of the boxes: solid, dashed, dashdot or dotted")
    parser.add_argument(
        "--output",
        "--saveas",
        dest="output",
        required=True,
        help="file to write; its ending is the format: .png, .jpg, .pdf, ...",
    )
    parser.add_argument("--title", help="heading of the picture of a model; default: the folder's name")
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    if bool(args.model_name_or_path) == bool(args.image):
        raise UserError("give either --model_name_or_path or --image")
    if bool(args.image) != bool(args.boxes):
        raise UserError("--image and --boxes go together")
    if args.image and (args.compare or args.picture or args.matrix):
        raise UserError("--compare, --picture and --matrix are for --model_name_or_path")
    args.picture = args.picture or ("mask" if args.matrix else "overview")
    if (args.picture == "mask") != bool(args.matrix):
        raise UserError("--picture mask and --matrix go together")
    if args.compare and args.picture != "overview":
        raise UserError(f"--compare draws two overviews, not --picture {args.picture}")
    if args.picture != "all":
        canvas.picture_suffix(args.output)
        read = {f"--{name}": getattr(args, name) for name in ("image", "boxes", "model_name_or_path", "compare")}
        refuse_losing(read, [args.output], f"--output {args.output}")


def _draw_boxes_of_file(args: argparse.Namespace) -> Path:
    content = read_box_file(args.boxes)
    names = {key: content.pop(key, None) for key in ("id2obj", "id2attr")}
    viz = SingleImageViz(args.image, scale=args.scale, alpha=args.alpha, linestyle=args.linestyle, **names)
    viz.draw_boxes(**content)
    return viz.save(args.output)


def _draw_model(args: argparse.Namespace) -> Path:
    from emmental.reporting.kept_weights import read_model_masks, read_structure

    folder, name = Path(args.model_name_or_path), Path(args.model_name_or_path).resolve().name
    title = name if args.title is None else args.title
    if args.picture == "curves":
        return curves(_read_history(folder), title).save(args.output)
    if args.picture == "structure":
        return heads_and_neurons(*read_structure(folder), title).save(args.output)
    found, heads = read_model_masks(folder)
    if args.picture == "all":
        history = _read_history(folder) if (folder / _LOG_FILE).is_file() else []
        for file, picture in pictures_of(found, history, heads, title):
            picture.save(Path(args.output) / file)
        return Path(args.output)
    if args.picture == "mask":
        matrix = _only_match(args.matrix, found)
        return _picture_of(matrix, found[matrix], heads).save(args.output)
    densities, sizes = mask_arrays.densities_of(found), mask_arrays.sizes_of(found)
    if not args.compare:
        return save_overview(args.output, densities, title, sizes)
    second, _ = read_model_masks(args.compare)
    names = (name, Path(args.compare).resolve().name)
    title = " and ".join(names) if args.title is None else args.title
    others = mask_arrays.densities_of(second), mask_arrays.sizes_of(second)
    return compare(densities, others[0], names, title, sizes, others[1]).save(args.output)


def _read_history(folder: Path) -> list[dict[str, object]]:
    from emmental.runs.progress import read_log

    if not (folder / _LOG_FILE).is_file():
        raise UserError(f"--picture curves: {folder} has no {_LOG_FILE}")
    return read_log(folder / _LOG_FILE)


def _only_match(ending: str, names: Mapping[str, object]) -> str:
    matches = [name for name in names if name == ending or name.endswith(f".{ending}")]
    if len(matches) != 1:
        example = next(iter(names))
        raise UserError(f"--matrix: {len(matches)} names of matrices end with {ending!r}; one name is {example}")
    return matches[0]


if __name__ == "__main__":
    main()
