//! Commands that verify dumps and take them off disks: their answers and exit codes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use vmcore::commands::extract::render_left_out;
use vmcore::commands::verify::State;
use vmcore::{Error, ExtractOptions};

use super::meter::Meter;
use super::{From, complain, metered, print, say, tell, verdict};

/// Exit code of `verify` when nothing is damaged and half of the dump is not at hand.
const ABSENT: u8 = 4;

pub fn extract(from: &From, out: &Path, elide_zero: bool, force: bool) -> Result<ExitCode> {
    let mut meter = Meter::new();
    let mut progress = |done, all| meter.show("extract", done, all);
    let options =
        ExtractOptions { open: from.options(), elide_zero, force, progress: Some(&mut progress) };
    let extracted = vmcore::extract_with(&from.dump, &from.with, out, options);
    meter.end();
    let extracted = extracted?;
    render_left_out(&extracted.left_out).lines().for_each(say);
    print(from.json, &extracted, || extracted.render(out))?;
    Ok(verdict(extracted.is_good()))
}

/// `vmcore verify`: a dump that cannot be opened since it is damaged is a bad answer, and not
/// none.
pub fn verify(from: &From) -> Result<ExitCode> {
    let dump = match from.open() {
        Err(error) => {
            let code = match error.downcast_ref() {
                Some(Error::OtherHalf { .. }) => ExitCode::from(ABSENT),
                Some(damage) if Error::is_damage(damage) => verdict(false),
                _ => return Err(error),
            };
            complain(&error);
            return Ok(code);
        }
        Ok(dump) => dump,
    };
    let verified =
        metered(|meter| Ok(vmcore::verify(&dump, &mut |done, all| meter("verify", done, all))))?;
    print(from.json, &verified, || verified.render())?;
    Ok(match verified.state {
        State::Good => ExitCode::SUCCESS,
        State::NoChecksums => ExitCode::FAILURE,
        State::Damaged => verdict(false),
        State::Absent => ExitCode::from(ABSENT),
    })
}

pub fn collect(disks: &[PathBuf], out: &Path, salvage: bool, json: bool) -> Result<ExitCode> {
    let collect = if salvage { vmcore::salvage } else { vmcore::collect };
    let collection = metered(|meter| collect(disks, out, meter))?;
    for failure in &collection.failures {
        tell(&failure.reason, failure.hint.as_deref());
    }
    print(json, &collection, || collection.render())?;
    Ok(match (collection.is_damaged(), collection.failures.is_empty()) {
        (false, false) => ExitCode::FAILURE,
        (damaged, _) => verdict(!damaged),
    })
}
