//! The low watermark of the change log, and the gaps above it in which entries may still appear.

use std::collections::BTreeSet;

use crate::store::change::Range;

/// Gaps that are tracked. If there are more, the oldest are merged and read as one.
const MAX_GAPS: usize = 1000;

/// A low watermark with gap tracking.
///
/// Ids are assigned before their transactions commit, so a smaller id may appear after a larger one was read.
/// The watermark advances to a candidate id once every transaction that may have taken an id up to it has
/// ended. Above the watermark, unseen ids are tracked as gaps, and only gaps are read again. The cost of a
/// poll therefore does not depend on the age of the oldest transaction.
#[derive(Debug, Default)]
pub struct Watermark {
    /// No entry up to this id can appear any more. Unknown at the start, because a running transaction may
    /// still write below the end of the log.
    low: Option<i64>,
    /// The next value of the watermark.
    candidate: i64,
    /// The transactions that must end before the watermark advances to `candidate`; `None` if there is no
    /// candidate.
    writers: Option<BTreeSet<String>>,
    /// The ranges above the watermark in which entries may appear, in order.
    gaps: Vec<Range>,
    /// The last assigned id at the last observation.
    end: i64,
}

impl Watermark {
    pub const fn get(&self) -> Option<i64> {
        self.low
    }

    /// Reports whether nothing is unread and no entry can still appear: no id above the watermark was
    /// assigned.
    pub fn is_at(&self, last_id: i64) -> bool {
        self.low == Some(last_id)
    }

    /// Records the last assigned id, and the writing transactions that were listed after it was read. Must be
    /// called before the log is read.
    pub fn observe(&mut self, last_id: i64, writers: &BTreeSet<String>) {
        if let Some(awaited) = &mut self.writers {
            awaited.retain(|writer| writers.contains(writer));
        } else {
            self.candidate = last_id;
            self.writers = Some(writers.clone());
        }
        if self.low.is_none() {
            if !self.is_drained() {
                return;
            }
            self.low = Some(self.candidate);
            self.end = self.candidate;
        }
        if last_id > self.end {
            self.gaps.push(Range { after: self.end, upto: last_id });
            self.end = last_id;
        }
    }

    /// Returns the unread ranges behind `covered`.
    pub fn unread_ranges(&self, covered: i64) -> Vec<Range> {
        let behind = self.gaps.iter().filter(|gap| gap.upto > covered);
        behind.map(|gap| Range { after: gap.after.max(covered), upto: gap.upto }).collect()
    }

    /// Records that the gaps were read up to `upto`, or to their end, and which ids were present, in order.
    pub fn record_read(&mut self, upto: Option<i64>, ids: &[i64]) {
        let upto = upto.unwrap_or(i64::MAX);
        let mut gaps = Vec::with_capacity(self.gaps.len());
        for gap in &self.gaps {
            let mut after = gap.after;
            let first = ids.partition_point(|id| *id <= gap.after);
            for id in ids[first..].iter().take_while(|id| **id <= gap.upto.min(upto)) {
                gaps.push(Range { after, upto: id - 1 });
                after = *id;
            }
            gaps.push(Range { after, upto: gap.upto });
        }
        gaps.retain(|gap| gap.after < gap.upto);
        if gaps.len() > MAX_GAPS {
            let merged = gaps.len() - MAX_GAPS + 1;
            let whole = Range { after: gaps[0].after, upto: gaps[merged - 1].upto };
            gaps.splice(..merged, [whole]);
        }
        self.gaps = gaps;
    }

    /// Advances the watermark to the candidate if its transactions have ended. Must be called after all gaps
    /// were read, or if the caller discards the unread entries.
    pub fn advance(&mut self) {
        if self.is_drained() {
            self.writers = None;
            self.low = Some(self.candidate);
            self.gaps.retain(|gap| gap.upto > self.candidate);
            if let Some(first) = self.gaps.first_mut() {
                first.after = first.after.max(self.candidate);
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.writers.as_ref().is_some_and(BTreeSet::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writers<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.into_iter().map(ToOwned::to_owned).collect()
    }

    fn gaps<const N: usize>(gaps: [(i64, i64); N]) -> Vec<Range> {
        gaps.into_iter().map(|(after, upto)| Range { after, upto }).collect()
    }

    /// Returns a watermark at an id.
    fn at(settled: i64) -> Watermark {
        let mut watermark = Watermark::default();
        watermark.observe(settled, &writers([]));
        watermark.advance();
        assert!(watermark.is_at(settled) && watermark.unread_ranges(0).is_empty());
        watermark
    }

    #[test]
    fn without_writers_every_observation_advances_the_watermark() {
        let mut watermark = at(7);
        watermark.observe(9, &writers([]));
        assert_eq!(watermark.unread_ranges(0), gaps([(7, 9)]));
        watermark.record_read(None, &[8]);
        watermark.advance();
        assert!(watermark.is_at(9), "9 will never appear");
        assert_eq!(watermark.unread_ranges(0), gaps([]));
    }

    #[test]
    fn the_watermark_advances_when_all_earlier_writers_have_ended() {
        let mut watermark = Watermark::default();
        watermark.observe(7, &writers(["a"]));
        assert_eq!(watermark.get(), None, "`a` may have taken 5 and not committed it");
        watermark.observe(8, &writers(["a", "b"]));
        assert_eq!(watermark.get(), None);
        watermark.observe(9, &writers(["b"]));
        assert_eq!((watermark.get(), watermark.unread_ranges(0)), (Some(7), gaps([(7, 9)])));
        watermark.record_read(None, &[9]);
        watermark.advance();
        assert_eq!(watermark.get(), Some(7));
        watermark.observe(9, &writers(["b"]));
        assert_eq!(watermark.unread_ranges(0), gaps([(7, 8)]), "9 is not read again");
        watermark.record_read(None, &[]);
        watermark.advance();
        watermark.observe(9, &writers([]));
        assert_eq!(watermark.unread_ranges(0), gaps([(7, 8)]), "what `b` wrote is read once it has ended");
        watermark.record_read(None, &[8]);
        watermark.advance();
        assert!(watermark.is_at(9));
    }

    #[test]
    fn an_open_transaction_causes_only_the_gaps_to_be_read_again() {
        let mut watermark = at(0);
        watermark.observe(1000, &writers(["open"]));
        let all_but_two: Vec<i64> = (1..=1000).filter(|number| ![17, 500].contains(number)).collect();
        watermark.record_read(None, &all_but_two);
        watermark.advance();
        watermark.observe(1002, &writers(["open"]));
        assert_eq!(watermark.unread_ranges(0), gaps([(16, 17), (499, 500), (1000, 1002)]));
        assert_eq!(watermark.unread_ranges(500), gaps([(1000, 1002)]));
    }

    #[test]
    fn the_unread_rest_of_a_page_stays_unread() {
        let mut watermark = at(0);
        watermark.observe(10, &writers([]));
        watermark.record_read(Some(4), &[1, 2, 4]);
        assert_eq!(watermark.unread_ranges(0), gaps([(2, 3), (4, 10)]));
        assert_eq!(watermark.unread_ranges(4), gaps([(4, 10)]));
        watermark.advance();
        assert!(watermark.is_at(10), "the rest was of no concern");
    }

    #[test]
    fn gaps_above_the_bound_are_merged_without_loss() {
        let mut watermark = at(0);
        watermark.observe(10_000, &writers(["open"]));
        let even: Vec<i64> = (1..=5000).map(|half| 2 * half).collect();
        watermark.record_read(None, &even);
        let unread = watermark.unread_ranges(0);
        assert_eq!(unread.len(), MAX_GAPS);
        let is_covered = |number| unread.iter().any(|gap| (gap.after + 1..=gap.upto).contains(&number));
        assert!((1..=9999).step_by(2).all(is_covered));
    }
}
