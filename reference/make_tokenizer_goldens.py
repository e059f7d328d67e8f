"""Makes crates/gpt4roi/tests/data/{tokenizer.model, added_tokens.json, tokenizer.json, prompt.json}.

    pip install sentencepiece && python reference/make_tokenizer_goldens.py

The tokenizer is trained here, on sentences written here, with the settings of LLaMA's. The ids are
SentencePiece's own; splitting at added tokens and rendering prompts are done once more in Python, with
strings and regular expressions, independently of the Rust code.
"""

import io
import json
import random
import re
from pathlib import Path

import sentencepiece

DATA = Path(__file__).parent.parent / "crates/gpt4roi/tests/data"
NAMES = (
    "cat dog horse bird fish elephant giraffe zebra mouse rabbit house tree flower mountain river bridge street car bus train "
    "bicycle boat plane traffic light stop sign bench chair table bed lamp window door clock vase cup fork knife spoon bowl apple "
    "banana orange pizza cake sandwich bottle glass book phone laptop keyboard umbrella backpack suitcase person woman child rider"
).split()
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
OVERVIEW = "The <image> provides an overview of the picture.\n"
ADDED = ["[PAD]", "<im_patch>", "<bbox>", "<point>", "<im_start>", "<im_end>"]
NOT_SHOWN = {"<s>", "</s>", "<unk>", "[PAD]"}
PATCHES = 4


def corpus() -> list[str]:
    sentences = [SYSTEM, "### Human: What is region1 doing?", "### Assistant: The person is riding a horse."] * 40
    frames = [
        "What is the {} doing in the picture?", "It is a {}.", "The {} in region1 stands left of the {} in region2.",
        "Is region{} looking at region{}?", "Describe the {}, please; it's large.", "Don't the {}s fly? They're 12 {}s.",
    ]
    for index, name in enumerate(NAMES):
        other = NAMES[(7 * index + 3) % len(NAMES)]
        sentences.append(frames[index % len(frames)].format(name, other))
    sentences += ["# Title", "## Part", "### Section", "#### Paragraph", "x = y * (z - 1)  # why"] * 20
    sentences += ["ein Mädchen hört Vögel", "un garçon près de l'étang", "дом у реки", "赤い家と犬", "a   b    c"] * 20
    return sentences


def train() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type="bpe", vocab_size=800, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, split_digits=True, character_coverage=0.995, num_threads=1,
        hard_vocab_limit=False, minloglevel=2,
    )
    return model.getvalue()


class Tokenizer:
    def __init__(self, model: bytes):
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.added = {token: self.pieces.get_piece_size() + index for index, token in enumerate(ADDED)}
        tokens = sorted([*self.added, "</s>", "<unk>"], key=len, reverse=True)
        self.split = re.compile("(" + "|".join(map(re.escape, tokens)) + ")").split

    def id(self, token: str) -> int:
        return self.added[token] if token in self.added else self.pieces.piece_to_id(token)

    def encode(self, text: str) -> list[int]:
        parts, ids = self.split(text), []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self.id(part))
                continue
            part = part.lstrip() if index else part
            part = part.rstrip() if index + 1 < len(parts) else part
            ids += self.pieces.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        hidden, names = {self.id(token) for token in NOT_SHOWN}, {index: token for token, index in self.added.items()}
        runs = []
        for index in ids:
            if index in hidden:
                continue
            if index in names:
                runs.append(names[index])
            elif runs and isinstance(runs[-1], list):
                runs[-1].append(index)
            else:
                runs.append([index])
        text = " ".join(run if isinstance(run, str) else self.pieces.decode(run) for run in runs)
        for spaced, joined in [
            (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
        ]:
            text = text.replace(spaced, joined)
        return text


WRITTEN = [
    "", " ", "  ", "\n", "\t", "\n\n", " a", "a ", " a ", "a  b", "a   b    c     d", "a\nb", "a \n b", "\r\n", "\0", "\x1c",
    "region1", "region12 region 3", "What is region1 doing?", "### Human: Hello\n", "###", "####", "##", "#", " ###", "\n###",
    "### ", "# ##", "a###b", "aaaa", "aaaaaaaaaaaaaaaa", "assistantassistant", "<0x0A>", "<s>", "</s>", "<unk>", "▁", "▁▁a", "a▁b",
    "Mädchen", "a\u0308", "дом", "赤い家", "犬🐕犬", "👩‍👩‍👧", "\U0010ffff", "\ufffd", "\u200b", "\ufeff", "ｆｕｌｌ", "naïve café",
    "don't", "it 's", "they 're", "x = 1.5e-3", "1234567890", "(0.5, 0.6)", "[0.1, 0.2]", "!?.,;:'\"", "\u00a0", "\u2003", "e\u0301é",
]
SPECIAL = [
    "<bbox>", " <bbox> ", "a <bbox>?", "a<bbox>b", "a <bbox>\n\n### ", "<bbox>,region2 <bbox>", "<im_start><im_patch><im_patch><im_end>",
    "The <im_start><im_patch><im_end> provides", "<bbox", "bbox>", "<<bbox>>", "a </s> b", "a<unk>b", "[PAD][PAD]", "x <s> y",
    "\x1c<bbox>\x1f", "\u3000<bbox>\u00a0a", "<bbox><point>\t", "<im_<bbox>start>",
]
IDS_TO_TEXT = [
    "<0xE8>", "<0xE8> <0xB5>", "<0xE8> ▁a <0xB5>", "<0xF0> <0x9F> <0x90> <0x95>", "<0xFF> <0xFE> a", "<0x0A> ▁a", "▁ ▁ a",
    "▁a ▁.", "▁a ▁?", "▁a ▁ ▁ .", "▁ <bbox> ▁a <bbox> <bbox>", "a <unk> b", "<s> ▁a </s>", "▁a ▁' ▁s", "▁a ▁' m", "a ▁ ▁' ▁m",
    "▁' ▁' ▁' ▁'", "a ▁ ' s", "a ▁ n ' t b", "a ▁", "▁a ▁ <0x2E>", "<bbox> <0xE8>", "<0xE8> <bbox>", "[PAD] ▁a [PAD] ▁b",
    "<0xED> <0xA0> <0x80> a", "<0xC0> <0x80>", "▁",
]


def random_texts(rng: random.Random, count: int) -> list[str]:
    alphabets = ["ab ", "# \n", "the assistant region ", "0123456789., ", "äöü🐕赤дé ", "'\" .,!?nt msvere", "ab\t\n  \u3000"]
    texts = []
    for index in range(count):
        alphabet = rng.choice(alphabets) + (rng.choice(alphabets) if index % 2 else "")
        texts.append("".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40))))
    words = " ".join(corpus()).split(" ")
    texts += [" ".join(rng.choice(words) for _ in range(rng.randrange(1, 9))) for _ in range(count // 2)]
    return texts


def render(rounds: list[dict]) -> str:
    """Rounds as `<regionN>` text -> the whole prompt, as a string."""
    known, turns = set(), []

    def mark(match: re.Match) -> str:
        number = match[1]
        if number in known:
            return f"region{number}"
        known.add(number)
        return f"region{number} <bbox>"

    for index, turn in enumerate(rounds):
        question = re.sub(r"<region(\d+)>", mark, turn["question"])
        turns.append(("Human", (OVERVIEW if index == 0 else "") + question))
        if "answer" in turn:
            turns.append(("Assistant", turn["answer"]))
    body = "".join(f"### {role}: {text}\n" for role, text in turns)
    image = "<im_start>" + "<im_patch>" * PATCHES + "<im_end>"
    return f"{SYSTEM}\n\n{body.replace('<image>', image)}### "


CONVERSATIONS = {
    "A": [{"question": "What is <region1> doing?"}],
    "B": [{"question": "What is the relationship between <region1> and <region2>?"}],
    "C": [
        {"question": "What is <region1> doing?", "answer": "The person is riding a horse."},
        {"question": "Is <region1> looking at <region2>?"},
    ],
    "D": [{"question": "Describe <region1>"}],
    "reversed": [{"question": "<region2>, <region1> and <region2>"}],
    "no region": [{"question": "What is shown in the picture?", "answer": "A dog. 🐕"}],
    "three rounds": [
        {"question": "What is <region3>?", "answer": "a dog"},
        {"question": "And <region3> or <region12>", "answer": "It's a house.\nA red one."},
        {"question": "region 3, <region12>\n and ## too?", "answer": ""},
    ],
}


def main():
    model = train()
    tokenizer, rng = Tokenizer(model), random.Random(0)
    texts = WRITTEN + random_texts(rng, 120)
    special = SPECIAL + [rng.choice(["<bbox>", "</s>", " <im_end>\n"]).join(rng.sample(texts, 2)) for _ in range(30)]
    ids_to_text = [[tokenizer.id(piece) for piece in line.split(" ")] for line in IDS_TO_TEXT]
    shown = [index for index in range(tokenizer.pieces.get_piece_size() + len(ADDED))]
    ids_to_text += [[rng.choice(shown if n % 2 else shown[:259]) for _ in range(rng.randrange(1, 12))] for n in range(60)]
    goldens = {
        "text": [[text, tokenizer.pieces.encode(text)] for text in texts],
        "with_added_tokens": [[text, tokenizer.encode(text)] for text in special],
        "decoded": [[ids, tokenizer.decode(ids)] for ids in ids_to_text],
    }
    prompts = {
        name: {"rounds": rounds, "ids": [tokenizer.pieces.bos_id()] + tokenizer.encode(render(rounds))}
        for name, rounds in CONVERSATIONS.items()
    }
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / "tokenizer.model").write_bytes(model)
    (DATA / "added_tokens.json").write_text(json.dumps(tokenizer.added, indent=2) + "\n")
    (DATA / "tokenizer.json").write_text(json.dumps(goldens, separators=(",", ":")) + "\n")
    (DATA / "prompt.json").write_text(json.dumps(prompts, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
