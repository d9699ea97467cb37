extern crate std;
use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn record(lines: &[&str]) -> String {
    let mut words = LastWords::begin(String::new());
    for line in lines {
        words.line(format_args!("{line}"));
    }
    words.end()
}

#[test]
fn what_is_written_is_found_in_a_noisy_console() {
    let text = record(&["cause=panic", "message=a = b, c", "cpu index=1 stopped_by=nmi"]);
    let noisy = text.replace('\n', "\r\nprogress 12%\r\n\x1b[2J noise ");
    let console = format!("SeaBIOS\r\nboot {noisy} reset");
    let found = find(&console).unwrap();
    assert_eq!(found.state, State::Complete);
    assert_eq!(found.value("message"), Some("a = b, c"));
    assert_eq!(found.lines().count(), 3);
}

#[test]
fn every_cut_and_every_missing_line_is_seen() {
    let text = record(&["one=1", "two=2", "three=3"]);
    // The newline behind the last line is no part of it.
    for cut in 0..text.len() - 1 {
        let state = find(&text[..cut]).map(|record| record.state);
        // Once the first line is there it is known what the rest is the beginning of.
        if cut >= text.find('\n').unwrap() {
            assert_eq!(state, Some(State::Incomplete), "cut at {cut}");
        }
        assert_ne!(state, Some(State::Complete), "cut at {cut}");
    }
    for missing in 0..5 {
        let rest: String = text
            .lines()
            .enumerate()
            .filter(|&(n, _)| n != missing)
            .fold(String::new(), |text, (_, line)| text + line + "\n");
        let expected = if missing == 4 { State::Incomplete } else { State::Damaged };
        assert_eq!(find(&rest).unwrap().state, expected, "line {missing}");
    }
}

#[test]
fn every_flipped_bit_is_seen() {
    let text = record(&["message=x"]);
    for bit in 0..(text.len() - 1) * 8 {
        let mut bytes: Vec<u8> = text.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let console = String::from_utf8_lossy(&bytes);
        let state = find(&console).map(|record| record.state);
        // What separates the lines is no part of them.
        let separator = text.as_bytes()[bit / 8] == b'\n';
        assert!(separator || state != Some(State::Complete), "bit {bit}: {console}");
    }
}

#[test]
fn two_records_are_two_and_the_newest_counts() {
    let cut = record(&["n=1"]);
    let cut = &cut[..cut.len() / 2];
    let console = format!("{cut}\n{}{}", record(&["n=2"]), record(&["n=3"]));
    let states: Vec<State> = records(&console).map(|record| record.state).collect();
    assert_eq!(states.len(), 3);
    assert_eq!(states[1..], [State::Complete, State::Complete]);
    assert_eq!(find(&console).unwrap().value("n"), Some("3"));
}

#[test]
fn a_record_without_its_first_line_is_not_mixed_with_the_one_before() {
    let (first, second) = (record(&["n=1", "m=1"]), record(&["n=2", "m=2"]));
    // The end of the first and the begin of the second are lost.
    let first: String = first.lines().take(3).map(|line| format!("{line}\n")).collect();
    let second: String = second.lines().skip(1).map(|line| format!("{line}\n")).collect();
    let console = first + &second;
    let found: Vec<Record<'_>> = records(&console).collect();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].state, State::Incomplete);
    assert_eq!(found[1].state, State::Damaged);
    assert_eq!(found[1].lines().collect::<Vec<_>>(), ["n=2", "m=2"]);
}

#[test]
fn lines_that_were_logged_twice_are_one_record() {
    let text = record(&["n=1", "m=1"]);
    let twice: String = text.lines().map(|line| format!("{line}\n{line}\n")).collect();
    let found: Vec<State> = records(&twice).map(|record| record.state).collect();
    assert_eq!(found, [State::Complete]);
}

#[test]
fn a_long_line_is_cut_between_characters_and_stays_one_line() {
    let long = "ü\n".repeat(300);
    let text = record(&[&long]);
    let found = find(&text).unwrap();
    assert_eq!(found.state, State::Complete);
    let line = found.lines().next().unwrap();
    assert!(line.len() <= CONTENT_BYTES && line.starts_with("ü ü "));
}

#[test]
fn a_newer_version_is_named() {
    let mut words = LastWords { writer: String::new(), lines: 0, whole: Default::default() };
    words.line(format_args!("last-words version=2"));
    assert_eq!(find(&words.end()).unwrap().state, State::Newer(2));
}

proptest! {
    #[test]
    fn no_text_makes_the_decoder_panic(
        noise in "(~EP |[0-9a-f ]{0,20}|end lines=|last-words version=|\\PC{0,8}){0,20}",
    ) {
        for record in records(&noise) {
            let _ = record.lines().count();
        }
    }

    #[test]
    fn any_lines_come_back(lines in proptest::collection::vec("\\PC{0,60}", 0..20)) {
        let lines: Vec<&str> = lines.iter().map(String::as_str)
            .filter(|line| line.len() <= CONTENT_BYTES && !line.starts_with(END_WORD)).collect();
        let text = record(&lines);
        let found = find(&text).unwrap();
        prop_assert_eq!(found.state, State::Complete);
        prop_assert_eq!(found.lines().collect::<Vec<_>>(), lines);
    }
}
