//! Access rights and attributes, in terms that both architectures share.

/// Kinds of access that one privilege level has to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Loads are allowed.
    pub read: bool,
    /// Stores are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
}

/// Access that the page tables grant, combined over all levels that were visited.
///
/// Modes of the CPU that restrict or widen it at run time are not applied: CR0.WP, SMEP,
/// SMAP and protection keys on x86; PAN, WXN and E0PD on AArch64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Access in supervisor mode (x86) or at EL1 (AArch64).
    pub kernel: Access,
    /// Access in user mode (x86) or at EL0 (AArch64).
    pub user: Access,
}

impl Rights {
    /// Every kind of access: the rights before the first entry, and those without
    /// translation.
    pub const ALL: Self = Self {
        kernel: Access { read: true, write: true, execute: true },
        user: Access { read: true, write: true, execute: true },
    };
}

/// Attributes of a page that only its last entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The page is valid in every address space, so that the TLB keeps it when the root
    /// changes. x86: bit G (effective only with CR4.PGE). AArch64: bit nG is 0.
    pub global: bool,
    /// The page was accessed. x86: bit A. AArch64: the access flag AF; where it is 0 and
    /// hardware does not manage it, an access of the machine itself would have faulted.
    pub accessed: bool,
    /// The page was written to; `None` where the entry does not record that. x86: bit D.
    /// AArch64: recorded where TCR_EL1.HD and the entry's DBM are 1.
    pub dirty: Option<bool>,
    /// Index of the memory type, 0 to 7. x86: PAT, PCD and PWT, an index into IA32_PAT.
    /// AArch64: AttrIndx, an index into MAIR_EL1.
    pub memory_type: u8,
}
