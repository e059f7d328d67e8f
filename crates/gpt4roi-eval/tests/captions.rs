//! Words and scores of captions against those of pycocoevalcap 1.2; `reference/make_caption_goldens.py` wrote them.

use gpt4roi_eval::{
    captions::{Corpus, Sample},
    meteor::Meteor,
    ptb::PtbTokenizer,
};
use serde::Deserialize;

/// How far a score may be from the reference's.
const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Goldens {
    corpus: Scores,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    prediction: String,
    references: Vec<String>,
    words: Vec<String>,
    reference_words: Vec<Vec<String>>,
    #[serde(flatten)]
    scores: Scores,
}

#[derive(Deserialize)]
struct Scores {
    bleu: [f64; 4],
    rouge_l: f64,
    cider: f64,
    meteor_exact_stem: f64,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("data/captions.json")).expect("the goldens are JSON")
}

#[test]
fn words_are_those_of_the_reference() {
    let tokenizer = PtbTokenizer::new();
    for item in goldens().items {
        let captions = std::iter::once((&item.prediction, &item.words));
        for (caption, words) in captions.chain(item.references.iter().zip(&item.reference_words)) {
            assert_eq!(&tokenizer.words(caption), words, "{caption}");
        }
    }
}

#[test]
fn scores_are_those_of_the_reference() {
    let Goldens { corpus: expected, items } = goldens();
    let sample = |item: &Item| Sample { prediction: item.words.clone(), references: item.reference_words.clone() };
    let corpus = Corpus::new(&items.iter().map(sample).collect::<Vec<_>>(), &Meteor::new());
    for (item, got) in items.iter().zip(corpus.samples()) {
        let got = (got.bleu, got.rouge_l, got.cider, *got.meteor.value());
        assert_close(got, &item.scores, &item.prediction);
    }
    let got = corpus.scores(1);
    let bleu = got.bleu.map(|estimate| estimate.score);
    assert_close((bleu, got.rouge_l.score, got.cider.score, got.meteor.value().score), &expected, "all together");
}

fn assert_close((bleu, rouge_l, cider, meteor): ([f64; 4], f64, f64, f64), expected: &Scores, what: &str) {
    let Scores { bleu: of_bleu, rouge_l: of_rouge_l, cider: of_cider, meteor_exact_stem: of_meteor } = expected;
    let pairs = [("ROUGE-L", rouge_l, *of_rouge_l), ("CIDEr", cider, *of_cider), ("METEOR", meteor, *of_meteor)];
    let bleus = bleu.into_iter().zip(*of_bleu).map(|(got, expected)| ("BLEU", got, expected));
    for (name, got, expected) in bleus.chain(pairs) {
        assert!((got - expected).abs() < TOLERANCE, "{name} of {what:?}: {got}, expected {expected}");
    }
}
