//! Words as METEOR compares them: what its option `-norm` makes of captions that are tokenized already.
//!
//! Hyphens between words go, so that parts can match; apostrophes and every mark stand by themselves; full stops of
//! `u.s.` go, and those of abbreviations stay only before a small letter. Runs of full stops, which no token has, are
//! not looked at.

/// Abbreviations in small letters that keep their full stop at the end, too.
const KEEP_THEIR_STOP: [&str; 3] = ["v", "vs", "rev"];

/// Whether a mark between two characters is meant.
type Between = fn(char, char) -> bool;

/// The words of a tokenized, lower-cased caption.
pub(crate) fn normalised(words: &[String]) -> Vec<String> {
    let line = format!(" {} ", words.join(" "));
    let line: Vec<char> = line.chars().flat_map(apart).collect();
    let line = between(&line, ',', |left, right| !(is_digit(left) && is_digit(right)), " , ");
    let line: String = line.into_iter().map(plain).collect();
    let line: Vec<char> = line.replace("''", " \" ").replace("--", "-").chars().collect();
    let line = between(&line, '-', |left, right| (is_word(left) || left == '.') && is_word(right), " ");
    let words = with_apostrophes(line).into_iter().collect::<String>();
    without_stops(&words.split_whitespace().collect::<Vec<_>>())
}

/// Every mark by itself, save those that can stand within a word.
fn apart(mark: char) -> Vec<char> {
    let within = is_word(mark) || mark.is_ascii_whitespace() || ".'`,-‘’".contains(mark);
    if within { vec![mark] } else { vec![' ', mark, ' '] }
}

/// One form of quotation marks and dashes.
fn plain(mark: char) -> char {
    match mark {
        '`' | '‘' | '’' => '\'',
        '“' | '”' => '"',
        '–' => '-',
        _ => mark,
    }
}

/// Contractions are cut before their apostrophe, and apostrophes that are none stand by themselves.
fn with_apostrophes(line: Vec<char>) -> Vec<char> {
    let passes: [(Between, &str); 5] = [
        (|left, right| !is_letter(left) && !is_letter(right), " ' "),
        (|left, right| !is_letter(left) && !is_digit(left) && is_letter(right), " ' "),
        (|left, right| is_letter(left) && !is_letter(right), " ' "),
        (|left, right| is_letter(left) && is_letter(right), " '"),
        (|left, right| is_digit(left) && right == 's', " '"),
    ];
    passes.into_iter().fold(line, |line, (fits, becomes)| between(&line, '\'', fits, becomes))
}

/// Rewrites a mark where its neighbours fit. As with a regular expression, neighbours that were part of one place are
/// not part of the next: the second hyphen of `a-b-c` stays.
fn between(line: &[char], mark: char, fits: impl Fn(char, char) -> bool, becomes: &str) -> Vec<char> {
    let (mut rewritten, mut rest) = (Vec::with_capacity(line.len()), line);
    while let [left, after @ ..] = rest {
        rewritten.push(*left);
        rest = after;
        if let [found, right, after @ ..] = rest
            && *found == mark
            && fits(*left, *right)
        {
            rewritten.extend(becomes.chars());
            rewritten.push(*right);
            rest = after;
        }
    }
    rewritten
}

/// Full stops at the end of words.
fn without_stops(words: &[&str]) -> Vec<String> {
    let mut result = Vec::with_capacity(words.len());
    for (at, &word) in words.iter().enumerate() {
        let next = words.get(at + 1).and_then(|next| next.chars().next());
        match word.strip_suffix('.') {
            None | Some("") => result.push(word.into()),
            Some(stem) if stem.contains('.') && stem.contains(is_letter) => result.push(word.replace('.', "")),
            Some(stem) if keeps_stop(stem, next) => result.push(word.into()),
            Some(stem) => result.extend([stem.into(), ".".into()]),
        }
    }
    result
}

fn keeps_stop(stem: &str, next: Option<char>) -> bool {
    KEEP_THEIR_STOP.contains(&stem)
        || next.is_some_and(|next| next.is_ascii_lowercase() || stem == "pp" && next.is_ascii_digit())
}

fn is_digit(mark: char) -> bool {
    mark.is_ascii_digit()
}

fn is_word(mark: char) -> bool {
    is_letter(mark) || is_digit(mark)
}

/// Latin and Cyrillic; METEOR takes every other letter for a mark.
fn is_letter(mark: char) -> bool {
    mark.is_ascii_alphabetic()
        || matches!(mark, 'À'..='Ö' | 'Ø'..='ö' | 'ø'..='ž' | '\u{400}'..='\u{527}')
        || matches!(mark, '\u{a640}'..='\u{a66e}' | '\u{a67e}'..='\u{a697}' | '\u{1d00}'..='\u{1d7f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every expected value is what METEOR 1.5's own `Normalizer.normalizeLine` answers, keeping punctuation.
    #[test]
    fn words_are_those_of_the_program() {
        let cases = [
            ("the dog 's tail is n't red", "the dog ' s tail is n 't red"),
            ("a black-and-white x-y-z one", "a black and white x y-z one"),
            ("mr. smith of the u.s. in no. 5", "mr. smith of the us in no . 5"),
            ("dogs vs. cats etc.", "dogs vs. cats etc ."),
            ("1,000 at $ 5.99 ,1 -lrb- b -rrb-", "1,000 at $ 5.99 , 1 -lrb- b -rrb-"),
            ("rock 'n' roll 1990 's 90's", "rock ' n ' roll 1990 ' s 90 's"),
            ("1/2 and/or w/o", "1 / 2 and / or w / o"),
            ("日本 naïve мир", "日 本 naïve мир"),
            ("he said “yes” – ''no'' -- ``maybe''", "he said \" yes \" - \" no \" - \" maybe \""),
            ("1914–18 a–b a --- b 'tis''s", "1914 - 18 a - b a -- b ' tis \" s"),
            ("", ""),
        ];
        for (caption, expected) in cases {
            let words: Vec<String> = caption.split_whitespace().map(str::to_owned).collect();
            assert_eq!(normalised(&words).join(" "), expected, "{caption}");
        }
    }
}
