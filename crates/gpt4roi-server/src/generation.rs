//! How an answer is to be generated: OpenAI's parameters, as this model takes them.

use gpt4roi::{chat::AskOptions, sampling::Sampling, zoom::Zoom};

use crate::{
    app::unique,
    fault::{Fault, Result},
    limits::Limits,
};

/// How many tokens an answer may have where nothing was said.
const DEFAULT_TOKENS: usize = 512;
/// The most likely tokens that are drawn from where nothing was said, as the original has it.
const DEFAULT_TOP_K: u64 = 50;

/// What a request wishes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) max_tokens: Option<u64>,
    /// The newer name of the same, which counts where both are there.
    pub(crate) max_completion_tokens: Option<u64>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<u64>,
    pub(crate) seed: Option<i64>,
    pub(crate) zoom: Option<Zoom>,
}

impl Wishes {
    /// Without a temperature, or with 0, the most likely token is taken; without a seed, chance decides.
    ///
    /// # Errors
    /// If a wish is out of range.
    pub(crate) fn options(&self, limits: &Limits) -> Result<AskOptions> {
        let max_new_tokens = self.tokens(limits.max_tokens)?;
        let top_k = self.top_k.unwrap_or(DEFAULT_TOP_K);
        let top_k = u32::try_from(top_k).map_err(|_| out_of_range("top_k", "0 to 4294967295"))? as usize;
        let (temperature, top_p) = (self.temperature.unwrap_or(0.0), self.top_p.unwrap_or(1.0));
        if !(0.0..=2.0).contains(&temperature) {
            return Err(out_of_range("temperature", "0 to 2"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(out_of_range("top_p", "above 0 and at most 1"));
        }
        let seed = self.seed.map_or_else(unique, i64::cast_unsigned);
        let random = Sampling::Random { temperature, top_k, top_p, seed };
        let sampling = if temperature == 0.0 { Sampling::Greedy } else { random };
        let zoom = self.zoom.unwrap_or_default();
        Ok(AskOptions { max_new_tokens, sampling, zoom, ..AskOptions::default() })
    }

    fn tokens(&self, most: usize) -> Result<usize> {
        let (param, tokens) = match (self.max_completion_tokens, self.max_tokens) {
            (Some(tokens), _) => ("max_completion_tokens", tokens),
            (None, Some(tokens)) => ("max_tokens", tokens),
            (None, None) => return Ok(DEFAULT_TOKENS.min(most)),
        };
        match (1..=most as u64).contains(&tokens) {
            true => Ok(tokens as usize),
            false => Err(out_of_range(param, &format!("1 to {most}"))),
        }
    }
}

fn out_of_range(param: &str, expected: &str) -> Fault {
    Fault::Value { param: param.to_owned(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use gpt4roi::zoom::Glass;

    use super::*;

    fn options(wishes: Wishes) -> Result<AskOptions> {
        wishes.options(&Limits::default())
    }

    #[test]
    fn the_most_likely_token_is_taken_unless_a_temperature_is_wished() {
        let greedy = options(Wishes { top_p: Some(0.5), seed: Some(1), ..Wishes::default() }).unwrap();
        assert_eq!((greedy.sampling, greedy.max_new_tokens), (Sampling::Greedy, 512));
        let wishes =
            Wishes { temperature: Some(0.7), top_k: Some(3), seed: Some(-1), max_tokens: Some(9), ..Wishes::default() };
        let random = options(wishes).unwrap();
        let expected = Sampling::Random { temperature: 0.7, top_k: 3, top_p: 1.0, seed: u64::MAX };
        assert_eq!((random.sampling, random.max_new_tokens), (expected, 9));
        let by_chance = Wishes { temperature: Some(1.0), ..Wishes::default() };
        assert_ne!(options(by_chance).unwrap().sampling, options(by_chance).unwrap().sampling);
    }

    #[test]
    fn regions_are_looked_at_closely_where_that_is_wished() {
        let closely = Zoom::Auto(Glass::STANDARD);
        for (wish, expected) in [(None, Zoom::Off), (Some(Zoom::Off), Zoom::Off), (Some(closely), closely)] {
            assert_eq!(options(Wishes { zoom: wish, ..Wishes::default() }).unwrap().zoom, expected);
        }
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let none = Wishes::default();
        for (wishes, param) in [
            (Wishes { max_tokens: Some(0), ..none }, "max_tokens"),
            (Wishes { max_tokens: Some(4097), ..none }, "max_tokens"),
            (Wishes { max_tokens: Some(u64::MAX), ..none }, "max_tokens"),
            (Wishes { max_completion_tokens: Some(4097), ..none }, "max_completion_tokens"),
            (Wishes { max_completion_tokens: Some(0), max_tokens: Some(5), ..none }, "max_completion_tokens"),
            (Wishes { temperature: Some(-0.1), ..none }, "temperature"),
            (Wishes { temperature: Some(1e300), ..none }, "temperature"),
            (Wishes { top_p: Some(0.0), ..none }, "top_p"),
            (Wishes { top_p: Some(1.5), ..none }, "top_p"),
            (Wishes { top_k: Some(u64::MAX), ..none }, "top_k"),
        ] {
            let fault = options(wishes).unwrap_err();
            assert!(matches!(&fault, Fault::Value { param: got, .. } if got == param), "{wishes:?}: {fault}");
        }
    }
}
