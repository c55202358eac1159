"""The OpenAPI document: from the tables of fields that requests are read with."""

from typing import Any

import unitoken_jax
from unitoken_jax.serve.fields import schema_of
from unitoken_jax.serve.protocol import ModelInfo, chat_fields, edit_fields, generation_fields

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_REFUSALS = {
    "400": "A field is unknown, not supported, or cannot be used: `param` names it",
    "401": "The key is missing or wrong",
    "403": "The request comes from a page of another site",
    "404": "There is no such model",
    "408": "The body came too slowly",
    "413": "The body is too large",
    "415": "The body is of another content type",
    "429": "The queue is full: try again after Retry-After seconds",
    "500": "The server failed",
    "503": "Not ready yet, or stopping",
    "504": "It took longer than a request may",
}
_USAGE = {"type": "object", "additionalProperties": {"type": "integer"}}
_COMPLETION = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": _USAGE,
    },
    "required": ["id", "object", "created", "model", "choices", "usage"],
}
_IMAGES = {
    "type": "object",
    "properties": {
        "created": {"type": "integer"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"b64_json": {"type": "string"}, "url": {"type": "string"}},
            },
        },
        "usage": _USAGE,
    },
    "required": ["created", "data"],
}
_MODEL = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}


def openapi_document(info: ModelInfo) -> dict[str, Any]:
    """What this server takes and answers, as OpenAPI 3.1."""
    edit = schema_of(edit_fields(info))
    file = {"type": "string", "format": "binary"}
    edit["anyOf"] = [{"required": ["image"]}, {"required": ["image[]"]}]
    edit["properties"]["image"] = file
    edit["properties"]["image[]"] = {"type": "array", "items": file}
    chat, images = _content(_COMPLETION, stream=True), _content(_IMAGES, stream=True)
    listed = {"type": "object", "properties": {"data": {"type": "array", "items": _MODEL}}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "UniToken",
            "version": unitoken_jax.__version__,
            "description": "Answers and images of one model, in OpenAI's form.",
        },
        "paths": {
            "/v1/chat/completions": {
                "post": _post("Answer a conversation", "application/json", schema_of(chat_fields(info)), chat)
            },
            "/v1/images/generations": {
                "post": _post("Draw images", "application/json", schema_of(generation_fields(info)), images)
            },
            "/v1/images/edits": {"post": _post("Change an image", "multipart/form-data", edit, images)},
            "/v1/models": {"get": _get("The model", _content(listed))},
            "/v1/models/{name}": {
                "get": _get("The model, by its name", _content(_MODEL)) | {"parameters": [name]}
            },
            "/health": {"get": _get("Whether requests are taken", _content({"type": "object"}), key=False)},
            "/metrics": {"get": _get("Prometheus' metrics", {"text/plain": {"schema": {"type": "string"}}})},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR},
        },
    }


def _content(schema: dict[str, Any], stream: bool = False) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return content | ({"text/event-stream": {"schema": {"type": "string"}}} if stream else {})


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {status: {"description": about, "content": error} for status, about in _REFUSALS.items()}
    return {"200": {"description": "Done", "content": content}} | refusals


def _post(summary: str, kind: str, schema: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    body = {"required": True, "content": {kind: {"schema": schema}}}
    return _get(summary, content) | {"requestBody": body}


def _get(summary: str, content: dict[str, Any], key: bool = True) -> dict[str, Any]:
    return {"summary": summary, "responses": _responses(content)} | (
        {"security": [{"key": []}, {}]} if key else {}
    )
