//! PCI as the firmware describes it: configuration space in memory, root buses, and the memory
//! that the host bridge passes on.

use handoff::facts::MAX_CONFIG_SPACES;
use handoff::{ConfigSpace, Range};

use super::aml::Aml;
use super::{Acpi, HEADER};

/// Bytes of an entry of the MCFG (PCI Firmware Specification 3.3, table 4-3).
const MCFG_ENTRY: u32 = 16;
/// Entries of the MCFG that are looked at: there are 65,536 segments, and no machine with more
/// than some dozens.
const MAX_MCFG_ENTRIES: u32 = 1024;

/// Parts of configuration space, by segment and first bus.
pub type ConfigSpaces = heapless::Vec<ConfigSpace, MAX_CONFIG_SPACES>;

/// How to reach PCI.
#[derive(Clone, Debug, Default)]
pub struct Pci {
    /// Configuration space in memory, sorted by segment and first bus. The first
    /// [`MAX_CONFIG_SPACES`] of the table: more find no room in the facts.
    pub config_spaces: ConfigSpaces,
    /// Memory addresses below 4 GiB that the host bridge passes on.
    pub window: Option<Range>,
    /// Root buses of segment 0 beside bus 0 that AML names: bit n of word n / 64 for bus n.
    pub root_buses: [u64; 4],
}

impl Acpi<'_> {
    /// Returns the sound entries of the MCFG, of all segments, in its order.
    pub fn config_spaces(&self) -> impl Iterator<Item = ConfigSpace> + '_ {
        let table = self.table(b"MCFG");
        (0..MAX_MCFG_ENTRIES)
            .map_while(move |index| {
                // Behind the header: 8 reserved bytes.
                let at = index.checked_mul(MCFG_ENTRY)?.checked_add(HEADER + 8)?;
                self.array::<{ MCFG_ENTRY as usize }>(&table?, at)
            })
            .filter_map(|[a, b, c, d, e, f, g, h, low, high, first_bus, last_bus, ..]| {
                let address = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                let segment = u16::from_le_bytes([low, high]);
                (address != 0 && first_bus <= last_bus).then_some(ConfigSpace {
                    address,
                    segment,
                    first_bus,
                    last_bus,
                    reserved: 0,
                })
            })
    }

    /// Puts together how to reach PCI: by the MCFG, and by `aml` where that table does not name
    /// segment 0.
    #[must_use]
    pub fn pci(&self, aml: &Aml) -> Pci {
        let mut spaces: ConfigSpaces = self.config_spaces().take(MAX_CONFIG_SPACES).collect();
        spaces.sort_unstable_by_key(|space| (space.segment, space.first_bus));
        if spaces.iter().all(|space| space.segment != 0)
            && let Some(address) = aml.config_space
        {
            let (first_bus, last_bus) = aml.buses.unwrap_or((0, u8::MAX));
            let space = ConfigSpace { address, segment: 0, first_bus, last_bus, reserved: 0 };
            // Without room for it there are fewer segments in the table than it has entries.
            let _ = spaces.insert(0, space);
        }
        let own = |space: &ConfigSpace| Range {
            start: space.address,
            bytes: (u64::from(space.last_bus) + 1) << 20,
        };
        let free = |window: &&Range| !spaces.iter().any(|space| window.overlaps(&own(space)));
        let window = aml.memory_windows.iter().find(free).copied();
        Pci { config_spaces: spaces, window, root_buses: aml.root_buses }
    }
}
