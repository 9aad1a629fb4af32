"""What a recorded result must hold: a JSON schema, and that its numbers are finite and in order."""

import json
from typing import Any

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy", "gensim")
# Not in the first results.
LATER_PACKAGES = ("qiskit", "qiskit-aer", "qiskit-ibm-runtime", "peft", "lm-eval", "sacremoses")
LATER_PACKAGES += ("scipy", "tensorly", "accelerate")

_NUMBER = {"type": ["number", "null"]}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "name",
        "question",
        "status",
        "config",
        "seeds",
        "model",
        "data",
        "versions",
        "git_commit",
        "device",
        "wall_time_s",
        "runs",
        "headline",
    ],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9_]+$"},
        "question": {"type": "string", "minLength": 20},
        "status": {"enum": ["partial", "complete"]},
        "config": {"type": "object", "minProperties": 1},
        "seeds": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        "model": {"type": "object", "required": ["name", "parameters", "dtype"]},
        "data": {"type": "object", "additionalProperties": {"type": "object", "required": ["source", "sha256"]}},
        "versions": {"type": "object", "required": ["python", *PACKAGES]},
        "git_commit": {"type": "string", "pattern": "^[0-9a-f]{40}(-dirty)?$"},
        "device": {"type": "string"},
        "wall_time_s": {"type": "number", "minimum": 0},
        "runs": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "object"}},
        "headline": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["value", "low", "high", "unit"],
                "properties": {
                    "value": {"type": "number"},
                    "low": _NUMBER,
                    "high": _NUMBER,
                    "unit": {"type": "string"},
                },
            },
        },
    },
}


def check(result: dict[str, Any]) -> None:
    """Raise ``jsonschema.ValidationError`` unless ``result`` follows the schema and is finite and ordered."""
    import jsonschema  # a second of its own; chapters only read

    jsonschema.validate(result, SCHEMA)
    try:
        json.dumps(result, allow_nan=False)
    except ValueError:
        raise jsonschema.ValidationError("a number is NaN or infinite") from None
    if result["status"] == "complete" and not result["headline"]:
        raise jsonschema.ValidationError("a complete result needs a headline")
    for name, number in result["headline"].items():
        low, value, high = number["low"], number["value"], number["high"]
        if (low is None) != (high is None) or (low is not None and not low <= value <= high):
            raise jsonschema.ValidationError(f"headline {name}: {value} is outside [{low}, {high}]")
