"""evaluation's baseline k_shot: the converted decoder as the language model it came as, asked in words."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from transformers import AutoTokenizer

from tasks import architectures, environment
from tasks.artifacts import ConvertedCheckpoint
from tasks.evaluation import k_shot
from tasks.evaluation.asking import prompted
from tasks.evaluation.k_shot import Found, Rows
from tasks.evaluation.predictions import Probabilities
from tasks.model import floors
from tasks.params import EvaluationParams
from tasks.stages.upstream import Entered, Split


def demand(baselines: Collection[str], converted: ConvertedCheckpoint) -> None:
    """Before any work, where k_shot competes: raises ParamsError without lm-eval, CheckpointError for a model
    that does not write."""
    if k_shot.NAME not in baselines:
        return
    environment.demand("lm_eval", extra="prompting", wanted="evaluation.baselines: k_shot")
    directory = converted.path / "model"
    described = architectures.find(converted.architecture).config_class
    prompted.demand(described.from_pretrained(directory, local_files_only=True), str(directory))


@dataclass(frozen=True)
class Prompting:
    """What k_shot answers, made only when asked for."""

    settings: EvaluationParams
    entered: Entered
    splits: Mapping[str, Split]
    device: str

    @cached_property
    def found(self) -> Found:
        settings, seed = self.settings.prompting, self.settings.seed
        rows = {name: Rows(split.texts, split.rows.actual) for name, split in self.splits.items()}
        train, validation = rows["train"], k_shot.some(rows["validation"], settings.rows, seed)
        ways = k_shot.candidates(
            train.labels,
            templates=settings.templates,
            shots=settings.shots,
            draws=settings.draws,
            seed=seed,
        )
        labels = self.entered.encoded.labels
        return k_shot.answer(self._score(), train, validation, rows["test"].texts, labels, ways)

    def answers(self) -> Probabilities:
        return self.found.probabilities

    def _score(self) -> k_shot.Score:
        """The classifier is loaded anew: the contest puts another head on the one it has."""
        classifier = floors.load(self.entered.converted.path / "model", device=self.device)
        tokenizer = AutoTokenizer.from_pretrained(self.entered.trained.path / "model", local_files_only=True)
        return partial(prompted.score, prompted.language_model(classifier), tokenizer)
