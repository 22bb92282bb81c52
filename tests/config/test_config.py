"""The settings: names that scripts rely on, every key explained, every mistake with its remedy."""

import ast
import contextlib
import json
import re
import tokenize

import hypothesis.strategies as st
import pytest
from hypothesis import given
from wrong_settings import changed, problems

from dreambooth_jax import config

# The names that other people's scripts rely on, as they were announced.
PUBLIC = """
    subject.images subject.class_noun subject.identifier base_model upscaler_model stages
    prior.num_images prior_loss_weight train.num_steps train.batch_size train.checkpoint_every
    optim.name optim.learning_rate sampler.name sampler.num_steps sampler.guidance_scale
    mesh.data mesh.fsdp dtype seed
""".split()


def test_public_names_are_there():
    assert set(PUBLIC) <= config.flatten(config.base_config()).keys()


def test_defaults_are_those_of_the_paper():
    c = config.base_config()
    # Ruiz et al. 2022, section 4: about 1000 iterations, λ = 1, 1e-5 for Imagen.
    assert (c.train.num_steps, c.prior_loss_weight, c.optim.learning_rate) == (1000, 1.0, 1e-5)
    assert c.sampler.name == "ddpm"  # "using the ancestral sampler", section 3.3
    config.validate(c)


def test_every_key_has_a_comment(repository):
    """The comment is the manual: meaning, unit, choices."""
    explained = {}
    for path in sorted((repository / "dreambooth_jax" / "config").glob("base*.py")):
        with path.open("rb") as file:
            tokens = [*tokenize.tokenize(file.readline)]
        comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
        functions = [x for x in ast.parse(path.read_text()).body if isinstance(x, ast.FunctionDef)]
        for node in (node for function in functions for node in function.body):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                key = ast.unparse(node.targets[0]).removeprefix("c.")
                explained[key] = node.lineno in comments
    assert [key for key in config.flatten(config.base_config()) if not explained.get(key)] == []


def test_every_number_has_a_range():
    listed = [key for keys in config.RANGES.values() for key in keys]
    assert len(listed) == len(set(listed))
    flat = config.flatten(config.base_config())
    numbers = {key for key, value in flat.items() if type(value) in (int, float)}
    unset = {key for key, value in flat.items() if value is None}
    assert set(listed) == (numbers | unset) - {
        "mesh.data",  # -1 or more than 0: no interval
        "resolution",  # one number or two
    }


def test_tables_name_keys_that_exist():
    flat = config.flatten(config.base_config())
    assert config.CHOICES.keys() <= flat.keys()
    assert config.STAGE_KEYS.keys() | set(config.STAGE_KEYS.values()) <= flat.keys()
    for pattern in config.RESULT_FREE_KEYS:
        assert [key for key in flat if re.fullmatch(pattern.replace("*", ".*"), key)], pattern


def test_every_key_is_read_by_some_module(repository):
    """A setting that nothing reads promises what the program does not do."""
    package = repository / "dreambooth_jax"
    names = set()
    for path in package.rglob("*.py"):
        if path.parent.name != "config" or path.name == "derived.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    names.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names.add(node.value)
    keys = config.flatten(config.base_config()).keys() - config.STAGE_KEYS.keys()
    unread = {key for key in keys if not set(key.split(".")) <= names}
    assert sorted(unread) == []


def test_unknown_keys_cannot_be_set():
    with pytest.raises(AttributeError, match="num_stpes"):
        config.base_config().train.num_stpes = 3
    with pytest.raises(AttributeError, match="trian"):
        config.base_config().trian = 3


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("subject.imges", "Did you mean 'subject.images'?"),
        ("num_step", "Did you mean 'train.num_steps'?"),
        ("lerning_rate", "Did you mean 'optim.learning_rate'?"),
        ("dtyp", "Did you mean 'dtype'?"),
        ("zzzzzz", ""),
    ],
)
def test_suggestions(word, answer):
    found = config.suggest(word, config.flatten(config.base_config()))
    assert (answer.removesuffix("?") in found) if answer else (found == "")


def test_suggestion_of_a_bare_name_lists_every_group_that_has_it():
    found = config.suggest("batch_size", config.flatten(config.base_config()))
    assert all(f"'{group}.batch_size'" in found for group in ("train", "prior", "sample"))


# Each wrong setting, and what its one line must say: key, value found, remedy.
WRONG = [
    ({"seed": -1}, ["seed = -1", "[0, 2147483647]", "--config.seed=0"]),
    ({"seed": 1.5}, ["seed = 1.5", "a whole number", "--config.seed=0"]),
    ({"seed": True}, ["seed = True", "a whole number"]),
    ({"seed": None}, ["seed = None", "a whole number"]),
    ({"dtype": "float16"}, ["'float16'", "loss scaling", "--config.dtype=bfloat16"]),
    ({"dtype": "bfloat"}, ["'bfloat'", "Did you mean 'bfloat16'?"]),
    ({"base_model": " "}, ["base_model = ' '", "--config.base_model=embedded"]),
    ({"stages": ("upscaler", "base")}, ["in this order", "\"('base', 'upscaler')\""]),
    ({"stages": ("base", "base")}, ["stages", "\"('base',)\""]),
    ({"stages": ()}, ["stages = ()", "\"('base',)\""]),
    ({"stages": ("base,upscaler",)}, ["\"('base', 'upscaler')\""]),
    ({"stages": ("upscler",)}, ["'upscler'", "\"('upscaler',)\""]),
    ({"stages": "base"}, ["stages = 'base'", "a tuple"]),
    ({"upscaler_model": ""}, ["upscaler_model = ''", "--config.stages=\"('base',)\""]),
    ({"subject__images": ""}, ["subject.images = ''", "--config.subject.images=embedded"]),
    ({"subject__class_noun": ""}, ["subject.class_noun = ''", "a noun"]),
    ({"subject__class_noun": "a toy"}, ["without article", "--config.subject.class_noun=toy"]),
    ({"subject__class_noun": "{dog}"}, ["subject.class_noun = '{dog}'", "a noun"]),
    ({"subject__identifier": ""}, ["subject.identifier = ''", "identifier=auto"]),
    ({"subject__identifier": "z b"}, ["'z b'", "one word of letters and digits"]),
    ({"subject__identifier": "[V]"}, ["'[V]'", "one word of letters and digits"]),
    ({"subject__identifier": "Zbird"}, ["'Zbird'", "the noun 'bird'"]),
    ({"subject__crops": 0}, ["subject.crops = 0", "[1, 1000]"]),
    ({"prior__num_images": 0}, ["prior.num_images = 0", "--config.prior_loss_weight=0"]),
    ({"prior_loss_weight": -0.1}, ["prior_loss_weight = -0.1", "[0, inf)"]),
    ({"prior_loss_weight": float("nan")}, ["prior_loss_weight = nan", "[0, inf)"]),
    ({"prior_loss_weight": float("inf")}, ["prior_loss_weight = inf", "[0, inf)"]),
    ({"train__prior_fraction": 1.0}, ["train.prior_fraction = 1.0", "(0, 1)"]),
    ({"train__prior_fraction": 0.0}, ["train.prior_fraction = 0.0", "(0, 1)"]),
    ({"train__batch_size": 1}, ["train.batch_size = 1", "=2", "prior_loss_weight=0"]),
    ({"train__accumulate": 3}, ["train.batch_size = 4", "train.accumulate = 3", "=6"]),
    ({"upscaler__batch_size": 3, "train__accumulate": 2}, ["upscaler.batch_size = 3", "=4"]),
    ({"upscaler__accumulate": 8}, ["train.batch_size = 4", "upscaler.accumulate = 8", "=8"]),
    ({"optim__warmup_steps": 1001}, ["optim.warmup_steps = 1001", "train.num_steps = 1000"]),
    (
        {"optim__warmup_steps": 100, "upscaler__num_steps": 50},
        ["optim.warmup_steps = 100", "upscaler.num_steps = 50", "warmup_steps=5"],
    ),
    ({"train__ema_decay": 1.0}, ["train.ema_decay = 1.0", "[0, 1)"]),
    ({"optim__name": "adam"}, ["'adam'", "Did you mean 'adamw'?"]),
    ({"optim__learning_rate": 0.0}, ["optim.learning_rate = 0.0", "(0, inf)"]),
    ({"optim__schedule": "cosin"}, ["Did you mean 'cosine'?"]),
    ({"optim__final_fraction": 1.5}, ["optim.final_fraction = 1.5", "[0, 1]"]),
    ({"sampler__name": "dpmpp_2n"}, ["'dpmpp_2n'", "Did you mean 'dpmpp_2m'?"]),
    ({"sampler__name": "plms"}, ["'ddpm', 'ddim', 'euler'", "--config.sampler.name=ddpm"]),
    ({"sampler__spacing": "karas"}, ["Did you mean 'karras'?"]),
    (
        {"sampler__name": "dpmpp_2m_karras", "sampler__spacing": "trailing"},
        ["whose own spacing is 'karras'", "--config.sampler.spacing=model"],
    ),
    ({"sampler__guidance_rescale": 1.5}, ["sampler.guidance_rescale = 1.5", "[0, 1]"]),
    (
        {"sampler__guidance_interval": (0.8, 0.2)},
        ["two shares of the steps, rising", '--config.sampler.guidance_interval="(0.0, 1.0)"'],
    ),
    ({"sampler__threshold": "dinamic"}, ["Did you mean 'dynamic'?"]),
    ({"upscaler__aug_level": 1000}, ["upscaler.aug_level = 1000", "[0, 999]"]),
    ({"upscaler__num_steps": 0}, ["upscaler.num_steps = 0", "Leave it out."]),
    ({"sample__prompts": ()}, ["sample.prompts = ()", "at least one prompt"]),
    ({"sample__prompts": ("a {subjct}",)}, ["'a {subjct}'", "Did you mean 'subject'?"]),
    ({"sample__prompts": ("a {}",)}, ["'a {}'", "{subject}"]),
    ({"sample__prompts": ("a { dog",)}, ["'a { dog'", "{{ or }}"]),
    ({"sample__prompts": ("a [V] dog",)}, ["'a [V] dog'", "Write {subject}"]),
    ({"sample__prompts": (3,)}, ["sample.prompts = 3", "text"]),
    ({"mesh__data": 0}, ["mesh.data = 0", "-1"]),
    ({"mesh__data": -2}, ["mesh.data = -2", "-1"]),
    ({"mesh__tensor": 0}, ["mesh.tensor = 0", "--config.mesh.tensor=1"]),
    (
        {"mesh__tensor": 2, "sharding__rules": ((".*", "fsdp"),)},
        ["mesh.tensor = 2", "neither 'columns' nor 'rows'", "--config.mesh.tensor=1"],
    ),
    ({"sharding__rules": ((".*", "fdsp"),)}, ["'fdsp' is not one of", "'replicate'"]),
    ({"sharding__rules": (("unet/.*", "fsdp"),)}, ["the last regex must be '.*'"]),
    ({"adapt__train": ((".*", 1),)}, ["1 is not one of True, False"]),
    ({"adapt__train": (("(", True), (".*", False))}, ["'(' is no regular expression"]),
    ({"adapt__train": ("unet/.*", True)}, ["'unet/.*' is no such pair"]),
    ({"export__dtype": "fp16"}, ["'fp16'", "'float16'"]),
]


@pytest.mark.parametrize(("changes", "texts"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_setting_is_one_line_with_its_remedy(changes, texts):
    (line,) = problems(changed(**changes))
    assert [text for text in texts if text not in line] == []


def test_all_problems_are_told_at_once():
    c = changed(seed=-1, dtype="float61", optim__warmup_steps=2000, sampler__name="dpm")
    assert [line.split(" ")[0] for line in problems(c)] == [
        "seed",
        "dtype",
        "sampler.name",
        "optim.warmup_steps",
    ]


def test_keys_that_are_not_ours_or_gone_are_told():
    c = config.base_config().unlock()
    c.optm = 3
    del c.train.num_steps
    (extra, gone) = problems(c)
    assert "optm = 3" in extra
    assert "Did you mean 'optim'?" in extra
    assert "train.num_steps" in gone
    assert "--config.train.num_steps=1000" in gone


@pytest.mark.parametrize(
    "changes",
    [
        {"prior_loss_weight": 0.0, "prior__num_images": 0},
        {"stages": ("base",), "upscaler_model": ""},
        {"stages": ("base",), "upscaler__num_steps": 1, "optim__warmup_steps": 5},
        {"train__batch_size": 1, "prior_loss_weight": 0.0},
        {"subject__class_noun": "teddy bear"},
        {"subject__class_noun": "auto"},  # the identifier "auto" is no word of a prompt
        {"subject__identifier": "<zib-1>"},
        {"sample__prompts": ("{identifier} {{sic}} {class_noun}",)},
        {"optim__warmup_steps": 1000},
        {"optim__learning_rate": 1},
    ],
)
def test_what_is_allowed(changes):
    config.validate(changed(**changes))


def test_no_wrong_value_makes_the_checks_themselves_fail():
    """Whatever stands where: a ConfigError or nothing, never another exception."""
    junk = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.floats(),
        st.text(max_size=5),
        st.tuples(st.text(max_size=3)),
        st.tuples(st.tuples(st.text(max_size=3), st.booleans())),
        st.just({"a": 1}),
    )
    keys = sorted(config.flatten(config.base_config()))

    @given(st.dictionaries(st.sampled_from(keys), junk, min_size=1, max_size=4))
    def run(changes):
        flat = config.flatten(config.base_config()) | changes
        nested = {}
        for key, value in flat.items():
            group, _, leaf = key.rpartition(".")
            (nested.setdefault(group, {}) if group else nested)[leaf] = value
        with contextlib.suppress(config.ConfigError):
            config.validate(config.ConfigDict(nested, convert_dict=True))

    run()


def test_trainable_rules_put_the_text_encoder_first():
    c = changed(adapt__train=((".*", False),))
    parts = {"denoiser": "unet", "text": "text_encoder/.*"}
    assert config.trainable_rules(c, **parts) == ((".*", False),)
    c.train.text_encoder = True
    assert config.trainable_rules(c, **parts) == (("text_encoder/.*", True), (".*", False))
    c.adapt.train = (("{denoiser}/mid/.*", True),)
    assert config.trainable_rules(c, **parts)[1:] == (("unet/mid/.*", True),)


def test_json_round_trip_keeps_values_and_types():
    c = changed(
        stages=("base",),
        upscaler__num_steps=5,
        upscaler__learning_rate=1e-3,
        subject__class_noun="Bär",
    )
    text = config.to_json(c)
    assert json.loads(text)["subject"]["class_noun"] == "Bär"
    assert "Bär" in text
    again = config.from_json(text)
    before, after = config.flatten(c), config.flatten(again)
    assert after == before
    assert {k: type(v) for k, v in after.items()} == {k: type(v) for k, v in before.items()}
    assert again.is_locked


def test_json_of_an_older_version_gets_the_defaults_of_new_keys():
    again = config.from_json('{"seed": 5, "train": {"num_steps": 3}}')
    assert (again.seed, again.train.num_steps, again.train.max_to_keep) == (5, 3, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 5', "cannot be read as JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"sed": 5}', "Did you mean 'seed'?"),
        ('{"seed": "five"}', "seed = 'five'"),
        ('{"train": 3}', "train = 3: expected a known key. 'train' is a group of settings"),
    ],
)
def test_json_that_cannot_be(text, message):
    with pytest.raises(config.ConfigError) as caught:
        config.from_json(text)
    assert message in str(caught.value)


def test_resume_conflicts_name_what_changes_the_result():
    started = config.base_config()
    now = changed(
        log__to=("jsonl", "tensorboard"),
        train__max_to_keep=9,
        sample__num_images=7,
        compile__cache_dir="off",
        export__dtype="float32",
    )
    assert config.resume_conflicts(started, now) == []
    now.optim.learning_rate = 0.5
    now.seed = 3
    lines = config.resume_conflicts(started, now)
    assert len(lines) == 2
    assert any(line.startswith("optim.learning_rate: ") and "1e-05" in line for line in lines)
    assert any(line.startswith("seed: ") and "3" in line for line in lines)


def test_a_misspelt_set_of_prompts_gives_the_right_name():
    c = config.base_config()
    c.sample.prompts = ("acessories",)
    with pytest.raises(config.ConfigError, match=r"Write --config\.sample\.prompts=.*accessories"):
        config.validate(c)
    c.sample.prompts = ("accessories", "a {subject}", "portrait")
    config.validate(c)
