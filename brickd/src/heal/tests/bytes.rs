//! The marks of a file's bytes while they are carried block by block.

use mortar_common::Gfid;

use super::super::marks::Marks;
use super::super::record::MarkRecord;
use super::super::touch::Touch;

const BLOCK: u64 = 256 << 10;
const FILE: Gfid = Gfid { hi: 0, lo: 7 };

/// Carries all that is pending as the healer does, pass by pass; returns the bytes carried.
fn carry(marks: &mut Marks) -> u64 {
    const PASSES_MAX: usize = 10;
    let (mut number, mut bytes) = (0, 0);
    for _ in 0..PASSES_MAX {
        let mut from = 0;
        while let Some(range) = marks.pending_range(FILE, from) {
            let block = range.start..range.end.min(range.start + BLOCK);
            number += 1;
            bytes += block.end - block.start;
            from = block.end;
            marks.carried_bytes(FILE, block, number);
        }
        if marks.pending_range(FILE, 0).is_none() {
            marks.synced(number);
            assert!(marks.is_empty(), "a sync covers all that was carried");
            return bytes;
        }
    }
    panic!("bytes are still pending after {PASSES_MAX} passes");
}

#[test]
fn a_big_file_is_carried_once() {
    let (mut marks, mut record) = (Marks::new(), MarkRecord::default());
    marks.mark(Touch::Bytes(FILE, 0..2_000 * BLOCK), &mut record);
    assert_eq!(carry(&mut marks), 2_000 * BLOCK);
}

#[test]
fn many_places_of_a_file_are_carried_with_few_bytes_between() {
    const PLACES: u64 = 1_000;
    let (mut marks, mut record) = (Marks::new(), MarkRecord::default());
    for place in 0..PLACES {
        let start = place * 8 * BLOCK;
        marks.mark(Touch::Bytes(FILE, start..start + 3 * BLOCK), &mut record);
    }
    assert!(carry(&mut marks) <= PLACES * 8 * BLOCK);
}
