"""nn.Linear to MaskedLinear and back: exact inverse, filter, flags, names."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from transformers import BertForSequenceClassification

from emmental.methods import PRUNING_METHODS
from emmental.modules import MaskedLinear
from emmental.patching import mask_linears, masked_layers, set_threshold, unmask_linears


class Bilinear(nn.Linear):
    """A subclass of nn.Linear: not a plain one, so not ours to replace."""


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(6, 5, bias=False), nn.GELU())
    return nn.Sequential(nn.Linear(4, 6), inner, nn.LayerNorm(5), nn.Linear(5, 3), Bilinear(3, 3))


@pytest.fixture
def bert(tmp_path):
    return BertForSequenceClassification.from_pretrained(tiny.save_bert(tmp_path / "bert")).eval()


def logits_of(model: nn.Module) -> torch.Tensor:
    ids = torch.tensor([[2, 5, 9, 3], [2, 30, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


class TestMasking:
    def test_every_plain_linear_is_replaced_and_named(self):
        model = network()
        assert mask_linears(model) == ["0", "1.0", "3"]
        assert list(masked_layers(model)) == ["0", "1.0", "3"]
        assert type(model[4]) is Bilinear

    def test_weights_and_biases_are_the_same_objects(self):
        model = network()
        before = dict(model.named_parameters())
        mask_linears(model)
        after = dict(model.named_parameters())
        assert all(after[name] is parameter for name, parameter in before.items())
        assert set(after) - set(before) == {"0.mask_scores", "1.0.mask_scores", "3.mask_scores"}

    def test_filter_by_name_and_by_module(self):
        assert mask_linears(network(), lambda name, module: name.startswith("1")) == ["1.0"]
        assert mask_linears(network(), lambda name, module: module.out_features == 3) == ["3"]

    def test_nothing_matched_raises(self):
        with pytest.raises(ValueError, match=r"no nn\.Linear of Sequential matched"):
            mask_linears(network(), lambda name, module: False)
        with pytest.raises(ValueError, match="nothing to mask"):
            mask_linears(nn.LayerNorm(3))
        masked = network()
        mask_linears(masked, lambda name, module: True)
        with pytest.raises(ValueError, match="nothing to mask"):
            mask_linears(masked)

    def test_unknown_method_leaves_the_model_alone(self):
        model = network()
        with pytest.raises(ValueError, match="pruning_method"):
            mask_linears(model, pruning_method="random")
        assert masked_layers(model) == {}

    def test_options_reach_the_layers(self):
        model = network()
        mask_linears(model, pruning_method="sigmoied_threshold", mask_init="constant", mask_scale=2.197)
        for masked in masked_layers(model).values():
            assert masked.pruning_method == "sigmoied_threshold"
            assert masked.mask_scores.unique().tolist() == [pytest.approx(2.197)]

    def test_magnitude_start_reads_the_weights_that_are_there(self):
        model = network()
        mask_linears(model, mask_init="magnitude", mask_scale=2.0)
        weight = model[0].weight
        assert torch.allclose(model[0].mask_scores, 2.0 * weight.abs() / weight.std())

    def test_mode_dtype_and_missing_bias_are_kept(self):
        model = network().double()
        model[1].eval()
        mask_linears(model)
        assert [masked.training for masked in masked_layers(model).values()] == [True, False, True]
        assert model[0].mask_scores.dtype == torch.float64
        assert model[1][0].bias is None
        assert model(torch.ones(2, 4, dtype=torch.float64)).shape == (2, 3)

    def test_masking_draws_nothing_for_constant_scores(self):
        torch.manual_seed(5)
        expected = torch.rand(3)
        model = network()
        torch.manual_seed(5)
        mask_linears(model)
        assert torch.equal(torch.rand(3), expected)


class TestInverse:
    def test_exact_inverse(self):
        model = network()
        before = dict(model.named_parameters())
        bits = {name: parameter.detach().clone() for name, parameter in before.items()}
        types = [type(module) for module in model.modules()]
        mask_linears(model)
        set_threshold(model, 0.3)
        model(torch.ones(1, 4))
        assert unmask_linears(model, apply_masks=False) == ["0", "1.0", "3"]
        after = dict(model.named_parameters())
        assert list(after) == list(before)
        assert all(after[name] is before[name] for name in before)
        assert all(torch.equal(after[name], bits[name]) for name in before)
        assert [type(module) for module in model.modules()] == types

    def test_unmasking_keeps_flags(self):
        for apply_masks in (False, True):
            model = network()
            mask_linears(model)
            model[0].eval()
            model[3].weight.requires_grad_(False)
            unmask_linears(model, apply_masks)
            assert [type(model[i]) for i in (0, 3)] == [nn.Linear, nn.Linear]
            assert (model[0].training, model[3].training) == (False, True)
            assert (model[0].weight.requires_grad, model[3].weight.requires_grad) == (True, False)
            assert (model[0].in_features, model[0].out_features) == (4, 6)

    def test_a_model_without_masks_raises(self):
        with pytest.raises(ValueError, match="Sequential has no masked layer"):
            unmask_linears(network())

    @pytest.mark.parametrize("method", PRUNING_METHODS)
    def test_applied_masks_give_the_same_logits(self, bert, method):
        torch.manual_seed(3)
        mask_linears(bert.bert.encoder, pruning_method=method, mask_init="uniform", mask_scale=4.0)
        set_threshold(bert, {"threshold": 0.1, "sigmoied_threshold": 0.55}.get(method, 0.4))
        bert.train()  # what counts is the evaluation form, whatever mode the model is in
        expected = logits_of(bert.eval())
        bert.train()
        assert len(unmask_linears(bert)) == 12
        assert masked_layers(bert) == {}
        assert torch.allclose(logits_of(bert.eval()), expected, atol=1e-6)
        zeros = sum(int((m.weight == 0).sum()) for m in bert.bert.encoder.modules() if isinstance(m, nn.Linear))
        assert zeros > 0

    def test_state_dict_names_are_the_dense_ones_plus_mask_scores(self, bert):
        dense = set(bert.state_dict())
        names = mask_linears(bert.bert.encoder)
        added = {f"bert.encoder.{name}.mask_scores" for name in names}
        assert set(bert.state_dict()) == dense | added
        assert "bert.encoder.layer.0.attention.self.query.mask_scores" in added
        unmask_linears(bert)
        assert set(bert.state_dict()) == dense


class TestThreshold:
    def test_every_layer_gets_it(self):
        model = network()
        mask_linears(model)
        set_threshold(model, 0.25)
        assert [layer.threshold for layer in masked_layers(model).values()] == [0.25] * 3

    def test_every_layer_gets_its_own_ties(self):
        model = network()
        mask_linears(model)
        set_threshold(model, 0.5, (0.7, [2, 0, 1]))
        assert [layer.global_threshold for layer in masked_layers(model).values()] == [(0.7, 2), (0.7, 0), (0.7, 1)]
        set_threshold(model, 0.5)
        assert [layer.global_threshold for layer in masked_layers(model).values()] == [None] * 3

    def test_a_dense_configuration_is_not_written_to(self, bert):
        mask_linears(bert.bert.encoder)
        set_threshold(bert, 0.25)
        assert not hasattr(bert.config, "threshold")
        assert isinstance(bert.bert.encoder.layer[0].output.dense, MaskedLinear)
