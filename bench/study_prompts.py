"""The prompts of the study's grids, by what they are judged for.

Not a command: `study.py` draws them, `study_jury.py` judges them.
"""

from nouns import UNSEEN_PLACES

# Judged for likeness to the subject, and for their place where they name one.
OF_SUBJECT = ("a {subject}", *(f"a {{subject}} {place}" for place in UNSEEN_PLACES))
OF_CLASS = ("{class_prompt}", "{class_prompt} in the desert", "{class_prompt} at night")
# Judged for the word beside the subject: the beginning of a prompt -> as `Wording` takes the word.
APPLICATIONS = {
    "a gold": {"surface": "gold"},
    "a wooden": {"surface": "wooden"},
    "a pencil drawing of a": {"style": "pencil"},
    "an oil painting of a": {"style": "oil"},
}
OTHER_NOUNS = ("a fox", "a panda", "a clock")  # no class of a subject; compared with themselves
PROMPTS = (
    *OF_SUBJECT,
    *(f"{beginning} {{subject}}" for beginning in APPLICATIONS),
    *OF_CLASS,
    *OTHER_NOUNS,
)
NOUNLESS = tuple(prompt.replace("{subject}", "{identifier}") for prompt in PROMPTS)


def application(prompt: str, identifier: str) -> str | None:
    """The key in `APPLICATIONS` of a prompt that was drawn; None where it has no such word."""
    return next((key for key in APPLICATIONS if prompt.startswith(f"{key} {identifier}")), None)
