//! Raw or compressed: whatever is faster, chunk by chunk.
//!
//! What a disk takes and what the processors compress is not known beforehand, and both
//! change during a dump. So both are measured as it goes, and the next chunk is stored in
//! the way that takes the shorter time by what was seen last. Costs are nanoseconds for a
//! MiB of memory. The disk fetches one chunk while the next is compressed, so a compressed
//! chunk costs the longer of the two.
//!
//! Several CPUs that compress at the same time are not as many times faster as there are of
//! them: they may share a core, or a core of the host. So what counts is how fast compressed
//! memory comes off all of them together. A look at one block by one CPU is turned into that
//! by what was seen the last time, and before that by the number of CPUs.

/// One MiB.
const MIB: u64 = 1 << 20;
/// Raw chunks between two looks at how well memory compresses: one block each, so that a
/// look costs next to nothing even where compressing is out of the question.
const LOOK_EVERY: u32 = 32;
/// Compressed MiB after which the disk is measured again by [`RAW_IN_A_ROW`] raw chunks, at
/// least: it is done so rarely that it costs no more than a fortieth of the time.
const MEASURE_EVERY: u64 = 48;
/// One over that part.
const MEASURE_COST: u64 = 40;
/// Enough that the disk, which holds a few requests, has to be waited for.
const RAW_IN_A_ROW: u32 = 6;
/// Of how many times faster all CPUs are than one, so many make one.
const ONE: u64 = 256;

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As it is.
    Raw,
    /// Compressed.
    Lz4,
}

/// Decides, and learns.
#[derive(Clone, Copy, Debug)]
pub struct Auto {
    /// What the disk takes for a MiB, when it is what is waited for.
    disk_ns: u64,
    /// What compressing a MiB takes all CPUs; 0 while that is not known.
    codec_ns: u64,
    /// What it takes one.
    alone_ns: u64,
    /// How many times faster all of them are, in [`ONE`]s.
    gain: u64,
    /// Bytes that a MiB becomes.
    packed_bytes: u64,
    /// Raw chunks since the last look.
    unseen: u32,
    /// Compressed bytes of memory since the disk was measured.
    compressed: u64,
    /// Raw chunks still to come of those that measure it.
    measuring: u32,
    /// Sent raw since it was last taken into account: bytes of memory, time.
    sent: [u64; 2],
    /// Compressed since it was last taken into account: bytes of memory, bytes stored, time.
    seen: [u64; 3],
}

/// What was seen, and a little of what was known before.
const fn blend(known: u64, seen: u64) -> u64 {
    if known == 0 { seen } else { known - known / 4 + seen / 4 }
}

const fn per_mib(amount: u64, bytes: u64) -> u64 {
    if bytes == 0 { 0 } else { (amount as u128 * MIB as u128 / bytes as u128) as u64 }
}

impl Auto {
    /// Knows nothing yet, but how many CPUs may compress at the same time.
    #[must_use]
    pub const fn new(cpus: u64) -> Self {
        Self {
            disk_ns: 0,
            codec_ns: 0,
            alone_ns: 0,
            gain: ONE * if cpus == 0 { 1 } else { cpus },
            packed_bytes: 0,
            unseen: 0,
            compressed: 0,
            measuring: 0,
            sent: [0; 2],
            seen: [0; 3],
        }
    }

    /// Whether there was no look yet.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.codec_ns == 0
    }

    /// Whether it is time to see how well memory compresses.
    #[must_use]
    pub const fn wants_a_look(&self) -> bool {
        self.is_new() || self.unseen >= LOOK_EVERY
    }

    /// How the next chunk is stored.
    pub fn choose(&mut self) -> Way {
        let way = self.better();
        self.unseen = if way == Way::Raw { self.unseen.saturating_add(1) } else { 0 };
        way
    }

    fn better(&mut self) -> Way {
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
        let lost = u64::from(RAW_IN_A_ROW) * (self.disk_ns - lz4);
        let every = MEASURE_EVERY.max(lost.saturating_mul(MEASURE_COST) / lz4.max(1));
        if self.compressed / MIB >= every {
            self.compressed = 0;
            self.measuring = RAW_IN_A_ROW - 1;
            return Way::Raw;
        }
        Way::Lz4
    }

    /// It took `ns` to send `bytes` raw, from the first to the last of the waiting. A request
    /// costs something whatever its size, so it takes a MiB of them to say something.
    pub fn sent(&mut self, bytes: u64, ns: u64) {
        for (sum, more) in self.sent.iter_mut().zip([bytes, ns]) {
            *sum = sum.saturating_add(more);
        }
        let [bytes, ns] = self.sent;
        if bytes >= MIB {
            self.sent = [0; 2];
            self.disk_ns = blend(self.disk_ns, per_mib(ns, bytes));
        }
    }

    /// A look: it took one CPU `ns` to compress `bytes` into `stored`.
    pub fn looked(&mut self, bytes: u64, stored: u64, ns: u64) {
        self.unseen = 0;
        self.alone_ns = blend(self.alone_ns, per_mib(ns, bytes).max(1));
        self.codec_ns = blend(self.codec_ns, (self.alone_ns * ONE / self.gain.max(1)).max(1));
        self.packed_bytes = blend(self.packed_bytes, per_mib(stored, bytes).max(1));
    }

    /// Another `bytes` were compressed into `stored`, `ns` after those before, without what the
    /// disk was waited for. They come off several CPUs in bursts, so it takes a MiB of them to
    /// say something.
    pub fn packed(&mut self, bytes: u64, stored: u64, ns: u64) {
        self.compressed = self.compressed.saturating_add(bytes);
        for (sum, more) in self.seen.iter_mut().zip([bytes, stored, ns]) {
            *sum = sum.saturating_add(more);
        }
        let [bytes, stored, ns] = self.seen;
        if bytes < MIB {
            return;
        }
        self.seen = [0; 3];
        self.codec_ns = blend(self.codec_ns, per_mib(ns, bytes).max(1));
        self.packed_bytes = blend(self.packed_bytes, per_mib(stored, bytes).max(1));
        // Together they are no slower than one of them, whatever a single measure says.
        self.gain = (self.alone_ns.saturating_mul(ONE) / self.codec_ns.max(1)).max(ONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine: ns that the disk takes for a MiB, at first and from the middle on; ns that a
    /// CPU takes to compress one; bytes of what becomes of it; how many CPUs there are, and
    /// how many times faster they are than one.
    struct Machine {
        disk: [u64; 2],
        codec: u64,
        packed: u64,
        cpus: u64,
        faster: u64,
    }

    /// Plays a dump of 1000 MiB. Returns the time it takes, and the time of the better fixed
    /// choice.
    fn play(machine: &Machine) -> (u64, u64) {
        const DUMP: u64 = 1000 * MIB;
        const CHUNK: u64 = MIB / 8;
        let mut auto = Auto::new(machine.cpus);
        let all = machine.codec / machine.faster;
        let (mut time, mut done) = (0, 0);
        while done < DUMP {
            let disk = machine.disk[usize::from(done >= DUMP / 2)];
            if auto.wants_a_look() {
                auto.looked(MIB / 16, machine.packed / 16, machine.codec / 16);
                time += machine.codec / 16;
            }
            match auto.choose() {
                Way::Raw => {
                    auto.sent(MIB, disk);
                    time += disk;
                    done += MIB;
                }
                Way::Lz4 => {
                    let took = all.max(disk * machine.packed / MIB) / 8;
                    // They come in bursts.
                    let burst = machine.faster;
                    for index in 0..burst {
                        let ns = if index == 0 { all / 8 * burst } else { 0 };
                        auto.packed(CHUNK, machine.packed / 8, ns);
                    }
                    time += took * burst;
                    done += CHUNK * burst;
                }
            }
        }
        let fixed = |cost: &dyn Fn(u64) -> u64| machine.disk.map(|disk| cost(disk) * 500);
        let raw: u64 = fixed(&|disk| disk).iter().sum();
        let lz4: u64 = fixed(&|disk| all.max(disk * machine.packed / MIB)).iter().sum();
        (time, raw.min(lz4))
    }

    /// Knows that one CPU compresses a MiB to its half in 2 ms.
    fn looked() -> Auto {
        let mut auto = Auto::new(4);
        auto.looked(MIB / 16, MIB / 32, 2_000_000 / 16);
        auto
    }

    #[test]
    fn a_single_page_says_nothing_of_the_disk() {
        let mut auto = looked();
        auto.sent(4096, 19_000);
        assert_eq!(auto.choose(), Way::Raw);
    }

    #[test]
    fn one_slow_burst_is_forgotten_at_the_next_looks() {
        let mut auto = looked();
        auto.sent(MIB, 10_000_000);
        assert_eq!(auto.choose(), Way::Lz4);
        auto.packed(MIB, MIB / 2, 60_000_000);
        assert_eq!(auto.choose(), Way::Raw);
        for _ in 0..4 {
            auto.looked(MIB / 16, MIB / 32, 2_000_000 / 16);
        }
        assert_eq!(auto.choose(), Way::Lz4);
    }

    #[test]
    fn it_is_nearly_as_good_as_the_better_choice() {
        let half = MIB / 2;
        // CPUs, and how many times faster they are: four may share two cores.
        for (cpus, faster) in [(1, 1), (2, 2), (4, 4), (4, 2), (16, 2)] {
            for (disk, codec, packed) in [
                // 3 GB/s, 500 MB/s and 100 MB/s; 140 MB/s a processor; data that shrinks or
                // not.
                ([350_000; 2], 7_500_000, half),
                ([2_000_000; 2], 7_500_000, half),
                ([3_000_000; 2], 7_500_000, half),
                ([10_000_000; 2], 7_500_000, half),
                ([10_000_000; 2], 7_500_000, MIB),
                ([10_000_000; 2], 2_000_000, MIB / 5),
                // Faster and slower while it goes.
                ([10_000_000, 400_000], 7_500_000, half),
                ([400_000, 10_000_000], 7_500_000, half),
            ] {
                let (time, best) = play(&Machine { disk, codec, packed, cpus, faster });
                let row = format!("{disk:?} {codec} {packed} {cpus} {faster}");
                assert!(time * 9 <= best * 10, "{row}: {time} to {best}");
            }
        }
    }
}
