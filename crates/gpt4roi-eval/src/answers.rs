//! Whether a short answer is right.

/// Whether an answer is one of those that are right, by [`normalised`] text.
pub fn is_right(prediction: &str, answers: &[String]) -> bool {
    let said = normalised(prediction);
    answers.iter().any(|answer| normalised(answer) == said)
}

/// An answer in small letters, without `.`, `!`, `?`, `,`, `;` or `:` at its end and without an article (`a`, `an` or
/// `the`) at its beginning, and with single spaces: “The  Octopus.” is “octopus”.
pub fn normalised(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let bare = lower.trim_end_matches(|mark: char| mark.is_whitespace() || ".!?,;:".contains(mark));
    let words: Vec<&str> = bare.split_whitespace().collect();
    let words = match words[..] {
        ["a" | "an" | "the", ref rest @ ..] if !rest.is_empty() => rest,
        ref all => all,
    };
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_article_and_final_marks_do_not_count() {
        let answers = ["An octopus.".to_owned(), "squid".to_owned()];
        for right in ["octopus", "the Octopus!", "an  octopus .", "A squid"] {
            assert!(is_right(right, &answers), "{right}");
        }
        for wrong in ["a octopus tentacle", "octopuses", "", "an", "oct.opus"] {
            assert!(!is_right(wrong, &answers), "{wrong}");
        }
    }

    #[test]
    fn an_article_alone_is_an_answer() {
        assert_eq!(normalised("A."), "a");
        assert_eq!(normalised(" . "), "");
    }
}
