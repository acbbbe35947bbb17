"""The form of the deployment `transfer`: the keys of params.yaml, filled from the file."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler

from tasks import params as parameters
from tasks.errors import ParamsError
from tasks.params import Params


class Filled:
    """Of a model's JSON schema the sections' defaults are those of the params.yaml in the current directory:
    what the form shows to who begins to fill it in. Who does not sends nothing."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        found = handler(schema)
        with suppress(FileNotFoundError, ParamsError):
            values = parameters.load(Path("params.yaml")).model_dump(mode="json")
            shown = handler.resolve_ref_schema(found)["properties"]
            for name, value in values.items():
                shown[name] = {**shown[name], "default": value}
        return found


Form = Annotated[Params, Filled()] | None
