"""What goes over the wire, and what a service behind it must do."""

from collections.abc import Hashable, Sequence
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import InputError

MOST_ROWS, MOST_CHARACTERS = 256, 20_000  # of a request, of a text
MOST_TOKENS = 64  # that a language model says behind one, as everywhere in regraft
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
SOURCE = (
    r"^models:/[\w .-]{1,200}(@[A-Za-z0-9_.-]{1,200}|/[0-9]{1,9})$"  # folders are named on the command line
)
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class NoAdapter(InputError):
    """Nothing is served under this name."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(Strict):
    """A text for an adapter, or without one for the base alone: a classifier's answers by an embedding, a
    language model goes on with the text."""

    text: Text
    text_pair: Annotated[Text | None, Field(description="where the adapter learned from pairs")] = None
    adapter: Annotated[str | None, Field(description="one of GET /adapters")] = None
    max_tokens: Annotated[
        int | None, Field(ge=1, le=MOST_TOKENS, description="that a language model says, at most")
    ] = None


class Request(Strict):
    rows: Annotated[list[Row], Field(min_length=1, max_length=MOST_ROWS)]


class Answer(BaseModel):
    """prediction: a label, the labels that hold, or a number; null where the adapter abstains; of a language
    model what follows the text."""

    adapter: str | None
    version: Annotated[str | None, Field(description="of the registered model")] = None
    prediction: str | list[str] | float | None = None
    probabilities: dict[str, float] | None = None
    embedding: Annotated[list[float] | None, Field(description="mean of the last hidden states")] = None
    ended: Annotated[bool | None, Field(description="whether what follows came to its end by itself")] = None


class Response(BaseModel):
    predictions: Annotated[list[Answer], Field(description="in the order of the rows")]


class Adapter(BaseModel):
    name: str
    source: str
    version: str | None
    kind: str
    labels: list[str]
    bytes: int
    resident: Annotated[bool, Field(description="in memory now; else read again when a row wants it")]


class Adapters(BaseModel):
    adapters: list[Adapter]


class Source(Strict):
    source: Annotated[
        str, Field(pattern=SOURCE, description="models:/NAME@ALIAS, which is followed, or models:/NAME/3")
    ]


class Health(BaseModel):
    status: str
    adapters: int


class Fault(BaseModel):
    detail: str


class Service(Protocol):
    """Who answers. Every method may be called by several threads at once."""

    def prepare(self, rows: Sequence[Row]) -> Sequence[Any]:
        """What `answer` takes of each row; until `release` its adapter stays. Raises NoAdapter for an unknown
        name, InputError for a row that its adapter cannot take."""

    def alike(self, prepared: Any) -> Hashable:
        """Equal for rows that go well into one batch."""

    def answer(self, prepared: Sequence[Any]) -> Sequence[Answer | Exception]:
        """Of each, whichever requests they came from; what cannot be answered does not hinder the others."""

    def release(self, prepared: Sequence[Any]) -> None: ...

    def adapters(self) -> Sequence[Adapter]: ...

    def load(self, name: str, source: str) -> Adapter:
        """Serve `source` under this name from now on, also where another had it. Raises RegraftError."""

    def unload(self, name: str) -> None:
        """Raises NoAdapter."""

    def refresh(self) -> Sequence[str | Exception]:
        """Follow the aliases that have moved; what was done, or could not be, of each."""
