//! Words of a caption, cut as the field's scores cut them.
//!
//! Scores of captions count words, so they depend on what a word is. The reference is `PTBTokenizer`
//! of pycocoevalcap 1.2: Stanford CoreNLP 3.4.1 with `-preserveLines -lowerCase`, and then a list of
//! punctuation that is thrown away. What stands here was written after the documented conventions of
//! the Penn Treebank and after what that program answers; `tests/captions.rs` compares the two.
//!
//! Brackets stay, as `-lrb-` and so on: the reference's list has them in capitals, which its lower-cased
//! tokens never are.
//!
//! Not covered, because captions hardly have them: dates as 2020-10-05, telephone numbers with spaces or
//! full stops, faces of the kind `T_T`, endings behind contractions (`cannot's`), numeric entities, control
//! characters of Windows-1252, and letters of scripts that the reference is too old for. A mixed number
//! (`1 1/2`) and a tag with a space in it are two words here and, glued by a no-break space, one word for
//! the reference's ROUGE-L and METEOR.

use regex_automata::{
    Anchored, Input, MatchKind,
    hybrid::dfa::{Cache, DFA},
    util::{pool::Pool, syntax},
};

/// Cuts captions into words.
///
/// The rules are one automaton, and at every place the rule wins that reaches furthest; among equals,
/// the first.
#[derive(Debug)]
pub struct PtbTokenizer {
    dfa: DFA,
    caches: Pool<Cache, Box<dyn Fn() -> Cache + Send + Sync>>,
}

impl Default for PtbTokenizer {
    fn default() -> Self {
        Self::new()
    }
}

impl PtbTokenizer {
    /// Compiles the rules.
    pub fn new() -> Self {
        let patterns: Vec<String> = RULES.iter().map(|rule| spell_out(rule.pattern)).collect();
        let dfa = DFA::builder()
            .configure(DFA::config().match_kind(MatchKind::All).skip_cache_capacity_check(true))
            .syntax(syntax::Config::new())
            .build_many(&patterns)
            .expect("the rules are constant, and a test compiles them");
        let of = dfa.clone();
        Self { dfa, caches: Pool::new(Box::new(move || of.create_cache())) }
    }

    /// The words of a caption: lower-cased, without punctuation.
    pub fn words(&self, caption: &str) -> Vec<String> {
        let line = one_line(caption);
        let mut cache = self.caches.get();
        let (mut at, mut words) = (0, Vec::new());
        while let Some(first) = line[at..].chars().next() {
            let Some((rule, end)) = self.longest(&mut cache, &line, at) else {
                at += first.len_utf8();
                continue;
            };
            let end = rule.context.map_or(end, |context| at + context(&line[at..end]));
            let token = &line[at..end];
            let (head, tail) = token.split_at(rule.split.unwrap_or(token.len()));
            words.extend([head, tail].into_iter().flat_map(spellings).filter(|word| !is_punctuation(word)));
            at = end;
        }
        words
    }

    /// The rule that reaches furthest from a place, and to where.
    fn longest(&self, cache: &mut Cache, line: &str, at: usize) -> Option<(&'static Rule, usize)> {
        let input = Input::new(line).range(at..).anchored(Anchored::Yes);
        // A search fails only if its cache is too small or quits at a byte, and it is allowed neither.
        let found = self.dfa.try_search_fwd(cache, &input).ok()??;
        (found.offset() > at).then(|| (&RULES[found.pattern()], found.offset()))
    }
}

/// One kind of token.
struct Rule {
    /// What it looks like; names in angle brackets stand for the classes of [`spell_out`].
    pattern: &'static str,
    /// How much of a match belongs to the token, where it depends on what follows.
    context: Option<fn(&str) -> usize>,
    /// After how many bytes the token is cut in two.
    split: Option<usize>,
}

const fn token(pattern: &'static str) -> Rule {
    Rule { pattern, context: None, split: None }
}

const fn before(pattern: &'static str, context: fn(&str) -> usize) -> Rule {
    Rule { pattern, context: Some(context), split: None }
}

const fn pair(pattern: &'static str, split: usize) -> Rule {
    Rule { pattern, context: None, split: Some(split) }
}

/// What tokens look like, the more special first.
const RULES: &[Rule] = &[
    // Tags, addresses, names and topics of social media.
    token(r"</?[A-Za-z!?][^<>]*>"),
    token(r"(?i:https?|ftp)://[^\s<>]*[^\s<>.,;:!?'\x22()\[\]{}]"),
    token(r"(?i:www)\.[^\s<>]*[^\s<>.,;:!?'\x22()\[\]{}]"),
    token(r"[A-Za-z0-9][A-Za-z0-9._+-]*@[^\s<>()\x22]*[^\s<>()\x22.]"),
    token(r"#<letter>+"),
    token(r"@[A-Za-z_][A-Za-z0-9_]*"),
    // Words that are two, written as one.
    pair(r"(?i:cannot|gonna|gotta|lemme|gimme|wanna)", 3),
    pair(r"(?i:more['’]n)", 4),
    pair(r"'(?i:tis|twas)", 2),
    // `can't` is `ca` and `n't`; whatever else has an apostrophe before its ending is a word and `'s`.
    before(r"[<letters>]+(?i:n)['’](?i:t)[^<letters>\d]", before_not),
    before(r"(?i:n)['’](?i:t)[^<letters>\d]", but_last),
    before(r"['’](?i:s|m|d|ll|re|ve)[^<letters>\d]", but_last),
    // Apostrophes that belong to their word.
    token(r"(?i:[dol])['’]<word>(?:-[<letters>\d]+)*"),
    token(r"(?i:ma['’]am|c['’]mon|[oe]['’]er|ne['’]er|ol['’])"),
    before(r"(?i:[jy])['’]<letter>", |found| found.len() - last(found)),
    token(r"['’](?i:n['’]|em|til|cause)"),
    before(r"['’](?i:n)[^<letters>\d]", but_last),
    before(r"['’]\d\d[sS][^<letters>\d]", but_last),
    before(r"['’]\d\d[^<letters>\d'’\x22]", but_last),
    // Abbreviations keep their full stop, some of them only before a number.
    token(r"<letter>\.(?:<letter>\.)*"),
    token(r"(?i:<abbreviation>)\."),
    token(r"(?:<capital_abbreviation>)\."),
    before(r"(?i:art|ca|figs?|nos?|op|pp)\.\s*\d", |found| found.find('.').map_or(found.len(), |dot| dot + 1)),
    before(r"(?:<word>|[<letters>\d]+)\.[,;:]", but_last),
    // Words, with hyphens, slashes and ampersands inside.
    token(r"<word>"),
    token(r"[<letters>\d]+"),
    token(r"[<letters>\d][<letters>\d.,]*(?:-(?:[<letters>\d]+|<letter>\.(?:<letter>\.)+))+"),
    token(r"[<letters>\d]+(?:_[<letters>\d]+)+"),
    token(r"[<letters>\d]+(?:-[<letters>\d]+)*(?:/[<letters>\d]+){1,2}(?:-[<letters>\d]+)*"),
    token(r"[A-Z]+(?:&[A-Z]+)+"),
    // Numbers, with a sign, with marks inside, as fractions, dates and telephone numbers.
    token(r"[+-]?\d+"),
    token(r"[+-]?\d*(?:[.,:]\d+)+"),
    token(r"[+-]?\d{1,4}(?:[ -]?\d{1,4}/\d{1,4})"),
    token(r"\d{1,4}/\d{1,4}"),
    token(r"\d{1,2}[/-]\d{1,2}[/-]\d{2,4}"),
    token(r"\(\d{3}\)[ -]?\d{3}-?\d{4}"),
    // Money, runs of marks, faces, and any other mark by itself.
    token(r"[A-Z]{1,3}\$"),
    token(r"[!?]+"),
    token(r"_+"),
    token(r"\*+"),
    token(r"#+"),
    token(r"-{2,3}|\.{3,}|''"),
    token(r"(?i:c\+\+|[cf]#)"),
    before(r"[<>]?[:;=][-o*']?[)(DPp\[\]{}@|\\][^<letters>\d]", but_last),
    token(r"[<symbols>]"),
];

fn but_last(found: &str) -> usize {
    found.len() - last(found)
}

/// Bytes of the last character.
fn last(found: &str) -> usize {
    found.chars().next_back().map_or(0, char::len_utf8)
}

/// `isn't ` without `n't `: its last four characters.
fn before_not(found: &str) -> usize {
    found.char_indices().rev().nth(3).map_or(found.len(), |(at, _)| at)
}

/// Puts classes of characters, and lists of words, in the place of their names.
fn spell_out(pattern: &str) -> String {
    /// Letters with their marks, soft and Unicode hyphens; without what only changes how a symbol looks.
    const LETTERS: &str = r"[\p{L}\p{M}\x{ad}\x{2010}\x{2011}--[\x{20dd}-\x{20e4}\x{fe00}-\x{fe0f}]]";
    /// The marks that the reference knows as tokens of their own. It drops all others, emoji among them.
    const SYMBOLS: &str = concat!(
        r"!-/:-@\[-`{-~¡-¬®-¿×÷\x{2016}\x{2017}\x{2020}-\x{2023}\x{2030}-\x{2038}\x{203b}\x{203e}-\x{2042}",
        r"\x{2070}-\x{209f}\x{20a4}\x{20ac}\x{2100}-\x{215e}\x{2190}-\x{2bff}\x{3001}\x{3002}\x{3012}\x{30fb}",
        r"\x{ff01}-\x{ff65}\x{5be}-\x{61f}\x{66a}\x{6d4}\x{964}\x{965}\x{201a}\x{201e}\x{201f}",
    );
    let letter = format!("[{LETTERS}]");
    pattern
        .replace("<word>", &format!(r"{letter}[{LETTERS}\d]*(?:[.!?]{letter}[{LETTERS}\d]*)*"))
        .replace("<letter>", &letter)
        .replace("<letters>", LETTERS)
        .replace("<symbols>", SYMBOLS)
        .replace("<abbreviation>", &ABBREVIATIONS.join("|"))
        .replace("<capital_abbreviation>", &CAPITAL_ABBREVIATIONS.join("|"))
}

/// Abbreviations in any case; the reference knows more of places and firms.
const ABBREVIATIONS: &[&str] = &[
    "adj", "adm", "adv", "al", "ala", "alex", "apr", "ariz", "assn", "assoc", "asst", "atty", "attys", "aug", "ave",
    "bhd", "bldg", "blvd", "brig", "bros", "calif", "capt", "cf", "cie", "cmdr", "co", "col", "colo", "comdr", "conn",
    "corp", "cos", "cpl", "ct", "dec", "dept", "det", "dr", "drs", "elec", "ens", "esq", "est", "etc", "ext", "feb",
    "fla", "fri", "ft", "ga", "gen", "gov", "hon", "inc", "ind", "insp", "intl", "jan", "jos", "jr", "jul", "jun",
    "kan", "kans", "ky", "lieut", "lt", "ltd", "maj", "mar", "md", "messrs", "mfg", "mich", "minn", "mlle", "mme",
    "mo", "mon", "mont", "mr", "mrs", "ms", "msgr", "mt", "natl", "neb", "nev", "nov", "oct", "okla", "penn", "pfc",
    "ph", r"ph\.d", "plc", "pres", "prof", "profs", "pte", "pty", "pvt", "rd", "rep", "reps", "rev", "rt", "sen",
    "sens", "sep", "sept", "sfc", "sgt", "sq", "sr", "st", "ste", "supt", "sys", "tel", "tenn", "thu", "thurs",
    "treas", "tue", "tues", "univ", "va", "vs", "vt", "wed", "wis", "wisc", "wm", "wyo",
];

/// Abbreviations that are words in small letters.
const CAPITAL_ABBREVIATIONS: &[&str] =
    &["Ark", "Az", "Del", "Ill", "La", "Mass", "Miss", "MR", "Ore", "Pa", "Tex", "Wash"];

/// A caption as one line with an end, so that every word has something behind it.
fn one_line(caption: &str) -> String {
    let mut line = caption.replace('\n', " ");
    for (entity, mark) in
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&nbsp;", " "), ("&amp;", "&")]
    {
        line = line.replace(entity, mark);
    }
    line + "\n"
}

/// How the reference writes a token; what it glues by a no-break space falls apart.
fn spellings(token: &str) -> Vec<String> {
    let mut word = token.to_lowercase().replace('\u{ad}', "");
    if ["n’t", "’s", "’m", "’d", "’ll", "’re", "’ve"].contains(&word.as_str()) {
        word = word.replace('’', "'");
    }
    for (mark, name) in SPELLINGS {
        word = word.replace(*mark, name);
    }
    word.split_whitespace().map(str::to_owned).collect()
}

/// Brackets, money and fractions, as the Penn Treebank's keyboard could write them.
const SPELLINGS: &[(char, &str)] = &[
    ('(', "-lrb-"),
    (')', "-rrb-"),
    ('[', "-lsb-"),
    (']', "-rsb-"),
    ('{', "-lcb-"),
    ('}', "-rcb-"),
    ('¢', "cents"),
    ('£', "#"),
    ('€', "$"),
    ('½', "1/2"),
    ('¼', "1/4"),
    ('¾', "3/4"),
    ('⅓', "1/3"),
    ('⅔', "2/3"),
];

/// Quotes, sentence marks and dashes, in every form that the reference rewrites to one of its list.
fn is_punctuation(word: &str) -> bool {
    const MARKS: &str = "'`\".,:;-?!“”‘’‛«»‹›…–—―";
    let mut marks = word.chars();
    word.trim_matches(['-', '.', '\'']).is_empty()
        || matches!((marks.next(), marks.next()), (Some(mark), None) if MARKS.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every expected value is what `java edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase` of
    /// CoreNLP 3.4.1 prints, less the punctuation that pycocoevalcap removes.
    #[test]
    fn words_are_those_of_the_reference() {
        let cases = [
            ("The grey cat isn't here.", "the grey cat is n't here"),
            ("I can't, won't; don't: they'll've gone!", "i ca n't wo n't do n't they 'll 've gone"),
            ("it’s the dog's; the dogs’ don’t", "it 's the dog 's the dogs do n't"),
            ("cannot gonna 'tis 'Twas", "can not gon na 't is 't was"),
            ("rock'n'roll, rock 'n' roll at 5 o'clock", "rock 'n' roll rock 'n' roll at 5 o'clock"),
            ("Mr. Smith of the U.S. Army, etc.", "mr. smith of the u.s. army etc."),
            ("No. 5, no.", "no. 5 no"),
            ("a man., a dog.", "a man. a dog"),
            ("1,000,000 at $5.99, £20, 5¢, €3", "1,000,000 at $ 5.99 # 20 5 cents $ 3"),
            ("7+8, a,1 v1.2 5.a", "7 +8 a ,1 v1 .2 5 a"),
            ("a well-known 10-year-old -- x--y –", "a well-known 10-year-old x y"),
            ("and/or left/right-hand w/ 3½", "and/or left/right-hand w / 3 1/2"),
            ("a (small) [big] {curly} one", "a -lrb- small -rrb- -lsb- big -rsb- -lcb- curly -rcb- one"),
            ("what?! yes!! no!", "what ?! yes !! no"),
            ("\"a\" 'b' “c” ‘x’ «e»", "a b c x e"),
            ("AT&T, rock&roll, A&b", "at&t rock & roll a & b"),
            ("at www.a.org/bar. or a@b.com of #tag", "at www.a.org/bar or a@b.com of #tag"),
            ("ñandú 日本 ♥ 😀 ₹5", "ñandú 日本 ♥ 5"),
            ("the '90s, 1990's and '80's", "the '90s 1990 's and 80 's"),
            ("10:30pm, 5pm and 10/5/2020", "10:30 pm 5pm and 10/5/2020"),
            ("", ""),
            (" . ", ""),
        ];
        let tokenizer = PtbTokenizer::new();
        for (caption, expected) in cases {
            assert_eq!(tokenizer.words(caption).join(" "), expected, "{caption}");
        }
    }

    #[test]
    fn a_line_break_is_a_space() {
        assert_eq!(PtbTokenizer::new().words("a\nb\r\nc"), ["a", "b", "c"]);
    }
}
