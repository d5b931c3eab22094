"""What a study is asked for: methods with options, as a person writes them, and seeds."""

import hashlib
import re
from dataclasses import dataclass

import ml_collections

from jdcl_jax.config import default_config, split_words
from jdcl_jax.errors import UserError
from jdcl_jax.methods.registry import known_methods

_NAME = re.compile(r"[A-Za-z0-9_+]+")
_PAIR = re.compile(r"([A-Za-z0-9_.]+)\s*=\s*(.*)")
_PLAIN_PAIR = re.compile(r"[A-Za-z0-9_.]+=[A-Za-z0-9._+-]*")
_LONGEST = 100  # characters of a folder's name; file systems allow 255


@dataclass(frozen=True)
class Spec:
    """A method of a study with its options.

    Attributes:
      text: as it was written; its name in all tables.
      words: the same as words behind the colon of `--config=FILE:`.
    """

    text: str
    words: tuple[str, ...]

    @property
    def slug(self) -> str:
        """A name for files: letters, digits and . _ = + - only; different words never share one."""
        name, *pairs = [word.removeprefix("method.") for word in self.words]
        readable = re.sub(r"[^A-Za-z0-9._=+-]+", "-", "-".join([name, *pairs]))
        # Of such pairs each "=" ends a key without "-", so the name can be read back; any other gets a digest, set off
        # by what no such name holds.
        if len(readable) <= _LONGEST and all(map(_PLAIN_PAIR.fullmatch, pairs)):
            return readable
        return f"{readable[:_LONGEST]}=={hashlib.sha256(','.join(self.words).encode()).hexdigest()[:12]}"


def parse_specs(text: str) -> list[Spec]:
    """Reads "finetune,er(rehearsal_coefficient=0.1),gd(train.ema=0.995)".

    A key is one of the method's options, or a dotted key of the whole config if it begins with one of its sections.

    Raises:
      UserError: something else stands there, or the same spec twice.
    """
    if text.count("(") != text.count(")") or text.count("[") != text.count("]"):
        raise UserError(f"--methods={text} has an open bracket; write NAME or NAME(key=value,...)")
    specs = [_spec(part) for part in split_words(text)]
    if not specs:
        raise UserError("no methods; write --methods=finetune,gd or others of " + ", ".join(sorted(known_methods())))
    for index, spec in enumerate(specs):
        if spec.words in [other.words for other in specs[:index]]:
            raise UserError(f"--methods has {spec.text} twice; write it once")
    return specs


def _spec(text: str) -> Spec:
    name, bracket, rest = text.partition("(")
    if not _NAME.fullmatch(name) or (bracket and not rest.endswith(")")):
        raise UserError(f"'{text}' is no method of a study; write NAME or NAME(key=value,...)")
    sections = [key for key, value in default_config().items() if isinstance(value, ml_collections.ConfigDict)]
    words = [name]
    for pair in split_words(rest[:-1]):
        if (match := _PAIR.fullmatch(pair)) is None:
            raise UserError(f"'{pair}' in {text} is no option; write NAME(key=value,...)")
        key, value = match.groups()
        section, dot, _ = key.partition(".")
        words.append(f"{key}={value}" if dot and section in sections else f"method.{key}={value}")
    return Spec(text, tuple(words))


def parse_seeds(text: str) -> list[int]:
    """Reads "0,1,2".

    Raises:
      UserError: something that is no seed, or one twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UserError(f"--seeds={text} are no seeds; write whole numbers from 0 on, such as --seeds=0,1,2")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text} has a seed twice; write each once")
    return seeds
