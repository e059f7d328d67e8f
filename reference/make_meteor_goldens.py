"""What METEOR 1.5 makes of captions with all four of its stages, by small tables in the form of its own.

    python3 -m venv venv && venv/bin/pip install pycocoevalcap==1.2      # needs Java, too
    venv/bin/python reference/make_meteor_goldens.py crates/gpt4roi-eval/tests/data/meteor

METEOR's own tables are large and not part of this project, so that a few words stand for WordNet, and made-up phrases
for the paraphrases. The folder gets them under the names that METEOR's have, the jar with nothing of METEOR's program
in it, and `goldens.json` with the scores. Captions are hand-written ones, and words drawn from a small vocabulary, so
that most could stand for several others and the search has to choose, and drop what it has no room for.
"""

import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import zipfile

os.environ["JAVA_TOOL_OPTIONS"] = "-Dfile.encoding=UTF-8"  # else Java reads the captions in the locale's encoding

from pycocoevalcap.meteor import meteor

# A base form and the other forms of an irregular word.
IRREGULAR = [("child", "children"), ("man", "men"), ("foot", "feet"), ("lie", "lying lain"), ("lay", "lain laid")]

# A word and the numbers of its sets, written with eight digits as WordNet has them.
SETS = {
    "automobile": [1], "car": [1, 2], "wagon": [2], "child": [3], "kid": [3, 4], "goat": [4], "man": [5],
    "adult_male": [5], "person": [6], "individual": [6, 7], "single": [7], "big": [8], "large": [8], "bases": [9],
    "basis": [9], "base": [10], "foundation": [10], "bas": [11], "relief": [11], "lie": [12], "recline": [12],
    "lay": [13], "put": [13], "glass": [14], "pane": [14], "glas": [15], "window": [15], "box": [16], "carton": [16],
    "churches": [17], "church": [18], "chapel": [18], "fireman": [19], "firefighter": [19], "city": [20],
    "town": [20], "make": [21], "making": [22], "create": [21], "nice": [23], "fine": [23, 24], "penalty": [24],
    "as": [25], "arsenic": [25], "a": [26], "ampere": [26], "photo": [27], "photograph": [27], "picture": [27],
    "beautiful": [28], "beauty": [29], "looker": [29], "run": [30], "race": [30], "t-shirt": [31], "jersey": [31],
}

# A phrase and what can stand for it. Some stand there both ways, some repeat what other stages find.
PARAPHRASES = [
    ("a lot of", "many"), ("many", "a lot of"), ("a lot of", "lots of"), ("lots of", "plenty of"),
    ("in front of", "before"), ("before", "ahead of"), ("is standing", "stands"), ("stands", "is standing"),
    ("next to", "beside"), ("next to", "by the side of"), ("by the side of", "next to"),
    ("on top of", "on"), ("on", "on top of"),
    ("fire engine", "fire truck"), ("fire truck", "fire engine"), ("car", "automobile"), ("cars", "car"), ("the", "a"),
    ("a", "the"), ("of the", "of"), ("to the left of", "left of"), ("left of", "to the left of"), (", and", "and"),
    ("there is", "there are"), ("is not", "is n't"), ("do not", "don 't"), ("' s", "of"), ("1,000", "a thousand"),
    ("man in a red shirt", "man wearing a red shirt"), ("in a", "wearing a"), ("two people", "a couple"),
    ("photo of", "picture showing"), ("it is", "it 's"), ("black and white", "monochrome"), ("naïve", "simple minded"),
]

WRITTEN = [
    ("a lot of cars in front of the house", ["many automobiles before the house", "lots of cars ahead of houses"]),
    ("the kid is standing next to a car", ["a child stands beside the automobile", "the goat stands by the side of"]),
    ("children lying on the foundation", ["kids recline on top of the bases", "a kid laid on the basis"]),
    ("men in a red shirt", ["man wearing a red shirt", "the man in a red shirt"]),
    ("man in a red shirt", ["the man wearing a red shirt", "man wearing a red shirt"]),
    ("a red fire engine to the left of a white fire truck", ["red fire truck left of white fire engine"]),
    ("the firemen are making boxes", ["firefighters create cartons", "a fireman makes a box"]),
    ("big churches in the cities", ["large chapels in towns", "the larger church of a city"]),
    ("panes of glass", ["windows", "pane of glasses", "glass window"]),
    ("beautiful photos", ["nice photographs", "beauties in a picture", "a finer photo"]),
    ("two people, and a lot of cars", ["a couple and many wagons", "two people and lots of cars"]),
    ("it is a photo of a man", ["it's a picture showing the man", "it is not a photo"]),
    ("black and white photo of a t-shirt", ["a monochrome picture of jerseys", "t-shirt, black and white"]),
    ("a naïve man", ["a simple minded person", "one simple minded individual"]),
    ("1,000 cars", ["a thousand automobiles", "1,000 wagons and a thousand cars"]),
    ("the ampere of arsenic", ["a as", "as a"]),
    ("feet", ["foot", "feet", "a foot of the man's"]),
    ("many many many", ["a lot of a lot of", "many a lot of many"]),
    ("on on top of", ["on top of on", "on top of on top of"]),
    ("the the a a the", ["a a the the a", "the a the a"]),
    ("", ["many", "a lot of"]),
    ("nothing alike", ["completely different"]),
    ("stands is standing", ["is standing stands"]),
    ("single individual person", ["a single person", "individual", "one individual individual"]),
    ("car", ["automobile"]),
    ("a car", ["an automobile"]),
    ("the car here", ["the automobile here"]),
    ("racing", ["running", "race", "a run"]),
]

WORDS = "the a of car cars automobile wagon kid child goat on top left many lot lots in front before big large".split()


def drawn(rng):
    """A caption of drawn words, and others of which some are made of it by exchanging phrases and moving words."""
    caption = [rng.choice(WORDS) for _ in range(rng.randint(3, 14))]
    return " ".join(caption), [changed(rng, caption) for _ in range(rng.randint(1, 3))]


def crowded(rng):
    """Captions of few words, so that more alignments are possible than the search keeps."""
    words = ["the", "a", "of", "car", "cars", "lots", "kid"]
    caption = lambda: " ".join(rng.choice(words) for _ in range(rng.randint(8, 20)))
    return caption(), [caption()]


def changed(rng, caption):
    if rng.random() < 0.2:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 14)))
    text = f" {' '.join(caption)} "
    for phrase, other in rng.sample(PARAPHRASES, 20):
        text = text.replace(f" {phrase} ", f" {other} ", rng.randint(0, 2))
    words = text.split()
    for _ in range(rng.randint(1, 3)):
        words.insert(rng.randrange(len(words)), words.pop(rng.randrange(len(words))))
    return " ".join(words)


def drawn_paraphrases(rng):
    """Paraphrases of drawn words, so that phrases overlap everywhere."""
    phrase = lambda: " ".join(rng.choice(WORDS) for _ in range(rng.choice([1, 1, 2, 2, 3, 4])))
    pairs = [(phrase(), phrase()) for _ in range(150)]
    return [(one, other) for one, other in dict.fromkeys(pairs) if one != other and (one, other) not in PARAPHRASES]


def irregular_table():
    return "".join(f"{base}\n{forms}\n" for base, forms in IRREGULAR)


def sets_table():
    numbers = lambda sets: " ".join(f"{number:08}" for number in sets)
    return "".join(f"{word}\n{numbers(sets)}\n" for word, sets in SETS.items())


def paraphrase_table(paraphrases):
    lines = (f"{1 / (2 + at):.6g}\n{one}\n{other}\n" for at, (one, other) in enumerate(paraphrases))
    return gzip.compress("".join(lines).encode(), mtime=0)


def write_tables(folder, paraphrases):
    os.makedirs(os.path.join(folder, "data"), exist_ok=True)
    with zipfile.ZipFile(os.path.join(folder, "meteor-1.5.jar"), "w", zipfile.ZIP_DEFLATED) as jar:
        for name, table in [("exceptions", irregular_table()), ("synsets", sets_table())]:
            member = zipfile.ZipInfo(f"synonym/english.{name}", (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            jar.writestr(member, table)
    with open(os.path.join(folder, "data", "paraphrase-en.gz"), "wb") as file:
        file.write(paraphrase_table(paraphrases))


class SmallTables(meteor.Meteor):
    """METEOR as pycocoevalcap starts it, with other tables."""

    def __init__(self, folder, synonyms):
        for name, table in [("exceptions", irregular_table()), ("synsets", sets_table()), ("relations", "")]:
            with open(os.path.join(synonyms, f"english.{name}"), "w", encoding="utf-8") as file:
                file.write(table)
        command = ["java", "-jar", "-Xmx1G", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
        command += ["-d", synonyms, "-a", os.path.join(os.path.abspath(folder), "data", "paraphrase-en.gz")]
        directory, pipe = os.path.dirname(os.path.abspath(meteor.__file__)), subprocess.PIPE
        self.meteor_p = subprocess.Popen(command, cwd=directory, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        self.lock = threading.Lock()


def main(folder):
    rng = random.Random(2026)
    captions = WRITTEN + [drawn(rng) for _ in range(200)] + [crowded(rng) for _ in range(100)]
    write_tables(folder, PARAPHRASES + drawn_paraphrases(rng))
    references = {at: texts for at, (_, texts) in enumerate(captions)}
    predictions = {at: [text] for at, (text, _) in enumerate(captions)}
    with tempfile.TemporaryDirectory() as synonyms:
        corpus, each = SmallTables(folder, synonyms).compute_score(references, predictions)
    items = [
        {"prediction": prediction, "references": texts, "meteor": score}
        for (prediction, texts), score in zip(captions, each)
    ]
    with open(os.path.join(folder, "goldens.json"), "w", encoding="utf-8") as file:
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        file.write(f'{{"corpus": {json.dumps(corpus)},\n"items": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
