//! Modes of translation that the crate names, but does not walk.

use core::fmt;

/// Mode of translation that is not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// x86: paging is on outside of long mode (32-bit or PAE paging, EFER.LMA is 0).
    LegacyPaging,
    /// AArch64: granule of 16 KiB.
    Granule16Kib,
    /// AArch64: granule of 64 KiB.
    Granule64Kib,
    /// AArch64: the granule field of TCR_EL1 holds a reserved value.
    GranuleReserved,
    /// AArch64: the CPU has no granule of 4 KiB (ID_AA64MMFR0_EL1.TGran4), although
    /// TCR_EL1 asks for one.
    Granule4KibAbsent,
    /// AArch64: descriptors with 52-bit addresses (FEAT_LPA2, TCR_EL1.DS is 1).
    Lpa2,
    /// AArch64: size of virtual addresses in bits, outside 25 to 48 (TCR_EL1.T0SZ, T1SZ).
    VirtualWidth(u8),
    /// AArch64: big-endian translation tables (SCTLR_EL1.EE is 1).
    BigEndian,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LegacyPaging => {
                f.write_str("32-bit or PAE paging (EFER.LMA is 0) is not supported")
            }
            Self::Granule16Kib => f.write_str("a granule of 16 KiB is not supported"),
            Self::Granule64Kib => f.write_str("a granule of 64 KiB is not supported"),
            Self::GranuleReserved => f.write_str("the granule in TCR_EL1 is a reserved value"),
            Self::Granule4KibAbsent => f.write_str(
                "TCR_EL1 selects a granule of 4 KiB, which ID_AA64MMFR0_EL1 says is absent",
            ),
            Self::Lpa2 => f.write_str("descriptors with 52-bit addresses are not supported"),
            Self::VirtualWidth(bits) => {
                write!(f, "virtual addresses of {bits} bits are not supported (25 to 48 are)")
            }
            Self::BigEndian => f.write_str("big-endian translation tables are not supported"),
        }
    }
}

impl core::error::Error for Unsupported {}
