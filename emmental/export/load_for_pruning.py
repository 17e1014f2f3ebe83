"""Loads a model of any task head, from a folder or the Hub, with what is around it and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from emmental.architectures import longest_input
from emmental.errors import UserError, names_near
from emmental.export.bertarize import bertarize
from emmental.export.model_folder import read_model
from emmental.export.sentence_models import Surroundings, read_surroundings, tag_of
from emmental.export.tokenizer import tokenizer_of
from emmental.patching import masked_layers
from emmental.pretrained import check_folder, from_pretrained, loading, require_encoder
from emmental.structured.prune import trained_head
from emmental.task_heads import Embeddings, TaskHead, first_token, mean_of_tokens

FLAG = "--model_name_or_path"
LONGEST = 128
"""Tokens that texts are cut to, unless the user says otherwise."""
_FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "README.md", "pytorch_model*.bin"]
_ELSEWHERE = ["onnx/*", "openvino/*", "*/onnx/*", "coreml/*"]
POOLINGS = {"mean": mean_of_tokens, "cls": first_token}


@dataclass(frozen=True)
class LoadedModel:
    """A model to prune.

    Attributes:
        folder: where it and the files around it are.
        name: of the folder or on the Hub.
        model: plain or small, in evaluation mode.
        tokenizer: its own.
        head: what it answers.
        around: its surroundings.
    """

    folder: Path
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: TaskHead
    around: Surroundings

    @property
    def encoder(self) -> Path:
        """The folder of the encoder, which in a folder of sentence-transformers may be one of several."""
        return self.around.encoder or self.folder

    def length(self, asked: int | None) -> int:
        """Tokens that texts are cut to: what is asked for, else the model's own, at most `LONGEST`.

        Raises:
            UserError: more than the model's positions.
        """
        longest = longest_input(self.model.config)
        if asked is not None and asked > longest:
            raise UserError(f"--max_length {asked} is more than the {longest} positions of {self.name}")
        own = min(self.around.max_length or longest, self.tokenizer.model_max_length, longest)
        return asked or min(own, LONGEST)

    @property
    def pipeline(self) -> str:
        """Its tag on the Hub."""
        return tag_of(self.around, self.model) or self.head.pipeline

    @property
    def library(self) -> str:
        """The library that loads it, by its name on the Hub."""
        return "sentence-transformers" if self.around.parts or self.around.cross_encoder else "transformers"


def load_for_pruning(name: str, passes: int, pooling: str | None = None) -> LoadedModel:
    """Read a model; code in its folder is never run.

    Args:
        name: folder or Hub name.
        passes: see `TaskHead`.
        pooling: a name among `POOLINGS`, for a model without a head whose folder does not say it.

    Raises:
        UserError: it cannot be loaded, is no encoder, or has no head that can be pruned; one line.
    """
    folder = _folder(name)
    around = read_surroundings(folder)
    place = around.encoder or folder
    check_folder(place, f"{FLAG} {name}")
    called = f"{FLAG} {name}"
    config = from_pretrained(AutoConfig, str(place), flag=FLAG)
    require_encoder(config, called)
    _check_class(config, called)
    try:
        model = read_model(place)
    except UserError as error:
        if not str(error).endswith("is missing"):
            raise
        raise UserError(f"{called} has no trained weights for its {config.architectures[0]}: {error}") from error
    model = bertarize(model) if masked_layers(model) else model
    options: dict[str, Any] = {"passes": passes, **around.options}
    if pooling is not None:
        if around.pool is not None or not Embeddings.accepts(model):
            raise UserError(f"--pooling is for models without a head whose folder has no pooling; {name} is another")
        options |= {"pool": POOLINGS[pooling], "first_token_only": pooling == "cls"}
    head = trained_head(model, called, **options)
    return LoadedModel(folder, name, model, tokenizer_of(place), head, around)


def _check_class(config: Any, called: str) -> None:
    """Refuse language models, whose words are not pruned, before their weights are read."""
    names = config.architectures or []
    if any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in names):
        raise UserError(
            f"{called} is a language model ({names[0]}): fine-tune it first, then prune what it answers; a task head "
            "with trained weights, or an embedding model, is accepted"
        )


def _folder(name: str) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.count("/") > 1 or folder.is_absolute() or name.startswith((".", "~")):
        near = names_near(name)
        raise UserError(f"{FLAG} {name}: there is no such folder" + (f"; {near}" if near else ""))
    with loading(f"{FLAG} {name}"):
        return Path(snapshot_download(name, allow_patterns=_FILES, ignore_patterns=_ELSEWHERE))
