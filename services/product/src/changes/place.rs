//! The position up to which the log was read: the numbers that can still appear, and their place.

use std::collections::BTreeSet;

use crate::store::change::Range;

/// Parts that are remembered; of more, the oldest are read as one.
const MAX_PARTS: usize = 1000;

/// The place in the log up to which everything was read.
///
/// Numbers are given before their transactions commit, so a smaller one may appear after a larger one was read. A
/// number is settled once every transaction has ended that may have taken it. Above that, the numbers that were not
/// seen yet are remembered as parts, and only those are read again. So the cost of one look does not follow how long a
/// transaction stays open.
#[derive(Debug, Default)]
pub struct Place {
    /// No entry up to this number can appear any more, and all of them were read, or are of no concern. Not known at
    /// the beginning: a transaction that runs then may still write below the end of the log.
    settled: Option<i64>,
    /// The number that is settled next, …
    mark: i64,
    /// … when these transactions have ended; not known while there is no mark.
    writers: Option<BTreeSet<String>>,
    /// The parts above the settled number in which entries may appear, in order.
    parts: Vec<Range>,
    /// The end of the log when it was last seen.
    end: i64,
}

impl Place {
    pub const fn settled(&self) -> Option<i64> {
        self.settled
    }

    /// Reports whether there is nothing to read and nothing to wait for, as no number above the settled one was given.
    pub fn is_at(&self, newest: i64) -> bool {
        self.settled == Some(newest)
    }

    /// Notes the highest number that was given, and the transactions that were writing after that was found out. To be
    /// called before the log is read.
    pub fn see(&mut self, newest: i64, writers: &BTreeSet<String>) {
        if let Some(awaited) = &mut self.writers {
            awaited.retain(|writer| writers.contains(writer));
        } else {
            self.mark = newest;
            self.writers = Some(writers.clone());
        }
        if self.settled.is_none() {
            if !self.is_over() {
                return;
            }
            self.settled = Some(self.mark);
            self.end = self.mark;
        }
        if newest > self.end {
            self.parts.push(Range { after: self.end, upto: newest });
            self.end = newest;
        }
    }

    /// Returns what is to be read behind `covered`.
    pub fn unread(&self, covered: i64) -> Vec<Range> {
        let behind = self.parts.iter().filter(|part| part.upto > covered);
        behind.map(|part| Range { after: part.after.max(covered), upto: part.upto }).collect()
    }

    /// Notes that the parts were read up to a number, or to their end, and which numbers were there, in order.
    pub fn read(&mut self, upto: Option<i64>, numbers: &[i64]) {
        let upto = upto.unwrap_or(i64::MAX);
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let mut after = part.after;
            let first = numbers.partition_point(|number| *number <= part.after);
            for number in numbers[first..].iter().take_while(|number| **number <= part.upto.min(upto)) {
                parts.push(Range { after, upto: number - 1 });
                after = *number;
            }
            parts.push(Range { after, upto: part.upto });
        }
        parts.retain(|part| part.after < part.upto);
        if parts.len() > MAX_PARTS {
            let merged = parts.len() - MAX_PARTS + 1;
            let whole = Range { after: parts[0].after, upto: parts[merged - 1].upto };
            parts.splice(..merged, [whole]);
        }
        self.parts = parts;
    }

    /// Settles the mark where that is possible. To be called after everything was read, or where what was not read is of
    /// no concern.
    pub fn settle(&mut self) {
        if self.is_over() {
            self.writers = None;
            self.settled = Some(self.mark);
            self.parts.retain(|part| part.upto > self.mark);
            if let Some(first) = self.parts.first_mut() {
                first.after = first.after.max(self.mark);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.writers.as_ref().is_some_and(BTreeSet::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writers<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.into_iter().map(ToOwned::to_owned).collect()
    }

    fn parts<const N: usize>(parts: [(i64, i64); N]) -> Vec<Range> {
        parts.into_iter().map(|(after, upto)| Range { after, upto }).collect()
    }

    /// A place at which everything up to a number is settled.
    fn at(settled: i64) -> Place {
        let mut place = Place::default();
        place.see(settled, &writers([]));
        place.settle();
        assert!(place.is_at(settled) && place.unread(0).is_empty());
        place
    }

    #[test]
    fn without_writers_every_look_settles_all_numbers_it_knows() {
        let mut place = at(7);
        place.see(9, &writers([]));
        assert_eq!(place.unread(0), parts([(7, 9)]));
        place.read(None, &[8]);
        place.settle();
        assert!(place.is_at(9), "9 was given up");
        assert_eq!(place.unread(0), parts([]));
    }

    #[test]
    fn a_number_is_settled_when_all_transactions_have_ended_that_may_have_taken_it() {
        let mut place = Place::default();
        place.see(7, &writers(["a"]));
        assert_eq!(place.settled(), None, "`a` may have taken 5 and not committed it");
        place.see(8, &writers(["a", "b"]));
        assert_eq!(place.settled(), None);
        place.see(9, &writers(["b"]));
        assert_eq!((place.settled(), place.unread(0)), (Some(7), parts([(7, 9)])));
        place.read(None, &[9]);
        place.settle();
        assert_eq!(place.settled(), Some(7));
        place.see(9, &writers(["b"]));
        assert_eq!(place.unread(0), parts([(7, 8)]), "9 is not read again");
        place.read(None, &[]);
        place.settle();
        place.see(9, &writers([]));
        assert_eq!(place.unread(0), parts([(7, 8)]), "what `b` wrote is read once it has ended");
        place.read(None, &[8]);
        place.settle();
        assert!(place.is_at(9));
    }

    #[test]
    fn while_a_transaction_is_open_only_the_numbers_that_are_missing_are_read_again() {
        let mut place = at(0);
        place.see(1000, &writers(["open"]));
        let all_but_two: Vec<i64> = (1..=1000).filter(|number| ![17, 500].contains(number)).collect();
        place.read(None, &all_but_two);
        place.settle();
        place.see(1002, &writers(["open"]));
        assert_eq!(place.unread(0), parts([(16, 17), (499, 500), (1000, 1002)]));
        assert_eq!(place.unread(500), parts([(1000, 1002)]));
    }

    #[test]
    fn what_was_not_read_of_a_page_stays() {
        let mut place = at(0);
        place.see(10, &writers([]));
        place.read(Some(4), &[1, 2, 4]);
        assert_eq!(place.unread(0), parts([(2, 3), (4, 10)]));
        assert_eq!(place.unread(4), parts([(4, 10)]));
        place.settle();
        assert!(place.is_at(10), "the rest was of no concern");
    }

    #[test]
    fn the_number_of_parts_is_bounded_and_nothing_is_left_out() {
        let mut place = at(0);
        place.see(10_000, &writers(["open"]));
        let even: Vec<i64> = (1..=5000).map(|half| 2 * half).collect();
        place.read(None, &even);
        let unread = place.unread(0);
        assert_eq!(unread.len(), MAX_PARTS);
        let is_covered = |number| unread.iter().any(|part| (part.after + 1..=part.upto).contains(&number));
        assert!((1..=9999).step_by(2).all(is_covered));
    }
}
