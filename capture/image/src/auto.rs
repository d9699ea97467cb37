//! Raw or compressed: whatever is faster, chunk by chunk.
//!
//! What a disk takes and what a processor compresses is not known beforehand, and both
//! change during a dump. So both are measured as it goes, and the next chunk is stored in
//! the way that takes the shorter time by what was seen last. Costs are nanoseconds for a
//! MiB of memory. The disk fetches one chunk while the next is compressed, so a compressed
//! chunk costs the longer of the two.

/// One MiB.
const MIB: u64 = 1 << 20;
/// Chunks between two looks at how well memory compresses: one block each, so that a look
/// costs next to nothing even where compressing is out of the question.
const LOOK_EVERY: u32 = 32;
/// Compressed chunks after which the disk is measured again by [`RAW_IN_A_ROW`] raw ones, at
/// least: it is done so rarely that it costs no more than a twentieth of the time.
const MEASURE_EVERY: u64 = 48;
/// One over that part.
const MEASURE_COST: u64 = 20;
/// Enough that the disk, which holds a few requests, has to be waited for.
const RAW_IN_A_ROW: u32 = 6;

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As it is.
    Raw,
    /// Compressed.
    Lz4,
}

/// Decides, and learns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Auto {
    /// What the disk takes for a MiB, when it is what is waited for.
    disk_ns: u64,
    /// What compressing a MiB takes; 0 while that is not known.
    codec_ns: u64,
    /// Bytes that a MiB becomes.
    packed_bytes: u64,
    chunks: u32,
    /// Compressed chunks since the disk was measured.
    compressed: u64,
    /// Raw chunks still to come of those that measure it.
    measuring: u32,
}

/// What was seen, and a little of what was known before.
const fn blend(known: u64, seen: u64) -> u64 {
    if known == 0 { seen } else { known - known / 4 + seen / 4 }
}

const fn per_mib(amount: u64, bytes: u64) -> u64 {
    if bytes == 0 { 0 } else { (amount as u128 * MIB as u128 / bytes as u128) as u64 }
}

impl Auto {
    /// Whether it is time to see how well memory compresses.
    #[must_use]
    pub const fn wants_a_look(&self) -> bool {
        self.codec_ns == 0 || self.chunks.is_multiple_of(LOOK_EVERY)
    }

    /// How the next chunk is stored.
    pub fn choose(&mut self) -> Way {
        self.chunks = self.chunks.wrapping_add(1);
        if self.measuring > 0 {
            self.measuring -= 1;
            return Way::Raw;
        }
        let packed = per_mib(self.disk_ns, MIB * MIB / self.packed_bytes.max(1));
        let lz4 = self.codec_ns.max(packed);
        // A tie goes to what needs no processor.
        if self.codec_ns == 0 || lz4 >= self.disk_ns - self.disk_ns / 16 {
            return Way::Raw;
        }
        self.compressed += 1;
        let lost = u64::from(RAW_IN_A_ROW) * (self.disk_ns - lz4);
        if self.compressed >= MEASURE_EVERY.max(lost.saturating_mul(MEASURE_COST) / lz4.max(1)) {
            self.compressed = 0;
            self.measuring = RAW_IN_A_ROW;
        }
        Way::Lz4
    }

    /// It took `ns` to send `bytes` raw, from the first to the last of the waiting.
    pub fn sent(&mut self, bytes: u64, ns: u64) {
        self.disk_ns = blend(self.disk_ns, per_mib(ns, bytes));
    }

    /// It took `ns` to compress `bytes` into `stored`.
    pub fn packed(&mut self, bytes: u64, stored: u64, ns: u64) {
        self.codec_ns = blend(self.codec_ns, per_mib(ns, bytes).max(1));
        self.packed_bytes = blend(self.packed_bytes, per_mib(stored, bytes).max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a dump of `chunks` MiB on a disk that takes `disk` ns for a MiB, or another
    /// number from the middle on, and a processor that takes `codec` and makes `packed`
    /// bytes of one. Returns the time it takes, and the time of the better fixed choice.
    fn play(chunks: u64, disk: [u64; 2], codec: u64, packed: u64) -> (u64, u64) {
        let mut auto = Auto::default();
        let (mut time, mut raw, mut lz4) = (0, 0, 0);
        for chunk in 0..chunks {
            let disk = disk[usize::from(chunk >= chunks / 2)];
            let compressed = codec.max(disk * packed / MIB);
            raw += disk;
            lz4 += compressed;
            if auto.wants_a_look() {
                auto.packed(MIB / 16, packed / 16, codec / 16);
                time += codec / 16;
            }
            match auto.choose() {
                Way::Raw => {
                    auto.sent(MIB, disk);
                    time += disk;
                }
                Way::Lz4 => {
                    auto.packed(MIB, packed, codec);
                    time += compressed;
                }
            }
        }
        (time, raw.min(lz4))
    }

    #[test]
    fn it_is_nearly_as_good_as_the_better_choice() {
        let half = MIB / 2;
        for (disk, codec, packed) in [
            // 3 GB/s, 500 MB/s and 100 MB/s; 140 MB/s a processor; data that shrinks or not.
            ([350_000; 2], 7_500_000, half),
            ([2_000_000; 2], 7_500_000, half),
            ([10_000_000; 2], 7_500_000, half),
            ([10_000_000; 2], 7_500_000, MIB),
            ([10_000_000; 2], 2_000_000, MIB / 5),
            // Faster and slower while it goes.
            ([10_000_000, 400_000], 7_500_000, half),
            ([400_000, 10_000_000], 7_500_000, half),
        ] {
            let (time, best) = play(1000, disk, codec, packed);
            assert!(time * 9 <= best * 10, "{disk:?} {codec} {packed}: {time} to {best}");
        }
    }
}
