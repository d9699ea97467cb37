use std::collections::BTreeMap;

use super::*;
use crate::dump::MemoryFault;

/// Code at 0x1000..0x2000; every multiple of 16 in it stands behind a call.
#[derive(Default)]
struct Code(BTreeMap<u64, fn(&Registers, &Words) -> Outcome>);

/// Memory, word by word.
struct Words(BTreeMap<u64, u64>);

impl Memory for Words {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        let word = self.0.get(&address).ok_or(MemoryFault::NotInDump(address))?;
        buffer.copy_from_slice(&word.to_le_bytes()[..buffer.len()]);
        Ok(())
    }
}

impl Program for Code {
    fn is_code(&self, address: u64) -> bool {
        (0x1000..0x2000).contains(&address)
    }

    fn follows_call(&self, address: u64) -> bool {
        self.is_code(address) && address.is_multiple_of(16)
    }

    fn caller(&self, address: u64, registers: &Registers, memory: &impl Memory) -> Outcome {
        let words = (STACK.start..STACK.end()).step_by(8);
        let words = words.filter_map(|at| Some((at, memory.word(at).ok()?))).collect();
        match self.0.get(&address) {
            Some(rule) => rule(registers, &Words(words)),
            None => Outcome::NoInformation,
        }
    }
}

const STACK: Range = Range { start: 0x8000, bytes: 0x100 };

fn at(pc: u64, rsp: u64, rbp: u64) -> Registers {
    let mut registers = Registers::default();
    (registers[RIP], registers[RSP], registers[RBP]) = (Some(pc), Some(rsp), Some(rbp));
    registers
}

fn stack(words: &[(u64, u64)]) -> Words {
    let zero = (STACK.start..STACK.end()).step_by(8).map(|at| (at, 0x7777));
    Words(zero.chain(words.iter().copied()).collect())
}

/// A caller whose return address lies on top of the stack.
fn plain(registers: &Registers, words: &Words) -> Outcome {
    let rsp = registers[RSP].unwrap();
    let mut next = *registers;
    next[RIP] = Some(words.word(rsp).unwrap());
    next[RSP] = Some(rsp + 8);
    Outcome::Caller { registers: next, interrupted: false }
}

fn trusts(frames: &[RawFrame]) -> Vec<(u64, Trust)> {
    frames.iter().map(|frame| (frame.pc, frame.trust)).collect()
}

#[test]
fn call_frame_information_is_believed_up_to_the_outermost_frame() {
    // The caller is looked up one byte before its return address.
    let mut code = Code::default();
    code.0.insert(0x1005, plain);
    code.0.insert(0x110f, plain);
    code.0.insert(0x120f, |_, _| Outcome::Outermost);
    let memory = stack(&[(0x8000, 0x1110), (0x8008, 0x1210)]);
    let (frames, end) = walk(&code, &memory, at(0x1005, 0x8000, 0), STACK);
    let expected = [(0x1005, Trust::Context), (0x1110, Trust::Cfi), (0x1210, Trust::Cfi)];
    assert_eq!((trusts(&frames), end), (expected.to_vec(), End::Outermost));
}

#[test]
fn an_interrupted_frame_is_looked_up_where_it_stands() {
    let mut code = Code::default();
    code.0.insert(0x1005, |registers, words| match plain(registers, words) {
        Outcome::Caller { registers, .. } => Outcome::Caller { registers, interrupted: true },
        other => other,
    });
    code.0.insert(0x1110, |_, _| Outcome::Outermost);
    let memory = stack(&[(0x8000, 0x1110)]);
    let (frames, end) = walk(&code, &memory, at(0x1005, 0x8000, 0), STACK);
    assert_eq!((frames[1].lookup(), end), (0x1110, End::Outermost));
}

#[test]
fn frame_pointers_take_over_and_a_zero_return_address_ends_the_chain() {
    let memory =
        stack(&[(0x8010, 0x8040), (0x8018, 0x1230), (0x8040, 0), (0x8048, 0x1450), (0x8050, 0)]);
    let memory = Words(memory.0.into_iter().chain([(0, 0), (8, 0)]).collect());
    let (frames, end) = walk(&Code::default(), &memory, at(0x1005, 0x8000, 0x8010), STACK);
    let expected =
        [(0x1005, Trust::Context), (0x1230, Trust::FramePointer), (0x1450, Trust::FramePointer)];
    assert_eq!(trusts(&frames), expected);
    assert_eq!(end, End::Lost);
    let memory = stack(&[(0x80e0, 0), (0x80e8, 0)]);
    let (frames, end) = walk(&Code::default(), &memory, at(0x1005, 0x8000, 0x80e0), STACK);
    assert_eq!((frames.len(), end), (1, End::Outermost));
}

#[test]
fn a_zero_above_the_bottom_of_the_stack_was_written_over_a_return_address() {
    // By frame pointer, and by call frame information.
    let memory = stack(&[(0x8010, 0), (0x8018, 0)]);
    let (frames, end) = walk(&Code::default(), &memory, at(0x1005, 0x8000, 0x8010), STACK);
    assert_eq!((frames.len(), end), (1, End::CutShort));
    let mut code = Code::default();
    code.0.insert(0x1005, plain);
    let memory = stack(&[(0x8000, 0)]);
    let (frames, end) = walk(&code, &memory, at(0x1005, 0x8000, 0), STACK);
    assert_eq!((frames.len(), end), (1, End::CutShort));
    // Where the bounds are not known, only the outermost function ends a stack.
    let (_, end) = walk(&code, &memory, at(0x1005, 0x8000, 0), Range::default());
    assert_eq!(end, End::CutShort);
    let memory = stack(&[(0x80f0, 0)]);
    let (_, end) = walk(&code, &memory, at(0x1005, 0x80f0, 0), STACK);
    assert_eq!(end, End::Outermost);
}

#[test]
fn a_stack_pointer_that_was_smashed_upwards_does_not_hide_the_frames() {
    // RSP points above the frame, into what would pass for a frame of a search; or off the
    // stack. The frame at RBP is whole.
    let words =
        [(0x8010, 0x8040), (0x8018, 0x1230), (0x80c8, 0x1560), (0x8040, 0), (0x8048, 0x1450)];
    for rsp in [0x80c0, 0x8100, 0x9000] {
        let (frames, _) = walk(&Code::default(), &stack(&words), at(0x1005, rsp, 0x8010), STACK);
        let expected = [
            (0x1005, Trust::Context),
            (0x1230, Trust::FramePointer),
            (0x1450, Trust::FramePointer),
        ];
        assert_eq!(trusts(&frames)[..3], expected, "{rsp:#x}");
        // By the call frame information, whose rule is relative to RBP.
        let mut code = Code::default();
        code.0.insert(0x1005, |registers, words| {
            let rbp = registers[RBP].unwrap();
            let mut next = *registers;
            next[RIP] = Some(words.word(rbp + 8).unwrap());
            next[RBP] = Some(words.word(rbp).unwrap());
            next[RSP] = Some(rbp + 16);
            Outcome::Caller { registers: next, interrupted: false }
        });
        let (frames, _) = walk(&code, &stack(&words), at(0x1005, rsp, 0x8010), STACK);
        assert_eq!(trusts(&frames)[1], (0x1230, Trust::Cfi), "{rsp:#x}");
    }
    // What does not fit is not believed: a return address behind no call, a chain downwards.
    for words in [[(0x8010, 0x8040), (0x8018, 0x1231)], [(0x8010, 0x8008), (0x8018, 0x1230)]] {
        let (frames, _) = walk(&Code::default(), &stack(&words), at(0x1005, 0x80c0, 0x8010), STACK);
        assert_eq!(frames.len(), 1);
    }
}

#[test]
fn a_search_of_the_stack_is_the_last_resort_and_stays_on_it() {
    // 0x1231 is code but stands behind no call.
    let memory = stack(&[(0x8020, 0x1231), (0x8038, 0x1340)]);
    let (frames, end) = walk(&Code::default(), &memory, at(0x1005, 0x8001, 0x9999), STACK);
    assert_eq!(trusts(&frames), [(0x1005, Trust::Context), (0x1340, Trust::Scan)]);
    assert_eq!(end, End::Lost);
    let outside = Words(BTreeMap::from([(0x8100, 0x1340)]));
    let (frames, _) = walk(&Code::default(), &outside, at(0x1005, 0x80f8, 0), STACK);
    assert_eq!(frames.len(), 1);
}

#[test]
fn a_call_of_a_wild_pointer_shows_who_made_it() {
    let memory = stack(&[(0x8000, 0x1230)]);
    let (frames, _) = walk(&Code::default(), &memory, at(0, 0x8000, 0), STACK);
    assert_eq!(trusts(&frames), [(0, Trust::Context), (0x1230, Trust::Scan)]);
}

#[test]
fn circles_and_endless_stacks_end() {
    let mut code = Code::default();
    code.0.insert(0x1005, |registers, _| {
        let mut next = *registers;
        next[RIP] = Some(0x1006);
        Outcome::Caller { registers: next, interrupted: false }
    });
    let (frames, end) = walk(&code, &stack(&[]), at(0x1005, 0x8000, 0), STACK);
    assert_eq!((frames.len(), end), (1, End::Lost));

    struct Endless;
    impl Memory for Endless {
        fn read(&self, _: u64, buffer: &mut [u8]) -> Result<(), MemoryFault> {
            buffer.copy_from_slice(&0x1230u64.to_le_bytes()[..buffer.len()]);
            Ok(())
        }
    }
    let (frames, end) = walk(&code, &Endless, at(0x1008, 0x8000, 0), Range::default());
    assert_eq!((frames.len(), end), (MAX_FRAMES, End::TooDeep));
}
