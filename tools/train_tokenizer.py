"""Train the embedded base's tokenizer: SentencePiece unigram in T5's layout.

`python tools/train_tokenizer.py CACHE OUT` learns from the composites' captions and from the
English names and keywords of all emoji, and writes an ordinary T5 tokenizer folder, which
`transformers` opens as T5Tokenizer, T5TokenizerFast or AutoTokenizer.
"""

from __future__ import annotations

import argparse
import io
import json
import string
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from material import keywords
from nouns import typical_captions
from sentencepiece import sentencepiece_model_pb2
from transformers import T5Tokenizer

EXTRA_IDS = 100  # T5's sentinels <extra_id_99> … <extra_id_0> stand at the end of the vocabulary
MAX_LENGTH = 77  # the length to which DeepFloyd IF's pipelines pad a prompt
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2; there is no bos
# The code points whose compatibility form the tokenizer knows. SentencePiece's own rule
# (nmt_nfkc) knows all of Unicode and weighs 240 kB, ten times this whole vocabulary.
NORMALIZED = [
    *range(0x80, 0x250),  # Latin letters with marks
    *range(0x2000, 0x2070),  # spaces and punctuation
    *range(0xFB00, 0xFB07),  # ligatures
    *range(0xFF01, 0xFF5F),  # full-width ASCII
]
PUNCTUATION = str.maketrans("‘’“”–—", "''\"\"--")


def normalization_rules() -> str:
    """Return SentencePiece's rule table: compatibility forms, no marks, white space, lower case.

    Prompts reach the embedded base in lower case in PyTorch's pipeline as well (IFPipeline).
    """
    rules = {letter: letter.lower() for letter in string.ascii_uppercase}
    rules |= dict.fromkeys("\t\n\r", " ")
    for point in NORMALIZED:
        letter = chr(point)
        plain = unicodedata.normalize("NFKD", letter.translate(PUNCTUATION)).lower()
        plain = "".join(c for c in plain if not unicodedata.combining(c))
        if plain.isascii() and plain.isprintable() and plain:
            rules[letter] = plain
    hexes = {source: " ".join(f"{ord(c):X}" for c in target) for source, target in rules.items()}
    return "".join(f"{ord(source):X}\t{target}\n" for source, target in sorted(hexes.items()))


def short_pieces(lines: Iterable[str]) -> list[str]:
    """Return two- and three-letter beginnings of the lines' words that are no words themselves.

    Commonest first. As single pieces they are the candidates for rare identifiers.
    """
    words = Counter(word for line in lines for word in line.split())
    counts: Counter[str] = Counter()
    for word, count in words.items():
        if word.isascii() and word.isalpha():
            counts.update({word[:2]: count})
            counts.update({word[:3]: count})
    ordered = sorted(counts, key=lambda piece: (-counts[piece], piece))
    return [piece for piece in ordered if len(piece) > 1 and piece not in words]


def train(
    lines: Iterable[str],
    out_dir: str | Path,
    *,
    words: Iterable[str] = (),
    vocab_size: int = 2000,
    rare: int = 300,
) -> None:
    """Write a T5 tokenizer folder with `vocab_size` pieces, the `EXTRA_IDS` sentinels included.

    Every word of `words` becomes one piece at the start of a word, and so do `rare` short
    beginnings of the words in `lines`, which are words nowhere: the identifier's candidates.
    The result is a pure function of the arguments. Raises ValueError on too small a vocabulary.
    """
    lines = [line.translate(PUNCTUATION).lower() for line in lines]
    lines = [line for line in lines if line.isascii() and line.strip()]
    if not lines:
        raise ValueError("found no lines in ASCII to learn a vocabulary from")
    words, short = sorted(set(words)), short_pieces(lines)[:rare]
    room = vocab_size - EXTRA_IDS - len(words) - len(short)
    if room < 200:
        raise ValueError(
            f"vocab_size {vocab_size} leaves {room} pieces to learn beside {EXTRA_IDS} sentinels, "
            f"{len(words)} words and {len(short)} short pieces; at least 200 are expected, "
            f"so write vocab_size={vocab_size + 200 - room} or more"
        )
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="ascii") as rules:
        rules.write(normalization_rules())
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            # Some fixed pieces are learned as well: the rest is filled up by trimming below.
            vocab_size=vocab_size - EXTRA_IDS,
            required_chars=string.ascii_lowercase + string.digits + string.punctuation,
            normalization_rule_tsv=rules.name,
            add_dummy_prefix=True,
            byte_fallback=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=PAD,
            eos_piece=EOS,
            unk_piece=UNK,
            num_threads=1,  # the same model every time
            minloglevel=2,
        )
    fixed = [f"▁{word}" for word in [*words, *short]]
    model = with_pieces(model.getvalue(), fixed[: len(words)], fixed[len(words) :])
    write_folder(trimmed(model, vocab_size - EXTRA_IDS, keep=set(fixed)), out_dir)


def with_pieces(model: bytes, words: Iterable[str], short: Iterable[str]) -> bytes:
    """Return a serialized unigram model that never cuts the pieces `words` and `short`.

    A word scores as the best piece does, so that any cut into two log-probabilities is lower;
    a short piece just above its best cut, so that it takes no letters from longer pieces.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
    known = {piece.piece: piece for piece in proto.pieces}
    top = max(piece.score for piece in proto.pieces if piece.type == normal)
    scores = dict.fromkeys(words, top)
    for piece in short:
        cut = sum(known[p].score for p in processor.encode_as_pieces(piece.replace("▁", " ")))
        scores[piece] = min(top, cut + 0.1)
    for piece, score in scores.items():
        if piece not in known:
            known[piece] = proto.pieces.add(piece=piece, type=normal)
        known[piece].score = score
    return proto.SerializeToString(deterministic=True)


def trimmed(model: bytes, pieces: int, *, keep: set[str]) -> bytes:
    """Return the model with `pieces` pieces: the least likely ones beyond that are dropped.

    Single letters, specials and the pieces of `keep` stay; the order of the others does, too.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
    loose = [
        p for p in proto.pieces if p.type == normal and len(p.piece) > 1 and p.piece not in keep
    ]
    surplus = len(proto.pieces) - pieces
    drop = {p.piece for p in sorted(loose, key=lambda p: (p.score, p.piece))[: max(surplus, 0)]}
    left = [p for p in proto.pieces if p.piece not in drop]
    del proto.pieces[:]
    proto.pieces.extend(left)
    proto.trainer_spec.vocab_size = len(left)
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # the name of a temporary file
    return proto.SerializeToString(deterministic=True)


def write_folder(model: bytes, out_dir: str | Path) -> None:
    """Write spiece.model, tokenizer.json and both configuration files into `out_dir`."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "spiece.model").write_bytes(model)
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    sentinels = [f"<extra_id_{number}>" for number in range(EXTRA_IDS)]
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = T5Tokenizer(
        vocab=vocab + [(sentinel, 0.0) for sentinel in reversed(sentinels)],
        _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap,
        extra_ids=EXTRA_IDS,
        model_max_length=MAX_LENGTH,
    )
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    special = {"eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
    special["additional_special_tokens"] = sentinels
    config = {
        **special,
        "clean_up_tokenization_spaces": False,
        "extra_ids": EXTRA_IDS,
        "model_max_length": MAX_LENGTH,
        "tokenizer_class": "T5Tokenizer",
    }
    for name, value in (("tokenizer_config", config), ("special_tokens_map", special)):
        (out / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train the embedded base's tokenizer from the cached material."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, help="folder for the npm tarballs")
    parser.add_argument("out", type=Path, help="folder to write the tokenizer into")
    parser.add_argument("--vocab_size", type=int, default=2000)
    args = parser.parse_args()
    captions = typical_captions()
    words = {word for caption in captions for word in caption.split()}
    lines = [*captions, *keywords(args.cache)]
    train(lines, args.out, words=words, vocab_size=args.vocab_size)


if __name__ == "__main__":
    main()
