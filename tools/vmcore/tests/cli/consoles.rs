//! Last words out of consoles that were cut, wrapped, prefixed and mixed up.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::common::{Folder, answer, vmcore};
use serde_json::Value;
use vmcore_format::last_words::LastWords;

/// Commands that a core of last words has to open in.
const COMMANDS: [&str; 9] =
    ["info", "cpus", "regs", "verify", "timeline", "log", "locks", "trace", "stamps"];

/// The last words of three CPUs: what stopped the machine, its log, registers and stacks.
fn record() -> String {
    let mut words = LastWords::begin(String::new());
    words.line(format_args!("from=capture"));
    words.line(format_args!("reason=no disk"));
    words.line(format_args!(
        "cause kind=panic cpu=1 vector=-1 address=0x0 message=a long message  with blanks in it \
         that goes on beyond eighty columns of a terminal and so is wrapped"
    ));
    words.line(format_args!("panic file=src/main.rs line=7"));
    words.line(format_args!("build-id e917af0102030405060708090a0b0c0d0e0f1011"));
    for cpu in 0..3 {
        let how =
            if cpu == 1 { "crash registers_from=self" } else { "nmi registers_from=interrupted" };
        words.line(format_args!(
            "cpu index={cpu} apic_id={cpu} stopped_by={how} rip=0x10000{cpu}0 rsp=0x5{cpu}00 \
             rbp=0x5{cpu}80"
        ));
    }
    for cpu in [1_u64, 0, 2] {
        let mut registers = [0_u64; 27];
        registers[16] = 0x100_0000 + cpu * 0x10;
        registers[19] = 0x5000 + cpu * 0x100;
        let bytes: Vec<u8> = registers.iter().flat_map(|word| word.to_le_bytes()).collect();
        words.bytes(format_args!("registers cpu={cpu}"), 0, &bytes);
        let stack: Vec<u8> = (0..200).map(|byte| byte as u8).collect();
        words.bytes(format_args!("memory"), 0x5000 + cpu * 0x100, &stack);
    }
    words.line(format_args!("log address=0x9000 capacity=8192 written=20"));
    words.bytes(format_args!("memory"), 0x9000, b"sieve: unit 1234\nend\n");
    words.end()
}

/// Wraps every line at `width` columns, as a terminal does; `trim` drops the blanks in
/// front of a break, as its copy does.
fn wrapped(text: &str, width: usize, trim: bool) -> String {
    let mut out = String::new();
    for line in text.lines() {
        for piece in line.as_bytes().chunks(width) {
            let piece = std::str::from_utf8(piece).expect("ASCII");
            out += if trim { piece.trim_end() } else { piece };
            out.push('\n');
        }
    }
    out
}

fn from_console(folder: &Folder, console: &str) -> (Option<i32>, Value) {
    let arguments = ["from-console", console, "-o", "core", "--force", "--json"];
    let output = vmcore(folder, &arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or(stderr.into()))
}

fn is_whole(folder: &Folder, name: &str, console: &str) {
    folder.file("console", console.as_bytes());
    let (code, made) = from_console(folder, "console");
    assert_eq!(code, Some(0), "{name}: {made}\n{console}");
    assert_eq!((&made["cpus"], &made["registers"]), (&3.into(), &3.into()), "{name}: {made}");
    assert_eq!(made["memory_bytes"], 0x26d, "{name}");
    let words = answer(folder, &["last-words", "console", "--json"]);
    let words: Value = serde_json::from_str(&words).expect("JSON");
    let lines: Vec<&str> =
        words["lines"].as_array().expect("lines").iter().filter_map(Value::as_str).collect();
    assert!(
        lines[2].ends_with(
            "message=a long message  with blanks in it that goes on beyond \
                                eighty columns of a terminal and so is wrapped"
        ),
        "{name}"
    );
}

#[test]
fn wrapped_and_prefixed_lines_are_joined_again() {
    let folder = Folder::new("wrapped");
    let text = record();
    is_whole(&folder, "as it was", &text);
    for width in [40, 72, 80, 100, 132] {
        for trim in [false, true] {
            let copy = wrapped(&text, width, trim);
            is_whole(&folder, &format!("{width} columns"), &copy);
            is_whole(&folder, &format!("{width} columns, CRLF"), &copy.replace('\n', "\r\n"));
            let padded: String = copy.lines().fold(String::new(), |mut all, line| {
                let _ = writeln!(all, "{line:width$}   ");
                all
            });
            is_whole(&folder, &format!("{width} columns, padded"), &padded);
            let indented: String = copy.lines().map(|line| format!("> {line}\n")).collect();
            is_whole(&folder, &format!("{width} columns, quoted"), &indented);
        }
    }
    // A logger writes a prefix before each line, and its terminal wraps both.
    let prefixed =
        |prefix: &str| -> String { text.lines().map(|line| format!("{prefix}{line}\n")).collect() };
    for prefix in ["[   12.345678] ", "Nov 30 20:41:52 host qemu[77]: ", "2026-11-30T20:41:52Z "] {
        is_whole(&folder, prefix, &prefixed(prefix));
        is_whole(&folder, prefix, &wrapped(&prefixed(prefix), 80, true));
        // The prefix before each piece instead.
        let pieces: String =
            wrapped(&text, 80, true).lines().map(|line| format!("{prefix}{line}\n")).collect();
        is_whole(&folder, prefix, &pieces);
    }
    // `script` and tmux: colours, line ends of a terminal, a title.
    let raw = text.replace('\n', "\x1b[K\r\n").replace("memory", "\x1b[1mmemory\x1b[0m");
    is_whole(&folder, "script", &format!("Script started\n\x1b]0;host\x07{raw}Script done\n"));
}

#[test]
fn lines_of_others_between_the_pieces_are_left_out() {
    let folder = Folder::new("interleaved");
    let text = record();
    let foreign = "[    1.234567] usb 1-1: new high-speed device\n";
    // Between the pieces of wrapped lines, and in the middle of whole ones.
    let mut copy = String::new();
    for (number, line) in wrapped(&text, 80, true).lines().enumerate() {
        copy += line;
        copy.push('\n');
        if number % 5 == 2 {
            copy += foreign;
        }
    }
    is_whole(&folder, "between", &copy);
    for at in [22, 30, 60] {
        let mut copy = String::new();
        for (number, line) in text.lines().enumerate() {
            if number % 4 == 1 && line.len() > at {
                let (head, tail) = line.split_at(at);
                copy += &format!("{head}{foreign}{tail}\n");
            } else {
                copy += &format!("{line}\n");
            }
        }
        is_whole(&folder, "within", &copy);
    }
}

#[test]
fn what_is_torn_is_named_and_never_passes_for_whole() {
    let folder = Folder::new("torn");
    let text = record();
    let lines: Vec<&str> = text.lines().collect();
    // Each line in turn has lost its last characters.
    for torn in 0..lines.len() {
        let console: String = lines
            .iter()
            .enumerate()
            .map(|(number, line)| match number == torn {
                true => format!("{}\n", &line[..line.len() - 3]),
                false => format!("{line}\n"),
            })
            .collect();
        folder.file("console", console.as_bytes());
        let output = vmcore(&folder, &["last-words", "console", "--json"]);
        assert_eq!(output.status.code(), Some(3), "line {torn}");
        let words: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(words["missing"][0]["first"], torn, "line {torn}");
        let (code, made) = from_console(&folder, "console");
        assert_eq!(code, Some(3), "line {torn}: {made}");
        let warnings = made["warnings"].to_string();
        assert!(warnings.contains(&format!("line {torn}")), "line {torn}: {warnings}");
        for command in COMMANDS {
            answer_or_lack(&folder, command);
        }
    }
    // Every line is torn: nothing is there, and that is no success.
    let stumps: String = lines.iter().map(|line| format!("{}\n", &line[..20])).collect();
    folder.file("console", stumps.as_bytes());
    assert_eq!(vmcore(&folder, &["last-words", "console"]).status.code(), Some(3));
    let (code, why) = from_console(&folder, "console");
    assert_eq!(code, Some(1), "{why}");
    assert!(why.to_string().contains("name no CPU (damaged)"), "{why}");
}

/// The command opens the core; it may say that the core lacks what it is about.
fn answer_or_lack(folder: &Folder, command: &str) {
    let output = vmcore(folder, &[command, "core"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    // Memory that was said on a console never was under a checksum of its own.
    let unproven = stdout.starts_with("no checksums: cannot be verified");
    let lacks = stderr.contains("the dump has no") || (command == "verify" && unproven);
    assert_eq!(output.status.code(), Some(i32::from(lacks)), "{command}: {stderr}");
}

#[test]
fn any_subset_of_the_lines_makes_a_core_that_every_command_opens() {
    let folder = Folder::new("subsets");
    let text = record();
    let lines: Vec<&str> = text.lines().collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..60 {
        let console: String = lines
            .iter()
            .filter(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state >> 61 > round % 7
            })
            .map(|line| format!("{line}\n"))
            .collect();
        folder.file("console", console.as_bytes());
        let (code, made) = from_console(&folder, "console");
        if code == Some(1) {
            assert!(made.to_string().contains("last words"), "{made}");
            continue;
        }
        for command in COMMANDS {
            answer_or_lack(&folder, command);
        }
    }
    // Only the last CPU's line: those before it have a record that says so.
    let console = format!("{}\n{}\n", lines[0], lines[8]);
    folder.file("console", console.as_bytes());
    let (code, made) = from_console(&folder, "console");
    assert_eq!((code, &made["cpus"]), (Some(3), &1.into()), "{made}");
    assert!(
        made["warnings"].to_string().contains("the line of CPUs 0, 1 did not arrive"),
        "{made}"
    );
    let cpus: Value =
        serde_json::from_str(&answer(&folder, &["cpus", "core", "--json"])).expect("JSON");
    assert_eq!(cpus["cpus"].as_array().map(Vec::len), Some(3));
    assert_eq!(cpus["cpus"][0]["stopped_by"], "unknown");
    assert_eq!(cpus["cpus"][0]["registers_from"], "none");
    assert_eq!(cpus["cpus"][2]["stopped_by"], "nmi");
    // A record that is whole and tells of CPU 1 alone has the same hole.
    let mut words = LastWords::begin(String::new());
    words.line(format_args!("{}", &lines[7][21..]));
    folder.file("console", words.end().as_bytes());
    let (code, made) = from_console(&folder, "console");
    assert_eq!((code, &made["complete"]), (Some(3), &true.into()), "{made}");
    for command in COMMANDS {
        answer_or_lack(&folder, command);
    }
    // Only its registers: they hold where it stood.
    let registers = lines.iter().filter(|line| line.contains("registers cpu=2"));
    let console: String = registers.map(|line| format!("{line}\n")).collect();
    folder.file("console", console.as_bytes());
    assert_eq!(from_console(&folder, "console").0, Some(3));
    let registers = answer(&folder, &["regs", "core", "--cpu", "2", "--json"]);
    assert!(registers.contains("\"rip\": \"0x1000020\""), "{registers}");
}

#[test]
fn a_core_of_last_words_does_not_deny_the_clock() {
    let folder = Folder::new("clock");
    folder.file("console", record().as_bytes());
    from_console(&folder, "console");
    let text = answer(&folder, &["info", "core"]);
    assert!(text.contains("at an unknown time (not in last words)"), "{text}");
    let info: Value =
        serde_json::from_str(&answer(&folder, &["info", "core", "--json"])).expect("JSON");
    assert_eq!(info["time"]["unix_absent"], "not-in-last-words");
}

#[test]
fn a_console_comes_through_a_pipe_as_well() {
    let folder = Folder::new("console-pipe");
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmcore"))
        .args(["last-words", "-"])
        .current_dir(folder.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start vmcore");
    let mut pipe = child.stdin.take().expect("its input");
    pipe.write_all(record().as_bytes()).expect("write the console");
    drop(pipe);
    let output = child.wait_with_output().expect("wait for it");
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("reason=no disk"));
}

#[test]
fn a_record_before_gigabytes_of_other_text_is_found() {
    let folder = Folder::new("long-console");
    let path = folder.file("console", record().as_bytes());
    // A sparse file: what follows reads as NULs.
    let file = std::fs::File::options().write(true).open(&path).expect("open it");
    file.set_len(100 << 20).expect("lengthen it");
    let words = answer(&folder, &["last-words", "console"]);
    assert!(words.starts_with("Complete"), "{words}");
}
