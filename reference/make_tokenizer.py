"""Makes models/nano/tokenizer.model and added_tokens.json, with SentencePiece itself, and the ids it
gives to some texts, as a test of the reader in Rust.

    cargo run -p gpt4roi-data --example corpus > corpus.txt
    python reference/make_tokenizer.py corpus.txt

The settings are LLaMA's: BPE, byte fallback, no normalisation, a dummy space in front, digits apart.
Every word of the corpus counts equally, with a capital and without, so that nearly all of them become
one piece; words of the prompt's frame and of ordinary questions are added. No piece begins with `▁A`
and goes on as `Assistant` does: behind an open turn (`### `) the model writes `Assistant`, and the
same text encoded at once must have the same ids.
"""

import io
import json
import re
import string
import sys
from collections import Counter
from pathlib import Path

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as model_pb2

OUT = Path(__file__).resolve().parent.parent / "models" / "nano"
GOLDEN = Path(__file__).resolve().parent.parent / "crates" / "gpt4roi-data" / "tests" / "vocabulary.json"
PIECES = 1792
DELIMITER = "\t"  # no piece crosses it
FRAME = """A chat between a curious human and an artificial intelligence assistant. The assistant gives
helpful, detailed, and polite answers to the human's questions. Human: Assistant: The provides an
overview of the picture. region point box image photo object thing man woman person people he she they
we you I his her their my your who why when how many much does doing done has have had was were been
will would could should must may might about because from into over under between behind near next
same other these those here please explain say think hello"""
STRANGE = ["", " ", "  two  spaces ", "line\nbreak\n\n", "3.14 and 1000", "Ünïcödé 猫 🐈", "### Human: </s> <bbox>", "A\tAn\tAssistant"]
ADDED = ["[PAD]", "<im_patch>", "<bbox>", "<point>", "<im_start>", "<im_end>"]


def words(corpus: str) -> list[str]:
    found = set(re.findall(r"[A-Za-z]+", corpus + " " + FRAME))
    return sorted(found | {word.lower() for word in found})


def lines(corpus: str) -> list[str]:
    """Each word behind a space, and by itself where the prompt writes it so."""
    common = Counter(re.findall(r"[A-Za-z]+", corpus))
    common.update(word for word in re.findall(r"[A-Za-z]+", FRAME) for _ in range(60))
    made = []
    for word in words(corpus):
        times = 100 + min(common[word], 100)
        # `▁A` must not become a piece: the space stays apart from a capital A.
        glue = DELIMITER if word.startswith("A") else ""
        made += [f"x{DELIMITER} {glue}{word}{DELIMITER}"] * times
    # Questions begin behind a line break.
    for word in sorted({line.split()[0] for line in corpus.splitlines() if line.endswith("?")}):
        made += [f"x{DELIMITER}{word}{DELIMITER}"] * 100
    made += [f"x{DELIMITER}{frame}" for frame in ("###", "##") for _ in range(300)]
    return made


def train(corpus: str) -> bytes:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(corpus)),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        required_chars="".join(c for c in string.printable if c.isprintable() and c != " "),
        pretokenization_delimiter=DELIMITER,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def check(model: bytes, corpus: str) -> None:
    tokenizer = spm.SentencePieceProcessor(model_proto=model)
    pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.get_piece_size())]
    assert pieces[:3] == ["<unk>", "<s>", "</s>"] and len(pieces) == PIECES
    assert not [p for p in pieces if len(p) > 1 and "▁Assistant".startswith(p)], "an open turn would be encoded otherwise"
    proto = model_pb2.ModelProto.FromString(model)
    assert not proto.normalizer_spec.precompiled_charsmap and proto.trainer_spec.byte_fallback
    split = [word for word in words(corpus) if len(tokenizer.encode(f"x {word}")) > 2 + (word[0] == "A")]
    print(len(words(corpus)), "words,", len(split), "of them in several pieces:", " ".join(split))
    texts = corpus.splitlines()
    unknown = sum(tokenizer.is_byte(i) or i == 0 for text in texts for i in tokenizer.encode(text))
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    print(f"{tokens / len(texts):.2f} tokens a line, {unknown} bytes or unknown")


def main() -> None:
    corpus = Path(sys.argv[1]).read_text()
    model = train(corpus)
    check(model, corpus)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "tokenizer.model").write_bytes(model)
    tokenizer = spm.SentencePieceProcessor(model_proto=model)
    texts = STRANGE + corpus.splitlines()[:: len(corpus.splitlines()) // 60]
    cases = [json.dumps({"text": text, "ids": tokenizer.encode(text)}) for text in texts]
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN.write_text("[\n" + ",\n".join(cases) + "\n]\n")
    added = {token: PIECES + i for i, token in enumerate(ADDED)}
    (OUT / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n")


if __name__ == "__main__":
    main()
