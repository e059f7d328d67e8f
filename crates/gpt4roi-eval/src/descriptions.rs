//! Detailed descriptions, claim by claim.

use std::collections::BTreeMap;

use gpt4roi_data::{
    Judgement,
    descriptions::{Claim, ClaimGroup},
};
use serde::Serialize;

use crate::metrics::{Accuracy, Tally};

/// What descriptions said of their regions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DescriptionReport {
    /// Descriptions.
    pub n: usize,
    /// By the kind of claim: `object`, `attribute` and `relation`.
    pub claims: BTreeMap<&'static str, ClaimReport>,
    /// Sentences that are no description of a scene's object, over all descriptions.
    pub unread_sentences: usize,
}

/// Claims of one kind. The intervals take claims to be independent; those of one description are not quite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClaimReport {
    /// Claims that hold.
    #[serde(rename = "true")]
    pub right: usize,
    /// Claims that do not.
    #[serde(rename = "false")]
    pub wrong: usize,
    /// What a full description would have said, and these did not say rightly.
    pub missing: usize,
    /// How many of the claims made hold.
    pub precision: Accuracy,
    /// How many of the claims that a full description makes were made rightly.
    pub recall: Accuracy,
}

/// Counts claims.
#[derive(Clone, Debug, Default)]
pub struct DescriptionTally {
    descriptions: usize,
    claims: BTreeMap<ClaimGroup, Counts>,
    unread: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    right: usize,
    wrong: usize,
    missing: usize,
    /// Claims of a full description.
    wanted: usize,
}

impl DescriptionTally {
    /// Counts one description; `full` is what it should have said.
    pub fn add(&mut self, judgement: &Judgement, full: &[Claim]) {
        self.descriptions += 1;
        self.unread += judgement.unread.len();
        let mut count = |claims: &[Claim], number: fn(&mut Counts) -> &mut usize| {
            claims.iter().for_each(|claim| *number(self.claims.entry(claim.group()).or_default()) += 1);
        };
        count(&judgement.right, |counts| &mut counts.right);
        count(&judgement.wrong, |counts| &mut counts.wrong);
        count(&judgement.missing, |counts| &mut counts.missing);
        count(full, |counts| &mut counts.wanted);
    }

    /// Counts another tally's descriptions, too.
    pub fn merge(&mut self, other: Self) {
        self.descriptions += other.descriptions;
        self.unread += other.unread;
        for (group, more) in other.claims {
            let counts = self.claims.entry(group).or_default();
            counts.right += more.right;
            counts.wrong += more.wrong;
            counts.missing += more.missing;
            counts.wanted += more.wanted;
        }
    }

    /// The shares.
    pub fn report(&self) -> DescriptionReport {
        let groups = [ClaimGroup::Object, ClaimGroup::Attribute, ClaimGroup::Relation];
        let claims = groups.map(|group| (group.name(), self.claims.get(&group).copied().unwrap_or_default().report()));
        DescriptionReport { n: self.descriptions, claims: claims.into(), unread_sentences: self.unread }
    }
}

impl Counts {
    fn report(&self) -> ClaimReport {
        let Self { right, wrong, missing, wanted } = *self;
        let precision = Tally::of(right, right + wrong).accuracy();
        let recall = Tally::of(wanted - missing.min(wanted), wanted).accuracy();
        ClaimReport { right, wrong, missing, precision, recall }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_counted_by_their_kind() {
        let full = [Claim::Is(1), Claim::Color("red".into()), Claim::Size("small".into())];
        let judgement = Judgement {
            right: vec![Claim::Is(1), Claim::Color("red".into())],
            wrong: vec![Claim::Size("large".into()), Claim::Shows(3)],
            missing: vec![Claim::Size("small".into())],
            unread: vec!["it purrs".into()],
        };
        let mut tally = DescriptionTally::default();
        tally.add(&judgement, &full);
        let mut other = DescriptionTally::default();
        other.add(&Judgement { missing: full.to_vec(), ..Judgement::default() }, &full);
        tally.merge(other);
        let report = tally.report();
        assert_eq!((report.n, report.unread_sentences), (2, 1));
        let shares = |group: &str| (report.claims[group].precision.accuracy, report.claims[group].recall.accuracy);
        // Objects: of two claims one true; of two wanted one found. Attributes: one of two; one of four.
        assert_eq!((shares("object"), shares("attribute")), ((0.5, 0.5), (0.5, 0.25)));
        assert_eq!((report.claims["relation"].precision.n, report.claims["relation"].recall.n), (0, 0));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["claims"]["object"]["true"], &json["claims"]["object"]["false"]), (&1.into(), &1.into()));
    }
}
