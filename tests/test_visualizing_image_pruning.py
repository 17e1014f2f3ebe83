"""Pictures of pruning, and the command line of the visualiser."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_models
import torch
from transformers import BertForSequenceClassification

import visualizing_image
from emmental.architectures import ARCHITECTURES
from emmental.reporting.kept_weights import read_model_masks, read_structure
from emmental.small_models import LayerSize, small_class, small_config_class
from visualizing_image import SingleImageViz, main, mask_picture, pictures_of, save_overview

# --- pictures of pruning


def masks_of_layers(layers: int = 2, hidden: int = 24) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {"intermediate.dense": (4 * hidden, hidden), "output.dense": (hidden, 4 * hidden)}
    return {
        f"bert.encoder.layer.{layer}.{matrix}": generator.random(shapes.get(matrix, (hidden, hidden))) < 0.2
        for layer in range(layers)
        for matrix in ARCHITECTURES["bert"].roles.values()
    }


def test_mask_picture_boxes_its_heads() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[:2] = True  # head 0 whole, heads 1 to 3 gone
    picture = mask_picture(mask, 4, "query")
    buffer = picture._get_buffer()
    assert buffer.shape == (948, 1000, 3)
    assert len(picture.label_boxes) == 4
    # Tiles stand at (96, 104), 768 x 768; a head is 192 rows. Viridis ends in yellow and begins in violet.
    assert buffer[104 + 150, 96 + 400].tolist() == [253, 231, 36]
    for head in (1, 2, 3):
        assert buffer[104 + 192 * head + 150, 96 + 400].tolist() == [68, 1, 84]
        assert picture.label_boxes[head][1] == 104 + 192 * head


def test_mask_picture_of_columns() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[:, 6:] = True
    picture = mask_picture(mask, 4, "output", head_axis=1)
    buffer = picture._get_buffer()
    assert [label[0] for label in picture.label_boxes] == [96 + 192 * head for head in range(4)]
    assert buffer[104 + 400, 96 + 700].tolist() == [253, 231, 36]
    assert buffer[104 + 400, 96 + 500].tolist() == [68, 1, 84]


@pytest.mark.parametrize(("heads", "side"), [(12, 768), (16, 992), (32, 1984)])
@pytest.mark.parametrize("axis", [0, 1])
def test_labels_of_many_heads_stand_in_their_heads(heads: int, side: int, axis: int) -> None:
    picture = mask_picture(np.ones((96, 96), dtype=bool), heads, "m", axis)
    assert picture.img.shape[axis] == side + (180, 232)[axis]
    starts = [label[1 - axis] for label in picture.label_boxes]
    np.testing.assert_allclose(starts, (104, 96)[axis] + side / heads * np.arange(heads))
    assert all(label[3] - label[1] < side / heads or axis == 1 for label in picture.label_boxes)


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (300, 2), (2, 5000)])
def test_masks_of_odd_shapes(value: bool, shape: tuple[int, int]) -> None:
    buffer = mask_picture(np.full(shape, value), name="odd")._get_buffer()
    assert buffer[104 + 760, 96 + 600].tolist() == ([253, 231, 36] if value else [68, 1, 84])


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.ones((4, 4)) * 0.5, {}, "mask: a mask has only 0 and 1"),
        (np.full((4, 4), np.nan), {}, "mask: a mask has only"),
        (np.ones((0, 4), dtype=bool), {}, "mask: shape"),
        (np.ones(4, dtype=bool), {}, "mask: shape"),
        (np.ones((4, 4), dtype=bool), {"heads": 3}, "heads: 4 rows cannot be divided into 3"),
        (np.ones((4, 6), dtype=bool), {"heads": 4, "head_axis": 1}, "heads: 6 columns cannot"),
        (np.ones((4, 4), dtype=bool), {"heads": 0}, "heads: "),
        (np.ones((4, 4), dtype=bool), {"heads": 2.0}, "heads: 2.0 is not a number of attention heads"),
        (np.ones((4, 4), dtype=bool), {"heads": 2, "head_axis": 2}, "head_axis: 2 is neither"),
    ],
)
def test_bad_masks(mask: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        mask_picture(mask, **options)


def test_every_picture_is_the_same_twice() -> None:
    masks = masks_of_layers(1)
    history = [{"step": 1, "loss": 0.5, "remaining": 90.0}, {"step": 2, "eval": {"acc": 0.75}}]
    first = dict(pictures_of(masks, history, 4, "title"))
    tensors = {name: torch.tensor(mask) for name, mask in masks.items()}
    second = dict(pictures_of(tensors, history, 4, "title"))
    assert list(first) == ["overview.png", "curves.png", *(f"masks/{name}.png" for name in masks)]
    assert all(np.array_equal(first[name]._get_buffer(), second[name]._get_buffer()) for name in first)
    assert all(isinstance(first[f"masks/{name}.png"], SingleImageViz) for name in masks)


@pytest.mark.parametrize("history", [[], [{"step": 3}], [{"step": 3, "epoch": 1, "loss": None}]])
def test_without_a_course_there_are_no_curves(history: list) -> None:
    name = "bert.encoder.layer.0.output.dense"
    drawn = dict(pictures_of({name: np.ones((4, 4), dtype=bool)}, history, 2, "t"))
    assert list(drawn) == ["overview.png", f"masks/{name}.png"]


def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(ValueError, match=r"^masks: '\.\./x' cannot be the name of a file"):
        next(pictures_of({"../x": np.ones((4, 4), dtype=bool)}, [], 2, "t"))


def test_save_overview_writes_what_overview_draws(tmp_path: Path) -> None:
    densities = {"bert.encoder.layer.0.output.dense": 0.25}
    path = save_overview(tmp_path / "o.png", densities, "t")
    drawn = visualizing_image.overview(densities, "t")._get_buffer()
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), drawn)


# --- command line


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.full((80, 120, 3), 200, dtype=np.uint8))
    return path


def write_boxes(folder: Path, content: object) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_boxes_on_a_photograph(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = write_boxes(
        tmp_path,
        {
            "boxes": [[10, 10, 100, 60]],
            "obj_ids": [0],
            "obj_scores": [0.9],
            "attr_ids": ["wet"],
            "id2obj": {"0": "dog"},
        },
    )
    target = tmp_path / "new" / "drawn.png"
    main(["--image", str(photo), "--boxes", str(boxes), "--output", str(target), "--scale", "2"])
    assert capsys.readouterr().out == f"{target}\n"
    expected = SingleImageViz(photo, scale=2.0, alpha=0.8, id2obj=["dog"])
    expected.draw_boxes([[10, 10, 100, 60]], [0], [0.9], ["wet"])
    assert np.array_equal(cv2.imread(str(target), cv2.IMREAD_COLOR_RGB), expected._get_buffer())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--output a.png", "give either --model_name_or_path or --image"),
        ("--model_name_or_path X --image Y --output a.png", "give either --model_name_or_path or --image"),
        ("--image photo.png --output a.png", "--image and --boxes go together"),
        ("--model_name_or_path X --boxes b.json --output a.png", "--image and --boxes go together"),
        ("--image photo.png --boxes b.json --compare X --output a.png", "--compare, --picture and --matrix are for"),
        ("--model_name_or_path X --picture mask --output a.png", "--picture mask and --matrix go together"),
        ("--model_name_or_path X --matrix m --picture all --output a.png", "--picture mask and --matrix go together"),
        ("--model_name_or_path X --compare Y --picture all --output a.png", "--compare draws two overviews"),
        ("--model_name_or_path X --output a.doc", "'a.doc' does not end in a picture format"),
        ("--model_name_or_path X --output a.png", "--model_name_or_path: X has no config.json"),
        ("--model_name_or_path X --picture curves --output a.png", "--picture curves: X has no train_log.jsonl"),
        ("--model_name_or_path X --picture heat --output a.png", "invalid choice: 'heat'"),
        ("--image photo.png --boxes b.json --output a.png", "b.json cannot be read: No such file"),
        ("--image photo.png --boxes photo.png --output a.png", "photo.png is not JSON"),
        ("--model_name_or_path X", "--output"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    flags: str, message: str, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photo.parent)
    with pytest.raises(SystemExit) as caught:
        main(flags.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in photo.parent.iterdir()] == ["photo.png"]


def test_help_describes_the_file_of_boxes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for word in ("--model_name_or_path", "--compare", '"boxes"', '"obj_ids"', '"id2attr"'):
        assert word in out


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished masked model of one layer, without a tokenizer: half of each matrix remains."""
    import emmental

    torch.manual_seed(0)
    config = emmental.MaskedBertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, pruning_method="magnitude",
    )  # fmt: skip
    model = emmental.MaskedBertForSequenceClassification(config)
    emmental.patching.set_threshold(model, 0.5)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    (folder / "train_log.jsonl").write_text('{"step": 1, "loss": 0.5, "remaining": 50.0}\n')
    return folder


@pytest.fixture(scope="module")
def plain_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a plain BERT whose encoder has exact zeros."""
    from transformers import AutoModelForSequenceClassification

    from emmental.patching import unmask_linears

    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    unmask_linears(model)
    config = {**model.config.to_dict(), "model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    folder = tmp_path_factory.mktemp("plain")
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_masks_of_masked_and_plain_folders_agree(model_folder: Path, plain_folder: Path) -> None:
    masked, heads = read_model_masks(model_folder)
    plain, plain_heads = read_model_masks(plain_folder)
    assert heads == plain_heads == 2
    assert sorted(masked) == sorted(plain)
    assert len(masked) == 6
    assert all(mask.mean() == 0.5 for mask in masked.values())
    assert all(np.array_equal(masked[name], plain[name]) for name in masked)


@pytest.mark.parametrize(
    ("flags", "width"),
    [
        ([], 1200),
        (["--picture", "curves"], 1200),
        (["--matrix", "attention.self.key"], 1000),
        (["--matrix", "attention.output.dense", "--picture", "mask"], 1000),
    ],
)
def test_pictures_of_a_model(model_folder: Path, tmp_path: Path, flags: list[str], width: int) -> None:
    target = tmp_path / "a.png"
    main(["--model_name_or_path", str(model_folder), "--output", str(target), *flags])
    assert abs(cv2.imread(str(target)).shape[1] - width) < 10


def test_all_pictures_and_two_models(model_folder: Path, plain_folder: Path, tmp_path: Path) -> None:
    main(["--model_name_or_path", str(model_folder), "--picture", "all", "--output", str(tmp_path / "all")])
    assert len(list((tmp_path / "all").rglob("*.png"))) == 2 + 6
    main(
        [
            "--model_name_or_path",
            str(model_folder),
            "--compare",
            str(plain_folder),
            "--output",
            str(tmp_path / "two.png"),
        ]
    )
    two = cv2.imread(str(tmp_path / "two.png"))
    assert two.shape[1] >= 1190


@pytest.mark.parametrize(("matrix", "count"), [("dense", 3), ("nothing", 0)])
def test_a_matrix_must_be_named_clearly(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], matrix: str, count: int
) -> None:
    with pytest.raises(SystemExit):
        main(["--model_name_or_path", str(model_folder), "--matrix", matrix, "--output", str(tmp_path / "a.png")])
    assert f"--matrix: {count} names of matrices end with '{matrix}'" in capsys.readouterr().err


def test_a_damaged_model_is_one_line(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00")
    with caplog.at_level(logging.CRITICAL), pytest.raises(SystemExit):
        main(["--model_name_or_path", str(tmp_path), "--output", str(tmp_path / "a.png")])
    error = capsys.readouterr().err
    assert f"--model_name_or_path: {tmp_path} holds no readable model" in error
    assert error.count("\n") == 1


def test_structure_of_a_small_model(tmp_path: Path) -> None:
    config = tiny_models.config("bert")
    sizes = [LayerSize(1, 3) for _ in range(config.num_hidden_layers)]
    small = small_class(BertForSequenceClassification)(small_config_class("bert").from_dense(config, sizes))
    small.save_pretrained(tmp_path / "small")
    (heads, before), neurons, neurons_before = read_structure(tmp_path / "small")
    assert heads.tolist() == [1] * len(sizes)
    assert neurons.tolist() == [3] * len(sizes)
    assert (before, neurons_before) == (config.num_attention_heads, config.intermediate_size)
    visualizing_image.main(
        [
            "--model_name_or_path",
            str(tmp_path / "small"),
            "--picture",
            "structure",
            "--output",
            str(tmp_path / "a.png"),
        ]
    )
    assert (tmp_path / "a.png").is_file()
