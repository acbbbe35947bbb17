"""A model as an ONNX graph: torch traces it, onnxruntime computes it, which needs neither torch nor us."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.errors import TrainingError
from tasks.model import routers

OUTPUT = "logits"
TRACED = (2, 3)  # rows and tokens; what is 1 in the example would be taken for always 1


class Traced(nn.Module):
    """What becomes the graph."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(rows, tokens) each -> logits (rows, labels), or (rows, tokens, labels)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits


def write(model: PreTrainedModel, target: Path, *, inputs: Sequence[str]) -> None:
    """As `target`, for any number of rows and tokens; weights beyond protobuf's 2 GB stand beside it.

    inputs: those of `Traced.forward` that rows have. Raises TrainingError for what torch cannot trace.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    given = {name: torch.ones(TRACED, dtype=torch.int64) for name in inputs}
    free = {name: {0: "rows", 1: "tokens"} for name in inputs}
    try:
        with _quiet(), _traceable(model):
            program = torch.onnx.export(
                Traced(model).eval(),
                kwargs=given,
                dynamic_shapes=free,
                output_names=[OUTPUT],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise TrainingError(f"torch cannot trace {type(model).__name__}: {error}") from None
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # the paths of the code that each node comes from
    program.save(target)


@contextmanager
def _traceable(model: PreTrainedModel) -> Iterator[None]:
    """Experts are computed by products of whole batches, for which there are operators."""
    usual = model.config._experts_implementation
    if routers.present(model):
        model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        if routers.present(model):
            model.set_experts_implementation(usual)


def asked(path: Path) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The graph in `path` as a function of its inputs, (rows, tokens) each; on as many threads as torch."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def answer(given: Mapping[str, Tensor]) -> Tensor:
        try:
            (found,) = session.run([OUTPUT], {name: given[name].numpy() for name in names})
        except (errors.Fail, errors.InvalidArgument, errors.NotImplemented, errors.RuntimeException) as error:
            shape = list(given[names[0]].shape)
            raise TrainingError(
                f"onnxruntime cannot compute {path.name} for a batch of {shape}: {error}"
            ) from None
        return torch.from_numpy(found)

    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of operations of other libraries, and of its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
