//! AArch64: stage 1 of the EL1&0 translation regime, granule of 4 KiB.
//!
//! Sections are those of the Arm Architecture Reference Manual for A-profile (Arm ARM, DDI
//! 0487), chapter D8 "The AArch64 Virtual Memory System Architecture"; registers are in its
//! chapter "AArch64 System Register Descriptions".

use crate::rights::{Access, Attributes, Rights};
use crate::walk::{Area, Entry, INDEX_MASK, Level, Page, Position, Refusal, WalkError, shift};
use crate::{AddressSpace, Unsupported};

/// SCTLR_EL1.M, bit 0: translation is on.
const SCTLR_M: u64 = 1;
/// SCTLR_EL1.EE, bit 25: tables are big-endian.
const SCTLR_EE: u64 = 1 << 25;
/// TCR_EL1.HD, bit 40: hardware manages the dirty state.
const TCR_HD: u64 = 1 << 40;
/// TCR_EL1.DS, bit 59: descriptors with 52-bit addresses.
const TCR_DS: u64 = 1 << 59;
/// TCR_EL1.IPS, bits 34:32: width of physical addresses, encoded.
const TCR_IPS_SHIFT: u32 = 32;
/// ID_AA64MMFR0_EL1.TGran4, bits 31:28: 15 means that there is no granule of 4 KiB.
const TGRAN4_SHIFT: u32 = 28;
const TGRAN4_ABSENT: u64 = 15;
/// Widest physical address of a descriptor without FEAT_LPA2, in bits.
const WIDEST: u8 = 48;

/// Address bits 47:12 of a descriptor. D8.3 "Translation table descriptor formats".
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Address bits 47:1 of TTBRn_EL1: bit 0 is CnP, bits 63:48 hold the ASID.
const TTBR_ADDRESS: u64 = 0x0000_ffff_ffff_fffe;

/// Bit 0 of a descriptor: valid.
const VALID: u64 = 1;
/// Bit 1: a table above level 3, a page at level 3; 0 there is a block or reserved.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// AttrIndx, bits 4:2.
const ATTRIBUTE_SHIFT: u32 = 2;
/// `AP[1]`, bit 6: EL0 has access.
const AP_USER: u64 = 1 << 6;
/// `AP[2]`, bit 7: read-only.
const AP_READ_ONLY: u64 = 1 << 7;
/// AF, bit 10: access flag.
const ACCESSED: u64 = 1 << 10;
/// nG, bit 11: not global.
const NOT_GLOBAL: u64 = 1 << 11;
/// DBM, bit 51: with TCR_EL1.HD, `AP[2]` means "not written yet" instead of read-only.
const DIRTY_MANAGED: u64 = 1 << 51;
/// PXN, bit 53: EL1 may not execute.
const PXN: u64 = 1 << 53;
/// UXN, bit 54: EL0 may not execute.
const UXN: u64 = 1 << 54;
/// PXNTable, bit 59 of a table descriptor. D8.4 "Hierarchical control of data access and
/// instruction execution permissions".
const PXN_TABLE: u64 = 1 << 59;
/// UXNTable, bit 60 of a table descriptor.
const UXN_TABLE: u64 = 1 << 60;
/// `APTable[0]`, bit 61 of a table descriptor: EL0 has no access below.
const AP_TABLE_NO_USER: u64 = 1 << 61;
/// `APTable[1]`, bit 62 of a table descriptor: no writes below.
const AP_TABLE_READ_ONLY: u64 = 1 << 62;

/// Bits of TCR_EL1 that one half of the address space has of its own.
struct HalfBits {
    /// Lowest bit of T0SZ or T1SZ (6 bits): 64 minus the width of a virtual address.
    size: u32,
    /// EPD0 or EPD1: the tables are not used.
    disabled: u64,
    /// Lowest bit of TG0 or TG1 (2 bits): the granule.
    granule: u32,
    /// Encodings of 4, 16 and 64 KiB, which differ between TG0 and TG1.
    granules: [u64; 3],
    /// TBI0 or TBI1: the top byte of an address is a tag.
    tagged: u64,
    /// HPD0 or HPD1: table descriptors do not restrict rights.
    flat: u64,
}

const LOWER: HalfBits = HalfBits {
    size: 0,
    disabled: 1 << 7,
    granule: 14,
    granules: [0, 2, 1],
    tagged: 1 << 37,
    flat: 1 << 41,
};
const UPPER: HalfBits = HalfBits {
    size: 16,
    disabled: 1 << 23,
    granule: 30,
    granules: [2, 1, 3],
    tagged: 1 << 38,
    flat: 1 << 42,
};

/// Half of the address space, with tables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Tables {
        /// Physical address of the root table, aligned to its size.
        root: u64,
        /// Width of a virtual address in bits, 25 to 48.
        bits: u8,
        /// The top byte of an address is ignored.
        tagged: bool,
        /// Table descriptors restrict rights.
        hierarchical: bool,
    },
    Disabled,
    Unsupported(Unsupported),
}

impl Half {
    fn new(bits: &HalfBits, ttbr: u64, tcr: u64, id_aa64mmfr0: u64) -> Self {
        if tcr & bits.disabled != 0 {
            return Self::Disabled;
        }
        let granule = (tcr >> bits.granule) & 3;
        let [kib4, kib16, kib64] = bits.granules;
        if granule == kib16 {
            return Self::Unsupported(Unsupported::Granule16Kib);
        }
        if granule == kib64 {
            return Self::Unsupported(Unsupported::Granule64Kib);
        }
        if granule != kib4 {
            return Self::Unsupported(Unsupported::GranuleReserved);
        }
        if (id_aa64mmfr0 >> TGRAN4_SHIFT) & 15 == TGRAN4_ABSENT {
            return Self::Unsupported(Unsupported::Granule4KibAbsent);
        }
        if tcr & TCR_DS != 0 {
            return Self::Unsupported(Unsupported::Lpa2);
        }
        let width = 64 - ((tcr >> bits.size) & 63) as u8;
        if !(25..=48).contains(&width) {
            return Self::Unsupported(Unsupported::VirtualWidth(width));
        }
        // A root with fewer than 512 entries is aligned to its size, but at least to 64
        // bytes. D8.2 "Translation table base address".
        let entries = u64::from(width) - u64::from(shift(height(width)));
        let size = (8_u64 << entries).max(64);
        Self::Tables {
            root: ttbr & TTBR_ADDRESS & !(size - 1),
            bits: width,
            tagged: tcr & bits.tagged != 0,
            hierarchical: tcr & bits.flat == 0,
        }
    }
}

/// Returns the height of the root table for virtual addresses of `bits` bits: the lowest
/// that covers them all. 39 bits begin at level 1 (height 2), 48 at level 0 (height 3).
fn height(bits: u8) -> u32 {
    u32::from(bits).saturating_sub(13) / 9
}

/// Returns the width in bits that a field like TCR_EL1.IPS and ID_AA64MMFR0_EL1.PARange
/// encodes; what is reserved or wider counts as 48.
fn width(field: u64) -> u8 {
    match field {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => WIDEST,
    }
}

/// Address space of an AArch64 CPU at EL1 and EL0: TTBR0_EL1 for the lower half, TTBR1_EL1
/// for the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AArch64 {
    lower: Half,
    upper: Half,
    /// Width of physical addresses in bits.
    physical_bits: u8,
    /// HD: hardware manages the dirty state.
    dirty: bool,
}

impl AArch64 {
    /// Returns the address space that these system registers (all of EL1) select.
    ///
    /// [`AddressSpace::Identity`] when translation is off (SCTLR_EL1.M is 0). Physical
    /// addresses are as wide as TCR_EL1.IPS and ID_AA64MMFR0_EL1.PARange both allow. A half
    /// of the address space whose granule or size is not supported gives
    /// [`WalkError::Unsupported`] for its addresses; the other half works.
    ///
    /// # Errors
    /// [`Unsupported::BigEndian`] when tables are big-endian.
    pub fn from_registers(
        ttbr0: u64,
        ttbr1: u64,
        tcr: u64,
        sctlr: u64,
        id_aa64mmfr0: u64,
    ) -> Result<AddressSpace, Unsupported> {
        if sctlr & SCTLR_M == 0 {
            return Ok(AddressSpace::Identity);
        }
        if sctlr & SCTLR_EE != 0 {
            return Err(Unsupported::BigEndian);
        }
        Ok(AddressSpace::AArch64(Self {
            lower: Half::new(&LOWER, ttbr0, tcr, id_aa64mmfr0),
            upper: Half::new(&UPPER, ttbr1, tcr, id_aa64mmfr0),
            physical_bits: width((tcr >> TCR_IPS_SHIFT) & 7).min(width(id_aa64mmfr0 & 15)),
            dirty: tcr & TCR_HD != 0,
        }))
    }

    /// Returns the half that translates `address`. Bit 55 selects it, with and without tags.
    /// D8.2 "Translation table base register selection".
    fn half(&self, address: u64) -> &Half {
        if address & 1 << 55 == 0 { &self.lower } else { &self.upper }
    }

    /// Returns the root table, or an error for an address whose bits above the width (up to
    /// bit 55 where the top byte is a tag) are not all equal to bit 55.
    pub(crate) fn root<E>(&self, address: u64) -> Result<Position, WalkError<E>> {
        let (root, bits, tagged) = match *self.half(address) {
            Half::Tables { root, bits, tagged, .. } => (root, bits, tagged),
            Half::Disabled => return Err(WalkError::Disabled { address }),
            Half::Unsupported(mode) => return Err(WalkError::Unsupported(mode)),
        };
        let tag = if tagged { 8 } else { 0 };
        let above = (address << tag) as i64 >> tag >> bits;
        let expected = if address & 1 << 55 == 0 { 0 } else { -1 };
        if above != expected {
            return Err(WalkError::NonCanonical { address });
        }
        if self.is_outside(root) {
            return Err(WalkError::OutsidePhysicalWidth {
                level: Level::Root,
                address: root,
                width: self.physical_bits,
            });
        }
        let height = height(bits);
        let index_mask = (1 << (u32::from(bits) - shift(height))) - 1;
        Ok(Position {
            table: root,
            height,
            index_mask: index_mask & INDEX_MASK,
            rights: Rights::ALL,
        })
    }

    /// Returns the rest of the half, or of the gap between the halves, that `address` is in. A
    /// half without tables is a gap.
    pub(crate) fn area(&self, address: u64) -> Area {
        const LOWER_END: u64 = u64::MAX >> 1;
        if address <= LOWER_END {
            match self.lower {
                Half::Tables { bits, .. } if address >> bits == 0 => {
                    Area { walkable: true, last: !(u64::MAX << bits) }
                }
                Half::Tables { .. } | Half::Disabled => Area { walkable: false, last: LOWER_END },
                Half::Unsupported(_) => Area { walkable: true, last: LOWER_END },
            }
        } else {
            match self.upper {
                Half::Tables { bits, .. } if address < u64::MAX << bits => {
                    Area { walkable: false, last: (u64::MAX << bits) - 1 }
                }
                Half::Disabled => Area { walkable: false, last: u64::MAX },
                Half::Tables { .. } | Half::Unsupported(_) => {
                    Area { walkable: true, last: u64::MAX }
                }
            }
        }
    }

    pub(crate) const fn level(height: u32) -> Level {
        match height {
            0 => Level::Level3,
            1 => Level::Level2,
            2 => Level::Level1,
            _ => Level::Level0,
        }
    }

    pub(crate) fn physical_bits(&self) -> u8 {
        self.physical_bits
    }

    pub(crate) fn upper(&self, address: u64, value: u64, at: &Position) -> Result<Entry, Refusal> {
        if value & VALID == 0 {
            return Err(Refusal::NotPresent);
        }
        if value & TABLE_OR_PAGE == 0 {
            // A block needs level 1 or 2; at level 0 the encoding is reserved and counts as
            // invalid. D8.3 "Table descriptor format" and "Block and Page descriptor formats".
            if at.height > 2 {
                return Err(Refusal::NotPresent);
            }
            return self.page(value, shift(at.height), at.rights).map(Entry::Page);
        }
        let below = value & ADDRESS;
        if self.is_outside(below) {
            return Err(Refusal::OutsidePhysicalWidth(below));
        }
        let hierarchical = matches!(self.half(address), Half::Tables { hierarchical: true, .. });
        let limits = if hierarchical { value } else { 0 };
        let writable = limits & AP_TABLE_READ_ONLY == 0;
        let user = limits & AP_TABLE_NO_USER == 0;
        let Rights { kernel, user: user_above } = at.rights;
        let rights = Rights {
            kernel: Access {
                read: kernel.read,
                write: kernel.write && writable,
                execute: kernel.execute && limits & PXN_TABLE == 0,
            },
            user: Access {
                read: user_above.read && user,
                write: user_above.write && user && writable,
                execute: user_above.execute && limits & UXN_TABLE == 0,
            },
        };
        Ok(Entry::Table { address: below, rights })
    }

    pub(crate) fn lowest(&self, value: u64, rights: Rights) -> Result<Page, Refusal> {
        if value & (VALID | TABLE_OR_PAGE) != VALID | TABLE_OR_PAGE {
            return Err(Refusal::NotPresent);
        }
        self.page(value, shift(0), rights)
    }

    /// Decodes a block or page descriptor. Address bits inside of a block are RES0 and are
    /// ignored, as the hardware does.
    fn page(&self, value: u64, shift: u32, above: Rights) -> Result<Page, Refusal> {
        let base = value & ADDRESS & !((1 << shift) - 1);
        if self.is_outside(base) {
            return Err(Refusal::OutsidePhysicalWidth(base));
        }
        let managed = self.dirty && value & DIRTY_MANAGED != 0;
        let clean = value & AP_READ_ONLY != 0;
        let writable = managed || !clean;
        let user = value & AP_USER != 0;
        let user_write = above.user.write && user && writable;
        let rights = Rights {
            kernel: Access {
                read: above.kernel.read,
                write: above.kernel.write && writable,
                // What EL0 can write, EL1 does not execute. D8.4 "Instruction execution
                // permissions".
                execute: above.kernel.execute && value & PXN == 0 && !user_write,
            },
            user: Access {
                read: above.user.read && user,
                write: user_write,
                // Independent of AP: a page can be execute-only for EL0.
                execute: above.user.execute && value & UXN == 0,
            },
        };
        let attributes = Attributes {
            global: value & NOT_GLOBAL == 0,
            accessed: value & ACCESSED != 0,
            dirty: managed.then_some(!clean),
            memory_type: (value >> ATTRIBUTE_SHIFT) as u8 & 7,
        };
        Ok(Page { base, shift, rights, attributes })
    }

    fn is_outside(&self, address: u64) -> bool {
        address >> self.physical_bits != 0
    }
}
