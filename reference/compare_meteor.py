"""Compares METEOR with all of its stages and its own tables: pycocoevalcap's, and that of `gpt4roi eval predictions`.

    python3 -m venv venv && venv/bin/pip install pycocoevalcap==1.2      # needs Java with 2 GB, too
    venv/bin/python reference/compare_meteor.py target/release/gpt4roi 1

METEOR's tables can't be part of the tests, which is why this is done by hand. It prints the largest difference of a
line's score for each kind of captions, and that of all together. The kinds: written by hand, to be hard to cut and
about pictures; what rendered scenes are asked; phrases of the table of paraphrases with what can stand for them, moved
about; and words of WordNet's sets of synonyms in other forms. Both programs cut captions into words on their own.
"""

import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import zipfile

import make_caption_goldens
import make_meteor_goldens
from pycocoevalcap.meteor import meteor

FOLDER = os.path.dirname(os.path.abspath(meteor.__file__))

# One a line; each says much the same as the one beside it.
ABOUT_PICTURES = """
a man riding a wave on top of a surfboard
a surfer is riding a large wave in the ocean
the woman is wearing a black jacket
lady in a dark coat
a brown dog sitting on a couch
a puppy is resting on the sofa
two kids playing soccer in a field
a couple of children play football on the grass
a white plate topped with a sandwich and french fries
a plate of food with chips and a sub on it
a red stop sign on the side of the road
the traffic sign beside a street is red
a bus driving down a city street
a large bus travels along the road in town
the clock on the tower shows five o'clock
a tall clock tower with a large face
a bunch of bananas hanging from a tree
several yellow bananas on the counter
a person on skis going down a snowy hill
a skier descends the slope covered in snow
a cat lying on top of a laptop computer
a kitten sleeps on the keyboard of a notebook
a group of people standing around a table
many persons are gathered near the desk
the man has a beard and glasses
a bearded guy wearing eyeglasses
a train traveling down the train tracks next to a forest
the locomotive moves on rails beside the woods
an old photograph of a baseball player swinging a bat
a vintage picture of a batter hitting a ball
a bathroom with a toilet, sink and bathtub
a white toilet in a small restroom
a little girl holding an umbrella in the rain
a young lady is standing under a parasol
a bowl of soup with vegetables and meat
there is broth with carrots in the dish
a pair of shoes sitting on the floor
two sneakers on the ground
a zebra and a giraffe standing in the grass
animals grazing in the pasture
the left hand of the boy
a boy's left arm
a herd of cows grazing on a lush green hillside
cattle eat grass on the side of a mountain
a blue car parked in front of a building
the automobile is parked outside the house
woman talking on her cell phone
the girl speaks on a mobile telephone
a very large airplane flying through the sky
a big plane is in the air
a fire hydrant on the sidewalk near the street
the hydrant stands by the pavement
the sky is full of clouds
a cloudy sky above the hills
he is trying to catch a frisbee
the guy attempts to grab the flying disc
a pizza with cheese, tomatoes and basil on it
a pie topped with cheeses and herbs
the bird is perched on a branch of a tree
birds sit in the trees
this is a picture of a kitchen with a stove and refrigerator
the photo shows a kitchen that has a fridge and an oven
a teddy bear and a doll on a bed
stuffed toys lying on the mattress
a motorcycle parked on the side of the road
someone left a motorbike along the highway
part of a window
the window pane is made of glass
the shirt is striped, black and white
a tee shirt with stripes
a mother and her baby are feeding the ducks
a woman with an infant gives bread to the birds
the number 23 on the back of his jersey
a player's number is twenty three
a slice of chocolate cake on a plate with a fork
the dessert is a piece of cake
a vase filled with flowers sitting on a window sill
some roses in a jar
a crowd of spectators is watching the tennis match
people look at the game
the horse is jumping over an obstacle
a rider makes his horse leap over the hurdle
a sandy beach with lots of people and umbrellas
a lot of folks at the seaside
the elephant's trunk
a trunk of an elephant in the zoo
a hot dog with mustard and ketchup in a bun
a sausage on bread
a small boat floating on top of the lake
a tiny vessel in the water
traffic lights hanging over an intersection
the signal is green
it looks like it is going to rain
it seems as if rain would come
the man who is standing on the right hand side of the bench
man standing to the right of a bench
he's about to throw the ball to the other player
the pitcher is ready to pitch
a computer monitor, a keyboard and a mouse on a wooden desk
a desktop computer on the table made of wood
"""


def written(rng):
    yield from make_caption_goldens.WRITTEN
    yield from make_meteor_goldens.WRITTEN
    captions = ABOUT_PICTURES.strip().split("\n")
    for at, caption in enumerate(captions):
        yield caption, [captions[at ^ 1]]
    for _ in range(1500):
        yield rng.choice(captions), rng.sample(captions, rng.randint(1, 4))


def scenes(rng):
    for _ in range(500):
        yield make_caption_goldens.made(rng)


def plain(text):
    """Whether all of it are words that every program cuts alike."""
    return re.fullmatch("[a-z]{2,}( [a-z]{2,})*", text)


def paraphrases(rng):
    with gzip.open(os.path.join(FOLDER, "data", "paraphrase-en.gz"), "rt", encoding="utf-8") as file:
        entries = [(phrase, other) for _, phrase, other in zip(file, file, file) if rng.random() < 0.005]
    entries = [(phrase.strip(), other.strip()) for phrase, other in entries]
    entries = [pair for pair in entries if plain(pair[0]) and plain(pair[1])]
    rng.shuffle(entries)
    for _ in range(2000):
        some = [entries.pop() for _ in range(rng.randint(2, 6))]
        references = []
        for _ in range(rng.randint(1, 2)):
            reference = [rng.choice(pair) for pair in some]
            reference.insert(rng.randrange(len(some)), reference.pop(rng.randrange(len(some))))
            references.append(" ".join(reference))
        yield " ".join(rng.choice(pair) for pair in some), references


def synonyms(rng):
    with zipfile.ZipFile(os.path.join(FOLDER, "meteor-1.5.jar")) as jar:
        read = lambda name: jar.read(f"synonym/english.{name}").decode().splitlines()
        irregular, words = read("exceptions"), read("synsets")
    forms = {base: others.split() for base, others in zip(irregular[::2], irregular[1::2])}
    sets = {}
    for word, numbers in zip(words[::2], words[1::2]):
        for number in numbers.split() if plain(word) else []:
            sets.setdefault(number, []).append(word)
    sets = [words for words in sets.values() if len(words) > 1]

    def form(word):
        if rng.random() < 0.5 and word in forms:
            return rng.choice(forms[word])
        ending = rng.choice(["", "", "s", "es", "ed", "ing", "er", "est", "ly"])
        if ending in ("s", "es") and word.endswith("y"):
            return word[:-1] + "ies"
        return (word[:-1] if ending and word.endswith("e") else word) + ending

    def caption(some):
        words = [form(rng.choice(words)) for words in some]
        for word in rng.sample(["the", "of", "a", "and", "in", "on", "is"], 2):
            words.insert(rng.randrange(len(words) + 1), word)
        return " ".join(words)

    for _ in range(1500):
        some = [rng.choice(sets) for _ in range(rng.randint(2, 8))]
        yield caption(some), [caption(rng.sample(some, len(some)) if rng.random() < 0.5 else some)]


def theirs(captions):
    tokenized = make_caption_goldens.tokenized
    references = tokenized([texts for _, texts in captions])
    return meteor.Meteor().compute_score(references, tokenized([[text] for text, _ in captions]))


def ours(gpt4roi, captions):
    with tempfile.TemporaryDirectory() as place:
        said, scored = os.path.join(place, "said.jsonl"), os.path.join(place, "scored.jsonl")
        with open(said, "w", encoding="utf-8") as file:
            for at, (text, texts) in enumerate(captions):
                line = {"id": at, "image": f"{at}", "question": "", "prediction": text, "answers": list(texts)}
                file.write(json.dumps(line) + "\n")
        command = [gpt4roi, "eval", "predictions", said, "--meteor-data", FOLDER, "--json", "--per-item", scored]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        with open(scored, encoding="utf-8") as file:
            return report["all"]["meteor"]["score"], [json.loads(line)["meteor"] for line in file]


def main(gpt4roi, seed):
    rng = random.Random(int(seed))
    kinds = {kind.__name__: list(kind(rng)) for kind in (written, scenes, paraphrases, synonyms)}
    captions = [caption for kind in kinds.values() for caption in kind]
    (their_corpus, their_scores), (our_corpus, our_scores) = theirs(captions), ours(gpt4roi, captions)
    differences = [abs(one - other) for one, other in zip(their_scores, our_scores, strict=True)]
    for name, kind in kinds.items():
        of_kind, differences = differences[: len(kind)], differences[len(kind) :]
        print(f"{name}: {len(kind)} samples, largest difference {max(of_kind):.1e}")
    print(f"all together: {our_corpus:.6f}, difference {abs(their_corpus - our_corpus):.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
