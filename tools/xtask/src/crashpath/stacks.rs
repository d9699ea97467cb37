//! The sizes of the stacks, out of the image's own debug information.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gimli::{AttributeValue, EndianSlice, LittleEndian, Reader};
use object::{Object, ObjectSection};

/// The structure with the stacks of one CPU as its members.
const BLOCK: &str = "StackBlock";

/// Bytes of each member of `machine`'s `StackBlock`, by its name.
///
/// # Errors
/// When the image does not describe it.
pub fn sizes(path: &Path) -> Result<BTreeMap<String, u64>> {
    let data = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let file = object::File::parse(&*data)?;
    let sections = gimli::DwarfSections::load(|id| -> Result<_> {
        let section = file.section_by_name(id.name());
        Ok(section.map(|section| section.uncompressed_data()).transpose()?.unwrap_or_default())
    })?;
    let dwarf = sections.borrow(|bytes| EndianSlice::new(bytes, LittleEndian));
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let unit = dwarf.unit(header)?;
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            if entry.tag() != gimli::DW_TAG_structure_type {
                continue;
            }
            if name(&dwarf, &unit, entry)?.as_deref() == Some(BLOCK) {
                let end = number(entry, gimli::DW_AT_byte_size).context("its size")?;
                return members(&dwarf, &unit, entry.offset(), end);
            }
        }
    }
    bail!("{} does not describe {BLOCK}", path.display())
}

/// Members lie one behind the other, so each ends where the next begins.
fn members<R: Reader>(
    dwarf: &gimli::Dwarf<R>,
    unit: &gimli::Unit<R>,
    block: gimli::UnitOffset<R::Offset>,
    end: u64,
) -> Result<BTreeMap<String, u64>> {
    let mut starts = Vec::new();
    let mut tree = unit.entries_tree(Some(block))?;
    let mut children = tree.root()?.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        if entry.tag() == gimli::DW_TAG_member {
            let at =
                number(entry, gimli::DW_AT_data_member_location).context("a member's place")?;
            starts.push((at, name(dwarf, unit, entry)?.context("a member's name")?));
        }
    }
    starts.sort();
    let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([end]);
    Ok(starts.iter().zip(ends).map(|((at, name), end)| (name.clone(), end - at)).collect())
}

fn name<R: Reader>(
    dwarf: &gimli::Dwarf<R>,
    unit: &gimli::Unit<R>,
    entry: &gimli::DebuggingInformationEntry<R>,
) -> Result<Option<String>> {
    let Some(value) = entry.attr_value(gimli::DW_AT_name) else { return Ok(None) };
    Ok(Some(dwarf.attr_string(unit, value)?.to_string()?.into_owned()))
}

fn number<R: Reader>(
    entry: &gimli::DebuggingInformationEntry<R>,
    attribute: gimli::DwAt,
) -> Option<u64> {
    entry.attr_value(attribute).as_ref().and_then(AttributeValue::udata_value)
}
