//! Which variables crash code uses.

use std::collections::BTreeSet;

use anyhow::Result;
use e2e::harness::Images;

use super::binary::values;
use super::tables;
use super::walk::Walk;

/// Returns every address that an instruction of the appliance's crash code names, in the order
/// of the addresses. Those that lie in `.data` and `.bss` are the variables that it uses.
///
/// # Errors
/// The image was not built, or cannot be followed.
pub fn addresses_in_crash_code() -> Result<BTreeSet<u64>> {
    let images = Images::find()?;
    let code = Walk::new(&images.appliance, &tables::APPLIANCE)?.code();
    Ok(code.iter().flat_map(values).collect())
}
