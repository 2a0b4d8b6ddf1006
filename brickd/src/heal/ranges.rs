//! Byte ranges of one file, each with a value; disjoint, in order, and never more than a bound.

use std::ops::Range;

/// Ranges kept per file; beyond it two become one: of those whose values agree the two that lie
/// closest, and only where no values agree, others.
pub const RANGES_PER_FILE_MAX: usize = 256;

/// What a range carries.
pub trait RangeValue: Copy + PartialEq {
    /// The value of two ranges made one. It must claim no less than either.
    fn joined(self, other: Self) -> Self;
    /// Whether two ranges that touch become one at once.
    fn joins_neighbour(self, other: Self) -> bool;
}

/// The ranges of one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ranges<V> {
    spans: Vec<(Range<u64>, V)>,
}

impl<V> Default for Ranges<V> {
    fn default() -> Self {
        Ranges { spans: Vec::new() }
    }
}

impl<V: RangeValue> Ranges<V> {
    /// Gives `range` the value, whatever parts of it had before.
    pub fn set(&mut self, range: Range<u64>, value: V) {
        if range.is_empty() {
            return;
        }
        self.cut(&range);
        let mut at = self
            .spans
            .partition_point(|(span, _)| span.start < range.start);
        self.spans.insert(at, (range, value));
        if at > 0 && self.touch(at - 1) {
            self.join(at - 1);
            at -= 1;
        }
        if at + 1 < self.spans.len() && self.touch(at) {
            self.join(at);
        }
        if self.spans.len() > RANGES_PER_FILE_MAX {
            self.join_closest();
        }
    }

    /// Takes `range` out.
    pub fn cut(&mut self, range: &Range<u64>) {
        let first = self
            .spans
            .partition_point(|(span, _)| span.end <= range.start);
        let last = self
            .spans
            .partition_point(|(span, _)| span.start < range.end);
        if first >= last {
            return;
        }
        let mut rest = Vec::with_capacity(2);
        let (head, head_value) = &self.spans[first];
        if head.start < range.start {
            rest.push((head.start..range.start, *head_value));
        }
        let (tail, tail_value) = &self.spans[last - 1];
        if tail.end > range.end {
            rest.push((range.end..tail.end, *tail_value));
        }
        self.spans.splice(first..last, rest);
    }

    /// All ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Range<u64>, V)> {
        self.spans.iter().map(|(span, value)| (span, *value))
    }

    /// The ranges that share a byte with `range`, in order.
    pub fn within(&self, range: &Range<u64>) -> impl Iterator<Item = (&Range<u64>, V)> {
        let first = self
            .spans
            .partition_point(|(span, _)| span.end <= range.start);
        let last = self
            .spans
            .partition_point(|(span, _)| span.start < range.end)
            .max(first);
        self.spans[first..last]
            .iter()
            .map(|(span, value)| (span, *value))
    }

    /// Whether every byte of `range` is in some range.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        let mut reached = range.start;
        for (span, _) in self.within(range) {
            if span.start > reached {
                return false;
            }
            reached = span.end;
        }
        reached >= range.end
    }

    /// Keeps the ranges that `keep` wants.
    pub fn retain(&mut self, mut keep: impl FnMut(V) -> bool) {
        self.spans.retain(|(_, value)| keep(*value));
    }

    /// Changes values in place.
    pub fn each_mut(&mut self, mut each: impl FnMut(&mut V)) {
        self.spans.iter_mut().for_each(|(_, value)| each(value));
    }

    /// One range from the first byte to the last.
    pub fn flatten(&mut self) {
        while self.spans.len() > 1 {
            self.join(self.spans.len() - 2);
        }
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    fn touch(&self, at: usize) -> bool {
        let ((left, value), (right, other)) = (&self.spans[at], &self.spans[at + 1]);
        left.end == right.start && value.joins_neighbour(*other)
    }

    fn join(&mut self, at: usize) {
        let (right, other) = self.spans.remove(at + 1);
        let (left, value) = &mut self.spans[at];
        left.end = right.end;
        *value = value.joined(other);
    }

    fn join_closest(&mut self) {
        let cost = |at: &usize| {
            let ((left, value), (right, other)) = (&self.spans[*at], &self.spans[at + 1]);
            (!value.joins_neighbour(*other), right.start - left.end)
        };
        if let Some(at) = (0..self.spans.len().saturating_sub(1)).min_by_key(cost) {
            self.join(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl RangeValue for u8 {
        fn joined(self, other: Self) -> Self {
            self.max(other)
        }
        fn joins_neighbour(self, other: Self) -> bool {
            self == other
        }
    }

    #[test]
    fn setting_and_cutting_agree_with_single_bytes() {
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % below
        };
        let (mut ranges, mut bytes) = (Ranges::default(), [0u8; 200]);
        for _ in 0..20_000 {
            let start = next(200);
            let end = (start + next(30)).min(200);
            let value = next(4) as u8;
            if value == 0 {
                ranges.cut(&(start..end));
            } else {
                ranges.set(start..end, value);
            }
            bytes[start as usize..end as usize].fill(value);
            let mut seen = [0u8; 200];
            let mut last_end = 0;
            for (span, value) in ranges.iter() {
                assert!(!span.is_empty() && span.start >= last_end);
                last_end = span.end;
                seen[span.start as usize..span.end as usize].fill(value);
            }
            assert_eq!(seen, bytes);
            let all = bytes[start as usize..end as usize]
                .iter()
                .all(|byte| *byte != 0);
            assert_eq!(ranges.covers(&(start..end)), all);
        }
    }

    #[test]
    fn too_many_ranges_lose_nothing() {
        let mut ranges = Ranges::default();
        for at in 0..10_000u64 {
            ranges.set(at * 10 * at..at * 10 * at + 3, 1u8);
            assert!(ranges.len() <= RANGES_PER_FILE_MAX);
        }
        for at in 0..10_000u64 {
            assert!(ranges.covers(&(at * 10 * at..at * 10 * at + 3)));
        }
    }
}
