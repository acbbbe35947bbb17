"""Where a mixture sends its tokens: forced to one expert, it is the model that this expert came from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from tasks.errors import ProofError
from tasks.weights import loading, place
from tasks.weights.parity import sequences
from tasks.weights.plan import Plan

ALIKE = 1e-5  # of the largest logit: an expert's sums are taken in another order than its model's


def recovered(models: Sequence[tuple[Plan, Mapping[str, Any]]], directory: Path) -> str:
    """Each expert of the mixture in `directory`, alone, computes what its model does.

    models: in the order of the experts, the plan that makes each and its config.
    Raises ProofError with the first expert that does not, and the largest difference of logits.
    """
    mixture, _ = loading.whole(directory)
    differences = [
        _difference(mixture, number, plan, config, directory) for number, (plan, config) in enumerate(models)
    ]
    told = f"each of {len(models)} alone computes what its model does"
    return f"{told}: max |difference| {max(differences):g} of logits"


def _difference(
    mixture: PreTrainedModel, expert: int, plan: Plan, config: Mapping[str, Any], directory: Path
) -> float:
    with TemporaryDirectory(dir=directory) as folder:  # on its disk, and gone with it if this is killed
        place.write(plan, Path(folder), config, metadata={}, durable=False)
        theirs = _logits(loading.whole(Path(folder))[0])
    with forced(mixture, expert):
        ours = _logits(mixture)
    difference, allowed = float((theirs - ours).abs().max()), ALIKE * float(theirs.abs().max())
    if not difference <= allowed:  # so written, NaN fails
        raise ProofError(
            f"expert {expert} alone does not compute what its model does: logits differ by up to "
            f"{difference:.3g}, more than {allowed:.3g}; look at the experts' order and at their rules"
        )
    return difference


def _logits(model: PreTrainedModel) -> Tensor:
    """(rows, tokens, vocabulary), of sequences that depend on the config alone."""
    with torch.no_grad():
        found: Tensor = model(**sequences(model.config)).logits
    return found


@contextmanager
def forced(model: PreTrainedModel, expert: int) -> Iterator[None]:
    """Every router sends every token to `expert`, and to no other."""

    def only(_: nn.Module, __: Any, chosen: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """logits (tokens, experts); weights and numbers of the chosen experts, each (tokens, chosen)."""
        logits, weights, numbers = chosen
        return logits, torch.ones_like(weights[:, :1]), torch.full_like(numbers[:, :1], expert)

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, MixtralTopKRouter):
                hooks.enter_context(module.register_forward_hook(only))
        yield
