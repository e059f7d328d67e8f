"""What pycocoevalcap makes of captions: words, and scores of each caption and of all together.

    python3 -m venv venv && venv/bin/pip install pycocoevalcap==1.2      # needs Java, too
    venv/bin/python reference/make_caption_goldens.py crates/gpt4roi-eval/tests/data/captions.json

The captions are made up: hand-written ones with everything that is hard to cut into words, and sentences of the kind
that the rendered scenes ask and answer, put together by rules. METEOR runs with its exact and stem stages only, as its
other tables are not part of this program.
"""

import json
import os
import random
import subprocess
import sys
import threading

os.environ["JAVA_TOOL_OPTIONS"] = "-Dfile.encoding=UTF-8"  # else Java reads the captions in the locale's encoding

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor import meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

# A caption, and what is right.
WRITTEN = [
    ("The dog isn't on the man's couch.", ["A dog is not on the couch of the man.", "The dog's not on his couch!"]),
    ("I can't see it; they won't, don't and shouldn't've.", ["They can't see it, and shouldn't have."]),
    ("It’s the girl’s bike, isn’t it?", ["It's the girls' bike, is it not?", "That's a girl's bike."]),
    ("You cannot sit there", ["you can not sit there", "Nobody's gonna sit there, you gotta stand."]),
    ("'Tis a rock'n'roll band at 5 o'clock", ["A rock 'n' roll band at five o'clock", "it was rock and roll"]),
    ("We're sure they'd've said he'll go, ma'am", ["I'm sure he'd go", "They've said she's gone"]),
    ("Mr. Smith of the U.S. Army, etc.", ["mr smith of the US army", "Dr. Jones, Sr. of the U.K."]),
    ("A sign for St. John's Ave. and 5th St.", ["A street sign: St. John's Avenue", "The sign says Main St. on it"]),
    ("e.g. a cat, i.e. a pet", ["for example a cat", "a pet, e.g., a cat vs. a dog"]),
    ("Player No. 5, not no. 10.", ["player number 5", "Is it no. 5? No."]),
    ("The time is 10:30pm or 5 p.m.", ["It is 10:30 p.m.", "half past ten in the evening, 22:30"]),
    ("3.5 m of 1,000,000 things for $5.99", ["3.5m of a million things", "It costs $ 5.99.", "5.99 US$ for 1,000s"]),
    ("£20, €30 and 5¢", ["twenty pounds, thirty euros and five cents", "20 pounds"]),
    ("50% of 7/8 and 24/7", ["fifty percent", "50 % of seven eighths, 24/7"]),
    ("a well-known black-and-white 10-year-old photo", ["a black and white photo, ten years old", "An old photo"]),
    ("a man -- his dog -- and — a ball – red", ["a man, his dog and a red ball", "man-dog - ball"]),
    ("left/right-hand side and/or the top", ["the left or right hand side and the top", "left / right"]),
    ("a T-shirt w/ stripes", ["a striped t-shirt", "a shirt with a stripe w/o sleeves"]),
    ("A (small) [big] {curly} thing", ["a small, big, curly thing", "(a thing)", "thing(s)"]),
    ("\"STOP\" is on the 'red' sign", ["A sign says “Stop”", "a red ‘stop’ sign", "``Stop'' on it"]),
    ("wait... what.. is. this....", ["Wait… what is this?", "What ... this"]),
    ("What?! Yes!! No!", ["what? yes! no!", "What?!"]),
    ("AT&T, Q&A and rock&roll", ["at&t and q&a", "rock & roll & more"]),
    ("www.example.com, http://example.com/a?b=1. and me@example.com", ["an address", "www.example.com"]),
    ("#dog of @user 1st", ["the first dog", "# dog @ user"]),
    ("café naïve ñandú", ["a cafe", "Café, naïve ñandú"]),
    ("日本 and мир and ♥", ["日本", "Japan and peace and love", "♥"]),
    ("a cat 😀 with ₹5", ["a smiling cat with 5 rupees", "a cat 😀"]),
    ("the '90s and 1990's", ["the 1990s", "the nineties, '90s"]),
    ("C++ and node.js, 5*6 = 30, x^2 ~ a_b", ["node.js and c++", "5 * 6 = 30", "a_b"]),
    ("man.The dog,the cat;the bird:a", ["man. The dog, the cat; the bird: a", "a man and a dog"]),
    ("a grey colour; the theatre's centre", ["a gray color", "The theater's center is grey"]),
    ("half-eaten ice-cream at 5'10\"", ["half eaten ice cream", "icecream, eaten by half"]),
    ("<b>bold</b> text &amp; more", ["bold text and more", "<b>text</b>"]),
    ("   two   spaces	and a tab ", ["two spaces and a tab"]),
    ("dogs', 'dogs' and dogs.", ["the dogs' dogs", "dog"]),
    ("running runners ran quickly", ["a runner runs quick", "the run of running", "quickly ran the runner"]),
    ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
    ("the cat sat on the mat and the dog sat on the cat", ["on the mat the cat sat, on the cat the dog sat"]),
    ("a dog and a dog and a cat and a dog", ["a cat and a dog and a dog or a dog", "dog, dog, dog, cat"]),
    ("happily happier happiness of generous generations", ["happy generation", "the generosity was happiest"]),
    ("skies dying lying news early only proxying", ["sky die lie new earl on proxy", "The skies died early"]),
    ("cats cat cats", ["cat cats cat", "cat"]),
    ("", ["nothing at all", "an empty plate"]),
    (".", ["a dot", "."]),
    ("nothing in common", ["completely different words"]),
    ("one", ["one"]),
    ("Two words.", ["two words", "Two Words!"]),
    ("a plate of food on a table", ["a plate of food on a table", "food", "a table with a plate of food on it"]),
    ("umbrella", ["a red umbrella", "an umbrella"]),
]

COLORS = ["red", "blue", "grey", "black-and-white", "dark green", "yellow"]
THINGS = ["octopus", "loaf of bread", "airplane", "teddy bear", "T-shirt", "bus", "fire engine", "child's book", "box"]
PLACES = ["to the left of", "to the right of", "above", "in front of", "next to"]
SIZES = ["small", "large", "medium-sized", "tiny"]


def thing(rng):
    return rng.choice([f"{rng.choice(COLORS)} ", f"{rng.choice(SIZES)} ", ""]) + rng.choice(THINGS)


def article(words):
    return ("an " if words[0].lower() in "aeiou" else "a ") + words


def sentence(rng, one, other):
    place = rng.choice(PLACES)
    return rng.choice([
        f"It is {article(one)}.",
        f"{article(one).capitalize()}.",
        f"region1 is {article(one)}, region2 is {article(other)}.",
        f"The {one} is {place} the {other}.",
        f"There's {article(one)} {place} {article(other)}, isn't there?",
        f"No, it is {article(one)}.",
        f"{one}s and {other}s",
        f"It is {article(one)}. It is {rng.choice(SIZES)} and {place} {article(other)}.",
    ])


def made(rng):
    one, other = thing(rng), thing(rng)
    references = [sentence(rng, one, other) for _ in range(rng.randint(1, 5))]
    return sentence(rng, one, other) if rng.random() < 0.8 else rng.choice(references), references


class ExactStem(meteor.Meteor):
    """METEOR as pycocoevalcap starts it, without the stages that need tables."""

    def __init__(self):
        command = ["java", "-jar", "-Xmx1G", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
        command += ["-m", "exact stem"]
        directory, pipe = os.path.dirname(os.path.abspath(meteor.__file__)), subprocess.PIPE
        self.meteor_p = subprocess.Popen(command, cwd=directory, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        self.lock = threading.Lock()


def tokenized(captions):
    return PTBTokenizer().tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(captions)})


def scores(predictions, references):
    """The scores of all together, and of each, by name."""
    corpus, each = {}, [{} for _ in predictions]
    for scorer, name in [(Bleu(4), "bleu"), (Rouge(), "rouge_l"), (Cider(), "cider")]:
        options = {"verbose": 0} if name == "bleu" else {}
        total, of_each = scorer.compute_score(references, predictions, **options)
        corpus[name] = total if name == "bleu" else float(total)
        of_each = zip(*of_each) if name == "bleu" else map(float, of_each)
        for scores_of_one, score in zip(each, of_each):
            scores_of_one[name] = score
    meteor_total, of_each = ExactStem().compute_score(references, predictions)
    corpus["meteor_exact_stem"] = meteor_total
    for scores_of_one, score in zip(each, of_each):
        scores_of_one["meteor_exact_stem"] = score
    return corpus, each


def main(path):
    rng = random.Random(2026)
    captions = WRITTEN + [made(rng) for _ in range(100)]
    predictions = tokenized([[prediction] for prediction, _ in captions])
    references = tokenized([texts for _, texts in captions])
    corpus, each = scores(predictions, references)
    items = [
        {
            "prediction": prediction,
            "references": texts,
            "words": [word for word in predictions[i][0].split(" ") if word],
            "reference_words": [[word for word in line.split(" ") if word] for line in references[i]],
            **each[i],
        }
        for i, (prediction, texts) in enumerate(captions)
    ]
    with open(path, "w", encoding="utf-8") as file:
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        file.write(f'{{"corpus": {json.dumps(corpus)},\n"items": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
