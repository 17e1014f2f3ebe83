"""Names of the tensors that exported models and engines give. It needs no other package."""

from __future__ import annotations

OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
