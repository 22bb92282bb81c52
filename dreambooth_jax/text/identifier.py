"""The rare-token identifier (Ruiz et al. 2022, §3.2): a word that the base model has no idea of.

Tokens are drawn uniformly from the rare part of the vocabulary, turned into text and back. What
does not come back the same, or means something, is drawn again.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from dreambooth_jax import rng
from dreambooth_jax.text.tokenizer import Tokenizer, normalize, survives_cleaning

AUTO = "auto"  # as a wanted identifier: find one
MAX_TOKENS = 3  # the paper's k
MAX_CHARACTERS = 3  # per token, without the word mark
T5_VOCABULARY, T5_RANGE = 32_100, (5_000, 10_000)  # the paper's range, for T5-XXL

PROMPTS = ("a photo of a {} {}", "a photo of an {} {}", "a {} {}", "an {} {}")
_POOL = 4  # with embeddings, this many times the wanted count is drawn, and the best are kept
_DRAWS = 4_000  # of sequences of several tokens before the search gives up

# What a short word means, so that a check can say why it is a bad identifier.
# fmt: off
_MEANINGS = {
    "an English word": """
a ad add ado ads age ago ah aha aid ail aim air ale all alp am amp an and ant any ape apt arc
are ark arm art as ash ask asp at ate awe awl awn axe aye baa bad bag bah ban bar bat bay be bed
bee beg bet bib bid big bin bit boa bob bog boo bow box boy bra bud bug bun bus but buy by bye
cab cad cam can cap car cat chi cob cod cog con coo cop cos cot cow cox coy cry cub cud cue cup
cur cut dab dad dam day den dew did die dig dim din dip do doc doe dog don dot dry dub dud due
dug duo dye ear eat ebb eel egg ego eke elf elk elm emo emu end eon era ere err eve ewe eye fab
fad fan far fat fax fed fee few fib fig fin fir fit fix flu fly foe fog for fox fro fry fun fur
gab gag gal gap gas gay gel gem get gig gin gnu go god goo got gum gun gut guy gym had hag ham
has hat haw hay he hem hen her hew hex hey hi hid him hip his hit hob hoe hog hoo hop hot how
hub hue hug huh hum hut i ice icy if ill imp in ink inn ion ire irk is it its ivy jab jag jam
jar jaw jay jet jig job jog jot joy jug jut keg key kid kin kit koi lab lad lag lap law lax lay
led lee leg let lid lie lip lit lo lob log loo lop lot low lug lye mad mag map mar mat maw may
me men met mic mid mix mob mom mop moth mud mug mum my nab nag nap nay net new nib nil nit no
nod nor not now nth nun nut oaf oak oar oat odd ode of off oft oh oil old on one opt or orb ore
our out ova owe owl own ox pad pal pan pap par pat paw pay pea peg pen pep per pet pew pho pic
pie pig pin pip pit ply pod pop pot pox pro pry pub puff pug pun pup put qua rag ram ran rap rat
raw ray red rib rid rig rim rip rob rod roe rot row rub rue rug rum run rut rye sac sad sag sap
sat saw sax say sea see set sew she shh shy sin sip sir sis sit six ski sky sly so sob sod son
sow soy spa spy sty sub sue sum sun sup tab tag tan tap tar tau tax tea ten the thy tic tie tin
tip to toe tom ton too top tot tow toy try tub tug tun tux two ugh uh um un up urn us use van
vat vet vex via vie vow wad wag wan war was wax way we web wed wee wet who why wig win wit woe
wok won woo wow wry yak yam yap yaw yay ye yell yen yep yes yet yew yin yo you yuck yum zap zen
zig zip zit zoo
gli lue orc oxo uhm nox
ayy oof opa tig tye""",
    "a unit or a number": """
am bps btu bu cc cl cm cms cwt db dl doi dos doz ein eur fps ft gal gb gbp ghz gm gms gpm hp hr
hrs hz ii iii iv kb kbs kg kgs khz km kms kph kt kw kwh lb lbs lm lux mb mbs mg mgs mhz mi min
ml mm mol mpg mph ms nm ohm oz pm ppm psi pt qt rpm sec sei sq st tb tbs tre trei tsp uma une
uno usd vi vii vol xi xii xv xx xxx yd yds yr yrs zwei
lev tri""",
    "a file, a format or a term of computing": """
abs api apk app avi bat bin bmp bot cad cgi cli cmd com cpu css csv def del dev dir dll dns doc
dom dos dvd env eps etc exe exp faq fn ftp gif git gnu gpu gui hdd htm http id ide img int io
ios ip iso jar jpg js lan lcd led len lib ln log mac max md mod mov mpg msg mul nan net npm num
obj org os pc pdf php pkg png ppt ptr py ram rar raw ref rel ret rev rgb rom rss rtf sdk seo seq
sms sql src ssd ssh ssl std str svg sys tan tar tcp tec tex tmp ttf txt uri url usb usr utf val
var vhs vpn wav www xls xml yml
cfd cq dps gtx idf lll ssu
ccd pci ql vfx""",
    "an abbreviation": """
aka al alt apr apt asap atm aug ave avg bc bio bro ca cab cal ceo cf cfo chr ci cia cir cit cj
co col cpr cs ct cto cv cvs da dc dec dem dep diy dj dna dob dr eco ed eds eg eh em emp en ent
epi est eta eu ext fbi feb fig fm fri fwd fyi gal gdp gen geo gmt gop gov govt gps hd hiv hq ie
imf imo inc inf iq irs jan jr jul jun lgb lgbt lib liq llc lol lp lsd ltd mar mba mc med mfg mil
misc mon mp mr mrs msc mst mt mvp na nat nb nc neg neo ngo nhs nov np nr nsa nsf num ny nyc ob
oct ok omg op pa pct pg phd pl pls pos pp pr prep pres prof ps pto pvc qty rd re rec ref reg rep
res rev rh rho rip rna rv sat sc sci sd sen sep ser sf sg sig spec sr ss suv syn tba tbd tech
tel temp thu thx tue tv ty ufo uk un uni univ uri us usa uv ux va vip vis viz vol vr vs wed wi
wtf www xl xs ya
brb cfa cgc cte dds etf ibd itc mdc mth mz ppc scs ssw ucc utv
atc bpl br cii cso dnr dod dys ecg esl iaf nhm phl stn wbc wcs""",
    "a name": """
abe abu ada adi al ali amy ana ann ari ash ava aya bea beb bel ben bob cal cam cher congo cuba
dan deb dee del dom don ed eli ely ema emi eva eve fay gil gus hal ian ida ike ina india ira
iran iraq isa ivy jan jay jeb jed jen jim jo joe jon jos kai kay ken kim kit kyle laos lea lee
len leo les lex lia lin liz lou lu lui luz lyn mac mae mali mao mat max meg mel mia mike moe nat
ned nia noa nora ola oman pam pat peg peru pia pol rae raj ray ren rex ria rob rod roma ron ros
roy sal sam sid sol stu sue syd tad ted thor tia tim tod togo val vic viv von wes yan yao yu zac
zen zeus zoe
aun naz nyk roz sah
bha flo iba jia jor taj tng yeo""",
    "a brand, a team or a weapon": """
abc acer adi ak akm aks amd smg amg aol apc ar att audi avon bbc bic bmw bp btc cbs cnn dbz dell dhl
ebay epl esp espn fal fed fifa ford gap glock gmc hbo hm hp htc httr ibm ikea imax jbl jcb jvc
kfc kia lego lg mgm mlb mls msi mtv nasa nba nbc nec nes nfl nhl nike nra nvr oreo pbs pez pga
prada ps psg psp rca rpg ruger sap sbs sig sks sony suv tdk tec tnt uefa ufc ups usps uzi visa
vw wii wwe xbox ysl zara""",
    "a word of another language": """
aber ai ain alb ami ao aos asa au auf aus aux avo bal bas bei ben bis blu bon buc bun cas ce cea
cel ces cet chi ci com con cou cu cui cum das dei del dem den der des det dia die din dir doi
dos du ea ei el ele em er era est eu eux feu fi fil fin foi fou fra fut ga gar gaz haus het hij
hoi ich ihm ihn ihr il im ist ja jai je jeu jij jus ka la lac las le les loc loi los lua lui luz
mai mal mas mer mes met meu mi mij mio moi mot mou mui mur na ne nei neu nez nie nom non nos nu
nur oder oh ojo ola om ook ora oro os ou par pas pe per peu pla por pot pour que qui rei rey ri
riz roi rua rue sa san sau se sei sel ser ses si sie sim sin soi sol son sont sou su sua sud sul
sur ta tal te ten tes toi tot tra tu tun tuo ubi um una und une uns ur va van ver vez via vie
vin vino viu voi von vor vos voz vu vue wa wem wer wie wij wir ya yo zijn zu zum zur""",
    "offensive, or its beginning": """
anal arse ass bum clit coc cock coon cum cunt dic dick dyk fag fap fuc fuck fuk gay hoe homo
isis jap jew jiz kkk kys nazi nig nud pee pis piss poo porn pus rape sex shit slut spic tard tit
turd vag wank wog wop
fu""",
}
# fmt: on
_MEANING_OF = {word: kind for kind, words in reversed(_MEANINGS.items()) for word in words.split()}
_OFFENSIVE = [w for w in _MEANINGS["offensive, or its beginning"].split() if len(w) > 2]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A possible identifier: text, token ids, a score of how weak its prior is (more: weaker).

    change: how far it moves what the base model draws, where that was measured, in grey levels.
    """

    text: str
    ids: tuple[int, ...]
    score: float
    change: float | None = None


def default_range(tokenizer: Tokenizer) -> tuple[int, int]:
    """First and last id that candidates are drawn from; ids of a vocabulary go from common to rare.

    The paper's 5000 to 10000 for T5's vocabulary, the rarer half of any other one.
    """
    if tokenizer.vocab_size == T5_VOCABULARY:
        return T5_RANGE
    last = max(set(range(tokenizer.vocab_size)) - tokenizer.special_ids)
    return (last + 1) // 2, last


def find(
    tokenizer: Tokenizer,
    *,
    class_noun: str,
    seed: int,
    count: int = 8,
    id_range: tuple[int, int] | None = None,
    embeddings: np.ndarray | None = None,
) -> list[Candidate]:
    """Finds at most `count` identifiers, best first: fewer tokens, then the weaker prior.

    Tokens of at most three characters are drawn uniformly and without replacement from `id_range`
    (both ends included; None: `default_range`); two and three tokens only where one is not enough.
    With the text encoder's `embeddings` [vocabulary, D] more are drawn, and scored by the
    `_weakness` of their worst token; without, every score is 0.
    """
    low, high = id_range or default_range(tokenizer)
    if not 0 <= low <= high < tokenizer.vocab_size:
        raise ValueError(
            f"id_range is ({low}, {high}); expected first and last id of a vocabulary of "
            f"{tokenizer.vocab_size}, such as {default_range(tokenizer)}"
        )
    if embeddings is not None and (embeddings.ndim != 2 or len(embeddings) < tokenizer.vocab_size):
        raise ValueError(
            f"embeddings have shape {list(embeddings.shape)}; expected one row for each of the "
            f"tokenizer's {tokenizer.vocab_size} ids: [{tokenizer.vocab_size}, D]"
        )
    common = sorted(set(range(low)) - tokenizer.special_ids)
    starts, inners = _short_pieces(tokenizer, low, high)
    wanted = count if embeddings is None else _POOL * count
    found: list[Candidate] = []
    for k in range(1, MAX_TOKENS + 1):
        drawn: dict[str, tuple[int, ...]] = {}
        for ids in _draws(starts, inners, k=k, generator=rng.generator(seed, "identifier", k)):
            if len(drawn) >= wanted:
                break
            text = tokenizer.decode(ids)
            if _suits(text, class_noun) and comes_back(tokenizer, text, ids, class_noun):
                drawn[text] = ids
        scores = dict.fromkeys(drawn, 0.0)
        if embeddings is not None and drawn:
            pieces = _weakness(embeddings, list(drawn.values()), common=common, low=low, high=high)
            scores = dict(zip(drawn, pieces.min(axis=1).tolist(), strict=True))
        scored = [Candidate(text, ids, scores[text]) for text, ids in drawn.items()]
        found += sorted(scored, key=lambda candidate: -candidate.score)
        if len(found) >= count:
            break
    return found[:count]


def check(tokenizer: Tokenizer, identifier: str, class_noun: str) -> list[str]:
    """Returns the objections to a user's own identifier, one sentence each; often none.

    Raises ValueError when caption cleaning would delete it or the tokenizer has no pieces for it.
    """
    text = normalize(identifier)
    if not survives_cleaning(f"a {text} {normalize(class_noun)}", text):
        raise ValueError(
            f"the identifier {identifier!r} would be lost where prompts are cleaned (DeepFloyd "
            "IF's clean_caption does so by default); expected one word of letters a-z that is no "
            f"image format, such as 'zib'. Or write {AUTO!r}."
        )
    ids, pieces = tokenizer.ids(text), tokenizer.pieces(text)
    if tokenizer.hf.unk_token_id in ids:
        raise ValueError(
            f"the tokenizer has no pieces for a part of the identifier {identifier!r} and would "
            f"replace it: {' '.join(pieces)}. Write a word of the letters a-z, or {AUTO!r}."
        )
    problems = []
    if text != identifier:
        problems.append(f"{identifier!r} is read as {text!r}: prompts are lower-cased.")
    if len(ids) > 1:
        problems.append(
            f"{text!r} splits into {len(ids)} tokens ({' '.join(pieces)}); a single rare token "
            f"carries a subject best, and the method uses at most {MAX_TOKENS}."
        )
    if reason := meaning(text):
        problems.append(f"{text!r} is {reason}: the base model has its own idea of it.")
    if shared := _shared(text, class_noun):
        problems.append(f"{text!r} and the class noun {class_noun!r} share {shared!r}.")
    return problems


def choose(
    tokenizer: Tokenizer,
    wanted: str,
    *,
    class_noun: str,
    seed: int,
    embeddings: np.ndarray | None = None,
    taken: Sequence[str] = (),
) -> str:
    """The identifier to train: the best candidate for "auto", else `wanted`, checked, lower-cased.

    None of `taken`, the words of other subjects, is chosen, nor one that has one of them in it or
    is in one. Warnings of `check` go to the log. Raises ValueError as `check` does, or when none is
    found.
    """
    if wanted != AUTO:
        for problem in check(tokenizer, wanted, class_noun):
            logging.warning("identifier: %s Write 'auto' to have one chosen.", problem)
        return normalize(wanted)
    count = 8 * (1 + len(taken))
    pool = find(tokenizer, class_noun=class_noun, seed=seed, count=count, embeddings=embeddings)
    found = [c for c in pool if not any(c.text in word or word in c.text for word in taken)]
    if not found:
        raise ValueError(
            f"no rare token among ids {default_range(tokenizer)} of this vocabulary suits the "
            f"class noun {class_noun!r}; write an identifier of your own, such as 'zib'"
        )
    return found[0].text


def as_table(candidates: Sequence[Candidate]) -> str:
    """The candidates as a text table, in their order."""
    rows: list[tuple[str, ...]] = [("identifier", "tokens", "score", "change", "ids")]
    for c in candidates:
        change = "" if c.change is None else f"{c.change:.2f}"
        cells = (c.text, str(len(c.ids)), f"{c.score:.3f}", change, " ".join(map(str, c.ids)))
        rows.append(cells)
    if all(c.change is None for c in candidates):
        rows = [(*row[:3], row[4]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def meaning(text: str) -> str | None:
    """Returns the meaning of a short lower-case word ("a unit or a number"), None if unknown."""
    return _MEANING_OF.get(text)


def comes_back(tokenizer: Tokenizer, text: str, ids: tuple[int, ...], class_noun: str) -> bool:
    """Returns True if `text` is exactly `ids` in prompts with the noun, and changes no other."""
    noun = tokenizer.ids(class_noun)
    for prompt in PROMPTS:
        before = tokenizer.ids(prompt.split("{}")[0])
        if tokenizer.ids(prompt.format(text, class_noun)) != before + ids + noun:
            return False
    return True


def _suits(text: str, class_noun: str) -> bool:
    """Returns True for a safe word without a meaning of its own; needs no tokenizer."""
    return (
        re.fullmatch("[a-z]{2,}", text) is not None  # upper case would be lost in prompts
        and text != AUTO
        and meaning(text) is None
        and not any(word in text for word in _OFFENSIVE)
        and not _shared(text, class_noun)
        and all(survives_cleaning(p.format(text, normalize(class_noun)), text) for p in PROMPTS)
    )


def _shared(text: str, class_noun: str) -> str:
    """The identifier if it is part of the noun, a word of the noun if it is part of it, else ""."""
    noun = normalize(class_noun)
    return text if text in noun else next((word for word in noun.split() if word in text), "")


def _short_pieces(tokenizer: Tokenizer, low: int, high: int) -> tuple[list[int], list[int]]:
    """Ids of short pieces without a meaning, of letters a-z only: word beginnings, and others."""
    starts: list[int] = []
    inners: list[int] = []
    for token_id in sorted(set(range(low, high + 1)) - tokenizer.special_ids):
        piece = tokenizer.piece(token_id).removeprefix("▁").removesuffix("</w>")
        if re.fullmatch(rf"[a-z]{{1,{MAX_CHARACTERS}}}", piece) and meaning(piece) is None:
            (starts if tokenizer.is_word_start(token_id) else inners).append(token_id)
    return starts, inners


def _draws(
    starts: list[int], inners: list[int], *, k: int, generator: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """Sequences of a word beginning and k − 1 other pieces, uniformly drawn."""
    total = len(starts) * len(inners) ** (k - 1)
    # Few sequences are all taken, in a random order. Of millions only so many that some will do:
    # what comes twice among them has the same text, and counts once.
    order = (
        generator.permutation(total) if total <= _DRAWS else generator.integers(total, size=_DRAWS)
    )
    for number in order.tolist():
        number, first = divmod(number, len(starts))
        ids = [starts[first]]
        for _ in range(k - 1):
            number, inner = divmod(number, len(inners))
            ids.append(inners[inner])
        yield tuple(ids)


def _weakness(
    embeddings: np.ndarray,
    ids: Sequence[Sequence[int]],
    *,
    common: list[int],
    low: int,
    high: int,
) -> np.ndarray:
    """1 − (largest cosine with a common token) − |ln(norm / median norm)|: ids [N, k] → [N, k].

    The median is that of the rows `low` to `high`. A row that training hardly touched is near its
    random start: like no common token, of usual length.
    """
    usual = np.median(np.linalg.norm(np.asarray(embeddings[low : high + 1], np.float32), axis=-1))
    rows, length = _unit(embeddings[np.asarray(ids)])
    cosine = rows @ _unit(embeddings[np.asarray(common, int)])[0].T
    return 1.0 - cosine.max(axis=-1, initial=-1.0) - np.abs(np.log(length / max(usual, 1e-12)))


def _unit(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of length 1 in float32, and the lengths they had."""
    rows = np.asarray(rows, np.float32)
    length = np.maximum(np.linalg.norm(rows, axis=-1), 1e-12)
    return rows / length[..., None], length
