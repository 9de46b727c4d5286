"""What a base is made with: backbone, tokenizer, training; from code or from what a command was given."""

from dataclasses import dataclass, field, replace

from service.errors import InvalidRequest
from trainer.language_base import LanguageRecipe, TrainMode
from trainer.tiny import TinyConfig
from trainer.tokenizer.fit import Quantiser, TextEncoderKind, TokenizerConfig

TINY = "tiny"
HEAD_SIZE = 32


@dataclass(frozen=True, slots=True)
class BaseRecipe:
    """Everything that decides a base but the data. language: the language model that is taken instead of a tiny one,
    with settings of its own; those from `epochs` on are the tiny one's."""

    tiny: TinyConfig = field(default_factory=TinyConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    language: LanguageRecipe | None = None
    epochs: int = 12
    batch_size: int = 16
    weight_decay: float = 0.05
    piece: int = 20
    evaluate_every: int = 2
    patience: int = 3

    def __post_init__(self) -> None:
        """Raises InvalidRequest for texts that the backbone is to encode and cannot, now or later."""
        if self.tokenizer.text_encoder is not TextEncoderKind.BACKBONE:
            return
        if self.language is None or self.language.train is not TrainMode.LORA:
            raise InvalidRequest(
                "the text encoder `backbone` is the language model as it comes: it needs --backbone smollm2, a folder "
                "or a Hugging Face id, and --train lora, which leaves that model as it is for items that come later"
            )


def make_recipe(
    backbone: str,
    *,
    hidden: int,
    layers: int,
    epochs: int,
    quantiser: str,
    text_encoder: str,
    train: str = TrainMode.LORA,
    learning_rate: float | None = None,
) -> BaseRecipe:
    """From what a command was given; epochs: 0 for the backbone's own. Raises InvalidRequest naming what there is."""
    if hidden % HEAD_SIZE:
        raise InvalidRequest(f"--hidden must be a multiple of {HEAD_SIZE}, the size of one attention head")
    if train not in tuple(TrainMode):
        raise InvalidRequest(f"--train {train!r} is not known; choose one of {', '.join(TrainMode)}")
    try:
        tokenizer = TokenizerConfig(quantiser=Quantiser(quantiser), text_encoder=TextEncoderKind(text_encoder))
    except ValueError as error:
        raise InvalidRequest(f"{error}; quantisers: rqvae, rqkmeans; text encoders: tfidf, minilm, backbone") from error
    if backbone == TINY:
        recipe = BaseRecipe(TinyConfig(hidden, layers, hidden // HEAD_SIZE), tokenizer=tokenizer)
        return replace(recipe, epochs=epochs or recipe.epochs)
    language = LanguageRecipe(backbone, TrainMode(train), learning_rate=learning_rate)
    return BaseRecipe(language=replace(language, epochs=epochs or language.epochs), tokenizer=tokenizer)
