"""Options that several commands share."""

from typing import Annotated

import typer

from service.errors import InvalidRequest

BackboneName = Annotated[
    str,
    typer.Option(
        "--backbone", help="tiny (a small Llama trained from scratch), smollm2, a folder with a causal LM, or a HF id."
    ),
]
Train = Annotated[str, typer.Option(help="Of a language model on D_1: lora (and semantic-ID rows) or full.")]
LearningRate = Annotated[
    float | None, typer.Option(help="Of a language model on D_1; without it 1e-3, or 3e-4 with --train full.")
]
TextEncoderName = Annotated[
    str, typer.Option(help="tfidf, minilm (extra minilm), or backbone: the language model itself, with --train lora.")
]


def whole_numbers(text: str, option: str) -> list[int]:
    """Numbers above 0 that a command was given separated by commas. Raises InvalidRequest naming the option."""
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise InvalidRequest(f"{option} takes whole numbers above 0 separated by commas, not {text!r}")
    return [int(part) for part in text.split(",")]
