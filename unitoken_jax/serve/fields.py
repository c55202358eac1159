"""Fields of a request: one table says how each is read, what it may be, and what OpenAPI tells of it."""

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unitoken_jax.sequence.errors import legible


class ApiError(Exception):
    """An answer that is an error in OpenAI's form.

    `status`: HTTP's; `param`: the field that is at fault; `code`: the error's name for programs;
    `retry_after`: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """What is sent: {"error": {"message", "type", "param", "code"}}."""
        kind = _KINDS.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        message = legible(str(self))
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """The error of a field whose value cannot be used; the message begins with its name."""
    return ApiError(400, f"{param} {message}", param=param, code=code)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field: `read` makes of its JSON value what it means, or raises ValueError("is ...; expected ...");
    `schema` is its JSON schema; an absent or null one is `default`. In a multipart form, `plain` text is
    taken as it is, and other values are read as JSON."""

    read: Callable[[Any], Any]
    schema: Mapping[str, Any]
    default: Any = None
    required: bool = False
    plain: bool = False


def shown(value: Any) -> str:
    """`value` for a message, of any size."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."


def whole(low: int, high: int, default: int | None = None, about: str = "") -> Field:
    """A whole number from `low` to `high`."""

    def read(value: Any) -> int:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value != value // 1 or not low <= value <= high:  # 1.0 is whole in JSON too
            raise ValueError(f"is {shown(value)}; expected a whole number from {low} to {high}")
        return int(value)

    schema = {"type": "integer", "minimum": low, "maximum": high, "description": about}
    return Field(read, schema, default)


def real(low: float, high: float, default: float | None = None, about: str = "") -> Field:
    """A number from `low` to `high`."""

    def read(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
            raise ValueError(f"is {shown(value)}; expected a number from {low:g} to {high:g}")
        return float(value)

    schema = {"type": "number", "minimum": low, "maximum": high, "description": about}
    return Field(read, schema, default)


def flag(about: str = "") -> Field:
    """True or false; false where it is absent."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"is {shown(value)}; expected true or false")
        return value

    return Field(read, {"type": "boolean", "description": about}, False)


def text(longest: int, required: bool = False, about: str = "") -> Field:
    """Text of one to `longest` characters."""

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"is {shown(value)}; expected text")
        if not 0 < len(value) <= longest:
            raise ValueError(f"has {len(value)} characters; expected 1 to {longest}")
        return value

    schema = {"type": "string", "minLength": 1, "maxLength": longest, "description": about}
    return Field(read, schema, None, required, plain=True)


def choice(values: Sequence[str], default: str | None = None, about: str = "") -> Field:
    """One of `values`."""

    def read(value: Any) -> str:
        if value not in values:
            raise ValueError(f"is {shown(value)}; expected {' or '.join(values)}")
        return value

    return Field(read, {"type": "string", "enum": list(values), "description": about}, default, plain=True)


def only(value: Any) -> Field:
    """A field of OpenAI's whose effect this server does not have: `value`, which means no effect, may be
    sent, as some clients always do."""

    def read(given: Any) -> Any:
        if given != value or isinstance(given, bool) != isinstance(value, bool):
            raise ValueError(f"is {shown(given)}; this server supports {shown(value)} alone")
        return given

    about = "Not supported: it may be sent only with the value that changes nothing."
    return Field(read, {"enum": [value], "description": about}, value)


def read_fields(
    fields: Mapping[str, Field], values: Mapping[str, Any], prefix: str = "", form: bool = False
) -> dict[str, Any]:
    """The value of each of `fields`, out of `values`; `prefix` ("messages[0].") stands before names in
    errors, and `form` says that `values` come from a multipart form, as text.

    Raises ApiError naming a field that is unknown, absent or cannot be used.
    """
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"supported are {', '.join(fields)}"
            raise ApiError(
                400,
                f"field {prefix}{name:.40} is unknown or not supported here; {hint}",
                param=legible(prefix + name),
                code="unsupported_field",
            )
    read = {}
    for name, field in fields.items():
        value = values.get(name)
        if value is None:
            if field.required:
                raise ApiError(400, f"{prefix}{name} is missing", param=prefix + name, code="missing_field")
            read[name] = field.default
            continue
        try:
            read[name] = field.read(_of_form(value) if form and not field.plain else value)
        except ValueError as error:
            raise invalid(prefix + name, str(error)) from error
    return read


def _of_form(value: str) -> Any:
    """What the text of a form's field says, as JSON; the text itself where it is none."""
    try:
        return read_json(value)
    except ValueError:
        return value


def read_json(document: str | bytes) -> Any:
    """JSON as its standard has it: NaN and infinities are none. Raises ValueError, for depth too."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(document, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def schema_of(fields: Mapping[str, Field]) -> dict[str, Any]:
    """The JSON schema of an object with `fields` and no others."""
    properties = {}
    for name, field in fields.items():
        schema = {key: value for key, value in field.schema.items() if value != ""}
        if field.default not in (None, ()):
            schema["default"] = field.default
        if not field.required:
            schema = {"anyOf": [schema, {"type": "null"}]}
        properties[name] = schema
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, field in fields.items() if field.required],
        "additionalProperties": False,
    }
