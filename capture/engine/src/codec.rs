//! Compressing a chunk: independent LZ4 blocks behind a table of their sizes.

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use vmcore_format::PAGE_BYTES;
use vmcore_format::area::{LZ4_BLOCK_BYTES, lz4_block_size, lz4_table_bytes};

/// Compresses `memory`, at most [`MAX_CHUNK_BYTES`](vmcore_format::area::MAX_CHUNK_BYTES),
/// into `out`, and returns how many bytes
/// that took. `None` when it would not save a page.
pub fn pack(table: &mut CompressTable, memory: &[u8], out: &mut [u8]) -> Option<usize> {
    let sizes = lz4_table_bytes(memory.len() as u64);
    let most = memory.len().checked_sub(PAGE_BYTES as usize)?;
    let mut at = sizes;
    for (index, block) in memory.chunks(LZ4_BLOCK_BYTES as usize).enumerate() {
        let room = out.get_mut(at..)?;
        if at + block.len() > most.max(block.len()) + LZ4_BLOCK_BYTES as usize {
            return None;
        }
        let packed = if room.len() < get_maximum_output_size(block.len()) {
            None
        } else {
            let packed = compress_into_with_table(block, room, table).ok();
            packed.filter(|&bytes| bytes < block.len())
        };
        let (bytes, plain) = match packed {
            Some(bytes) => (bytes, false),
            None => {
                room.get_mut(..block.len())?.copy_from_slice(block);
                (block.len(), true)
            }
        };
        let size = lz4_block_size(bytes as u32, plain).to_le_bytes();
        out.get_mut(index * size.len()..(index + 1) * size.len())?.copy_from_slice(&size);
        at += bytes;
        if at > most {
            return None;
        }
    }
    // What lies behind, up to the next block of the disk, is written as well.
    let end = at.next_multiple_of(PAGE_BYTES as usize);
    out.get_mut(at..end)?.fill(0);
    Some(at)
}

#[cfg(test)]
mod tests {
    use vmcore_format::area::{MAX_CHUNK_BYTES, lz4_blocks};

    use super::*;
    use crate::worker_pool::buffer_bytes;

    fn unpacked(stored: &[u8], memory_bytes: usize) -> Vec<u8> {
        let mut memory = Vec::new();
        for block in lz4_blocks(stored, memory_bytes as u64) {
            let block = block.unwrap();
            if block.plain {
                memory.extend(block.stored);
            } else {
                let mut place = vec![0; block.memory_bytes];
                let bytes = lz4_flex::block::decompress_into(block.stored, &mut place).unwrap();
                assert_eq!(bytes, block.memory_bytes);
                memory.extend(place);
            }
        }
        memory
    }

    /// Memory of which so many of every eight pages are noise.
    fn memory(bytes: usize, noise: usize) -> Vec<u8> {
        let mut state = 5u64;
        (0..bytes)
            .map(|at| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                if at / 4096 % 8 < noise { state as u8 } else { (at / 64) as u8 }
            })
            .collect()
    }

    #[test]
    fn a_chunk_comes_back_as_it_was_or_is_left_alone() {
        let mut table = CompressTable::large();
        let mut out = vec![0xaa; buffer_bytes(MAX_CHUNK_BYTES)];
        for bytes in [4096, 8192, 65536, 69632, 1 << 20] {
            for noise in [0, 1, 4, 7, 8] {
                let memory = memory(bytes, noise);
                let Some(stored) = pack(&mut table, &memory, &mut out) else {
                    assert!(noise >= 7 || bytes <= 8192, "{bytes} {noise}");
                    continue;
                };
                assert!(noise < 8 && stored + 4096 <= bytes, "{bytes} {noise}");
                assert_eq!(unpacked(&out[..stored], bytes), memory);
                assert!(out[stored..stored.next_multiple_of(4096)].iter().all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn a_buffer_too_small_is_no_disaster() {
        let mut table = CompressTable::large();
        let memory = memory(1 << 20, 7);
        for room in [0, 10, 100, 70_000, 140_000] {
            assert_eq!(pack(&mut table, &memory, &mut vec![0; room]), None);
        }
    }
}
