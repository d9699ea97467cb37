//! QEMU's debugger stub, spoken to without a debugger: a breakpoint, a register, go on.
//!
//! A small part of the GDB remote serial protocol ("Debugging with GDB", appendix E), as much
//! as it takes to stop a machine at an address, to send one CPU elsewhere, and to read and write
//! memory. Breakpoints are QEMU's own and change none of it.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Options;

/// Numbers of registers in `org.gnu.gdb.i386.core` for x86-64.
const RAX: u32 = 0;
const RCX: u32 = 2;
const RDX: u32 = 3;
/// Number of RIP in the register file of `org.gnu.gdb.i386.core` for x86-64.
const RIP: u32 = 16;
/// Number of CR4 in QEMU's register file for x86-64.
const CR4: u32 = 30;

/// A connection to the stub of one machine.
pub struct Gdb {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    socket: PathBuf,
}

/// The machine stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The CPU at which it was stopped: its number at QEMU, which is its index.
    pub cpu: u32,
}

impl Gdb {
    /// Makes the machine of `options` wait for a debugger before its first instruction, at a
    /// socket of its own that is returned.
    #[must_use]
    pub fn wanted_by(options: &mut Options) -> PathBuf {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Unix sockets have short names, folders may have long ones.
        let name = format!("epitaph-{}-{number}.gdb", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let chardev = format!("socket,id=gdb,path={},server=on,wait=off", socket.display());
        let words = ["-S", "-chardev", &chardev, "-gdb", "chardev:gdb"];
        options.qemu_args.extend(words.map(str::to_owned));
        socket
    }

    /// Connects to the machine that listens at `socket`. No answer may take longer than
    /// `patience`, a stop included.
    ///
    /// # Errors
    /// Nobody listens, or what answers is no such stub.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("no debugger stub at {}", socket.display()))?;
        stream.set_read_timeout(Some(patience)).context("a time-out for the stub")?;
        let reader = BufReader::new(stream.try_clone().context("a second handle for the stub")?);
        let mut gdb = Self { stream, reader, socket: socket.to_owned() };
        // Only who knows the layout by its description may write single registers.
        gdb.ask("qSupported:xmlRegisters=i386")?;
        gdb.ask("qXfer:features:read:target.xml:0,ffb")?;
        Ok(gdb)
    }

    /// Stops every CPU that is about to execute `address`.
    ///
    /// # Errors
    /// The stub refuses, or is gone.
    pub fn break_at(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("Z0,{address:x},1"))
    }

    /// Takes the breakpoint at `address` away.
    ///
    /// # Errors
    /// As [`Self::break_at`].
    pub fn no_break_at(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("z0,{address:x},1"))
    }

    /// Lets every CPU run until one stops. `None`: the machine ended.
    ///
    /// # Errors
    /// Nothing stopped within the patience, or the stub is gone.
    pub fn run(&mut self) -> Result<Option<Stop>> {
        self.send("c")?;
        self.stopped()
    }

    /// Lets only `cpus` run for `time`, as on a host that does not run the others, and stops
    /// them.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_only(&mut self, cpus: &[u32], time: Duration) -> Result<Option<Stop>> {
        let threads: String = cpus.iter().map(|cpu| format!(";c:{:x}", cpu + 1)).collect();
        self.send(&format!("vCont{threads}"))?;
        std::thread::sleep(time);
        self.stream.write_all(&[3]).context("the stub is gone")?;
        self.stopped()
    }

    /// Sets bits of CR4 of `cpu`, which stands still.
    ///
    /// # Errors
    /// As [`Self::break_at`].
    pub fn set_cr4(&mut self, cpu: u32, value: u64) -> Result<()> {
        self.expect_ok(&format!("Hg{:x}", cpu + 1))?;
        self.expect_ok(&format!("P{CR4:x}={}", hex(&value.to_le_bytes())))
    }

    /// Has `cpu`, which stands still, write `value` to the model-specific register `msr`: it
    /// executes one instruction that is put where it stands, and goes back.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn write_msr(&mut self, cpu: u32, msr: u32, value: u64) -> Result<()> {
        const WRMSR: [u8; 2] = [0x0f, 0x30];
        let at = self.instruction_pointer(cpu)?;
        let code = self.read_word(at)?;
        let wanted = [(RAX, value & 0xffff_ffff), (RCX, msr.into()), (RDX, value >> 32)];
        let mut before = Vec::new();
        for (register, value) in wanted {
            before.push((register, self.ask(&format!("p{register:x}"))?));
            let value = hex(&value.to_le_bytes());
            self.expect_ok(&format!("P{register:x}={value}"))?;
        }
        self.write(at, &WRMSR)?;
        self.step(cpu)?.context("the machine ended")?;
        self.write(at, &code.to_le_bytes())?;
        self.send_to(cpu, at)?;
        for (register, value) in before {
            self.expect_ok(&format!("P{register:x}={value}"))?;
        }
        Ok(())
    }

    /// Lets `cpu` execute one instruction while the others stand still.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn step(&mut self, cpu: u32) -> Result<Option<Stop>> {
        self.send(&format!("vCont;s:{:x}", cpu + 1))?;
        self.stopped()
    }

    /// The instruction that `cpu`, which stands still, is about to execute.
    ///
    /// # Errors
    /// As [`Self::break_at`].
    pub fn instruction_pointer(&mut self, cpu: u32) -> Result<u64> {
        self.expect_ok(&format!("Hg{:x}", cpu + 1))?;
        let answer = self.ask(&format!("p{RIP:x}"))?;
        word(&answer).with_context(|| format!("'{answer}' is no RIP"))
    }

    /// Sends `cpu`, which stands still, to `address`.
    ///
    /// # Errors
    /// As [`Self::break_at`].
    pub fn send_to(&mut self, cpu: u32, address: u64) -> Result<()> {
        self.expect_ok(&format!("Hg{:x}", cpu + 1))?;
        self.expect_ok(&format!("P{RIP:x}={}", hex(&address.to_le_bytes())))
    }

    /// Writes over memory at the address of a machine that stands still, whatever its page tables
    /// protect.
    ///
    /// # Errors
    /// As [`Self::break_at`].
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        self.expect_ok(&format!("M{address:x},{:x}:{}", bytes.len(), hex(bytes)))
    }

    /// Eight bytes of the memory of a machine that stands still.
    ///
    /// # Errors
    /// As [`Self::break_at`], or nothing is mapped there.
    pub fn read_word(&mut self, address: u64) -> Result<u64> {
        let answer = self.ask(&format!("m{address:x},8"))?;
        word(&answer).with_context(|| format!("'{answer}' is no memory at {address:#x}"))
    }

    /// Takes addresses as physical ones from here on, so that memory that no page table maps can
    /// be read and written as well.
    ///
    /// # Errors
    /// As [`Self::break_at`].
    pub fn physical_addresses(&mut self) -> Result<()> {
        self.expect_ok("Qqemu.PhyMemMode:1")
    }

    /// Lets the machine go on by itself and leaves.
    ///
    /// # Errors
    /// As [`Self::break_at`].
    pub fn leave(mut self) -> Result<()> {
        self.expect_ok("D")
    }

    fn stopped(&mut self) -> Result<Option<Stop>> {
        loop {
            let packet = self.receive()?;
            match packet.as_bytes().first() {
                Some(b'T') => {
                    let cpu = thread(&packet).with_context(|| format!("no thread in {packet}"))?;
                    return Ok(Some(Stop { cpu }));
                }
                Some(b'W' | b'X') => return Ok(None),
                // Console output of the stub itself.
                Some(b'O') => {}
                _ => bail!("the stub says '{packet}' where a stop was due"),
            }
        }
    }

    fn expect_ok(&mut self, packet: &str) -> Result<()> {
        let answer = self.ask(packet)?;
        ensure!(answer == "OK", "the stub answers '{answer}' to '{packet}'");
        Ok(())
    }

    fn ask(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        self.receive()
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        let framed = format!("${packet}#{:02x}", checksum(packet.as_bytes()));
        self.stream.write_all(framed.as_bytes()).context("the stub is gone")
    }

    /// The next packet, acknowledged.
    fn receive(&mut self) -> Result<String> {
        let started = Instant::now();
        // Acknowledgements of our own packets stand before it.
        while self.byte(started)? != b'$' {}
        let mut payload = Vec::new();
        loop {
            match self.byte(started)? {
                b'#' => break,
                byte => payload.push(byte),
            }
        }
        let sum = [self.byte(started)?, self.byte(started)?];
        let sum = std::str::from_utf8(&sum).ok().and_then(|sum| u8::from_str_radix(sum, 16).ok());
        ensure!(sum == Some(checksum(&payload)), "the stub's packet is damaged");
        // A machine that has ended needs no acknowledgement of its last words.
        let _ = self.stream.write_all(b"+");
        Ok(String::from_utf8_lossy(&payload).into_owned())
    }

    fn byte(&mut self, started: Instant) -> Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte).with_context(|| {
            format!("the stub was silent for {} s", started.elapsed().as_secs())
        })?;
        Ok(byte[0])
    }
}

/// A word as the protocol has it: as memory would hold it, and registers come the same way.
fn word(answer: &str) -> Option<u64> {
    u64::from_str_radix(answer, 16).ok().filter(|_| answer.len() == 16).map(u64::swap_bytes)
}

/// Bytes as the protocol has them.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Drop for Gdb {
    fn drop(&mut self) {
        // QEMU removes it when it ends in order; nobody minds when it is gone.
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn checksum(payload: &[u8]) -> u8 {
    payload.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The CPU in a stop's `thread:02;`. The stub counts from 1.
fn thread(packet: &str) -> Option<u32> {
    let (_, rest) = packet.split_once("thread:")?;
    let number = rest.split(';').next()?;
    // With several processes it is `pPROCESS.THREAD`.
    let number = number.rsplit('.').next()?;
    u32::from_str_radix(number, 16).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stub that answers each packet from a script.
    fn stub(script: &'static [(&'static str, &'static str)]) -> Gdb {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
        std::thread::spawn(move || {
            for (wanted, answer) in script {
                let mut got = Vec::new();
                let mut byte = [0];
                while !got.ends_with(b"#") {
                    theirs.read_exact(&mut byte).expect("a packet");
                    got.push(byte[0]);
                }
                theirs.read_exact(&mut [0; 2]).expect("a checksum");
                let got = String::from_utf8_lossy(&got).trim_start_matches('+').to_owned();
                assert_eq!(got, format!("${wanted}#"));
                let sum = checksum(answer.as_bytes());
                write!(theirs, "+${answer}#{sum:02x}").expect("an answer");
            }
        });
        let reader = BufReader::new(ours.try_clone().expect("a handle"));
        Gdb { stream: ours, reader, socket: PathBuf::new() }
    }

    #[test]
    fn packets_are_framed_and_stops_name_their_cpu() {
        let mut gdb = stub(&[
            ("Z0,1000000,1", "OK"),
            ("c", "T05thread:02;"),
            ("Hg2", "OK"),
            ("p10", "0010000100000000"),
            ("Hg2", "OK"),
            ("P10=00b0adde007f0000", "OK"),
            ("vCont;s:2", "T05thread:p01.02;"),
            ("z0,1000000,1", "E22"),
            ("c", "W00"),
        ]);
        gdb.break_at(0x100_0000).expect("set");
        assert_eq!(gdb.run().expect("a stop"), Some(Stop { cpu: 1 }));
        assert_eq!(gdb.instruction_pointer(1).expect("RIP"), 0x100_1000);
        gdb.send_to(1, 0x7f00_dead_b000).expect("sent");
        assert_eq!(gdb.step(1).expect("a step"), Some(Stop { cpu: 1 }));
        assert!(gdb.no_break_at(0x100_0000).is_err(), "an error is no OK");
        assert_eq!(gdb.run().expect("the end"), None);
    }
}
