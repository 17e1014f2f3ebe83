"""The last layer computed for the first token alone: who asks for it, logits, gradients, torch.compile, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_models
import torch
from tiny_small import UNEVEN, batch, dense, logits
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from emmental.architectures import DOWN, encoder_layers
from emmental.shrinking import first_token_form, shrink

ONE = [([0, 2], [1, 5]), ([1], []), ([3, 1], [2, 3])]
BARE_TOP = [([0, 2], [1, 5]), ([1], []), ([], [2, 3])]


def seen_by_the_last_down(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of what the last layer's down projection gets; filled as the model is called."""
    seen: list[tuple[int, ...]] = []
    linear = model.get_submodule(encoder_layers(model)[-1].linears[DOWN])
    linear.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    return seen


def all_tokens(model: nn.Module) -> nn.Module:
    model.config.first_token_only = False
    return model


@pytest.mark.parametrize("openings", [ONE, BARE_TOP])
@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_the_last_layer_for_one_token(model_type, openings):
    small = shrink(dense(model_type), openings)
    seen = seen_by_the_last_down(small)
    one = logits(small)
    every = logits(all_tokens(small))
    assert seen == [(3, 1, 2), (3, 11, 2)]
    assert (one - every).abs().max() <= 1e-6


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_a_dense_model_has_a_form_for_one_token(model_type):
    model = dense(model_type)
    before, state = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    frozen = model.base_model.embeddings.requires_grad_(False)
    form = first_token_form(model)
    seen = seen_by_the_last_down(form)
    assert (logits(form) - before).abs().max() <= 1e-6
    assert seen == [(3, 1, 12)]
    assert {id(each) for each in form.parameters()} == {id(each) for each in model.parameters()}  # no copies
    assert not any(each.requires_grad for each in frozen.parameters())
    assert type(model) is type(dense(model_type))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert first_token_form(form) is form


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_the_base_model_alone_computes_all_tokens(model_type, tmp_path):
    small = shrink(dense(model_type), ONE)
    small.save_pretrained(tmp_path)
    alone = AutoModel.from_pretrained(tmp_path).eval()
    given = batch(small)
    with torch.no_grad():
        small(**given)
        inside, outside = small.base_model(**given)[0], alone(**given)[0]
    assert inside.shape == (3, 11, 16)
    assert (inside - outside).abs().max() <= 1e-6


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_who_wants_more_gets_all(model_type):
    model = dense(model_type)
    small = shrink(model, [(range(4), range(12))] * 3)
    small.set_attn_implementation("eager")
    model.set_attn_implementation("eager")
    given = batch(small)
    position = {"mpnet": 7, "deberta-v2": 7}.get(model_type)
    with torch.no_grad():
        wanted = model(**given, output_hidden_states=True, output_attentions=True)
        found = [small(**given, output_hidden_states=True), small(**given, output_attentions=True)]
        if position:  # as positional arguments
            rest = [None] * (position - 2 - (model_type == "mpnet"))
            found[0] = small(given["input_ids"], given["attention_mask"], *rest, True)
        small.config.output_hidden_states = True
        found.append(small(**given))
    for one, two in ((found[0], wanted), (found[2], wanted)):
        assert all((a - b).abs().max() <= 1e-5 for a, b in zip(one.hidden_states, two.hidden_states, strict=True))
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(found[1].attentions, wanted.attentions, strict=True))


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_a_hook_on_the_output_of_the_encoder_gets_all_tokens(model_type):
    small = shrink(dense(model_type), ONE)
    plain = logits(small)
    shapes: list[tuple[int, ...]] = []

    def note(_: nn.Module, __: object, output: object) -> None:
        shapes.append((output if isinstance(output, torch.Tensor) else output[0]).shape[:2])

    for module in (small.base_model, encoder_layers(small)[-1].module):
        handle = module.register_forward_hook(note)
        assert (logits(small) - plain).abs().max() <= 1e-6
        handle.remove()
    assert set(shapes) == {(3, 11)}
    seen = seen_by_the_last_down(small)
    small(**batch(small), output_hidden_states=True)  # Transformers' own hooks stay
    logits(small)
    assert seen == [(3, 11, 2), (3, 1, 2)]


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_eight_threads_get_whole_answers(model_type):
    small = shrink(dense(model_type), ONE)
    given = batch(small)

    def ask(number: int) -> bool:
        with torch.no_grad():
            if number % 4 == 1:
                return small(**given, output_hidden_states=True).hidden_states[-1].shape == (3, 11, 16)
            if number % 4 == 3:
                return small.base_model(**given)[0].shape == (3, 11, 16)
            return bool((small(**given).logits - expected).abs().max() <= 1e-6)

    expected = logits(small)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(160)))


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_every_linear_is_called_as_a_module(model_type):
    """What replaces a linear's forward, as adapters and offloading do, sees every call."""
    small = shrink(dense(model_type), ONE)
    expected, layer = logits(small), encoder_layers(small)[-1]
    called = []

    def offloaded(name: str, linear: nn.Linear) -> None:
        forward, weight = linear.forward, linear.weight
        linear.weight = nn.Parameter(torch.empty_like(weight, device="meta"))

        def called_with_weight(inputs: torch.Tensor) -> torch.Tensor:
            called.append(name)
            linear.weight = weight
            try:
                return forward(inputs)
            finally:
                linear.weight = nn.Parameter(torch.empty_like(weight, device="meta"))

        linear.forward = called_with_weight

    for each in encoder_layers(small):
        for name in each.linears.values():
            offloaded(name, small.get_submodule(name))
    assert (logits(small) - expected).abs().max() <= 1e-6
    assert set(layer.linears.values()) <= set(called)


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_gradients_of_the_last_layer_for_one_token(model_type):
    small = shrink(dense(model_type), UNEVEN[::-1]).train()
    labels = torch.tensor([0, 1, 2])
    small(**batch(small), labels=labels).loss.backward()
    one = {name: parameter.grad for name, parameter in small.named_parameters()}
    small.zero_grad()
    all_tokens(small)(**batch(small), labels=labels).loss.backward()
    for name, parameter in small.named_parameters():
        if parameter.grad is None:
            assert one[name] is None, name
        else:
            assert (parameter.grad - one[name]).abs().max() <= 1e-6, name


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("model_type", [name for name in tiny_models.MODEL_TYPES if name not in ("mpnet", "albert")])
def test_gradient_checkpointing_computes_one_token_again(model_type, use_reentrant):
    if use_reentrant and model_type == "deberta-v2":
        pytest.skip("nor can the dense model")
    small = shrink(dense(model_type), ONE).train()
    seen = seen_by_the_last_down(small)
    labels = torch.tensor([0, 1, 2])
    gradients = []
    for _ in range(2):
        small(**batch(small), labels=labels).loss.backward()
        gradients.append({name: each.grad for name, each in small.named_parameters() if each.grad is not None})
        small.zero_grad()
        small.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert set(seen) == {(3, 1, 2)}
    assert gradients[0].keys() == gradients[1].keys()
    assert all((gradients[1][name] - each).abs().max() <= 1e-6 for name, each in gradients[0].items())


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_compiled_in_one_piece(model_type):
    small = shrink(dense(model_type), UNEVEN).train()
    graphs = []
    torch.compiler.reset()
    whole = model_type != "deberta-v2"  # Transformers' own code breaks its graph
    compiled = torch.compile(small, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=whole)
    assert (compiled(**batch(small)).logits - logits(small)).abs().max() <= 1e-6
    products = [node.meta["example_value"] for each in graphs for node in each.graph.nodes if node.target is F.linear]
    assert any(product.dim() == 3 and product.shape[1] == 1 for product in products)  # one token of the last layer


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_traced(model_type):
    small = shrink(dense(model_type), ONE)
    given = tuple(batch(small).values())
    traced = torch.jit.trace(small, given, strict=False)
    with torch.no_grad():
        assert (traced(*given)["logits"] - logits(small)).abs().max() <= 1e-6


def test_who_reads_more_than_the_first_token_computes_all():
    for options in ({"classifier_pooling": "mean"}, {"chunk_size_feed_forward": 11}):
        model = dense("modernbert" if "classifier_pooling" in options else "bert", **options)
        small = shrink(model, ONE)
        seen = seen_by_the_last_down(small)
        logits(small)
        assert seen == [(3, 11, 2)]
        assert first_token_form(model) is model
