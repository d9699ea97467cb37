//! The chain of frame pointers, walked without believing it. Pure: tested on the host.

use handoff::Range;
use heapless::Vec;

/// Return addresses kept at most.
pub const DEPTH: usize = 24;

/// Where a CPU stands and whence it came, innermost first: `rip`, then the return addresses
/// along the frame pointers from `rbp`. `word` reads memory.
///
/// Every frame lies inside `stack` and above the one before, so the walk ends whatever the
/// stack holds. A function interrupted before it has set up its frame hides its caller.
#[must_use]
pub fn walk(
    rip: u64,
    rbp: u64,
    stack: Range,
    word: impl Fn(u64) -> Option<u64>,
) -> Vec<u64, DEPTH> {
    let mut addresses = Vec::new();
    // Room for one at least.
    let _ = addresses.push(rip);
    let (mut frame, mut above) = (rbp, stack.start);
    while frame >= above && frame.is_multiple_of(8) && stack.holds(frame, 16) {
        let (Some(next), Some(address)) = (word(frame), word(frame + 8)) else { break };
        if address == 0 || addresses.push(address).is_err() {
            break;
        }
        above = frame + 16;
        frame = next;
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: Range = Range { start: 0x1000, bytes: 0x1000 };

    /// Memory that holds only what is listed.
    fn memory<'a>(words: &'a [(u64, u64)]) -> impl Fn(u64) -> Option<u64> + 'a {
        |address| words.iter().find(|(at, _)| *at == address).map(|(_, word)| *word)
    }

    #[test]
    fn frames_are_followed_to_the_end_of_the_chain() {
        let words = [
            (0x1100, 0x1200),
            (0x1108, 11),
            (0x1200, 0x1ff0),
            (0x1208, 22),
            (0x1ff0, 0),
            (0x1ff8, 33),
        ];
        assert_eq!(walk(9, 0x1100, STACK, memory(&words)), [9, 11, 22, 33]);
        let ended = [(0x1100, 0), (0x1108, 0)];
        assert_eq!(walk(9, 0x1100, STACK, memory(&ended)), [9]);
    }

    #[test]
    fn a_chain_that_leaves_the_stack_or_goes_down_ends_there() {
        for wild in [0, 8, 0x1104, 0x1100, 0x10f8, 0x1ff8, 0x2000, u64::MAX - 7] {
            let words = [(0x1100, wild), (0x1108, 11)];
            let read = |address| {
                assert!(STACK.holds(address, 8), "{address:#x}");
                memory(&words)(address)
            };
            assert_eq!(walk(9, 0x1100, STACK, read), [9, 11], "{wild:#x}");
            if wild != 0x1100 {
                assert_eq!(walk(9, wild, STACK, read), [9], "{wild:#x}");
            }
        }
    }

    #[test]
    fn an_endless_chain_is_cut() {
        let all = walk(9, 0x1000, STACK, |address| {
            Some(if address.is_multiple_of(16) { address + 16 } else { 7 })
        });
        assert_eq!(all.len(), DEPTH);
    }
}
