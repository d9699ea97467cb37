//! The page that a crash leaves on the screen: to be read in a photo.
//!
//! What happened in large letters, then a line for each CPU with the rung that stopped it,
//! as many as there is room for. The strip at the bottom belongs to whoever writes the dump.

use core::fmt;

use handoff::crash::StoppedBy;
use handoff::{Cause, CpuRecord};
use screen::{Band, Ink, Mood, Page, Style, Surface};

use super::record;
use crate::arming::arm;
use crate::base::{clock, screen as shown};

const fn style(scale: u32, ink: Ink) -> Style {
    Style { scale, ink, paper: Ink::Black }
}

const TITLE: Style = Style { scale: 3, ink: Ink::White, paper: Ink::Red };
const MESSAGE: Style = style(2, Ink::White);
const DETAIL: Style = style(1, Ink::Grey);
const HEADING: Style = style(2, Ink::Amber);

/// Lines that a message takes at most.
const MESSAGE_LINES: u32 = 3;

/// Draws the page, where there is a screen.
pub fn show() {
    let (Some(surface), Some(cause)) = (shown::for_a_crash(), record::cause()) else { return };
    let band = Band::new(surface);
    let mut page = Page::new(surface, 0, band.first_line());
    surface.paint_margins(Ink::Black);
    page.line(TITLE, format_args!("{} on CPU {}", cause.kind, cause.cpu));
    write_cause(&mut page, cause);
    write_cpus(&mut page, &surface, record::cpu_records());
    page.finish(Ink::Black);
    band.show(
        Mood::Busy,
        0,
        format_args!("leaving for the capture image"),
        format_args!("the others have stopped, the records stand"),
    );
}

/// There will be no dump.
pub fn show_no_dump(reason: &str) {
    let Some(surface) = shown::for_a_crash() else { return };
    Band::new(surface).show(
        Mood::Bad,
        0,
        format_args!("NO DUMP, last words on the serial port"),
        format_args!("{reason}"),
    );
}

fn write_cause(page: &mut Page<'_>, cause: &Cause) {
    page.line(DETAIL, format_args!(""));
    page.paragraph(MESSAGE, MESSAGE_LINES, cause.message());
    if cause.line != 0 {
        page.line(DETAIL, format_args!("at {}:{}", cause.file(), cause.line));
    }
    let since_boot = clock::ns(cause.tsc.saturating_sub(clock::start_tsc()));
    page.line(
        DETAIL,
        format_args!("{} after boot, build-id {}", Time(since_boot), Hex(arm::build_id())),
    );
    page.line(DETAIL, format_args!(""));
}

/// A line for each CPU when they fit; else for those that did not just stop when asked.
fn write_cpus(page: &mut Page<'_>, surface: &Surface<'_>, cpus: &[CpuRecord]) {
    page.line(HEADING, format_args!("CPU  stopped by      after  was in"));
    let room = (page.left() / surface.lines_of(MESSAGE.scale)) as usize;
    if cpus.len() <= room {
        for cpu in cpus {
            write_cpu(page, cpu);
        }
        return;
    }
    let room = room.saturating_sub(1);
    let notable = cpus.iter().filter(|cpu| cpu.stopped_by != StoppedBy::IRQ).take(room);
    let mut left = [0u32; 8];
    for cpu in cpus {
        if let Some(count) = left.get_mut(cpu.stopped_by.0 as usize) {
            *count += 1;
        }
    }
    for cpu in notable {
        write_cpu(page, cpu);
        if let Some(count) = left.get_mut(cpu.stopped_by.0 as usize) {
            *count -= 1;
        }
    }
    page.line(MESSAGE, format_args!("and {} more:{}", left.iter().sum::<u32>(), Counts(&left)));
}

fn write_cpu(page: &mut Page<'_>, cpu: &CpuRecord) {
    let ink = match cpu.stopped_by {
        StoppedBy::CRASH => Ink::Amber,
        StoppedBy::IRQ | StoppedBy::SELF => Ink::White,
        StoppedBy::NEVER_STARTED => Ink::Grey,
        // It did not stop when it was asked kindly.
        _ => Ink::Rose,
    };
    page.line(
        style(MESSAGE.scale, ink),
        format_args!(
            "{:3}  {:<11} {:>9}  {}",
            cpu.index,
            cpu.stopped_by,
            After(cpu.latency_ns),
            handoff::crash::text(&cpu.workload),
        ),
    );
}

/// How many CPUs were stopped how, by the number of the way.
struct Counts<'a>(&'a [u32; 8]);

impl fmt::Display for Counts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (way, count) in (0..).zip(self.0).filter(|(_, count)| **count > 0) {
            write!(f, " {} {count}", StoppedBy(way))?;
        }
        Ok(())
    }
}

/// Nanoseconds as a reader wants them.
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0 / 1000;
        match us {
            0..10_000_000 => write!(f, "{}.{} ms", us / 1000, us / 100 % 10),
            _ => write!(f, "{}.{} s", us / 1_000_000, us / 100_000 % 10),
        }
    }
}

/// A time that a CPU took to stop, `u64::MAX` for none.
struct After(u64);

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = heapless::String::<16>::new();
        if self.0 == u64::MAX {
            return f.pad("-");
        }
        fmt::write(&mut text, format_args!("{}", Time(self.0)))?;
        f.pad(&text)
    }
}

/// Bytes in hexadecimal.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
