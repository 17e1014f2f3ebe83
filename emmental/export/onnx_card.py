"""The card of a folder of ONNX files."""

from __future__ import annotations

from collections.abc import Sequence

PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "Model": "feature-extraction",
}
"""End of a class' name -> the pipeline of such models."""
_WITHOUT_CALL = "text-ranking"
"""A tag of the Hub for which transformers.js has no pipeline."""
_HEADS = (
    "Layers may have their own numbers of attention heads, which are constants in the graph. Tools that fuse "
    "attention, as `onnxruntime.transformers.optimizer` does, read them there: give `num_heads=0, hidden_size=0`."
)
INT8_PROCESSORS = (
    "int8 is fast on processors with int8 dot products: VNNI on x86 (AVX-512 VNNI, AVX-VNNI), `dotprod` or `i8mm` on "
    "Arm. Without them it is slower, but answers stay right: weights use 7 of 8 bits (`reduce_range`), so no sum of "
    "16 bits overflows."
)


def onnx_card(
    card: str, name: str, class_name: str, files: Sequence[tuple[str, str, int, float]], pipeline: str | None = None
) -> str:
    """A model's own card, with a part about its ONNX files on top.

    Args:
        card: the model's own card, Markdown with metadata on top; may be empty.
        name: of the model.
        class_name: its class in Transformers.
        files: path in the folder, dtype (as transformers.js names it), bytes, largest difference to PyTorch.
        pipeline: its tag on the Hub; default: by its class.
    """
    lines = [f"| {file} | `{dtype}` | {size / 1e6:.1f} | {diff:.1e} |" for file, dtype, size, diff in files]
    front, body = _front_matter(card)
    front = [line for line in front if not line.startswith(("library_name:", "pipeline_tag:"))]
    task = pipeline or next((task for end, task in PIPELINES.items() if class_name.endswith(end)), None)
    front = ["library_name: transformers.js", *([f"pipeline_tag: {task}"] if task else []), *front]
    table = ["| file | dtype | MB | largest difference to PyTorch |", "|---|---|---:|---:|", *lines]
    call = []
    if task not in (None, _WITHOUT_CALL):
        call = ["```js", 'import { pipeline } from "@huggingface/transformers";', ""]
        call += [f'const classify = await pipeline("{task}", "{name}", {{ dtype: "fp32" }});', "```", ""]
    notes = [_HEADS, "", *([INT8_PROCESSORS, ""] if any(dtype != "fp32" for _, dtype, _, _ in files) else [])]
    text = f"ONNX files of `{name}`, for ONNX Runtime, transformers.js and other programs that read this layout."
    return "\n".join(["---", *front, "---", f"# {name}, ONNX", "", text, "", *table, "", *notes, *call, body])


def _front_matter(card: str) -> tuple[list[str], str]:
    """Lines of the metadata on top of a card, and the rest."""
    if not card.startswith("---\n") or "\n---\n" not in card:
        return [], card
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    return front.splitlines(), body.lstrip("\n")
