//! Words that were cut apart, as a sentence again.

/// What is left of a shortened word behind its apostrophe.
const SHORTENED: [&str; 7] = ["s", "t", "m", "d", "re", "ve", "ll"];

/// Joins words and punctuation that stand apart, as BERT's tokenizer and the Penn Treebank's cut them: `it`, `'`, `s`
/// and `it`, `'s` become `it's`, `do`, `n't` becomes `don't`, `t`, `-`, `shirt` becomes `t-shirt`, and a full stop goes
/// to the word before it.
///
/// What can't be told is decided for what is frequent: a hyphen stands within a word, and an apostrophe by itself
/// belongs to the word before it, as in `the boys' dog`.
pub(crate) fn sentence<W: AsRef<str>>(words: &[W]) -> String {
    let mut sentence = String::new();
    let mut quoted = false;
    let mut joined = true;
    for (at, word) in words.iter().enumerate() {
        let (word, next) = (word.as_ref().trim(), words.get(at + 1).map(|next| next.as_ref().trim()));
        let (before, after) = match word {
            "" => continue,
            "\"" => {
                quoted = !quoted;
                (!quoted, quoted)
            }
            "'" => (true, next.is_some_and(is_shortened)),
            "." | ":" if ends_in_digit(&sentence) => (true, next.is_some_and(is_number)),
            // Otherwise it stands in a list of numbers.
            "," if ends_in_digit(&sentence) => (true, next.is_some_and(|next| is_number(next) && next.len() == 3)),
            "-" | "/" => (true, true),
            "(" | "[" | "$" | "#" => (false, true),
            _ => (belongs_to_last(word), false),
        };
        if !before && !joined {
            sentence.push(' ');
        }
        sentence.push_str(word);
        joined = after;
    }
    sentence
}

fn belongs_to_last(word: &str) -> bool {
    let punctuation =
        word.chars().all(|character| matches!(character, '.' | ',' | '?' | '!' | ';' | ':' | ')' | ']' | '%'));
    punctuation || word.eq_ignore_ascii_case("n't") || word.strip_prefix('\'').is_some_and(is_shortened)
}

fn is_shortened(word: &str) -> bool {
    SHORTENED.iter().any(|end| word.eq_ignore_ascii_case(end))
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

fn ends_in_digit(sentence: &str) -> bool {
    sentence.ends_with(|character: char| character.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_joined_as_they_were_written() {
        for (words, expected) in [
            ("No , she is a visitor .", "No, she is a visitor."),
            ("It ' s twisted in disgust ...", "It's twisted in disgust..."),
            ("They did n't , and he 's late !", "They didn't, and he's late!"),
            ("She isn ' t cold ; you ' re .", "She isn't cold; you're."),
            ("The boys ' dog", "The boys' dog"),
            ("a t - shirt and / or a coat", "a t-shirt and/or a coat"),
            ("\" Run , \" he said ( twice ) .", "\"Run,\" he said (twice)."),
            ("At 8 : 30 for $ 3.5 , 10 % of 1 , 000 .", "At 8:30 for $3.5, 10% of 1,000."),
            ("One of 3 , not 4 .", "One of 3, not 4."),
            ("'Tis  ? ", "'Tis?"),
            ("", ""),
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            assert_eq!(sentence(&words), expected);
        }
    }
}
