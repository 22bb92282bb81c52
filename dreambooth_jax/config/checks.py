"""Checks of a configuration: all problems in one message, each with what to write instead."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dreambooth_jax.config import photos, sampling, templates, weighted
from dreambooth_jax.config.base import CHOICES, RANGES, STAGE_KEYS, base_config, flatten
from dreambooth_jax.config.plan import is_resolution
from dreambooth_jax.config.problems import Problem, raise_all, shown, suggest
from dreambooth_jax.config.problems import default as _default
from dreambooth_jax.config.problems import write as _write
from dreambooth_jax.data.images import LARGEST
from dreambooth_jax.data.subject_table import folder_of

_LEAST_PRODIGY = 0.1  # of its learning rate, which is a factor there


def validate(config: ConfigDict) -> None:
    """Check keys, types, ranges, choices and combinations of a configuration.

    Raises:
      ConfigError: the message lists all problems, each with what to write instead.
    """
    raise_all(check(flatten(config)))


def check(flat: Mapping[str, Any]) -> list[Problem]:
    """The problems of settings by dotted key.

    What is wrong by itself counts as the default in later checks, so that one mistake is told once.
    """
    base = base_config()
    defaults = flatten(base)
    sound = defaults | {key: value for key, value in flat.items() if key in defaults}
    problems = [*_wrong_keys(flat, defaults)]
    for step in (_wrong_types(sound, base), _wrong_ranges(sound), _wrong_values(sound)):
        found = [*step]
        problems += found
        sound |= {problem.key: defaults[problem.key] for problem in found}
    for problem in _wrong_together(sound):
        if problem not in problems:  # both stages can stumble over the same key
            problems.append(problem)
    return problems


def _wrong_keys(flat: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    groups = {key.partition(".")[0] for key in defaults}
    for key, value in flat.items():
        if key not in defaults:
            hint = suggest(key, groups | defaults.keys()) or "Remove it."
            if key in groups:
                hint = f"{key!r} is a group of settings: write them by name, or remove it."
            yield Problem(key, value, "a known key", hint)
    for key, value in defaults.items():
        if key not in flat:
            yield Problem(key, None, "a value", _write(key, value))


def _wrong_types(c: Mapping[str, Any], base: ConfigDict) -> Iterator[Problem]:
    for key, default in flatten(base).items():
        group, _, leaf = key.rpartition(".")
        wanted = (base[group] if group else base).get_type(leaf)
        whole = wanted is float and type(c[key]) is int
        unset = (c[key] is None and default is None) or wanted is object
        if type(c[key]) is not wanted and not whole and not unset:
            kind = {tuple: "a tuple", int: "a whole number", float: "a number", str: "text"}
            meant = _default(key)
            if wanted is tuple and type(c[key]) is str and c[key].strip():
                words = c[key].replace(",", " ").split() if key in CHOICES else [c[key]]
                meant = _write(key, tuple(words))
            yield Problem(key, c[key], kind.get(wanted, "True or False"), meant)
        elif _is_huge(c[key]):
            yield Problem(key, c[key], "numbers of at most 18 digits", _default(key))


def _is_huge(value: Any) -> bool:
    """Returns True for a whole number, or a tuple with one, that no file or array has room for."""
    if isinstance(value, tuple | list):
        return any(map(_is_huge, value))
    return type(value) is int and value.bit_length() > 63


def _wrong_ranges(c: Mapping[str, Any]) -> Iterator[Problem]:
    for interval, keys in RANGES.items():
        low, high = map(float, interval[1:-1].split(","))
        for key in keys:
            value = c[key]
            if value is None:
                continue
            above = value >= low if interval[0] == "[" else value > low
            below = value <= high if interval[-1] == "]" else value < high
            if not (above and below):  # also when it is not a number at all
                yield Problem(key, value, f"a number in {interval}", _default(key))


def _wrong_values(c: Mapping[str, Any]) -> Iterator[Problem]:
    for key, known in CHOICES.items():
        if isinstance(c[key], str) and c[key] not in known:
            hint = suggest(c[key], known) or _default(key)
            if (key, c[key]) == ("dtype", "float16"):
                hint = "float16 would need loss scaling. Write --config.dtype=bfloat16."
            yield Problem(key, c[key], f"one of {', '.join(map(repr, known))}", hint)

    for key, value in c.items():
        if key not in templates.KEYS and templates.unwritable(value):
            yield Problem(key, value, templates.held(), _default(key))
    for key in ("base_model", "subject.images"):
        if not c[key].strip():
            yield Problem(key, c[key], "'embedded', a folder, gs://… or a hub id", _default(key))
    if not is_resolution(c["resolution"]):
        expected = f"the pixels along a side, or height and width, at most {LARGEST}"
        instead = "Write --config.resolution=512, or --config.resolution=768,512."
        yield Problem("resolution", c["resolution"], expected, instead)
    yield from photos.wrong_crop(c["subject.crop"])
    if c["mesh.data"] < 1 and c["mesh.data"] != -1:
        yield Problem(
            "mesh.data", c["mesh.data"], "1 or more, or -1 for all", _default("mesh.data")
        )

    stages = c["stages"]
    if stages not in (("base", "upscaler"), ("base",), ("upscaler",)):
        words = " ".join(map(str, stages)).replace(",", " ").split()
        near = " ".join(suggest(word, CHOICES["stages"]) for word in words)
        order = tuple(known for known in CHOICES["stages"] if known in words + near.split("'"))
        expected = "'base', 'upscaler' or both, in this order"
        yield Problem("stages", stages, expected, _write("stages", order or ("base",)))

    key, programs = "precompile.programs", c["precompile.programs"]
    if not programs or any(name not in CHOICES[key] for name in programs):
        expected = f"one or more of {', '.join(map(repr, CHOICES[key]))}"
        yield Problem(key, programs, expected, _default(key))

    try:
        re.compile(c["adapt.targets"])
    except re.error as error:
        expected = f"a regular expression; this is none, {error}"
        yield Problem("adapt.targets", c["adapt.targets"], expected, _default("adapt.targets"))

    tables: dict[str, Sequence[Any]] = {"adapt.train": (True, False)}
    tables["sharding.rules"] = CHOICES["sharding.rules"]
    for key, values in tables.items():
        # The family's own rules, where there are none.
        reason = _wrong_rules(c[key], values) if c[key] or key == "adapt.train" else ""
        if reason:
            yield Problem(key, c[key], f"pairs (regex, value): {reason}", _default(key))

    yield from _wrong_names(c)
    for key in templates.KEYS:
        if not c[key] and key in ("sample.prompts", "edit.prompts"):
            yield Problem(key, c[key], "at least one prompt", _write(key, ("a {subject}",)))
        yield from templates.wrong(key, (c[key],) if isinstance(c[key], str) else c[key])
    for key in ("evaluate.encoders", "benchmark.subjects", "log.to"):
        yield from _wrong_items(key, c[key])


def _wrong_rules(rules: Sequence[Any], values: Sequence[Any]) -> str:
    """Returns the problem of a table of (regex, value), "" without one."""
    for rule in rules:
        if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str)):
            return f"{shown(rule)} is no such pair"
        try:
            re.compile(rule[0])
        except re.error as error:
            return f"{shown(rule[0])} is no regular expression, {error}"
        if type(rule[1]) is not type(values[0]) or rule[1] not in values:
            return f"{shown(rule[1])} is not one of {', '.join(map(repr, values))}"
    return "" if rules and rules[-1][0] == ".*" else "the last regex must be '.*'"


def _wrong_names(c: Mapping[str, Any]) -> Iterator[Problem]:
    key, noun = "subject.class_noun", c["subject.class_noun"]
    for expected, instead in _wrong_noun(noun):
        yield Problem(key, noun, expected, _write(key, instead))
    key, identifier = "subject.identifier", c["subject.identifier"]
    for expected in _wrong_identifier(identifier, noun):
        yield Problem(key, identifier, expected, _default(key))

    key, taken, nouns = "subject.others", [identifier.lower()], [noun]
    for other in c[key]:
        example = _write(key, (("photos/cat", "cat", "auto"),))
        if not (isinstance(other, tuple) and len(other) == 3 and all(map(_is_text, other))):
            expected = f"triples (images, class_noun, identifier); {shown(other)} is none"
            yield Problem(key, c[key], expected, example)
            continue
        _, noun, identifier = other
        for expected, instead in _wrong_noun(noun):
            yield Problem(key, noun, expected, f"Write {instead!r} in its place.")
        for expected in _wrong_identifier(identifier, noun):
            yield Problem(key, identifier, expected, "Write 'auto' in its place.")
        if identifier != "auto" and identifier.lower() in taken:
            expected = "another word for each subject"
            yield Problem(key, identifier, expected, "Write 'auto' in its place.")
        taken.append(identifier.lower())
        near = [x for x in nouns if x != noun and folder_of(x) == folder_of(noun)]
        if near:
            expected = (
                f"{near[0]!r}, or a noun of its own: class images lie in a folder of its name"
            )
            yield Problem(key, noun, expected, f"Write {near[0]!r} in its place.")
        nouns.append(noun)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _wrong_noun(noun: str) -> Iterator[tuple[str, str]]:
    """Yields the expected form of a class noun, and what to write instead."""
    article = re.match(r"(an?|the)\s+(?=\S)", noun, re.IGNORECASE)
    if article:
        yield "a noun without article", noun[article.end() :]
    elif not re.fullmatch(r"[^\W_]([\w' -]*[^\W_])?", noun):
        yield "a noun, such as 'dog' or 'teddy bear'", "toy"


def _wrong_identifier(identifier: str, noun: str) -> Iterator[str]:
    """Yields the expected form of an identifier."""
    if not re.fullmatch(r"[^\W_]+|<[\w-]+>", identifier):
        yield "'auto' or one word of letters and digits"
    elif identifier != "auto" and noun and noun.lower() in identifier.lower():
        yield f"a word without the noun {noun!r} in it"


def _wrong_items(key: str, names: Sequence[Any]) -> Iterator[Problem]:
    known = CHOICES[key]
    for name in names:
        if name not in known:
            hint = suggest(str(name), known) or f"Write {known[0]!r}."
            yield Problem(key, name, f"of {', '.join(map(repr, known))}", hint)


def _wrong_together(c: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields problems of settings that are sound one by one."""
    steps = (_wrong_prior, _wrong_methods, _wrong_modes, _wrong_steps)
    for step in (*steps, sampling.wrong, weighted.wrong, photos.wrong_shapes):
        yield from step(c)


def _wrong_prior(c: Mapping[str, Any]) -> Iterator[Problem]:
    drawn = c["prior_loss_weight"] > 0 and c["prior.kind"] == "images"
    if drawn and c["prior.num_images"] == 0:
        expected = f"class images, because prior_loss_weight is {c['prior_loss_weight']}"
        instead = "Write --config.prior.num_images=64, or --config.prior_loss_weight=0."
        yield Problem("prior.num_images", 0, expected, instead)
    if c["prior.images"] and not drawn:
        why = (
            "prior_loss_weight is 0" if not c["prior_loss_weight"] else "prior.kind is 'prediction'"
        )
        expected = f"none, because {why} and no class images are used"
        yield Problem(
            "prior.images", c["prior.images"], expected, 'Write --config.prior.images="".'
        )
    if c["prior.images"] and c["prior.folder"]:
        expected = "none with prior.images: it is where drawn ones are kept"
        yield Problem(
            "prior.folder", c["prior.folder"], expected, 'Write --config.prior.folder="".'
        )
    if "upscaler" in c["stages"] and not c["upscaler_model"].strip():
        expected = "a model, because stages has 'upscaler'"
        instead = f"{_default('upscaler_model')} Or: {_write('stages', ('base',))}"
        yield Problem("upscaler_model", c["upscaler_model"], expected, instead)


def _wrong_modes(c: Mapping[str, Any]) -> Iterator[Problem]:
    if c["identify.num_images"] and c["identify.tokenizer"]:
        expected = "0 with identify.tokenizer: candidates are drawn by the base model, in its words"
        hint = f"{_write('identify.num_images', 0)} Or: {_default('identify.tokenizer')}"
        yield Problem("identify.num_images", c["identify.num_images"], expected, hint)
    if c["evaluate.untouched"] and not c["evaluate.generated"]:
        expected = "'' without evaluate.generated: a run draws its own"
        instead = "Write --config.evaluate.generated=FOLDER as well, or leave it out."
        yield Problem("evaluate.untouched", c["evaluate.untouched"], expected, instead)


def _wrong_methods(c: Mapping[str, Any]) -> Iterator[Problem]:
    if c["adapt.name"] == "textual_inversion" and c["train.text_encoder"]:
        expected = "False with adapt.name 'textual_inversion', which trains embeddings alone"
        yield Problem("train.text_encoder", True, expected, _write("train.text_encoder", False))
    lora = "lora" in (c["adapt.name"], c["adapt.then"] if c["adapt.name"] == "pivotal" else "")
    for key, nothing, made in (
        ("adapt.lora_file", "", lora and "base" in c["stages"]),
        ("adapt.dora", False, lora),
        ("adapt.alpha", None, lora),
    ):
        if c[key] != nothing and not made:
            stage = " of the base stage" if key == "adapt.lora_file" else ""
            other = "False" if nothing is False else "none"
            expected = f"{other}, because no LoRA{stage} is trained"
            hint = f"{_write('adapt.name', 'lora')} Or: {_default(key)}"
            yield Problem(key, c[key], expected, hint)
    rules = c["sharding.rules"]
    if c["mesh.tensor"] > 1 and rules and {how for _, how in rules} <= {"fsdp", "replicate"}:
        expected = "1, because sharding.rules have neither 'columns' nor 'rows': no layer is split"
        hint = f"{_write('mesh.tensor', 1)} Or leave sharding.rules out."
        yield Problem("mesh.tensor", c["mesh.tensor"], expected, hint)
    if c["optim.name"] == "prodigy":
        for key in ("optim.learning_rate", "upscaler.learning_rate"):
            if c[key] is not None and c[key] < _LEAST_PRODIGY:
                expected = (
                    "about 1.0 with optim.name 'prodigy', which multiplies its own rate by it"
                )
                yield Problem(key, c[key], expected, _write(key, 1.0))
    if c["optim.name"] == "schedule_free_adamw":
        told = "with optim.name 'schedule_free_adamw', which averages by itself"
        for key, value in (
            ("optim.schedule", "constant"),
            ("train.ema_decay", 0.0),
            ("optim.text_encoder_learning_rate", None),
            ("train.text_encoder_steps", None),
            ("adapt.name", "full" if c["adapt.name"] == "pivotal" else c["adapt.name"]),
        ):
            if c[key] != value:
                yield Problem(key, c[key], f"{value!r} {told}", _write(key, value))
        if c["optim.b1"] == 0:
            yield Problem("optim.b1", 0, f"more than 0 {told}", _default("optim.b1"))


def _wrong_steps(c: Mapping[str, Any]) -> Iterator[Problem]:
    first, last = c["loss.first_step"], c["loss.last_step"]
    if first > last:
        instead = f"{_default('loss.first_step')} Or: {_default('loss.last_step')}"
        yield Problem("loss.first_step", first, f"at most loss.last_step = {last}", instead)

    if c["train.text_encoder_steps"] is not None and not c["train.text_encoder"]:
        key, expected = "train.text_encoder_steps", "None, because train.text_encoder is False"
        instead = f"{_write(key, None)} Or: {_write('train.text_encoder', True)}"
        yield Problem(key, c[key], expected, instead)

    for stage in c["stages"]:
        own = {first: key for key, first in STAGE_KEYS.items() if c[key] is not None}
        if stage == "base":
            own = {}
        batch, parts, steps = (
            own.get(key, key) for key in ("train.batch_size", "train.accumulate", "train.num_steps")
        )
        if c["prior_loss_weight"] > 0 and c[batch] == 1:
            expected = "2 or more: a row for the subject and one for its class"
            instead = f"{_write(batch, 2)} Or, without class rows: {_write('prior_loss_weight', 0)}"
            yield Problem(batch, 1, expected, instead)
        if c[batch] % c[parts]:
            whole = math.ceil(c[batch] / c[parts]) * c[parts]
            expected = f"a multiple of {parts} = {c[parts]}"
            yield Problem(batch, c[batch], expected, _write(batch, whole))
        yield from _wrong_phases(c, steps)


def _wrong_phases(c: Mapping[str, Any], steps: str) -> Iterator[Problem]:
    """Yields problems of one stage's phases; `steps` is the key of its number of steps."""
    total, first, inversion = c[steps], 0, "adapt.inversion_steps"
    shortest, of = total, f"{steps} = {total}"
    if c["adapt.name"] == "pivotal":
        first = c[inversion] or total // 2
        if not 0 < first < total:
            expected = f"less than {steps} = {total}, which are those of both phases"
            yield Problem(inversion, c[inversion], expected, _write(steps, 2 * max(first, 1)))
            return
        if min(first, total - first) < shortest:
            shortest, of = (
                min(first, total - first),
                f"the {min(first, total - first)} steps of a phase",
            )
    text = "train.text_encoder_steps"
    if c[text] is not None:
        stop = min(c[text], total)
        if stop <= first:
            expected = f"more than the {first} steps of inversion, in which the text encoder rests"
            yield Problem(text, c[text], expected, _write(text, (first + total) // 2))
        elif stop - first < shortest:
            shortest, of = stop - first, f"the {stop - first} steps of the text encoder"
    key = "optim.warmup_steps"
    if c[key] > shortest:
        yield Problem(key, c[key], f"at most {of}", _write(key, shortest // 10))
