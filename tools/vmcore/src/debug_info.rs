//! Holds debug information against bounds before a library unfolds it.
//!
//! Units may share what they refer to: tables of abbreviations, lists of ranges, tables of
//! lines. The library unfolds each for every unit, so that a small file whose units all
//! share the same large table would take memory and time without bound. Compilers share
//! none of them, and the sums here are those of an image without sharing, twice.

use gimli::{AbbreviationsCacheStrategy, AttributeValue, Dwarf, Reader, Section, UnitType};

use crate::image::Bytes;

/// Most units.
const UNITS: usize = 1 << 16;
/// Most attributes of all units' root entries.
const ATTRIBUTES: u64 = 1 << 22;
/// Most ranges of addresses of all units.
const RANGES: u64 = 1 << 20;

/// What is left to spend.
struct Budget {
    left: u64,
    what: &'static str,
}

impl Budget {
    fn spend(&mut self, amount: u64) -> Result<(), String> {
        let left = self.left.checked_sub(amount);
        self.left =
            left.ok_or_else(|| format!("its debug information has too many {}", self.what))?;
        Ok(())
    }
}

/// Checks the units; returns how many there are. What is damaged is left to the library.
///
/// # Errors
/// Says of what there is too much.
pub(crate) fn check(dwarf: &mut Dwarf<Bytes>) -> Result<usize, String> {
    check_abbreviations(dwarf)?;
    // Units that do share a table have it read once.
    dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
    let mut lines =
        Budget { left: twice(dwarf.debug_line.reader()), what: "shared tables of lines" };
    let mut attributes = Budget { left: ATTRIBUTES, what: "attributes" };
    let mut ranges = Budget { left: RANGES, what: "ranges of addresses" };
    let mut units = dwarf.units();
    let mut count = 0;
    while let Ok(Some(header)) = units.next() {
        count += 1;
        if count > UNITS {
            return Err(format!("its debug information has more than {UNITS} units"));
        }
        if matches!(header.type_(), UnitType::Type { .. } | UnitType::SplitType { .. }) {
            continue;
        }
        let Ok(table) = dwarf.abbreviations(&header) else { continue };
        let Ok(mut entries) = header.entries_raw(&table, None) else { continue };
        let Ok(Some(root)) = entries.read_abbreviation() else { continue };
        attributes.spend(root.attributes().len() as u64)?;
        let mut table_of_lines = None;
        for &attribute in root.attributes() {
            let Ok(attribute) = entries.read_attribute(attribute) else { break };
            if let AttributeValue::DebugLineRef(offset) = attribute.value() {
                table_of_lines = Some(offset.0);
            }
        }
        if let Some(offset) = table_of_lines {
            let mut table = dwarf.debug_line.reader().clone();
            if table.skip(offset).is_ok()
                && let Ok((length, _)) = table.read_initial_length()
            {
                lines.spend(length as u64)?;
            }
        }
        let Ok(unit) = dwarf.unit(header) else { continue };
        let Ok(mut all) = dwarf.unit_ranges(&unit) else { continue };
        while let Ok(Some(_)) = all.next() {
            ranges.spend(1)?;
        }
    }
    Ok(count)
}

/// Checks that the tables of abbreviations do not lie in each other.
fn check_abbreviations(dwarf: &Dwarf<Bytes>) -> Result<(), String> {
    let mut budget =
        Budget { left: twice(dwarf.debug_abbrev.reader()), what: "shared abbreviations" };
    let mut known = std::collections::BTreeSet::new();
    let mut units = dwarf.units();
    while let Ok(Some(header)) = units.next() {
        let offset = header.debug_abbrev_offset().0;
        let mut table = dwarf.debug_abbrev.reader().clone();
        if known.insert(offset) && table.skip(offset).is_ok() {
            spend_table(&mut table, &mut budget)?;
        }
    }
    Ok(())
}

/// Twice the bytes of a section, and some for sections of a few bytes.
fn twice(section: &Bytes) -> u64 {
    section.len() as u64 * 2 + 1024
}

/// Spends the bytes of a table of abbreviations; ends at its end or where it is damaged.
fn spend_table(table: &mut Bytes, budget: &mut Budget) -> Result<(), String> {
    let start = table.len();
    let mut spent = 0;
    // Code, tag, whether it has children; then pairs of name and form, up to one of zeros.
    while table.read_uleb128().is_ok_and(|code| code != 0) {
        if table.read_uleb128().is_err() || table.read_u8().is_err() {
            break;
        }
        while let (Ok(name), Ok(form)) = (table.read_uleb128(), table.read_uleb128()) {
            let constant = form == u64::from(gimli::DW_FORM_implicit_const.0);
            if (name, form) == (0, 0) || (constant && table.read_sleb128().is_err()) {
                break;
            }
        }
        let taken = (start - table.len()) as u64;
        budget.spend(taken - spent)?;
        spent = taken;
    }
    Ok(())
}
