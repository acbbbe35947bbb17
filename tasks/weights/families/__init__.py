"""Every family of checkpoints that we can explain: one table a file, one line here."""

from collections.abc import Mapping

from tasks.errors import CheckpointError, did_you_mean
from tasks.weights.families.bert import BERT
from tasks.weights.families.distilbert import DISTILBERT
from tasks.weights.families.family import Family as Family
from tasks.weights.families.roberta import ROBERTA

FAMILIES: Mapping[str, Family] = {family.name: family for family in (BERT, DISTILBERT, ROBERTA)}


def find(model_type: str, *, family: str = "auto") -> Family:
    """The table for a config's `model_type`, or the one named by `family`.

    Raises CheckpointError for a name without a table.
    """
    name = model_type if family == "auto" else family
    if name not in FAMILIES:
        raise CheckpointError(
            f"no rule table for checkpoints of type {name!r}; {did_you_mean(name, FAMILIES)}"
        )
    return FAMILIES[name]
